"""input_gradient: how a unit changes with every pixel. The one function behind all attribution by backward passes."""

from __future__ import annotations

import math
from typing import Any

import torch

from .frame import Frame
from .graph import multiply_adds
from .network import Network
from .rules import apply_rule, pass_the_end, refuse_unless_rectified
from .selectors import Unit, asked
from .trace import trace


def input_gradient(
    net: Network, batch: torch.Tensor, of: Unit, rule: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of a unit with respect to the pixels, or what a backward rule makes of it.

    A class score is taken before softmax, also when the network ends in one: the probability of a class is flat where
    the network is sure, and its gradient says what would raise *other* classes (Simonyan et al., 2013, section 3.1).

    Parameters
    ----------
    net : Network
    batch : (N, C, H, W) tensor in [0, 1]
    of : Unit
    rule : str, optional
        "guided" or "deconvnet"; see `rules`.

    Returns
    -------
    values : (N,) tensor
        The unit's value for each picture; for a class what the network puts out, be it score or probability.
    gradient : (N, C, H, W) tensor
        With respect to the picture in [0, 1].

    Raises
    ------
    ValueError
        No differentiable path, or a nonlinearity on it for which the rule is not defined.
    """
    if rule is not None:
        refuse_unless_rectified(net, of, rule)
    with torch.enable_grad():
        pixels = batch.detach().clone().requires_grad_()
        values, _ = _values(net, pixels, of)
        if rule is not None:
            apply_rule(values.grad_fn, rule)
        (gradient,) = torch.autograd.grad(values.sum(), pixels, allow_unused=True)
    if gradient is None:
        raise _no_path(of)
    return values.detach(), gradient


def layer_gradient(
    net: Network, batch: torch.Tensor, of: Unit, layer: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradient of a unit with respect to the maps of a layer before it.

    Parameters
    ----------
    net : Network
    batch : (N, C, H, W) tensor in [0, 1]
    of : Unit
    layer : str

    Returns
    -------
    values : (N,) tensor
        As of `input_gradient`.
    maps, gradient : (N, channels, h, w) tensors
        The layer's maps, and the gradient with respect to them.
    """
    with torch.enable_grad():
        pixels = batch.detach().clone().requires_grad_()
        values, acts = _values(net, pixels, of, [layer])
        maps = acts.get(layer)
        (gradient,) = torch.autograd.grad(values.sum(), maps, allow_unused=True) if maps is not None else (None,)
    if gradient is None:
        raise ValueError(f"{of.layer or 'the score'} does not depend on {layer}; choose a layer before it")
    if len(maps) != len(batch):
        raise ValueError(f"{layer} puts out {len(maps)} sets of maps where {len(batch)} went in; choose another layer")
    return values.detach(), net.as_maps(layer, maps.detach()), net.as_maps(layer, gradient)


def _values(
    net: Network, pixels: torch.Tensor, of: Unit, layers: list[str] | None = None
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The unit's values, part of an autograd graph, and the outputs of `layers`; softmax at the end passes gradients."""
    if of.layer:
        name = net.layers[of.layer].name
        with trace(net, [name, *(layers or [])], stop=True) as acts:
            net(pixels)
        values = of.values(net.as_maps(name, acts[name]))
    else:
        with trace(net, layers or []) as acts:
            scores = net(pixels)
        if net.final != "scores":
            pass_the_end(scores.grad_fn)
        values = of.values(scores)
    if values.grad_fn is None:
        raise _no_path(of)
    of.refuse_unless_finite(net, values)
    return values, acts


def _no_path(of: Unit) -> ValueError:
    return ValueError(f"{of.layer or 'the score'} does not depend on the picture by a differentiable path")


# Multiply-adds in a step: about 0.2 s on two laptop cores; a GPU takes more to be busy.
_WORK = {"cpu": 8e9, "cuda": 4e11, "mps": 8e10}
_BYTES = 1 << 30  # for the activations of a batch


def passes(net: Network, batch: torch.Tensor, *, backward: bool = False) -> int:
    """How many pictures of this size to take at once: for a step of about 0.2 s, and within a gigabyte.

    With `backward`, a pass counts three times and keeps all its activations.
    """
    scale = batch.shape[2] * batch.shape[3] / (net.transform.size[0] * net.transform.size[1])
    work = multiply_adds(net.graph) * scale * (3 if backward else 1)
    sizes = [math.prod(value.shape) * 4 * scale for op in net.graph.ops for value in op.outputs if value is not None]
    memory = sum(sizes) if backward else 4 * max(sizes)
    return int(max(1, min(256, _WORK.get(net.device.type, 8e9) / max(work, 1), _BYTES / max(memory, 1))))


SHOWN = ("magnitude", "signed", "times input")


def heat_of(gradient: torch.Tensor, picture: torch.Tensor, show: str) -> torch.Tensor:
    """One number per pixel of (H, W, C): the largest magnitude over the channels, the sum, or the sum times the input."""
    if show == "magnitude":
        return gradient.abs().amax(2)
    return (gradient if show == "signed" else gradient * picture).sum(2)


def explain(
    net: Network, image: Any, *, target: int | str | None, of: Any, show: str, rule: str | None = None, crop: bool = False
) -> Frame:
    """The one Frame of a method that is one backward pass: what `saliency`, `guided_backprop` and `deconvnet` share."""
    batch, unit = asked(net, image, target=target, of=of)
    values, gradients = input_gradient(net, batch, unit, rule)
    picture, gradient = batch[0].permute(1, 2, 0), gradients[0].permute(1, 2, 0)
    arrays = {"gradient": gradient}
    if unit.layer:
        top, left, bottom, right = net.layers[unit.layer].box(unit.position)
        arrays["box"] = (top, left, bottom, right)
        if crop:
            arrays["crop"] = gradient[top:bottom, left:right]
    return Frame(
        1,
        1,
        done=True,
        image=picture,
        heat=heat_of(gradient, picture, show),
        scalars={"value": values[0]},
        arrays=arrays,
    )
