"""Regularizing steps: what is done to a picture after a step, so that it stays one.

J. Yosinski, J. Clune, A. Nguyen, T. Fuchs, H. Lipson, "Understanding neural networks through deep visualization", 2015,
section 3. All of them act on pixels (N, C, H, W) less the mean pixel: what is clipped becomes the mean pixel.
"""

from __future__ import annotations

import functools
import math

import torch


def blurred(x: torch.Tensor, deviation: float) -> torch.Tensor:
    """Convolved with a Gaussian of this deviation in pixels, mirrored at the borders; ends at four deviations."""
    if deviation == 0:
        return x
    rows, columns = (_gaussian(size, deviation).to(x) for size in x.shape[2:])
    return rows @ x @ columns.T


@functools.lru_cache(16)
def _gaussian(size: int, deviation: float) -> torch.Tensor:
    """(size, size), the weights of all pixels of a line in each."""
    radius = int(4 * deviation + 0.5)
    offsets = torch.arange(-radius, radius + 1)
    weights = (-offsets.double().square() / (2 * deviation**2)).exp()
    sources = (torch.arange(size)[:, None] + offsets) % (2 * size)  # beyond a border the picture comes back: d c b a a b c d
    sources = torch.where(sources < size, sources, 2 * size - 1 - sources)
    matrix = torch.zeros(size, size, dtype=torch.double)
    return matrix.scatter_add_(1, sources, (weights / weights.sum()).expand(size, -1))


def of_norm(x: torch.Tensor, norm: float) -> torch.Tensor:
    """Scaled, each picture for itself, to this L2 norm."""
    return x * (norm / x.flatten(1).norm(dim=1).clamp(min=1e-12)).view(-1, 1, 1, 1)


def without_small_norm(x: torch.Tensor, share: float) -> torch.Tensor:
    """With that share of the pixels set to zero whose norm over the channels is smallest."""
    return x * _largest(x.norm(dim=1, keepdim=True), share)


def without_small_contribution(x: torch.Tensor, gradient: torch.Tensor, share: float) -> torch.Tensor:
    """With that share of the pixels set to zero of which setting them to zero would change the value least.

    To first order that is the magnitude of the sum, over the channels, of gradient times pixel.
    """
    return x * _largest((gradient * x).sum(1, keepdim=True).abs(), share)


def _largest(worth: torch.Tensor, share: float) -> torch.Tensor:
    """(N, 1, H, W), 1 for all but this share of the pixels of each picture, those of least worth."""
    few = math.floor(share * worth[0].numel())
    if few == 0:
        return torch.ones_like(worth)
    threshold = worth.flatten(1).kthvalue(few, dim=1).values.view(-1, 1, 1, 1)
    return (worth > threshold).to(worth)
