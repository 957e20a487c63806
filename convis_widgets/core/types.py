"""Type aliases for arguments that are converted."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from .dataset.image_set import ImageSet
    from .dataset.scan import Scan
    from .network.network import Network
    from .network.unit import Unit
    from .synthesis.objectives import Objective
else:  # the annotations of techniques are evaluated in modules without these names
    ImageSet = Scan = Network = Unit = Objective = Any


class HasImage(Protocol):
    """An object with an image, such as a Scene of the demo."""

    @property
    def image(self) -> np.ndarray:
        """The image, (H, W, C)."""
        ...


ImageFile: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | io.BytesIO | Image.Image
"""A path, the bytes of a file, or a PIL image: resized and cropped for a network."""

ImageLike: TypeAlias = ImageFile | np.ndarray | torch.Tensor | HasImage
"""A path, the bytes of a file, a PIL image, or an array or tensor in [0, 1] or uint8; see `Network.image`."""

NetworkLike: TypeAlias = Network | nn.Module | str | None
"""A Network, a module, a name of torchvision or the Hugging Face Hub, or None for the demo network; see `Network.ensure`."""

UnitLike: TypeAlias = Unit | tuple[str, int] | tuple[str, int, tuple[int, int] | None] | Sequence[Any]
"""A Unit, ``(layer, channel)`` or ``(layer, channel, (row, column))``; see `Unit.ensure`."""

ObjectiveLike: TypeAlias = Objective | UnitLike | str
"""An Objective, a unit, or the name of a layer; see `objectives.as_objective`."""

ImagesLike: TypeAlias = Scan | ImageSet | str | os.PathLike[str] | np.ndarray | torch.Tensor | Sequence[Any] | Dataset[Any]
"""A Scan, or whatever `ImageSet` accepts: a folder, an array, a list, a Dataset."""
