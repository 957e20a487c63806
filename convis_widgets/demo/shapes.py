"""Closed outlines: ellipses, polygons, smooth curves, strokes and stars.

An outline is a (K, 2) array of corners (x, y), with y pointing down. Figures are composed of outlines in ``figures`` and
rasterized in ``canvas``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Outline = NDArray[np.float64]
Point = tuple[float, float]


def ellipse(x: float, y: float, rx: float, ry: float | None = None, *, turn: float = 0.0) -> Outline:
    """An ellipse around (x, y) with half axes `rx` and `ry` (default: a circle), rotated by `turn` radians."""
    angle = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    u, v = rx * np.cos(angle), (rx if ry is None else ry) * np.sin(angle)
    return np.stack([x + u * np.cos(turn) - v * np.sin(turn), y + u * np.sin(turn) + v * np.cos(turn)], axis=1)


def polygon(*corners: Point) -> Outline:
    """A polygon of the given corners."""
    return np.array(corners, dtype=float)


def box(left: float, top: float, right: float, bottom: float) -> Outline:
    """An axis-aligned rectangle."""
    return polygon((left, top), (right, top), (right, bottom), (left, bottom))


def rounded(outline: Outline, radius: float) -> Outline:
    """A polygon with each corner replaced by a curve that starts and ends at the distance `radius` from it."""
    before, after = np.roll(outline, 1, axis=0) - outline, np.roll(outline, -1, axis=0) - outline
    start, end = (
        outline + side * np.minimum(0.5, radius / np.maximum(np.linalg.norm(side, axis=1, keepdims=True), 1e-9))
        for side in (before, after)
    )
    t = np.linspace(0, 1, 5)[:, None]
    return np.concatenate(
        [(1 - t) ** 2 * a + 2 * t * (1 - t) * corner + t**2 * b for a, corner, b in zip(start, outline, end, strict=True)]
    )


def smooth(*knots: Point, pieces: int = 6) -> Outline:
    """A closed smooth curve through the knots, a Catmull-Rom spline of `pieces` segments per knot."""
    p1 = np.array(knots, dtype=float)
    p0, p2, p3 = np.roll(p1, 1, axis=0), np.roll(p1, -1, axis=0), np.roll(p1, -2, axis=0)
    t = np.linspace(0, 1, pieces, endpoint=False)[:, None, None]
    curve = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return (curve / 2).transpose(1, 0, 2).reshape(-1, 2)


def symmetric(*knots: Point) -> Outline:
    """A closed smooth curve through knots on the right side, from top to bottom, and their mirror images."""
    return smooth(*knots, *((-x, y) for x, y in reversed(knots) if x))


def stroke(points: Sequence[Point] | Outline, width: float, *, taper: float = 1.0) -> Outline:
    """A stroke along the points, of width `width` at the start and `width * taper` at the end."""
    path = np.asarray(points, dtype=float)
    along = np.gradient(path, axis=0)
    normal = along[:, ::-1] * (-1, 1) / np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    half = np.linspace(width, width * taper, len(path))[:, None] / 2
    return np.concatenate([path + normal * half, (path - normal * half)[::-1]])


def arc(x: float, y: float, rx: float, ry: float, start: float, end: float) -> Outline:
    """An open arc of an ellipse from angle `start` to `end` in radians, clockwise; for `stroke`."""
    angle = np.linspace(start, end, 16)
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def spikes(points: int, outer: float, inner: float) -> Outline:
    """A star with `points` rays of radius `outer`, the first pointing up, and notches of radius `inner`."""
    angle = -np.pi / 2 + np.pi * np.arange(2 * points) / points
    radius = np.where(np.arange(2 * points) % 2, inner, outer)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def flip(outline: Outline) -> Outline:
    """The outline mirrored horizontally."""
    return outline * (-1, 1)
