"""Workload: what a batch of positions costs, and how positions are divided into batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .span import Positions, Span

_MAX_CLASSES = 6  # of rows, and of columns, by the size of their boxes


@dataclass(frozen=True)
class Limits:
    """What a batch may take, and what takes time besides multiply-adds; all times are in multiply-adds.

    Attributes
    ----------
    macs : float
        Multiply-adds in a batch.
    values : float
        Number of values of the largest tensor of a group.
    images : int
        Number of images in a batch.
    batch_overhead : float
        Time to read a weight of a linear layer, once per batch.
    group_overhead : float
        Time to read a weight of a convolution, once per group.
    step_overhead : float
        Time to start a group or a batch.
    first : int
        Number of positions that the first map should have; more, if computing few takes as long as computing many.
    """

    macs: float
    values: float
    images: int
    batch_overhead: float
    group_overhead: float
    step_overhead: float
    first: int = 1


class Workload:
    """Multiply-adds and memory of a forward pass, by the positions of the patch in the batch.

    Attributes
    ----------
    ops : int
        Number of operators.
    kernel_weights, linear_weights : int
        Number of weights of convolutions, and of linear layers.
    """

    def __init__(self) -> None:
        self.ops = self.kernel_weights = self.linear_weights = 0
        self._boxes: list[tuple[Span, Span, float, float]] = []
        self._macs = self._values = 0.0  # per image, where boxes are completed
        self._stacked: tuple[np.ndarray, ...] | None = None
        self._divided: dict[tuple[bytes, bytes, Limits], list[list[Positions]]] = {}

    def add(self, macs: float, values: float, spans: tuple[Span, Span] | None) -> None:
        """Add an operator.

        Parameters
        ----------
        macs, values : float
            Multiply-adds, and the number of values of its result: per position of the box, or per image.
        spans : (rows, cols) or None
            Where the boxes are; None if the whole map is computed.
        """
        self._stacked, self._divided = None, {}
        if spans is None:
            self._macs, self._values = self._macs + macs, max(self._values, values)
            return
        self._boxes.append((*spans, macs, values))

    def per_image(self, rows: np.ndarray, cols: np.ndarray) -> tuple[float, float]:
        """Multiply-adds, and the number of values of the largest tensor, for an image of a batch.

        Parameters
        ----------
        rows, cols : arrays of int
            Indices of the top and left edges in the batch; all boxes of an operator have the same size.
        """
        if not self._boxes:
            return self._macs, self._values
        if self._stacked is None:
            rows_of, cols_of, *numbers = zip(*self._boxes, strict=True)
            sizes = [np.stack([span.sizes for span in spans]) for spans in (rows_of, cols_of)]
            self._stacked = (*sizes, *map(np.array, numbers))
        heights, widths, macs, values = self._stacked
        area = heights[:, rows].max(1) * widths[:, cols].max(1)
        return self._macs + float(macs @ area), max(self._values, float((values * area).max()))

    def divide(self, positions: Positions, limits: Limits) -> list[list[Positions]]:
        """Divide positions into batches, and the batches into groups with boxes of similar size, to save time.

        Boxes are smaller where patches are close to a border of the image. More groups save multiply-adds, as long as that
        pays for their overhead.

        Parameters
        ----------
        positions : Positions
        limits : Limits
        """
        key = (positions.rows.tobytes(), positions.cols.tobytes(), limits)
        if key not in self._divided:
            self._divided[key] = self._best_division(positions, limits)
        return self._divided[key]

    def _best_division(self, positions: Positions, limits: Limits) -> list[list[Positions]]:
        best, best_cost = [[positions]], math.inf
        for classes in range(1, _MAX_CLASSES + 1):
            batches, cost = self._pack(self._group(positions, classes), limits)
            if cost < best_cost:
                best, best_cost = batches, cost
        return best

    def _pack(self, groups: Sequence[Positions], limits: Limits) -> tuple[list[list[Positions]], float]:
        """Batches of groups, of which large ones are cut; and their cost in multiply-adds."""
        batches: list[list[Positions]] = [[]]
        used, count, cost = 0.0, 0, 0.0
        overhead = limits.batch_overhead * self.linear_weights + limits.step_overhead
        budget = max(limits.macs, 10 * overhead)
        for group in groups:
            macs, values = self.per_image(*group.distinct)
            most = max(1, min(limits.images, int(min(budget / max(macs, 1), limits.values / max(values, 1)))))
            for piece in group.split(math.ceil(len(group) / most)):
                if batches[-1] and (used + len(piece) * macs > 1.2 * budget or count + len(piece) > limits.images):
                    batches.append([])
                    used, count = 0.0, 0
                batches[-1].append(piece)
                used, count = used + len(piece) * macs, count + len(piece)
                cost += len(piece) * macs + limits.group_overhead * self.kernel_weights + limits.step_overhead
        return batches, cost + len(batches) * overhead

    def _group(self, positions: Positions, classes: int) -> Sequence[Positions]:
        """Positions in groups: rows and columns, sorted by the size of the boxes, are divided into classes."""
        if classes == 1 or not self._boxes:
            return [positions]
        label = np.zeros(len(positions), int)
        for axis, edges in enumerate((positions.rows, positions.cols)):
            distinct, inverse = np.unique(edges, return_inverse=True)
            other = positions.distinct[1 - axis]
            cost = [self.per_image(*((edge, other) if axis == 0 else (other, edge)))[0] for edge in distinct[:, None]]
            label = label * classes + _classes(np.array(cost), classes)[inverse]
        return [Positions(positions.rows[label == k], positions.cols[label == k]) for k in np.unique(label)]


def _classes(costs: np.ndarray, count: int) -> np.ndarray:
    """Divide items into at most `count` classes such that they cost least if each costs as much as the dearest of its class.

    Classes are intervals of the sorted costs; the best ones are found by dynamic programming.
    """
    order = np.argsort(costs, kind="stable")
    sorted_costs, n = costs[order], len(costs)
    total = np.array([0.0, *sorted_costs * np.arange(1, n + 1)])  # of the first j items in one class
    begins = []  # for each number of classes, where the last of them begins
    for _ in range(min(count, n) - 1):
        options = [total[: j + 1] + np.arange(j, -1, -1) * (sorted_costs[j - 1] if j else 0) for j in range(n + 1)]
        begins.append([int(option.argmin()) for option in options])
        total = np.array([option.min() for option in options])
    label, end = np.zeros(n, int), n
    for k, begin in enumerate(reversed(begins)):
        label[order[begin[end] : end]] = len(begins) - k
        end = begin[end]
    return label
