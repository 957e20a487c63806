"""Benchmarks of image synthesis: cost of a step, success of gradient ascent, and success of adversarial examples."""

from __future__ import annotations

import importlib.util
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
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

from .compute import print_result
from .dataset import squeezenet

ROUNDS = 15


def median_times(functions: list[Callable[[], object]]) -> list[float]:
    """Median time of each function in seconds. They are called in turn, `ROUNDS` times after two rounds to warm up."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(ROUNDS + 2):
        for own_times, function in zip(times, functions, strict=True):
            start = time.perf_counter()
            function()
            if turn >= 2:
                own_times.append(time.perf_counter() - start)
    return [statistics.median(own_times) for own_times in times]


def forward_backward(module: torch.nn.Module, num_layers: int = 0) -> Callable[[], object]:
    """A function that only runs a module, or the first layers of a Sequential, forward and backward to the pixels."""
    x = torch.rand(1, 3, 224, 224, requires_grad=True)
    for parameter in module.parameters():
        parameter.requires_grad_(False)

    def run() -> object:
        y = x
        layers: Iterable[torch.nn.Module] = module[:num_layers] if isinstance(module, torch.nn.Sequential) else [module]
        for layer in layers:
            y = layer(y)
        return torch.autograd.grad(y[:, 3].mean(), x)

    return run


def steps() -> None:
    """A step of ImageOptimizer compared with the forward and backward pass that it needs."""
    torch.manual_seed(0)
    vgg = torchvision.models.vgg16(weights=None).eval()
    for name, net, layer, num_layers in (
        ("SqueezeNet, features.6", squeezenet(), "features.6", 7),
        ("VGG-16, features.7 (an early layer)", Network(vgg, name="vgg16"), "features.7", 8),
        ("VGG-16, features.21", Network(vgg, name="vgg16"), "features.21", 22),
    ):
        opt = ImageOptimizer(net, noise(net, 0.1, 0), optimizer="adam")
        step = partial(opt.step, objectives.channel(layer, 3), lr=0.01)
        print_step(name, *median_times([step, forward_backward(net.module.get_submodule("features"), num_layers)]))
    net = squeezenet()
    opt = ImageOptimizer(net, noise(net, 0.1, 0), optimizer="adam")
    step_times = median_times([lambda: opt.step(objectives.class_logit(3), lr=0.01), forward_backward(net.module)])
    print_step("SqueezeNet, a class", *step_times)


def print_step(name: str, step: float, passes: float) -> None:
    """Print the time of a step, that of the passes alone, and their ratio."""
    print_result(f"step | passes: {name}", f"{1e3 * step:.1f} | {1e3 * passes:.1f} ms, {step / passes:.2f}", "<= 1.10")


def compare_with_lucent() -> None:
    """A step for a channel of an early layer compared with one of Lucent, which runs the whole network.

    Lucent is timed twice: with the network as torchvision creates it, where it also computes the gradients of the weights
    that the layer depends on, and with frozen weights.
    """
    name = "ours | Lucent, VGG-16, features.7"
    if importlib.util.find_spec("lucent") is None:
        print(f"{name}: skipped, torch-lucent is not installed")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised by kornia, which Lucent imports
        from lucent.optvis import objectives as lucent_objectives
        from lucent.optvis import param, render

    torch.manual_seed(0)
    # a network for each, since Lucent leaves its hooks on all modules
    own, default, frozen = (torchvision.models.vgg16(weights=None).eval() for _ in range(3))
    frozen.requires_grad_(False)
    net, count = Network(own, name="vgg16"), 3

    def run_lucent(module: torch.nn.Module, fft: bool) -> None:
        """Run `count` steps of Lucent's own loop, with its input normalization and its Adam.

        Its work before and after the steps takes less than one percent of the time. Whatever our step does not do is turned
        off: transforms, resizing (not needed for an image of 224 pixels), and saving or displaying the image.
        """
        for part in module.modules():
            part._forward_hooks.clear()  # those of the previous call, which would slow down this one
        render.render_vis(
            module,
            lucent_objectives.channel("features_7", 3),
            lambda: param.image(224, fft=fft, decorrelate=fft),
            transforms=[],
            thresholds=(count,),
            progress=False,
            show_image=False,
        )

    for parameterization in ("pixels", "fourier"):
        opt = ImageOptimizer(net, noise(net, 0.01, 0), parameterization=parameterization, optimizer="adam")

        def run_ours(opt: ImageOptimizer = opt) -> None:
            for _ in range(count):
                opt.step(objectives.channel("features.7", 3), lr=0.05)

        fft = parameterization == "fourier"
        lucent: list[Callable[[], object]] = [partial(run_lucent, module, fft) for module in (default, frozen)]
        ours, *theirs = (seconds / count for seconds in median_times([run_ours, *lucent]))
        for suffix, seconds in zip(("", ", weights frozen"), theirs, strict=True):
            value = f"{1e3 * ours:.0f} | {1e3 * seconds:.0f} ms, {seconds / ours:.2f}"
            print_result(f"{name}, {parameterization}{suffix}", value, ">= 2.2")


def class_images(net: Network) -> None:
    """For how many of 20 random classes the image found by gradient ascent, rounded to 8 bits, has p > 0.9."""
    chosen = np.random.default_rng(1).integers(0, 1000, 20)
    for preset in PRESETS:
        p = []
        for c in chosen:
            image = Run(gradient_ascent(net, target=int(c), preset=preset)).run().image
            p.append(net.predict_proba(np.round(image * 255).astype(np.uint8))[c])
        print_result(f"gradient ascent, {preset}: classes of 20 with p > 0.9", str(int((np.array(p) > 0.9).sum())), ">= 19")


def adversarial_examples(net: Network, folder: Path) -> None:
    """How many of 100 random photographs can be changed so that a random class is predicted."""
    rng = np.random.default_rng(0)
    names = sorted(folder.rglob("*.jpg"))
    chosen = zip(rng.choice(len(names), 100, replace=False), rng.integers(0, 1000, 100), strict=True)
    pairs = [(names[i], int(c)) for i, c in chosen]
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("PGD, 2/255, 10 steps", {"method": "pgd", "epsilon": 2 / 255, "iterations": 10}, "100"),
        ("PGD, 1/255, 10 steps", {"method": "pgd", "epsilon": 1 / 255, "iterations": 10}, ">= 90"),
        ("rule of CS231n, 30 steps", {"method": "normalized", "iterations": 30}, "100"),
    ]
    for name, kwargs, goal in cases:
        last = [Run(fooling(net, path, target=c, **kwargs)).run() for path, c in pairs]
        scalars = {key: np.array([frame.scalars[key] for frame in last]) for key in ("fooled", "l2", "linf")}
        norms = f"median L2 {np.median(scalars['l2']):.2f}, Linf {255 * np.median(scalars['linf']):.0f}/255"
        count = max(frame.step for frame in last)
        print_result(f"fooled of 100, {name}: {norms}, steps <= {count}", str(int(scalars["fooled"].sum())), goal)


def main() -> None:
    """Run all benchmarks of this file."""
    steps()
    compare_with_lucent()
    data = os.environ.get("CONVIS_TEST_DATA")
    if not data:
        print("adversarial examples and class images: skipped, CONVIS_TEST_DATA is not set")
        return
    net = squeezenet()
    adversarial_examples(net, Path(data) / "imagenet_sample")
    class_images(net)
