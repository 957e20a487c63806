"""Patterns: textures without a subject, as samples for textures and as styles to paint in.

Each is computed from noise; `paintings` gives them all by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .palette import Color, _hex

NIGHT = _hex("16264f", "23478c", "3a72b8", "8fb8d8", "f4e9a6", "f2b632")
EARTH = _hex("3b2a22", "8c3b2a", "c96f3b", "e3b56b", "efe3c8", "5d7355")
GARDEN = _hex("1f4a3a", "4f9d55", "a5c94b", "f3e06a", "ee8fb1", "d7423d")
SEA = _hex("0c3b56", "14708f", "2fa5b5", "8ed6d2", "e8f6ef")


def paintings(size: int = 192, seed: int = 0) -> dict[str, np.ndarray]:
    """Name -> (size, size, 3) float32 in [0, 1]."""
    makers = {"swirls": _swirls, "mosaic": _mosaic, "dots": _dots, "waves": _waves, "bricks": _bricks}
    return {name: make(size, np.random.default_rng([seed, i])) for i, (name, make) in enumerate(makers.items())}


def _smooth(size: int, cells: float, rng: np.random.Generator) -> np.ndarray:
    """(size, size) noise in [0, 1] with about so many bumps along a side, that fits together at opposite borders."""
    rows, columns = np.fft.fftfreq(size, 1 / size)[:, None], np.fft.rfftfreq(size, 1 / size)[None]
    spectrum = np.fft.rfft2(rng.standard_normal((size, size))) * np.exp(-(rows**2 + columns**2) / cells**2)
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(size, size))
    ranks = noise.ravel().argsort().argsort()  # so that all values are equally frequent
    return (ranks.reshape(size, size) / (size * size - 1)).astype(np.float32)


def _colored(values: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Values in [0, 1] as colors of a scale."""
    scale = np.linspace(0, 1, len(colors))
    return np.stack([np.interp(values, scale, [color[c] for color in colors]) for c in range(3)], -1).astype(np.float32)


def _swirls(size: int, rng: np.random.Generator) -> np.ndarray:
    """Strokes that follow a flow: noise averaged along its lines (Cabral and Leedom, 1993)."""
    angle = 2 * np.pi * _smooth(size, 2.5, rng)
    down, right = np.sin(angle), np.cos(angle)
    grain = _colored(np.clip(0.75 * _smooth(size, 3, rng) + 0.5 * _smooth(size, size / 5, rng) - 0.12, 0, 1), NIGHT)
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
    """Tiles, each the pixels nearest to one point, with joints between them."""
    count = 140
    points = rng.random((count, 2)) * size
    away = np.abs(np.arange(size)[:, None, None] - points)
    away = np.square(np.minimum(away, size - away))  # rows, columns: (size, count, 2)
    away = (away[:, None, :, 0] + away[None, :, :, 1]).reshape(-1, count)
    nearest = away.argmin(1)
    two = np.sqrt(np.partition(away, 1, axis=1)[:, :2])
    colors = _colored(rng.random(count), EARTH)[nearest]
    colors *= 0.85 + 0.3 * rng.random((count, 1))[nearest]
    joint = np.clip((two[:, 1] - two[:, 0]) / (size / 64), 0, 1)[:, None]
    return np.clip(colors * joint + 0.1 * (1 - joint), 0, 1).reshape(size, size, 3).astype(np.float32)


def _dots(size: int, rng: np.random.Generator) -> np.ndarray:
    """Dabs of paint, one over the other."""
    image = np.full((size, size, 3), 0.9, np.float32)
    tone = _smooth(size, 4, rng)
    reach = size // 30 + 1
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    for _ in range(1400):
        y, x = rng.integers(size, size=2)
        radius = size / 40 * rng.uniform(0.7, 1.3)
        color = _colored(np.clip(tone[y, x] + 0.18 * rng.standard_normal(), 0, 1), GARDEN)
        inside = dy**2 + dx**2 < radius**2
        image[(y + dy[inside]) % size, (x + dx[inside]) % size] = color
    return image


def _waves(size: int, rng: np.random.Generator) -> np.ndarray:
    """Light on water."""
    folds = np.abs(_smooth(size, 6, rng) - 0.5) + 0.5 * np.abs(_smooth(size, 9, rng) - 0.5)
    return _colored(np.clip(0.15 + 0.9 * np.exp(-9 * folds) + 0.15 * _smooth(size, 3, rng), 0, 1), SEA)


def _bricks(size: int, rng: np.random.Generator) -> np.ndarray:
    """A wall."""
    height, width, joint = size // 12, size // 6, size / 96
    rows, columns = np.mgrid[:size, :size]
    course = rows // height
    along = columns + (course % 2) * (width // 2)
    tone = rng.random((13, 9))[course % 13, (along // width) % 6]
    wall = _colored(0.2 + 0.4 * tone, EARTH) * (0.88 + 0.24 * _smooth(size, size / 4, rng))[..., None]
    edge = np.minimum.reduce([rows % height, height - rows % height, along % width, width - along % width])
    return np.where((edge < joint)[..., None], np.float32(0.78), np.clip(wall, 0, 1)).astype(np.float32)
