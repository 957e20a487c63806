"""Jitter: pictures that are made are shown to the network a little displaced, turned or scaled, differently at each step.

What only works from one pixel's exact place cannot grow then. All of it acts on pictures less the mean pixel, so that what
is drawn in from outside is the mean pixel, and is differentiable.
"""

from __future__ import annotations

import math

import torch
from torch.nn.functional import affine_grid, grid_sample


def displaced(x: torch.Tensor, most: int, generator: torch.Generator) -> torch.Tensor:
    """Pictures (N, C, H, W) moved by up to `most` pixels along each axis; what leaves on one side comes back on the other.

    A. Mordvintsev, C. Olah, M. Tyka, "Inceptionism", 2015.
    """
    if most == 0:
        return x
    down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return x.roll((down, right), (2, 3))


def turned(x: torch.Tensor, degrees: float, scale: float, generator: torch.Generator) -> torch.Tensor:
    """Pictures (N, C, H, W) turned by up to so many degrees, and made up to `scale` larger or smaller (0.1 is a tenth).

    C. Olah, A. Mordvintsev, L. Schubert, "Feature visualization", 2017, section "Transformation robustness".
    """
    if degrees == 0 and scale == 0:
        return x
    angle, factor = (torch.rand(2, generator=generator, dtype=torch.float64) * 2 - 1).tolist()
    angle, factor = math.radians(angle * degrees), 1 / (1 + factor * scale)
    height, width = x.shape[2:]
    cos, sin = factor * math.cos(angle), factor * math.sin(angle)
    # coordinates go from -1 to 1 along both sides, also where one is longer
    matrix = x.new_tensor([[cos, -sin * height / width, 0], [sin * width / height, cos, 0]])
    grid = affine_grid(matrix.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    return grid_sample(x, grid, align_corners=False)
