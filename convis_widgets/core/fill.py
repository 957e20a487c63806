"""Fill: what stands where a picture is hidden, and the picture without information that a path begins at."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .network import Network

FILLS = ("mean", "gray", "black", "white", "blur", "noise")
BLUR = 1 / 8  # of the shorter side: deviation of the Gaussian, wide enough to leave no parts


def filled(net: Network, batch: torch.Tensor, fill: Any, seed: int = 0) -> torch.Tensor:
    """A picture (1, C, H, W) in [0, 1] to hide parts of another one with.

    Parameters
    ----------
    net : Network
    batch : (1, C, H, W) tensor in [0, 1]
    fill : str, float or tuple of float
        "mean" is the mean pixel of the training set, where the network's preprocessing knows it, and mid-gray
        otherwise; "blur" the picture itself, blurred beyond recognition; "noise" uniform, seeded; or a color.
    seed : int
        Of the noise.
    """
    channels = batch.shape[1]
    if isinstance(fill, str) and fill == "noise":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(batch.shape, generator=generator).to(batch)
    if isinstance(fill, str) and fill == "blur":
        return _blurred(batch, BLUR * min(batch.shape[2:]))
    mean = net.transform.mean if any(net.transform.mean) else 0.5
    color = {"mean": mean, "gray": 0.5, "black": 0.0, "white": 1.0}[fill] if isinstance(fill, str) else fill
    if np.size(color) not in (1, channels):
        raise ValueError(f"the color {fill!r} should be one value, or one for each of the {channels} channels")
    values = np.broadcast_to(np.asarray(color, np.float32), (channels,)).copy()
    return torch.from_numpy(values).to(batch).view(1, -1, 1, 1).expand_as(batch)


def _blurred(batch: torch.Tensor, deviation: float) -> torch.Tensor:
    for dim in (2, 3):
        reach = min(round(3 * deviation), batch.shape[dim] - 1)
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2).to(batch)
        shape = [1, 1, 1, 1]
        shape[dim] = len(kernel)
        kernel = (kernel / kernel.sum()).view(shape).repeat(batch.shape[1], 1, 1, 1)
        pad = (0, 0, reach, reach) if dim == 2 else (reach, reach, 0, 0)
        padded = torch.nn.functional.pad(batch, pad, mode="reflect")
        batch = torch.nn.functional.conv2d(padded, kernel, groups=batch.shape[1])
    return batch
