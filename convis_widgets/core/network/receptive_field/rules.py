"""Rules of receptive fields: the Fields of an operator's outputs, from those of its inputs.

A rule takes the operator, the Fields of its inputs, all Fields, and the shapes of the outputs. If it raises, or its result
does not fit the shapes, `compute.receptive_fields` uses an upper bound.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..graph import Op, Value
from .axis import Axis, Region, join
from .field import Dims, Factor, Field, NotSupported
from .windows import convolution, pixel_shuffle, pixel_unshuffle, pool, resize

# operators whose output depends only on the shape of their input
SHAPE_ONLY = {
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_empty", "new_zeros", "new_ones",
    "new_full", "new_empty_strided",
}  # fmt: skip


def propagate(op: Op, inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> list[Field]:
    """The Fields of an operator's outputs. Raises an exception if there is no exact rule.

    Parameters
    ----------
    op : Op
    inputs : list of Field
        Fields of the arguments that depend on the image.
    fields : dict of Value to Field
        All Fields so far.
    shapes : list of tuple
        Shapes of the outputs.
    """
    if op.pointwise:
        return [_pointwise(inputs, shapes[0])] * len(shapes)
    rule = _RULES[op.name]
    if rule not in (_cat, _stack, _matrix) and (len(inputs) > 1 or op.args[0] not in fields):
        raise NotSupported  # another argument than the first depends on the image
    result = rule(op, inputs, fields, shapes)
    return result if isinstance(result, list) else [result] * len(shapes)


def values_in(tree: Any) -> list[Value]:
    """All Values in the arguments of an operator."""
    if isinstance(tree, Value):
        return [tree]
    found: list[Value] = []
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ():
        if isinstance(part, Value):
            found.append(part)
        elif isinstance(part, (tuple, list, dict)):
            found += values_in(part)
    return found


def _pointwise(inputs: list[Field], shape: tuple[int, ...]) -> Field:
    """Broadcast from the right, then take the union of the operands' fields, unit by unit."""
    if all(field is inputs[0] for field in inputs) and inputs[0].shape == shape:
        return inputs[0]
    dims, groups = _broadcast(inputs, shape)
    regions, numbers, exact = inputs[0].regions, groups[0], all(field.exact for field in inputs)
    for other, other_numbers in zip(inputs[1:], groups[1:], strict=True):
        codes = numbers * len(other.regions) + other_numbers
        pairs, inverse = np.unique(codes, return_inverse=True)
        joined = [join((regions[pair // len(other.regions)], other.regions[pair % len(other.regions)])) for pair in pairs]
        regions, numbers = tuple(region for region, _ in joined), inverse.reshape(codes.shape)
        exact = exact and all(is_exact for _, is_exact in joined)
    return replace(inputs[0], regions=regions, groups=numbers, dims=dims, exact=exact).simplified()


def _broadcast(inputs: list[Field], shape: tuple[int, ...]) -> tuple[Dims, list[np.ndarray]]:
    """Factors of a shape that fit those of all inputs, and the groups of each input with one axis for each of them."""
    dims: list[tuple[Factor, ...]] = []
    for back in range(-len(shape), 0):
        tagged = [field.dims[back] for field in inputs if len(field.dims) >= -back and any(tag for _, tag in field.dims[back])]
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
                field = field.flat(back)  # noqa: PLW2901
                own = field.groups.shape[field.group_axes(back)]
            lengths += own if max(own, default=1) > 1 else [1] * len(factors)
        groups.append(field.groups.reshape(lengths))
    return tuple(dims), groups


def _glu(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """One half of a dimension is multiplied by the sigmoid of the other."""
    dim = op.args[1] if len(op.args) > 1 else -1
    half = np.arange(shapes[0][dim])
    return inputs[0].gather(dim, np.stack([half, half + len(half)], 1))


def _reduce(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """mean, sum, amax over some dimensions."""
    field, count = inputs[0], len(inputs[0].dims)
    position = 2 if op.name == "linalg_vector_norm" else 1
    dims_arg = op.args[position] if len(op.args) > position else None
    if dims_arg is None or dims_arg == []:
        dims_arg = range(count)
    if not isinstance(dims_arg, (list, tuple, range)):
        dims_arg = [dims_arg]
    factors: tuple[Factor, ...] = ((1, ""),) if len(shapes[0]) == count else ()
    for dim in sorted({d % count for d in dims_arg}, reverse=True):
        field = field.contract(dim, ((1, ""),)).with_dim(dim, factors)
    return field


def _mixing(dims_of: Callable[[Op, Field], Sequence[int]]) -> Callable[..., Field]:
    """Rule of softmax, layer norm and the like: every index of some dimensions depends on all of them; same shape."""

    def rule(op: Op, inputs: list[Field], _fields: Any, _shapes: Any) -> Field:
        field = inputs[0]
        for dim in dims_of(op, field):
            field = field.contract(dim)
        return field

    return rule


def _normalization_dims(op: Op, field: Field) -> list[int]:
    # statistics of the image (instance norm)
    return list(range(2, len(field.dims))) if len(op.args) > 5 and op.args[5] is True else []


def _group_norm(op: Op, inputs: list[Field], _fields: Any, _shapes: Any) -> Field:
    field, groups, channels = inputs[0], op.args[6], inputs[0].dim_size(1)
    for dim in range(2, len(field.dims)):
        field = field.contract(dim)
    if groups == 1:
        return field.contract(1)
    if field.tag(1):  # positions are grouped with channels
        raise NotSupported
    return field.gather(1, np.arange(channels).reshape(groups, -1)).gather(1, _repeated(groups, channels))


def _repeated(count: int, size: int) -> np.ndarray:
    """Taps of `size` outputs that read `count` inputs, in blocks of equal size."""
    return np.arange(size)[:, None] * count // size


def _matrix(op: Op, inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> Field:
    """Product x @ w with constant w: the last dimension of x is contracted."""
    x = op.args[1] if op.name == "addmm" else op.args[0]
    if len(inputs) != 1 or not isinstance(x, Value) or x not in fields:
        raise NotSupported
    return fields[x].contract(-1, ((shapes[0][-1], ""),))


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


def _reorder(order: Callable[[Op, int], list[int]]) -> Callable[..., Field]:
    return lambda op, inputs, *_: inputs[0].reordered(order(op, len(inputs[0].dims)))


def _swap(op: Op, count: int) -> list[int]:
    a, b = (op.args[1] % count, op.args[2] % count) if op.name == "transpose" else (0, count - 1)
    order = list(range(count))
    order[a], order[b] = order[b], order[a]
    return order


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


def _constant_indices(tensor: Any, size: int) -> np.ndarray:
    if not isinstance(tensor, torch.Tensor) or tensor.ndim != 1:
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
    dims, arrays = _broadcast(inputs, shape)
    lengths = [max(len(getattr(f.regions[0], name)) for f in inputs) for name in ("rows", "cols")]
    nothing = Region(*(Axis.empty(length) for length in lengths))
    regions: list[Region] = [nothing]
    groups = []
    for field, size in zip(parts, sizes, strict=True):
        numbers = np.zeros((1,) * arrays[0].ndim, int)
        if field is not None:
            numbers = arrays.pop(0) + len(regions)
            regions += [Region(region.rows.repeated(lengths[0]), region.cols.repeated(lengths[1])) for region in field.regions]
        groups.append((numbers, size))
    axis = sum(map(len, dims[:dim]))
    common = np.broadcast_shapes(*((*g.shape[:axis], 1, *g.shape[axis + 1 :]) for g, _ in groups))
    joined = np.concatenate(
        [np.broadcast_to(g, (*common[:axis], size, *common[axis + 1 :])) for g, size in groups], axis=axis
    )
    exact = all(field.exact for field in inputs)
    return replace(inputs[0], regions=tuple(regions), groups=joined, dims=dims, exact=exact).simplified()


def _channel_shuffle(op: Op, inputs: list[Field], _fields: Any, _shapes: Any) -> Field:
    order = np.arange(inputs[0].dim_size(1)).reshape(op.args[1], -1).T.reshape(-1, 1)
    return inputs[0].gather(1, order)


_RULES: dict[str, Callable[..., Field | list[Field]]] = {
    **dict.fromkeys(["convolution", "_convolution"], convolution),
    **dict.fromkeys(["max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool1d", "avg_pool3d"], pool),
    **dict.fromkeys(["_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"], resize),
    **dict.fromkeys(["upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d"], resize),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "max", "var", "std", "linalg_vector_norm"], _reduce),
    **dict.fromkeys(["native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"], _mixing(_normalization_dims)),
    "_native_batch_norm_legit_no_training": _mixing(lambda op, field: []),
    "native_layer_norm": _mixing(lambda op, f: range(len(f.dims) - len(op.args[1]), len(f.dims))),
    "native_group_norm": _group_norm,
    **dict.fromkeys(["_softmax", "_log_softmax"], _mixing(lambda op, f: [op.args[1]])),
    **dict.fromkeys(["addmm", "mm", "matmul"], _matrix),
    **dict.fromkeys(["view", "_unsafe_view", "reshape", "squeeze", "unsqueeze"], _view),
    "permute": _reorder(lambda op, n: [d % n for d in op.args[1]]),
    **dict.fromkeys(["transpose", "t"], _reorder(_swap)),
    "expand": _expand,
    "repeat": _repeat,
    "glu": _glu,
    **dict.fromkeys(["slice", "select", "split", "split_with_sizes", "chunk", "unbind", "roll", "flip"], _index),
    **dict.fromkeys(["constant_pad_nd", "reflection_pad2d", "replication_pad2d", "index", "index_select"], _index),
    "cat": _cat,
    "stack": _stack,
    **dict.fromkeys(["channel_shuffle", "native_channel_shuffle"], _channel_shuffle),
    "pixel_shuffle": pixel_shuffle,
    "pixel_unshuffle": pixel_unshuffle,
}
