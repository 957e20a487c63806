"""Procedural textures, as samples for texture synthesis and as style images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .palette import Color, from_hex

__all__ = ["paintings"]

NIGHT = from_hex("16264f", "23478c", "3a72b8", "8fb8d8", "f4e9a6", "f2b632")
EARTH = from_hex("3b2a22", "8c3b2a", "c96f3b", "e3b56b", "efe3c8", "5d7355")
GARDEN = from_hex("1f4a3a", "4f9d55", "a5c94b", "f3e06a", "ee8fb1", "d7423d")
SEA = from_hex("0c3b56", "14708f", "2fa5b5", "8ed6d2", "e8f6ef")


def paintings(size: int = 192, seed: int = 0) -> dict[str, np.ndarray]:
    """Procedural textures by name, such as "swirls" and "bricks".

    Parameters
    ----------
    size : int
        Side in pixels.
    seed : int

    Returns
    -------
    dict of str to (size, size, 3) float32 array in [0, 1]
    """
    patterns = {"swirls": _swirls, "mosaic": _mosaic, "dots": _dots, "waves": _waves, "bricks": _bricks}
    return {name: pattern(size, np.random.default_rng([seed, i])) for i, (name, pattern) in enumerate(patterns.items())}


def _smooth_noise(size: int, cells: float, rng: np.random.Generator) -> np.ndarray:
    """Periodic noise (size, size), uniformly distributed in [0, 1], with about `cells` bumps along a side."""
    rows, columns = np.fft.fftfreq(size, 1 / size)[:, None], np.fft.rfftfreq(size, 1 / size)[None]
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * np.exp(-(rows**2 + columns**2) / cells**2)
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(size, size))
    ranks = noise.ravel().argsort().argsort()  # for a uniform distribution
    return (ranks.reshape(size, size) / (size * size - 1)).astype(np.float32)


def _interpolate_colors(values: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Colors of values in [0, 1], interpolated between evenly spaced ones."""
    scale = np.linspace(0, 1, len(colors))
    return np.stack([np.interp(values, scale, [color[c] for color in colors]) for c in range(3)], -1).astype(np.float32)


def _swirls(size: int, rng: np.random.Generator) -> np.ndarray:
    """Strokes along a flow field: noise averaged along its lines (Cabral and Leedom, 1993)."""
    angle = 2 * np.pi * _smooth_noise(size, 2.5, rng)
    down, right = np.sin(angle), np.cos(angle)
    grain = _interpolate_colors(
        np.clip(0.75 * _smooth_noise(size, 3, rng) + 0.5 * _smooth_noise(size, size / 5, rng) - 0.12, 0, 1), NIGHT
    )
    total = np.zeros_like(grain)
    for sign in (-1, 1):
        y, x = (axis.astype(np.float32) for axis in np.mgrid[:size, :size])
        for _ in range(size // 10):
            i, j = y.astype(int) % size, x.astype(int) % size
            total += grain[i, j]
            y, x = y + sign * down[i, j], x + sign * right[i, j]
    total /= 2 * (size // 10)
    return np.clip(0.5 + 1.35 * (total - 0.5), 0, 1)


def _mosaic(size: int, rng: np.random.Generator) -> np.ndarray:
    """Voronoi cells of random points, with joints between them."""
    count = 140
    points = rng.random((count, 2)) * size
    offsets = np.abs(np.arange(size)[:, None, None] - points)
    offsets = np.square(np.minimum(offsets, size - offsets))  # of rows and of columns, (size, count, 2)
    distances = (offsets[:, None, :, 0] + offsets[None, :, :, 1]).reshape(-1, count)
    nearest = distances.argmin(1)
    two = np.sqrt(np.partition(distances, 1, axis=1)[:, :2])
    colors = _interpolate_colors(rng.random(count), EARTH)[nearest]
    colors *= 0.85 + 0.3 * rng.random((count, 1))[nearest]
    inside = np.clip((two[:, 1] - two[:, 0]) / (size / 64), 0, 1)[:, None]
    return np.clip(colors * inside + 0.1 * (1 - inside), 0, 1).reshape(size, size, 3).astype(np.float32)


def _dots(size: int, rng: np.random.Generator) -> np.ndarray:
    """Overlapping discs of color."""
    image = np.full((size, size, 3), 0.9, np.float32)
    tone = _smooth_noise(size, 4, rng)
    reach = size // 30 + 1
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    for _ in range(1400):
        y, x = rng.integers(size, size=2)
        radius = size / 40 * rng.uniform(0.7, 1.3)
        color = _interpolate_colors(np.clip(tone[y, x] + 0.18 * rng.standard_normal(), 0, 1), GARDEN)
        inside = dy**2 + dx**2 < radius**2
        image[(y + dy[inside]) % size, (x + dx[inside]) % size] = color
    return image


def _waves(size: int, rng: np.random.Generator) -> np.ndarray:
    """Light on water."""
    folds = np.abs(_smooth_noise(size, 6, rng) - 0.5) + 0.5 * np.abs(_smooth_noise(size, 9, rng) - 0.5)
    return _interpolate_colors(np.clip(0.15 + 0.9 * np.exp(-9 * folds) + 0.15 * _smooth_noise(size, 3, rng), 0, 1), SEA)


def _bricks(size: int, rng: np.random.Generator) -> np.ndarray:
    """A brick wall."""
    height, width, joint = size // 12, size // 6, size / 96
    rows, columns = np.mgrid[:size, :size]
    course = rows // height
    along = columns + (course % 2) * (width // 2)
    tone = rng.random((13, 9))[course % 13, (along // width) % 6]
    wall = _interpolate_colors(0.2 + 0.4 * tone, EARTH) * (0.88 + 0.24 * _smooth_noise(size, size / 4, rng))[..., None]
    edge = np.minimum.reduce([rows % height, height - rows % height, along % width, width - along % width])
    return np.where((edge < joint)[..., None], np.float32(0.78), np.clip(wall, 0, 1)).astype(np.float32)
