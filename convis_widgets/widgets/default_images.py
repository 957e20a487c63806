"""Images and image sets that widgets use by default, and the names of images on menus."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ..core.dataset.image_set import ImageSet
from ..core.errors import did_you_mean
from ..core.network.network import Network
from ..core.text import one_line
from ..core.types import ImageLike
from .drawing.encode import to_rgb_uint8

MAX_NAME = 100  # characters of a name on a menu

MenuImages: TypeAlias = ImageLike | list[Any] | tuple[Any, ...] | Mapping[str, ImageLike] | None
"""One image, a list or tuple of images, a mapping of names to images, or None for the default images."""


def default_images(network: Network, images: MenuImages = None) -> dict[str, ImageLike]:
    """Images by name, for a menu.

    Parameters
    ----------
    network : Network
    images : image, list, mapping of str to image, or None
        Images in a list are named after their files or numbered. None for default images: Toyscape for the demo networks;
        the two photographs that come with scikit-learn, and Toyscape, for other networks; handwritten digits for networks
        with one input channel.

    Raises
    ------
    ValueError
        The list or mapping is empty.
    """
    if isinstance(images, (Mapping, list, tuple)) and not images:
        raise ValueError("there is no image in the list")
    named: dict[str, ImageLike] = {}
    if isinstance(images, Mapping):
        for name, image in images.items():
            named[free_name(name, named)] = image
        return named
    if images is not None:
        for image in images if isinstance(images, (list, tuple)) else [images]:
            named[menu_name(image, named)] = image
        return named
    if network.name.startswith("demo network"):
        return dict(_toyscape())
    if network.transform.channels == 1:
        return dict(_digits())
    return {**_sample_photos(), **{f"Toyscape {name}": _to_pil(image) for name, image in _toyscape().items()}}


def default_styles(network: Network, images: MenuImages = None) -> dict[str, ImageLike]:
    """Style images by name, for a menu; patterns and the default images if none are given, see `default_images`."""
    if images is not None:
        return default_images(network, images)
    from convis_widgets import demo

    return {name: _to_pil(image) for name, image in demo.paintings().items()} | default_images(network)


def default_image_set(network: Network) -> ImageSet:
    """The default ImageSet: 400 scenes of Toyscape, or handwritten digits for networks with one input channel."""
    from convis_widgets import demo

    if network.transform.channels > 1:
        return ImageSet(demo.Toyscape(400, seed=3))
    from sklearn.datasets import load_digits

    digits = load_digits()
    return ImageSet((digits.images / 16).astype(np.float32), labels=digits.target.tolist())


def menu_name(image: ImageLike, taken: Collection[str]) -> str:
    """Name of an image on a menu: the name of its file, or "image" and a number; different from the names `taken`."""
    return free_name(Path(image).name if isinstance(image, (str, os.PathLike)) else f"image {len(taken)}", taken)


def free_name(name: str, taken: Collection[str]) -> str:
    """A name for a menu, on one line and not too long, with a number if it is one of the names `taken`: "cat.png (2)".

    Parameters
    ----------
    name : str
    taken : collection of str
    """
    name = one_line(name, MAX_NAME)
    numbered = (f"{name} ({i})" for i in itertools.count(2))
    return name if name not in taken else next(candidate for candidate in numbered if candidate not in taken)


def find_image(name: str, names: Iterable[str], *, kind: str = "image") -> str:
    """Find an image on a menu by its name, or by the name of its file without the extension.

    Parameters
    ----------
    name : str
    names : iterable of str
        Names on the menu.
    kind : str
        Word for the images in the error message.

    Returns
    -------
    str
        Its name on the menu.

    Raises
    ------
    ValueError
        There is no such image, or more than one.
    """
    names, name = list(names), one_line(str(name), MAX_NAME)
    matches = [other for other in names if other == name] or [other for other in names if Path(other).stem == name]
    if len(matches) != 1:
        raise ValueError(f"no {kind} {name!r}; {did_you_mean(name, names)}")
    return matches[0]


def _toyscape() -> dict[str, np.ndarray]:
    from convis_widgets import demo

    return {scene.name: scene.image for label in demo.LABELS for scene in demo.images(1, seed=4, label=label)}


def _to_pil(image: np.ndarray) -> Image.Image:
    """Image as a PIL image, which networks resize, unlike arrays."""
    return Image.fromarray(to_rgb_uint8(image))


def _sample_photos() -> dict[str, Image.Image]:
    from sklearn.datasets import load_sample_image

    return {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("flower", "china")}


def _digits() -> dict[str, Image.Image]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    first = {int(digit): image / 16 for digit, image in zip(digits.target[::-1], digits.images[::-1], strict=True)}
    return {f"digit {digit}": Image.fromarray((first[digit] * 255).astype(np.uint8)) for digit in range(10)}
