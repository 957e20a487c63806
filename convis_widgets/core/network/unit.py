"""Unit: what is explained or maximized, a class logit, a channel of a layer, or one position of a channel."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch

from ..errors import check_finite
from ..types import ImageLike, UnitLike
from .autograd import bypass_output_activation
from .network import Network
from .trace import get_activations, trace


@dataclass(frozen=True)
class Unit:
    """A class logit, a channel of a layer, or one position of a channel.

    Parameters
    ----------
    layer : str
        Dotted layer name; "" for the class logits.
    channel : int
        Index of the channel, or of the class.
    position : (int, int), optional
        Row and column in the activation map. Without it, the position of the largest activation, image by image.

    Examples
    --------
    >>> Unit("conv1", 3).values(torch.arange(8.0).reshape(1, 8, 1, 1))
    tensor([3.])
    """

    layer: str
    channel: int
    position: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        numbers = (() if not self.layer else (self.channel,)) + (self.position if isinstance(self.position, tuple) else ())
        whole = all(isinstance(number, Integral) and not isinstance(number, bool) for number in numbers)
        pair = self.position is None or (isinstance(self.position, tuple) and len(self.position) == 2)
        if not (isinstance(self.layer, str) and whole and pair):
            raise TypeError(
                f"Unit({self.layer!r}, {self.channel!r}, {self.position!r}) is not a unit; use Unit(layer, channel) or "
                "Unit(layer, channel, (row, column)), with the name of a layer and whole numbers"
            )

    @classmethod
    def ensure(cls, unit: UnitLike) -> Unit:
        """Convert ``(layer, channel)`` or ``(layer, channel, (row, column))`` to a Unit; a Unit is returned unchanged.

        Raises
        ------
        TypeError
            `unit` is neither.
        """
        if isinstance(unit, cls):
            return unit
        if isinstance(unit, (tuple, list)) and len(unit) in (2, 3) and isinstance(unit[0], str):
            with contextlib.suppress(TypeError):  # operator.index raises it for anything but whole numbers
                position = None if len(unit) < 3 or unit[2] is None else tuple(operator.index(i) for i in unit[2])
                if not isinstance(unit[1], bool) and (position is None or len(position) == 2):
                    return cls(unit[0], operator.index(unit[1]), position)
        raise TypeError(f"{unit!r} is not a unit; use (layer, channel) or (layer, channel, (row, column))")

    def validate(self, net: Network) -> Unit:
        """Return this unit with the full layer name; ValueError if the network does not have it."""
        if not self.layer:
            return Unit("", net.class_index(self.channel))
        layer = net.layers[self.layer]
        if not 0 <= self.channel < layer.channels:
            raise ValueError(f"{layer.name} has channels 0 to {layer.channels - 1}, not {self.channel}")
        if self.position is not None and layer.map_shape is not None:
            _, h, w = layer.map_shape
            if not (0 <= self.position[0] < h and 0 <= self.position[1] < w):
                raise ValueError(f"{layer.name} has {h}x{w} positions; {self.position} is not one of them")
        return Unit(layer.name, self.channel, self.position)

    def values(self, activations: torch.Tensor) -> torch.Tensor:
        """Values of the unit, (N,), from logits (N, classes) or from a layer's activations (N, C, h, w)."""
        if activations.ndim == 2:
            return activations[:, self.channel]
        maps = activations.narrow(1, self.channel, 1).squeeze(1)
        if self.position is not None:
            return maps[:, self.position[0], self.position[1]]
        return maps.flatten(1).max(1).values  # the first of equal maxima; amax would split the gradient among them

    def responds(self, net: Network, batch: torch.Tensor) -> torch.Tensor:
        """Whether the unit of a layer is active in each image, (N,): its activation is above 0 at its position or anywhere.

        Parameters
        ----------
        net : Network
        batch : (N, C, H, W) tensor in [0, 1]
        """
        (maps,) = get_activations(net, batch, [self.layer])
        return self.values(maps) > 0

    def check_finite(self, net: Network, values: torch.Tensor) -> None:
        """Raise ValueError if not all values of this unit are finite.

        Parameters
        ----------
        net : Network
        values : tensor
            Activations, scores or probabilities, of any shape.
        """
        check_finite(values, f"the {f'values of {self.layer}' if self.layer else 'scores'} of {net.name}")

    def with_argmax_position(self, net: Network, batch: torch.Tensor) -> Unit:
        """Return this unit at the position of its largest activation, unless it is a class or has a position.

        Parameters
        ----------
        net : Network
        batch : (1, C, H, W) tensor in [0, 1]
            The image.
        """
        if not self.layer or self.position is not None:
            return self
        (maps,) = get_activations(net, batch, [self.layer])
        row, column = divmod(int(maps[0, self.channel].argmax()), maps.shape[3])
        return Unit(self.layer, self.channel, (row, column))


def logit(c: int) -> Unit:
    """The logit of class `c`."""
    return Unit("", c)


def unit_values(
    net: Network, batch: torch.Tensor, unit: Unit, layers: Sequence[str] = ()
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Values of a unit for a batch, differentiable where gradients are enabled.

    Gradients of a class are those of its logit, also where the network ends in softmax or sigmoid.

    Parameters
    ----------
    net : Network
    batch : (N, C, H, W) tensor in [0, 1]
    unit : Unit
    layers : sequence of str, optional
        Layers whose outputs are returned as well.

    Returns
    -------
    values : (N,) tensor
        Activations of the unit; for a class the output of the network, logit or probability.
    outputs : dict of str to tensor
        Raw outputs of `layers`, by name, see `trace`.

    Raises
    ------
    ValueError
        The values are not finite.
    """
    name = net.layers[unit.layer].name if unit.layer else ""
    outputs = layer_outputs(net, batch, [name, *layers] if name else layers, with_scores=not name)
    values = unit.values(net.as_maps(name, outputs[name]) if name else outputs.pop(""))
    unit.check_finite(net, values)
    return values, outputs


def layer_outputs(net: Network, batch: torch.Tensor, layers: Sequence[str], *, with_scores: bool) -> dict[str, torch.Tensor]:
    """Raw outputs of layers, and the scores as "", differentiable where gradients are enabled.

    Gradients bypass a softmax or sigmoid at the end of the network.

    Parameters
    ----------
    net : Network
    batch : (N, C, H, W) tensor in [0, 1]
    layers : sequence of str
    with_scores : bool
        Whether the scores are needed; otherwise the forward pass ends after the last of the layers.
    """
    if net.one_image_at_a_time and len(batch) > 1:
        parts = [layer_outputs(net, image, layers, with_scores=with_scores) for image in batch.split(1)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    outputs: dict[str, torch.Tensor] = {}
    with trace(net, layers, stop=not with_scores) as acts:
        scores = net(batch)
        if net.output_activation != "none" and scores.grad_fn is not None:
            bypass_output_activation(scores.grad_fn)
        outputs[""] = scores
    return outputs | {name: acts[net.layers[name].name] for name in layers if net.layers[name].name in acts}


def resolve_inputs(
    net: Network, image: ImageLike, *, target: int | str | None = None, unit: UnitLike | None = None
) -> tuple[torch.Tensor, Unit]:
    """Resolve the arguments of a technique to a batch of one image and a Unit with a position.

    Parameters
    ----------
    net : Network
    image : image
        See `Network.image`.
    target : int or str, optional
        Class index or label.
    unit : Unit or tuple, optional
        Any other unit; the most probable class if neither is given.

    Returns
    -------
    batch : (1, C, H, W) tensor in [0, 1]
    unit : Unit

    Raises
    ------
    ValueError, TypeError
        Not an image; no such class or unit; both `target` and `unit`.
    """
    batch = net.single_batch(image)
    return batch, resolve_unit(net, target=target, unit=unit, batch=batch).with_argmax_position(net, batch)


def resolve_unit(
    net: Network, *, target: int | str | None = None, unit: UnitLike | None = None, batch: torch.Tensor | None = None
) -> Unit:
    """Resolve `target` or `unit` to a Unit.

    Parameters
    ----------
    net : Network
    target : int or str, optional
        Class index or label.
    unit : Unit or tuple, optional
        Any other unit, see `Unit.ensure`.
    batch : (1, C, H, W) tensor in [0, 1], optional
        Image whose most probable class (the first one of "values") is the result if neither `target` nor `unit` is given.

    Raises
    ------
    ValueError, TypeError
        No such class or unit; both `target` and `unit`; none of the three arguments.
    """
    if target is not None and unit is not None:
        raise ValueError("give target= (a class) or unit= (any other unit), not both")
    if unit is not None:
        return Unit.ensure(unit).validate(net)
    if target is not None:
        return logit(net.class_index(target))
    if batch is None:
        raise ValueError("give target= (a class) or unit= (layer, channel)")
    with torch.no_grad():
        return logit(net.output.default_class(net(batch)[0]))
