"""Numbers that need no browser: imports, mosaics, what showing a frame costs a worker, how soon a Run stops."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torchvision

from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.widgets.controls.frame_view import FrameView
from convis_widgets.widgets.drawing.mosaic import Mosaic, choose_layout

DEPENDENCIES = "torch, torchvision, numpy, PIL, ipywidgets, ipyevents, sklearn"


def median(work: Callable[[], object], count: int = 15) -> float:
    """Seconds of wall time, the median of `count` after one to warm up."""
    work()
    times = []
    for _ in range(count):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def line(name: str, value: str, goal: str = "") -> None:
    """One row of the report."""
    print(f"{name:64} {value:>14}   {f'goal {goal}' if goal else ''}")


def imports() -> None:
    """What importing the package adds to importing what it depends on."""
    code = (
        f"import time; import {DEPENDENCIES}\nt = time.perf_counter()\nimport convis_widgets\n"
        "convis_widgets.FilterGrid, convis_widgets.saliency\nprint(time.perf_counter() - t)"
    )
    times = [float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout) for _ in range(7)]
    line("import convis_widgets, all rooms, beyond its dependencies", f"{statistics.median(times):.3f} s", "< 0.5 s")


def mosaics() -> None:
    """Composing tiles into one image."""
    for count, side, goal in ((64, 11, "< 20 ms"), (4096, 3, "< 100 ms"), (4096, 13, "< 100 ms")):
        tiles = np.random.default_rng(0).integers(0, 255, (count, side, side, 3), np.uint8)
        columns, times = choose_layout(count, side, side, 900, tile=14)
        seconds = median(lambda tiles=tiles, columns=columns, times=times: Mosaic(tiles, columns, times).image)
        line(f"{count} tiles of {side}x{side} composed", f"{seconds * 1e3:.1f} ms", goal)


def resnet_step() -> Callable[[], object]:
    """Forward and backward through ResNet-18 at 224 px."""
    torch.manual_seed(0)
    module = torchvision.models.resnet18(weights=None).eval()
    batch = torch.rand(1, 3, 224, 224, requires_grad=True)

    def step() -> object:
        return torch.autograd.grad(module(batch)[0, 0], batch)

    return step


def cost_of_showing() -> None:
    """CPU time that a worker spends on a frame shown, JPEG included, against that of a ResNet-18 step."""
    step = resnet_step()
    view = FrameView("bench")
    ramp = np.linspace(0, 180, 224)[None, :, None]
    frames = [
        np.clip(ramp + np.random.default_rng(i).normal(0, 12, (224, 224, 3)), 0, 255).astype(np.uint8) for i in range(8)
    ]
    steps, shows, skips = [], [], []
    step()
    for i in range(24):
        start = time.process_time()
        step()
        steps.append(time.process_time() - start)
        view.pump._last_sent = float("-inf")
        view.pump._seen = view.pump._sent  # as if the page had answered: a frame is due
        start = time.thread_time()
        view.stream(lambda i=i: frames[i % 8])
        shows.append(time.thread_time() - start)
        start = time.thread_time()
        for _ in range(100):
            view.stream(lambda i=i: frames[i % 8])
        skips.append((time.thread_time() - start) / 100)
    share = statistics.median(shows) / statistics.median(steps)
    line("a frame shown (JPEG, 224 px), CPU time of the worker", f"{statistics.median(shows) * 1e3:.2f} ms")
    line("one ResNet-18 forward+backward, CPU time", f"{statistics.median(steps) * 1e3:.0f} ms")
    line("share", f"{share:.1%}", "<= 5 %")
    line("a frame offered while none is due", f"{statistics.median(skips) * 1e6:.1f} us", "nothing")


def stop_latency() -> None:
    """From Run.stop() to the end of the worker, while ResNet-18 steps run."""
    step = resnet_step()

    def frames() -> Iterator[Frame]:
        i = 0
        while True:
            i += 1
            step()
            yield Frame(i)

    seen, ended = [], []
    for _ in range(7):
        run = Run(frames()).start()
        while run.last is None:
            time.sleep(0.01)
        start = time.perf_counter()
        run.stop()
        seen.append(time.perf_counter() - start)
        run.join()
        ended.append(time.perf_counter() - start)
    line("Run.stop() sets the flag", f"{statistics.median(seen) * 1e3:.2f} ms", "< 100 ms")
    line("... and the worker is over (at most one step later)", f"{statistics.median(ended) * 1e3:.0f} ms")


def main() -> None:
    """Print them all."""
    imports()
    mosaics()
    cost_of_showing()
    stop_latency()
