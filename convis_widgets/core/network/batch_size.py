"""The number of images in a forward or backward pass: by the time it takes, and by the memory there is."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from .graph import count_macs
from .network import Network

# multiply-adds of a step: about 0.2 s on two laptop cores; a GPU needs more to be busy
_MACS_PER_STEP = {"cpu": 8e9, "cuda": 4e11, "mps": 8e10}
_MAX_BYTES = 1 << 30  # for the activations of a batch


def halve_if_needed(
    function: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], batch: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """The tensors that a function returns for a batch, computed in halves and joined where memory is short.

    Parameters
    ----------
    function : callable
        Returns tensors of length N for a batch of N, and leaves nothing behind if it raises OutOfMemoryError.
    batch : (N, ...) tensor
    """
    try:
        return function(batch)
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # not in the except block: the traceback holds the activations
    torch.cuda.empty_cache()
    parts = [halve_if_needed(function, half) for half in batch.chunk(2)]
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))


def auto_batch_size(net: Network, batch: torch.Tensor, *, backward: bool = False) -> int:
    """Number of images for a step of about 0.2 s within 1 GiB of activations, 1 to 256; 1 if images are computed one by one.

    Parameters
    ----------
    net : Network
    batch : (N, C, H, W) tensor
        Images of the size in question; N does not matter.
    backward : bool
        Whether gradients are computed. Then a step costs three forward passes and keeps all activations.
    """
    if net.one_image_at_a_time:
        return 1
    scale = batch.shape[2] * batch.shape[3] / (net.transform.size[0] * net.transform.size[1])
    work = count_macs(net.graph) * scale * (3 if backward else 1)
    sizes = [math.prod(value.shape) * 4 * scale for op in net.graph.ops for value in op.outputs if value is not None]
    memory = sum(sizes) if backward else 4 * max(sizes)
    return int(max(1, min(256, _MACS_PER_STEP.get(net.device.type, 8e9) / max(work, 1), _MAX_BYTES / max(memory, 1))))
