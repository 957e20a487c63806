"""Cost: how long a step of a synthesis takes and how much memory it needs, before it begins."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from .ascend import noise
from .network import Network
from .objectives import SCORES, Sum, channel, measure
from .optimizers import PAIRS
from .selectors import logit

MOST = 0.8  # of the memory that is left, which a computation may take
VECTORS = {"adam": 6, "gradient": 4, "lbfgs": 2 * PAIRS + 6}  # of the picture's size, that a step holds


@dataclass(frozen=True)
class Cost:
    """What a computation takes: seconds, and bytes at most."""

    seconds: float
    bytes: int

    def __str__(self) -> str:
        return f"{in_time(self.seconds)} and {in_bytes(self.bytes)} of memory"


@dataclass(frozen=True)
class Effort:
    """So many steps on a picture of one size (height, width), up to the last of some layers."""

    layers: Collection[str]
    size: tuple[int, int]
    steps: int
    optimizer: str


_paces: weakref.WeakKeyDictionary[Network, dict[frozenset[str], float]] = weakref.WeakKeyDictionary()


def cost(net: Network, layers: Collection[str], size: tuple[int, int], optimizer: str = "adam") -> Cost:
    """What a step of `Ascent` will take for a picture of this size (height, width) when its Objective looks at these layers.

    The time is measured, once, on a picture of the network's own size; the memory is that of all values that the forward
    pass leaves behind, as the recorded graph tells, and of what the optimizer remembers. Both grow with the pixels.
    """
    own, pixels = net.transform.size, size[0] * size[1]
    known = _paces.setdefault(net, {})
    if frozenset(layers) not in known:
        known[frozenset(layers)] = _pace(net, layers)
    last = max((net.layers[name].value.index for name in layers if name), default=0)
    last = net.graph.output.index if SCORES in layers else last
    sizes = [
        math.prod(value.shape) * (2 if i else 1)  # what max-pooling adds are places, of 8 bytes each
        for op in net.graph.ops
        if not op.name.endswith("_")
        for i, value in enumerate(op.outputs)
        if value is not None and value.index <= last
    ]
    values = (sum(sizes) + 3 * max(sizes)) * pixels / (own[0] * own[1])  # the largest has gradients, too
    vectors = VECTORS[optimizer] * net.transform.channels * pixels
    return Cost(known[frozenset(layers)] * pixels, round(4 * (values + vectors)))


def _pace(net: Network, layers: Collection[str]) -> float:
    """Seconds per pixel of a forward and a backward pass, the best of three."""
    objective = Sum([(1.0, channel(name, 0) if name else logit(0)) for name in layers])
    picture, times = noise(net, 0.2, 0), []
    for _ in range(3):
        began = time.perf_counter()
        with torch.enable_grad():
            total, _seen = measure(net, objective, picture.requires_grad_())
            if total.requires_grad:
                torch.autograd.grad(total.sum(), picture, allow_unused=True)
        times.append(time.perf_counter() - began)
    return min(times) / (net.transform.size[0] * net.transform.size[1])


def afford(net: Network, efforts: Sequence[Effort]) -> Cost:
    """What all of it will take; ValueError with a size that would do if that is more than there is."""
    costs = [cost(net, effort.layers, effort.size, effort.optimizer) for effort in efforts]
    most, left = max(one.bytes for one in costs), memory_left(net.device)
    if most > MOST * left:
        short, long = sorted(max((effort.size for effort in efforts), key=math.prod))
        pixels, side = short * long * MOST * left / most, long
        while side > 1 and side * round(side * short / long) > pixels:
            side -= 1
        raise ValueError(
            f"{long} pixels take {in_bytes(most)} of memory, and {in_bytes(left)} are left; choose a size of at most {side}"
        )
    return Cost(sum(one.seconds * effort.steps for one, effort in zip(costs, efforts, strict=True)), most)


def in_bytes(count: float) -> str:
    """An amount of memory in words.

    >>> in_bytes(1.5e9), in_bytes(3e6)
    ('1.5 GB', '3 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, count / 1e6):.0f} MB"


def in_time(seconds: float) -> str:
    """A time in words.

    >>> in_time(75), in_time(8.2), in_time(0.3)
    ('1 min 15 s', '8 s', '1 s')
    """
    minutes, rest = divmod(max(1, round(seconds)), 60)
    return f"{minutes} min" if minutes >= 10 else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def memory_left(device: torch.device, root: str | Path = "/sys/fs/cgroup") -> int:
    """Bytes that can still be had: on a GPU; else of the machine, or of what its container may use."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free, root = psutil.virtual_memory().available, Path(root)
    for most, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            free = min(free, int((root / most).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):
            continue  # no such cgroup, or "max"
    return free
