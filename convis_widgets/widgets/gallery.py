"""The pictures on a widget's menu: what the user gave, or some that are always at hand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..core import Network


def gallery(network: Network, images: Any = None) -> dict[str, Any]:
    """Name -> picture.

    Parameters
    ----------
    network : Network
    images : picture, list or dict of pictures, or None
        A list of file names is named by them. Without any: Toyscape for the demo networks, else the two photographs that
        come with scikit-learn, and both for other networks.
    """
    if isinstance(images, Mapping):
        return dict(images)
    if isinstance(images, (list, tuple)):
        return {_name(i, image): image for i, image in enumerate(images)}
    if images is not None:
        return {_name(0, images): images}
    return _toyscape() if network.name.startswith("demo network") else _photographs() | _toyscape()


def _name(i: int, image: Any) -> str:
    return f"{i}  {os.path.basename(image)}" if isinstance(image, (str, os.PathLike)) else f"picture {i}"


def _toyscape() -> dict[str, Any]:
    from .. import demo

    return {f"{scene.name}": scene.image for label in demo.LABELS for scene in demo.images(1, seed=4, label=label)}


def _photographs() -> dict[str, Any]:
    from PIL import Image
    from sklearn.datasets import load_sample_image

    return {name: Image.fromarray(load_sample_image(f"{name}.jpg")) for name in ("flower", "china")}
