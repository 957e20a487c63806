"""saliency: which pixels would change the score, by one backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from ..core import SHOWN, Frame, Knob, Network, explain, technique


@technique
def saliency(
    net: Network,
    image: Any,
    *,
    target: int | str | None = None,
    of: Any = None,
    show: Annotated[str, Knob(choices=SHOWN)] = "magnitude",
) -> Iterator[Frame]:
    """How much every pixel would change the class score if it were wiggled a little.

    The map is ``max over color channels of |d score / d pixel|``, of the score before softmax.

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL picture, array or tensor
    target : int or str, optional
        Class index or label; the most probable class otherwise.
    of : Unit or (layer, channel[, (row, column)]), optional
        Any other unit, instead of a class; without a position the strongest one of its map.
    show : str
        What `heat` is: "magnitude" (the largest over the color channels), "signed" (their sum) or "times input" (the
        sum of gradient times pixel).

    Yields
    ------
    Frame
        One. ``heat`` is the map (H, W), ``arrays["gradient"]`` the signed gradient (H, W, C) with respect to the
        picture in [0, 1], ``scalars["value"]`` what the network puts out for the class, or the unit's value. For a unit
        of a layer ``arrays["box"]`` is the (top, left, bottom, right) of the pixels that it sees.

    References
    ----------
    K. Simonyan, A. Vedaldi, A. Zisserman, "Deep inside convolutional networks: visualising image classification models
    and saliency maps", 2013, arXiv:1312.6034. We differentiate with respect to pixels in [0, 1], not normalized ones.
    """
    yield explain(net, image, target=target, of=of, show=show)
