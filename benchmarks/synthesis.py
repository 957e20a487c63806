"""Pictures that are painted: what a step costs, and whether the pictures do what they are for."""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis import objectives
from convis_widgets.core.synthesis.image_optimizer import ImageOptimizer, noise
from convis_widgets.core.synthesis.presets import PRESETS
from convis_widgets.techniques.synthesis.fooling import fooling
from convis_widgets.techniques.synthesis.gradient_ascent import gradient_ascent

from .compute import line
from .sets import squeezenet

ROUNDS = 15


def in_turn(works: list[Callable[[], object]]) -> list[float]:
    """Median seconds of each, one after the other, round after round."""
    times: list[list[float]] = [[] for _ in works]
    for turn in range(ROUNDS + 2):
        for mine, work in zip(times, works, strict=True):
            began = time.perf_counter()
            work()
            if turn >= 2:
                mine.append(time.perf_counter() - began)
    return [statistics.median(mine) for mine in times]


def bare(module: torch.nn.Module, upto: int, channel: int | None) -> Callable[[], object]:
    """Forward through the first modules of a Sequential, and backward to the pixels: nothing else."""
    x = torch.rand(1, 3, 224, 224, requires_grad=True)
    for parameter in module.parameters():
        parameter.requires_grad_(False)

    def work() -> object:
        y = x
        for part in module[:upto] if channel is not None else [module]:
            y = part(y)
        return torch.autograd.grad(y[:, 3].mean(), x)

    return work


def steps() -> None:
    """A step of Ascent against the truncated forward and backward pass that it needs."""
    torch.manual_seed(0)
    vgg = torchvision.models.vgg16(weights=None).eval()
    for name, net, layer, upto in (
        ("SqueezeNet, features.6", squeezenet(), "features.6", 7),
        ("VGG-16, features.7 (an early layer)", Network(vgg, name="vgg16"), "features.7", 8),
        ("VGG-16, features.21", Network(vgg, name="vgg16"), "features.21", 22),
    ):
        opt = ImageOptimizer(net, noise(net, 0.1, 0), optimizer="adam")
        objective = objectives.channel(layer, 3)
        ours, theirs = in_turn([lambda a=opt, o=objective: a.step(o, lr=0.01), bare(net.module.features, upto, 3)])
        value = f"{1e3 * ours:.1f} | {1e3 * theirs:.1f} ms, {ours / theirs:.2f}"
        line(f"a step and its bare passes: {name}", value, "<= 1.10")
    net = squeezenet()
    opt = ImageOptimizer(net, noise(net, 0.1, 0), optimizer="adam")
    ours, theirs = in_turn([lambda: opt.step(objectives.class_logit(3), lr=0.01), bare(net.module, 0, None)])
    line("... SqueezeNet, a class", f"{1e3 * ours:.1f} | {1e3 * theirs:.1f} ms, {ours / theirs:.2f}", "<= 1.10")


def beside_lucent() -> None:
    """A step for a channel of an early layer against one of Lucent, which runs the whole network.

    Lucent twice: with the network as torchvision makes it, when it also computes the gradients of the weights that the
    layer depends on, and with weights that its user has frozen.
    """
    name = "beside Lucent: VGG-16, features.7"
    if importlib.util.find_spec("lucent") is None:
        print(f"{name}: skipped, torch-lucent is not installed")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its kornia compiles functions when it is imported
        from lucent.optvis import objectives, param, render

    torch.manual_seed(0)
    # a network for each, as Lucent leaves its hooks on all modules
    mine, usual, frozen = (torchvision.models.vgg16(weights=None).eval() for _ in range(3))
    frozen.requires_grad_(False)
    net, count = Network(mine, name="vgg16"), 3

    def lucent(module: torch.nn.Module, fft: bool) -> None:
        """`count` steps of its own loop, with its normalization of the input and its Adam; what is before and after the
        steps is below one percent. Left off is what is not part of a step of ours: transforms, its resizing (a picture of
        224 pixels needs none), and saving or showing the picture.
        """
        for part in module.modules():
            part._forward_hooks.clear()  # of the call before: else each call would be slower than the last
        render.render_vis(
            module,
            objectives.channel("features_7", 3),
            lambda: param.image(224, fft=fft, decorrelate=fft),
            transforms=[],
            thresholds=(count,),
            progress=False,
            show_image=False,
        )

    for parameterization in ("pixels", "fourier"):
        opt = ImageOptimizer(net, noise(net, 0.01, 0), parameterization=parameterization, optimizer="adam")

        def convis(opt: ImageOptimizer = opt) -> None:
            for _ in range(count):
                opt.step(objectives.channel("features.7", 3), lr=0.05)

        fft = parameterization == "fourier"
        works = [convis, *(lambda m=m, fft=fft: lucent(m, fft) for m in (usual, frozen))]
        ours, *theirs = (seconds / count for seconds in in_turn(works))
        for what, seconds in zip(("", ", weights frozen"), theirs, strict=True):
            value = f"{1e3 * ours:.0f} | {1e3 * seconds:.0f} ms, {seconds / ours:.2f}"
            line(f"{name}, {parameterization}{what}", value, ">= 2.2")


def classes(net: Network) -> None:
    """How many of 20 random classes are the most probable, at p > 0.9, of the picture painted for them, in 8 bits."""
    chosen = np.random.default_rng(1).integers(0, 1000, 20)
    for preset in PRESETS:
        p = []
        for c in chosen:
            picture = Run(gradient_ascent(net, target=int(c), preset=preset)).run().image
            p.append(net.predict_proba(np.round(picture * 255).astype(np.uint8))[c])
        line(f"gradient ascent, {preset}: classes of 20 at p > 0.9", str(int((np.array(p) > 0.9).sum())), ">= 19")


def fooled(net: Network, folder: Path) -> None:
    """100 random photographs, each as a random class."""
    rng = np.random.default_rng(0)
    names = sorted(folder.rglob("*.jpg"))
    chosen = zip(rng.choice(len(names), 100, replace=False), rng.integers(0, 1000, 100), strict=True)
    pairs = [(names[i], int(c)) for i, c in chosen]
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("PGD, 2/255, 10 steps", {"method": "pgd", "epsilon": 2 / 255, "iterations": 10}, "100"),
        ("PGD, 1/255, 10 steps", {"method": "pgd", "epsilon": 1 / 255, "iterations": 10}, ">= 90"),
        ("the lecture's rule, 30 steps", {"method": "normalized", "iterations": 30}, "100"),
    ]
    for name, words, goal in cases:
        last = [Run(fooling(net, path, target=c, **words)).run() for path, c in pairs]
        told = {key: np.array([frame.scalars[key] for frame in last]) for key in ("fooled", "l2", "linf")}
        scales = f"L2 {np.median(told['l2']):.2f}, Linf {255 * np.median(told['linf']):.0f}/255"
        count = max(frame.step for frame in last)
        line(f"fooled of 100, {name}: medians {scales}, steps <= {count}", str(int(told["fooled"].sum())), goal)


def main() -> None:
    """Print them all."""
    steps()
    beside_lucent()
    data = os.environ.get("CONVIS_TEST_DATA")
    if not data:
        print("fooling and classes: skipped, CONVIS_TEST_DATA is not set")
        return
    net = squeezenet()
    fooled(net, Path(data) / "imagenet_sample")
    classes(net)
