"""Regularizers of an image: penalties, which are terms of an objective, and operations on the pixels after each step.

All of them take images (N, C, H, W) minus the mean pixel.

A. Mahendran, A. Vedaldi, "Understanding deep image representations by inverting them", 2015, section 3 (penalties);
J. Yosinski, J. Clune, A. Nguyen, T. Fuchs, H. Lipson, "Understanding neural networks through deep visualization", 2015,
section 3 (operations: a clipped pixel becomes the mean pixel).
"""

from __future__ import annotations

import math

import torch


def lp_norm(x: torch.Tensor, p: float) -> torch.Tensor:
    """Sum of the magnitudes of an image's values to the power of `p`, (N,).

    Parameters
    ----------
    x : (N, C, H, W) tensor
    p : float
        Exponent, greater than 0; a large one suppresses outliers.
    """
    return (x.square() if p == 2 else x.abs().pow(p)).sum((1, 2, 3))


def total_variation(x: torch.Tensor, beta: float = 2.0) -> torch.Tensor:
    """Sum of (dx^2 + dy^2)^(beta / 2) over pixels and channels, (N,), with forward differences dx and dy.

    Parameters
    ----------
    x : (N, C, H, W) tensor
    beta : float
        1 is the usual total variation; 2 penalizes all edges. For others than 2, 1e-8 is added to each dx^2 + dy^2.
    """
    square = (x[:, :, :-1, 1:] - x[:, :, :-1, :-1]).square() + (x[:, :, 1:, :-1] - x[:, :, :-1, :-1]).square()
    # the slope of the root at 0 is infinite
    return (square if beta == 2 else (square + 1e-8).pow(beta / 2)).sum((1, 2, 3))


def rescale_norm(x: torch.Tensor, norm: float) -> torch.Tensor:
    """Scale each image to this L2 norm.

    Parameters
    ----------
    x : (N, C, H, W) tensor
    norm : float
        L2 norm of all values of an image, at least 0.
    """
    return x * (norm / x.flatten(1).norm(dim=1).clamp(min=1e-12)).view(-1, 1, 1, 1)


def clip_small_norm(x: torch.Tensor, fraction: float) -> torch.Tensor:
    """Set the pixels of smallest norm over the channels to zero.

    Parameters
    ----------
    x : (N, C, H, W) tensor
    fraction : float in [0, 1)
        Fraction of the pixels of each image that are set to zero.
    """
    return x * _keep_mask(x.norm(dim=1, keepdim=True), fraction)


def clip_small_contribution(x: torch.Tensor, gradient: torch.Tensor, fraction: float) -> torch.Tensor:
    """Set the pixels of smallest contribution to the objective to zero.

    The contribution is the change of the objective if the pixel is set to zero; to first order, it is the magnitude of the
    sum of gradient times pixel over the channels.

    Parameters
    ----------
    x, gradient : (N, C, H, W) tensors
    fraction : float in [0, 1)
        Fraction of the pixels of each image that are set to zero.
    """
    return x * _keep_mask((gradient * x).sum(1, keepdim=True).abs(), fraction)


def _keep_mask(importance: torch.Tensor, fraction: float) -> torch.Tensor:
    """(N, 1, H, W): 0 for this fraction of the pixels of each image, those of least importance, and 1 for all others."""
    count = math.floor(fraction * importance[0].numel())
    if count == 0:
        return torch.ones_like(importance)
    threshold = importance.flatten(1).kthvalue(count, dim=1).values.view(-1, 1, 1, 1)
    return (importance > threshold).to(importance)
