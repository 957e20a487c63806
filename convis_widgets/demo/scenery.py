"""Backgrounds of Toyscape: textures, crops of photographs, distractors and lighting. They are independent of the label."""

from collections.abc import Iterator
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .canvas import Piece
from .palette import mix, paint, pick
from .shapes import Outline, arc, box, ellipse, polygon, rounded, smooth, stroke

Split = Literal["train", "test"]
ImageArray = NDArray[np.float32]

KINDS = ("photograph", "photograph", "gradient", "stripes", "checks", "dots", "clouds", "grain", "camouflage")


def ground(rng: np.random.Generator, size: int, split: Split) -> ImageArray:
    """A background of a random kind, see `KINDS`, (size, size, 3) float32 in [0, 1]."""
    kind = pick(rng, KINDS)
    if kind == "photograph":
        return _photograph(rng, size, split)
    common, weight = paint(rng), rng.uniform(0.1, 0.6)
    a, b = (np.array(mix(paint(rng), common, weight)) * rng.uniform(0.6, 1.1) for _ in range(2))
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    waves = rng.uniform(2.0, 9.0)
    blend: NDArray[np.floating]  # 0 for color a, 1 for color b
    if kind == "gradient":
        blend = u * rng.uniform(0.5, 1.2) + 0.5
    elif kind == "stripes":
        blend = 0.5 + rng.uniform(0.6, 4) * np.sin(2 * np.pi * (u * waves + rng.random()))
    elif kind == "checks":
        blend = 0.5 + 5 * np.sin(2 * np.pi * (u * waves / 2 + rng.random())) * np.sin(2 * np.pi * v * waves / 2)
    elif kind == "dots":
        distance = np.hypot(np.mod(u * waves, 1) - 0.5, np.mod(v * waves, 1) - 0.5)
        blend = np.clip((rng.uniform(0.2, 0.36) - distance) * size / waves, 0, 1)
    elif kind == "camouflage":
        blend = 0.5 + 7 * _noise(rng, size, int(rng.integers(3, 8)))
        third = np.array(mix(paint(rng), common, weight))
        patches = np.clip(0.5 + 7 * (_noise(rng, size, int(rng.integers(3, 8))) - 0.5), 0, 1)[..., None]
        return _clip(_mix_colors(a, b, blend) * (1 - patches) + third * patches)
    elif kind == "clouds":
        tint = np.stack([_noise(rng, size, 5) for _ in range(3)], axis=-1)
        blend = 0.5 + 0.5 * _noise(rng, size, 3) + 0.25 * _noise(rng, size, 10)
        return _clip(_mix_colors(a, b, blend) + rng.uniform(0.03, 0.12) * tint)
    else:
        blend = 0.5 + rng.uniform(0.1, 0.35) * _noise(rng, size, 40) + 0.2 * _noise(rng, size, 12)
    grain = rng.uniform(0, 0.05) * _noise(rng, size, 48)[..., None]
    return _clip(_mix_colors(a, b, blend) + grain)


def distractors(rng: np.random.Generator) -> Iterator[Piece]:
    """Up to four simple shapes that are unrelated to the label, in units of the side of the image."""
    for _ in range(int(rng.integers(0, 5))):
        angle, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.04, 0.13)
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        outline = pick(rng, _SHAPES) @ rotation.T * radius + rng.uniform(0.02, 0.98, 2)
        yield Piece("shape", outline, paint(rng), line=rng.random() < 0.5)


_SHAPES: tuple[Outline, ...] = (
    ellipse(0, 0, 1),
    ellipse(0, 0, 1, 0.55),
    box(-0.8, -0.8, 0.8, 0.8),
    polygon((0, -1), (0.9, 0.7), (-0.9, 0.7)),
    rounded(box(-1.4, -0.2, 1.4, 0.2), 0.2),
    rounded(box(-1.1, -0.6, 1.1, 0.6), 0.4),
    stroke(arc(0, 0, 0.8, 0.8, 0, 2 * np.pi), 0.4),
    stroke(arc(0, 0, 0.9, 0.9, 0, np.pi), 0.4),
    smooth((1, 0.1), (0.2, 0.6), (-0.5, 0.9), (-0.9, -0.3), (0.1, -0.7)),
    polygon((-0.3, -1), (0.3, -1), (0.3, -0.3), (1, -0.3), (1, 0.3), (0.3, 0.3),
            (0.3, 1), (-0.3, 1), (-0.3, 0.3), (-1, 0.3), (-1, -0.3), (-0.3, -0.3)),
)  # fmt: skip


def lighting(rng: np.random.Generator, size: int) -> tuple[ImageArray, tuple[float, float]]:
    """A soft light: its strength, (size, size, 1) float32, and the unit vector (x, y) toward its source."""
    angle = rng.uniform(-np.pi, 0) if rng.random() < 0.85 else rng.uniform(0, np.pi)
    dx, dy = float(np.cos(angle)), float(np.sin(angle))
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    light = rng.uniform(0.85, 1.08) * (1 + rng.uniform(0, 0.35) * (x * dx + y * dy))
    return light[..., None].astype(np.float32), (dx, dy)


def _noise(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float32]:
    """Smooth noise with `cells` knots along a side, mean 0 and standard deviation about 1."""
    knots = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(knots.resize((size, size), Image.Resampling.BICUBIC), dtype=np.float32) * np.float32(1.2)


def _mix_colors(a: NDArray[np.floating], b: NDArray[np.floating], weight: NDArray[np.floating]) -> NDArray[np.floating]:
    return a + (b - a) * np.clip(weight, 0, 1)[..., None]


def _clip(image: NDArray[np.floating]) -> ImageArray:
    return np.clip(image, 0, 1).astype(np.float32)


@cache
def _photographs() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_image  # imported here since the demo networks do not need it

    return tuple(Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg"))


def _photograph(rng: np.random.Generator, size: int, split: Split) -> ImageArray:
    """A random square of the left half ("train") or the right half ("test") of a photograph."""
    photograph = pick(rng, _photographs())
    half, height = photograph.width // 2, photograph.height
    side = rng.uniform(0.3, 0.95) * min(half, height)
    left = rng.uniform(0, half - side) + (half if split == "test" else 0)
    top = rng.uniform(0, height - side)
    crop = photograph.resize((size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    image = np.asarray(crop, dtype=np.float32) / 255
    if rng.random() < 0.5:
        image = image[:, ::-1]
    tint = np.array(mix((1.0, 1.0, 1.0), paint(rng), rng.uniform(0, 0.5)))
    if rng.random() < 0.3:
        image = image[..., rng.permutation(3)]
    return _clip(image * tint)
