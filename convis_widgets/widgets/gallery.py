"""The pictures on a widget's menu: what the user gave, or some that are always at hand."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core import ImageSet, Network
from .encode import to_uint8


def gallery(network: Network, images: Any = None) -> dict[str, Any]:
    """Name -> picture.

    Parameters
    ----------
    network : Network
    images : picture, list or dict of pictures, or None
        A list of file names is named by them. Without any: Toyscape for the demo networks; for others the two photographs
        that come with scikit-learn and Toyscape, or its handwritten digits where the network takes gray pictures.
    """
    if isinstance(images, (Mapping, list, tuple)) and not images:
        raise ValueError("there is no picture in the list")
    if isinstance(images, Mapping):
        return dict(images)
    if images is not None:
        pictures: dict[str, Any] = {}
        for image in images if isinstance(images, (list, tuple)) else [images]:
            pictures[called(image, pictures)] = image
        return pictures
    if network.name.startswith("demo network"):
        return {name: scene.image for name, scene in _toyscape().items()}
    if network.transform.channels == 1:
        return _digits()
    return _photographs() | {f"Toyscape {name}": _photo(scene.image) for name, scene in _toyscape().items()}


def paintings(network: Network, images: Any = None) -> dict[str, Any]:
    """Name -> picture to take a style or a texture from: what the user gave, or else some patterns and the gallery."""
    if images is not None:
        return gallery(network, images)
    from .. import demo

    return {name: _photo(image) for name, image in demo.paintings().items()} | gallery(network)


def picture_set(network: Network) -> ImageSet:
    """The set of pictures that widgets look at when none is given: handwritten digits for gray networks, else Toyscape."""
    from .. import demo

    if network.transform.channels > 1:
        return ImageSet(demo.Toyscape(400, seed=3))
    from sklearn.datasets import load_digits

    digits = load_digits()
    return ImageSet((digits.images / 16).astype(np.float32), labels=digits.target.tolist())


def called(image: Any, taken: Collection[str]) -> str:
    """What a picture is called on a menu: by its file, if it is one, otherwise by its number; unlike those before it."""
    name = Path(image).name if isinstance(image, (str, os.PathLike)) else f"picture {len(taken)}"
    others = (f"{name} ({i})" for i in itertools.count(2))
    return name if name not in taken else next(other for other in others if other not in taken)


def named(name: Any, pictures: Mapping[str, Any]) -> str:
    """What a picture is called on a menu, by that, or by the name of its file without the ending.

    ValueError if there is none, or more than one.
    """
    found = [one for one in pictures if one == name] or [one for one in pictures if Path(one).stem == name]
    if len(found) != 1:
        raise ValueError(f"no picture {name!r}; there are {', '.join(pictures)}")
    return found[0]


def _toyscape() -> dict[str, Any]:
    from .. import demo

    return {scene.name: scene for label in demo.LABELS for scene in demo.images(1, seed=4, label=label)}


def _photo(image: np.ndarray) -> Image.Image:
    """A picture that a network may resize."""
    return Image.fromarray(to_uint8(image))


def _photographs() -> dict[str, Any]:
    from sklearn.datasets import load_sample_image

    return {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("flower", "china")}


def _digits() -> dict[str, Any]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    first = {int(digit): image / 16 for digit, image in zip(digits.target[::-1], digits.images[::-1], strict=True)}
    return {f"digit {digit}": Image.fromarray((first[digit] * 255).astype(np.uint8)) for digit in range(10)}
