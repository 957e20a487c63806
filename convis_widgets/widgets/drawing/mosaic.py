"""Mosaic: many small images as one image, with hit testing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from .encode import check_pixels

MIN_SIDE = 40  # pixels of a tile that is made smaller so that the number of columns stays

Box: TypeAlias = Sequence[float]
"""Top, left, bottom and right in pixels."""


@dataclass(frozen=True)
class Tiles:
    """Where tiles in rows are in an image, in pixels.

    Attributes
    ----------
    tile : (float, float)
        Height and width of a tile.
    gap : int
        Pixels between tiles and around them.
    columns, count : int
    """

    tile: tuple[float, float]
    gap: int
    columns: int
    count: int

    def box(self, index: int) -> tuple[float, float, float, float]:
        """(top, left, bottom, right) of a tile."""
        row, column = divmod(index, self.columns)
        height, width = (side + self.gap for side in self.tile)
        return height * row + self.gap, width * column + self.gap, height * (row + 1), width * (column + 1)

    def index_at(self, x: float, y: float) -> int | None:
        """Index of the tile at a pixel, where a gap belongs to the tile after it; None outside the tiles."""
        height, width = (side + self.gap for side in self.tile)
        row, column = int(y // height), int(x // width)
        index = row * self.columns + column
        return index if 0 <= column < self.columns and 0 <= index < self.count else None


@dataclass(frozen=True)
class Mosaic:
    """Tiles in rows, each enlarged by an integer, with transparent gaps.

    Parameters
    ----------
    tiles : (n, h, w, 3) uint8 array
    columns : int
    times : int
        Zoom factor of the tiles.
    gap : int
        Pixels between tiles and around them, where the frame of the selected tile is drawn.

    Attributes
    ----------
    image : (H, W, 4) uint8 array
    layout : Tiles
    """

    tiles: np.ndarray
    columns: int
    times: int
    gap: int = 3
    image: np.ndarray = field(init=False, repr=False)
    layout: Tiles = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n, h, w, _ = self.tiles.shape
        rows = max(1, math.ceil(n / self.columns))
        cell_h, cell_w = h * self.times + self.gap, w * self.times + self.gap
        object.__setattr__(self, "layout", Tiles((h * self.times, w * self.times), self.gap, self.columns, n))
        check_pixels(rows * cell_h, self.columns * cell_w)
        grid = np.zeros((rows, self.columns, cell_h, cell_w, 4), np.uint8)
        cells = grid.reshape(rows * self.columns, cell_h, cell_w, 4)
        cells[:n, self.gap :, self.gap :, :3] = self.tiles.repeat(self.times, axis=1).repeat(self.times, axis=2)
        cells[:n, self.gap :, self.gap :, 3] = 255
        image = grid.transpose(0, 2, 1, 3, 4).reshape(rows * cell_h, self.columns * cell_w, 4)
        object.__setattr__(self, "image", np.pad(image, ((0, self.gap), (0, self.gap), (0, 0))))

    def __len__(self) -> int:
        return len(self.tiles)

    def box(self, index: int | None) -> tuple[float, float, float, float] | None:
        """(top, left, bottom, right) of a tile in the image; None if there is no such tile."""
        return None if index is None or not 0 <= index < len(self) else self.layout.box(index)

    def index_at(self, x: float, y: float) -> int | None:
        """Index of the tile at a pixel of the image, see `Tiles`."""
        return self.layout.index_at(x, y)


def choose_layout(count: int, h: int, w: int, width: int, *, tile: int = 40, smallest: int = 1) -> tuple[int, int]:
    """Choose the number of columns and the zoom factor of a Mosaic: a wide block of tiles of similar size.

    The number of columns is a power of two where that fits, so that the index of a tile is easy to find.

    Parameters
    ----------
    count : int
        Number of tiles.
    h, w : int
        Size of a tile in pixels, not enlarged.
    width : int
        Largest width of the Mosaic in pixels.
    tile : int
        Longer side of an enlarged tile in pixels, approximately.
    smallest : int
        Smallest zoom factor.

    Returns
    -------
    columns, times : int
    """
    times = max(smallest, round(tile / max(h, w)))
    columns = min(count, 2 ** max(2, math.ceil(math.log2(max(1.0, math.sqrt(count * 2))) - 0.25)))
    while columns > 4 and columns * (w * times + 3) > width:
        if times > smallest and (times - 1) * max(h, w) >= MIN_SIDE:
            times -= 1  # rather smaller tiles than another number of columns
        else:
            columns -= 1
    while times > smallest and columns * (w * times + 3) > width:
        times -= 1
    while columns > 1 and columns * (w * times + 3) > width:
        columns -= 1
    return columns, times
