"""Rules of receptive fields for convolution, pooling and upsampling; see `rules`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..graph import Op, Value
from .axis import Region
from .field import Field, NotSupported, Rule


def _per_axis(value: Any, count: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value]
    return [int(v) for v in (values * count if len(values) == 1 else values)]


def _windows(field: Field, shape: tuple[int, ...], kernel: Any, stride: Any, padding: Any, dilation: Any) -> Field:
    """A convolution or pooling over the last dimensions."""
    kernel = list(kernel)
    count = len(kernel)
    windows = zip(kernel, *(_per_axis(value, count) for value in (stride or kernel, padding, dilation)), strict=True)
    if any(field.tag(d) for d in range(len(field.dims) - count)):
        raise NotSupported
    for dim, window in enumerate(windows, len(shape) - count):
        field = field.window(dim, shape[dim], *window)
    return field


def mix_channels(field: Field, count: int, groups: int) -> Field:
    """The Field of output channels that read all input channels of their group.

    Parameters
    ----------
    field : Field
        The channels are its second dimension.
    count : int
        Number of output channels.
    groups : int
        Number of groups, as in `torch.nn.Conv2d`.
    """
    if field.tag(1):  # positions are grouped with channels
        raise NotSupported
    if groups == 1:
        return field.contract(1, ((count, ""),))
    blocks = field.gather(1, np.arange(field.dim_size(1)).reshape(groups, -1))
    return blocks.gather(1, np.arange(count)[:, None] * groups // count)


def _convolution(op: Op, inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> Field:
    """Rule of convolutions and transposed convolutions with constant weights."""
    _, weight, _, stride, padding, dilation, transposed = op.args[:7]
    if isinstance(weight, Value) and weight in fields:
        raise NotSupported
    kernel = tuple(weight.shape)[2:]
    field = mix_channels(inputs[0], shapes[0][1], op.args[8])
    if not transposed:
        return _windows(field, shapes[0], kernel, stride, padding, dilation)
    count = len(kernel)
    stride, padding, dilation = (_per_axis(v, count) for v in (stride, padding, dilation))
    for i, dim in enumerate(range(2, 2 + count)):
        # output o reads input j with kernel index t where j * stride - padding + t * dilation == o
        offsets = np.arange(shapes[0][dim])[:, None] + padding[i] - np.arange(kernel[i])[None, :] * dilation[i]
        field = field.gather(dim, np.where(offsets % stride[i] == 0, offsets // stride[i], -1))
    return field


def _pool(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """Rule of maximum and average pooling."""
    args = dict(enumerate(op.args))  # trailing defaults are not recorded
    kernel = _per_axis(args[1], int(op.name.split("pool")[1][0]))
    dilation = args.get(4, 1) if op.name.startswith("max") else 1
    return _windows(inputs[0], shapes[0], kernel, args.get(2) or kernel, args.get(3, 0), dilation)


def _resize(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """Rule of adaptive pooling and upsampling: each output index reads a range of input indices."""
    field, shape = inputs[0], shapes[0]
    for dim in (len(shape) - 2, len(shape) - 1):
        tag, n, out = field.tag(dim), field.dim_size(dim), shape[dim]
        if n == 1 and not tag:
            field = field.with_dim(dim, ((out, ""),))
            continue
        if "adaptive" in op.name and n % out == 0:
            field = field.window(dim, out, n // out, n // out, 0, 1)
            continue
        if "adaptive" in op.name:
            first, last = np.arange(out) * n // out, -(-np.arange(1, out + 1) * n // out) - 1
        else:
            first, last, exact = _upsampling_sources(op, n, out, dim - len(shape))
            field = replace(field, exact=field.exact and exact)
        taps = first[:, None] + np.arange(int((last - first).max()) + 1)[None, :]
        field = field.gather(dim, np.where(taps <= last[:, None], taps, -1))
    return field


def _pixel_shuffle(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """Rule of `torch.nn.PixelShuffle`."""
    *_, channels, height, width = shapes[0]
    field = inputs[0].flat(-3)
    if field.tag(-3):
        raise NotSupported
    blocks = np.arange(field.dim_size(-3)).reshape(channels, -1)
    groups = np.moveaxis(field.groups, field.group_axes(-3).start, -1)
    same = groups.shape[-1] == 1 or bool((groups[..., blocks] == groups[..., blocks[:, :1]]).all())
    field = field.gather(-3, blocks)
    for dim, size in ((-2, height), (-1, width)):
        field = field.gather(dim, np.arange(size)[:, None] // op.args[1])
    return replace(field, exact=field.exact and same)


def _pixel_unshuffle(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """Rule of `torch.nn.PixelUnshuffle`."""
    factor, (*_, height, width) = op.args[1], shapes[0]
    field = inputs[0].flat(-3).flat(-2).flat(-1)
    channels, dim = field.dim_size(-3), len(field.dims) - 3
    if (field.tag(-3), field.tag(-2), field.tag(-1)) != ("", "r", "c"):
        raise NotSupported
    starts = [(i, j) for i in range(factor) for j in range(factor)]
    rows, cols = np.arange(height) * factor, np.arange(width) * factor
    regions = [Region(r.rows.select(rows + i), r.cols.select(cols + j)) for r in field.regions for i, j in starts]
    axis = field.group_axes(dim).start
    groups = np.moveaxis(field.groups, axis, -1)
    groups = np.broadcast_to(groups, (*groups.shape[:-1], channels))
    numbers = (groups[..., None] * len(starts) + np.arange(len(starts))).reshape(*groups.shape[:-1], -1)
    field = field.with_dim(dim, ((channels * len(starts), ""),), np.moveaxis(numbers, -1, axis))
    for last, size, tag in ((-2, height, "r"), (-1, width, "c")):
        field = field.with_dim(len(field.dims) + last, ((size, tag),))
    return replace(field, regions=tuple(regions)).simplified()


def _upsampling_sources(op: Op, n: int, out: int, dim: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """First and last input index that each output of an upsampling reads, and whether they are the same on all processors.

    An index with a weight of 0 is not read. Positions are computed in single precision, with or without rounding between
    product and sum.
    """
    nearest, index = "nearest" in op.name, np.arange(out)
    scales = [*op.args[2 if nearest else 3 :], *[None] * 2]
    factor = (scales[0] if isinstance(scales[0], (list, tuple)) else scales[:2])[dim]
    half = 0 if op.name == "upsample_nearest2d" else 0.5
    if not nearest and op.args[2]:  # align_corners
        scale, half = np.float32((n - 1) / max(out - 1, 1)), 0
    else:
        scale = np.float32(1 / factor) if factor else np.float32(n) / np.float32(out)
    shift = 0 if nearest else half
    rounded = np.float32(index + half) * scale - np.float32(shift)
    fused = ((index + half) * np.float64(scale) - shift).astype(np.float32)
    near = np.where(np.abs(rounded - np.round(rounded)) < 1e-3, np.round(rounded), rounded)
    cubic = "bicubic" in op.name
    before, after = (1, 2) if cubic else (0, 1)
    sources, ends = [], []
    # cubic weights that should be small may be 0
    for position in (rounded, fused, near) if cubic else (np.clip(rounded, 0, n - 1), np.clip(fused, 0, n - 1)):
        start = np.floor(position)
        alone = nearest | (start == position)
        sources.append(np.clip(np.where(alone, start, start - before), 0, n - 1).astype(int))
        ends.append(np.clip(np.where(alone, start, start + after), 0, n - 1).astype(int))
    if n == out and not factor:
        sources, ends = [index], [index]
    elif n == out or (2 * n == out and nearest):  # some processors copy or double, whatever the factor
        sources, ends = [*sources, index * n // out], [*ends, index * n // out]
    first, last = np.min(sources, axis=0), np.max(ends, axis=0)
    return first, last, all(np.array_equal(first, s) for s in sources) and all(np.array_equal(last, e) for e in ends)


RULES: dict[str, Rule] = {
    **dict.fromkeys(["convolution", "_convolution"], _convolution),
    **dict.fromkeys(["max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool1d", "avg_pool3d"], _pool),
    **dict.fromkeys(["_adaptive_avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d"], _resize),
    **dict.fromkeys(["upsample_nearest2d", "_upsample_nearest_exact2d"], _resize),
    **dict.fromkeys(["upsample_bilinear2d", "upsample_bicubic2d"], _resize),
    "pixel_shuffle": _pixel_shuffle,
    "pixel_unshuffle": _pixel_unshuffle,
}
