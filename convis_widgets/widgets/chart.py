"""chart: a map of many small pictures, as one image: which part of it is seen, and which picture lies under a point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

MARGIN = 0.04  # of the map, around all points
SMALLEST, LARGEST = 4, 96  # pixels of a thumbnail
GROUND = 255


class Thumbnails:
    """Small pictures (n, h, w, 3) in several sizes, each made when it is first needed."""

    def __init__(self, pictures: np.ndarray) -> None:
        self._largest, self._sizes = pictures, dict[int, np.ndarray]()

    def near(self, side: float, *, within: bool = False) -> np.ndarray:
        """All of them, with a longer side of about so many pixels, or of no more."""
        own, up, down = max(self._largest.shape[1:3]), *((math.floor, math.ceil) if within else (round, round))
        times = max(1, up(side / own)) if side >= own else -max(1, down(own / max(side, 1)))
        if times not in self._sizes:
            self._sizes[times] = _sized(self._largest, times)
        return self._sizes[times]


def _sized(pictures: np.ndarray, times: int) -> np.ndarray:
    """Each pixel repeated so many times, or, if negative, the mean of so many by so many."""
    if times > 0:
        return pictures.repeat(times, axis=1).repeat(times, axis=2)
    step = -times
    height, width = (max(1, side // step) for side in pictures.shape[1:3])
    cut = pictures[:, : height * step, : width * step].astype(np.uint16)
    return cut.reshape(len(pictures), height, -1, width, cut.shape[2] // width, 3).mean((2, 4)).astype(np.uint8)


@dataclass(frozen=True)
class Chart:
    """Points of a map, seen through a window.

    Parameters
    ----------
    points : (n, 2) array
        x and y, from 0 to 1 where all can be seen.
    width, height : int
        Of the window in pixels.
    x, y : float
        The middle of the window, on the map.
    zoom : float
        1 if the whole map is in the window.
    """

    points: np.ndarray
    width: int
    height: int
    x: float = 0.5
    y: float = 0.5
    zoom: float = 1.0

    @property
    def scale(self) -> np.ndarray:
        """Pixels to the unit of the map, across and down."""
        window = np.array([self.width, self.height])
        margin = np.maximum(MARGIN * window, 0.75 * replace(self, zoom=1.0).side + 4)  # room for whole thumbnails
        return (window - 2 * np.minimum(margin, 0.3 * window)) * self.zoom

    @property
    def side(self) -> float:
        """Pixels of a thumbnail, so that they cover the window about once."""
        room = self.width * self.height / max(1, len(self.points))
        return float(np.clip(0.9 * np.sqrt(room) * self.zoom**0.8, SMALLEST, LARGEST))

    def on_screen(self) -> np.ndarray:
        """The points in pixels of the window, (n, 2)."""
        return (self.points - (self.x, self.y)) * self.scale + (self.width / 2, self.height / 2)

    def on_map(self, x: float, y: float) -> tuple[float, float]:
        """A point of the window on the map."""
        across, down = self.scale
        return self.x + (x - self.width / 2) / across, self.y + (y - self.height / 2) / down

    def moved(self, across: float, down: float) -> Chart:
        """The window after the map was dragged by so many pixels."""
        wide, high = self.scale
        return replace(self, x=float(np.clip(self.x - across / wide, 0, 1)), y=float(np.clip(self.y - down / high, 0, 1)))

    def zoomed(self, factor: float, x: float, y: float) -> Chart:
        """The window after zooming, with the same place of the map at a point (x, y) of it."""
        zoom = float(np.clip(self.zoom * factor, 1, 64))
        before = self.on_map(x, y)
        after = replace(self, zoom=zoom).on_map(x, y)
        middle = (float(np.clip(m + b - a, 0, 1)) for m, b, a in zip((self.x, self.y), before, after, strict=True))
        across, down = middle if zoom > 1 else (0.5, 0.5)
        return replace(self, zoom=zoom, x=across, y=down)

    def at(self, x: float, y: float, shape: tuple[int, int], marked: Sequence[int] = ()) -> int | None:
        """The number of the thumbnail, of this (height, width), at a point of the window, edges included: the last drawn.

        Those numbered in `marked` lie above the others.
        """
        size, edge = np.array(shape[::-1]), _edge(shape[1])
        off = np.floor((x, y)) - self._corners(shape)
        under = np.flatnonzero(((off >= -edge) & (off < size + edge)).all(1))
        above = under[np.isin(under, marked)]
        under = above if len(above) else under
        return int(under[-1]) if len(under) else None

    def within(self, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
        """The numbers of the points in a box of the window."""
        low, high = (min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1))
        there = self.on_screen()
        return np.flatnonzero(((there >= low) & (there <= high)).all(1))

    def _corners(self, shape: tuple[int, int]) -> np.ndarray:
        """Where the upper left pixels of thumbnails of this (height, width) are, (n, 2)."""
        return np.floor(self.on_screen() - (shape[1] / 2, shape[0] / 2)).astype(int)

    def draw(self, tiles: np.ndarray, colors: np.ndarray | None, marked: np.ndarray, mark: tuple[int, ...]) -> np.ndarray:
        """The window as (H, W, 3) uint8: thumbnails (n, h, w, 3) at their points, with edges in colors (n, 3), or none.

        Those numbered in `marked` get edges in the color `mark`, and lie above the others.
        """
        height, width = tiles.shape[1:3]
        edge = 0 if colors is None else _edge(width)
        pad = max(height, width) + 2 * 4
        canvas = np.full((self.height + 2 * pad, self.width + 2 * pad, 3), GROUND, np.uint8)
        corner = self._corners((height, width))
        reach = np.array([width, height]) + edge
        seen = np.flatnonzero(((corner > -reach) & (corner < (self.width + edge, self.height + edge))).all(1))
        special = np.isin(seen, marked)
        for number in np.concatenate([seen[~special], seen[special]]).tolist():
            x, y = corner[number, 0] + pad, corner[number, 1] + pad
            if edge:
                canvas[y - edge : y + height + edge, x - edge : x + width + edge] = colors[number]
            canvas[y : y + height, x : x + width] = tiles[number]
        for number in seen[special].tolist():
            x, y = corner[number, 0] + pad, corner[number, 1] + pad
            around = np.s_[y - 3 : y + height + 3, x - 3 : x + width + 3]
            inside = canvas[y : y + height, x : x + width].copy()
            canvas[around] = mark
            canvas[y : y + height, x : x + width] = inside
        return canvas[pad:-pad, pad:-pad].copy()


def _edge(width: int) -> int:
    """Pixels of the edge around a thumbnail of this width."""
    return max(1, min(3, round(width / 12)))


def unit_square(points: np.ndarray) -> np.ndarray:
    """Points (n, 2) moved and scaled, alike both ways, to lie between 0 and 1."""
    low, span = points.min(0), np.ptp(points, axis=0)
    return (points - low - span / 2) / (span.max() or 1) + 0.5
