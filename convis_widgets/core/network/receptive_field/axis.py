"""Axis and Region: the receptive fields of the rows and columns of a map.

Each axis has two arrays: the first and the last input row that each row of a map depends on, clipped at the borders. This
covers strides, dilation, ceil mode, branches, adaptive pooling, upsampling and crops without a formula for each. The
textbook triple (size, stride, start) is kept as well while the map is a regular grid.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_NOTHING = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Axis:
    """One axis of a map.

    Attributes
    ----------
    low, high : (n,) int array
        First and last input index, both included, that each index of the map depends on; `high` is -1 for none.
    grid : (int, int, int) or None
        (size, stride, start) of the unclipped fields: index i depends on `size` input indices from ``start + i * stride``.
        None if there is no such triple: after global or uneven adaptive pooling, upsampling, attention.
    """

    low: np.ndarray
    high: np.ndarray
    grid: tuple[int, int, int] | None = None

    @classmethod
    def empty(cls, count: int) -> Axis:
        """An axis of indices that depend on nothing."""
        return cls(np.full(count, _NOTHING), np.full(count, -1))

    def __len__(self) -> int:
        return len(self.low)

    @functools.cached_property
    def _windows(self) -> dict[tuple[int, ...], Axis]:
        return {}

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal axes."""
        return self.low.tobytes(), self.high.tobytes(), self.grid

    def gather(self, taps: np.ndarray, grid: tuple[int, int, int] | None = None) -> Axis:
        """The axis after an operator that reads several indices.

        Parameters
        ----------
        taps : (n, k) int array
            Indices of this axis that output i reads; padding if outside.
        grid : (int, int, int), optional
            Grid of the result.
        """
        inside = (taps >= 0) & (taps < len(self))
        indices = np.minimum(np.maximum(taps, 0), len(self) - 1)
        low = np.where(inside, self.low[indices], _NOTHING).min(axis=1)
        high = np.where(inside, self.high[indices], -1).max(axis=1)
        return Axis(low, high, grid)

    def select(self, indices: np.ndarray) -> Axis:
        """The axis of some of the indices, in this order; padding if outside."""
        step = indices[1] - indices[0] if len(indices) > 1 else 1
        if self.grid is None or step <= 0 or not (np.diff(indices) == step).all():
            return self.gather(indices[:, None])
        size, stride, start = self.grid
        return self.gather(indices[:, None], (size, stride * step, start + indices[0] * stride))

    def window(self, count: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
        """The axis after a convolution or pooling.

        Parameters
        ----------
        count : int
            Number of outputs along this axis.
        kernel, stride, padding, dilation : int
            Of the operator along this axis, as in `torch.nn.Conv2d`.
        """
        settings = count, kernel, stride, padding, dilation
        if settings not in self._windows:
            grid = None
            if self.grid is not None:
                size, step, start = self.grid
                grid = (size + (kernel - 1) * dilation * step, step * stride, start - padding * step)
            self._windows[settings] = self.gather(window_taps(*settings), grid)
        return self._windows[settings]

    def union(self, other: Axis) -> Axis:
        """Union of the fields of two axes, index by index; an axis of length 1 is broadcast."""
        if self is other:
            return self
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        grid = None
        if self.grid and other.grid:
            if self.grid[1] == other.grid[1] and len(self) == len(other):
                start = min(self.grid[2], other.grid[2])
                end = max(self.grid[2] + self.grid[0], other.grid[2] + other.grid[0])
                grid = (end - start, self.grid[1], start)
        elif len(self) == len(other):  # only one of them, if it is the union
            grid = next((a.grid for a in (self, other) if np.array_equal(high, a.high) and np.array_equal(low, a.low)), None)
        if len(self) != len(other):
            grid = (self if len(self) > len(other) else other).grid if _within(self, other) else None
        return Axis(low, high, grid)

    def repeated(self, count: int) -> Axis:
        """The axis broadcast to this length."""
        return self if len(self) == count else Axis(np.repeat(self.low, count), np.repeat(self.high, count))

    def all(self, count: int = 1) -> Axis:
        """An axis of `count` indices whose fields are the union of all fields of this one."""
        if len(self) == 1 and count == 1:
            return self
        return Axis(np.full(count, self.low.min()), np.full(count, self.high.max()))


def window_taps(count: int, kernel: int, stride: int, padding: int, dilation: int) -> np.ndarray:
    """Indices (count, kernel) that each output of a convolution or pooling reads along one axis; padding if outside.

    Parameters
    ----------
    count : int
        Number of outputs.
    kernel, stride, padding, dilation : int
        As in `torch.nn.Conv2d`.
    """
    return np.arange(count)[:, None] * stride - padding + np.arange(kernel)[None, :] * dilation


def _within(a: Axis, b: Axis) -> bool:
    short, long = (a, b) if len(a) < len(b) else (b, a)
    return bool((short.low[0] >= long.low).all() and (short.high[0] <= long.high).all())


@dataclass(frozen=True)
class Region:
    """The receptive fields of all positions of a map."""

    rows: Axis
    cols: Axis

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal regions."""
        return self.rows.key, self.cols.key

    @functools.cached_property
    def blank(self) -> bool:
        """Whether some rows or columns depend on nothing."""
        return bool(self.rows.high.min() < 0 or self.cols.high.min() < 0)

    @property
    def padding(self) -> tuple[bytes, bytes]:
        """Which rows and columns depend on nothing."""
        return (self.rows.high < 0).tobytes(), (self.cols.high < 0).tobytes()

    @property
    def empty(self) -> bool:
        """Whether all positions depend on nothing."""
        return bool(self.rows.high.max() < 0 or self.cols.high.max() < 0)


def join(regions: Sequence[Region]) -> tuple[Region, bool]:
    """The union of regions, position by position, and whether it is exact; axes of length 1 are broadcast."""
    distinct = list({region.key: region for region in regions}.values()) if len(regions) > 1 else regions
    if len(distinct) == 1:
        return distinct[0], True
    # a unit that depends only on padding along one axis has an empty field, whatever the other axis
    filled = [region for region in distinct if not (region.blank and region.empty)]
    exact = not any(region.blank for region in filled) or len({region.padding for region in filled}) == 1
    parts = [Region(Axis.empty(len(r.rows)), Axis.empty(len(r.cols))) if r.blank and r.empty else r for r in distinct]
    rows = functools.reduce(Axis.union, (part.rows for part in parts))
    square = all(part.rows is part.cols for part in parts)
    return Region(rows, rows if square else functools.reduce(Axis.union, (part.cols for part in parts))), exact
