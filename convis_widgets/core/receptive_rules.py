"""The rules of receptive fields: how each operator hands on what its inputs see.

A rule takes the operator, the fields of its inputs, all fields, and the shapes of its outputs. What it returns is
checked against the shapes in `receptive`; where it does not fit, and where a rule raises, an upper bound is taken.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from .field import Axis, Factor, Field
from .graph import Op, Value

# What these make of a tensor is told by its shape alone.
SHAPE_ONLY = {
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_empty", "new_zeros", "new_ones",
    "new_full", "new_empty_strided",
}  # fmt: skip


class _NotFollowed(Exception):
    """The field cannot be followed exactly through this operator."""


def follow(op: Op, inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> list[Field]:
    """The fields of an operator's outputs; any exception says that they cannot be followed."""
    if op.pointwise:
        return [_pointwise(inputs, shapes[0])] * len(shapes)
    rule = _RULES[op.name]
    if rule not in (_cat, _matrix) and (len(inputs) > 1 or op.args[0] not in fields):
        raise _NotFollowed  # not only what the rule is about depends on the picture
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
    """Broadcast from the right, then index by index what any operand sees."""
    dims: list[tuple[Factor, ...]] = []
    for back in range(1, len(shape) + 1):
        found = [f.dims[-back] for f in inputs if len(f.dims) >= back and math.prod(s for s, _ in f.dims[-back]) > 1]
        tagged = [d for d in found if any(tag for _, tag in d)]
        if any(d != tagged[0] for d in tagged[1:]):
            raise _NotFollowed
        dims.insert(0, (tagged or found or [((shape[-back], ""),)])[0])
    rows, cols = inputs[0].rows, inputs[0].cols
    for other in inputs[1:]:
        rows, cols = rows.union(other.rows), cols.union(other.cols)
    # a unit that sees nothing but padding along one axis sees nothing, whatever it has along the other
    blank = any((axis.high < 0).any() for f in inputs for axis in (f.rows, f.cols))
    return replace(
        inputs[0],
        rows=rows,
        cols=cols,
        dims=tuple(dims),
        exact=all(f.exact for f in inputs) and not (blank and any(not _same(f, inputs[0]) for f in inputs)),
        even=all(f.even for f in inputs),
    )


def _spatial(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return [int(v) for v in (values * count if len(values) == 1 else values)]


def _windows(field: Field, shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any, dilation: Any) -> Field:
    """A convolution or pooling over the last dimensions."""
    kernel = list(kernel)
    count = len(kernel)
    stride, padding, dilation = (_spatial(v, count) for v in (stride or kernel, padding, dilation))
    dims = [((size, ""),) for size in shape]
    if any(field.tag(d) for d in range(len(field.dims) - count)):
        raise _NotFollowed
    for i, dim in enumerate(range(len(shape) - count, len(shape))):
        tag = field.tag(dim)
        if tag == "?":
            raise _NotFollowed
        if tag:
            axis = field.axis(tag).window(shape[dim], kernel[i], stride[i], padding[i], dilation[i])
            field, dims[dim] = field.with_axis(tag, axis), ((shape[dim], tag),)
        else:
            at = np.arange(math.prod(s for s, _ in field.dims[dim]))
            inside = Axis(at, at).window(shape[dim], kernel[i], stride[i], padding[i], dilation[i]).high >= 0
            field = replace(field, even=field.even and bool(inside.all()))
    return replace(field, dims=tuple(dims))


def _convolution(op: Op, inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> Field:
    _, weight, _, stride, padding, dilation, transposed = op.args[:7]
    if isinstance(weight, Value) and weight in fields:
        raise _NotFollowed
    kernel = tuple(weight.shape)[2:]
    if not transposed:
        field = _windows(inputs[0], shapes[0], kernel, stride, padding, dilation)
        mixed = op.args[8] == 1 and all(field.tag(d) or size == 1 for d, size in enumerate(shapes[0]) if d != 1)
        return replace(field, even=field.even or mixed)
    field, count = inputs[0], len(kernel)
    stride, padding, dilation = (_spatial(v, count) for v in (stride, padding, dilation))
    dims = [((size, ""),) for size in shapes[0]]
    for i, dim in enumerate(range(2, 2 + count)):
        tag = field.tag(dim)
        if tag == "?":
            raise _NotFollowed
        if tag:  # output o receives from input j by tap t where j * stride - padding + t * dilation == o
            reached = np.arange(shapes[0][dim])[:, None] + padding[i] - np.arange(kernel[i])[None, :] * dilation[i]
            taps = np.where(reached % stride[i] == 0, reached // stride[i], -1)
            field, dims[dim] = field.with_axis(tag, field.axis(tag).gather(taps)), ((shapes[0][dim], tag),)
        else:
            field = replace(field, even=False)  # some may see nothing
    return replace(field, dims=tuple(dims))


def _pool(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    given = dict(enumerate(op.args))  # trailing defaults are not recorded
    kernel = _spatial(given[1], int(op.name.split("pool")[1][0]))
    dilation = given.get(4, 1) if op.name.startswith("max") else 1
    return _windows(inputs[0], shapes[0], kernel, given.get(2) or kernel, given.get(3, 0), dilation)


def _resize(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """Adaptive pooling and upsampling: a list of source indices for each output index."""
    field, shape = inputs[0], shapes[0]
    dims = [*field.dims[:-2], (), ()]
    for dim in (len(shape) - 2, len(shape) - 1):
        tag = field.tag(dim)
        if tag == "?" or (tag == "" and math.prod(s for s, _ in field.dims[dim]) != 1):
            raise _NotFollowed
        dims[dim] = ((shape[dim], tag),)
        if not tag:
            continue
        axis, out = field.axis(tag), shape[dim]
        n, at = len(axis), np.arange(out)
        if "adaptive" in op.name:
            first, last = at * n // out, -(-(at + 1) * n // out) - 1
        else:
            first, last, certain = _sources(op, n, out, dim - len(shape))
            field = replace(field, exact=field.exact and certain)
        even = "adaptive" in op.name and n % out == 0
        if even:
            field = field.with_axis(tag, axis.window(out, n // out, n // out, 0, 1))
        else:
            width = int((last - first).max()) + 1
            taps = first[:, None] + np.arange(width)[None, :]
            field = field.with_axis(tag, axis.gather(np.where(taps <= last[:, None], taps, -1)))
    return replace(field, dims=tuple(dims))


def _sources(op: Op, n: int, out: int, dim: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """First and last index that each output of an upsampling reads, and whether that holds on every kind of processor.

    Indices are computed in single precision, with or without rounding between product and sum.
    """
    bilinear, at = "bilinear" in op.name, np.arange(out)
    scales = [*op.args[2 + bilinear :], *[None] * 2]
    given = (scales[0] if isinstance(scales[0], (list, tuple)) else scales[:2])[dim]
    half = 0 if op.name == "upsample_nearest2d" else 0.5
    if bilinear and op.args[2]:  # align_corners
        scale, half = np.float32((n - 1) / max(out - 1, 1)), 0
    else:
        scale = np.float32(1 / given) if given else np.float32(n) / np.float32(out)
    back = half if bilinear else 0
    rounded = np.float32(at + half) * scale - np.float32(back)
    fused = ((at + half) * np.float64(scale) - back).astype(np.float32)
    sources = [np.clip(np.floor(s).astype(int), 0, n - 1) for s in (rounded, fused)]
    ends = [np.minimum(first + bilinear, n - 1) for first in sources]
    if n == out and not given:
        sources, ends = [at], [at]
    elif n == out or (2 * n == out and not bilinear):  # then some processors copy or double, whatever factor was given
        sources, ends = [*sources, at * n // out], [*ends, at * n // out]
    first, last = np.min(sources, axis=0), np.max(ends, axis=0)
    return first, last, all(np.array_equal(first, s) for s in sources) and all(np.array_equal(last, e) for e in ends)


def _glu(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """One half of some dimension gates the other."""
    dims, dim = list(inputs[0].dims), op.args[1] if len(op.args) > 1 else -1
    dims[dim] = ((shapes[0][dim], ""),)
    return replace(inputs[0], dims=tuple(dims))


def _reduce(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """mean, sum, amax over some dimensions."""
    field, shape = inputs[0], shapes[0]
    at = 2 if op.name == "linalg_vector_norm" else 1
    over = op.args[at] if len(op.args) > at else None
    if over is None or over == []:
        over = range(len(field.dims))
    if not isinstance(over, (list, tuple, range)):
        over = [over]
    gone = {d % len(field.dims) for d in over}
    for dim in gone:
        for _, tag in field.dims[dim]:
            if tag:
                field = field.with_axis(tag, field.axis(tag).all())
    keep = len(shape) == len(field.dims)
    dims = [((1, ""),) if d in gone else factors for d, factors in enumerate(field.dims) if keep or d not in gone]
    return replace(field, dims=tuple(dims))


def _mixing(dims_of: Callable[[Op, Field], list[int]]) -> Callable[..., Field]:
    """Softmax, layer norm and the like: every index of some dimensions sees all of them; the shape stays."""

    def rule(op: Op, inputs: list[Field], _fields: Any, _shapes: Any) -> Field:
        field = inputs[0]
        for dim in dims_of(op, field):
            for _, tag in field.dims[dim]:
                if tag:
                    field = field.with_axis(tag, field.axis(tag).all(len(field.axis(tag))))
        return field

    return rule


def _normalization_dims(op: Op, field: Field) -> list[int]:
    # statistics of this picture (instance norm)
    return list(range(2, len(field.dims))) if len(op.args) > 5 and op.args[5] is True else []


def _group_dims(op: Op, field: Field) -> list[int]:
    if op.args[6] > 1 and any(tag for _, tag in field.dims[1]):  # places stand where channels are grouped
        raise _NotFollowed
    return list(range(1, len(field.dims)))


def _matrix(op: Op, inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> Field:
    """X @ w with constant w: the last dimension of x is contracted."""
    x = op.args[1] if op.name == "addmm" else op.args[0]
    if len(inputs) != 1 or not isinstance(x, Value) or x not in fields:
        raise _NotFollowed
    field = fields[x]
    for _, tag in field.dims[-1]:
        if tag:
            field = field.with_axis(tag, field.axis(tag).all())
    return replace(field, dims=(*field.dims[:-1], ((shapes[0][-1], ""),)))


def _view(_op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    field = inputs[0]
    left = [factor for dim in field.dims for factor in dim if factor[0] != 1]
    dims: list[tuple[Factor, ...]] = []
    for size in shapes[0]:
        got: list[Factor] = []
        need = size
        while need > 1:
            part, tag = left.pop(0) if left else (0, "")
            if part and need % part == 0:
                got.append((part, tag))
                need //= part
            elif part and not tag and part % need == 0:
                got.append((need, ""))
                left.insert(0, (part // need, ""))
                need = 1
            else:
                raise _NotFollowed
        dims.append(tuple(got) or ((1, ""),))
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
    dims = [((size, ""),) for size in shapes[0]]
    for back, factors in enumerate(reversed(inputs[0].dims), 1):
        if math.prod(s for s, _ in factors) == shapes[0][-back]:
            dims[-back] = factors
    return replace(inputs[0], dims=tuple(dims))


def _index(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> list[Field]:
    """slice, select, split, unbind, roll, flip, pad: the output reads listed indices of one dimension."""
    field = inputs[0]
    results = []
    offset = 0
    for shape in shapes:
        picked = field
        for dim, taps, keep in _picks(op, field, shape, offset):
            tag = picked.tag(dim)
            if tag == "?":
                raise _NotFollowed
            if not tag and len(taps) != math.prod(s for s, _ in picked.dims[dim]):
                picked = replace(picked, exact=picked.exact and picked.even, even=picked.even and "pad" not in op.name)
            if tag:
                axis = picked.axis(tag)
                step = taps[1] - taps[0] if len(taps) > 1 else 1
                regular = axis.grid and step > 0 and (np.diff(taps) == step).all()
                grid = (axis.grid[0], axis.grid[1] * step, axis.grid[2] + taps[0] * axis.grid[1]) if regular else None
                picked = picked.with_axis(tag, axis.gather(taps[:, None], grid))
            dims = list(picked.dims)
            dims[dim : dim + 1] = [((len(taps), tag),)] if keep else []
            picked = replace(picked, dims=tuple(dims))
            offset += len(taps)
        results.append(picked)
    return results


def _picks(op: Op, field: Field, shape: tuple[int, ...], offset: int) -> list[tuple[int, np.ndarray, bool]]:
    sizes = [math.prod(s for s, _ in dim) for dim in field.dims]
    args = [*op.args[1:], *[None] * 4]
    if "pad" in op.name:
        picks, pads = [], list(args[0])
        for i in range(len(pads) // 2):
            dim, before, after = len(sizes) - 1 - i, pads[2 * i], pads[2 * i + 1]
            taps = np.arange(-before, sizes[dim] + after)
            if op.name.startswith("reflection"):
                taps = np.abs(taps)
                taps = np.where(taps >= sizes[dim], 2 * (sizes[dim] - 1) - taps, taps)
            elif op.name.startswith("replication"):
                taps = np.clip(taps, 0, sizes[dim] - 1)
            picks.append((dim, taps, True))
        return picks
    if op.name in ("roll", "flip"):
        dims = args[1] if op.name == "roll" else args[0]
        if not dims:
            raise _NotFollowed
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
        raise _NotFollowed
    same = [replace(f, dims=(*f.dims[:dim], ((shapes[0][dim], ""),), *f.dims[dim + 1 :])) for f in inputs]
    joined = _pointwise(same, shapes[0])
    alike = len(inputs) == len(op.args[0]) and all(_same(f, joined) for f in inputs)
    return replace(joined, even=joined.even and alike, exact=joined.exact and (alike or dim == 1))


def _same(a: Field, b: Field) -> bool:
    return all(
        np.array_equal(x.low, y.low) and np.array_equal(x.high, y.high) for x, y in ((a.rows, b.rows), (a.cols, b.cols))
    )


_RULES: dict[str, Callable[..., Field | list[Field]]] = {
    **dict.fromkeys(["convolution", "_convolution", "mkldnn_convolution"], _convolution),
    **dict.fromkeys(["max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool1d", "avg_pool3d"], _pool),
    **dict.fromkeys(["_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"], _resize),
    **dict.fromkeys(["upsample_nearest2d", "_upsample_nearest_exact2d", "upsample_bilinear2d"], _resize),
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
