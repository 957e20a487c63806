"""attribution_map: the map of any attribution method for one image and class."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..network.network import Network
from ..registry import get_technique
from ..runs.frame import Frame


def attribution_map(
    method: str | Callable[..., Iterator[Frame]], net: Network, image: np.ndarray, target: int
) -> np.ndarray:
    """The final map of an attribution method for one image and class.

    Parameters
    ----------
    method : str or callable
        Name of a technique, or a function called as ``method(net, image, target=class)`` that yields Frames.
    net : Network
    image : (H, W, C) array in [0, 1]
    target : int
        Class index.

    Returns
    -------
    heat : (H, W) float32 array
        ``heat`` of the last Frame, raw and signed.

    Raises
    ------
    ValueError, TypeError
        `method` is not a technique or function, yields no map, or yields one that does not have the size of the image.
        Errors of the method itself are propagated.
    """
    if not (isinstance(method, str) or callable(method)):
        raise TypeError(f"method={method!r} should be the name of a technique or a function that yields Frames")
    name = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
    last = None
    for frame in (get_technique(method) if isinstance(method, str) else method)(net, image, target=target):
        last = frame
    if last is None or not hasattr(last, "heat"):
        raise ValueError(f"{name} yields no map; choose a technique whose Frames have a heat, such as 'saliency'")
    if last.heat.shape != image.shape[:2]:
        actual, expected = ("x".join(map(str, shape)) for shape in (last.heat.shape, image.shape[:2]))
        raise ValueError(f"{name} yields a {actual} map for a {expected} image; upsample it to the size of the image")
    return last.heat
