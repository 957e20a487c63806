"""PicturePanel: what the panels share that begin with a picture of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import ipywidgets
import numpy as np

from ..core import RATES, Network, unwoven
from .controls import ImagePicker
from .encode import enlarge, to_uint8
from .gallery import gallery
from .synthesis_panel import SynthesisPanel
from .viewer import PictureViewer, guarded

LARGE = 128  # pixels to which a network's own size is doubled where it is smaller, for pictures that may have any


class PicturePanel(SynthesisPanel, PictureViewer):
    """Base of the panels that change a picture, or paint after one. See a subclass.

    Parameters
    ----------
    network : Network, str, module or None
    images : picture, list or dict of pictures, optional
        The pictures to choose from; some that are always at hand otherwise.
    """

    asked: ClassVar[str] = "picture"  # what its menu is called
    cropped: ClassVar[bool] = False  # whether the network's own part of a photo is meant

    def __init__(self, network: Any = None, images: Any = None, **keywords: Any) -> None:
        network = Network.ensure(network)
        self._at_hand = self._gallery(network, images)
        super().__init__(network, **keywords)
        self._show_question()
        self._anew()

    def _gallery(self, network: Network, images: Any) -> Mapping[str, Any]:
        return gallery(network, images)

    def _question(self) -> list[ipywidgets.Widget]:
        transform = self.network.transform if self.cropped else None
        self.images = ImagePicker(dict(self._at_hand), transform, self.complain)
        self.images.menu.description = self.asked
        self.images.observe(self._ask_anew, "value")
        return [self.images]

    @guarded
    def _ask_anew(self, _change: Any = None) -> None:
        """The question is another one: show it, and answer it."""
        self._show_question()
        self._anew()

    def _leads(self, picker: ipywidgets.Widget, name: str) -> None:
        """What is chosen on a picker becomes the trait of this name."""

        @guarded
        def chosen(self: PicturePanel, change: Any) -> None:
            setattr(self, name, change["new"])

        picker.observe(lambda change: chosen(self, change), "value")

    def _show_question(self) -> None:
        """Bring what belongs to the question, and not to the answer, up to date."""

    def _usual(self, name: str) -> Any:
        if name == "size":
            side = max(self.network.transform.size)
            return side if side >= LARGE else min(2 * side, LARGE)
        if name == "parameterization":
            return unwoven(self.network, self.optimizer)
        if name == "rate":
            return RATES[self.optimizer]
        return super()._usual(name)

    def _whole(self, picture: Any, side: int) -> np.ndarray:
        """A picture, nothing cropped, of about so many pixels on screen."""
        seen = self.network.transform.whole(picture, None if hasattr(picture, "shape") else side)
        return enlarge(to_uint8(seen), side)
