"""Forward passes of one picture with a small patch changed, computing only what the patch can change.

The pass of the unchanged picture is kept. For every other picture of a batch each layer's output is stored as that
reference and a box: the part that may differ from it. An operator that works on neighborhoods reads a slightly larger
box, cut from the reference with the changed box laid into it, and puts out a box again. So the result is that of the
whole computation, up to rounding. Where the box covers most of the map, and at every operator without a rule here, the
map is completed and the network goes on as usual: any network works, and what cannot be saved costs next to nothing.

The idea is that of S. Nakandala, A. Kumar, Y. Papakonstantinou, "Incremental and approximate inference for faster
occlusion-based deep CNN explanations", SIGMOD 2019, there for three networks written for it. Here the network's own code
runs, on tensors that know how they are stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .graph import is_pointwise

aten = torch.ops.aten
FULL = 0.8  # a box of this share of the map is not worth cutting out


class Span:
    """Along one axis of a map: for each picture the first and last index that may have changed, and what is stored.

    All stored spans of a batch have one `size`; they begin at `start`, such that they lie inside of the map.
    """

    def __init__(self, low: torch.Tensor, high: torch.Tensor, length: int) -> None:
        self.low, self.high, self.length = low, high, length
        self.size = int((high - low).max()) + 1
        self.start = low.clamp(max=length - self.size)

    def window(self, kernel: int, stride: int, padding: int, dilation: int, length: int) -> Span:
        """What a convolution or pooling with `length` outputs makes of it."""
        reach = (kernel - 1) * dilation
        low = -((reach - padding - self.low) // stride)  # rounded up
        high = (self.high + padding) // stride
        low, high = low.clamp(0, length - 1), high.clamp(0, length - 1)
        return Span(torch.minimum(low, high), high, length)

    def union(self, other: Span) -> Span:
        """What either may have changed."""
        return Span(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high), self.length)


class Patched(torch.Tensor):
    """A batch (N, ..., H, W) of which each picture equals `reference` (1, ..., H, W) but for its box (..., h, w)."""

    reference: torch.Tensor
    box: torch.Tensor
    rows: Span
    cols: Span

    @staticmethod
    def __new__(cls, reference: torch.Tensor, box: torch.Tensor, rows: Span, cols: Span) -> Patched:
        shape = (len(box), *reference.shape[1:])
        made = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=reference.dtype, device=reference.device)
        return made.become(reference, box, rows, cols)

    def become(self, reference: torch.Tensor, box: torch.Tensor, rows: Span, cols: Span) -> Patched:
        self.reference, self.box, self.rows, self.cols = reference, box, rows, cols
        self.completed: torch.Tensor | None = None
        self.shared = False  # whether another one should see what is written into it
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} met a patched batch outside of `Patches`")

    def complete(self) -> torch.Tensor:
        """The batch as an ordinary tensor."""
        if self.completed is None:
            count, (height, width) = len(self.box), self.reference.shape[-2:]
            lines = _lines(self.reference).expand(count, height, width, -1).contiguous()
            at = _positions(self.rows.start, self.rows.size, self.cols.start, self.cols.size, width)
            at = at + torch.arange(count, device=at.device)[:, None, None] * (height * width)
            lines.view(count * height * width, -1).index_copy_(
                0, at.flatten().to(lines.device), _lines(self.box).flatten(0, 2)
            )
            self.completed = _unlined(lines, self.shape)
        return self.completed

    def read(self, top: torch.Tensor, height: int, left: torch.Tensor, width: int, outside: float = 0.0) -> torch.Tensor:
        """A window (N, ..., height, width) of every picture, from row `top` and column `left`, both (N,)."""
        count, rows, cols = len(self.box), self.rows, self.cols
        same = height == rows.size and width == cols.size
        if same and torch.equal(top, rows.start) and torch.equal(left, cols.start):
            return self.box
        h, w = self.reference.shape[-2:]
        device = self.box.device
        y, x = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
        inside = ((y >= 0) & (y < h))[:, :, None] & ((x >= 0) & (x < w))[:, None, :]
        at = y.clamp(0, h - 1)[:, :, None] * w + x.clamp(0, w - 1)[:, None, :]
        out = _lines(self.reference).flatten(0, 2).index_select(0, at.flatten().to(device))
        if not bool(inside.all()):
            out.index_fill_(0, (~inside).flatten().nonzero()[:, 0].to(device), outside)
        # lay the box into the window
        down, right = rows.start - top, cols.start - left
        if (
            bool((down == down[0]).all() & (right == right[0]).all())
            and 0 <= down[0] <= height - rows.size
            and 0 <= right[0] <= width - cols.size
        ):
            i, j = int(down[0]), int(right[0])
            out.view(count, height, width, -1)[:, i : i + rows.size, j : j + cols.size] = _lines(self.box)
        else:
            y, x = down[:, None] + torch.arange(rows.size), right[:, None] + torch.arange(cols.size)
            kept = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
            at = (torch.arange(count)[:, None, None] * height + y[:, :, None]) * width + x[:, None, :]
            lines = _lines(self.box).flatten(0, 2)
            out.index_copy_(0, at[kept].to(device), lines if bool(kept.all()) else lines[kept.flatten().to(device)])
        return _unlined(out.view(count, height, width, -1), (count, *self.shape[1:-2], height, width))


def _lines(x: torch.Tensor) -> torch.Tensor:
    """(N, ..., h, w) as (N, h, w, values), in which a position is one piece of memory if `x` is channels-last."""
    return x.flatten(1, -3).permute(0, 2, 3, 1) if x.ndim > 4 else x.permute(0, 2, 3, 1)


def _unlined(lines: torch.Tensor, shape: Any) -> torch.Tensor:
    x = lines.permute(0, 3, 1, 2)
    return x if len(shape) == 4 else x.reshape(shape)


def _positions(top: torch.Tensor, height: int, left: torch.Tensor, width: int, line: int) -> torch.Tensor:
    y, x = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
    return y[:, :, None] * line + x[:, None, :]


class Patches(TorchDispatchMode):
    """Runs a network on one picture with many patches.

    Parameters
    ----------
    forward : callable
        What to compute: takes a batch (N, C, H, W), returns a tensor or a tuple of them.
    picture : (1, C, H, W) tensor
        The unchanged picture.

    Attributes
    ----------
    work, largest : int
        Of the last batch, per picture: multiply-adds, and the number of values in the largest tensor.
    """

    def __init__(self, forward: Callable[[torch.Tensor], Any], picture: torch.Tensor) -> None:
        super().__init__()
        self.forward = forward
        self.picture = picture.contiguous(memory_format=torch.channels_last)
        self.work = self.largest = 0
        self._references: dict[int, Any] = {}
        self._number = self._pictures = 0

    def run(self, patches: torch.Tensor, rows: np.ndarray, cols: np.ndarray) -> Any:
        """What `forward` returns for the picture with ``patches[i]`` (N, C, h, w) laid in at ``rows[i]``, ``cols[i]``."""
        if len(patches) == 1:  # with two it can be told what is the same for all pictures
            result = self.run(patches.repeat(2, 1, 1, 1), np.repeat(rows, 2), np.repeat(cols, 2))
            return tree_map_only(torch.Tensor, lambda x: x[:1], result)
        top, left = torch.from_numpy(np.asarray(rows)), torch.from_numpy(np.asarray(cols))
        down = Span(top, top + patches.shape[2] - 1, self.picture.shape[2])
        across = Span(left, left + patches.shape[3] - 1, self.picture.shape[3])
        box = patches.contiguous(memory_format=torch.channels_last)
        self._number = self.work = self.largest = 0
        self._pictures = len(patches)
        with torch.no_grad(), self:
            result = self.forward(Patched(self.picture, box, down, across))
        self.work, self.largest = self.work // len(patches), self.largest // len(patches)
        return tree_map_only(Patched, Patched.complete, result)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._number += 1
        result = None
        patched = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Patched)]
        if func._schema.is_mutable and patched and patched[0] is args[0] and args[0].shared:
            raise RuntimeError(f"{func} writes into a part of a patched batch")
        # what was completed once stays so: views of it may have been written into
        if patched and all(x.completed is None for x in patched):
            rule = _RULES.get(func, _pointwise if is_pointwise(func) else None)
            result = rule(self, func, args, kwargs) if rule is not None else None
        if result is None:
            result = self._in_full(func, args, kwargs)
        self._count(func, args, result[0] if isinstance(result, (tuple, list)) else result)
        return result

    def _count(self, func: Any, args: Any, result: Any) -> None:
        made = result.box if isinstance(result, Patched) else result
        if isinstance(made, torch.Tensor):
            if made.shape[:1] == (self._pictures,):  # not a transposed weight
                self.largest = max(self.largest, made.numel())
            if func in (aten.convolution.default, aten.addmm.default, aten.mm.default, aten.bmm.default):
                weight = args[1] if func is aten.convolution.default else args[-1]
                self.work += made.numel() * (weight[0].numel() if weight.ndim > 2 else len(weight))

    def _in_full(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operator on completed maps."""
        whole_args, whole_kwargs = tree_map_only(Patched, Patched.complete, (args, kwargs))
        if func in (aten.view.default, aten._unsafe_view.default):  # asked for in the belief that memory is in order
            func = aten.reshape.default
        result = func(*whole_args, **whole_kwargs)
        if func._schema.is_mutable and isinstance(args[0], Patched):
            return args[0]  # written into what completes it
        return result

    def reference(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What the operator puts out for the unchanged picture; computed once."""
        if self._number not in self._references:
            args, kwargs = tree_map_only(Patched, lambda x: x.reference, (args, kwargs))
            if func._schema.is_mutable:
                args = (args[0].clone(), *args[1:])
            self._references[self._number] = func(*args, **kwargs)
        return self._references[self._number]


# -- rules: None where the operator is to work on the completed maps ---------------------------------------------------


def _pointwise(run: Patches, func: Any, args: Any, kwargs: Any) -> Any:
    """Patched operands of one size, with numbers and constants that are the same everywhere."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    patched = [x for x in tensors if isinstance(x, Patched)]
    first = args[0] if isinstance(args[0], Patched) else patched[0]
    for x in tensors:
        if isinstance(x, Patched):
            fits = x.ndim == first.ndim and x.shape[-2:] == first.shape[-2:]
        else:
            fits = x.numel() == 1 or (2 < x.ndim <= first.ndim and x.shape[-2:] == (1, 1) and len(x) == 1)
        if not fits:
            return None
    if func._schema.is_mutable and not isinstance(args[0], Patched):
        return None
    rows, cols = first.rows, first.cols
    for x in patched[1:]:
        rows, cols = rows.union(x.rows), cols.union(x.cols)
    reference = run.reference(func, args, kwargs)
    args, kwargs = tree_map_only(Patched, lambda x: x.read(rows.start, rows.size, cols.start, cols.size), (args, kwargs))
    box = func(*args, **kwargs)
    return first.become(reference, box, rows, cols) if func._schema.is_mutable else Patched(reference, box, rows, cols)


def _on_box(run: Patches, func: Any, args: Any, kwargs: Any) -> Any:
    """An operator that works position by position on its first argument; what else it returns is nothing."""
    x, *rest = args
    reference = run.reference(func, args, kwargs)
    box = func(x.box, *rest, **kwargs)
    if isinstance(box, torch.Tensor):
        return Patched(reference, box, x.rows, x.cols)
    return Patched(reference[0], box[0], x.rows, x.cols), *box[1:]


def _batch_norm(run: Patches, func: Any, args: Any, kwargs: Any) -> Any:
    trains = "no_training" not in func._schema.name and bool(args[5])
    return None if trains else _on_box(run, func, args, kwargs)


def _windows(
    run: Patches, func: Any, args: Any, kwargs: Any, geometry: Any, outside: float, apply: Callable[..., Any]
) -> Any:
    x = args[0]
    if not isinstance(x, Patched) or x.ndim != 4:
        return None
    reference = run.reference(func, args, kwargs)
    reference = reference if isinstance(reference, torch.Tensor) else reference[0]
    height, width = reference.shape[-2:]
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = (_pair(v) for v in geometry)
    rows, cols = x.rows.window(kh, sh, ph, dh, height), x.cols.window(kw, sw, pw, dw, width)
    if rows.size * cols.size > FULL * height * width:
        return None
    read_h, read_w = (rows.size - 1) * sh + (kh - 1) * dh + 1, (cols.size - 1) * sw + (kw - 1) * dw + 1
    window = x.read(rows.start * sh - ph, read_h, cols.start * sw - pw, read_w, outside)
    return Patched(reference, apply(window, (kh, kw), (sh, sw), (dh, dw)), rows, cols)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _convolution(run: Patches, func: Any, args: Any, kwargs: Any) -> Any:
    _, weight, bias, stride, padding, dilation, transposed, _, groups = args
    if transposed or isinstance(weight, Patched) or weight.ndim != 4:
        return None
    geometry = (tuple(weight.shape[2:]), stride, padding, dilation)

    def apply(window: torch.Tensor, _kernel: Any, stride: Any, dilation: Any) -> torch.Tensor:
        return func(window, weight, bias, stride, (0, 0), dilation, False, (0, 0), groups)

    return _windows(run, func, args, kwargs, geometry, 0.0, apply)


def _max_pool(run: Patches, func: Any, args: Any, kwargs: Any) -> Any:
    _, kernel, stride, padding, dilation = [*args[:5], *[None] * (5 - len(args[:5]))]
    geometry = (kernel, stride or kernel, padding or 0, dilation or 1)

    def apply(window: torch.Tensor, kernel: Any, stride: Any, dilation: Any) -> torch.Tensor:
        return func(window, kernel, stride, (0, 0), dilation)[0]

    result = _windows(run, func, args, kwargs, geometry, -math.inf, apply)
    return None if result is None else (result, None)


def _avg_pool(run: Patches, func: Any, args: Any, kwargs: Any) -> Any:
    names = ("kernel", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given = dict(zip(names, args[1:], strict=False))
    padding = _pair(given.get("padding", 0))
    if (
        given.get("ceil_mode")
        or given.get("divisor_override")
        or (any(padding) and not given.get("count_include_pad", True))
    ):
        return None
    geometry = (given["kernel"], given.get("stride") or given["kernel"], padding, 1)

    def apply(window: torch.Tensor, kernel: Any, stride: Any, _dilation: Any) -> torch.Tensor:
        return func(window, kernel, stride)

    return _windows(run, func, args, kwargs, geometry, 0.0, apply)


def _adaptive_pool(run: Patches, func: Any, args: Any, kwargs: Any) -> Any:
    return _on_box(run, aten.clone.default, args[:1], {}) if tuple(args[0].shape[-2:]) == _pair(args[1]) else None


def _cat(run: Patches, func: Any, args: Any, kwargs: Any) -> Any:
    parts, dim = args[0], args[1] if len(args) > 1 else 0
    if dim not in (1, -3) or not all(isinstance(x, Patched) and x.ndim == 4 for x in parts):
        return None
    rows, cols = parts[0].rows, parts[0].cols
    for x in parts[1:]:
        rows, cols = rows.union(x.rows), cols.union(x.cols)
    reference = run.reference(func, args, kwargs)
    boxes = [x.read(rows.start, rows.size, cols.start, cols.size) for x in parts]
    return Patched(reference, func(boxes, 1), rows, cols)


def _slice(run: Patches, func: Any, args: Any, kwargs: Any) -> Any:
    """Some of the channels."""
    if args[0].ndim != 4 or args[1:2] != (1,):
        return None
    part = _on_box(run, func, args, kwargs)
    part.shared = args[0].shared = True
    return part


def _mean(run: Patches, func: Any, args: Any, kwargs: Any) -> Any:
    """Over all positions: the reference's mean and the mean change."""
    x, dims = args[:2]
    if (
        not isinstance(dims, (list, tuple))
        or x.ndim != 4
        or {d % x.ndim for d in dims} != {x.ndim - 2, x.ndim - 1}
        or kwargs
    ):
        return None
    reference = run.reference(func, args, kwargs)
    at = _positions(x.rows.start, x.rows.size, x.cols.start, x.cols.size, x.shape[-1]).flatten().to(x.device)
    before = _lines(x.reference).flatten(0, 2).index_select(0, at).view(len(x), x.rows.size * x.cols.size, -1)
    change = _lines(x.box).flatten(1, 2) - before
    return reference + (change.sum(1) / math.prod(x.shape[-2:])).view(len(x), *reference.shape[1:])


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
