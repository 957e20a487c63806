"""Baselines: images that replace what is hidden, and the reference input of integrated gradients."""

from __future__ import annotations

import numpy as np
import torch

from ..network.images import gaussian_blur
from ..network.network import Network

BASELINES = ("mean", "gray", "black", "white", "blur", "noise")
BLUR_FRACTION = 1 / 8  # standard deviation of "blur", as a fraction of the shorter side: wide enough to remove all objects


def make_baseline(
    net: Network, batch: torch.Tensor, baseline: str | float | tuple[float, ...], seed: int = 0
) -> torch.Tensor:
    """A baseline image of the size of another image.

    Parameters
    ----------
    net : Network
    batch : (1, C, H, W) tensor in [0, 1]
        The image.
    baseline : str, float or tuple of float
        "mean", the mean pixel of the training set if the network's preprocessing has it, otherwise mid-gray; "gray",
        "black" or "white"; "blur", the image itself, blurred beyond recognition; "noise", uniform; or a color in [0, 1], one
        value or one per channel.
    seed : int
        Seed of the noise.

    Returns
    -------
    (1, C, H, W) tensor in [0, 1]

    Raises
    ------
    ValueError
        The color does not have one value per channel.
    """
    channels = batch.shape[1]
    if isinstance(baseline, str) and baseline == "noise":
        generator = torch.Generator().manual_seed(seed)
        return torch.rand(batch.shape, generator=generator, dtype=torch.float32).to(batch)
    if isinstance(baseline, str) and baseline == "blur":
        return gaussian_blur(batch, BLUR_FRACTION * min(batch.shape[2:]))
    mean = net.transform.mean if any(net.transform.mean) else 0.5
    color = {"mean": mean, "gray": 0.5, "black": 0.0, "white": 1.0}[baseline] if isinstance(baseline, str) else baseline
    if np.size(color) not in (1, channels):
        raise ValueError(f"the color {baseline!r} should have one value, or one for each of the {channels} channels")
    values = np.broadcast_to(np.asarray(color, np.float32), (channels,)).copy()
    return torch.from_numpy(values).to(batch).view(1, -1, 1, 1).expand_as(batch)
