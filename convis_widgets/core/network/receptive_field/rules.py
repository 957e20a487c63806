"""Rules of receptive fields: the Fields of an operator's outputs, from those of its inputs.

A rule takes the operator, the Fields of its inputs, all Fields, and the shapes of the outputs. If it raises, or its result
does not fit the shapes, `propagate.receptive_fields` uses an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from ..graph import Op, Value
from .field import Axis, Factor, Field, NotSupported
from .windows import convolution, pool, resize

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
    if rule not in (_cat, _matrix) and (len(inputs) > 1 or op.args[0] not in fields):
        raise NotSupported  # another argument than the first depends on the image
    result = rule(op, inputs, fields, shapes)
    return result if isinstance(result, list) else [result] * len(shapes)


def values_in(tree: Any) -> list[Value]:
    """All Values in the arguments of an operator."""
    if isinstance(tree, Value):
        return [tree]
    if isinstance(tree, dict):
        tree = tuple(tree.values())
    return [v for part in tree for v in values_in(part)] if isinstance(tree, (tuple, list)) else []


def _pointwise(inputs: list[Field], shape: tuple[int, ...]) -> Field:
    """Broadcast from the right, then take the union of the operands' fields, index by index."""
    dims: list[tuple[Factor, ...]] = []
    for back in range(1, len(shape) + 1):
        candidates = [f.dims[-back] for f in inputs if len(f.dims) >= back and f.dim_size(-back) > 1]
        tagged = [d for d in candidates if any(tag for _, tag in d)]
        if any(d != tagged[0] for d in tagged[1:]):
            raise NotSupported
        dims.insert(0, (tagged or candidates or [((shape[-back], ""),)])[0])
    rows, cols = inputs[0].rows, inputs[0].cols
    for other in inputs[1:]:
        rows, cols = rows.union(other.rows), cols.union(other.cols)
    # a unit that depends only on padding along one axis has an empty field, whatever the other axis
    blank = any((axis.high < 0).any() for f in inputs for axis in (f.rows, f.cols))
    return replace(
        inputs[0],
        rows=rows,
        cols=cols,
        dims=tuple(dims),
        exact=all(f.exact for f in inputs) and not (blank and any(not _same_fields(f, inputs[0]) for f in inputs)),
        uniform=all(f.uniform for f in inputs),
    )


def _glu(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """One half of a dimension is multiplied by the sigmoid of the other."""
    dims, dim = list(inputs[0].dims), op.args[1] if len(op.args) > 1 else -1
    dims[dim] = ((shapes[0][dim], ""),)
    return replace(inputs[0], dims=tuple(dims))


def _reduce(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """mean, sum, amax over some dimensions."""
    field, shape = inputs[0], shapes[0]
    position = 2 if op.name == "linalg_vector_norm" else 1
    dims_arg = op.args[position] if len(op.args) > position else None
    if dims_arg is None or dims_arg == []:
        dims_arg = range(len(field.dims))
    if not isinstance(dims_arg, (list, tuple, range)):
        dims_arg = [dims_arg]
    reduced = {d % len(field.dims) for d in dims_arg}
    for dim in reduced:
        for _, tag in field.dims[dim]:
            if tag:
                field = field.with_axis(tag, field.axis(tag).all())
    keep = len(shape) == len(field.dims)
    dims = [((1, ""),) if d in reduced else factors for d, factors in enumerate(field.dims) if keep or d not in reduced]
    return replace(field, dims=tuple(dims))


def _mixing(dims_of: Callable[[Op, Field], list[int]]) -> Callable[..., Field]:
    """Rule of softmax, layer norm and the like: every index of some dimensions depends on all of them; same shape."""

    def rule(op: Op, inputs: list[Field], _fields: Any, _shapes: Any) -> Field:
        field = inputs[0]
        for dim in dims_of(op, field):
            for _, tag in field.dims[dim]:
                if tag:
                    field = field.with_axis(tag, field.axis(tag).all(len(field.axis(tag))))
        return field

    return rule


def _normalization_dims(op: Op, field: Field) -> list[int]:
    # statistics of the image (instance norm)
    return list(range(2, len(field.dims))) if len(op.args) > 5 and op.args[5] is True else []


def _group_dims(op: Op, field: Field) -> list[int]:
    if op.args[6] > 1 and any(tag for _, tag in field.dims[1]):  # positions are grouped with channels
        raise NotSupported
    return list(range(1, len(field.dims)))


def _matrix(op: Op, inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> Field:
    """Product x @ w with constant w: the last dimension of x is contracted."""
    x = op.args[1] if op.name == "addmm" else op.args[0]
    if len(inputs) != 1 or not isinstance(x, Value) or x not in fields:
        raise NotSupported
    field = fields[x]
    for _, tag in field.dims[-1]:
        if tag:
            field = field.with_axis(tag, field.axis(tag).all())
    return replace(field, dims=(*field.dims[:-1], ((shapes[0][-1], ""),)))


def _view(_op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    field = inputs[0]
    remaining = [factor for dim in field.dims for factor in dim if factor[0] != 1]
    dims: list[tuple[Factor, ...]] = []
    for size in shapes[0]:
        factors: list[Factor] = []
        while size > 1:
            part, tag = remaining.pop(0) if remaining else (0, "")
            if part and size % part == 0:
                factors.append((part, tag))
                size //= part
            elif part and not tag and part % size == 0:
                factors.append((size, ""))
                remaining.insert(0, (part // size, ""))
                size = 1
            else:
                raise NotSupported
        dims.append(tuple(factors) or ((1, ""),))
    return replace(field, dims=tuple(dims))


def _reorder(order: Callable[[Op, int], list[int]]) -> Callable[..., Field]:
    def rule(op: Op, inputs: list[Field], _fields: Any, _shapes: Any) -> Field:
        count = len(inputs[0].dims)
        return replace(inputs[0], dims=tuple(inputs[0].dims[d] for d in order(op, count)))

    return rule


def _swap(op: Op, count: int) -> list[int]:
    a, b = (op.args[1] % count, op.args[2] % count) if op.name == "transpose" else (0, count - 1)
    order = list(range(count))
    order[a], order[b] = order[b], order[a]
    return order


def _expand(_op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    dims: list[tuple[Factor, ...]] = [((size, ""),) for size in shapes[0]]
    for back, factors in enumerate(reversed(inputs[0].dims), 1):
        if inputs[0].dim_size(-back) == shapes[0][-back]:
            dims[-back] = factors
    return replace(inputs[0], dims=tuple(dims))


def _index(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> list[Field]:
    """slice, select, split, unbind, roll, flip, pad: the output reads a list of indices of each dimension."""
    results = []
    offset = 0
    for shape in shapes:
        field = inputs[0]
        for dim, taps, keep in _taps(op, inputs[0], shape, offset):
            tag = field.tag(dim)
            if tag == "?":
                raise NotSupported
            if tag:
                field = field.with_axis(tag, _select(field.axis(tag), taps))
            elif len(taps) != field.dim_size(dim):
                exact, uniform = field.exact and field.uniform, field.uniform and "pad" not in op.name
                field = replace(field, exact=exact, uniform=uniform)
            dims = list(field.dims)
            dims[dim : dim + 1] = [((len(taps), tag),)] if keep else []
            field = replace(field, dims=tuple(dims))
            offset += len(taps)
        results.append(field)
    return results


def _select(axis: Axis, taps: np.ndarray) -> Axis:
    step = taps[1] - taps[0] if len(taps) > 1 else 1
    if axis.grid is None or step <= 0 or not (np.diff(taps) == step).all():
        return axis.gather(taps[:, None])
    size, stride, start = axis.grid
    return axis.gather(taps[:, None], (size, stride * step, start + taps[0] * stride))


def _taps(op: Op, field: Field, shape: tuple[int, ...], offset: int) -> list[tuple[int, np.ndarray, bool]]:
    """Dimensions that an operator indexes: (dimension, indices, whether the dimension is kept).

    `offset` is the number of indices in the preceding outputs of the operator.
    """
    sizes = [field.dim_size(dim) for dim in range(len(field.dims))]
    args = [*op.args[1:], *[None] * 4]
    if "pad" in op.name:
        results, pads = [], list(args[0])
        for i in range(len(pads) // 2):
            dim, before, after = len(sizes) - 1 - i, pads[2 * i], pads[2 * i + 1]
            taps = np.arange(-before, sizes[dim] + after)
            if op.name.startswith("reflection"):
                taps = np.abs(taps)
                taps = np.where(taps >= sizes[dim], 2 * (sizes[dim] - 1) - taps, taps)
            elif op.name.startswith("replication"):
                taps = np.clip(taps, 0, sizes[dim] - 1)
            results.append((dim, taps, True))
        return results
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
    dim = (args[0] if op.name == "unbind" else args[1]) or 0
    dim %= len(sizes)
    if op.name == "unbind":
        return [(dim, np.array([offset]), False)]
    return [(dim, np.arange(offset, offset + shape[dim]), True)]


def _cat(op: Op, inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> Field:
    dim = (op.args[1] if len(op.args) > 1 else op.kwargs.get("dim", 0)) % len(shapes[0])
    tags = {field.tag(dim) for field in inputs}
    if tags != {""}:
        raise NotSupported
    resized = [replace(f, dims=(*f.dims[:dim], ((shapes[0][dim], ""),), *f.dims[dim + 1 :])) for f in inputs]
    joined = _pointwise(resized, shapes[0])
    same = len(inputs) == len(op.args[0]) and all(_same_fields(f, joined) for f in inputs)
    return replace(joined, uniform=joined.uniform and same, exact=joined.exact and (same or dim == 1))


def _same_fields(a: Field, b: Field) -> bool:
    return all(
        np.array_equal(x.low, y.low) and np.array_equal(x.high, y.high) for x, y in ((a.rows, b.rows), (a.cols, b.cols))
    )


_RULES: dict[str, Callable[..., Field | list[Field]]] = {
    **dict.fromkeys(["convolution", "_convolution", "mkldnn_convolution"], convolution),
    **dict.fromkeys(["max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool1d", "avg_pool3d"], pool),
    **dict.fromkeys(["_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"], resize),
    **dict.fromkeys(["upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d"], resize),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "max", "var", "std", "linalg_vector_norm"], _reduce),
    **dict.fromkeys(["native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"], _mixing(_normalization_dims)),
    "_native_batch_norm_legit_no_training": _mixing(lambda op, field: []),
    "native_layer_norm": _mixing(lambda op, f: list(range(len(f.dims) - len(op.args[1]), len(f.dims)))),
    "native_group_norm": _mixing(_group_dims),
    **dict.fromkeys(["_softmax", "_log_softmax"], _mixing(lambda op, f: [op.args[1] % len(f.dims)])),
    **dict.fromkeys(["addmm", "mm", "matmul"], _matrix),
    **dict.fromkeys(["view", "_unsafe_view", "reshape", "squeeze", "unsqueeze"], _view),
    "permute": _reorder(lambda op, n: [d % n for d in op.args[1]]),
    **dict.fromkeys(["transpose", "t"], _reorder(_swap)),
    "expand": _expand,
    "glu": _glu,
    **dict.fromkeys(["slice", "select", "split", "split_with_sizes", "chunk", "unbind", "roll", "flip"], _index),
    **dict.fromkeys(["constant_pad_nd", "reflection_pad2d", "replication_pad2d"], _index),
    "cat": _cat,
    **dict.fromkeys(["channel_shuffle", "native_channel_shuffle"], lambda op, inputs, *_: inputs[0]),
}
