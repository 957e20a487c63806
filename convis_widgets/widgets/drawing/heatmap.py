"""Heat maps as images: color-coded, as overlay, as mask, and as cut-out of the image."""

from __future__ import annotations

import numpy as np

from .colors import colorize, normalize_values, value_range
from .encode import blend, desaturate, to_rgb_uint8

UNKNOWN_GRAY = 128  # gray level of values that are not known yet

# Colors that the color-blind can distinguish: M. Okabe and K. Ito, "Color universal design", 2008, without black and gray.
CATEGORIES = np.array(
    [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (86, 180, 233), (240, 228, 66)], np.uint8
)
OTHER_CATEGORY = np.array((150, 150, 150), np.uint8)


def colormap_name(signed: bool) -> str:
    """Name of the color map for signed or unsigned heat maps."""
    return "balance" if signed else "viridis"


def color_limits(heat: np.ndarray, *, signed: bool = False, outlier_fraction: float = 0.0) -> tuple[float, float]:
    """Values at the ends of the color map of a heat map.

    Parameters
    ----------
    heat : (H, W) array
        NaN where unknown.
    signed : bool
        Whether the limits are symmetric about zero.
    outlier_fraction : float
        Fraction of the pixels whose value may exceed the limits.

    Returns
    -------
    low, high : float
    """
    low, high = value_range(heat, signed=signed)
    if outlier_fraction and high > low:
        finite = heat[np.isfinite(heat)]
        limit = float(np.quantile(np.abs(finite) if signed else finite, 1 - outlier_fraction))
        if limit > max(low, 0.0):  # where nearly all values are zero, the largest are not outliers
            return (-limit if signed else low, limit)
    return low, high


def colorize_map(heat: np.ndarray, limits: tuple[float, float], signed: bool) -> np.ndarray:
    """Colors (H, W, 3) uint8 of a heat map (H, W); gray where it is not finite."""
    colors = colorize(heat, colormap_name(signed), *limits)
    colors[~np.isfinite(heat)] = UNKNOWN_GRAY
    return colors


def overlay_map(
    image: np.ndarray, heat: np.ndarray, limits: tuple[float, float], signed: bool, opacity: float
) -> np.ndarray:
    """Colors of a heat map over the image, more opaque where the magnitude is larger.

    Parameters
    ----------
    image : (H, W, C) array in [0, 1]
    heat : (H, W) array
        NaN where unknown; the image is unchanged there.
    limits : (float, float)
        See `color_limits`.
    signed : bool
    opacity : float in [0, 1]
        Opacity at the limits.

    Returns
    -------
    (H, W, 3) uint8 array
    """
    base = to_rgb_uint8(image)
    if signed:  # the image keeps its colors where the heat is zero
        strength = normalize_values(np.abs(heat), 0.0, limits[1])
    else:
        strength, base = normalize_values(heat, *limits), desaturate(base)
    weight = np.where(np.isfinite(heat), opacity * np.sqrt(strength), 0)
    return blend(base, colorize(heat, colormap_name(signed), *limits), weight.astype(np.float32))


def mask_image(mask: np.ndarray) -> np.ndarray:
    """Mask (H, W) as white on black, (H, W, 3) uint8."""
    return np.repeat((mask * np.uint8(255))[..., None], 3, axis=2)


def cut_out(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Image (H, W, C) in [0, 1] inside the mask, a checkerboard outside, on which black and white objects are visible."""
    rows, cols = np.indices(mask.shape)
    cell = max(2, max(mask.shape) // 28)
    board = np.where((rows // cell + cols // cell) % 2, 235, 205).astype(np.uint8)
    return np.where(mask[..., None], to_rgb_uint8(image), board[..., None])


def diverging_rgb(signed: np.ndarray, outlier_fraction: float) -> np.ndarray:
    """Signed image (H, W, C) as (H, W, 3) uint8: gray for 0, scaled so that all but `outlier_fraction` of the values fit."""
    scale = np.quantile(np.abs(signed), 1 - outlier_fraction) or 1.0
    return to_rgb_uint8(0.5 + 0.5 * signed / scale)


def darken_outside(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Image (H, W, C) in [0, 1] as uint8, dark and desaturated outside the mask."""
    pixels = to_rgb_uint8(image)
    return np.where(mask[..., None], pixels, desaturate(pixels) // 3)


def upsample_grid(grid: np.ndarray, rows: np.ndarray, cols: np.ndarray, patch: int, shape: tuple[int, int]) -> np.ndarray:
    """Values at patch positions as a map: each pixel has the value of the nearest patch center.

    Parameters
    ----------
    grid : (n, m) array
        Unknown values are NaN, or negative integers. They are replaced by those of a coarser grid, every second, fourth or
        eighth position.
    rows, cols : (n,) and (m,) array
        Top and left edges of the patches in pixels.
    patch : int
        Side of a patch in pixels.
    shape : (int, int)
        Height and width of the map.

    Returns
    -------
    (H, W) array
    """
    known = np.isfinite(grid) if grid.dtype.kind == "f" else grid >= 0
    filled = grid
    for step in (8, 4, 2, 1):
        n, m = grid.shape
        values, valid = (x[::step, ::step].repeat(step, axis=0).repeat(step, axis=1)[:n, :m] for x in (grid, known))
        filled = np.where(valid, values, filled)
    nearest = [
        np.abs(edges[None] + (patch - 1) / 2 - np.arange(length)[:, None]).argmin(1)
        for edges, length in zip((rows, cols), shape, strict=True)
    ]
    return filled[nearest[0]][:, nearest[1]]
