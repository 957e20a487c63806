"""Right gradients behind batch normalization, for one image whose channels are not contiguous in memory.

On the CPU, PyTorch 2.15 computes wrong gradients of batch and instance normalization for a batch of one if the input, or the
gradient of the output, has strides such as (6, 1, 30, 6), as after ``tokens.transpose(1, 2).unflatten(2, (h, w))``. Networks
of convolutions, then tokens (LeViT, EfficientFormer, XCiT) have such tensors.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .graph import Graph


def contiguous_batch_norm(graph: Graph, batch: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Let normalization, within the block, see contiguous tensors if gradients could be wrong otherwise.

    Parameters
    ----------
    graph : Graph
        Of the network that runs in the block.
    batch : (N, C, H, W) tensor
        Its input.
    """
    concerned = graph.has_batch_norm and len(batch) == 1 and batch.requires_grad and batch.device.type == "cpu"
    return _ContiguousBatchNorm() if concerned else contextlib.nullcontext()


class _ContiguousBatchNorm(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if "batch_norm" not in name and "instance_norm" not in name:
            return func(*args, **kwargs)
        args, kwargs = [*args], {**kwargs}
        place: Any = (args, 0) if args else (kwargs, "input")
        place[0][place[1]] = _contiguous(place[0][place[1]])
        output = func(*args, **kwargs)
        normalized = output[0] if isinstance(output, tuple) else output
        if normalized.requires_grad:
            normalized.register_hook(_contiguous)
        return output


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
