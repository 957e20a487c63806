"""Occlusion compared with Captum's, and with the ratio of multiply-accumulates, on eight networks of torchvision."""

from __future__ import annotations

import math
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision
from captum.attr import Occlusion
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import nn

from convis_widgets.core.attribution.incremental import rules
from convis_widgets.core.attribution.incremental.incremental_forward import IncrementalForward
from convis_widgets.core.attribution.incremental.plan import Plan
from convis_widgets.core.attribution.incremental.span import Positions
from convis_widgets.core.network.graph import count_macs
from convis_widgets.core.network.network import Network
from convis_widgets.techniques.attribution.occlusion import occlusion

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from conftest import calibrate

from .compute import print_result

NAMES = (
    "vgg16", "googlenet", "squeezenet1_1", "alexnet", "resnet18", "densenet121", "mobilenet_v2", "inception_v3",
)  # fmt: skip
SETTINGS = ((16, 8), (32, 16))  # patch size and stride
SIDE = 224
GOAL = 0.6  # speed-up, relative to the ratio of multiply-accumulates
BATCH_SIZES = (1, 8, 32)  # tried as Captum's perturbations_per_eval
ROUNDS = 3


def make_network(name: str) -> tuple[nn.Module, Network]:
    """A module with random weights whose activations neither vanish nor explode, and a Network that does not normalize."""
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": False} if name in ("googlenet", "inception_v3") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = calibrate(torchvision.models.get_model(name, **options), SIDE)
    last = [part for part in module.modules() if isinstance(part, (nn.Linear, nn.Conv2d))][-1]
    with torch.no_grad():
        last.weight.mul_(100)  # with random weights, a patch changes the scores only a little
    return module, Network(module, size=SIDE, mean=0, std=1, name=name)


def make_plan(patch: int, rows: np.ndarray, cols: np.ndarray) -> Plan:
    """A plan for patches on an image of `SIDE` pixels."""
    return Plan((SIDE, SIDE), patch, rows, cols, torch.device("cpu"))


def mac_ratio(net: Network, image: torch.Tensor, patch: int, stride: int) -> float:
    """Multiply-accumulates of complete forward passes, divided by those of the exact boxes, clipped at the borders."""
    edges = np.arange(0, SIDE - patch + 1, stride)
    plan, max_box_fraction = make_plan(patch, edges, edges), rules.MAX_BOX_FRACTION
    rules.MAX_BOX_FRACTION = math.inf
    try:
        IncrementalForward(net, image, image, plan).run([Positions(np.array([0, 1]), np.array([0, 1]))])
    finally:
        rules.MAX_BOX_FRACTION = max_box_fraction
    edge = np.arange(len(edges))[:, None]
    exact = sum(plan.workload.per_image(i, j)[0] for i in edge for j in edge)
    return len(edges) ** 2 * count_macs(net.graph) / exact


def relative_error(net: Network, image: torch.Tensor, patch: int) -> tuple[float, float]:
    """Largest error of a class score at random positions, relative to the range of that score, and the largest range.

    Scores with a range of at most 0.1 are left out.
    """
    rng = np.random.default_rng(0)
    rows, cols = rng.integers(0, SIDE - patch + 1, (2, 32))
    occluded = image.repeat(len(rows), 1, 1, 1)
    for one, r, c in zip(occluded, rows, cols, strict=True):
        one[:, r : r + patch, c : c + patch] = 0
    with torch.no_grad():
        expected = torch.cat([net(part) for part in occluded.split(8)])
    passes = IncrementalForward(net, image, torch.zeros_like(image), make_plan(patch, rows, cols))
    actual = torch.cat([passes.run([Positions(part, part)]) for part in np.array_split(np.arange(len(rows)), (4, 12))])
    spread = expected.amax(0) - expected.amin(0)
    changed = spread > 0.1
    assert changed.any(), "the patches change no score, so the comparison is meaningless"
    return float(((actual - expected).abs().amax(0) / spread)[changed].max()), float(spread.max())


class Comparison:
    """Occlusion by Captum and by this package, on one image."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.module, self.net = make_network(name)
        self.image = self.net.batch(Image.fromarray(load_sample_image("flower.jpg")))

    def time_captum(self, patch: int, stride: int, batch_size: int) -> float:
        """Seconds that Captum takes."""
        start = time.perf_counter()
        with torch.no_grad():
            Occlusion(self.module).attribute(
                self.image,
                (3, patch, patch),
                (3, stride, stride),
                baselines=0,
                target=0,
                perturbations_per_eval=batch_size,
            )
        return time.perf_counter() - start

    def time_ours(self, patch: int, stride: int) -> tuple[float, float]:
        """Seconds that `occlusion` takes, and seconds until its first map without gaps."""
        start, first = time.perf_counter(), math.inf
        for frame in occlusion(self.net, self.image, target=0, patch_size=patch, stride=stride, baseline="black"):
            if first == math.inf and np.isfinite(frame.heat).all():
                first = time.perf_counter() - start
        return time.perf_counter() - start, first

    def run(self, patch: int, stride: int) -> None:
        """Print one row of the table: medians of rounds in which the two take turns."""
        ratio = mac_ratio(self.net, self.image, patch, stride)
        trials = {batch_size: self.time_captum(patch, patch, batch_size) for batch_size in BATCH_SIZES}
        batch_size = min(trials, key=trials.__getitem__)
        self.time_ours(patch, patch)
        rounds = [(*self.time_ours(patch, stride), self.time_captum(patch, stride, batch_size)) for _ in range(ROUNDS)]
        ours, _, theirs = (statistics.median(times) for times in zip(*rounds, strict=True))
        speedup = statistics.median(captum / total for total, _, captum in rounds)
        first_map = statistics.median(first / total for total, first, _ in rounds)
        error, spread = relative_error(self.net, self.image, patch)
        cells = (
            self.name,
            f"{patch} / {stride}",
            f"{ratio:.2f}",
            f"{GOAL * ratio:.2f}",
            f"**{speedup:.2f}**" if speedup >= GOAL * ratio else f"{speedup:.2f}, below the goal",
            f"{ours:.1f}",
            f"{theirs:.1f} ({batch_size})",
            f"{100 * first_map:.0f} %",
            f"{error:.0e} of {spread:.3g}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def memory() -> None:
    """Peak memory of occlusion with VGG-16 on an image of 512 pixels, in a separate process."""
    code = (
        "import itertools, resource, numpy as np, torchvision\n"
        "from convis_widgets import Network, occlusion\n"
        "net = Network(torchvision.models.vgg16(weights=None), size=512, mean=0, std=1)\n"
        "image = np.random.default_rng(0).random((512, 512, 3))\n"
        "frames = occlusion(net, image, target=0, patch_size=16, stride=8)\n"
        "for frame in itertools.takewhile(lambda frame: frame.step < 600, frames): pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, frame.total)"
    )
    gib, total = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True).stdout.split()
    print_result(f"VGG-16, 512 px, stride 8, {int(total)} positions: peak memory", f"{float(gib):.2f} GiB", "<= 4 GiB")


def main(names: tuple[str, ...] = NAMES) -> None:
    """Print the table; this takes half an hour on two cores."""
    headers = ("network", "patch / stride", "MACs", "goal", "speed-up", "s", "Captum, s (batch)", "first map", "error")
    print(f"| {' | '.join(headers)} |\n|{'---|' * len(headers)}")
    for name in names:
        comparison = Comparison(name)
        for setting in SETTINGS:
            comparison.run(*setting)
    memory()
