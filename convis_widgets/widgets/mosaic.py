"""mosaic: many small pictures as one image, and which of them a point lies in."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from .encode import draw_box


@dataclass(frozen=True)
class Mosaic:
    """Tiles in rows, each enlarged by a whole number, with transparent gaps that show the page.

    Parameters
    ----------
    tiles : (n, h, w, 3) uint8 array
    columns : int
    times : int
        How often each pixel of a tile is repeated, down and across.
    gap : int
        Pixels between tiles, and around them all, where the selected tile's frame goes.
    """

    tiles: np.ndarray
    columns: int
    times: int
    gap: int = 3
    image: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        n, h, w, _ = self.tiles.shape
        rows = max(1, math.ceil(n / self.columns))
        cell_h, cell_w = h * self.times + self.gap, w * self.times + self.gap
        grid = np.zeros((rows, self.columns, cell_h, cell_w, 4), np.uint8)
        big = self.tiles.repeat(self.times, axis=1).repeat(self.times, axis=2)
        flat = grid.reshape(rows * self.columns, cell_h, cell_w, 4)
        flat[:n, self.gap :, self.gap :, :3] = big
        flat[:n, self.gap :, self.gap :, 3] = 255
        whole = grid.transpose(0, 2, 1, 3, 4).reshape(rows * cell_h, self.columns * cell_w, 4)
        object.__setattr__(self, "image", np.pad(whole, ((0, self.gap), (0, self.gap), (0, 0))))

    def __len__(self) -> int:
        return len(self.tiles)

    def box(self, index: int) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of a tile in the image."""
        _, h, w, _ = self.tiles.shape
        row, column = divmod(index, self.columns)
        top, left = (h * self.times + self.gap) * row + self.gap, (w * self.times + self.gap) * column + self.gap
        return top, left, top + h * self.times, left + w * self.times

    def index_at(self, x: float, y: float) -> int | None:
        """The tile at a point of the image, gaps counted with the tile before them; None beside the tiles."""
        _, h, w, _ = self.tiles.shape
        row, column = int(y // (h * self.times + self.gap)), int(x // (w * self.times + self.gap))
        index = row * self.columns + column
        return index if 0 <= column < self.columns and 0 <= index < len(self) else None

    def marked(self, index: int | None) -> np.ndarray:
        """The image with a frame around one tile."""
        if index is None or not 0 <= index < len(self):
            return self.image
        return draw_box(self.image, self.box(index), width=min(2, self.gap - 1))


def arrange(count: int, h: int, w: int, width: int, *, tile: int = 40, smallest: int = 1) -> tuple[int, int]:
    """(columns, times) for `count` tiles of h by w within `width` pixels: a wide block of tiles of about `tile` pixels.

    Columns come in powers of two where they fit, so that a tile's number is easy to find.
    """
    times = max(smallest, round(tile / max(h, w)))
    columns = min(count, 2 ** max(2, math.ceil(math.log2(max(1.0, math.sqrt(count * 2))) - 0.25)))
    while columns > 4 and columns * (w * times + 3) > width:
        columns -= 1
    while times > smallest and columns * (w * times + 3) > width:
        times -= 1
    while columns > 1 and columns * (w * times + 3) > width:
        columns -= 1
    return columns, times
