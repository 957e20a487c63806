"""Rules of receptive fields for convolution, pooling and upsampling; see `rules`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..graph import Op, Value
from .field import Axis, Field, NotSupported


def _per_axis(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return [int(v) for v in (values * count if len(values) == 1 else values)]


def _windows(field: Field, shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any, dilation: Any) -> Field:
    """A convolution or pooling over the last dimensions."""
    kernel = list(kernel)
    count = len(kernel)
    stride, padding, dilation = (_per_axis(v, count) for v in (stride or kernel, padding, dilation))
    dims = [((size, ""),) for size in shape]
    if any(field.tag(d) for d in range(len(field.dims) - count)):
        raise NotSupported
    for i, dim in enumerate(range(len(shape) - count, len(shape))):
        tag = field.tag(dim)
        if tag == "?":
            raise NotSupported
        if tag:
            axis = field.axis(tag).window(shape[dim], kernel[i], stride[i], padding[i], dilation[i])
            field, dims[dim] = field.with_axis(tag, axis), ((shape[dim], tag),)
        else:
            indices = np.arange(field.dim_size(dim))
            inside = Axis(indices, indices).window(shape[dim], kernel[i], stride[i], padding[i], dilation[i]).high >= 0
            field = replace(field, uniform=field.uniform and bool(inside.all()))
    return replace(field, dims=tuple(dims))


def convolution(op: Op, inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> Field:
    """Rule of convolutions and transposed convolutions with constant weights.

    Parameters
    ----------
    op : Op
    inputs : list of Field
        Field of the first argument, the only one that depends on the image.
    fields : dict of Value to Field
        All Fields so far.
    shapes : list of tuple of int
        Shapes of the outputs.
    """
    _, weight, _, stride, padding, dilation, transposed = op.args[:7]
    if isinstance(weight, Value) and weight in fields:
        raise NotSupported
    kernel = tuple(weight.shape)[2:]
    if not transposed:
        field = _windows(inputs[0], shapes[0], kernel, stride, padding, dilation)
        mixed = op.args[8] == 1 and all(field.tag(d) or size == 1 for d, size in enumerate(shapes[0]) if d != 1)
        return replace(field, uniform=field.uniform or mixed)
    field, count = inputs[0], len(kernel)
    stride, padding, dilation = (_per_axis(v, count) for v in (stride, padding, dilation))
    dims = [((size, ""),) for size in shapes[0]]
    for i, dim in enumerate(range(2, 2 + count)):
        tag = field.tag(dim)
        if tag == "?":
            raise NotSupported
        if tag:  # output o reads input j with kernel index t where j * stride - padding + t * dilation == o
            offsets = np.arange(shapes[0][dim])[:, None] + padding[i] - np.arange(kernel[i])[None, :] * dilation[i]
            taps = np.where(offsets % stride[i] == 0, offsets // stride[i], -1)
            field, dims[dim] = field.with_axis(tag, field.axis(tag).gather(taps)), ((shapes[0][dim], tag),)
        else:
            field = replace(field, uniform=False)  # some fields may be empty
    return replace(field, dims=tuple(dims))


def pool(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """Rule of maximum and average pooling.

    Parameters
    ----------
    op : Op
    inputs : list of Field
        Field of the first argument, the only one that depends on the image.
    _fields : dict of Value to Field
        Not used.
    shapes : list of tuple of int
        Shapes of the outputs.
    """
    args = dict(enumerate(op.args))  # trailing defaults are not recorded
    kernel = _per_axis(args[1], int(op.name.split("pool")[1][0]))
    dilation = args.get(4, 1) if op.name.startswith("max") else 1
    return _windows(inputs[0], shapes[0], kernel, args.get(2) or kernel, args.get(3, 0), dilation)


def resize(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """Rule of adaptive pooling and upsampling: each output index reads a range of input indices.

    Parameters
    ----------
    op : Op
    inputs : list of Field
        Field of the first argument, the only one that depends on the image.
    _fields : dict of Value to Field
        Not used.
    shapes : list of tuple of int
        Shapes of the outputs.
    """
    field, shape = inputs[0], shapes[0]
    dims = [*field.dims[:-2], (), ()]
    for dim in (len(shape) - 2, len(shape) - 1):
        tag = field.tag(dim)
        if tag == "?" or (tag == "" and field.dim_size(dim) != 1):
            raise NotSupported
        dims[dim] = ((shape[dim], tag),)
        if not tag:
            continue
        axis, out = field.axis(tag), shape[dim]
        n, index = len(axis), np.arange(out)
        if "adaptive" in op.name:
            first, last = index * n // out, -(-(index + 1) * n // out) - 1
        else:
            first, last, exact = _upsampling_sources(op, n, out, dim - len(shape))
            field = replace(field, exact=field.exact and exact)
        uniform = "adaptive" in op.name and n % out == 0
        if uniform:
            field = field.with_axis(tag, axis.window(out, n // out, n // out, 0, 1))
        else:
            width = int((last - first).max()) + 1
            taps = first[:, None] + np.arange(width)[None, :]
            field = field.with_axis(tag, axis.gather(np.where(taps <= last[:, None], taps, -1)))
    return replace(field, dims=tuple(dims))


def _upsampling_sources(op: Op, n: int, out: int, dim: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """First and last input index that each output of an upsampling reads, and whether they are the same on all processors.

    Indices are computed in single precision, with or without rounding between product and sum.
    """
    bilinear, index = "bilinear" in op.name, np.arange(out)
    scales = [*op.args[2 + bilinear :], *[None] * 2]
    factor = (scales[0] if isinstance(scales[0], (list, tuple)) else scales[:2])[dim]
    half = 0 if op.name == "upsample_nearest2d" else 0.5
    if bilinear and op.args[2]:  # align_corners
        scale, half = np.float32((n - 1) / max(out - 1, 1)), 0
    else:
        scale = np.float32(1 / factor) if factor else np.float32(n) / np.float32(out)
    shift = half if bilinear else 0
    rounded = np.float32(index + half) * scale - np.float32(shift)
    fused = ((index + half) * np.float64(scale) - shift).astype(np.float32)
    sources = [np.clip(np.floor(s).astype(int), 0, n - 1) for s in (rounded, fused)]
    ends = [np.minimum(first + bilinear, n - 1) for first in sources]
    if n == out and not factor:
        sources, ends = [index], [index]
    elif n == out or (2 * n == out and not bilinear):  # some processors copy or double, whatever the factor
        sources, ends = [*sources, index * n // out], [*ends, index * n // out]
    first, last = np.min(sources, axis=0), np.max(ends, axis=0)
    return first, last, all(np.array_equal(first, s) for s in sources) and all(np.array_equal(last, e) for e in ends)
