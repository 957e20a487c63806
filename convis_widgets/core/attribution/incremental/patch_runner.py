"""PatchRunner: what a network computes for one image with a patch at each of many positions."""

from __future__ import annotations

import collections
import math
import time
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace

import numpy as np
import torch

from ...errors import format_shape
from ...memory import available_memory
from ...network.batch_size import auto_batch_size
from ...network.network import Network
from .incremental_forward import IncrementalForward
from .plan import Plan
from .span import Positions
from .workload import Limits

_COARSEST_STEP = 8  # grid steps between the positions computed first
_MIN_BATCH = 16  # positions in the first batch; convolutions are slow on fewer
_BYTES_PER_VALUE = 64  # of the largest tensor: windows, results and what the allocator keeps
_MEASURED_DEVICES = ("cuda",)  # where complete forward passes can be faster
_MAX_PLANS = 4  # kept for a network
_LIMITS = {  # a batch takes about 0.4 s
    "cpu": Limits(4.5e10, values=1 << 27, images=256, batch_overhead=48, group_overhead=80, step_overhead=6e8),
    "mps": Limits(2e11, values=1 << 27, images=256, batch_overhead=48, group_overhead=80, step_overhead=3e9),
    "cuda": Limits(1e12, values=1 << 28, images=1024, batch_overhead=25, group_overhead=25, step_overhead=5e10, first=64),
}


class PatchRunner:
    """Runs a function of images on one image with patches inserted; incrementally, where the network allows it.

    Parameters
    ----------
    net : Network
    forward : callable
        Takes a batch (N, C, H, W), runs the network and returns a tensor (N, ...).
    image : (1, C, H, W) tensor
    replacement : (1, C, H, W) tensor
        The image that patches are cut from.
    patch_size : int
        Side of the patches.
    rows, cols : (n,) and (m,) arrays of int
        Top and left edges of the patches.
    key : hashable
        Stands for what `forward` computes: with the same key, plans are used again for other images.
    """

    def __init__(
        self,
        net: Network,
        forward: Callable[[torch.Tensor], torch.Tensor],
        image: torch.Tensor,
        replacement: torch.Tensor,
        *,
        patch_size: int,
        rows: np.ndarray,
        cols: np.ndarray,
        key: Hashable,
    ) -> None:
        self.net, self.forward, self.image, self.replacement = net, forward, image, replacement
        self.patch_size, self.rows, self.cols = patch_size, rows, cols
        limits = _LIMITS.get(net.device.type, _LIMITS["cpu"])
        # a power of two, so that the division into batches is the same again if a little more or less memory is available
        values = 2.0 ** math.floor(math.log2(available_memory(net.device) / _BYTES_PER_VALUE + 1))
        self._limits = replace(limits, values=min(limits.values, values))
        size = (image.shape[2], image.shape[3])
        self._key = (key, size, patch_size, rows.tobytes(), cols.tobytes())
        self._plans = _plans.setdefault(net, {})
        self.plan = self._plans.get(self._key) or Plan(size, patch_size, rows, cols, net.device)
        self.incremental: IncrementalForward | None = None
        if not net.one_image_at_a_time:
            self.incremental = IncrementalForward(forward, image, replacement, self.plan)

    def run(self) -> Iterator[tuple[Positions, int, torch.Tensor]]:
        """Results for all positions, from coarse to fine, in batches.

        Yields
        ------
        positions : Positions
            Those of a batch.
        reach : int
            A position stands in for `reach` by `reach` positions, to the bottom right, until they are computed.
        results : (N, ...) tensor
        """
        for reach, level in _coarse_to_fine(len(self.rows), len(self.cols), self._limits.first):
            batches = collections.deque(self._divide(level))
            while batches:
                groups = batches.popleft()
                results = self._run_batch(groups)
                if results is None:
                    batches.extendleft(reversed(self._halve(groups)))
                else:
                    yield Positions.joined(groups), reach, results

    def _run_batch(self, groups: list[Positions]) -> torch.Tensor | None:
        """Results for the positions of a batch; None if they do not fit in memory at once."""
        try:
            if self.net.device.type in _MEASURED_DEVICES and self.plan.batches is not None and self.plan.is_slower is None:
                self.plan.is_slower = self._is_slower(groups)
            if self.incremental is None or self.plan.is_slower:
                return self._run_in_full(groups)
            return self._run_incrementally(groups)
        except torch.OutOfMemoryError:
            return None

    def _run_incrementally(self, groups: list[Positions]) -> torch.Tensor:
        assert self.incremental is not None
        try:
            results = self.incremental.run(groups)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            if self.plan.batches is not None or isinstance(error, torch.OutOfMemoryError):
                raise
            self.incremental = None  # code that reads the memory of its tensors, or a compiled part
            return self._run_in_full(groups)
        self._keep_plan()
        return results

    def _is_slower(self, groups: list[Positions]) -> bool:
        """Whether complete forward passes are faster, as where boxes soon cover most of a map."""
        return self._seconds(self._run_in_full, groups) < self._seconds(self._run_incrementally, groups)

    def _seconds(self, run: Callable[[list[Positions]], torch.Tensor], groups: list[Positions]) -> float:
        """Time of a second run."""
        run(groups).cpu()  # waits for the device
        start = time.perf_counter()
        run(groups).cpu()
        return time.perf_counter() - start

    def _run_in_full(self, groups: list[Positions]) -> torch.Tensor:
        """Results of complete forward passes."""
        positions, side = Positions.joined(groups), self.patch_size
        results = []
        for part in positions.split(math.ceil(len(positions) / auto_batch_size(self.net, self.image))):
            edges = torch.from_numpy(np.stack([self.rows[part.rows], self.cols[part.cols]])).to(self.image.device)
            top, left = edges[0].view(-1, 1, 1, 1), edges[1].view(-1, 1, 1, 1)
            y, x = (torch.arange(size, device=self.image.device) for size in self.image.shape[2:])
            is_patch = (y[:, None] >= top) & (y[:, None] < top + side) & (x >= left) & (x < left + side)
            images = torch.where(is_patch, self.replacement, self.image)
            if images.device.type == "cuda":  # faster there
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                results.append(self.forward(images))
        return torch.cat(results)

    def _halve(self, groups: list[Positions]) -> list[list[Positions]]:
        """Two smaller batches, after one that did not fit in memory; the following ones will be smaller, too."""
        positions = Positions.joined(groups)
        torch.cuda.empty_cache()
        if len(positions) == 1 and self.incremental is not None:
            self.incremental = None  # which computes two images, the first time
            return [groups]
        if len(positions) == 1:
            size = format_shape(self.image.shape[1:])
            raise ValueError(f"one image of {size} does not fit in the memory of {self.net.device}; choose a smaller one")
        limits = self._limits
        self._limits = replace(limits, values=limits.values / 2, images=max(1, len(positions) // 2))
        return [[half] for half in positions.split(2)]

    def _divide(self, positions: Positions) -> list[list[Positions]]:
        if self.incremental is None:
            return [[part] for part in positions.split(math.ceil(len(positions) / auto_batch_size(self.net, self.image)))]
        if not self.plan.workload.ops:  # nothing has been computed yet
            return [[part] for part in positions.split(math.ceil(len(positions) / _MIN_BATCH))]
        return self.plan.workload.divide(positions, self._limits)

    def _keep_plan(self) -> None:
        if self.plan.batches is not None and self._key not in self._plans:
            self._plans[self._key] = self.plan
            for key in list(self._plans)[:-_MAX_PLANS]:
                del self._plans[key]


def _coarse_to_fine(n: int, m: int, first: int) -> Iterator[tuple[int, Positions]]:
    """(reach, positions) for each level of an n by m grid; the first one has at least `first` positions, if there are."""
    remaining = np.ones((n, m), bool)
    reach = _COARSEST_STEP
    while reach > 1 and remaining[::reach, ::reach].sum() < first:
        reach //= 2
    while reach >= 1:
        level = np.zeros_like(remaining)
        level[::reach, ::reach] = remaining[::reach, ::reach]
        remaining &= ~level
        if level.any():
            yield reach, Positions(*np.nonzero(level))
        reach //= 2


_plans: weakref.WeakKeyDictionary[Network, dict[Hashable, Plan]] = weakref.WeakKeyDictionary()
