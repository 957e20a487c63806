"""Occlusion against Captum's, and against what arithmetic allows, on eight networks of torchvision."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from captum.attr import Occlusion
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn

from convis_widgets.core.attribution import incremental_forward
from convis_widgets.core.attribution.incremental_forward import IncrementalForward
from convis_widgets.core.network.network import Network
from convis_widgets.techniques.attribution.occlusion import occlusion

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from conftest import calibrate

from .compute import line

NAMES = (
    "vgg16", "googlenet", "squeezenet1_1", "alexnet", "resnet18", "densenet121", "mobilenet_v2", "inception_v3",
)  # fmt: skip
SETTINGS = ((16, 8), (32, 16))
SIDE = 224
GOAL = 0.6  # of the bound
PER_EVAL = (1, 8, 32)  # how many positions Captum takes at once
ROUNDS = 3


def network(name: str) -> tuple[nn.Module, Network]:
    """A network with random weights that neither die nor explode, and the same as a Network that changes no pixels."""
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = calibrate(torchvision.models.get_model(name, **options), SIDE)
    last = [part for part in module.modules() if isinstance(part, (nn.Linear, nn.Conv2d))][-1]
    with torch.no_grad():
        last.weight.mul_(100)  # a patch moves the scores of random weights by little
    return module, Network(module, size=SIDE, mean=0, std=1, name=name)


class Boxes(IncrementalForward):
    """Notes for every layer with weights the size of the box that it computes, and what a value of it costs."""

    def _count(self, func: Any, args: Any, result: Any) -> None:
        super()._count(func, args, result)
        if func is torch.ops.aten.convolution.default:
            box = result.box if isinstance(result, incremental_forward.PatchedTensor) else result
            self.scales.append((box.shape[2], args[1].numel(), result.shape[2] * result.shape[3]))
        elif func is torch.ops.aten.addmm.default:
            self.scales.append((1, args[2].numel(), 1))

    def sizes_at(self, patch: int, edge: int) -> list[tuple[int, int, int]]:
        """(side of the box, multiply-adds per position of the map, positions of the map) of every layer with weights."""
        self.scales: list[tuple[int, int, int]] = []
        self.run(torch.zeros(1, 3, patch, patch), np.array([edge]), np.array([edge]))
        return self.scales


def bound(net: Network, picture: torch.Tensor, patch: int, stride: int) -> float:
    """Multiply-adds of whole pictures over those of exact boxes, clipped at the borders.

    A box's height depends on its row only and its width on its column only, so patches along the diagonal tell all.
    """
    boxes, full = Boxes(net, picture), incremental_forward.MAX_BOX_FRACTION
    incremental_forward.MAX_BOX_FRACTION = math.inf
    try:
        edges = range(0, SIDE - patch + 1, stride)
        sides = [boxes.sizes_at(patch, edge) for edge in edges]
    finally:
        incremental_forward.MAX_BOX_FRACTION = full
    whole = sum(cost * places for _, cost, places in sides[0]) * len(edges) ** 2
    exact = sum(layer[0][1] * sum(side for side, _, _ in layer) ** 2 for layer in zip(*sides, strict=True))
    return whole / exact


def error(net: Network, picture: torch.Tensor, patch: int) -> tuple[float, float]:
    """The largest error of a logit over its range at random positions, of those with a range over 0.1; the largest range."""
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, SIDE - patch + 1, (2, 32))
    hidden = picture.repeat(len(rows), 1, 1, 1)
    for one, r, c in zip(hidden, rows, cols, strict=True):
        one[:, r : r + patch, c : c + patch] = 0
    with torch.no_grad():
        expected = torch.cat([net(part) for part in hidden.split(8)])
    found = IncrementalForward(net, picture).run(torch.zeros(len(rows), 3, patch, patch), rows, cols)
    spread = expected.amax(0) - expected.amin(0)
    moved = spread > 0.1
    assert moved.any(), "comparing what does not change proves nothing"
    return float(((found - expected).abs().amax(0) / spread)[moved].max()), float(spread.max())


class Race:
    """Occlusion by Captum and by this package, on one picture."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module, self.net = network(name)
        self.picture = self.net.batch(Image.fromarray(load_sample_image("flower.jpg")))

    def captum(self, patch: int, stride: int, per_eval: int) -> float:
        """Seconds."""
        start = time.perf_counter()
        with torch.no_grad():
            Occlusion(self.module).attribute(
                self.picture,
                (3, patch, patch),
                (3, stride, stride),
                baselines=0,
                target=0,
                perturbations_per_eval=per_eval,
            )
        return time.perf_counter() - start

    def ours(self, patch: int, stride: int) -> tuple[float, float]:
        """Seconds, and seconds to the first map without gaps."""
        start, first = time.perf_counter(), math.inf
        for frame in occlusion(self.net, self.picture, target=0, patch_size=patch, stride=stride, baseline="black"):
            if first == math.inf and np.isfinite(frame.heat).all():
                first = time.perf_counter() - start
        return time.perf_counter() - start, first

    def run(self, patch: int, stride: int) -> None:
        """One row of the table: medians of rounds in which the two take turns."""
        limit = bound(self.net, self.picture, patch, stride)
        coarse = {n: self.captum(patch, patch, n) for n in PER_EVAL}
        per_eval = min(coarse, key=coarse.__getitem__)
        self.ours(patch, patch)
        rounds = [(*self.ours(patch, stride), self.captum(patch, stride, per_eval)) for _ in range(ROUNDS)]
        mine, theirs = (statistics.median(times) for times in (next(zip(*rounds, strict=True)), [t for _, _, t in rounds]))
        ratio = statistics.median(t / m for m, _, t in rounds)
        share = statistics.median(first / m for m, first, _ in rounds)
        wrong, spread = error(self.net, self.picture, patch)
        cells = (
            self.name,
            f"{patch} / {stride}",
            f"{limit:.2f}",
            f"{GOAL * limit:.2f}",
            f"**{ratio:.2f}**" if ratio >= GOAL * limit else f"{ratio:.2f}, below",
            f"{mine:.1f}",
            f"{theirs:.1f} ({per_eval})",
            f"{100 * share:.0f} %",
            f"{wrong:.0e} of {spread:.3g}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def memory() -> None:
    """The largest resident memory while VGG-16 looks at a picture of 512 pixels, in a process of its own."""
    code = (
        "import itertools, resource, numpy as np, torchvision\n"
        "from convis_widgets import Network, occlusion\n"
        "net = Network(torchvision.models.vgg16(weights=None), size=512, mean=0, std=1)\n"
        "picture = np.random.default_rng(0).random((512, 512, 3))\n"
        "frames = occlusion(net, picture, target=0, patch_size=16, stride=8)\n"
        "for frame in itertools.takewhile(lambda frame: frame.step < 600, frames): pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, frame.total)"
    )
    gib, total = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True).stdout.split()
    line(f"VGG-16, 512 px, stride 8, {int(total)} positions: resident memory", f"{float(gib):.2f} GiB", "<= 4")


def main(names: tuple[str, ...] = NAMES) -> None:
    """Print the table; half an hour on two cores."""
    heads = ("network", "patch / stride", "bound", "goal", "times Captum", "s", "Captum, s (per eval)", "first map", "error")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in names:
        race = Race(name)
        for setting in SETTINGS:
            race.run(*setting)
    memory()
