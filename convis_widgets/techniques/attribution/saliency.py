"""saliency: the gradient of a class score with respect to the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from ...core.attribution.gradient import REDUCTIONS, gradient_attribution
from ...core.attribution.method import attribution_method
from ...core.knob import Knob
from ...core.network.network import Network
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.types import ImageLike, UnitLike


@attribution_method("gradient", "|gradient|: how much {score} changes with each pixel", outlier_fraction=0.005)
@technique
def saliency(
    net: Network,
    image: ImageLike,
    *,
    target: int | str | None = None,
    unit: UnitLike | None = None,
    reduction: Annotated[str, Knob(choices=REDUCTIONS)] = "magnitude",
) -> Iterator[Frame]:
    """How much the class score changes with each pixel: ``max over color channels of |d logit / d pixel|``.

    Parameters
    ----------
    net : Network, module or name
    image : file, PIL image, array or tensor
    target : int or str, optional
        Class index or label; the most probable class by default.
    unit : Unit or (layer, channel[, (row, column)]), optional
        Unit to explain instead of a class; the position defaults to that of the largest activation.
    reduction : str
        Reduction of the color channels for ``heat``: "magnitude", the largest absolute value; "signed", the sum; "times
        input", the sum of gradient times pixel.

    Yields
    ------
    Frame
        Once:

        - ``heat`` (H, W): the map
        - ``arrays["gradient"]`` (H, W, C): gradient with respect to the image in [0, 1], signed
        - ``arrays["box"]`` (4,): top, left, bottom, right of the receptive field; only for a unit of a layer
        - ``scalars["value"]``: activation of the unit; for a class the output of the network, logit or probability

    Raises
    ------
    ValueError
        The network has no such class or unit, or it does not depend on the image by a differentiable path.

    References
    ----------
    K. Simonyan, A. Vedaldi, A. Zisserman, "Deep inside convolutional networks: visualising image classification models
    and saliency maps", 2013, arXiv:1312.6034. We differentiate with respect to pixels in [0, 1], not normalized ones.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, saliency
    >>> image = demo.images(1, label="star")[0].image
    >>> frame = Run(saliency(Network.demo(), image, target="star")).run()
    >>> frame.heat.shape, frame.arrays["gradient"].shape
    ((64, 64), (64, 64, 3))
    """
    yield gradient_attribution(net, image, target=target, unit=unit, reduction=reduction)
