"""Gradients of a unit with respect to the pixels and to the activations of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..network.autograd import apply_rule
from ..network.batch_size import halve_if_needed
from ..network.images import to_channels_last
from ..network.modes import full_precision
from ..network.network import Network
from ..network.unit import Unit, resolve_inputs, unit_values
from ..runs.frame import Frame
from ..types import ImageLike, UnitLike
from .backward_rules import check_rule_supported


@full_precision()
def input_gradient(
    net: Network, batch: torch.Tensor, unit: Unit, rule: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of a unit with respect to the pixels, optionally by a backward rule.

    For a class it is the gradient of the logit, also where the network ends in softmax: the probability saturates where the
    network is certain, and its gradient depends on the *other* classes (Simonyan et al., 2013, section 3.1).

    Parameters
    ----------
    net : Network
    batch : (N, C, H, W) tensor in [0, 1]
    unit : Unit
    rule : str, optional
        "guided" or "deconvnet", see `autograd.RULES`.

    Returns
    -------
    values : (N,) tensor
        Activations of the unit; for a class the output of the network, logit or probability.
    gradient : (N, C, H, W) tensor
        With respect to the image in [0, 1].

    Raises
    ------
    ValueError
        The unit does not depend on the image by a differentiable path, or the rule is not defined for an operator on it.
    """
    if rule is not None:
        check_rule_supported(net, unit, rule)
    values, gradient = halve_if_needed(lambda part: _input_gradient(net, part, unit, rule), batch)
    return values, gradient


def _input_gradient(net: Network, batch: torch.Tensor, unit: Unit, rule: str | None) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        pixels = batch.detach().clone().requires_grad_()
        values, _ = _differentiable_values(net, pixels, unit)
        if rule is not None:
            apply_rule(values.grad_fn, rule)
        (gradient,) = torch.autograd.grad(values.sum(), pixels, allow_unused=True)
    if gradient is None:
        raise _no_path(unit)
    return values.detach(), gradient


@full_precision()
def layer_gradient(
    net: Network, batch: torch.Tensor, unit: Unit, layer: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradient of a unit with respect to the activations of an earlier layer.

    Parameters
    ----------
    net : Network
    batch : (N, C, H, W) tensor in [0, 1]
    unit : Unit
    layer : str
        Full name of the layer.

    Returns
    -------
    values : (N,) tensor
        See `input_gradient`.
    activations, gradient : (N, channels, h, w) tensors
        Activations of the layer, and the gradient with respect to them.

    Raises
    ------
    ValueError
        The unit does not depend on the layer, or the layer changes the number of images in the batch.
    """
    with torch.enable_grad():
        pixels = batch.detach().clone().requires_grad_()
        values, outputs = _differentiable_values(net, pixels, unit, [layer])
        activations = outputs.get(layer)
        gradient = None
        if activations is not None:
            (gradient,) = torch.autograd.grad(values.sum(), activations, allow_unused=True)
    if activations is None or gradient is None:
        raise ValueError(f"{unit.layer or 'the score'} does not depend on {layer}; choose a layer before it")
    if len(activations) != len(batch):
        raise ValueError(f"{layer} has an output of batch size {len(activations)} for {len(batch)}; choose another layer")
    return values.detach(), net.as_maps(layer, activations.detach()), net.as_maps(layer, gradient)


def _differentiable_values(
    net: Network, pixels: torch.Tensor, unit: Unit, layers: Sequence[str] = ()
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    values, outputs = unit_values(net, pixels, unit, layers)
    if values.grad_fn is None:
        raise _no_path(unit)
    return values, outputs


def _no_path(unit: Unit) -> ValueError:
    return ValueError(f"{unit.layer or 'the score'} does not depend on the image by a differentiable path")


REDUCTIONS = ("magnitude", "signed", "times input")


def reduce_channels(gradient: torch.Tensor, image: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce a gradient with respect to pixels to one value per pixel.

    Parameters
    ----------
    gradient, image : (H, W, C) tensors
    reduction : str
        "magnitude", the largest absolute value over the color channels; "signed", the sum; "times input", the sum of
        gradient times pixel.

    Returns
    -------
    (H, W) tensor
    """
    if reduction == "magnitude":
        return gradient.abs().amax(2)
    return (gradient if reduction == "signed" else gradient * image).sum(2)


def gradient_attribution(
    net: Network,
    image: ImageLike,
    *,
    target: int | str | None,
    unit: UnitLike | None,
    reduction: str,
    rule: str | None = None,
    crop: bool = False,
) -> Frame:
    """The Frame of a method with a single backward pass: `saliency`, `guided_backprop` and `deconvnet`.

    Parameters
    ----------
    net : Network
    image : image
        See `Network.image`.
    target, unit
        See `resolve_inputs`.
    reduction : str
        See `reduce_channels`.
    rule : str, optional
        See `input_gradient`.
    crop : bool
        Add ``arrays["crop"]``, the gradient within the receptive field of the unit.
    """
    batch, explained = resolve_inputs(net, image, target=target, unit=unit)
    values, gradients = input_gradient(net, batch, explained, rule)
    pixels, gradient = to_channels_last(batch), to_channels_last(gradients)
    arrays: dict[str, Any] = {"gradient": gradient}
    if explained.layer:
        top, left, bottom, right = box = net.layers[explained.layer].box(explained.position, explained.channel)
        arrays["box"] = box
        if crop:
            arrays["crop"] = gradient[top:bottom, left:right]
    return Frame(
        1,
        1,
        done=True,
        image=batch,
        heat=reduce_channels(gradient, pixels, reduction),
        scalars={"value": values[0]},
        arrays=arrays,
    )
