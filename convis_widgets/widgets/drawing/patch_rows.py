"""PatchRows: the maximally activating patches of a layer's channels as one image, one row per channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...core.dataset.scan import Scan
from ...core.dataset.top_k import TopActivations
from .encode import check_pixels, to_rgb
from .mosaic import Box

GAP = 2  # pixels between two patches
LABEL_WIDTH = 34  # pixels for the number of a channel


@dataclass(frozen=True)
class PatchRows:
    """Rows of patches, arranged in one or more columns.

    Parameters
    ----------
    image : (H, W, 4) uint8 array
        Transparent between patches.
    channels : sequence of int
        From top to bottom, column after column.
    columns : int
        Number of columns of rows.
    k : int
        Number of patches in a row.
    side : int
        Side of a patch in pixels.
    """

    image: np.ndarray
    channels: Sequence[int]
    columns: int
    k: int
    side: int

    @property
    def _layout(self) -> tuple[int, int, int]:
        """Height of a row, width of a column, and number of rows in a column."""
        return self.side + GAP, row_width(self.k, self.side), -(-len(self.channels) // self.columns)

    def locate(self, x: float, y: float) -> tuple[int, int | None] | None:
        """Channel and patch at a pixel of the image.

        Returns
        -------
        (channel, index of the patch or None beside the patches), or None outside the rows
        """
        height, width, rows = self._layout
        column, row = int(x // width), int(y // height)
        index = column * rows + row
        if not (0 <= row < rows and 0 <= column < self.columns and index < len(self.channels)):
            return None
        patch = int((x - column * width - LABEL_WIDTH) // (self.side + GAP))
        return self.channels[index], patch if 0 <= patch < self.k else None

    def box(self, channel: int) -> Box | None:
        """(top, left, bottom, right) of the row of a channel, inside of a frame; None if there is no such row."""
        if channel not in self.channels:
            return None
        height, width, rows = self._layout
        column, row = divmod(list(self.channels).index(channel), rows)
        left, top = column * width, row * height
        return top + GAP, left + 2, top + height, left + width - 14


def row_width(k: int, side: int) -> int:
    """Width in pixels of a row of `k` patches of this side, with its label and the space after it."""
    return LABEL_WIDTH + k * (side + GAP) + 12


def render_rows(scan: Scan, layer: str, channels: Sequence[int], *, k: int, side: int, columns: int) -> PatchRows:
    """Render the maximally activating patches of channels of a layer; a dead channel has a note instead.

    Parameters
    ----------
    scan : Scan
    layer : str
    channels : sequence of int
    k : int
        Number of patches per channel.
    side : int
        Side of a patch in pixels.
    columns : int
        Number of columns of rows.
    """
    top = scan.top(layer)
    dead = set(top.dead.tolist())
    height, width, count = PatchRows(np.empty(0), channels, columns, k, side)._layout
    check_pixels(count * height + GAP, columns * width)
    canvas = Image.fromarray(np.zeros((count * height + GAP, columns * width, 4), np.uint8))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for index, channel in enumerate(channels):
        column, row = divmod(index, count)
        draw.text((column * width + 4, row * height + side // 2 - 6), str(channel), (128, 128, 128, 255), font)
        note = "never active" if channel in dead else "not finite" if len(scan.valid) and not top.count(channel) else ""
        draw.text((column * width + LABEL_WIDTH, row * height + side // 2 - 6), note, (128, 128, 128, 255), font)
    image = np.array(canvas)
    for index, channel in enumerate(channels):
        column, row = divmod(index, count)
        if channel in dead:
            continue
        for j in range(min(k, top.count(channel))):
            x, y = column * width + LABEL_WIDTH + j * (side + GAP), row * height + GAP
            image[y : y + side, x : x + side, :3] = render_patch(scan, layer, top, channel, j, side)
            image[y : y + side, x : x + side, 3] = 255
    return PatchRows(image, channels, columns, k, side)


def patch_box(scan: Scan, layer: str, top: TopActivations, channel: int, j: int) -> tuple[int, int, int, int]:
    """(top, left, bottom, right), in its image, of the patch of a channel's j-th largest activation."""
    return scan.net.layers[layer].box((int(top.rows[channel, j]), int(top.cols[channel, j])), channel)


def render_patch(scan: Scan, layer: str, top: TopActivations, channel: int, j: int, side: int) -> np.ndarray:
    """The patch of a channel's j-th largest activation, resized and centered on gray, (side, side, 3) uint8."""
    upper, left, lower, right = patch_box(scan, layer, top, channel, j)
    return fit_square(to_rgb(scan.image(int(top.images[channel, j])))[upper:lower, left:right], side)


def fit_square(image: np.ndarray, side: int) -> np.ndarray:
    """Image resized to fit a square and centered on gray.

    Images of less than a third of the size are enlarged by an integer, which keeps their pixels sharp. Other images are
    enlarged by bicubic interpolation, or reduced by averaging.

    Parameters
    ----------
    image : (H, W, 1 or 3) uint8 array
        May be empty, for a position whose receptive field is padding only.
    side : int
        Side of the square in pixels.

    Returns
    -------
    (side, side, 3) uint8 array
    """
    height, width = image.shape[:2]
    if not image.size:
        return np.full((side, side, 3), 128, np.uint8)
    image = np.ascontiguousarray(to_rgb(image))
    scale = side / max(height, width)
    scale = scale if scale < 3 else int(scale)  # the pixels of small images are visible and should have one size
    if scale >= 3:
        resized = image.repeat(scale, axis=0).repeat(scale, axis=1)
    else:
        size = max(1, round(width * scale)), max(1, round(height * scale))
        resized = np.asarray(
            Image.fromarray(image).resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC)
        )
    if resized.shape == (side, side, 3):
        return resized
    square = np.full((side, side, 3), 128, np.uint8)
    y, x = (side - resized.shape[0]) // 2, (side - resized.shape[1]) // 2
    square[y : y + resized.shape[0], x : x + resized.shape[1]] = resized
    return square
