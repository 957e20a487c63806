"""Benchmarks without a browser: import time, mosaics, CPU time of displaying an image, and the delay of `Run.stop`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
import torchvision

from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.widgets.controls.frame_view import FrameView
from convis_widgets.widgets.drawing.mosaic import Mosaic, choose_layout

DEPENDENCIES = "torch, torchvision, numpy, PIL, ipywidgets, anywidget, sklearn"


def median_time(function: Callable[[], object], count: int = 15) -> float:
    """Median wall time of `count` calls in seconds, after one call to warm up."""
    function()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def print_result(name: str, value: str, goal: str = "") -> None:
    """Print one result."""
    print(f"{name:64} {value:>14}   {f'goal {goal}' if goal else ''}")


def import_time() -> None:
    """Time to import the package after its dependencies."""
    code = (
        f"import time; import {DEPENDENCIES}\nt = time.perf_counter()\nimport convis_widgets\n"
        "convis_widgets.FilterGrid, convis_widgets.saliency\nprint(time.perf_counter() - t)"
    )
    times = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout) for _ in range(7)]
    print_result("import of convis_widgets after its dependencies", f"{statistics.median(times):.3f} s", "< 0.5 s")


def mosaics() -> None:
    """Time to compose tiles into one image."""
    for count, side, goal in ((64, 11, "< 20 ms"), (4096, 3, "< 100 ms"), (4096, 13, "< 100 ms")):
        tiles = np.random.default_rng(0).integers(0, 255, (count, side, side, 3), np.uint8)
        columns, times = choose_layout(count, side, side, 900, tile=14)
        seconds = median_time(partial(Mosaic, tiles, columns, times))
        print_result(f"mosaic of {count} tiles of {side}x{side}", f"{seconds * 1e3:.1f} ms", goal)


def make_resnet_step() -> Callable[[], object]:
    """A function that runs ResNet-18 forward and backward on one image of 224 pixels."""
    torch.manual_seed(0)
    module = torchvision.models.resnet18(weights=None).eval()
    batch = torch.rand(1, 3, 224, 224, requires_grad=True)

    def step() -> object:
        return torch.autograd.grad(module(batch)[0, 0], batch)

    return step


def display_cost() -> None:
    """CPU time of the thread that displays an image, with JPEG encoding, relative to that of a ResNet-18 step."""
    step = make_resnet_step()
    view = FrameView("bench")
    ramp = np.linspace(0, 180, 224)[None, :, None]
    images = [
        np.clip(ramp + np.random.default_rng(i).normal(0, 12, (224, 224, 3)), 0, 255).astype(np.uint8) for i in range(8)
    ]
    step_times, shown_times, skipped_times = [], [], []
    step()
    for i in range(24):
        compose = partial(images.__getitem__, i % 8)
        start = time.process_time()
        step()
        step_times.append(time.process_time() - start)
        view.pump._last_sent = float("-inf")
        view.pump.acknowledge(view.serial)  # so that the next one is sent
        start = time.thread_time()
        view.stream(compose)
        shown_times.append(time.thread_time() - start)
        start = time.thread_time()
        for _ in range(100):
            view.stream(compose)
        skipped_times.append((time.thread_time() - start) / 100)
    step_time, shown, skipped = (statistics.median(times) for times in (step_times, shown_times, skipped_times))
    print_result("display of an image (JPEG, 224 px), CPU time of the thread", f"{shown * 1e3:.2f} ms")
    print_result("forward and backward pass of ResNet-18, CPU time", f"{step_time * 1e3:.0f} ms")
    print_result("ratio", f"{shown / step_time:.1%}", "<= 5 %")
    print_result("image offered but not sent (rate limit), CPU time", f"{skipped * 1e6:.1f} us", "negligible")


def stop_delay() -> None:
    """Time from `Run.stop` to the end of the worker thread, which computes ResNet-18 steps."""
    step = make_resnet_step()

    def frames() -> Iterator[Frame]:
        i = 0
        while True:
            i += 1
            step()
            yield Frame(i)

    call_times, end_times = [], []
    for _ in range(7):
        run = Run(frames()).start()
        while run.last is None:
            time.sleep(0.01)
        start = time.perf_counter()
        run.stop()
        call_times.append(time.perf_counter() - start)
        run.join()
        end_times.append(time.perf_counter() - start)
    print_result("call of Run.stop()", f"{statistics.median(call_times) * 1e3:.2f} ms", "< 100 ms")
    print_result("Run.stop() to end of the thread (at most one step)", f"{statistics.median(end_times) * 1e3:.0f} ms")


def main() -> None:
    """Run all benchmarks of this file."""
    import_time()
    mosaics()
    display_cost()
    stop_delay()
