"""unit_positions: where in the image the units of a tensor are.

A receptive field says what a unit depends on; after attention that is the whole image. Its position is kept there: that of
the query. It is followed through a recorded forward pass by running the operators that move numbers on coordinates instead;
operators that combine numbers take the mean of their coordinates. So tokens are found in whatever order they are: with class
tokens among them, in windows, on grids of several sizes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from .graph import Graph, Op, Value

_MOVES = {
    "view", "_unsafe_view", "reshape", "_reshape_alias", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand",
    "slice", "select", "cat", "stack", "split", "split_with_sizes", "chunk", "unbind", "flip", "roll", "index",
    "index_select", "unfold", "im2col", "repeat", "pixel_unshuffle", "pixel_shuffle", "unflatten", "flatten",
}  # fmt: skip
_LIKE_FIRST = {
    "_softmax", "_safe_softmax", "_log_softmax", "native_layer_norm", "native_batch_norm", "native_group_norm",
    "cudnn_batch_norm",
    "_native_batch_norm_legit_no_training", "_fused_rms_norm", "rms_norm", "layer_norm", "native_dropout",
    "_native_multi_head_attention", "_transformer_encoder_layer_fwd", "written_through_alias", "slice_scatter",
    "select_scatter", "contiguous", "cumsum",
}  # fmt: skip
_REDUCTIONS = {"mean", "sum", "amax", "amin", "max", "var", "std", "linalg_vector_norm", "norm"}


def unit_positions(graph: Graph) -> dict[Value, tuple[torch.Tensor, torch.Tensor]]:
    """Rows and columns of the units of Values with positions, of their shapes; NaN for units without."""
    height, width = graph.input.shape[2:]
    axes = [torch.arange(1.0, height + 1)[:, None], torch.arange(1.0, width + 1)]  # from 1; zeros are padding
    rows, cols = (_propagate(graph, axis.expand(graph.input.shape)) for axis in axes)
    return {value: (rows[value], cols[value]) for value in rows if value in cols}


def _propagate(graph: Graph, start: torch.Tensor) -> dict[Value, torch.Tensor]:
    known = {graph.input: start}
    with torch.no_grad():
        for op in graph.ops:
            if any(value in known for value in _values(op.args)):
                try:
                    results = _apply(op, known)
                except Exception:  # noqa: BLE001 (positions are lost in what is not covered)
                    continue
                for value, result in zip(op.outputs, results, strict=False):
                    if value is not None and result.shape == value.shape:
                        known[value] = result
    return known


def _values(args: Any) -> list[Value]:
    if isinstance(args, Value):
        return [args]
    return [value for arg in args for value in _values(arg)] if isinstance(args, (tuple, list)) else []


def _apply(op: Op, known: dict[Value, torch.Tensor]) -> list[torch.Tensor]:
    """Coordinates of the outputs of an operator; the first ones, or none."""
    name = op.name.rstrip("_")
    shape = op.outputs[0].shape if op.outputs and op.outputs[0] is not None else ()
    if name in _MOVES:
        return _move(name, op, known)
    args = [known.get(arg) if isinstance(arg, Value) else None for arg in op.args]
    first = args[0]
    if name == "copy":
        return [args[1].expand(shape)] if args[1] is not None else []
    if op.pointwise or name in ("lerp", "where", "addcmul"):
        return [_mean([arg.expand(shape) for arg in args if arg is not None])]
    if name in ("mm", "bmm", "matmul", "linear"):
        return [_product(first, None if name == "linear" else args[1], shape)]
    if name in ("addmm", "baddbmm"):
        return [_product(args[1], args[2], shape)]
    if first is None:
        return []
    if name in _LIKE_FIRST:
        return [first]
    if "scaled_dot_product" in name:
        return [_reduce(first, -1).expand(shape)]
    if name in _REDUCTIONS:
        dims = op.args[1] if len(op.args) > 1 and isinstance(op.args[1], (int, list, tuple)) else range(first.ndim)
        if name in ("norm", "linalg_vector_norm"):
            dims = op.args[2]
        reduced = functools.reduce(_reduce, [dims] if isinstance(dims, int) else list(dims), first)
        return [reduced.reshape(shape)]
    if name == "convolution" and not op.args[6]:
        return [_window_mean(first, op.args[1].shape[2:], *op.args[3:6]).expand(shape)]
    if name in ("max_pool2d_with_indices", "max_pool2d", "avg_pool2d"):
        given = dict(zip(("kernel", "stride", "padding", "dilation"), op.args[1:], strict=False))
        dilation = 1 if name == "avg_pool2d" else given.get("dilation", 1)
        stride = given.get("stride") or given["kernel"]
        return [_window_mean(first, given["kernel"], stride, given.get("padding", 0), dilation).expand(shape)]
    if "adaptive" in name and "pool2d" in name:
        return [torch.nn.functional.adaptive_avg_pool2d(first, (shape[2], shape[3]))]
    if name == "col2im":
        total, count = (torch.ops.aten.col2im(x, *op.args[1:]) for x in (first.nan_to_num(0), (~first.isnan()).to(first)))
        return [total / count]
    if name == "constant_pad_nd":
        return [torch.nn.functional.pad(first, op.args[1], value=math.nan)]
    if name.startswith("upsample"):
        return [torch.nn.functional.interpolate(first, shape[2:], mode="bilinear")]
    return []


def _move(name: str, op: Op, known: dict[Value, torch.Tensor]) -> list[torch.Tensor]:
    def coordinates(part: Value | torch.Tensor) -> torch.Tensor:
        if isinstance(part, torch.Tensor):
            return part.new_full((), math.nan).expand(part.shape) if part.is_floating_point() else part
        return known[part] if part in known else torch.full((), math.nan).expand(part.shape)

    args, kwargs = tree_map_only((Value, torch.Tensor), coordinates, (op.args, op.kwargs))
    if "view" in name or name == "reshape":
        return [_reshape(args[0], op.outputs[0].shape if op.outputs[0] is not None else ())]
    if name == "cat":
        return [_cat(*args, **kwargs)]
    function: Callable[..., Any] = getattr(torch.ops.aten, name)
    result = function(*args, **kwargs)
    results = list(result) if isinstance(result, (tuple, list)) else [result]
    return [torch.where(part == 0, math.nan, part) for part in results] if name == "im2col" else results


def _reshape(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    if x.ndim > 1 and x.stride(-1) == 0 and x.shape[-1] == shape[-1]:  # without a copy for each channel
        return x.narrow(-1, 0, 1).reshape(*shape[:-1], 1).expand(shape)
    return x.reshape(shape)


def _cat(parts: list[torch.Tensor], dim: int = 0) -> torch.Tensor:
    if dim % parts[0].ndim != parts[0].ndim - 1 and all(part.stride(-1) == 0 for part in parts):
        channels = parts[0].shape[-1]
        return torch.cat([part.narrow(-1, 0, 1) for part in parts], dim).expand(*[-1] * (parts[0].ndim - 1), channels)
    return torch.cat(parts, dim)


def _mean(parts: list[torch.Tensor]) -> torch.Tensor:
    """The mean of coordinates of equal shape, where they are known."""
    expanded = [d for d in range(parts[0].ndim) if all(part.stride(d) == 0 for part in parts)]
    compact = [functools.reduce(lambda part, d: part.narrow(d, 0, 1), expanded, part) for part in parts]
    return parts[0] if len(parts) == 1 else torch.stack(compact).nanmean(0).expand(parts[0].shape)


def _product(a: torch.Tensor | None, b: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    """Coordinates of a matrix product: those of the rows of `a`, unless only the columns of `b` differ.

    Sums over tokens, weighted by what depends on the token only, are not at any position.
    """
    if a is not None and b is not None and _spread(a, -1) > 0 and _spread(b, -2) > 0:
        return a.new_full((), math.nan).expand(shape)
    rows = None if a is None else _reduce(a, -1)
    cols = None if b is None else _reduce(b, -2)
    chosen = rows if cols is None or (rows is not None and _spread(rows, -2) > 0) or _spread(cols, -1) <= 0 else cols
    assert chosen is not None
    return chosen.expand(shape)


def _reduce(coordinates: torch.Tensor, dim: int) -> torch.Tensor:
    """The mean along a dimension, which is kept."""
    expanded = coordinates.stride(dim) == 0  # all the same
    return coordinates.narrow(dim, 0, 1) if expanded else coordinates.nanmean(dim, keepdim=True)


def _spread(coordinates: torch.Tensor, dim: int) -> float:
    """The largest difference between coordinates along a dimension, to 0.01."""
    if coordinates.stride(dim) == 0:
        return 0.0
    low, high = coordinates.nan_to_num(math.inf).amin(dim), coordinates.nan_to_num(-math.inf).amax(dim)
    return round(float((high - low).amax()), 2)


def _window_mean(x: torch.Tensor, kernel: Any, stride: Any, padding: Any, dilation: Any) -> torch.Tensor:
    """Mean coordinates of the windows of a convolution, without padding; of one channel."""
    spatial = x.ndim - 2
    kernel = [kernel] * spatial if isinstance(kernel, int) else list(kernel)
    x = _reduce(x, 1)
    ones = x.new_ones(1, 1, *kernel)
    settings = [list(v) if isinstance(v, (tuple, list)) else [v] * spatial for v in (stride, padding, dilation)]

    def total(values: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.convolution(values, ones, None, *settings, False, [0] * spatial, 1)

    return total(x.nan_to_num(0)) / total((~x.isnan()).to(x))


def grid_of(rows: torch.Tensor, cols: torch.Tensor) -> tuple[tuple[int, ...], tuple[int, int], np.ndarray] | None:
    """How the units of an output are arranged on a grid; None if they are not.

    Parameters
    ----------
    rows, cols : tensors
        Coordinates of its units, of the shape of the output without the batch, see `unit_positions`.

    Returns
    -------
    order : tuple of int
        The dimension of the channels, and the others.
    size : (int, int)
        Height and width of the grid.
    index : (height * width,) array
        Which of the units, counted along all dimensions but that of the channels, are on the grid, row by row.
    """
    for channels in reversed(range(rows.ndim)):
        r, c = (_reduce(x, channels).flatten().round(decimals=2).numpy() for x in (rows, cols))
        units = np.flatnonzero(np.isfinite(r) & np.isfinite(c))
        unique_rows, row_of = np.unique(r[units], return_inverse=True)
        unique_cols, col_of = np.unique(c[units], return_inverse=True)
        places = row_of * len(unique_cols) + col_of
        is_grid = np.array_equal(np.sort(places), np.arange(len(unique_rows) * len(unique_cols)))
        # channels may be those of neighboring pixels, but not of neighboring positions
        steps = [np.diff(unique).min() if len(unique) > 1 else 0.0 for unique in (unique_rows, unique_cols)]
        near = _spread(rows, channels) <= steps[0] and _spread(cols, channels) <= steps[1]
        if len(units) > 1 and is_grid and near:
            order = (channels, *(d for d in range(rows.ndim) if d != channels))
            return order, (len(unique_rows), len(unique_cols)), units[np.argsort(places)]
    return None
