"""InversionPanel: what each layer still knows of a picture, side by side."""

from __future__ import annotations

import html
from collections.abc import Iterator
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame
from ..techniques import feature_inversion
from ..techniques.feature_inversion import ladder
from .encode import enlarge, to_uint8, written
from .picture_panel import PicturePanel

RUNG = 160  # pixels of a picture
GAP, HEAD = 10, 20  # between pictures, and for their names
ROW = 5  # pictures in a row


class InversionPanel(PicturePanel):
    """For each of several layers a picture, found from noise, of which the layer puts out what it puts out of the given one:
    deeper layers know less of where and how.

    Its knobs are those of `techniques.feature_inversion`, as traits.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    images : picture, list or dict of pictures, optional
        The pictures to choose from; some that are always at hand otherwise.
    layers : str or sequence of str, optional
        Some of growing depth otherwise.

    Examples
    --------
    >>> panel = InversionPanel(layers=["relu1", "relu4"], iterations=20)
    >>> panel.run.join()
    True
    >>> panel.frame.arrays["ladder"].shape
    (2, 64, 64, 3)
    """

    technique = feature_inversion
    first = ("iterations", "tv_weight", "alpha_weight", "rate")
    top, watched, side = 0, "features", RUNG
    composed = True
    cropped = True
    layers = traitlets.Tuple(help="Names of the layers, from the first to the last.")

    def __init__(self, network: Any = None, images: Any = None, layers: Any = None, **keywords: Any) -> None:
        self._asked_for = layers
        super().__init__(network, images, **keywords)

    def _question(self) -> list[ipywidgets.Widget]:
        wanted = self._asked_for
        self.layers = ladder(self.network) if wanted is None else (wanted,) if isinstance(wanted, str) else tuple(wanted)
        names = [one.name for one in self.network.layers if one.maps is not None]
        self.menu = ipywidgets.SelectMultiple(options=names, value=self.layers, rows=6, description="layers")
        self._leads(self.menu, "layers")
        return [*super()._question(), self.menu]

    def _pictures(self) -> list[ipywidgets.Widget]:
        self.table = ipywidgets.HTML()
        return [ipywidgets.VBox([self.view, self.table], layout={"max_width": "980px"})]

    # -- state -------------------------------------------------------------------------------------------------

    @traitlets.validate("layers")
    def _layers_exist(self, proposal: dict[str, Any]) -> tuple[str, ...]:
        if not proposal["value"]:
            raise traitlets.TraitError(f"there is no layer; give some of {', '.join(ladder(self.network))}")
        return tuple(self.network.layers[name].name for name in proposal["value"])

    @traitlets.observe("layers")
    def _other_layers(self, change: Any) -> None:
        self._ask_anew(change)

    def _show_question(self) -> None:
        with self.quietly():
            self.menu.value = self.layers

    # -- the computation ---------------------------------------------------------------------------------------

    def _frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        picture = self.picture()
        self._original, self.table.value = to_uint8(picture), ""
        return feature_inversion(self.network, picture, layer=self.layers, **knobs)

    @staticmethod
    def _bytes(frame: Frame) -> np.ndarray:
        """The whole ladder, one below the other."""
        return np.concatenate([to_uint8(rung) for rung in frame.arrays["ladder"]])

    def _sized(self, picture: np.ndarray) -> np.ndarray:
        """The given picture and the ladder, each under its name, in rows."""
        rungs = np.split(picture, len(picture) // len(self._original))
        tiles = [enlarge(one, RUNG) for one in (self._original, *rungs)]
        height, width = tiles[0].shape[0] + HEAD, tiles[0].shape[1] + GAP
        rows = -(-(1 + len(self.layers)) // ROW)
        sheet = np.zeros((rows * height, min(ROW, 1 + len(self.layers)) * width - GAP, 4), np.uint8)
        heads = []
        for i, (tile, name) in enumerate(zip(tiles, ("the picture", *self.layers), strict=False)):
            y, x = i // ROW * height, i % ROW * width
            sheet[y + HEAD : y + height, x : x + width - GAP, :3] = tile
            sheet[y + HEAD : y + height, x : x + width - GAP, 3] = 255
            heads.append((x, y, name))
        return written(sheet, heads)

    # -- drawing -----------------------------------------------------------------------------------------------

    def _draw_bars(self) -> None:
        super()._draw_bars()
        if self.frame is not None:
            words = "layer", "error of its features", "error of the pixels (a flat picture: 100 %)"
            head = f"<tr>{''.join(f'<th>{word}</th>' for word in words)}</tr>"
            rows = [f"<td>{html.escape(name)}</td>" for name in self.layers]
            rows = [row + "".join(f"<td>{e:.1%}</td>" for e in errors) for row, errors in self._errors(rows)]
            self.table.value = f"<table>{head}{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"

    def _errors(self, rows: list[str]) -> Iterator[tuple[str, np.ndarray]]:
        return zip(rows, self.frame.arrays["errors"], strict=False)

    def caption_text(self) -> str:
        """What is being painted, in words."""
        return f"what {', '.join(self.layers)} still know{'s' if len(self.layers) == 1 else ''} of {self.images.menu.value}"
