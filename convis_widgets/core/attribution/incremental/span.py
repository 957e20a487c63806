"""Span and Read: where the boxes of a PatchedTensor are, as arithmetic on the edges of the patches alone.

Nothing here depends on pixels, so it is computed once for a network and a grid of patch positions, in NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

_FAR = 1 << 40  # larger than any index
ArrayT = TypeVar("ArrayT")


class Span:
    """Intervals along one axis of a map: what may differ from the reference, for each edge of the patch.

    Parameters
    ----------
    low, high : (n,) arrays of int
        First and last index of the interval, for each of n edges.
    length : int
        Length of the axis.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, length: int) -> None:
        self.low, self.high, self.length = low, high, length
        self.sizes = high - low + 1

    def whole(self) -> Span:
        """The whole axis, for each edge."""
        return Span(np.zeros_like(self.low), np.full_like(self.high, self.length - 1), self.length)

    def size(self, edges: np.ndarray) -> int:
        """The common size of the boxes of a batch: that of the largest interval.

        Parameters
        ----------
        edges : array of int
            Indices of the edges in the batch.
        """
        return int(self.sizes[edges].max())

    def start(self, edges: np.ndarray) -> np.ndarray:
        """Where boxes of the common size begin, such that they lie inside the map."""
        return np.minimum(self.low[edges], self.length - self.size(edges))

    def window(self, kernel: int, stride: int, padding: int, dilation: int, length: int) -> Span:
        """The outputs that may differ after a convolution or pooling.

        Parameters
        ----------
        kernel, stride, padding, dilation : int
            Of the operator along this axis, as in `torch.nn.Conv2d`.
        length : int
            Number of outputs along this axis.
        """
        reach = (kernel - 1) * dilation
        low = -((reach - padding - self.low) // stride)  # rounded up
        high = (self.high + padding) // stride
        low, high = low.clip(0, length - 1), high.clip(0, length - 1)
        return Span(np.minimum(low, high), high, length)

    def union(self, other: Span) -> Span:
        """The smallest intervals that contain both; one of the two if that contains the other."""
        union = Span(np.minimum(self.low, other.low), np.maximum(self.high, other.high), self.length)
        return next((span for span in (self, other) if span == union), union)

    def __eq__(self, other: object) -> bool:
        return self is other or (
            isinstance(other, Span)
            and self.length == other.length
            and np.array_equal(self.low, other.low)
            and np.array_equal(self.high, other.high)
        )

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class AxisRead:
    """One axis of a Read.

    Attributes
    ----------
    target : Span
        The outputs to be computed from the windows.
    source : Span or None
        Where the boxes are that are inserted, if any.
    stride, padding, reach : int
        Output k is computed from positions k * stride - padding and the following, `reach` in all.
    """

    target: Span
    source: Span | None
    stride: int = 1
    padding: int = 0
    reach: int = 1

    @property
    def exceeds_map(self) -> bool:
        """Whether windows can reach beyond the map."""
        end = (self.target.length - 1) * self.stride - self.padding + self.reach
        return self.padding > 0 or (self.source is not None and end > self.source.length)

    def positions(self, edges: np.ndarray) -> np.ndarray:
        """Positions on the map that the windows consist of, (edges, window size); they may lie outside the map."""
        length = (self.target.size(edges) - 1) * self.stride + self.reach
        return (self.target.start(edges) * self.stride - self.padding)[:, None] + np.arange(length)

    def from_box(self, edges: np.ndarray) -> np.ndarray:
        """Where in the windows the positions of the boxes are, (edges, box size)."""
        assert self.source is not None
        window_start = self.target.start(edges) * self.stride - self.padding
        return (self.source.start(edges) - window_start)[:, None] + np.arange(self.source.size(edges))


class Positions:
    """Positions of the patch, as a group: all boxes of the group have the size of the largest.

    Parameters
    ----------
    rows, cols : (N,) arrays of int
        Indices of the top and left edges.
    """

    def __init__(self, rows: np.ndarray, cols: np.ndarray) -> None:
        self.rows, self.cols = rows, cols

    @functools.cached_property
    def _distinct(self) -> list[tuple[np.ndarray, np.ndarray]]:
        return [np.unique(edges, return_inverse=True) for edges in (self.rows, self.cols)]

    @classmethod
    def joined(cls, groups: Sequence[Positions]) -> Positions:
        """All positions of several groups."""
        return cls(np.concatenate([group.rows for group in groups]), np.concatenate([group.cols for group in groups]))

    def split(self, count: int) -> list[Positions]:
        """The positions in `count` parts of about the same size."""
        parts = zip(np.array_split(self.rows, count), np.array_split(self.cols, count), strict=True)
        return [Positions(rows, cols) for rows, cols in parts]

    @property
    def distinct(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows and the columns in the group, each once."""
        return self._distinct[0][0], self._distinct[1][0]

    def expand(self, of_rows: np.ndarray, of_cols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """From something for each distinct row and column to the same for each position.

        Parameters
        ----------
        of_rows, of_cols : arrays
            See `distinct`.
        """
        return of_rows[self._distinct[0][1]], of_cols[self._distinct[1][1]]

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True)
class Read:
    """Windows of a group of images, each put together from the reference and the image's box.

    The lines of a map are its positions, each with the values of all channels. A window consists of lines of the box, where
    it covers the window, and of the reference elsewhere.
    """

    rows: AxisRead
    cols: AxisRead
    map_size: tuple[int, int]

    def tables(self, group: Positions) -> Tables[np.ndarray]:
        """Where the windows of a group are.

        Parameters
        ----------
        group : Positions
        """
        i, j = group.distinct
        y, x = self.rows.positions(i), self.cols.positions(j)
        height, width = y.shape[1], x.shape[1]
        y, x = group.expand(_inside(y, self.map_size[0], self.map_size[1]), _inside(x, self.map_size[1]))
        tables = Tables((y[:, :, None], x[:, None, :]))
        if self.rows.source is None:
            return tables
        y, x = self.rows.from_box(i), self.cols.from_box(j)
        y, x = group.expand(_inside(y, height, width), _inside(x, width))
        y = y + (np.arange(len(group)) * (height * width))[:, None]
        return Tables(tables.map, (y[:, :, None], x[:, None, :]))


@dataclass(frozen=True)
class Tables(Generic[ArrayT]):
    """Where the windows of a group are: summands of indices, by row and by column.

    An index is the sum of that of a row, (N, height, 1), and that of a column, (N, 1, width). One that is larger than the
    number of lines is outside.

    Attributes
    ----------
    map : (y, x) arrays or tensors
        For each position of the windows, where in the reference it is.
    box : (y, x) arrays or tensors, or None
        For each position of the boxes, where in the list of all lines of the windows it is.
    name : str
        Of the input of a Program.
    """

    map: tuple[ArrayT, ArrayT]
    box: tuple[ArrayT, ArrayT] | None = None
    name: str = ""

    @property
    def arrays(self) -> list[ArrayT]:
        """All arrays."""
        return [*self.map, *(self.box or ())]


def _inside(positions: np.ndarray, length: int, factor: int = 1) -> np.ndarray:
    """Positions times a factor; a very large number for those outside of an axis."""
    return np.where((positions >= 0) & (positions < length), positions * factor, _FAR).astype(np.int64)
