"""From outlines to pixels: a canvas drawn at four times the size, averaged down to color, coverage and part masks.

Knows nothing about faces or cars: a piece is an outline with a color and the name of the part it belongs to.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .palette import Color
from .shapes import Outline

FINE = 4  # pixels drawn for each pixel kept, along each side


class Piece(NamedTuple):
    """One filled outline of a drawing."""

    part: str
    outline: Outline
    color: Color
    line: bool = True  # whether a drawing with contours gives this piece one


class Layer(NamedTuple):
    """What a drawing leaves on the picture.

    Attributes
    ----------
    color : (S, S, 3) float32 array
        Color times coverage, so that ``color + (1 - coverage) * behind`` is the picture.
    coverage : (S, S, 1) float32 array
        Share of each pixel that the drawing covers.
    parts : dict of str to (S, S) bool array
        The visible pixels of each part; together they are the mask and no pixel belongs to two of them.
    """

    color: NDArray[np.float32]
    coverage: NDArray[np.float32]
    parts: dict[str, NDArray[np.bool_]]

    @property
    def mask(self) -> NDArray[np.bool_]:
        """(S, S) bool array: the pixels that the drawing covers by half or more."""
        return self.coverage[..., 0] >= 0.5


def draw(
    pieces: Iterable[Piece], names: Sequence[str], size: int, *, contour: float = 0.0, ink: Color | None = None
) -> Layer:
    """Draw the pieces over one another, each outline in units of the picture's side.

    Parameters
    ----------
    pieces : iterable of Piece
        The first lies at the bottom.
    names : sequence of str
        The parts to keep masks of.
    size : int
        Side of the picture in pixels.
    contour : float
        Width of the contour lines, in units of the picture's side; 0 draws none.
    ink : color, optional
        Color of the contours; None gives every piece a dark tone of its own color.
    """
    side = size * FINE
    color, owner = Image.new("RGB", (side, side)), Image.new("L", (side, side))
    pens = ImageDraw.Draw(color), ImageDraw.Draw(owner)
    for piece in pieces:
        fills = _bytes(piece.color), names.index(piece.part) + 1
        corners = [(float(x), float(y)) for x, y in piece.outline * side]
        for pen, fill in zip(pens, fills, strict=True):
            pen.polygon(corners, fill=fill)
        width = round(contour * side)
        if width and piece.line:
            lines = _bytes(ink or (piece.color[0] * 0.4, piece.color[1] * 0.4, piece.color[2] * 0.4)), fills[1]
            for pen, fill in zip(pens, lines, strict=True):
                pen.line([*corners, *corners[:2]], fill=fill, width=width, joint="curve")
    share = np.stack([_share(owner, number) for number in range(1, len(names) + 1)])
    coverage, winner = np.minimum(share.sum(axis=0), 1), share.argmax(axis=0)
    inside = coverage >= 0.5
    return Layer(
        np.asarray(color.reduce(FINE), dtype=np.float32) / 255,
        coverage[..., None],
        {name: inside & (winner == number) for number, name in enumerate(names)},
    )


def _share(owner: Image.Image, number: int) -> NDArray[np.float32]:
    """Share of each pixel kept that belongs to the part with this number."""
    own = owner.point([0] * number + [255] + [0] * (255 - number))
    return np.asarray(own.reduce(FINE), dtype=np.float32) / 255


def _bytes(color: Color) -> tuple[int, int, int]:
    return round(color[0] * 255), round(color[1] * 255), round(color[2] * 255)
