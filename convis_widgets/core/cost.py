"""Cost: how long a step of a synthesis takes and how much memory it needs, before it begins."""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from .ascend import noise
from .network import Network
from .objectives import SCORES, Sum, channel, measure
from .optimizers import PAIRS
from .selectors import logit

VECTORS = {"adam": 6, "gradient": 4, "lbfgs": 2 * PAIRS + 6}  # of the picture's size, that a step holds


@dataclass(frozen=True)
class Cost:
    """What a step takes: seconds, and bytes at most."""

    seconds: float
    bytes: int


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
