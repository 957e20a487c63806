"""The package on a GPU with CUDA: occlusion, steps of synthesis, scans, explanations, each beside its reference.

Every time is a median, and the functions that are compared take turns. Without a GPU only a line is printed.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torchvision
from captum.attr import Occlusion
from PIL import Image
from torch import nn

from convis_widgets.core.dataset.image_loader import MAX_WORKERS, ImageLoader
from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.modes import full_precision
from convis_widgets.core.network.network import Network
from convis_widgets.core.registry import TECHNIQUES
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis import objectives
from convis_widgets.core.synthesis.image_optimizer import ImageOptimizer, noise
from convis_widgets.core.threads import cpu_count
from convis_widgets.techniques.attribution.occlusion import occlusion
from convis_widgets.techniques.synthesis.style_transfer import style_transfer

from .attribution import print_header, print_row
from .occlusion import NAMES, SETTINGS, SIDE, make_network
from .synthesis import median_times

DEVICE = "cuda"
EXPLANATIONS = ("saliency", "guided_backprop", "deconvnet", "grad_cam", "smooth_grad", "integrated_gradients")


def synchronize() -> None:
    """Wait for the GPU."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def median_milliseconds(*functions: Callable[[], object]) -> list[float]:
    """Median time of each function, with the work of the GPU; they take turns."""

    def finish(function: Callable[[], object]) -> None:
        function()
        synchronize()

    return [1e3 * seconds for seconds in median_times([partial(finish, function) for function in functions])]


def best_of(functions: dict[int, Callable[[], object]]) -> tuple[int, Callable[[], object]]:
    """The fastest of several functions; those that take too much memory are left out."""
    seconds: dict[int, float] = {}
    for size, function in functions.items():
        try:
            function()
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            seconds[size] = time.perf_counter() - start
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
    size = min(seconds, key=seconds.__getitem__)
    return size, functions[size]


def plain_batches(module: nn.Module, image: torch.Tensor, count: int, size: int) -> None:
    """Complete forward passes of `count` images, channels-last."""
    batch = image.repeat(size, 1, 1, 1).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        for first in range(0, count, size):
            module(batch[: min(size, count - first)])


def occlusions(names: tuple[str, ...] = NAMES) -> None:
    """Occlusion beside Captum's at its best batch size, and beside complete forward passes; all in full float32."""
    print_header("network", "patch / stride", "ours, ms", "Captum (batch)", "ratio", "plain batches", "ratio")
    for name in names:
        module = make_network(name)[0].to(DEVICE).to(memory_format=torch.channels_last)
        net = Network(module, size=SIDE, mean=0, std=1, name=name)
        for patch, stride in SETTINGS:
            print_row(name, f"{patch} / {stride}", *occlusion_times(module, net, patch, stride))


def occlusion_times(module: nn.Module, net: Network, patch: int, stride: int) -> tuple[str, ...]:
    """The cells of a row of the table of `occlusions`."""
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    count = len(range(0, SIDE - patch + 1, stride)) ** 2

    def ours() -> None:
        Run(occlusion(net, image, target=0, patch_size=patch, stride=stride, baseline="black")).run()

    def captum(size: int) -> None:
        options = {"baselines": 0, "target": 0, "perturbations_per_eval": size}
        Occlusion(module).attribute(image, (3, patch, patch), (3, stride, stride), **options)

    with full_precision(), torch.no_grad():
        size, captum_best = best_of({size: partial(captum, size) for size in (8, 32, 128)})
        _, plain = best_of({size: partial(plain_batches, module, image, count, size) for size in (32, 64, 128, 256)})
        own, theirs, complete = median_milliseconds(ours, captum_best, plain)
    peer = f"{theirs:.1f} ({size})", f"{theirs / own:.2f}"
    return f"{own:.1f}", *peer, f"{complete:.1f}", f"{complete / own:.2f}"


def steps() -> None:
    """A step of gradient ascent beside the bare forward and backward pass to the same layer, eager."""
    print_header("a step", "ours, ms", "bare passes, ms", "ratio")
    for name, index in (("squeezenet1_1", 6), ("vgg16", 7), ("vgg16", 21)):
        net = Network(make_network(name)[0].to(DEVICE), size=SIDE, mean=0, std=1, name=name)
        part = nn.Sequential(*list(net.module.get_submodule("features").children())[: index + 1])
        pixels = torch.rand(1, 3, SIDE, SIDE, device=DEVICE, requires_grad=True)
        bare = partial(forward_backward, part, pixels)
        for parameterization in ("pixels", "fourier"):
            opt = ImageOptimizer(net, noise(net, 0.1, 0), parameterization=parameterization)
            step = partial(opt.step, objectives.channel(f"features.{index}", 3), lr=0.01)
            own, passes = median_milliseconds(step, bare)
            print_row(f"{name} features.{index}, {parameterization}", f"{own:.2f}", f"{passes:.2f}", f"{own / passes:.2f}")


def forward_backward(module: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor) -> None:
    """A forward and backward pass from a channel, or a class, to the pixels."""
    torch.autograd.grad(module(pixels)[:, 3].mean(), pixels)


def styles() -> None:
    """A step of style transfer, VGG-19 at 512 pixels, with and without reading every Frame."""
    net = Network(make_network("vgg19")[0].to(DEVICE), size=SIDE, mean=0, std=1, name="vgg19")
    content, style = np.random.default_rng(0).random((2, 512, 512, 3)).astype(np.float32)
    print_header("style transfer, VGG-19, 512 px", "ms a step")
    for read in (False, True):
        frames = iter(style_transfer(net, content, style, size=512, iterations=400, scales=1, optimizer="adam"))
        next(frames)

        def step(frames: object = frames, read: bool = read) -> None:
            frame = next(frames)  # type: ignore[call-overload]
            if read:
                _ = frame.image

        print_row("every Frame read" if read else "no Frame read", f"{median_milliseconds(step)[0]:.2f}")


def scans(files: int = 2000, repetitions: int = 8) -> None:
    """A scan of JPEG files of 224 pixels beside the forward passes of what the same loader decodes."""
    print_header("a scan", "images/s", "loader and forward passes, images/s", "ratio")
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for i in range(files):
            image = Image.fromarray(rng.integers(0, 256, (14, 14, 3), dtype=np.uint8)).resize((224, 224))
            Path(folder, "images").mkdir(exist_ok=True)
            image.save(Path(folder, "images", f"{i:05}.jpg"), quality=87)
        images = ImageSet(sorted(Path(folder, "images").iterdir()) * repetitions)
        count, workers = len(images), min(MAX_WORKERS, cpu_count() - 1)
        for name in ("squeezenet1_1", "resnet50"):
            net = Network(make_network(name)[0].to(DEVICE), size=SIDE, mean=0, std=1, name=name)
            scan = Scan(net, images, cache=Path(folder, name), workers=workers)
            size = scan._collector.batch_size
            loader = ImageLoader(images, net.transform, size, workers)
            start = time.perf_counter()
            for _ in scan.frames():
                pass
            own = count / (time.perf_counter() - start)
            start = time.perf_counter()
            for first in range(0, count, size):
                batch = loader.load(first, min(first + size, count))
                with torch.no_grad():
                    net(net.stack_images(batch.pixels)).cpu()
            loader.close()
            passes = count / (time.perf_counter() - start)
            print_row(name, f"{own:.0f}", f"{passes:.0f}", f"{own / passes:.2f}")


def explanations() -> None:
    """Time of an explanation beside a bare forward and backward pass, and its difference from the CPU's."""
    print_header("explanation, ResNet-18", "ms", "bare passes, ms", "ratio", "difference from the CPU, of the range")
    module = make_network("resnet18")[0]
    nets = [Network(module, size=SIDE, mean=0, std=1, device=device) for device in ("cpu", DEVICE)]
    image = np.random.default_rng(0).random((SIDE, SIDE, 3)).astype(np.float32)
    pixels = torch.rand(1, 3, SIDE, SIDE, device=DEVICE, requires_grad=True)
    bare_passes = partial(forward_backward, nets[1], pixels)
    for name in EXPLANATIONS:
        on_cpu, on_gpu = (lambda net=net, name=name: Run(TECHNIQUES[name](net, image, target=3)).run().heat for net in nets)
        with full_precision():
            own, bare = median_milliseconds(on_gpu, bare_passes)
        expected = on_cpu()
        difference = np.abs(on_gpu() - expected).max() / np.ptp(expected)
        print_row(name, f"{own:.1f}", f"{bare:.1f}", f"{own / bare:.1f}", f"{difference:.0e}")


def main() -> None:
    """Print all tables, with the name of the GPU."""
    if not torch.cuda.is_available():
        print("PyTorch finds no GPU with CUDA here")
        return
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, torchvision {torchvision.__version__}")
    for table in (occlusions, steps, styles, scans, explanations):
        print()
        table()
