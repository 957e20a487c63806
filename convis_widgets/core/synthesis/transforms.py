"""Transforms: random shifts, rotations and scalings of the image before each forward pass.

Patterns that only work at one exact position cannot grow then. All transforms are differentiable and take images minus the
mean pixel, so that pixels from outside the image are the mean pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn.functional import affine_grid, grid_sample


@dataclass(frozen=True)
class Transform:
    """A shift, a rotation and a scaling.

    Attributes
    ----------
    shift : (int, int), (2,) tensor of int, or None
        Rows and columns by which images are shifted circularly. A tensor may change between two replays of recorded kernels.
    matrix : (1, 2, 3) tensor, or None
        Coordinates of the source of each pixel, see `torch.nn.functional.affine_grid`.
    """

    shift: tuple[int, int] | torch.Tensor | None = None
    matrix: torch.Tensor | None = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Transform images (N, C, H, W)."""
        if isinstance(self.shift, tuple):
            x = x.roll(self.shift, (2, 3))
        elif self.shift is not None:
            for dim, shift in enumerate(self.shift, 2):
                source = (torch.arange(x.shape[dim], device=x.device) - shift) % x.shape[dim]
                x = x.index_select(dim, source)
        if self.matrix is not None:
            grid = affine_grid(self.matrix.to(x).expand(len(x), 2, 3), list(x.shape), align_corners=False)
            x = grid_sample(x, grid, align_corners=False)
        return x

    def on(self, device: torch.device) -> Transform:
        """The same transform with all numbers in tensors on a device, so that `copy_` can replace them."""
        shift = None if self.shift is None else torch.as_tensor(self.shift, device=device)
        return Transform(shift, None if self.matrix is None else self.matrix.to(device, copy=True))

    def copy_(self, other: Transform) -> None:
        """Replace the numbers, see `on`, by those of another transform of the same kind."""
        if isinstance(self.shift, torch.Tensor) and other.shift is not None:
            self.shift.copy_(torch.as_tensor(other.shift), non_blocking=True)
        if self.matrix is not None and other.matrix is not None:
            self.matrix.copy_(other.matrix, non_blocking=True)


def draw(size: tuple[int, int], max_shift: int, degrees: float, scale: float, generator: torch.Generator) -> Transform:
    """Draw a random shift, rotation and scaling.

    Parameters
    ----------
    size : (int, int)
        Height and width of the images.
    max_shift : int
        Largest shift in pixels, circular along both axes.
    degrees : float
        Largest angle of a rotation about the center.
    scale : float
        Largest relative change of size; 0.1 is 10%.
    generator : torch.Generator

    References
    ----------
    - Shift: A. Mordvintsev, C. Olah, M. Tyka, "Inceptionism", 2015.
    - Rotation and scaling: C. Olah, A. Mordvintsev, L. Schubert, "Feature visualization", 2017, section "Transformation
      robustness".
    """
    shift = matrix = None
    if max_shift:
        down, right = torch.randint(-max_shift, max_shift + 1, (2,), generator=generator).tolist()
        shift = down, right
    if degrees or scale:
        angle, factor = (torch.rand(2, generator=generator, dtype=torch.float64) * 2 - 1).tolist()
        angle, factor = math.radians(angle * degrees), 1 / (1 + factor * scale)
        height, width = size
        cos, sin = factor * math.cos(angle), factor * math.sin(angle)
        # coordinates go from -1 to 1 along both axes, also if the image is not square
        rows = [[cos, -sin * height / width, 0], [sin * width / height, cos, 0]]
        matrix = torch.tensor([rows], dtype=torch.float64)
    return Transform(shift, matrix)
