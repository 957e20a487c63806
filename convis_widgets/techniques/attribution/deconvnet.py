"""deconvnet: one activation projected back to the pixels."""

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


@attribution_method("deconvnet", "{score}, projected to the pixels by a deconvnet", outlier_fraction=0.005)
@technique
def deconvnet(
    net: Network,
    image: ImageLike,
    *,
    target: int | str | None = None,
    unit: UnitLike | None = None,
    reduction: Annotated[str, Knob(choices=REDUCTIONS)] = "magnitude",
    crop: Annotated[bool, Knob()] = False,
) -> Iterator[Frame]:
    """The pattern of pixels behind one activation: unpooled with switches, rectified, filtered with transposed filters.

    All other activations of the layer are set to zero. Max-pooling is inverted with the positions of its maxima (switches),
    ReLU by ReLU (of the signal that goes down, regardless of the activations), a convolution by its transposed filters;
    local response normalization is bypassed. The scale is that of an activation of 1.

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
        Add ``arrays["crop"]``, the projection within the receptive field of the unit.

    Yields
    ------
    Frame
        Once, with the arrays of `saliency`; ``arrays["gradient"]`` is the projection.

        - ``arrays["crop"]`` (h, w, C): projection within ``arrays["box"]``; only for a unit of a layer, with `crop`

    Raises
    ------
    ValueError
        There is a nonlinearity other than ReLU between the unit and the pixels; the message names its layer.

    References
    ----------
    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", 2013, arXiv:1311.2901, section 2.1.

    Examples
    --------
    >>> from convis_widgets import Network, Run, deconvnet, demo
    >>> image = demo.images(1, label="star")[0].image
    >>> frame = Run(deconvnet(Network.demo(), image, unit=("conv2", 3), reduction="signed")).run()
    >>> frame.arrays["gradient"].shape
    (64, 64, 3)
    """
    yield gradient_attribution(net, image, target=target, unit=unit, reduction=reduction, rule="deconvnet", crop=crop)
