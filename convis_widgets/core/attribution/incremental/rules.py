"""Rules: how an operator computes boxes from boxes. They return None for an operator that needs completed maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from .patched_tensor import PatchedTensor, read_map
from .span import AxisRead, Tables

if TYPE_CHECKING:
    from .incremental_forward import IncrementalForward

aten = torch.ops.aten
MAX_BOX_FRACTION = 0.8  # of the map, on average; larger boxes are not worth cutting out


def pointwise(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    """Operands of the same size, and constants that are the same at all positions.

    Parameters
    ----------
    run : IncrementalForward
    func : OpOverload
    args, kwargs
        Its arguments.
    """
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    patched = [x for x in tensors if isinstance(x, PatchedTensor)]
    first = args[0] if isinstance(args[0], PatchedTensor) else patched[0]
    for x in tensors:
        if isinstance(x, PatchedTensor):
            compatible = x.ndim == first.ndim and x.shape[-2:] == first.shape[-2:]
        else:
            compatible = x.numel() == 1 or (2 < x.ndim <= first.ndim and x.shape[-2:] == (1, 1) and len(x) == 1)
        if not compatible:
            return None
    if func._schema.is_mutable and not isinstance(args[0], PatchedTensor):
        return None
    rows, cols = first.rows, first.cols
    for x in patched[1:]:
        rows, cols = rows.union(x.rows), cols.union(x.cols)
    reference = run.reference(func, args, kwargs)
    args, kwargs = tree_map_only(PatchedTensor, lambda x: run.read(x, rows, cols), (args, kwargs))
    box = run.tape.call(func, *args, **kwargs)
    return first.assign(reference, box, rows, cols) if func._schema.is_mutable else PatchedTensor(reference, box, rows, cols)


def _on_box(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    """An operator that treats all positions of its first argument alike; its other results are empty."""
    x, *rest = args
    reference = run.reference(func, args, kwargs)
    result = run.tape.call(func, x.box, *rest, **kwargs)
    if isinstance(result, torch.Tensor):
        return PatchedTensor(reference, result, x.rows, x.cols)
    box, *others = result
    return PatchedTensor(reference[0], box, x.rows, x.cols), *others


def _batch_norm(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    batch_statistics = "no_training" not in func._schema.name and bool(args[5])
    return None if batch_statistics else _on_box(run, func, args, kwargs)


def _windows(
    run: IncrementalForward, func: Any, args: Any, kwargs: Any, geometry: Any, outside: float, apply: Callable[..., Any]
) -> Any:
    """An operator on windows of its first argument, such as a convolution.

    `geometry` is (kernel size, stride, padding, dilation), `outside` the value of the padding; `apply` computes the operator
    without padding for a window, given kernel size, stride and dilation.
    """
    x = args[0]
    if not isinstance(x, PatchedTensor) or x.ndim != 4:
        return None
    reference = run.reference(func, args, kwargs)
    reference = reference if isinstance(reference, torch.Tensor) else reference[0]
    height, width = reference.shape[-2:]
    kernel, stride, padding, dilation = (_to_pair(v) for v in geometry)
    axes = list(zip(kernel, stride, padding, dilation, strict=True))
    rows, cols = x.rows.window(*axes[0], height), x.cols.window(*axes[1], width)
    if rows.sizes.mean() * cols.sizes.mean() > MAX_BOX_FRACTION * height * width:
        return None
    if all(axis == (1, 1, 0, 1) for axis in axes):
        window = x.box
    else:
        reads = [
            AxisRead(target, source, stride=s, padding=p, reach=(k - 1) * d + 1)
            for target, source, (k, s, p, d) in zip((rows, cols), (x.rows, x.cols), axes, strict=True)
        ]
        padded = any(read.exceeds_map for read in reads)
        window = run.read_windows(x, reads[0], reads[1], outside if padded else None)
    return PatchedTensor(reference, apply(window, kernel, stride, dilation), rows, cols)


def _to_pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _convolution(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    _, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed or isinstance(weight, PatchedTensor) or weight.ndim != 4:
        return None
    geometry = (tuple(weight.shape[2:]), stride, padding, dilation)
    weight = run.channels_last(weight)

    def apply(window: torch.Tensor, _kernel: Any, stride: Any, dilation: Any) -> torch.Tensor:
        return run.tape.call(func, window, weight, bias, stride, (0, 0), dilation, False, (0, 0), groups)

    return _windows(run, func, args, kwargs, geometry, 0.0, apply)


def _max_pool(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    _, kernel, stride, padding, dilation = (*args, None, None, None)[:5]  # the last three are optional
    geometry = (kernel, stride or kernel, padding or 0, dilation or 1)

    def apply(window: torch.Tensor, kernel: Any, stride: Any, dilation: Any) -> torch.Tensor:
        return run.tape.call(func, window, kernel, stride, (0, 0), dilation)[0]

    result = _windows(run, func, args, kwargs, geometry, -math.inf, apply)
    return None if result is None else (result, None)


def _avg_pool(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    names = ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    options = dict(zip(names, args[1:], strict=False))
    padding = _to_pair(options.get("padding", 0))
    excludes_padding = any(padding) and not options.get("count_include_pad", True)
    if options.get("ceil_mode") or options.get("divisor_override") or excludes_padding:
        return None
    geometry = (options["kernel"], options.get("stride") or options["kernel"], padding, 1)

    def apply(window: torch.Tensor, kernel: Any, stride: Any, _dilation: Any) -> torch.Tensor:
        return run.tape.call(func, window, kernel, stride)

    return _windows(run, func, args, kwargs, geometry, 0.0, apply)


def _adaptive_pool(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    return _on_box(run, aten.clone.default, args[:1], {}) if tuple(args[0].shape[-2:]) == _to_pair(args[1]) else None


def _cat(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    tensors, dim = args[0], args[1] if len(args) > 1 else 0
    if dim not in (1, -3) or not all(isinstance(x, PatchedTensor) and x.ndim == 4 for x in tensors):
        return None
    rows, cols = tensors[0].rows, tensors[0].cols
    for x in tensors[1:]:
        rows, cols = rows.union(x.rows), cols.union(x.cols)
    reference = run.reference(func, args, kwargs)
    return PatchedTensor(reference, run.tape.call(func, [run.read(x, rows, cols) for x in tensors], 1), rows, cols)


def _slice(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    """A slice of the channels."""
    if args[0].ndim != 4 or args[1:2] != (1,):
        return None
    channels = _on_box(run, func, args, kwargs)
    channels.shared = args[0].shared = True
    return channels


def _mean(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    """The mean over all positions: that of the reference plus the mean difference from it."""
    x, dims = args[:2]
    if (
        not isinstance(dims, (list, tuple))
        or x.ndim != 4
        or {d % x.ndim for d in dims} != {x.ndim - 2, x.ndim - 1}
        or kwargs
    ):
        return None
    lines, tables = run.reference_reads(x.reference, x.rows, x.cols)
    reference = run.export(run.reference(func, args, kwargs))
    return run.tape.call(_changed_mean, reference, x.box, lines, tables, math.prod(x.shape[-2:]))


def _changed_mean(
    reference: torch.Tensor, box: torch.Tensor, lines: torch.Tensor, tables: Tables[torch.Tensor], area: int
) -> torch.Tensor:
    change = box - read_map(lines, tables, box.shape[1:-2])
    return reference + (change.sum((2, 3)) / area).view(len(box), *reference.shape[1:])


RULES: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten.avg_pool2d.default: _avg_pool,
    aten._adaptive_avg_pool2d.default: _adaptive_pool,
    aten.mean.dim: _mean,
    aten.cat.default: _cat,
    aten.slice.Tensor: _slice,
    aten.native_batch_norm.default: _batch_norm,
    aten.cudnn_batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.clone.default: _on_box,
    aten.detach.default: lambda *_: None,  # a view
    aten.alias.default: lambda *_: None,
}
