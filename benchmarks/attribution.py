"""Quality of attribution maps: the pointing game on Toyscape, and class contrast on photographs of two objects."""

from __future__ import annotations

import os
import statistics
import sys
from functools import partial
from pathlib import Path

import torch
import torchvision

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.demo.toyscape import Toyscape
from convis_widgets.techniques.attribution.occlusion import occlusion
from convis_widgets.techniques.attribution.pointing_game import pointing_game

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from sample_photos import METHODS, Shares, shares


def print_row(*cells: str) -> None:
    """Print a row of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def print_header(*cells: str) -> None:
    """Print the header of a Markdown table; all columns but the first are aligned to the right."""
    print_row(*cells)
    print_row("---", *["---:"] * (len(cells) - 1))


def pointing_accuracy(count: int = 1000) -> None:
    """Accuracy in the pointing game on Toyscape, on the same scenes for every method and network."""
    scenes = Toyscape(count, seed=1, split="test")[:]
    nets = [Network.demo(), Network.demo(robust=False)]
    print(f"\naccuracy in the pointing game on {count} scenes, with 95 % intervals\n")
    print_header("", *(net.name for net in nets))
    for name, method in (METHODS | {"occlusion": partial(occlusion, patch_size=16, stride=4)}).items():
        scores = [Run(pointing_game(net, scenes, method=method)).run().scalars for net in nets]
        print_row(f"`{name}`", *(format_interval(*(score[key] for key in ("accuracy", "low", "high"))) for score in scores))
    center = [format_interval(*(score[key] for key in ("center", "center low", "center high"))) for score in scores]
    print_row("baseline: the center of the image", *center)


def format_interval(fraction: float, low: float, high: float) -> str:
    """A fraction and its confidence interval in percent."""
    return f"{fraction:.1%} ({low:.1%} to {high:.1%})".replace("%", " %")


def class_contrast() -> None:
    """Photographs of two objects: the fraction of a map in the box of each object, for its own class and the other one."""
    data = Path(os.environ.get("CONVIS_TEST_DATA") or "none")
    if not data.is_dir():
        print("class contrast: skipped, CONVIS_TEST_DATA is not a folder with real weights and photographs")
        return
    for name in ("squeezenet1_1", "mobilenet_v2"):
        module = torchvision.models.get_model(name)
        module.load_state_dict(torch.load(data / "weights" / f"{name}.pth", weights_only=True))
        net = Network(module, name=name)
        print(f"\n{name}: fraction of the map in the box of an object, for its own / the other object's class\n")
        print_contrast(list(METHODS), [list(shares(net, data / "photos", method)) for method in METHODS.values()])


def print_contrast(methods: list[str], columns: list[list[Shares]]) -> None:
    """Print a table of objects by methods, with the number of correct maps and the mean difference."""
    print_header("box", *(f"`{method}`" for method in methods))
    for cells in zip(*columns, strict=True):
        name = f"{Path(cells[0].photo).stem}, {cells[0].thing}"
        print_row(name, *(f"{cell.own:.2f} / {cell.other:.2f}" for cell in cells))
    print_row("larger for the own class", *(f"{sum(cell.right for cell in column)} of {len(column)}" for column in columns))
    differences = [statistics.mean(cell.own - cell.other for cell in column) for column in columns]
    print_row("mean difference", *(f"{difference:z.3f}" for difference in differences))


def main() -> None:
    """Run both benchmarks; the pointing game takes about a quarter of an hour on two cores."""
    class_contrast()
    pointing_accuracy()
