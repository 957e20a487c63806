"""guided_backprop: the gradient with its negative part removed at every ReLU."""

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


@attribution_method("guided backprop", "pixels that raise {score}, by positive gradients only", outlier_fraction=0.005)
@technique
def guided_backprop(
    net: Network,
    image: ImageLike,
    *,
    target: int | str | None = None,
    unit: UnitLike | None = None,
    reduction: Annotated[str, Knob(choices=REDUCTIONS)] = "magnitude",
    crop: Annotated[bool, Knob()] = False,
) -> Iterator[Frame]:
    """The pixels that excite a class or a unit, by positive gradients only.

    Each ReLU passes the gradient where its input *and* the gradient are positive. The map is sharp, but shows the edges of
    the image more than the class: compare two classes, or a network with random weights, before trusting it.

    Parameters
    ----------
    net : Network, module or name
    image : file, PIL image, array or tensor
    target : int or str, optional
        Class index or label; the most probable class by default.
    unit : Unit or (layer, channel[, (row, column)]), optional
        Unit to explain instead of a class; the position defaults to that of the largest activation.
    reduction : str
        Reduction of the color channels for ``heat``: "magnitude", "signed" or "times input", see `saliency`.
    crop : bool
        Add ``arrays["crop"]``, the gradient within the receptive field of the unit.

    Yields
    ------
    Frame
        Once, with the arrays of `saliency`; the gradient is the guided one.

        - ``arrays["crop"]`` (h, w, C): gradient within ``arrays["box"]``; only for a unit of a layer, with `crop`

    Raises
    ------
    ValueError
        There is a nonlinearity other than ReLU between the unit and the pixels; the message names its layer.

    References
    ----------
    J. Springenberg, A. Dosovitskiy, T. Brox, M. Riedmiller, "Striving for simplicity: the all convolutional net", 2014,
    arXiv:1412.6806.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, guided_backprop
    >>> image = demo.images(1, label="star")[0].image
    >>> frame = Run(guided_backprop(Network.demo(), image, unit=("conv2", 3), crop=True)).run()
    >>> frame.heat.shape, frame.arrays["crop"].ndim
    ((64, 64), 3)
    """
    yield gradient_attribution(net, image, target=target, unit=unit, reduction=reduction, rule="guided", crop=crop)
