"""Transforms: random shifts, rotations and scalings of the image before each forward pass.

Patterns that only work at one exact position cannot grow then. All transforms are differentiable and take images minus the
mean pixel, so that pixels from outside the image are the mean pixel.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import affine_grid, grid_sample


def jitter(x: torch.Tensor, max_shift: int, generator: torch.Generator) -> torch.Tensor:
    """Shift images circularly along both axes.

    Parameters
    ----------
    x : (N, C, H, W) tensor
    max_shift : int
        Largest shift in pixels.
    generator : torch.Generator

    References
    ----------
    A. Mordvintsev, C. Olah, M. Tyka, "Inceptionism", 2015.
    """
    if max_shift == 0:
        return x
    down, right = torch.randint(-max_shift, max_shift + 1, (2,), generator=generator).tolist()
    return x.roll((down, right), (2, 3))


def random_rotate_scale(x: torch.Tensor, degrees: float, scale: float, generator: torch.Generator) -> torch.Tensor:
    """Rotate and scale images about their center.

    Parameters
    ----------
    x : (N, C, H, W) tensor
    degrees : float
        Largest angle.
    scale : float
        Largest relative change of size; 0.1 is 10%.
    generator : torch.Generator

    References
    ----------
    C. Olah, A. Mordvintsev, L. Schubert, "Feature visualization", 2017, section "Transformation robustness".
    """
    if degrees == 0 and scale == 0:
        return x
    angle, factor = (torch.rand(2, generator=generator, dtype=torch.float64) * 2 - 1).tolist()
    angle, factor = math.radians(angle * degrees), 1 / (1 + factor * scale)
    height, width = x.shape[2:]
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    # coordinates go from -1 to 1 along both axes, also if the image is not square
    matrix = x.new_tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]])
    grid = affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)
