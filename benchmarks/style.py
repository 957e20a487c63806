"""Benchmarks on photographs: style transfer compared with a reference implementation, textures, inversions and DeepDream."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import get_activations
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis import objectives
from convis_widgets.core.synthesis.default_layers import default_style_layers
from convis_widgets.core.synthesis.image_optimizer import ImageOptimizer, noise
from convis_widgets.core.synthesis.style_loss import style_loss, style_statistics
from convis_widgets.techniques.synthesis.deep_dream import deep_dream
from convis_widgets.techniques.synthesis.feature_inversion import feature_inversion
from convis_widgets.techniques.synthesis.style_transfer import style_transfer
from convis_widgets.techniques.synthesis.texture import texture

from .compute import print_result
from .dataset import squeezenet
from .synthesis import median_times

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

PAIRS = (
    ("content_tubingen", "starry_night"),
    ("content_golden_gate", "the_scream"),
    ("cat_chelsea", "great_wave"),
    ("content_amber", "woman_with_hat"),
)
WEIGHTS = {"content": 1.0, "style": 5.0, "tv": 1.0}  # the defaults of `style_transfer`


class ReferenceStyleTransfer:
    """Style transfer as in tutorials: a loop over the network's layers, and torch's L-BFGS.

    The losses are those of `style_transfer`, so that results can be compared.
    """

    def __init__(self, net: Network, content: torch.Tensor, style: torch.Tensor, initial: torch.Tensor) -> None:
        layers = default_style_layers(net)
        self.style_layers = [int(name.split(".")[1]) for name in layers.style]
        self.content_layer = int(layers.content.split(".")[1])
        self.weights, self.net = layers.weights, net
        features = net.copy().module.get_submodule("features")
        assert isinstance(features, torch.nn.Sequential)
        self.features = features
        for i, layer in enumerate(features):
            if isinstance(layer, torch.nn.MaxPool2d):
                features[i] = torch.nn.AvgPool2d(layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode)
        with torch.no_grad():
            self.style_targets = [self.gram_matrix(maps) for maps in self.activations(style, self.style_layers)]
            (self.content_target,) = self.activations(content, [self.content_layer])
        self.x = initial.clone().requires_grad_()

    @staticmethod
    def gram_matrix(maps: torch.Tensor) -> torch.Tensor:
        rows = maps.flatten(2)[0]
        return rows @ rows.T / rows.shape[1]

    def activations(self, x: torch.Tensor, layers: list[int]) -> list[torch.Tensor]:
        y, outputs = self.net.transform.normalize(x), []
        for i, layer in enumerate(self.features[: max(layers) + 1]):
            y = layer(y)
            if i in layers:
                outputs.append(y.clone())  # the next layer may work in place
        return outputs

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        *style, content = self.style_and_content(x)
        distance = (content - self.content_target).square().sum() / self.content_target.square().sum()
        total = WEIGHTS["content"] * distance
        for maps, target, weight in zip(style, self.style_targets, self.weights, strict=True):
            distance = (self.gram_matrix(maps) - target).square().sum() / target.square().sum()
            total = total + WEIGHTS["style"] * weight * distance
        variation = (x[:, :, 1:, :-1] - x[:, :, :-1, :-1]).square() + (x[:, :, :-1, 1:] - x[:, :, :-1, :-1]).square()
        return total + WEIGHTS["tv"] * variation.sum() / (x.shape[2] * x.shape[3])

    def style_and_content(self, x: torch.Tensor) -> list[torch.Tensor]:
        layers = sorted({*self.style_layers, self.content_layer})
        outputs = dict(zip(layers, self.activations(x, layers), strict=True))
        return [*(outputs[i] for i in self.style_layers), outputs[self.content_layer]]

    def optimize(self, seconds: float) -> torch.Tensor:
        optimizer, end = torch.optim.LBFGS([self.x]), time.perf_counter() + seconds

        def closure() -> torch.Tensor:
            if time.perf_counter() > end:
                raise TimeoutError
            with torch.no_grad():
                self.x.clamp_(0, 1)
            optimizer.zero_grad()
            total = self.loss(self.x)
            total.backward()
            return total

        try:
            while True:
                optimizer.step(closure)
        except TimeoutError:
            return self.x.detach().clamp(0, 1)


def style_transfer_losses(net: Network, data: Path) -> None:
    """Losses for four pairs of images, from noise, and those of the reference implementation after the same time."""
    for content_name, style_name in PAIRS:
        content_path, style_path = data / "photos" / f"{content_name}.jpg", data / "styles" / f"{style_name}.jpg"
        content, style = net.uncropped_batch(content_path, 224), net.uncropped_batch(style_path, 224)
        initial = noise(net, 0.25, 0, size=(content.shape[2], content.shape[3]))
        for kind in ("fourier", "pixels"):
            start = time.perf_counter()
            frames = list(style_transfer(net, content_path, style_path, size=224, init="random", parameterization=kind))
            seconds = time.perf_counter() - start
            first, last = frames[0].scalars, frames[-1].scalars
            factors = f"{first['content'] / last['content']:.1f}, {first['style'] / last['style']:.0f}"
            print_result(f"{content_name}, {style_name}, {kind}: content, style loss divided by", factors, ">= 5, 100")
            reference = ReferenceStyleTransfer(net, content, style, initial)
            with torch.no_grad():
                ours = float(reference.loss(net.uncropped_batch(frames[-1].image)))
            theirs = float(reference.loss(reference.optimize(seconds)).detach())
            print_result(f"loss after {seconds:.0f} s, ours | reference (L-BFGS)", f"{ours:.3f} | {theirs:.3f}", "lower")


def style_steps(net: Network, data: Path) -> None:
    """A step of style transfer compared with one of the reference implementation: the same losses, Adam."""
    content = net.uncropped_batch(data / "photos" / "content_tubingen.jpg", 224)
    style = net.uncropped_batch(data / "styles" / "starry_night.jpg", 224)
    layers, smooth = default_style_layers(net), net.with_average_pooling()
    objective = -WEIGHTS["content"] * objectives.features(
        layers.content, *get_activations(smooth, content, [layers.content])
    )
    objective = objective - WEIGHTS["style"] * style_loss(
        layers.style, style_statistics(smooth, style, layers.style), layers.weights
    )
    objective = objective - WEIGHTS["tv"] / (content.shape[2] * content.shape[3]) * objectives.total_variation()
    opt = ImageOptimizer(smooth, content)
    reference = ReferenceStyleTransfer(net, content, style, content)
    adam = torch.optim.Adam([reference.x], lr=0.01)

    def reference_step() -> None:
        adam.zero_grad()
        reference.loss(reference.x).backward()
        adam.step()
        with torch.no_grad():
            reference.x.clamp_(0, 1)

    ours, theirs = median_times([partial(opt.step, objective, lr=0.01), reference_step])
    value = f"{1e3 * ours:.1f} | {1e3 * theirs:.1f} ms, {ours / theirs:.2f}"
    print_result("step of style transfer, ours | reference", value, "<= 1")


def textures(net: Network, data: Path) -> None:
    """How many times closer the Gram matrices of a texture are to those of its sample than the Gram matrices of noise."""
    layers, smooth = default_style_layers(net), net.with_average_pooling()
    for path in sorted((data / "textures").glob("*.jpg")):
        statistics = style_statistics(smooth, net.uncropped_batch(path), layers.style)
        objective = style_loss(layers.style, statistics, layers.weights)
        factors = []
        for kind in ("fourier", "pixels"):
            result = net.uncropped_batch(Run(texture(net, path, parameterization=kind)).run().image)
            with torch.no_grad():
                before, after = (float(objectives.evaluate(smooth, objective, x)[0]) for x in (noise(net, 0.25, 0), result))
            factors.append(f"{before / after:.0f}")
        print_result(f"texture {path.stem}: Gram distance divided by, Fourier, pixels", ", ".join(factors), ">= 1000")


def inversions(net: Network, data: Path) -> None:
    """Errors of inversions by layer: according to the CS231n lecture, they are small for early layers and increase."""
    layers = ["features.1", "features.4", "features.7", "features.9", "features.12"]
    errors = Run(feature_inversion(net, data / "photos" / "cat_chelsea.jpg", layers=layers)).run().arrays["errors"]
    for name, (feature_error, pixel_error) in zip(layers, errors, strict=True):
        value = f"{feature_error:.3f}, {pixel_error:.3f}"
        print_result(f"inversion of {name}: error of features, of pixels", value, "< 0.1 for early layers, increasing")


def deep_dreams(net: Network, data: Path) -> None:
    """Increase of every kind of objective by DeepDream."""
    path = data / "photos" / "sea_turtle.jpg"
    cases: dict[str, dict[str, Any]] = {
        "a layer": {"objective": "features.11"},
        "a channel": {"objective": ("features.9", 3)},
        "a class": {"target": "golden retriever"},
        "a guide": {"objective": "features.7", "guide": data / "photos" / "kitten.jpg"},
    }
    for name, kwargs in cases.items():
        start = time.perf_counter()
        values = [frame.scalars["objective"] for frame in deep_dream(net, path, octaves=1, iterations=20, **kwargs)]
        seconds = time.perf_counter() - start
        value = f"{values[0]:.3g}, {values[-1]:.3g}"
        print_result(f"DeepDream with {name}: first, last objective ({seconds:.1f} s)", value, "increases")


def display_overhead() -> None:
    """CPU time of the kernel for a step with a panel in a page, and without a panel."""
    import lab

    code = (
        "import statistics, threading, time\n"
        "from convis_widgets import FeatureVisualizer, Network, Run, gradient_ascent\n"
        "net = Network.ensure('squeezenet1_1')\n"
        "panel = FeatureVisualizer(net, target=3, iterations=60); panel"
    )
    timing = (
        "def time_per_step(function):\n"
        "    start = time.process_time(); function(); return (time.process_time() - start) / 60\n"
        "def with_panel():\n"
        "    panel.bar.on_start(); panel.run.join()\n"
        "def without_panel():\n"
        "    Run(gradient_ascent(net, target=3, iterations=60)).start().join()\n"
        "medians = []\n"
        "def measure():\n"
        "    panel.run.join()\n"
        "    times = [(time_per_step(with_panel), time_per_step(without_panel)) for _ in range(7)]\n"
        "    medians.extend(statistics.median(one) for one in zip(*times))\n"
        "threading.Thread(target=measure).start()"
    )
    with tempfile.TemporaryDirectory() as folder, lab.server(Path(folder)) as url, lab.browser() as context:
        page = lab.LabPage(context.new_page(), url, Path(folder))
        page.open([code]).run_all()
        page.execute(timing)
        page.wait_until("medians", patience=600)
        shown, alone = page.evaluate("medians")
        page.close()
    value = f"{1e3 * shown:.1f} | {1e3 * alone:.1f} ms, {shown / alone:.3f}"
    print_result("CPU time of a step, with | without a panel in a page", value, "<= 1.05")


def main() -> None:
    """Run all benchmarks of this file."""
    data = os.environ.get("CONVIS_TEST_DATA")
    if not data:
        print("skipped, CONVIS_TEST_DATA is not set")
        return
    net = squeezenet()
    style_steps(net, Path(data))
    display_overhead()
    style_transfer_losses(net, Path(data))
    textures(net, Path(data))
    inversions(net, Path(data))
    deep_dreams(net, Path(data))
