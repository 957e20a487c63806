"""How far maps are to be believed: is the hottest pixel on the object, is the heat of a class on its own object?"""

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


def row(*cells: str) -> None:
    """One row of a Markdown table."""
    print(f"| {' | '.join(cells)} |", flush=True)


def head(*cells: str) -> None:
    """The head of a Markdown table; all columns but the first to the right."""
    row(*cells)
    row("---", *["---:"] * (len(cells) - 1))


def pointing(count: int = 1000) -> None:
    """The pointing game on Toyscape, with 95 % intervals; the same scenes for every method and network."""
    scenes = Toyscape(count, seed=1, split="test")[:]
    nets = [Network.demo(), Network.demo(robust=False)]
    print(f"\nhottest pixel on the figure, {count} scenes, 95 % intervals\n")
    head("", *(net.name for net in nets))
    for name, method in (METHODS | {"occlusion": partial(occlusion, patch_size=16, stride=4)}).items():
        scores = [Run(pointing_game(net, scenes, method=method)).run().scalars for net in nets]
        row(f"`{name}`", *(percent(*(score[key] for key in ("accuracy", "low", "high"))) for score in scores))
    row("the center", *(percent(*(score[key] for key in ("center", "center low", "center high"))) for score in scores))


def percent(share: float, low: float, high: float) -> str:
    """A share and its interval."""
    return f"{share:.1%} ({low:.1%} to {high:.1%})".replace("%", " %")


def contrast() -> None:
    """Photographs with two objects: the share of heat in each one's box, of its own class and of the other's."""
    data = Path(os.environ.get("CONVIS_TEST_DATA") or "none")
    if not data.is_dir():
        print("class contrast: skipped; CONVIS_TEST_DATA names no folder with real weights and photographs")
        return
    for name in ("squeezenet1_1", "mobilenet_v2"):
        module = torchvision.models.get_model(name)
        module.load_state_dict(torch.load(data / "weights" / f"{name}.pth", weights_only=True))
        net = Network(module, name=name)
        print(f"\n{name}: share of a class's heat in the box of its object / share of the other class's heat there\n")
        table(list(METHODS), [list(shares(net, data / "photos", method)) for method in METHODS.values()])


def table(methods: list[str], columns: list[list[Shares]]) -> None:
    """Objects by methods; how many are right; and by how much on average."""
    head("box", *(f"`{method}`" for method in methods))
    for cells in zip(*columns, strict=True):
        row(f"{Path(cells[0].photo).stem}, {cells[0].thing}", *(f"{cell.own:.2f} / {cell.other:.2f}" for cell in cells))
    row("right", *(f"{sum(cell.right for cell in column)} of {len(column)}" for column in columns))
    row("mean difference", *(f"{statistics.mean(cell.own - cell.other for cell in column):z.3f}" for column in columns))


def main() -> None:
    """Print both; the pointing game takes about a quarter of an hour on two cores."""
    contrast()
    pointing()
