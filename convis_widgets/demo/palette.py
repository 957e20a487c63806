"""The colors of Toyscape: a box of paints and three ways to vary one.

A color is a tuple (red, green, blue) of floats in [0, 1]. What is painted with them lives in ``figures`` and
``scenery``.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Color = tuple[float, float, float]
T = TypeVar("T")


def _hex(*codes: str) -> tuple[Color, ...]:
    return tuple((int(c[:2], 16) / 255, int(c[2:4], 16) / 255, int(c[4:], 16) / 255) for c in codes)


PAINTS = _hex(
    "d7423d", "ef7b5c", "f2953a", "f4bd3d", "f3e06a", "a5c94b", "4f9d55", "2f9c8f", "54c1c4", "5fa8dc",
    "3a68b8", "4d4a9e", "8a58b5", "a5447f", "ee8fb1", "f5ead0", "8d5b3c", "7d8ca0", "3e4350",
)  # fmt: skip
SKINS = _hex("f7d7c0", "f2c6a0", "e3aa7c", "c88a5c", "a0673f", "76482d")
HAIRS = _hex("2e2522", "4b3024", "7a4a2a", "b8763a", "e6c065", "b7452c", "9a9aa2", "5a4a8c", "d9698f")
LEAVES = _hex("4f9d55", "2f7d4f", "86b049", "2f9c8f", "b6c24a", "f2953a", "d7623d", "ee8fb1", "c9a13b", "f0dbe4", "8a58b5")
BARKS = _hex("7a4a2a", "5c4033", "9c6b44", "6e6259", "d8cdbd")

INK: Color = (0.13, 0.11, 0.15)
WHITE: Color = (0.97, 0.96, 0.93)


def pick(rng: np.random.Generator, things: Sequence[T]) -> T:
    """One of the things, each as likely as any other."""
    return things[int(rng.integers(len(things)))]


def paint(rng: np.random.Generator, box: Sequence[Color] = PAINTS, spread: float = 0.06) -> Color:
    """A color from the box, a little off, as if mixed by hand."""
    red, green, blue = np.clip(np.array(pick(rng, box)) + rng.uniform(-spread, spread, 3), 0, 1)
    return float(red), float(green), float(blue)


def mix(a: Color, b: Color, share: float) -> Color:
    """Color `a` with the given share of color `b` stirred in."""
    return tuple(x + (y - x) * share for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def shade(color: Color, light: float) -> Color:
    """The color lighter (`light` > 0, white at 1) or darker (`light` < 0, black at -1)."""
    return mix(color, (1.0, 1.0, 1.0) if light > 0 else (0.0, 0.0, 0.05), abs(light))


def contrasting(rng: np.random.Generator, color: Color, box: Sequence[Color] = PAINTS) -> Color:
    """A paint that stands out against `color`: the farthest of three drawn from the box."""
    return max(
        (paint(rng, box) for _ in range(3)), key=lambda other: sum((x - y) ** 2 for x, y in zip(color, other, strict=True))
    )
