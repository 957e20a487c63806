"""TemplatePanel: patches that maximize the filters of the first layer, beside the filters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets
import numpy as np

from ...core.runs.frame import Frame
from ...core.types import NetworkLike
from ...techniques import template_match
from ..base.params import knob_params
from ..controls.frame_view import FrameView
from ..controls.text import text_html
from ..drawing.encode import to_rgb
from ..drawing.mosaic import Mosaic, choose_layout
from .synthesis_panel import SynthesisPanel

SHEET_WIDTH = 350  # pixels


class TemplatePanel(SynthesisPanel):
    """For each filter of the first layer a patch of noise that grows into the filter, as its activation is maximized.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.

    Examples
    --------
    >>> panel = TemplatePanel(iterations=40)
    >>> panel.run.join()
    True
    >>> panel.frame.scalars["cosine"] > 0.999
    True
    """

    linkable = ()  # it does not show units
    technique = template_match
    extra_params = knob_params(template_match)
    main_knobs = ("iterations", "lr")
    num_classes, default_curve = 0, "cosine"
    composite = True

    def __init__(self, network: NetworkLike = None, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        self.build()

    def image_parts(self) -> list[ipywidgets.Widget]:
        """The patches and the filters."""
        self.filters = FrameView("the filters")
        columns = (("patches, initially noise", self.view), ("filters", self.filters))
        margin = {"margin": "0 12px 0 0"}
        return [ipywidgets.VBox([ipywidgets.HTML(text_html(title)), view], layout=margin) for title, view in columns]

    def make_technique_frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        """The computation for these knobs."""
        return template_match(self.network, **knobs)

    def update_status(self, frame: Frame, follows: bool) -> None:
        """Show the filters, too."""
        super().update_status(frame, follows)
        self.filters.show(self.displayed(_to_column(frame.arrays["filters"])))

    def frame_image(self, frame: Frame) -> np.ndarray:
        """The patches, one below the other."""
        return _to_column(frame.arrays["patches"])

    def displayed(self, image: np.ndarray) -> np.ndarray:
        """A column of tiles as a sheet."""
        height, width = self.network.weights(self.network.filter_layers[0])[0].shape[2:]
        tiles = image.reshape(-1, height, width, 3)
        return Mosaic(tiles, *choose_layout(len(tiles), height, width, SHEET_WIDTH)).image

    def caption_text(self) -> str:
        """How similar patches and filters are."""
        if self.frame is None:
            return "each patch becomes its filter"
        return f"each patch becomes its filter: their cosine similarity is at least {self.frame.scalars['cosine']:.4f}"


def _to_column(patches: np.ndarray) -> np.ndarray:
    """(n, h, w, C) patches, each with its largest magnitude as black or white, one below the other, (n h, w, 3) uint8."""
    largest = np.abs(patches).max(axis=(1, 2, 3), keepdims=True)
    tiles = 127.5 + 127 * patches / np.maximum(largest, 1e-12)
    return to_rgb(tiles.reshape(-1, *patches.shape[2:]).astype(np.uint8))
