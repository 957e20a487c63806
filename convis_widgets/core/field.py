"""Field: which pixels can reach a unit, kept per axis as what each index of a map sees.

Two arrays per axis, the first and the last input row that each row of a map depends on, clipped at the borders: that
covers strides, dilation, ceil mode, branches, adaptive pooling, upsampling and crops without a formula for each. Beside
them goes the textbook triple (size, stride, start) as long as the map is a regular grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

_NOTHING = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Axis:
    """One axis of a map: for every index the first and last input index it depends on, both included.

    `grid` is (size, stride, start) of the unclipped field: index i sees ``start + i * stride`` and on, `size` of them.
    It is None where no such triple exists: after global or uneven adaptive pooling, upsampling, attention.
    """

    low: np.ndarray
    high: np.ndarray
    grid: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.low)

    def gather(self, taps: np.ndarray, grid: tuple[int, int, int] | None = None) -> Axis:
        """The axis whose index i reads the indices ``taps[i]`` of this one; those outside read only padding."""
        inside = (taps >= 0) & (taps < len(self))
        at = np.clip(taps, 0, len(self) - 1)
        low = np.where(inside, self.low[at], _NOTHING).min(axis=1)
        high = np.where(inside, self.high[at], -1).max(axis=1)
        return Axis(low, high, grid)

    def window(self, count: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
        """The axis after a convolution or pooling with `count` outputs."""
        taps = np.arange(count)[:, None] * stride - padding + np.arange(kernel)[None, :] * dilation
        grid = None
        if self.grid is not None:
            size, jump, start = self.grid
            grid = (size + (kernel - 1) * dilation * jump, jump * stride, start - padding * jump)
        return self.gather(taps, grid)

    def union(self, other: Axis) -> Axis:
        """Index by index, what either sees; an axis of length 1 counts for every index."""
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        grid = None
        if self.grid and other.grid and self.grid[1] == other.grid[1] and len(self) == len(other):
            start = min(self.grid[2], other.grid[2])
            end = max(self.grid[2] + self.grid[0], other.grid[2] + other.grid[0])
            grid = (end - start, self.grid[1], start)
        elif len(self) != len(other):
            grid = (self if len(self) > len(other) else other).grid if _within(self, other) else None
        return Axis(low, high, grid)

    def all(self, count: int = 1) -> Axis:
        """An axis of `count` indices that each see what any index of this one sees."""
        if len(self) == 1 and count == 1:
            return self
        return Axis(np.full(count, self.low.min()), np.full(count, self.high.max()))


def _within(a: Axis, b: Axis) -> bool:
    short, long = (a, b) if len(a) < len(b) else (b, a)
    return bool((short.low[0] >= long.low).all() and (short.high[0] <= long.high).all())


Factor = tuple[int, str]
"""Part of a dimension: its size, and "r" or "c" if it runs over the rows or columns of a map, else ""."""


@dataclass(frozen=True)
class Field:
    """The receptive fields of all units of a tensor.

    `dims` says how the tensor's dimensions are made of rows, columns and others, so that reshapes and permutations
    can be followed. `exact` is False where the field is only an upper bound, `even` is False where some channels, or
    places that are not told apart, see less than others. `height` and `width` are the input's.
    """

    rows: Axis
    cols: Axis
    dims: tuple[tuple[Factor, ...], ...]
    exact: bool = True
    even: bool = True
    height: int = 0
    width: int = 0

    def axis(self, tag: str) -> Axis:
        return self.rows if tag == "r" else self.cols

    def with_axis(self, tag: str, axis: Axis) -> Field:
        return replace(self, rows=axis) if tag == "r" else replace(self, cols=axis)

    def tag(self, dim: int) -> str:
        """What a dimension runs over: "r" exactly the rows, "c" the columns, "" neither, "?" a mixture."""
        tagged = [factor for factor in self.dims[dim] if factor[1]]
        if not tagged:
            return ""
        return tagged[0][1] if len(tagged) == 1 and math.prod(s for s, _ in self.dims[dim]) == tagged[0][0] else "?"

    def collapsed(self, shape: tuple[int, ...], *, exact: bool = True) -> Field:
        """Every unit sees all that any unit saw."""
        dims = tuple(((size, ""),) for size in shape)
        return replace(self, rows=self.rows.all(), cols=self.cols.all(), dims=dims, exact=self.exact and exact)

    def box(self, row: int = 0, col: int = 0) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the unit at this position, in input pixels, bottom and right excluded."""
        r, c = min(row, len(self.rows) - 1), min(col, len(self.cols) - 1)
        if self.rows.high[r] < 0 or self.cols.high[c] < 0:
            return (0, 0, 0, 0)  # sees nothing but padding
        return (int(self.rows.low[r]), int(self.cols.low[c]), int(self.rows.high[r]) + 1, int(self.cols.high[c]) + 1)
