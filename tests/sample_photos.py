"""Photographs of two objects, each in a known box: is the heat of a class on its own object?"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from convis_widgets.core.network.image_file import open_image
from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.deconvnet import deconvnet
from convis_widgets.techniques.attribution.grad_cam import grad_cam
from convis_widgets.techniques.attribution.guided_backprop import guided_backprop
from convis_widgets.techniques.attribution.integrated_gradients import integrated_gradients
from convis_widgets.techniques.attribution.occlusion import occlusion
from convis_widgets.techniques.attribution.saliency import saliency
from convis_widgets.techniques.attribution.smooth_grad import smooth_grad

Method = Callable[..., Iterator[Frame]]

METHODS: dict[str, Method] = {
    "saliency": saliency,
    "guided_backprop": guided_backprop,
    "deconvnet": deconvnet,
    "smooth_grad": partial(smooth_grad, samples=32),
    "integrated_gradients": partial(integrated_gradients, steps=32),
    "grad_cam": grad_cam,
    "occlusion": partial(occlusion, patch_size=64, stride=20),
}


class Shares(NamedTuple):
    """What share of two heat maps lies in the box of an object: of the map of its own class, and of the other's."""

    photo: str
    thing: str
    own: float
    other: float

    @property
    def right(self) -> bool:
        """Whether the object's own class has the larger share."""
        return self.own > self.other


def shares(net: Network, folder: Path, method: Method, count: int | None = None) -> Iterator[Shares]:
    """For both objects of every photo that has two, or of the first `count` of them."""
    for photo, things in two_objects(folder)[:count]:
        path = folder / photo
        heats = [Run(method(net, path, target=seen_class(net, path, thing["ids"]))).run().heat for thing in things.values()]
        for own, other, (name, thing) in zip(heats, heats[::-1], things.items(), strict=True):
            yield Shares(photo, name, *(share_inside(heat, net, path, thing["box_xyxy_norm"]) for heat in (own, other)))


def two_objects(folder: Path) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Photos with two objects, as (file, {name: {ids, box}})."""
    labels = json.loads((folder / "labels.json").read_text())
    return [(photo, about["boxes"]) for photo, about in labels.items() if len(about["boxes"]) == 2]


def seen_class(net: Network, photo: Path, ids: list[int]) -> int:
    """The most probable of the classes that mean an object."""
    p = net.predict_proba(photo)
    return max(ids, key=lambda i: p[i])


def share_inside(heat: np.ndarray, net: Network, photo: Path, box: list[float]) -> float:
    """The share of a map's positive heat inside a box given in the coordinates of the whole photo."""
    width, height = open_image(photo).size
    left, top, right, bottom = net.transform.crop_box(width, height)
    h, w = heat.shape
    x0, x1 = ((box[i] * width - left) / (right - left) * w for i in (0, 2))
    y0, y1 = ((box[i] * height - top) / (bottom - top) * h for i in (1, 3))
    rows, cols = np.clip([y0, y1], 0, h).round().astype(int), np.clip([x0, x1], 0, w).round().astype(int)
    positive = np.clip(heat, 0, None)
    return float(positive[rows[0] : rows[1], cols[0] : cols[1]].sum() / positive.sum())
