"""deconvnet: one activation taken back down to the pixels through the network, turned around."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from ..core import SHOWN, Frame, Knob, Network, explain, technique


@technique
def deconvnet(
    net: Network,
    image: Any,
    *,
    target: int | str | None = None,
    of: Any = None,
    show: Annotated[str, Knob(choices=SHOWN)] = "magnitude",
    crop: Annotated[bool, Knob()] = False,
) -> Iterator[Frame]:
    """The pattern of pixels behind one activation: unpooled with switches, rectified, filtered with turned kernels.

    All other activations of the layer count as zero. Max-pooling is undone by the places of its maxima (switches), ReLU by
    ReLU (what comes back is rectified, whatever went up), a convolution by its transposed filters; local response
    normalization is passed by. The scale is that of an activation of 1.

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL picture, array or tensor
    target : int or str, optional
        Class index or label; the most probable class otherwise.
    of : Unit or (layer, channel[, (row, column)]), optional
        Any other unit, instead of a class; without a position the strongest one of its map.
    show : str
        What `heat` is: "magnitude", "signed" or "times input", see `saliency`.
    crop : bool
        Also give ``arrays["crop"]``, the part of the result that the unit sees.

    Yields
    ------
    Frame
        One, as of `saliency`.

    Raises
    ------
    ValueError
        A nonlinearity other than ReLU lies between the unit and the pixels; the sentence names the layer.

    References
    ----------
    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", 2013, arXiv:1311.2901, section 2.1.
    """
    yield explain(net, image, target=target, of=of, show=show, rule="deconvnet", crop=crop)
