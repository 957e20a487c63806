"""Budget: time and memory that a synthesis needs, estimated before it starts."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ..memory import available_memory, format_bytes
from ..network.network import Network
from . import objectives
from .image_optimizer import noise
from .objectives import LOGITS, WeightedSum
from .optimizers import HISTORY_SIZE

MAX_MEMORY_FRACTION = 0.8  # of the available memory
VECTORS = {"adam": 6, "gradient": 4, "lbfgs": 2 * HISTORY_SIZE + 6}  # tensors of the image's size held during a step


@dataclass(frozen=True)
class Cost:
    """Cost of a computation: time in seconds and peak memory in bytes."""

    seconds: float
    bytes: int

    def __str__(self) -> str:
        return f"{format_duration(self.seconds)} and {format_bytes(self.bytes)} of memory"


@dataclass(frozen=True)
class Workload:
    """Optimization steps on an image of one size.

    Attributes
    ----------
    layers : collection of str
        Layers of the Objective; `LOGITS` for the class logits.
    size : (int, int)
        Height and width of the image in pixels.
    steps : int
    optimizer : str
        "adam", "gradient" or "lbfgs".
    """

    layers: Collection[str]
    size: tuple[int, int]
    steps: int
    optimizer: str


_measured: weakref.WeakKeyDictionary[Network, dict[frozenset[str], float]] = weakref.WeakKeyDictionary()


def estimate_step(net: Network, layers: Collection[str], size: tuple[int, int], optimizer: str = "adam") -> Cost:
    """Estimate the cost of one step of `ImageOptimizer`.

    The time is measured once, at the network's input size. The memory is that of all activations that autograd keeps, from
    the recorded graph, and of the optimizer's state. Both are proportional to the number of pixels.

    Parameters
    ----------
    net : Network
    layers : collection of str
        Layers of the Objective; `LOGITS` for the class logits.
    size : (int, int)
        Height and width of the image in pixels.
    optimizer : str
        "adam", "gradient" or "lbfgs".
    """
    height, width = net.transform.size
    pixels = size[0] * size[1]
    seconds_per_pixel = _measured.setdefault(net, {})
    if frozenset(layers) not in seconds_per_pixel:
        seconds_per_pixel[frozenset(layers)] = _seconds_per_pixel(net, layers)
    last = max((net.layers[name].value.index for name in layers if name), default=0)
    last = net.graph.output.index if LOGITS in layers else last
    counts = [
        math.prod(value.shape) * (2 if i else 1)  # the second output of max pooling: indices of 8 bytes each
        for op in net.graph.ops
        if not op.name.endswith("_")
        for i, value in enumerate(op.outputs)
        if value is not None and value.index <= last
    ]
    activations = (sum(counts) + 3 * max(counts)) * pixels / (height * width)  # the largest one has gradients, too
    vectors = VECTORS[optimizer] * net.transform.channels * pixels
    return Cost(seconds_per_pixel[frozenset(layers)] * pixels, round(4 * (activations + vectors)))


def _seconds_per_pixel(net: Network, layers: Collection[str]) -> float:
    """Seconds per pixel of a forward and a backward pass, the best of three."""
    terms = [(1.0, objectives.channel(name, 0) if name else objectives.class_logit(0)) for name in layers]
    objective, image, seconds = WeightedSum(terms), noise(net, 0.2, 0), []
    for _ in range(3):
        start = time.perf_counter()
        with torch.enable_grad():
            total, _forward = objectives.evaluate(net, objective, image.requires_grad_())
            if total.requires_grad:
                torch.autograd.grad(total.sum(), image, allow_unused=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / (net.transform.size[0] * net.transform.size[1])


def check_budget(net: Network, workloads: Sequence[Workload]) -> Cost:
    """Return the cost of all workloads; ValueError, with the largest size that fits, if memory does not suffice.

    Parameters
    ----------
    net : Network
    workloads : sequence of Workload
        One or more. Their times add up; the memory is that of the largest.
    """
    costs = [estimate_step(net, workload.layers, workload.size, workload.optimizer) for workload in workloads]
    peak, available = max(cost.bytes for cost in costs), available_memory(net.device)
    if peak > MAX_MEMORY_FRACTION * available:
        short, long = sorted(max((workload.size for workload in workloads), key=math.prod))
        pixels, side = short * long * MAX_MEMORY_FRACTION * available / peak, long
        while side > 1 and side * round(side * short / long) > pixels:
            side -= 1
        raise ValueError(
            f"a size of {long} pixels takes {format_bytes(peak)} of memory and {format_bytes(available)} are available; "
            f"choose a size of at most {side}"
        )
    return Cost(sum(cost.seconds * workload.steps for cost, workload in zip(costs, workloads, strict=True)), peak)


def format_duration(seconds: float) -> str:
    """Format a duration.

    >>> format_duration(75), format_duration(8.2), format_duration(0.3)
    ('1 min 15 s', '8 s', '1 s')
    """
    minutes, rest = divmod(max(1, round(seconds)), 60)
    return f"{minutes} min" if minutes >= 10 else f"{minutes} min {rest} s" if minutes else f"{rest} s"
