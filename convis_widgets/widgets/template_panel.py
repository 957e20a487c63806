"""TemplatePanel: noise that becomes the filters of the first layer, because these are what the filters answer to most."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets
import numpy as np

from ..core import Frame
from ..techniques import template_match
from .controls import note
from .encode import in_color
from .frame_view import FrameView
from .mosaic import Mosaic, arrange
from .synthesis_panel import SynthesisPanel

WIDTH = 350  # pixels of a sheet


class TemplatePanel(SynthesisPanel):
    """For every filter of the first layer a patch that is changed to raise the filter's answer, and beside it the filter.

    Its knobs are those of `techniques.template_match`, as traits.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.

    Examples
    --------
    >>> panel = TemplatePanel(iterations=40)
    >>> panel.run.join()
    True
    >>> panel.frame.scalars["cosine"] > 0.999
    True
    """

    technique = template_match
    first = ("iterations", "rate")
    top, watched = 0, "cosine"
    composed = True

    def __init__(self, network: Any = None, **keywords: Any) -> None:
        super().__init__(network, **keywords)
        self._anew()

    def _pictures(self) -> list[ipywidgets.Widget]:
        self.filters = FrameView("the filters")
        columns = (("patches, noise to begin with", self.view), ("the filters", self.filters))
        margin = {"margin": "0 12px 0 0"}
        return [ipywidgets.VBox([ipywidgets.HTML(note(text)), view], layout=margin) for text, view in columns]

    def _frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        return template_match(self.network, **knobs)

    def _tell(self, follows: bool) -> None:
        super()._tell(follows)
        if self.frame is not None:
            self.filters.show(self._sized(_sheet(self.frame.arrays["filters"])))

    @staticmethod
    def _bytes(frame: Frame) -> np.ndarray:
        return _sheet(frame.arrays["patches"])

    def _sized(self, picture: np.ndarray) -> np.ndarray:
        """A column of tiles as a sheet."""
        height, width = self.network.weights(self.network.with_filters()[0])[0].shape[2:]
        tiles = picture.reshape(-1, height, width, 3)
        return Mosaic(tiles, *arrange(len(tiles), height, width, WIDTH)).image

    def caption_text(self) -> str:
        """What is being painted, in words."""
        if self.frame is None:
            return "each patch becomes its filter"
        least = self.frame.scalars["cosine"]
        return f"each patch becomes its filter: the cosine of the angle between them is at least {least:.4f}"


def _sheet(patches: np.ndarray) -> np.ndarray:
    """(n, h, w, C) patches, each with its largest magnitude as black or white, one below the other, (n h, w, 3) uint8."""
    most = np.abs(patches).max(axis=(1, 2, 3), keepdims=True)
    tiles = 127.5 + 127 * patches / np.maximum(most, 1e-12)
    return in_color(tiles.reshape(-1, *patches.shape[2:]).astype(np.uint8))
