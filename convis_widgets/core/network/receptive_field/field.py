"""Field: the receptive fields of all units of a tensor.

Units at the same position often have different receptive fields, as the channels of concatenated branches do. A Field has a
Region for each group of them, and an array with the number of the region of each unit, which has length 1 along the
dimensions that make no difference.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from .axis import Axis, Region, join, window_taps


class NotSupported(Exception):
    """Raised by a rule if Fields cannot be propagated exactly through an operator."""


Factor = tuple[int, str]
"""Part of a dimension: its size, and "r" or "c" if it enumerates the rows or columns of a map, else ""."""
Dims = tuple[tuple[Factor, ...], ...]


@dataclass(frozen=True)
class Field:
    """The receptive fields of all units of a tensor.

    Attributes
    ----------
    regions : tuple of Region
        The receptive fields of a group of units for every row and column.
    groups : int array
        Number of the region of each unit. It has one axis for each factor, of the size of the factor or of length 1; always
        of length 1 for rows and columns.
    dims : tuple of tuple of Factor
        The factors of each dimension of the tensor, to follow reshapes and permutations.
    exact : bool
        False if the fields are upper bounds.
    height, width : int
        Size of the input.
    """

    regions: tuple[Region, ...]
    groups: np.ndarray
    dims: Dims
    exact: bool = True
    height: int = 0
    width: int = 0

    @functools.cached_property
    def union(self) -> Region:
        """The union of the receptive fields of all groups, position by position."""
        return join(self.regions)[0]

    @property
    def rows(self) -> Axis:
        """The rows of the union of all groups."""
        return self.union.rows

    @property
    def cols(self) -> Axis:
        """The columns of the union of all groups."""
        return self.union.cols

    @property
    def uniform(self) -> bool:
        """Whether all channels have the same receptive fields."""
        return len(self.regions) == 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple([math.prod([size for size, _ in factors]) for factors in self.dims])

    def dim_size(self, dim: int) -> int:
        """Size of a dimension of the tensor."""
        return math.prod(size for size, _ in self.dims[dim])

    def tag(self, dim: int) -> str:
        """What a dimension enumerates: "r" the rows, "c" the columns, "" neither, "?" a mixture."""
        tagged = [factor for factor in self.dims[dim] if factor[1]]
        if not tagged:
            return ""
        return tagged[0][1] if len(tagged) == 1 and self.dim_size(dim) == tagged[0][0] else "?"

    def group_axes(self, dim: int) -> slice:
        """The axes of `groups` that belong to a dimension."""
        start = sum([len(factors) for factors in self.dims[: dim % len(self.dims)]])
        return slice(start, start + len(self.dims[dim]))

    def with_dim(self, dim: int, factors: tuple[Factor, ...], groups: np.ndarray | None = None) -> Field:
        """The same Field with other factors of a dimension.

        Parameters
        ----------
        dim : int
            Not negative.
        factors : tuple of Factor
            Empty to remove the dimension.
        groups : int array, optional
            The new `groups`; by default the units of the dimension have the same fields.
        """
        if groups is None:
            axes, shape = self.group_axes(dim), self.groups.shape
            groups = self.groups.reshape(*shape[: axes.start], *[1] * len(factors), *shape[axes.stop :])
        dims = (*self.dims[:dim], *([factors] if factors else []), *self.dims[dim + 1 :])
        return Field(self.regions, groups, dims, self.exact, self.height, self.width)

    def flat(self, dim: int) -> Field:
        """The same Field with a single factor in a dimension; NotSupported if it mixes rows or columns with others."""
        dim, tag = dim % len(self.dims), self.tag(dim)
        if tag == "?":
            raise NotSupported
        if len(self.dims[dim]) == 1:
            return self
        axes, shape, size = self.group_axes(dim), self.groups.shape, self.dim_size(dim)
        groups = self.groups
        if max(shape[axes]) > 1:
            full = tuple(size for size, _ in self.dims[dim])
            groups = np.broadcast_to(groups, (*shape[: axes.start], *full, *shape[axes.stop :]))
        length = math.prod(groups.shape[axes])
        return self.with_dim(dim, ((size, tag),), groups.reshape(*shape[: axes.start], length, *shape[axes.stop :]))

    def map_axis(self, tag: str, function: Callable[[Axis], Axis]) -> Field:
        """The Field after a function of the rows or columns.

        Parameters
        ----------
        tag : str
            "r" for the rows, "c" for the columns.
        function : callable
            Takes and returns an Axis.
        """
        if tag == "r":
            regions = tuple([Region(function(region.rows), region.cols) for region in self.regions])
        else:
            regions = tuple([Region(region.rows, function(region.cols)) for region in self.regions])
        return self.with_regions(regions)

    def with_regions(self, regions: tuple[Region, ...]) -> Field:
        """The same Field with another region for each of its regions."""
        field = Field(regions, self.groups, self.dims, self.exact, self.height, self.width)
        return field if field.uniform else field.simplified()

    def gather(self, dim: int, taps: np.ndarray) -> Field:
        """The Field after an operator whose output i, along a dimension, reads the indices ``taps[i]``.

        Parameters
        ----------
        dim : int
        taps : (n, k) int array
            Padding if outside.
        """
        field, dim = self.flat(dim), dim % len(self.dims)
        (size, tag), axis = field.dims[dim][0], field.group_axes(dim).start
        factors = ((len(taps), tag),)
        if tag:
            gathered = field.map_axis(tag, lambda a: a.select(taps[:, 0]) if taps.shape[1] == 1 else a.gather(taps))
            return gathered.with_dim(dim, factors)
        inside = (taps >= 0) & (taps < size)
        varies = field.groups.shape[axis] > 1
        if not varies and inside.any(1).all():
            return field.with_dim(dim, factors)
        groups = np.moveaxis(field.groups, axis, -1)
        read = np.where(
            inside, groups[..., np.clip(taps, 0, size - 1) if varies else np.zeros_like(taps)], len(self.regions)
        )
        regions, joined, exact = _join_groups((*field.regions, field.nothing()), read)
        return replace(field, regions=regions, exact=self.exact and exact).with_dim(
            dim, factors, np.moveaxis(joined, -1, axis)
        ).simplified()  # fmt: skip

    def window(self, dim: int, count: int, kernel: int, stride: int, padding: int, dilation: int) -> Field:
        """The Field after a convolution or pooling along a dimension.

        Parameters
        ----------
        dim : int
        count, kernel, stride, padding, dilation : int
            See `Axis.window`.
        """
        tag = self.tag(dim)
        if tag in ("r", "c"):
            windows = self.flat(dim).map_axis(tag, lambda axis: axis.window(count, kernel, stride, padding, dilation))
            return windows.with_dim(dim % len(self.dims), ((count, tag),))
        return self.gather(dim, window_taps(count, kernel, stride, padding, dilation))

    def contract(self, dim: int, factors: tuple[Factor, ...] | None = None) -> Field:
        """The Field after an operator whose outputs depend on all indices of a dimension.

        Parameters
        ----------
        dim : int
        factors : tuple of Factor, optional
            New factors of the dimension, without rows and columns; by default it is as before.
        """
        field, dim = self, dim % len(self.dims)
        for _, tag in self.dims[dim]:
            if tag:
                field = field.map_axis(tag, lambda axis: axis.all(1 if factors is not None else len(axis)))
        axes = field.group_axes(dim)
        if max(field.groups.shape[axes]) > 1:
            kept = (*field.groups.shape[: axes.start], *[1] * len(self.dims[dim]), *field.groups.shape[axes.stop :])
            last = tuple(range(axes.start - axes.stop, 0))
            read = np.moveaxis(field.groups, tuple(range(axes.start, axes.stop)), last)
            read = read.reshape(*read.shape[: read.ndim - len(last)], -1)
            regions, joined, exact = _join_groups(field.regions, read[..., None, :])
            field = replace(field, regions=regions, groups=joined.reshape(kept), exact=field.exact and exact).simplified()
        return field if factors is None else field.with_dim(dim, factors)

    def reordered(self, order: Sequence[int]) -> Field:
        """The Field after a permutation of the dimensions."""
        axes = [axis for dim in order for axis in range(self.group_axes(dim).start, self.group_axes(dim).stop)]
        return replace(self, dims=tuple(self.dims[dim] for dim in order), groups=self.groups.transpose(axes))

    def nothing(self) -> Region:
        """A region of this size whose units depend on nothing."""
        return Region(Axis.empty(len(self.regions[0].rows)), Axis.empty(len(self.regions[0].cols)))

    def simplified(self) -> Field:
        """The same Field without equal and unused regions, and without axes of `groups` that make no difference."""
        if len(self.regions) == 1:
            return self if self.groups.size == 1 else replace(self, groups=np.zeros((1,) * self.groups.ndim, int))
        numbers: dict[object, int] = {}
        kept: list[Region] = []
        new = np.zeros(len(self.regions), int)
        for number in np.unique(self.groups):
            region = self.regions[number]
            new[number] = numbers.setdefault(region.key, len(kept))
            if new[number] == len(kept):
                kept.append(region)
        groups = new[self.groups]
        for axis in range(groups.ndim):
            first = groups.take([0], axis)
            groups = first if groups.shape[axis] > 1 and (groups == first).all() else groups
        return replace(self, regions=tuple(kept), groups=groups)

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
        region = Region(self.rows.all(), self.cols.all())
        return replace(
            self, regions=(region,), groups=np.zeros((1,) * len(shape), int), dims=dims, exact=self.exact and exact
        )

    def box(self, index: Sequence[int | None] = ()) -> tuple[int, int, int, int]:
        """Receptive field of a unit in input pixels: (top, left, bottom, right), bottom and right excluded.

        All zero if the unit depends only on padding.

        Parameters
        ----------
        index : sequence of (int or None), optional
            Index of the unit in each dimension of the tensor; negative ones count from the end. None, or a missing one,
            stands for all indices: the box is the union.
        """
        places: dict[str, int | slice] = {"r": slice(None), "c": slice(None)}
        chosen: list[int | slice] = []  # in `groups`
        for dim, factors in enumerate(self.dims):
            number = index[dim] if dim < len(index) else None
            parts = [slice(None)] * len(factors) if number is None else _unravel(number, factors)
            places.update((tag, part) for (_, tag), part in zip(factors, parts, strict=True) if tag)
            chosen += parts
        if self.uniform:
            groups = np.zeros(1, int)
        else:
            lengths = self.groups.shape
            groups = np.unique(self.groups[tuple(c if n > 1 else 0 for c, n in zip(chosen, lengths, strict=True))])
        boxes = [box for group in groups if (box := _box(self.regions[group], places["r"], places["c"]))]
        if not boxes:
            return (0, 0, 0, 0)
        tops, lefts, bottoms, rights = zip(*boxes, strict=True)
        return min(tops), min(lefts), max(bottoms), max(rights)


Rule = Callable[..., "Field | list[Field]"]
"""The Fields of an operator's outputs; see `rules`."""


def _unravel(index: int, factors: tuple[Factor, ...]) -> list[int | slice]:
    """The index along each factor of a dimension."""
    parts: list[int | slice] = []
    for size, _ in reversed(factors):
        index, part = divmod(index, size)
        parts.insert(0, part)
    return parts


def _box(region: Region, row: int | slice, col: int | slice) -> tuple[int, int, int, int] | None:
    """Top, left, bottom, right of positions of a region; None if they depend only on padding."""
    edges = [
        (axis.low[i], axis.high[i]) if isinstance(i, int) else (axis.low[i].min(), axis.high[i].max())
        for axis, i in ((region.rows, row), (region.cols, col))
    ]
    (top, bottom), (left, right) = edges
    return None if bottom < 0 or right < 0 else (int(top), int(left), int(bottom) + 1, int(right) + 1)


def _join_groups(regions: Sequence[Region], read: np.ndarray) -> tuple[tuple[Region, ...], np.ndarray, bool]:
    """Regions of units that read units of several groups.

    Parameters
    ----------
    regions : sequence of Region
    read : (..., k) int array
        Numbers of the regions that each new unit reads.

    Returns
    -------
    regions : tuple of Region
    groups : (...) int array
        Number of the region of each new unit.
    exact : bool
    """
    if read.shape[-1] == 1:
        return tuple(regions), read[..., 0], True
    rows = read.reshape(-1, read.shape[-1])
    members = np.zeros((len(rows), len(regions)), bool)
    members[np.arange(len(rows))[:, None], rows] = True
    numbers: dict[bytes, int] = {}
    groups = [numbers.setdefault(row.tobytes(), len(numbers)) for row in members]
    joined = [
        join([region for region, is_read in zip(regions, np.frombuffer(key, bool), strict=True) if is_read])
        for key in numbers
    ]
    return tuple(region for region, _ in joined), np.array(groups).reshape(read.shape[:-1]), all(e for _, e in joined)
