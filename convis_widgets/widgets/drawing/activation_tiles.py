"""Activation maps as tiles of a mosaic."""

from __future__ import annotations

import numpy as np

from .colors import colorize, normalize_values
from .encode import blend
from .heatmap import colormap_name


def vector_tiles(values: np.ndarray, colormap: str, limits: tuple[float, float], side: int) -> np.ndarray:
    """Values (n,) as colored tiles (n, side, side, 3), uint8, on one scale."""
    colors = colorize(values, colormap, *limits)
    return np.broadcast_to(colors[:, None, None, :], (len(values), side, side, 3)).copy()


def map_tiles(maps: np.ndarray, signed: bool, side: int) -> np.ndarray:
    """Maps (n, h, w) as gray tiles (n, H, W, 3), uint8, each stretched to its own range and enlarged to about `side` pixels.

    Zero is black, or mid-gray for signed maps. A map that is zero everywhere is marked with a cross.
    """
    zoom = max(1, side // max(maps.shape[1:]))
    maps = maps.repeat(zoom, axis=1).repeat(zoom, axis=2)
    n, h, w = maps.shape
    peak = np.abs(np.nan_to_num(maps)).reshape(n, -1).max(1).reshape(n, 1, 1)
    scale = np.where(peak > 0, peak, 1)
    gray = (np.nan_to_num(maps) / scale + 1) / 2 if signed else np.nan_to_num(maps) / scale
    tiles = np.repeat((np.clip(gray, 0, 1) * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=3)
    dead = (maps == 0).all((1, 2))
    if dead.any():
        size = max(h, w)
        i, j = np.arange(size) * h // size, np.arange(size) * w // size
        cross = np.full((h, w, 3), 32, np.uint8)
        cross[i, j] = cross[i, w - 1 - j] = (200, 80, 80)
        tiles[dead] = cross
    return tiles


def max_pool_tiles(tiles: np.ndarray, side: int) -> np.ndarray:
    """Tiles larger than `side` pixels reduced by a whole number; the brightest pixel of each block is kept."""
    _, h, w, _ = tiles.shape
    by = -(-max(h, w) // side)
    if by == 1:
        return tiles
    padded = np.pad(tiles, ((0, 0), (0, -h % by), (0, -w % by), (0, 0)), mode="edge")
    n, hh, ww, c = padded.shape
    return padded.reshape(n, hh // by, by, ww // by, by, c).max((2, 4))


def map_over_image(
    image: np.ndarray, activations: np.ndarray, limits: tuple[float, float], opacity: float, *, signed: bool
) -> np.ndarray:
    """An activation map in colors over the image, of the image's size.

    Parameters
    ----------
    image : (H, W, 3) uint8 array
    activations : (h, w) array
    limits : (float, float)
        Values at the two ends of the color map.
    opacity : float, 0 to 1
    signed : bool
        Whether values are of both signs; where a map is zero, the image stays as it is then.
    """
    (height, width), (h, w) = image.shape[:2], activations.shape
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    colors = colorize(activations, colormap_name(signed), *limits)[rows][:, columns]
    weight: np.ndarray | float = opacity
    if signed:
        weight = opacity * np.sqrt(normalize_values(np.abs(activations), 0.0, limits[1]))[rows][:, columns]
    return blend(image, colors, weight)
