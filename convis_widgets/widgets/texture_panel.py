"""TexturePanel: more of the same, in any size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import ipywidgets
import numpy as np

from ..core import SMALLEST, Effort, Frame, Network, palette, pyramid
from ..techniques import texture
from .controls import note
from .frame_view import FrameView
from .gallery import paintings
from .picture_panel import PicturePanel

SAMPLE = 192  # pixels of it on screen


class TexturePanel(PicturePanel):
    """A texture grows from noise until its Gram matrices are those of a sample, which is shown beside it.

    Its knobs are those of `techniques.texture`, as traits.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    images : picture, list or dict of pictures, optional
        The samples to choose from; some patterns and pictures that are always at hand otherwise.
    size : int or (height, width), optional
        Of the texture, in pixels.

    Examples
    --------
    >>> panel = TexturePanel(size=96, sizes=1, iterations=10)
    >>> panel.run.join()
    True
    >>> panel.frame.image.shape
    (96, 96, 3)
    """

    technique = texture
    first = ("size", "statistic", "sizes", "iterations")
    top, watched, asked = 0, "style", "sample"

    def _gallery(self, network: Network, images: Any) -> Mapping[str, Any]:
        return paintings(network, images)

    def _usual(self, name: str) -> Any:
        return super()._usual("size" if name == "sample_size" else name)

    def _pictures(self) -> list[ipywidgets.Widget]:
        self.sample = FrameView("the sample")
        left = ipywidgets.VBox([ipywidgets.HTML(note("sample")), self.sample], layout={"margin": "0 16px 0 0"})
        return [left, ipywidgets.VBox([ipywidgets.HTML(note("texture")), self.view])]

    def _frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        sample = self.network.transform.whole(self.images.value, knobs["sample_size"] or self._usual("sample_size"))
        self.sample.show(self._whole(self.images.value, SAMPLE))
        words = {**knobs, "sample_size": None, "size": knobs["size"] or self._usual("size"), "start": self._started}
        return texture(self.network, sample, **words)

    def _effort(self, knobs: dict[str, Any]) -> list[Effort]:
        size = knobs["size"]
        full = (size, size) if isinstance(size, int) else tuple(size)
        layers = palette(self.network).style
        sizes = pyramid(full, knobs["sizes"], 2, SMALLEST)
        return [Effort(layers, one, knobs["iterations"], knobs["optimizer"]) for one in sizes]

    def caption_text(self) -> str:
        """What is being painted, in words."""
        what = "Gram matrices" if self.statistic == "gram" else "covariances"
        return f"the same {what} as those of {self.images.menu.value}"

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        panels, lines = super()._page()
        return [("sample", self._whole(self.images.value, SAMPLE)), *panels], lines
