"""Rules of receptive fields for operators that move units: views, permutations, slices, concatenation; see `rules`."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np

from ..graph import Op, Value
from .axis import Axis, Region
from .field import Dims, Factor, Field, NotSupported, Rule


def broadcast(inputs: list[Field], shape: tuple[int, ...]) -> tuple[Dims, list[np.ndarray]]:
    """Factors of a shape that fit those of all inputs, and the groups of each input with one axis for each of them.

    Parameters
    ----------
    inputs : list of Field
    shape : tuple of int
        The inputs are broadcast to it from the right, except that they may be smaller where they have no rows and columns.
    """
    dims: list[tuple[Factor, ...]] = []
    for back in range(-len(shape), 0):
        tagged = [
            field.dims[back] for field in inputs if len(field.dims) >= -back and any(tag for _, tag in field.dims[back])
        ]
        tagged = [factors for factors in tagged if math.prod(size for size, _ in factors) > 1]
        if any(factors != tagged[0] for factors in tagged[1:]):
            raise NotSupported
        dims.append(tagged[0] if tagged else ((shape[back], ""),))
    groups = []
    for field in inputs:
        lengths: list[int] = []
        for back, factors in zip(range(-len(shape), 0), dims, strict=True):
            own = () if len(field.dims) < -back else field.groups.shape[field.group_axes(back)]
            if max(own, default=1) > 1 and field.dims[back] != factors:
                if len(factors) > 1 or factors[0][1]:
                    raise NotSupported
                field = field.flat(back)
                own = field.groups.shape[field.group_axes(back)]
            lengths += own if max(own, default=1) > 1 else [1] * len(factors)
        groups.append(field.groups.reshape(lengths))
    return tuple(dims), groups


def _view(_op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    field = _merged(inputs[0])
    factors = [factor for dim in field.dims for factor in dim]
    remaining = [(*f, length > 1) for f, length in zip(factors, field.groups.shape, strict=True) if f[0] != 1]
    dims: list[tuple[Factor, ...]] = []
    lengths: list[int] = []  # of the axes of groups
    for size in shapes[0]:
        parts: list[tuple[int, str, bool]] = []
        while size > 1:
            part, tag, varies = remaining.pop(0) if remaining else (0, "", False)
            if part and size % part == 0:
                parts.append((part, tag, varies))
                size //= part
            elif part and not tag and part % size == 0:
                parts.append((size, "", varies))
                remaining.insert(0, (part // size, "", varies))
                size = 1
            else:
                raise NotSupported
        parts = parts or [(1, "", False)]
        dims.append(tuple((part, tag) for part, tag, _ in parts))
        lengths += [part if varies else 1 for part, _, varies in parts]
    return replace(field, dims=tuple(dims), groups=field.groups.reshape(lengths))


def _merged(field: Field) -> Field:
    """The Field of the flattened tensor, with one factor for neighboring factors without rows or columns."""
    factors = [factor for dim in field.dims for factor in dim]
    groups, merged, lengths, axis = field.groups, list[Factor](), list[int](), 0
    for tag, run in itertools.groupby(factors, lambda factor: factor[1]):
        sizes = [size for size, _ in run]
        axes = slice(axis, axis + len(sizes))
        axis += len(sizes)
        if tag:
            merged += [(size, tag) for size in sizes]
            lengths += [1] * len(sizes)
            continue
        if max(groups.shape[axes]) > 1:
            groups = np.broadcast_to(groups, (*groups.shape[: axes.start], *sizes, *groups.shape[axes.stop :]))
        merged.append((math.prod(sizes), ""))
        lengths.append(math.prod(groups.shape[axes]))
    return replace(field, dims=(tuple(merged),), groups=groups.reshape(lengths))


def _permute(op: Op, inputs: list[Field], _fields: Any, _shapes: Any) -> Field:
    count = len(inputs[0].dims)
    if op.name == "permute":
        return inputs[0].reordered([dim % count for dim in op.args[1]])
    a, b = (op.args[1] % count, op.args[2] % count) if op.name == "transpose" else (0, count - 1)
    order = list(range(count))
    order[a], order[b] = order[b], order[a]
    return inputs[0].reordered(order)


def _expand(_op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    field, shape = inputs[0], shapes[0]
    for back in range(-len(field.dims), 0):
        if field.dim_size(back) != shape[back]:
            field = field.with_dim(len(field.dims) + back, ((shape[back], ""),))
    new = tuple(((size, ""),) for size in shape[: len(shape) - len(field.dims)])
    return replace(field, dims=(*new, *field.dims), groups=field.groups.reshape(*[1] * len(new), *field.groups.shape))


def _repeat(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    field = _expand(op, inputs, None, [(*shapes[0][: len(shapes[0]) - len(inputs[0].dims)], *inputs[0].shape)])
    for dim, size in enumerate(shapes[0]):
        if size != field.dim_size(dim):
            field = field.gather(dim, np.arange(size)[:, None] % field.dim_size(dim))
    return field


def _restride(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """A vector with other strides, after global pooling of channels in the last dimension."""
    size, stride = op.args[1:3]
    if len(op.args) > 3 or inputs[0].shape != shapes[0] or any(n > 1 and s != 1 for n, s in zip(size, stride, strict=True)):
        raise NotSupported
    return inputs[0]


def _index(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> list[Field]:
    """slice, select, split, unbind, roll, flip, pad: the output reads a list of indices of each dimension."""
    results = []
    offset = 0
    for shape in shapes:
        field = inputs[0]
        for dim, indices, keep in _indices(op, inputs[0], shape, offset):
            field = field.gather(dim, indices[:, None])
            field = field if keep else field.with_dim(dim, ())
            offset += len(indices)
        results.append(field)
    return results


def _indices(op: Op, field: Field, shape: tuple[int, ...], offset: int) -> list[tuple[int, np.ndarray, bool]]:
    """Dimensions that an operator indexes: (dimension, indices, whether the dimension is kept).

    `offset` is the number of indices in the preceding outputs of the operator.
    """
    sizes = field.shape
    args = [*op.args[1:], *[None] * 4]
    if "pad" in op.name:
        return _padding(op.name, sizes, list(args[0]))
    if op.name in ("roll", "flip"):
        dims = args[1] if op.name == "roll" else args[0]
        if not dims:
            raise NotSupported
        shifts = args[0] if op.name == "roll" else [None] * len(dims)
        return [
            (d % len(sizes), (np.arange(sizes[d]) - s) % sizes[d] if s is not None else np.arange(sizes[d])[::-1], True)
            for d, s in zip(dims, shifts, strict=True)
        ]
    if op.name == "slice":
        dim = (args[0] or 0) % len(sizes)
        start, stop, step = slice(args[1], args[2], args[3]).indices(sizes[dim])
        return [(dim, np.arange(start, stop, step), True)]
    if op.name == "select":
        dim = args[0] % len(sizes)
        return [(dim, np.array([args[1] % sizes[dim]]), False)]
    if op.name == "index":
        ((dim, tensor),) = [(dim, tensor) for dim, tensor in enumerate(args[0]) if tensor is not None]
        return [(dim, _constant_indices(tensor, sizes[dim]), True)]
    if op.name == "index_select":
        return [(args[0] % len(sizes), _constant_indices(args[1], sizes[args[0]]), True)]
    dim = (args[0] if op.name == "unbind" else args[1]) or 0
    dim %= len(sizes)
    if op.name == "unbind":
        return [(dim, np.array([offset]), False)]
    return [(dim, np.arange(offset, offset + shape[dim]), True)]


def _constant_indices(argument: Any, size: int) -> np.ndarray:
    """Indices that do not depend on the image."""
    tensor = argument.constant if isinstance(argument, Value) else argument
    if tensor is None or tensor.ndim != 1:
        raise NotSupported
    indices = tensor.detach().cpu().numpy()
    return np.flatnonzero(indices) if indices.dtype == bool else indices.astype(int) % size


def _padding(name: str, sizes: tuple[int, ...], pads: list[int]) -> list[tuple[int, np.ndarray, bool]]:
    results = []
    for i in range(len(pads) // 2):
        dim, before, after = len(sizes) - 1 - i, pads[2 * i], pads[2 * i + 1]
        if not (before or after):
            continue
        indices = np.arange(-before, sizes[dim] + after)
        if name.startswith("reflection"):
            indices = np.abs(indices)
            indices = np.where(indices >= sizes[dim], 2 * (sizes[dim] - 1) - indices, indices)
        elif name.startswith("replication"):
            indices = np.clip(indices, 0, sizes[dim] - 1)
        results.append((dim, indices, True))
    return results


def _channel_shuffle(op: Op, inputs: list[Field], _fields: Any, _shapes: Any) -> Field:
    order = np.arange(inputs[0].dim_size(1)).reshape(op.args[1], -1).T.reshape(-1, 1)
    return inputs[0].gather(1, order)


def _cat(op: Op, _inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> Field:
    dim = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(shapes[0])
    parts = [fields.get(part) if isinstance(part, Value) else None for part in op.args[0]]
    return _concatenated(parts, [tuple(part.shape)[dim] for part in op.args[0]], dim, shapes[0])


def _stack(op: Op, _inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> Field:
    dim = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(shapes[0])
    parts = [fields.get(part) if isinstance(part, Value) else None for part in op.args[0]]
    single = (*shapes[0][:dim], 1, *shapes[0][dim + 1 :])
    return _concatenated(
        [field and _view(op, [field], fields, [single]) for field in parts], [1] * len(parts), dim, shapes[0]
    )


def _concatenated(parts: list[Field | None], sizes: list[int], dim: int, shape: tuple[int, ...]) -> Field:
    """The Field of a concatenation.

    Parameters
    ----------
    parts : list of Field or None
        None for constants.
    sizes : list of int
        Their sizes along the dimension.
    dim : int
        The dimension, not negative.
    shape : tuple of int
        Shape of the result.
    """
    inputs = [field.flat(dim) for field in parts if field is not None]
    if any(field.tag(dim) for field in inputs):
        raise NotSupported
    dims, arrays = broadcast(inputs, shape)
    known, axis = iter(arrays), sum(len(factors) for factors in dims[:dim])
    rows, cols = (max(len(getattr(field.regions[0], name)) for field in inputs) for name in ("rows", "cols"))
    regions = [Region(Axis.empty(rows), Axis.empty(cols))]  # of the constants
    groups = []
    for field in parts:
        groups.append(np.zeros((1,) * arrays[0].ndim, int) if field is None else next(known) + len(regions))
        regions += [] if field is None else [Region(r.rows.repeated(rows), r.cols.repeated(cols)) for r in field.regions]
    common = np.broadcast_shapes(*((*array.shape[:axis], 1, *array.shape[axis + 1 :]) for array in groups))
    full = [
        np.broadcast_to(array, (*common[:axis], size, *common[axis + 1 :]))
        for array, size in zip(groups, sizes, strict=True)
    ]
    exact = all(field.exact for field in inputs)
    joined = replace(inputs[0], regions=tuple(regions), groups=np.concatenate(full, axis), dims=dims, exact=exact)
    return joined.simplified()


RULES: dict[str, Rule] = {
    **dict.fromkeys(["view", "_unsafe_view", "reshape", "squeeze", "unsqueeze"], _view),
    **dict.fromkeys(["permute", "transpose", "t"], _permute),
    "expand": _expand,
    "repeat": _repeat,
    "as_strided_": _restride,
    **dict.fromkeys(["slice", "select", "split", "split_with_sizes", "chunk", "unbind", "roll", "flip"], _index),
    **dict.fromkeys(["constant_pad_nd", "reflection_pad2d", "replication_pad2d", "index", "index_select"], _index),
    **dict.fromkeys(["channel_shuffle", "native_channel_shuffle"], _channel_shuffle),
    "cat": _cat,
    "stack": _stack,
}
