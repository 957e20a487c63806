"""Field: the receptive fields of all units of a tensor, stored per axis.

Each axis has two arrays: the first and the last input row that each row of a map depends on, clipped at the borders. This
covers strides, dilation, ceil mode, branches, adaptive pooling, upsampling and crops without a formula for each. The
textbook triple (size, stride, start) is kept as well while the map is a regular grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

_NOTHING = np.iinfo(np.int64).max


class NotSupported(Exception):
    """Raised by a rule if Fields cannot be propagated exactly through an operator."""


@dataclass(frozen=True)
class Axis:
    """One axis of a map.

    Attributes
    ----------
    low, high : (n,) int array
        First and last input index, both included, that each index of the map depends on.
    grid : (int, int, int) or None
        (size, stride, start) of the unclipped fields: index i depends on `size` input indices from ``start + i * stride``.
        None if there is no such triple: after global or uneven adaptive pooling, upsampling, attention.
    """

    low: np.ndarray
    high: np.ndarray
    grid: tuple[int, int, int] | None = None

    def __len__(self) -> int:
        return len(self.low)

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
        indices = np.clip(taps, 0, len(self) - 1)
        low = np.where(inside, self.low[indices], _NOTHING).min(axis=1)
        high = np.where(inside, self.high[indices], -1).max(axis=1)
        return Axis(low, high, grid)

    def window(self, count: int, kernel: int, stride: int, padding: int, dilation: int) -> Axis:
        """The axis after a convolution or pooling.

        Parameters
        ----------
        count : int
            Number of outputs along this axis.
        kernel, stride, padding, dilation : int
            Of the operator along this axis, as in `torch.nn.Conv2d`.
        """
        taps = np.arange(count)[:, None] * stride - padding + np.arange(kernel)[None, :] * dilation
        grid = None
        if self.grid is not None:
            size, step, start = self.grid
            grid = (size + (kernel - 1) * dilation * step, step * stride, start - padding * step)
        return self.gather(taps, grid)

    def union(self, other: Axis) -> Axis:
        """Union of the fields of two axes, index by index; an axis of length 1 is broadcast."""
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
        """An axis of `count` indices whose fields are the union of all fields of this one."""
        if len(self) == 1 and count == 1:
            return self
        return Axis(np.full(count, self.low.min()), np.full(count, self.high.max()))


def _within(a: Axis, b: Axis) -> bool:
    short, long = (a, b) if len(a) < len(b) else (b, a)
    return bool((short.low[0] >= long.low).all() and (short.high[0] <= long.high).all())


Factor = tuple[int, str]
"""Part of a dimension: its size, and "r" or "c" if it enumerates the rows or columns of a map, else ""."""


@dataclass(frozen=True)
class Field:
    """The receptive fields of all units of a tensor.

    Attributes
    ----------
    rows, cols : Axis
    dims : tuple of tuple of Factor
        The factors of each dimension of the tensor, to follow reshapes and permutations.
    exact : bool
        False if the fields are upper bounds.
    uniform : bool
        False if some channels, or positions that are not distinguished, have smaller fields than others.
    height, width : int
        Size of the input.
    """

    rows: Axis
    cols: Axis
    dims: tuple[tuple[Factor, ...], ...]
    exact: bool = True
    uniform: bool = True
    height: int = 0
    width: int = 0

    def axis(self, tag: str) -> Axis:
        """The rows for "r", the columns for "c"."""
        return self.rows if tag == "r" else self.cols

    def with_axis(self, tag: str, axis: Axis) -> Field:
        """The same Field with other rows or columns.

        Parameters
        ----------
        tag : str
            "r" to replace the rows, "c" the columns.
        axis : Axis
            The new rows or columns.
        """
        return replace(self, rows=axis) if tag == "r" else replace(self, cols=axis)

    def dim_size(self, dim: int) -> int:
        """Size of a dimension of the tensor."""
        return math.prod(size for size, _ in self.dims[dim])

    def tag(self, dim: int) -> str:
        """What a dimension enumerates: "r" the rows, "c" the columns, "" neither, "?" a mixture."""
        tagged = [factor for factor in self.dims[dim] if factor[1]]
        if not tagged:
            return ""
        return tagged[0][1] if len(tagged) == 1 and self.dim_size(dim) == tagged[0][0] else "?"

    def collapsed(self, shape: tuple[int, ...], *, exact: bool = True) -> Field:
        """The Field of a tensor whose units all depend on everything that any unit of this one depends on.

        Parameters
        ----------
        shape : tuple of int
            Shape of that tensor.
        exact : bool
            Whether the new fields are exact if those of this Field are; otherwise they are upper bounds.
        """
        dims = tuple(((size, ""),) for size in shape)
        return replace(self, rows=self.rows.all(), cols=self.cols.all(), dims=dims, exact=self.exact and exact)

    def box(self, row: int = 0, col: int = 0) -> tuple[int, int, int, int]:
        """Receptive field of a unit in input pixels: (top, left, bottom, right), bottom and right excluded.

        All zero if the unit depends only on padding.

        Parameters
        ----------
        row, col : int
            Position of the unit in the map, from 0. Larger positions stand for the last one.
        """
        r, c = min(row, len(self.rows) - 1), min(col, len(self.cols) - 1)
        if self.rows.high[r] < 0 or self.cols.high[c] < 0:
            return (0, 0, 0, 0)  # depends only on padding
        return (int(self.rows.low[r]), int(self.cols.low[c]), int(self.rows.high[r]) + 1, int(self.cols.high[c]) + 1)
