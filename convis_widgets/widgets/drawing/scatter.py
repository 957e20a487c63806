"""Scatter plot of thumbnails as one image, with hit testing, panning and zooming."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

MARGIN = 0.04  # fraction of the window, around all points
MIN_THUMBNAIL, MAX_THUMBNAIL = 4, 96  # side in pixels
BACKGROUND = 255


class Thumbnails:
    """Thumbnails in several sizes. Each size is computed when it is first used.

    Parameters
    ----------
    images : (n, h, w, 3) uint8 array
    """

    def __init__(self, images: np.ndarray) -> None:
        self._images, self._sizes = images, dict[int, np.ndarray]()

    def at_size(self, side: float, *, within: bool = False) -> np.ndarray:
        """All thumbnails, enlarged or reduced by an integer.

        Parameters
        ----------
        side : float
            Longer side in pixels, approximately.
        within : bool
            Whether `side` is an upper bound.

        Returns
        -------
        (n, h, w, 3) uint8 array
        """
        longer_side = max(self._images.shape[1:3])
        if side >= longer_side:
            ratio = side / longer_side
            factor = max(1, math.floor(ratio) if within else round(ratio))
        else:
            ratio = longer_side / max(side, 1)
            factor = -max(1, math.ceil(ratio) if within else round(ratio))
        if factor not in self._sizes:
            self._sizes[factor] = _resample(self._images, factor)
        return self._sizes[factor]


def _resample(images: np.ndarray, factor: int) -> np.ndarray:
    """Images enlarged by an integer; a negative one reduces them, by the mean of blocks of pixels."""
    if factor > 0:
        return images.repeat(factor, axis=1).repeat(factor, axis=2)
    height, width = (max(1, side // -factor) for side in images.shape[1:3])
    cropped = images[:, : height * -factor, : width * -factor].astype(np.uint16)
    blocks = cropped.reshape(len(images), height, -1, width, cropped.shape[2] // width, 3)
    return blocks.mean((2, 4)).astype(np.uint8)


@dataclass(frozen=True)
class Scatter:
    """Points of a map and the window through which they are seen. Panning and zooming return a new Scatter.

    Parameters
    ----------
    points : (n, 2) array
        x and y on the map, from 0 to 1; see `unit_square`.
    width, height : int
        Size of the window in pixels.
    x, y : float
        Center of the window on the map.
    zoom : float
        1 if the window shows the whole map, up to 64.
    """

    points: np.ndarray
    width: int
    height: int
    x: float = 0.5
    y: float = 0.5
    zoom: float = 1.0

    @property
    def scale(self) -> np.ndarray:
        """Pixels per unit of the map, horizontally and vertically."""
        window = np.array([self.width, self.height])
        margin = np.maximum(MARGIN * window, 0.75 * replace(self, zoom=1.0).side + 4)  # room for whole thumbnails
        return (window - 2 * np.minimum(margin, 0.3 * window)) * self.zoom

    @property
    def side(self) -> float:
        """Side of a thumbnail in pixels, such that they cover the window about once."""
        area = self.width * self.height / max(1, len(self.points))
        return float(np.clip(0.9 * np.sqrt(area) * self.zoom**0.8, MIN_THUMBNAIL, MAX_THUMBNAIL))

    def to_screen(self) -> np.ndarray:
        """The points in pixels of the window, (n, 2)."""
        return (self.points - (self.x, self.y)) * self.scale + (self.width / 2, self.height / 2)

    def to_map(self, x: float, y: float) -> tuple[float, float]:
        """Map coordinates of a pixel of the window."""
        scale_x, scale_y = self.scale
        return self.x + (x - self.width / 2) / scale_x, self.y + (y - self.height / 2) / scale_y

    def pan(self, dx: float, dy: float) -> Scatter:
        """Move the map by (dx, dy) pixels. The center of the window stays on the map."""
        scale_x, scale_y = self.scale
        return replace(self, x=float(np.clip(self.x - dx / scale_x, 0, 1)), y=float(np.clip(self.y - dy / scale_y, 0, 1)))

    def zoom_at(self, factor: float, x: float, y: float) -> Scatter:
        """Multiply the zoom by `factor`. The map stays in place at the pixel (x, y), and is centered at zoom 1."""
        zoom = float(np.clip(self.zoom * factor, 1, 64))
        before = self.to_map(x, y)
        after = replace(self, zoom=zoom).to_map(x, y)
        center = (float(np.clip(c + b - a, 0, 1)) for c, b, a in zip((self.x, self.y), before, after, strict=True))
        center_x, center_y = center if zoom > 1 else (0.5, 0.5)
        return replace(self, zoom=zoom, x=center_x, y=center_y)

    def thumbnail_at(self, x: float, y: float, shape: tuple[int, int], selected: Sequence[int] = ()) -> int | None:
        """Index of the topmost thumbnail at a pixel of the window, edges included; None beside the thumbnails.

        Parameters
        ----------
        x, y : float
        shape : (int, int)
            Height and width of the thumbnails.
        selected : sequence of int
            Indices of the thumbnails that are drawn last.
        """
        size, edge = np.array(shape[::-1]), _edge_width(shape[1])
        offsets = np.floor((x, y)) - self._corners(shape)
        hits = np.flatnonzero(((offsets >= -edge) & (offsets < size + edge)).all(1))
        selected_hits = hits[np.isin(hits, selected)]
        hits = selected_hits if len(selected_hits) else hits
        return int(hits[-1]) if len(hits) else None

    def points_in_box(self, x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
        """Indices of the points in a box of the window, given by two opposite corners."""
        low, high = (min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1))
        points = self.to_screen()
        return np.flatnonzero(((points >= low) & (points <= high)).all(1))

    def _corners(self, shape: tuple[int, int]) -> np.ndarray:
        """Upper left pixels, (n, 2), of thumbnails of this (height, width)."""
        return np.floor(self.to_screen() - (shape[1] / 2, shape[0] / 2)).astype(int)

    def draw(
        self, thumbnails: np.ndarray, colors: np.ndarray | None, selected: np.ndarray, selection_color: tuple[int, ...]
    ) -> np.ndarray:
        """Draw the window.

        Parameters
        ----------
        thumbnails : (n, h, w, 3) uint8 array
            Centered at the points, in this order.
        colors : (n, 3) array or None
            Colors of the edges; None for no edges.
        selected : int array
            Indices of the selected thumbnails. They are drawn last, in a frame.
        selection_color : tuple of int
            Color of the frames.

        Returns
        -------
        (height, width, 3) uint8 array
        """
        height, width = thumbnails.shape[1:3]
        edge = 0 if colors is None else _edge_width(width)
        pad = max(height, width) + 2 * 4
        canvas = np.full((self.height + 2 * pad, self.width + 2 * pad, 3), BACKGROUND, np.uint8)
        corners = self._corners((height, width))
        reach = np.array([width, height]) + edge
        visible = np.flatnonzero(((corners > -reach) & (corners < (self.width + edge, self.height + edge))).all(1))
        is_selected = np.isin(visible, selected)
        for index in np.concatenate([visible[~is_selected], visible[is_selected]]).tolist():
            x, y = corners[index, 0] + pad, corners[index, 1] + pad
            if colors is not None:
                canvas[y - edge : y + height + edge, x - edge : x + width + edge] = colors[index]
            canvas[y : y + height, x : x + width] = thumbnails[index]
        for index in visible[is_selected].tolist():
            x, y = corners[index, 0] + pad, corners[index, 1] + pad
            inside = canvas[y : y + height, x : x + width].copy()
            canvas[y - 3 : y + height + 3, x - 3 : x + width + 3] = selection_color
            canvas[y : y + height, x : x + width] = inside
        return canvas[pad:-pad, pad:-pad].copy()


def _edge_width(width: int) -> int:
    """Width in pixels of the edge around a thumbnail of this width."""
    return max(1, min(3, round(width / 12)))


def unit_square(points: np.ndarray) -> np.ndarray:
    """Points (n, 2) shifted and scaled to lie between 0 and 1, centered, with their proportions kept."""
    low, span = points.min(0), np.ptp(points, axis=0)
    return (points - low - span / 2) / (span.max() or 1) + 0.5
