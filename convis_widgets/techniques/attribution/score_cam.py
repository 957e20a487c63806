"""score_cam: the activation maps of a layer, weighted by the class score of the image that each map masks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch

from ...core.attribution.baseline import make_baseline
from ...core.attribution.cam import cam_frame, resolve_cam_layer
from ...core.attribution.method import attribution_method
from ...core.knob import Knob
from ...core.network.batch_size import auto_batch_size, halve_if_needed
from ...core.network.network import Network
from ...core.network.trace import get_activations
from ...core.network.unit import Unit, resolve_inputs, unit_values
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.types import ImageLike, UnitLike


@attribution_method(
    "score-cam",
    "where the channels are active that raise {score} when each masks the image",
    streams=True,
    knobs=("channels",),
)
@technique
def score_cam(
    net: Network,
    image: ImageLike,
    *,
    target: int | str | None = None,
    unit: UnitLike | None = None,
    layer: str | None = None,
    channels: Annotated[int, Knob(1, 4096)] = 64,
) -> Iterator[Frame]:
    """A class activation map without gradients: channels are weighted by the class score of the image that each one masks.

    Each channel's activation map, upsampled and scaled to [0, 1], masks the image. The weight of a channel is the softmax
    over channels of the increase of the logit over that of the mean pixel. The map is ``ReLU(sum over channels of weight *
    activations)``.

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
    channels : int
        Number of channels, those with the largest mean activation; each takes a forward pass.

    Yields
    ------
    Frame
        After every batch of channels; a step is one channel:

        - ``heat`` (H, W): the map of the channels so far, interpolated bilinearly
        - ``arrays["coarse"]`` (h, w): the map on the grid of the layer
        - ``arrays["channels"]`` (n,): the channels so far, by decreasing mean activation
        - ``arrays["increases"]`` (n,): increase of the score for each
        - ``arrays["weights"]`` (n,): their softmax
        - ``scalars["value"]``: activation of the unit; for a class the output of the network, logit or probability

    Raises
    ------
    ValueError
        The layer does not have positions, or changes the number of images in the batch; a score is not finite.

    References
    ----------
    H. Wang et al., "Score-CAM: score-weighted visual explanations for convolutional neural networks", 2020,
    arXiv:1910.01279. They use all channels. As in their code, masked pixels take the mean color, which is 0 after
    normalization. A constant activation map masks the whole image. For a network that ends in softmax or sigmoid, the score
    is the output of the layer before; if no layer has that output, it is the log probability or the log odds.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, score_cam
    >>> image = demo.images(1, label="star")[0].image
    >>> frame = Run(score_cam(Network.demo(), image, target="star", channels=16)).run()
    >>> frame.heat.shape, frame.arrays["weights"].shape
    ((64, 64), (16,))
    """
    batch, explained = resolve_inputs(net, image, target=target, unit=unit)
    cam_layer = resolve_cam_layer(net, explained, layer)
    if not cam_layer.is_spatial:
        raise ValueError(
            f"{cam_layer.name} does not have positions, so its maps cannot mask the image; choose another layer"
        )
    (activations,) = get_activations(net, batch, [cam_layer.name])
    if len(activations) != 1:
        raise ValueError(f"{cam_layer.name} has an output of batch size {len(activations)} for 1; choose another layer")
    maps, baseline = activations[0].float(), make_baseline(net, batch, "mean")
    with torch.no_grad():
        values, _ = unit_values(net, batch, explained)
        baseline_score = _scores(net, baseline, explained)
    order = maps.mean((1, 2)).argsort(descending=True, stable=True)[:channels]
    increases = maps.new_empty(0)
    for chunk in order.split(auto_batch_size(net, batch)):
        masks = _masks(maps[chunk], batch.shape[2:]).to(batch)
        with torch.no_grad():
            images = baseline + masks * (batch - baseline)
            (scores,) = halve_if_needed(lambda part: (_scores(net, part, explained),), images)
        increases = torch.cat([increases, scores - baseline_score])
        step, weights = len(increases), increases.softmax(0)
        coarse = (weights[:, None, None] * maps[order[:step]]).sum(0).clamp(min=0)
        yield cam_frame(
            batch,
            coarse,
            step=step,
            total=len(order),
            done=step == len(order),
            scalars={"value": values[0]},
            arrays={"channels": order[:step], "increases": increases, "weights": weights},
        )


def _masks(maps: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Activation maps (n, h, w) upsampled to (n, 1, H, W) and scaled to [0, 1]; 0 for a constant map."""
    masks = torch.nn.functional.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)
    low, high = masks.amin((2, 3), keepdim=True), masks.amax((2, 3), keepdim=True)
    return torch.where(high > low, (masks - low) / (high - low), 0)


def _scores(net: Network, batch: torch.Tensor, unit: Unit) -> torch.Tensor:
    """Activations of a unit, or logits of a class, (N,); log probability or log odds if no layer has the logits."""
    if unit.layer or net.output_activation == "none":
        return unit_values(net, batch, unit)[0].float()
    layer = _logit_layer(net)
    if layer is not None:
        return unit_values(net, batch, Unit(layer, unit.channel, (0, 0)))[0].float()
    output = unit_values(net, batch, unit)[0].float()
    if net.output_activation == "sigmoid":
        return output.logit(eps=1e-6)
    return output if net.output_activation == "log_softmax" else output.clamp(min=1e-30).log()


def _logit_layer(net: Network) -> str | None:
    """The layer whose output is the input of the softmax or sigmoid at the end of the network; None if there is no such."""
    last = next(op for op in reversed(net.graph.ops) if op.name.strip("_") == net.output_activation)
    logits = (layer for layer in net.layers if layer.value == last.args[0])
    return next((layer.name for layer in logits if layer.map_shape == (len(net.labels), 1, 1)), None)
