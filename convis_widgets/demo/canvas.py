"""Rasterization: outlines to color, coverage and part masks, drawn at four times the size and averaged.

A piece is an outline with a color and the name of its part; what it depicts is defined in ``figures``.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .palette import Color
from .shapes import Outline

SUPERSAMPLING = 4  # drawn pixels per pixel of the result, along each side


class Piece(NamedTuple):
    """One filled outline of a drawing."""

    part: str
    outline: Outline
    color: Color
    line: bool = True  # whether it gets a contour, in drawings with contours


class Layer(NamedTuple):
    """A rasterized drawing.

    Attributes
    ----------
    color : (S, S, 3) float32 array
        Color times coverage, so that the image is ``color + (1 - coverage) * background``.
    coverage : (S, S, 1) float32 array
        Fraction of each pixel that the drawing covers.
    parts : dict of str to (S, S) bool array
        Visible pixels of each part. The parts are disjoint, and their union is the mask.
    """

    color: NDArray[np.float32]
    coverage: NDArray[np.float32]
    parts: dict[str, NDArray[np.bool_]]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Pixels of which the drawing covers at least half, (S, S) bool."""
        return self.coverage[..., 0] >= 0.5


def draw(
    pieces: Iterable[Piece], names: Sequence[str], size: int, *, contour: float = 0.0, ink: Color | None = None
) -> Layer:
    """Draw pieces over one another.

    Parameters
    ----------
    pieces : iterable of Piece
        From back to front; outlines in units of the side of the image.
    names : sequence of str
        Names of the parts.
    size : int
        Side of the image in pixels.
    contour : float
        Width of the contours, in units of the side of the image; 0 for none.
    ink : color, optional
        Color of the contours; a dark tone of each piece's color by default.
    """
    side = size * SUPERSAMPLING
    color_image, part_image = Image.new("RGB", (side, side)), Image.new("L", (side, side))
    color_pen, part_pen = ImageDraw.Draw(color_image), ImageDraw.Draw(part_image)
    for piece in pieces:
        number = names.index(piece.part) + 1
        corners = [(float(x), float(y)) for x, y in piece.outline * side]
        color_pen.polygon(corners, fill=_to_bytes(piece.color))
        part_pen.polygon(corners, fill=number)
        width = round(contour * side)
        if width and piece.line:
            line = [*corners, *corners[:2]]
            line_color = ink or (piece.color[0] * 0.4, piece.color[1] * 0.4, piece.color[2] * 0.4)
            color_pen.line(line, fill=_to_bytes(line_color), width=width, joint="curve")
            part_pen.line(line, fill=number, width=width, joint="curve")
    fractions = np.stack([_part_coverage(part_image, number) for number in range(1, len(names) + 1)])
    coverage, largest = np.minimum(fractions.sum(axis=0), np.float32(1)), fractions.argmax(axis=0)
    inside = coverage >= 0.5
    return Layer(
        _downsample(color_image),
        coverage[..., None],
        {name: inside & (largest == number) for number, name in enumerate(names)},
    )


def _part_coverage(part_image: Image.Image, number: int) -> NDArray[np.float32]:
    """Fraction of each pixel of the result that shows the part with this number."""
    return _downsample(part_image.point([0] * number + [255] + [0] * (255 - number)))


def _downsample(image: Image.Image) -> NDArray[np.float32]:
    return np.asarray(image.reduce(SUPERSAMPLING), dtype=np.float32) / np.float32(255)


def _to_bytes(color: Color) -> tuple[int, int, int]:
    return round(color[0] * 255), round(color[1] * 255), round(color[2] * 255)
