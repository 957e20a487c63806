"""ImagePanel: the base of the panels that start from an image."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...core.synthesis.optimizers import DEFAULT_LR
from ...core.synthesis.parameterization import choose_parameterization
from ...core.types import ImageLike, NetworkLike
from ..base.image_viewer import ImageViewer
from ..base.param_box import report_errors
from ..default_images import MenuImages
from ..drawing.encode import enlarge, to_rgb_uint8
from .synthesis_panel import SynthesisPanel

MIN_DEFAULT_SIDE = 128  # the default size is twice the network's where that is smaller


class ImagePanel(SynthesisPanel, ImageViewer):
    """Base of the panels that change an image, or synthesize one like it.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    images : image, list or dict of images, optional
        Images on the menu; bundled ones by default.
    """

    menu_label: ClassVar[str] = "image"
    target_controls: ClassVar[tuple[str, ...]] = ("images",)
    crops = False

    def __init__(self, network: NetworkLike = None, images: MenuImages = None, **kwargs: Any) -> None:
        super().__init__(network, image=images, **kwargs)
        self.images.menu.description = self.menu_label
        self.images.observe(self._image_changed, "value")

    @report_errors
    def _image_changed(self, _change: Any) -> None:
        self.sync_controls()
        self.recompute()

    def default_of(self, name: str) -> Any:
        """What is used where a knob is None."""
        if name == "size":
            side = max(self.network.transform.size)
            return side if side >= MIN_DEFAULT_SIDE else min(2 * side, MIN_DEFAULT_SIDE)
        if name == "parameterization":
            return choose_parameterization(self.network, self.optimizer)
        if name == "lr":
            return DEFAULT_LR[self.optimizer]
        return super().default_of(name)

    def scaled_image(self) -> np.ndarray:
        """The selected image, not cropped; its longer side is `size` unless it is an array."""
        return self.network.transform.uncropped_image(self.images.value, self.size or self.default_of("size"))

    def thumbnail(self, image: ImageLike, side: int) -> np.ndarray:
        """An image, not cropped, about `side` pixels large."""
        pixels = self.network.transform.uncropped_image(image, None if hasattr(image, "shape") else side)
        return enlarge(to_rgb_uint8(pixels), side)
