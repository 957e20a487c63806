"""ImageViewer: the base of the widgets that show one of several images."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...core.network.network import Network
from ...core.text import one_line
from ...core.types import ImageLike, NetworkLike
from ..controls.pickers import ImagePicker
from ..default_images import MAX_NAME, default_images
from .viewer import Viewer


class ImageViewer(Viewer):
    """Base of the widgets that show one of several images.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    image : image, or list or dict of images, optional
        See `Network.image`; bundled images by default. Others can be uploaded, or assigned to `image`.

    Attributes
    ----------
    images : ImagePicker
    """

    crops: ClassVar[bool] = True  # whether the network's crop of an image file is used, or the whole image
    _readable: tuple[Any] | None = None  # the last image that could be read

    def __init__(self, network: NetworkLike = None, image: Any = None, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        images = self.available_images(self.network, image)
        if image is not None:
            self.network.image(next(iter(images.values())))  # an error of the first one is raised, of others shown
        self.images = ImagePicker(dict(images), self.network.transform if self.crops else None, self.show_error)

    @staticmethod
    def available_images(network: Network, image: Any) -> dict[str, Any]:
        """The images on the menu, by name."""
        return dict(default_images(network, image))

    @property
    def image(self) -> ImageLike:
        """The selected image. Assign a name on the menu, or another image, which is put on the menu."""
        return self.images.value

    @image.setter
    def image(self, image: ImageLike) -> None:
        if isinstance(image, str):
            image = self.images.images.get(one_line(image, MAX_NAME), image)
        self.network.image(image)  # ValueError if it is not an image
        self.images.choose(image)

    def input_image(self) -> np.ndarray:
        """The selected image as the input of the network, (H, W, C) in [0, 1].

        If it cannot be read, the last readable one is selected again and the error is raised.
        """
        try:
            image = self.network.image(self.images.value)
        except Exception:
            if self._readable is not None:
                with self.handlers_muted():
                    self.images.choose(self._readable[0])
            raise
        self._readable = (self.images.value,)
        return image
