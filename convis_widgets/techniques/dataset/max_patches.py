"""Max patches: the image patches that activate a channel most, and what in them does so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np

from ...core.attribution.gradient import input_gradient
from ...core.dataset.scan import Scan
from ...core.knob import Knob
from ...core.network.network import Network
from ...core.network.unit import Unit
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.types import ImagesLike, UnitLike

RULES = {"guided backprop": "guided", "deconvnet": "deconvnet", "gradient": None}


@technique(allow_tf32=True)
def max_patches(
    net: Network,
    images: ImagesLike,
    *,
    unit: UnitLike,
    k: Annotated[int, Knob(1, 64)] = 9,
    projection: Annotated[str, Knob(choices=("guided backprop", "deconvnet", "gradient", "none"))] = "guided backprop",
) -> Iterator[Frame]:
    """Patches of an image set that activate a channel most, each with a projection of the activation to pixel space.

    A patch is the receptive field of the channel at the position of an activation, clipped to the image. It is exact, or
    larger if ``net.layers[layer].field.exact`` is false.

    Parameters
    ----------
    net : Network, module or name
    images : Scan, ImageSet, or anything that `ImageSet` accepts
        Images that have not been scanned yet are scanned first, see `scan`.
    unit : Unit or (layer, channel)
        A position is ignored: all positions are compared.
    k : int
        Number of patches, at most the k of the scan.
    projection : str
        Backward rule that projects the activation to the pixels.

    Yields
    ------
    Frame
        After the scan, one with all n patches in order of decreasing activation, then one after every projection:

        - ``arrays["values"]`` (n,): activations
        - ``arrays["images"]`` (n,): image indices
        - ``arrays["positions"]`` (n, 2): row and column in the activation map
        - ``arrays["boxes"]`` (n, 4): top, left, bottom, right in pixels of the network's input
        - ``arrays["patches"]`` (n, h, w, C), in [0, 1]. Smaller patches are padded with NaN below and on the right; patches
          of images in `Scan.missing` are all NaN
        - ``arrays["projections"]`` (n, h, w, C): signed gradients, NaN also where not yet computed
        - ``arrays["dead"]`` (m,): channels of the layer without an activation above zero in any image
        - ``scalars["dead"]``: 1 if this channel is one of them, otherwise 0
        - ``image`` and ``heat``, after a projection: its whole image and its magnitude (H, W)

    Raises
    ------
    ValueError
        The layer was not scanned, or the projection is not defined for this network.

    References
    ----------
    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", 2013, arXiv:1311.2901, Fig. 2, where the
    projection is the deconvnet's; guided backprop is that of J. Springenberg et al., 2014, arXiv:1412.6806, Fig. 3.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, max_patches
    >>> net = Network.demo()
    >>> last = Run(max_patches(net, demo.Toyscape(20), unit=("conv2", 3), k=4)).run()
    >>> last.arrays["values"].shape, last.arrays["patches"].shape == last.arrays["projections"].shape
    ((4,), True)
    """
    unit = Unit.ensure(unit).validate(net)
    if not unit.layer:
        raise ValueError("patches are those of a channel of a layer; give unit=(layer, channel)")
    scan = Scan.ensure(net, images, k)
    scan.scanned_layer(unit.layer)  # before the scan, which may take long
    scan_steps = 0 if scan.complete else len(scan.images)
    yield from scan.frames(1)
    top = scan.top(unit.layer)
    ranks = np.flatnonzero(top.images[unit.channel] >= 0)[:k]
    image_indices = top.images[unit.channel, ranks].tolist()
    positions = [(int(top.rows[unit.channel, j]), int(top.cols[unit.channel, j])) for j in ranks]
    boxes = np.array([net.layers[unit.layer].box(position, unit.channel) for position in positions]).reshape(-1, 4)
    inputs = [scan.image(index).astype(np.float32) / 255 for index in image_indices]
    patches = _pad_stack([array[_box_slices(box)] for array, box in zip(inputs, boxes, strict=True)], net.transform.channels)
    patches[[index in scan.missing for index in image_indices]] = np.nan
    projections = np.full_like(patches, np.nan)
    total = 1 + (len(ranks) if projection != "none" else 0)
    arrays = {
        "values": top.values[unit.channel, ranks],
        "images": np.array(image_indices, np.int64),
        "positions": np.array(positions, np.int64).reshape(-1, 2),
        "boxes": boxes,
        "patches": patches,
        "dead": top.dead,
    }
    for step in range(1, total + 1):
        image = heat = None
        if step > 1:
            j = step - 2
            image = inputs[j]
            signed = _project(net, image, Unit(unit.layer, unit.channel, positions[j]), projection)
            heat = np.abs(signed).max(2)
            if image_indices[j] not in scan.missing:
                upper, left, lower, right = boxes[j]
                projections[j, : lower - upper, : right - left] = signed[_box_slices(boxes[j])]
        yield Frame(
            scan_steps + step,
            scan_steps + total,
            done=step == total,
            image=image,
            heat=heat,
            scalars={"dead": float(unit.channel in top.dead)},
            arrays={**arrays, "projections": projections},
        )


def _project(net: Network, image: np.ndarray, unit: Unit, projection: str) -> np.ndarray:
    """Gradient (H, W, C) of a unit by the rule of this projection."""
    rule = RULES[projection]
    try:
        _, gradient = input_gradient(net, net.stack_images([image]), unit, rule)
    except ValueError as error:
        if rule is None:
            raise
        reason, _, _ = str(error).partition("; ")  # without the advice, which names other techniques
        raise ValueError(f'{reason}; choose projection="gradient" or "none"') from error
    return gradient[0].permute(1, 2, 0).cpu().float().numpy()


def _box_slices(box: np.ndarray) -> tuple[slice, slice]:
    top, left, bottom, right = (int(edge) for edge in box)
    return slice(top, bottom), slice(left, right)


def _pad_stack(patches: list[np.ndarray], channels: int) -> np.ndarray:
    """Stack images of different sizes to (n, h, w, C), padded with NaN below and to the right."""
    height, width = (max((patch.shape[axis] for patch in patches), default=0) for axis in (0, 1))
    stack = np.full((len(patches), height, width, channels), np.nan, np.float32)
    for padded, patch in zip(stack, patches, strict=True):
        padded[: patch.shape[0], : patch.shape[1]] = patch
    return stack
