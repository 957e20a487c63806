"""saliency: which pixels would change the score, by one backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..core import Frame, Network, input_gradient, select, technique


@technique
def saliency(net: Network, image: Any, *, target: int | str | None = None, of: Any = None) -> Iterator[Frame]:
    """How much every pixel would change the class score if it were wiggled a little.

    The map is ``max over color channels of |d score / d pixel|``, of the score before softmax.

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL picture, array or tensor
    target : int or str, optional
        Class index or label; the most probable class otherwise.
    of : Unit or (layer, channel[, (row, column)]), optional
        Any other unit, instead of a class.

    Yields
    ------
    Frame
        One. ``heat`` is the map (H, W), ``arrays["gradient"]`` the signed gradient (H, W, C) with respect to the
        picture in [0, 1], ``scalars["value"]`` what the network puts out for the class, or the unit's value.

    References
    ----------
    K. Simonyan, A. Vedaldi, A. Zisserman, "Deep inside convolutional networks: visualising image classification models
    and saliency maps", 2013, arXiv:1312.6034. We differentiate with respect to pixels in [0, 1], not normalized ones.
    """
    batch = net.single(image)
    unit = select(net, target=target, of=of, batch=batch)
    values, gradient = input_gradient(net, batch, unit)
    gradient = gradient[0].permute(1, 2, 0)
    yield Frame(
        1,
        1,
        done=True,
        image=batch[0].permute(1, 2, 0),
        heat=gradient.abs().amax(2),
        scalars={"value": values[0]},
        arrays={"gradient": gradient},
    )
