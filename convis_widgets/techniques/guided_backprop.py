"""guided_backprop: the gradient with all that would lower a unit left out, at every ReLU on the way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from ..core import SHOWN, Frame, Knob, Network, explain, technique


@technique
def guided_backprop(
    net: Network,
    image: Any,
    *,
    target: int | str | None = None,
    of: Any = None,
    show: Annotated[str, Knob(choices=SHOWN)] = "magnitude",
    crop: Annotated[bool, Knob()] = False,
) -> Iterator[Frame]:
    """What in the picture excites a class or a unit, by positive gradients only.

    Every ReLU lets through where it was open *and* the gradient is positive. The picture is crisp, and more a picture of
    the edges than of the class: compare two classes, or a network with random weights, before you believe it.

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
    J. Springenberg, A. Dosovitskiy, T. Brox, M. Riedmiller, "Striving for simplicity: the all convolutional net", 2014,
    arXiv:1412.6806.
    """
    yield explain(net, image, target=target, of=of, show=show, rule="guided", crop=crop)
