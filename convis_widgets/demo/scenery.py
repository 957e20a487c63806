"""What lies behind the figures: textured grounds, photograph crops, distracting shapes. None of it knows a label."""

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
Picture = NDArray[np.float32]

KINDS = ("photograph", "photograph", "gradient", "stripes", "checks", "dots", "clouds", "grain", "camouflage")


def ground(rng: np.random.Generator, size: int, split: Split) -> Picture:
    """A background of one of the `KINDS` as a (size, size, 3) float32 array in [0, 1]."""
    kind = pick(rng, KINDS)
    if kind == "photograph":
        return _photograph(rng, size, split)
    mood = paint(rng)
    dull = rng.uniform(0.1, 0.6)
    a, b = (np.array(mix(paint(rng), mood, dull)) * rng.uniform(0.6, 1.1) for _ in range(2))
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    angle = rng.uniform(0, np.pi)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    waves = rng.uniform(2.0, 9.0)
    if kind == "gradient":
        share = u * rng.uniform(0.5, 1.2) + 0.5
    elif kind == "stripes":
        share = 0.5 + rng.uniform(0.6, 4) * np.sin(2 * np.pi * (u * waves + rng.random()))
    elif kind == "checks":
        share = 0.5 + 5 * np.sin(2 * np.pi * (u * waves / 2 + rng.random())) * np.sin(2 * np.pi * v * waves / 2)
    elif kind == "dots":
        near = np.hypot(*(np.mod(w * waves, 1) - 0.5 for w in (u, v)))
        share = np.clip((rng.uniform(0.2, 0.36) - near) * size / waves, 0, 1)
    elif kind == "camouflage":
        share = 0.5 + 7 * _noise(rng, size, int(rng.integers(3, 8)))
        other = np.array(mix(paint(rng), mood, dull))
        patch = np.clip(0.5 + 7 * (_noise(rng, size, int(rng.integers(3, 8))) - 0.5), 0, 1)[..., None]
        return _finish(_blend(a, b, share) * (1 - patch) + other * patch)
    elif kind == "clouds":
        tint = np.stack([_noise(rng, size, 5) for _ in range(3)], axis=-1)
        share = 0.5 + 0.5 * _noise(rng, size, 3) + 0.25 * _noise(rng, size, 10)
        return _finish(_blend(a, b, share) + rng.uniform(0.03, 0.12) * tint)
    else:
        share = 0.5 + rng.uniform(0.1, 0.35) * _noise(rng, size, 40) + 0.2 * _noise(rng, size, 12)
    rough = rng.uniform(0, 0.05) * _noise(rng, size, 48)[..., None]
    return _finish(_blend(a, b, share) + rough)


def distractors(rng: np.random.Generator) -> Iterator[Piece]:
    """Up to four plain shapes that mean nothing, in units of the picture's side."""
    for _ in range(int(rng.integers(0, 5))):
        turn, radius = rng.uniform(0, 2 * np.pi), rng.uniform(0.04, 0.13)
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        outline = pick(rng, _PLAIN) @ turned.T * radius + rng.uniform(0.02, 0.98, 2)
        yield Piece("shape", outline, paint(rng), line=rng.random() < 0.5)


_PLAIN: tuple[Outline, ...] = (
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


def lighting(rng: np.random.Generator, size: int) -> tuple[Picture, tuple[float, float]]:
    """A soft light across the picture: its (size, size, 1) strength, and the unit vector from which it falls."""
    angle = rng.uniform(-np.pi, 0) if rng.random() < 0.85 else rng.uniform(0, np.pi)
    dx, dy = float(np.cos(angle)), float(np.sin(angle))
    y, x = np.mgrid[0:size, 0:size] / size - 0.5
    light = rng.uniform(0.85, 1.08) * (1 + rng.uniform(0, 0.35) * (x * dx + y * dy))
    return light[..., None].astype(np.float32), (dx, dy)


def _noise(rng: np.random.Generator, size: int, cells: int) -> NDArray[np.float32]:
    """Smooth noise with `cells` knots along a side, of mean 0 and deviation about 1."""
    knots = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
    return np.asarray(knots.resize((size, size), Image.Resampling.BICUBIC)) * 1.2


def _blend(a: NDArray[np.float64], b: NDArray[np.float64], share: NDArray[np.float64]) -> NDArray[np.float64]:
    return a + (b - a) * np.clip(share, 0, 1)[..., None]


def _finish(picture: NDArray[np.float64]) -> Picture:
    return np.clip(picture, 0, 1).astype(np.float32)


@cache
def _photographs() -> tuple[Image.Image, ...]:
    from sklearn.datasets import load_sample_image  # only here: most users of the demo network need no photograph

    return tuple(Image.fromarray(load_sample_image(name)) for name in ("china.jpg", "flower.jpg"))


def _photograph(rng: np.random.Generator, size: int, split: Split) -> Picture:
    """A square from the left half of a photograph ("train") or from its right half ("test")."""
    photograph = pick(rng, _photographs())
    half, height = photograph.width // 2, photograph.height
    side = rng.uniform(0.3, 0.95) * min(half, height)
    left = rng.uniform(0, half - side) + (half if split == "test" else 0)
    top = rng.uniform(0, height - side)
    crop = photograph.resize((size, size), Image.Resampling.BOX, box=(left, top, left + side, top + side))
    picture = np.asarray(crop, dtype=np.float32) / 255
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    tint = np.array(mix((1.0, 1.0, 1.0), paint(rng), rng.uniform(0, 0.5)))
    if rng.random() < 0.3:
        picture = picture[..., rng.permutation(3)]
    return _finish(picture * tint)
