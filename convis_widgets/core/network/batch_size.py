"""auto_batch_size: the number of images in a forward or backward pass."""

from __future__ import annotations

import math

import torch

from .graph import count_macs
from .network import Network

# multiply-adds of a step: about 0.2 s on two laptop cores; a GPU needs more to be busy
_MACS_PER_STEP = {"cpu": 8e9, "cuda": 4e11, "mps": 8e10}
_MAX_BYTES = 1 << 30  # for the activations of a batch


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
