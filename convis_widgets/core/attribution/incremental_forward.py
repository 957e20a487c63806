"""Forward passes of one image with a small patch replaced, computing only what depends on the patch.

The activations for the unchanged image, the references, are computed once. For the other images of a batch, the output of
each operator is stored as its reference and a box: the part that may differ from it. An operator on neighborhoods reads a
slightly larger box, cut from the reference with the changed box inserted, and returns a box again. So the result equals
that of a full forward pass, up to rounding. Where the box covers most of the map, and for operators without a rule here,
the map is completed and computed as usual: every network works, and the overhead is small where nothing can be saved.

The idea is that of S. Nakandala, A. Kumar, Y. Papakonstantinou, "Incremental and approximate inference for faster
occlusion-based deep CNN explanations", SIGMOD 2019, who wrote it for three networks. Here the network's own code runs, on a
subclass of torch.Tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..network.graph import is_pointwise
from .patched_tensor import PatchedTensor, Span, channels_to_rows, flat_index

aten = torch.ops.aten
MAX_BOX_FRACTION = 0.8  # of the map; a larger box is not worth cutting out


class IncrementalForward(TorchDispatchMode):
    """Runs a network on one image with many different patches.

    Parameters
    ----------
    forward : callable
        Takes a batch (N, C, H, W), returns a tensor or a tuple of tensors.
    image : (1, C, H, W) tensor
        The unchanged image.

    Attributes
    ----------
    work, largest : int
        For the last batch, per image: multiply-adds, and the number of values in the largest tensor.

    Examples
    --------
    >>> passes = IncrementalForward(torch.nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 16, 16))
    >>> passes.run(torch.ones(2, 1, 4, 4), np.array([0, 6]), np.array([3, 6])).shape
    torch.Size([2, 1, 14, 14])
    """

    def __init__(self, forward: Callable[[torch.Tensor], Any], image: torch.Tensor) -> None:
        super().__init__()
        self.forward = forward
        self.image = image.contiguous(memory_format=torch.channels_last)
        self.work = self.largest = 0
        self._references: dict[int, Any] = {}
        self._op_index = self._batch_size = 0

    def run(self, patches: torch.Tensor, rows: np.ndarray, cols: np.ndarray) -> Any:
        """The output of `forward` for the image with patches inserted.

        Parameters
        ----------
        patches : (N, C, h, w) tensor
        rows, cols : (N,) arrays of int
            Top and left edges of the patches.
        """
        if len(patches) == 1:  # a batch of two tells tensors with a batch dimension from others
            result = self.run(patches.repeat(2, 1, 1, 1), np.repeat(rows, 2), np.repeat(cols, 2))
            return tree_map_only(torch.Tensor, lambda x: x[:1], result)
        top, left = torch.from_numpy(np.asarray(rows)), torch.from_numpy(np.asarray(cols))
        row_span = Span(top, top + patches.shape[2] - 1, self.image.shape[2])
        col_span = Span(left, left + patches.shape[3] - 1, self.image.shape[3])
        box = patches.contiguous(memory_format=torch.channels_last)
        self._op_index = self.work = self.largest = 0
        self._batch_size = len(patches)
        with torch.no_grad(), self:
            result = self.forward(PatchedTensor(self.image, box, row_span, col_span))
        self.work, self.largest = self.work // len(patches), self.largest // len(patches)
        return tree_map_only(PatchedTensor, PatchedTensor.complete, result)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._op_index += 1
        result = None
        patched = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, PatchedTensor)]
        if func._schema.is_mutable and patched and patched[0] is args[0] and args[0].shared:
            raise RuntimeError(f"{func} writes into a view of a PatchedTensor")
        # a completed tensor stays complete: there may be views of it that were written into
        if patched and all(x.completed is None for x in patched):
            rule = _RULES.get(func, _pointwise if is_pointwise(func) else None)
            result = rule(self, func, args, kwargs) if rule is not None else None
        if result is None:
            result = self._run_completed(func, args, kwargs)
        self._count(func, args, result[0] if isinstance(result, (tuple, list)) else result)
        return result

    def _count(self, func: Any, args: Any, result: Any) -> None:
        """Add the multiply-adds of an operator to `work`, and update `largest`."""
        computed = result.box if isinstance(result, PatchedTensor) else result
        if isinstance(computed, torch.Tensor):
            if computed.shape[:1] == (self._batch_size,):  # not a transposed weight
                self.largest = max(self.largest, computed.numel())
            if func in (aten.convolution.default, aten.addmm.default, aten.mm.default, aten.bmm.default):
                weight = args[1] if func is aten.convolution.default else args[-1]
                self.work += computed.numel() * (weight[0].numel() if weight.ndim > 2 else len(weight))

    def _run_completed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operator on completed maps."""
        complete_args, complete_kwargs = tree_map_only(PatchedTensor, PatchedTensor.complete, (args, kwargs))
        if func in (aten.view.default, aten._unsafe_view.default):  # the memory may not be in order
            func = aten.reshape.default
        result = func(*complete_args, **complete_kwargs)
        if func._schema.is_mutable and isinstance(args[0], PatchedTensor):
            return args[0]  # its completed tensor was written into
        return result

    def _reference(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operator for the unchanged image; computed once."""
        if self._op_index not in self._references:
            args, kwargs = tree_map_only(PatchedTensor, lambda x: x.reference, (args, kwargs))
            if func._schema.is_mutable:
                args = (args[0].clone(), *args[1:])
            self._references[self._op_index] = func(*args, **kwargs)
        return self._references[self._op_index]


# -- rules: they return None for an operator that needs completed maps ----------------------------------------------------


def _pointwise(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    """Operands of the same size, and constants that are the same at all positions."""
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
    reference = run._reference(func, args, kwargs)
    args, kwargs = tree_map_only(
        PatchedTensor, lambda x: x.read(rows.start, rows.size, cols.start, cols.size), (args, kwargs)
    )
    box = func(*args, **kwargs)
    return first.assign(reference, box, rows, cols) if func._schema.is_mutable else PatchedTensor(reference, box, rows, cols)


def _on_box(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    """An operator that treats all positions of its first argument alike; its other results are empty."""
    x, *rest = args
    reference = run._reference(func, args, kwargs)
    result = func(x.box, *rest, **kwargs)
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
    reference = run._reference(func, args, kwargs)
    reference = reference if isinstance(reference, torch.Tensor) else reference[0]
    height, width = reference.shape[-2:]
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (_to_pair(v) for v in geometry)
    rows, cols = x.rows.window(kh, sh, ph, dh, height), x.cols.window(kw, sw, pw, dw, width)
    if rows.size * cols.size > MAX_BOX_FRACTION * height * width:
        return None
    read_h, read_w = (rows.size - 1) * sh + (kh - 1) * dh + 1, (cols.size - 1) * sw + (kw - 1) * dw + 1
    window = x.read(rows.start * sh - ph, read_h, cols.start * sw - pw, read_w, outside)
    return PatchedTensor(reference, apply(window, (kh, kw), (sh, sw), (dh, dw)), rows, cols)


def _to_pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _convolution(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    _, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed or isinstance(weight, PatchedTensor) or weight.ndim != 4:
        return None
    geometry = (tuple(weight.shape[2:]), stride, padding, dilation)

    def apply(window: torch.Tensor, _kernel: Any, stride: Any, dilation: Any) -> torch.Tensor:
        return func(window, weight, bias, stride, (0, 0), dilation, False, (0, 0), groups)

    return _windows(run, func, args, kwargs, geometry, 0.0, apply)


def _max_pool(run: IncrementalForward, func: Any, args: Any, kwargs: Any) -> Any:
    _, kernel, stride, padding, dilation = (*args, None, None, None)[:5]  # the last three are optional
    geometry = (kernel, stride or kernel, padding or 0, dilation or 1)

    def apply(window: torch.Tensor, kernel: Any, stride: Any, dilation: Any) -> torch.Tensor:
        return func(window, kernel, stride, (0, 0), dilation)[0]

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
        return func(window, kernel, stride)

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
    reference = run._reference(func, args, kwargs)
    boxes = [x.read(rows.start, rows.size, cols.start, cols.size) for x in tensors]
    return PatchedTensor(reference, func(boxes, 1), rows, cols)


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
    reference = run._reference(func, args, kwargs)
    index = flat_index(x.rows.start, x.rows.size, x.cols.start, x.cols.size, x.shape[-1]).flatten().to(x.device)
    before = channels_to_rows(x.reference).flatten(0, 2).index_select(0, index).view(len(x), x.rows.size * x.cols.size, -1)
    difference = channels_to_rows(x.box).flatten(1, 2) - before
    return reference + (difference.sum(1) / math.prod(x.shape[-2:])).view(len(x), *reference.shape[1:])


_RULES: dict[Any, Callable[..., Any]] = {
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
