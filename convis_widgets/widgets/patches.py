"""patches: the pieces of pictures that excite the channels of a layer, as one image, a row for each channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..core import Scan, Top
from .encode import HIGHLIGHT, in_color

GAP = 2  # pixels between two patches
LABEL = 34  # pixels for a channel's number


@dataclass(frozen=True)
class Rows:
    """Channels in rows, in one or more columns of rows.

    Parameters
    ----------
    image : (H, W, 4) uint8 array
        Transparent between patches.
    channels : sequence of int
        From top to bottom, column after column.
    columns, k, side : int
        Columns of rows, patches in a row, pixels of a patch.
    """

    image: np.ndarray
    channels: Sequence[int]
    columns: int
    k: int
    side: int

    @property
    def _row(self) -> tuple[int, int, int]:
        """(height of a row, width of a column, rows in a column)."""
        return self.side + GAP, LABEL + self.k * (self.side + GAP) + 12, -(-len(self.channels) // self.columns)

    def at(self, x: float, y: float) -> tuple[int, int | None] | None:
        """(channel, number of the patch or None for the channel's number) at a point; None beside them."""
        height, width, rows = self._row
        column, row = int(x // width), int(y // height)
        index = column * rows + row
        if not (0 <= row < rows and 0 <= column < self.columns and index < len(self.channels)):
            return None
        patch = int((x - column * width - LABEL) // (self.side + GAP))
        return self.channels[index], patch if 0 <= patch < self.k else None

    def marked(self, channel: int) -> np.ndarray:
        """The image with a frame around a channel's row."""
        if channel not in self.channels:
            return self.image
        height, width, rows = self._row
        column, row = divmod(list(self.channels).index(channel), rows)
        canvas = Image.fromarray(self.image)
        left, top = column * width, row * height
        box = (left, top, left + width - 12, top + height - 1)
        ImageDraw.Draw(canvas).rectangle(box, outline=(*HIGHLIGHT, 255), width=2)
        return np.asarray(canvas)


def rows_of(scan: Scan, layer: str, channels: Sequence[int], *, k: int, side: int, columns: int) -> Rows:
    """The patches of some channels of a layer, each `side` pixels; a dead channel has none."""
    top = scan.top(layer)
    dead = set(top.dead.tolist())
    rows = Rows(np.empty(0), channels, columns, k, side)
    height, width, count = rows._row
    image = np.zeros((count * height + GAP, columns * width, 4), np.uint8)
    canvas = Image.fromarray(image)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for index, channel in enumerate(channels):
        column, row = divmod(index, count)
        draw.text((column * width + 4, row * height + side // 2 - 6), str(channel), (128, 128, 128, 255), font)
        what = "never active" if channel in dead else "not finite" if len(scan.known) and not top.count(channel) else ""
        draw.text((column * width + LABEL, row * height + side // 2 - 6), what, (128, 128, 128, 255), font)
    image = np.array(canvas)
    for index, channel in enumerate(channels):
        column, row = divmod(index, count)
        if channel in dead:
            continue
        for j in range(min(k, top.count(channel))):
            x, y = column * width + LABEL + j * (side + GAP), row * height + GAP
            image[y : y + side, x : x + side, :3] = patch_of(scan, layer, top, channel, j, side)
            image[y : y + side, x : x + side, 3] = 255
    return Rows(image, channels, columns, k, side)


def box_of(scan: Scan, layer: str, top: Top, channel: int, j: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right) in its picture of the j-th strongest position of a channel."""
    return scan.net.layers[layer].box((int(top.rows[channel, j]), int(top.cols[channel, j])))


def patch_of(scan: Scan, layer: str, top: Top, channel: int, j: int, side: int) -> np.ndarray:
    """What the j-th strongest position of a channel sees, its longer side `side` pixels, centered on gray."""
    up, left, bottom, right = box_of(scan, layer, top, channel, j)
    return fitted(in_color(scan.view(int(top.images[channel, j])))[up:bottom, left:right], side)


def fitted(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture (H, W, 1 or 3) as (side, side, 3): small ones with crisp pixels, large ones smoothly made smaller."""
    height, width = picture.shape[:2]
    if not picture.size:  # a position that sees nothing but padding
        return np.full((side, side, 3), 128, np.uint8)
    scale = side / max(height, width)
    scale = scale if scale < 3 else int(scale)  # of very small ones every pixel can be seen, all of one size
    if scale >= 3:
        small = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    else:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
        image = image if image.mode == "RGB" else image.convert("RGB")
        small = np.asarray(image.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC))
    if small.shape == (side, side, 3):
        return small
    whole = np.full((side, side, 3), 128, np.uint8)
    y, x = (side - small.shape[0]) // 2, (side - small.shape[1]) // 2
    whole[y : y + small.shape[0], x : x + small.shape[1]] = small
    return whole
