"""grad_cam: the activation maps of a layer, weighted by the mean gradient of the class score."""

from __future__ import annotations

from collections.abc import Iterator

from ...core.attribution.cam import cam_frame, resolve_cam_layer
from ...core.attribution.gradient import layer_gradient
from ...core.attribution.method import attribution_method
from ...core.network.network import Network
from ...core.network.unit import resolve_inputs
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.types import ImageLike, UnitLike


@attribution_method("grad-cam", "where the channels that raise {score} are active")
@technique
def grad_cam(
    net: Network,
    image: ImageLike,
    *,
    target: int | str | None = None,
    unit: UnitLike | None = None,
    layer: str | None = None,
) -> Iterator[Frame]:
    """Where the channels that raise the class score are active; coarse, but well localized.

    The map is ``ReLU(sum over channels of weight * activations)``; the weight of a channel is the mean over its positions of
    the gradient of the logit.

    Parameters
    ----------
    net : Network, module or name
    image : file, PIL image, array or tensor
    target : int or str, optional
        Class index or label; the most probable class by default.
    unit : Unit or (layer, channel[, (row, column)]), optional
        Unit to explain instead of a class; the position defaults to that of the largest activation.
    layer : str, optional
        Layer of the activation maps; by default the last one whose positions the score depends on and that is not a pooling
        layer, for a unit the last such layer before it.

    Yields
    ------
    Frame
        Once:

        - ``heat`` (H, W): the map, interpolated bilinearly
        - ``arrays["coarse"]`` (h, w): the map on the grid of the layer
        - ``arrays["weights"]`` (channels,): weight of each channel
        - ``scalars["value"]``: activation of the unit; for a class the output of the network, logit or probability

    Raises
    ------
    ValueError
        No layer has positions, or the unit does not depend on `layer`.

    References
    ----------
    R. Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", 2017,
    arXiv:1610.02391.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, grad_cam
    >>> image = demo.images(1, label="star")[0].image
    >>> frame = Run(grad_cam(Network.demo(), image, target="star", layer="relu3")).run()
    >>> frame.heat.shape, frame.arrays["coarse"].shape
    ((64, 64), (16, 16))
    """
    batch, explained = resolve_inputs(net, image, target=target, unit=unit)
    cam_layer = resolve_cam_layer(net, explained, layer)
    values, activations, gradients = layer_gradient(net, batch, explained, cam_layer.name)
    weights = gradients[0].mean((1, 2))
    coarse = (weights[:, None, None] * activations[0]).sum(0).clamp(min=0)
    yield cam_frame(batch, coarse, scalars={"value": values[0]}, arrays={"weights": weights})
