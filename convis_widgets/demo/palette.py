"""The colors of Toyscape and functions to vary them.

A color is a tuple (red, green, blue) of floats in [0, 1].
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Color = tuple[float, float, float]
T = TypeVar("T")


def from_hex(*codes: str) -> tuple[Color, ...]:
    """Colors from hexadecimal codes such as "d7423d"."""
    return tuple((int(c[:2], 16) / 255, int(c[2:4], 16) / 255, int(c[4:], 16) / 255) for c in codes)


PAINTS = from_hex(
    "d7423d", "ef7b5c", "f2953a", "f4bd3d", "f3e06a", "a5c94b", "4f9d55", "2f9c8f", "54c1c4", "5fa8dc",
    "3a68b8", "4d4a9e", "8a58b5", "a5447f", "ee8fb1", "f5ead0", "8d5b3c", "7d8ca0", "3e4350",
)  # fmt: skip
SKINS = from_hex("f7d7c0", "f2c6a0", "e3aa7c", "c88a5c", "a0673f", "76482d")
HAIRS = from_hex("2e2522", "4b3024", "7a4a2a", "b8763a", "e6c065", "b7452c", "9a9aa2", "5a4a8c", "d9698f")
LEAVES = from_hex(
    "4f9d55", "2f7d4f", "86b049", "2f9c8f", "b6c24a", "f2953a", "d7623d", "ee8fb1", "c9a13b", "f0dbe4", "8a58b5"
)
BARKS = from_hex("7a4a2a", "5c4033", "9c6b44", "6e6259", "d8cdbd")

INK: Color = (0.13, 0.11, 0.15)
WHITE: Color = (0.97, 0.96, 0.93)


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """A random item, all equally likely."""
    return items[int(rng.integers(len(items)))]


def paint(rng: np.random.Generator, colors: Sequence[Color] = PAINTS, spread: float = 0.06) -> Color:
    """A random color, varied by up to `spread` per channel."""
    red, green, blue = np.clip(np.array(pick(rng, colors)) + rng.uniform(-spread, spread, 3), 0, 1)
    return float(red), float(green), float(blue)


def mix(a: Color, b: Color, weight: float) -> Color:
    """Weighted mean of two colors; `weight`, in [0, 1], is that of `b`."""
    red, green, blue = (x + (y - x) * weight for x, y in zip(a, b, strict=True))
    return red, green, blue


def shade(color: Color, light: float) -> Color:
    """A lighter (`light` > 0, white at 1) or darker (`light` < 0, black at -1) tone of a color."""
    return mix(color, (1.0, 1.0, 1.0) if light > 0 else (0.0, 0.0, 0.05), abs(light))


def contrasting(rng: np.random.Generator, color: Color, colors: Sequence[Color] = PAINTS) -> Color:
    """A color that contrasts with `color`: the most distant of three random ones."""
    candidates = (paint(rng, colors) for _ in range(3))
    return max(candidates, key=lambda other: sum((x - y) ** 2 for x, y in zip(color, other, strict=True)))
