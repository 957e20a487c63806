"""max_patches: the pieces of pictures that excite a unit most."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np

from ..core import Frame, Knob, Network, Scan, Unit, input_gradient, technique

RULES = {"guided backprop": "guided", "deconvnet": "deconvnet", "gradient": None}


@technique
def max_patches(
    net: Network,
    images: Any,
    *,
    of: Unit | tuple[Any, ...],
    k: Annotated[int, Knob(1, 64)] = 9,
    projection: Annotated[str, Knob(choices=("guided backprop", "deconvnet", "gradient", "none"))] = "guided backprop",
) -> Iterator[Frame]:
    """The patches of a set of pictures that a channel answers to most strongly, and beside each what in it does that.

    A patch is the exact receptive field of the position where the activation was, clipped where it goes beyond the picture.

    Parameters
    ----------
    net : Network, module or name
    images : Scan, ImageSet or what makes one
        What was not looked at yet is looked at first, see `scan`.
    of : Unit or (layer, channel)
        A position makes no difference: they are compared.
    k : int
        How many; no more than the scan has kept.
    projection : str
        By which rule the activation is taken back to the pixels.

    Yields
    ------
    Frame
        One with all patches, then one for each projection. Of the n patches, the strongest first: ``arrays["values"]`` (n,),
        ``["images"]`` (n,) their pictures' indices, ``["positions"]`` (n, 2) rows and columns in the map, ``["boxes"]``
        (n, 4) top, left, bottom, right in pixels of what the network sees; ``["patches"]`` (n, h, w, C) in [0, 1] and
        ``["projections"]`` (n, h, w, C) raw and signed, NaN below and to the right of smaller ones and where not yet
        known, or where the picture is `Scan.lost`. ``["dead"]`` are the channels of the layer that no picture brings above
        zero, and ``scalars["dead"]`` is 1 if this is one of them.

    Raises
    ------
    ValueError
        The layer was not scanned, or the rule is not defined for this network; the sentence says by which layer.

    References
    ----------
    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", 2013, arXiv:1311.2901, Fig. 2: there the
    projections are a deconvnet's; guided backprop is J. Springenberg et al., 2014, arXiv:1412.6806, Fig. 3.
    """
    unit = Unit.ensure(of).checked(net)
    if not unit.layer:
        raise ValueError("patches are of a layer's channel; write of=(layer, channel)")
    store = Scan.ensure(net, images, k)
    top = store.top(unit.layer)
    before = 0 if store.complete else len(store.images)
    yield from store.frames(1)
    top = store.top(unit.layer)
    chosen = np.flatnonzero(top.images[unit.channel] >= 0)[:k]
    found = zip(*(part[unit.channel, chosen].tolist() for part in (top.images, top.rows, top.cols)), strict=True)
    where = [(image, (row, col)) for image, row, col in found]
    boxes = np.array([net.layers[unit.layer].box(position) for _, position in where]).reshape(-1, 4)
    views = [store.view(image).astype(np.float32) / 255 for image, _ in where]
    patches = _padded([view[_part(box)] for view, box in zip(views, boxes, strict=True)], net.transform.channels)
    patches[[image in store.lost for image, _ in where]] = np.nan
    projections = np.full_like(patches, np.nan)
    rule = None if projection == "none" else projection
    total = 1 + (len(where) if rule else 0)
    arrays = {
        "values": top.values[unit.channel, chosen],
        "images": np.array([image for image, _ in where], np.int64),
        "positions": np.array([position for _, position in where], np.int64).reshape(-1, 2),
        "boxes": boxes,
        "patches": patches,
        "dead": top.dead,
    }
    for step in range(1, total + 1):
        picture = heat = None
        if step > 1:
            image, position = where[step - 2]
            picture = views[step - 2]
            signed = _projection(net, picture, Unit(unit.layer, unit.channel, position), rule)
            heat = np.abs(signed).max(2)
            if image not in store.lost:
                top_, left, bottom, right = boxes[step - 2]
                projections[step - 2, : bottom - top_, : right - left] = signed[_part(boxes[step - 2])]
        yield Frame(
            before + step,
            before + total,
            done=step == total,
            image=picture,
            heat=heat,
            scalars={"dead": float(unit.channel in top.dead)},
            arrays={**arrays, "projections": projections},
        )


def _projection(net: Network, picture: np.ndarray, unit: Unit, projection: str) -> np.ndarray:
    try:
        _, gradient = input_gradient(net, net.stack([picture]), unit, RULES[projection])
    except ValueError as error:
        if RULES[projection] is None:
            raise
        what, _, _ = str(error).partition("; ")  # its advice is other techniques
        raise ValueError(f'{what}; choose projection="gradient" or "none"') from error
    return gradient[0].permute(1, 2, 0).cpu().float().numpy()


def _part(box: np.ndarray) -> tuple[slice, slice]:
    top, left, bottom, right = (int(edge) for edge in box)
    return slice(top, bottom), slice(left, right)


def _padded(patches: list[np.ndarray], channels: int) -> np.ndarray:
    """Pictures of different size as one (n, h, w, C) array, NaN where they are smaller."""
    height, width = (max((patch.shape[axis] for patch in patches), default=0) for axis in (0, 1))
    whole = np.full((len(patches), height, width, channels), np.nan, np.float32)
    for row, patch in zip(whole, patches, strict=True):
        row[: patch.shape[0], : patch.shape[1]] = patch
    return whole
