"""Heat maps as pictures: in colors, laid over the picture, as a mask, and what the mask leaves of the picture."""

from __future__ import annotations

import numpy as np

from ..core import colorize, to_unit, value_range
from .encode import blend, grayed, to_uint8

UNKNOWN = 128  # gray where nothing is known yet
VIEWS = ("overlay", "mask", "cut-out")


def colormap(signed: bool) -> str:
    """The color scale for maps with or without a sign."""
    return "balance" if signed else "viridis"


def scale_of(heat: np.ndarray, *, signed: bool = False, beyond: float = 0.0) -> tuple[float, float]:
    """The values at the two ends of the color scale; all but a share `beyond` of the pixels lie between them."""
    low, high = value_range(heat, signed=signed)
    if beyond and high > low:
        known = heat[np.isfinite(heat)]
        end = float(np.quantile(np.abs(known) if signed else known, 1 - beyond))
        if end > max(low, 0.0):  # of a map that is zero nearly everywhere the few are all there is
            return (-end if signed else low, end)
    return low, high


def in_colors(heat: np.ndarray, limits: tuple[float, float], signed: bool) -> np.ndarray:
    """A map (H, W) as (H, W, 3) uint8."""
    colors = colorize(heat, colormap(signed), *limits)
    colors[~np.isfinite(heat)] = UNKNOWN
    return colors


def overlaid(picture: np.ndarray, heat: np.ndarray, limits: tuple[float, float], signed: bool, opacity: float) -> np.ndarray:
    """The map's colors over the picture (H, W, C) in [0, 1], the stronger the larger the value."""
    shown = to_uint8(picture)
    if signed:  # where nothing changes the picture stays as it is
        strength = to_unit(np.abs(heat), 0.0, limits[1])
    else:
        strength, shown = to_unit(heat, *limits), grayed(shown)
    weight = np.where(np.isfinite(heat), opacity * np.sqrt(strength), 0)
    return blend(shown, colorize(heat, colormap(signed), *limits), weight.astype(np.float32))


def masked(mask: np.ndarray) -> np.ndarray:
    """A mask as white on black."""
    return np.repeat((mask * np.uint8(255))[..., None], 3, axis=2)


def cut_out(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture where the mask is, a checkerboard elsewhere, so that black and white objects stand out alike."""
    rows, cols = np.indices(mask.shape)
    cell = max(2, max(mask.shape) // 28)
    board = np.where((rows // cell + cols // cell) % 2, 235, 205).astype(np.uint8)
    return np.where(mask[..., None], to_uint8(picture), board[..., None])


def around_gray(signed: np.ndarray, beyond: float) -> np.ndarray:
    """A signed picture (H, W, C) around mid-gray, stretched so that all but a share `beyond` of its values fit."""
    scale = np.quantile(np.abs(signed), 1 - beyond) or 1.0
    return to_uint8(0.5 + 0.5 * signed / scale)


def outlined(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The picture, dark and pale outside of the mask."""
    shown = to_uint8(picture)
    return np.where(mask[..., None], shown, grayed(shown) // 3)


# Told apart by the color-blind, too: M. Okabe and K. Ito, "Color universal design", 2008, without black and gray.
CATEGORIES = np.array(
    [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66)], np.uint8
)
OTHER = np.array((150, 150, 150), np.uint8)


def on_pixels(grid: np.ndarray, rows: np.ndarray, cols: np.ndarray, patch: int, shape: tuple[int, int]) -> np.ndarray:
    """Values (n, m) at positions of a patch as a map (H, W): each pixel has that of the patch centered nearest to it.

    Positions that are not known yet (NaN, or negative in a grid of whole numbers) take the value of the coarser grid.
    """
    there = np.isfinite(grid) if grid.dtype.kind == "f" else grid >= 0
    best = grid
    for reach in (8, 4, 2, 1):
        n, m = grid.shape
        coarse, has = (x[::reach, ::reach].repeat(reach, axis=0).repeat(reach, axis=1)[:n, :m] for x in (grid, there))
        best = np.where(has, coarse, best)
    nearest = [
        np.abs(edges[None] + (patch - 1) / 2 - np.arange(length)[:, None]).argmin(1)
        for edges, length in zip((rows, cols), shape, strict=True)
    ]
    return best[nearest[0]][:, nearest[1]]
