"""Objectives: differentiable scalars to maximize. They can be added, subtracted and scaled.

``objectives.channel("conv3", 5) - 1e-3 * objectives.total_variation()`` is an Objective. It knows which layers it uses, so
that the forward pass stops at the last of them. Values have shape (N,): one per image of the batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

from ..network.network import Network
from ..network.unit import Unit, layer_outputs, resolve_unit
from ..types import ObjectiveLike
from . import regularizers
from .gram_matrix import covariance_matrix, gram_matrix

LOGITS = ""  # stands for the class logits among the layers of an Objective


@dataclass
class ForwardPass:
    """What Objectives are computed from: a batch of images and the outputs of the network for it.

    Attributes
    ----------
    net : Network
    image : (N, C, H, W) tensor
        Minus the mean pixel, before jitter and other transforms.
    outputs : dict of str to tensor
        Raw outputs by layer name, see `trace`; `LOGITS` for the class logits.
    terms : dict of str to (N,) tensor
        Unweighted value of each term of the Objective, by name, and the weighted total, "objective". Terms of the same name
        are added. Filled by `evaluate`.
    """

    net: Network
    image: torch.Tensor
    outputs: dict[str, torch.Tensor]
    terms: dict[str, torch.Tensor] = field(default_factory=dict)

    def activations(self, layer: str) -> torch.Tensor:
        """Activations of a layer, (N, C, h, w), or the logits, (N, classes)."""
        return self.net.as_maps(layer, self.outputs[layer]) if layer else self.outputs[LOGITS]


class Objective:
    """A differentiable scalar to maximize.

    Attributes
    ----------
    name : str
        Name of its value in ``Frame.scalars``.
    layers : frozenset of str
        Layers it uses; `LOGITS` for the class logits.
    """

    name: str
    layers: frozenset[str]

    def value(self, forward: ForwardPass) -> torch.Tensor:
        """Value for each image, (N,), part of the autograd graph."""
        raise NotImplementedError

    def terms(self) -> list[tuple[float, Objective]]:
        """Terms of the weighted sum, as (weight, Objective)."""
        return [(1.0, self)]

    def rename(self, name: str) -> Objective:
        """Return the same Objective as a single term of another name."""
        return FunctionObjective(name, self.layers, self.value)

    def validate(self, net: Network) -> Objective:
        """Return the Objective; ValueError if the network does not have its layers or units."""
        for layer in self.layers:
            if layer and net.layers[layer].layout is None:
                raise ValueError(f"the output of {layer} is not a set of activation maps; choose another layer")
        return self

    def __add__(self, other: Objective) -> Objective:
        return WeightedSum([*self.terms(), *other.terms()]) if isinstance(other, Objective) else NotImplemented

    def __sub__(self, other: Objective) -> Objective:
        return self + -other if isinstance(other, Objective) else NotImplemented

    def __mul__(self, factor: float) -> Objective:
        return WeightedSum([(weight * factor, term) for weight, term in self.terms()])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Objective:
        return self * (1 / divisor)

    def __neg__(self) -> Objective:
        return self * -1


class FunctionObjective(Objective):
    """An Objective computed by a function of the ForwardPass.

    Parameters
    ----------
    name : str
    layers : frozenset of str
    function : callable(ForwardPass) -> (N,) tensor
    """

    def __init__(self, name: str, layers: frozenset[str], function: Callable[[ForwardPass], torch.Tensor]) -> None:
        self.name, self.layers, self._function = name, layers, function

    def value(self, forward: ForwardPass) -> torch.Tensor:
        """Value for each image, (N,)."""
        return self._function(forward)


class UnitObjective(Objective):
    """The value of a Unit: a class logit, or an activation at its position (the largest of its map without one)."""

    def __init__(self, unit: Unit) -> None:
        self.unit, self.layers = unit, frozenset([unit.layer])
        self.name = "activation" if unit.layer else "logit"

    def value(self, forward: ForwardPass) -> torch.Tensor:
        """Value for each image, (N,)."""
        return self.unit.values(forward.activations(self.unit.layer))

    def validate(self, net: Network) -> Objective:
        """Return the Objective with the full layer name; ValueError if the network does not have the unit."""
        return UnitObjective(self.unit.validate(net))


class WeightedSum(Objective):
    """A weighted sum of Objectives."""

    name = "objective"

    def __init__(self, terms: Iterable[tuple[float, Objective]]) -> None:
        self._terms = list(terms)
        self.layers = frozenset[str]().union(*(term.layers for _, term in self._terms))

    def terms(self) -> list[tuple[float, Objective]]:
        """Terms of the sum, as (weight, Objective)."""
        return self._terms

    def validate(self, net: Network) -> Objective:
        """Return the sum of the validated terms."""
        return WeightedSum([(weight, term.validate(net)) for weight, term in self._terms])

    def value(self, forward: ForwardPass) -> torch.Tensor:
        """Value for each image, (N,)."""
        return _weighted_sum([(weight, term.value(forward)) for weight, term in self._terms])


def _weighted_sum(weighted: list[tuple[float, torch.Tensor]]) -> torch.Tensor:
    (weight, first), *others = weighted
    total = weight * first
    for weight, value in others:
        total = total + weight * value
    return total


def layer_objective(layer: str, name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Objective:
    """An Objective of this name, computed from the activations of one layer.

    Parameters
    ----------
    layer, name : str
    function : callable((N, C, h, w) tensor) -> (N,) tensor
    """
    return FunctionObjective(name, frozenset([layer]), lambda forward: function(forward.activations(layer)))


# -- objectives on the network ---------------------------------------------------------------------------------------------


def class_logit(c: int) -> Objective:
    """The logit of class `c`."""
    return UnitObjective(Unit(LOGITS, c))


def neuron(layer: str, channel: int, position: tuple[int, int] | None = None) -> Objective:
    """The activation of a channel at one position (row, column); the largest of its map without a position.

    Parameters
    ----------
    layer : str
    channel : int
    position : (int, int), optional
    """
    return UnitObjective(Unit(layer, channel, position))


@functools.lru_cache(64)  # the same object, by which a step is recognized as the same
def log_prob(c: int) -> Objective:
    """The log probability of class `c`. Maximizing it also suppresses competing classes."""

    def value(forward: ForwardPass) -> torch.Tensor:
        scores, activation = forward.outputs[LOGITS], forward.net.output_activation
        if activation == "none":
            return _select_channel(forward.net.output.log_probabilities(scores), c, "the scores")
        # gradients bypass the output activation, so this is the gradient of the log probability at the logits
        p = scores.detach().exp() if activation == "log_softmax" else scores.detach()
        log_p = _select_channel(scores if activation == "log_softmax" else p.clamp(min=1e-30).log(), c, "the logits")
        one_hot = torch.nn.functional.one_hot(torch.full((len(p),), c, device=p.device), p.shape[1])
        finite = scores.masked_fill(scores == -torch.inf, 0)  # a masked class has no gradient
        surrogate = (finite * (one_hot * (1 - p) if activation == "sigmoid" else one_hot - p)).sum(1)
        return surrogate + (log_p - surrogate).detach()

    return FunctionObjective("log probability", frozenset([LOGITS]), value)


def channel(layer: str, c: int) -> Objective:
    """Mean activation of channel `c` over all positions.

    Parameters
    ----------
    layer : str
    c : int
    """
    return layer_objective(layer, "activation", lambda maps: _select_channel(maps, c, layer).mean((1, 2)))


def _select_channel(maps: torch.Tensor, c: int, where: str) -> torch.Tensor:
    if not 0 <= c < maps.shape[1]:
        raise ValueError(f"there is no channel {c} in {where}; channels go from 0 to {maps.shape[1] - 1}")
    return maps[:, c]


def deepdream(layer: str) -> Objective:
    """Half the squared norm of a layer's activations; its gradient is the activations themselves.

    A. Mordvintsev, C. Olah, M. Tyka, "Inceptionism", 2015. Their code sets the gradient to the activations.
    """
    return layer_objective(layer, "activity", lambda maps: 0.5 * maps.square().sum((1, 2, 3)))


def guided_deepdream(layer: str, guide: torch.Tensor) -> Objective:
    """Dot product of each activation vector with its best match in the guide's activations.

    Guided DeepDream, see `deepdream`.

    Parameters
    ----------
    layer : str
    guide : (1, C, h, w) tensor
        The layer's activations for the guide image, of any h and w.
    """
    vectors = guide[0].flatten(1).T  # (hw, C)

    def similarity(maps: torch.Tensor) -> torch.Tensor:
        rows = maps.flatten(2)  # (N, C, HW)
        best = (vectors @ rows.detach()).argmax(1)  # (N, HW)
        return (vectors[best].transpose(1, 2) * rows).sum((1, 2))

    return layer_objective(layer, "similarity", similarity)


def features(layer: str, target: torch.Tensor) -> Objective:
    """Squared distance of a layer's activations from a target, relative to the target's squared norm.

    A. Mahendran, A. Vedaldi, "Understanding deep image representations by inverting them", 2015, eq. 5.

    Parameters
    ----------
    layer : str
    target : (1, C, h, w) tensor
    """
    norm = target.square().sum()
    norm = norm.masked_fill(norm == 0, 1)
    return layer_objective(layer, "features", lambda maps: (maps - target).square().sum((1, 2, 3)) / norm)


def gram(layer: str, target: torch.Tensor, normalize: str = "hw") -> Objective:
    """Squared distance of a layer's Gram matrix from that of target activations.

    Parameters
    ----------
    layer : str
    target : (1, C, h, w) tensor
    normalize : str
        See `gram_matrix`. "sum" divides the distance by 4 (C h w)^2, as in L. Gatys, A. Ecker, M. Bethge, "Texture synthesis
        using convolutional neural networks", 2015, eq. 4; "hw" is the mean outer product of the CS231n lecture, "chw" the
        form of its assignment.
    """
    target_matrix = gram_matrix(target, normalize)

    def distance(maps: torch.Tensor) -> torch.Tensor:
        square = (gram_matrix(maps, normalize) - target_matrix).square().sum((1, 2))
        return square / (4 * maps[0].numel() ** 2) if normalize == "sum" else square

    return layer_objective(layer, "gram", distance)


def covariance(layer: str, target: torch.Tensor) -> Objective:
    """Squared distance of a layer's channel covariances from those of target activations.

    Parameters
    ----------
    layer : str
    target : (1, C, h, w) tensor
    """
    target_matrix = covariance_matrix(target)

    def distance(maps: torch.Tensor) -> torch.Tensor:
        return (covariance_matrix(maps) - target_matrix).square().sum((1, 2))

    return layer_objective(layer, "covariance", distance)


@functools.lru_cache(64)
def l2() -> Objective:
    """Sum of squared pixels, minus the mean pixel."""
    return FunctionObjective("l2", frozenset(), lambda forward: regularizers.lp_norm(forward.image, 2))


@functools.lru_cache(64)
def lp_norm(p: float) -> Objective:
    """Sum of the pixels' magnitudes to the power of `p`, minus the mean pixel; see `regularizers.lp_norm`."""
    return FunctionObjective(f"l{p:g}", frozenset(), lambda forward: regularizers.lp_norm(forward.image, p))


@functools.lru_cache(64)
def total_variation(beta: float = 2.0) -> Objective:
    """Total variation of the image; see `regularizers.total_variation`."""
    return FunctionObjective("tv", frozenset(), lambda forward: regularizers.total_variation(forward.image, beta))


def evaluate(
    net: Network, objective: Objective, batch: torch.Tensor, image: torch.Tensor | None = None
) -> tuple[torch.Tensor, ForwardPass]:
    """Evaluate an Objective for a batch. The forward pass stops at the last layer it uses.

    Parameters
    ----------
    net : Network
    objective : Objective
        Validated, see `Objective.validate`.
    batch : (N, C, H, W) tensor in [0, 1]
        Input of the network.
    image : (N, C, H, W) tensor, optional
        The image before transforms, minus the mean pixel, for objectives on the image; `batch` minus the mean pixel
        otherwise.

    Returns
    -------
    value : (N,) tensor
    forward : ForwardPass
        With the value of each term in ``forward.terms``.
    """
    names = [name for name in objective.layers if name]
    uses_logits = LOGITS in objective.layers
    outputs = layer_outputs(net, batch, names, with_scores=uses_logits) if names or uses_logits else {}
    forward = ForwardPass(net, batch - net.transform.mean_pixel_tensor(batch) if image is None else image, outputs)
    values = [(weight, term.name, term.value(forward)) for weight, term in objective.terms()]
    for _, name, value in values:
        forward.terms[name] = forward.terms.get(name, 0) + value.detach()
    total = _weighted_sum([(weight, value) for weight, _, value in values])
    forward.terms.setdefault("objective", total.detach())
    return total, forward


def as_objective(net: Network, *, target: int | str | None = None, objective: ObjectiveLike | None = None) -> Objective:
    """Convert what the user wants to maximize to an Objective.

    Parameters
    ----------
    net : Network
    target : int or str, optional
        A class: its logit.
    objective : Objective, Unit, (layer, channel), (layer, channel, (row, column)) or str, optional
        An Objective; a channel: its mean activation; a unit with a position: its activation; a layer's name: `deepdream`.

    Raises
    ------
    ValueError, TypeError
        No such class, layer or channel; both are given, or none.
    """
    if target is None and objective is None:
        raise ValueError("give target= (a class) or objective= (a unit, a layer or an Objective)")
    if target is not None and objective is not None:
        raise ValueError("give target= (a class) or objective= (anything else), not both")
    if isinstance(objective, (list, tuple)) and objective and all(isinstance(layer, str) for layer in objective):
        terms = " + ".join(f"{1 / len(objective):.2g} * objectives.deepdream({layer!r})" for layer in objective)
        raise TypeError(f"{objective!r} is not one layer; for several, give the weighted sum of their objectives: {terms}")
    if isinstance(objective, str):
        return deepdream(net.layers[objective].name).validate(net)
    if isinstance(objective, Objective):
        return objective.validate(net)
    unit = resolve_unit(net, target=target, unit=objective)
    if unit.layer and unit.position is None:
        return channel(unit.layer, unit.channel)
    return UnitObjective(unit)
