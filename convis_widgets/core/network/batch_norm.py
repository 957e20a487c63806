"""Right gradients behind batch normalization, for one image whose channels are not contiguous in memory.

On the CPU, PyTorch 2.15 computes wrong gradients of batch and instance normalization for a batch of one if the input, or the
gradient of the output, has strides such as (6, 1, 30, 6), as after ``tokens.transpose(1, 2).unflatten(2, (h, w))``. Hybrids
of convolutions and transformers (LeViT, EfficientFormer, XCiT) have such tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def make_contiguous_for_gradients(root: nn.Module) -> None:
    """Let all normalization layers of a module see contiguous tensors where gradients of one image are computed."""

    def before(_layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        return (_contiguous(args[0]), *args[1:]) if args and _needs_gradient(args[0]) else None

    def after(_layer: nn.Module, _args: Any, output: Any) -> None:
        if _needs_gradient(output):
            output.register_hook(_contiguous)

    for part in root.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            part.register_forward_pre_hook(before)
            part.register_forward_hook(after)


def _needs_gradient(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.requires_grad and len(x) == 1 and x.device.type == "cpu"


def _contiguous(x: torch.Tensor) -> torch.Tensor:
    """The tensor if its rows or its channels are contiguous; otherwise a copy of which the rows are.

    Strides are compared, since `Tensor.is_contiguous` ignores that of a batch of one, which matters here.
    """
    channels_last = x.ndim == 4 and x.stride() == _strides((x.shape[0], *x.shape[2:], x.shape[1]), (0, 3, 1, 2))
    return x if channels_last or x.stride() == _strides(x.shape) else x.clone(memory_format=torch.contiguous_format)


def _strides(shape: tuple[int, ...], order: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Strides of a contiguous tensor, its dimensions then in another order."""
    strides, size = list[int](), 1
    for length in reversed(shape):
        strides.insert(0, size)
        size *= length
    return tuple(strides if order is None else (strides[dim] for dim in order))
