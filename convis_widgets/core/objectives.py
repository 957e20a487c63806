"""Objectives: what a picture is made to raise, or to lower, as small values that are added and scaled.

``channel("conv3", 5) - 1e-3 * tv()`` is one. An Objective knows the layers that it looks at, so that the forward pass can
end at the last of them. Every value is (N,), one number for each picture of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import log_softmax

from .rules import pass_the_end
from .trace import trace

if TYPE_CHECKING:
    from .network import Network

SCORES = ""  # the name under which an Objective asks for the class scores


@dataclass
class Seen:
    """What an Objective is measured on: a picture, and what the network makes of it.

    Attributes
    ----------
    picture : (N, C, H, W) tensor
        Less the mean pixel, so that zero is the mean pixel; as it is, before it was jittered.
    outputs : dict
        What `trace` has collected, by layer; `SCORES` for the class scores.
    values : dict
        What `measure` found the parts of the Objective to be, (N,) each, by name, without their weights, those of one name
        added up; and all together, "objective".
    """

    net: Network
    picture: torch.Tensor
    outputs: dict[str, torch.Tensor]
    values: dict[str, torch.Tensor] = field(default_factory=dict)

    def maps(self, layer: str) -> torch.Tensor:
        """A layer's output as (N, C, h, w), or the scores as (N, classes)."""
        return self.net.as_maps(layer, self.outputs[layer]) if layer else self.outputs[SCORES]


class Objective:
    """Something that can be measured on a picture and made larger. Objectives can be added, subtracted and scaled.

    Attributes
    ----------
    name : str
        What to call its value on screen.
    layers : frozenset of str
        The layers that it looks at; `SCORES` for the class scores.
    """

    name: str
    layers: frozenset[str]

    def measure(self, seen: Seen) -> torch.Tensor:
        """Its value for every picture, (N,), part of the autograd graph."""
        raise NotImplementedError

    def parts(self) -> list[tuple[float, Objective]]:
        """What it is the weighted sum of."""
        return [(1.0, self)]

    def called(self, name: str) -> Objective:
        """The same under another name, as one part of what it is added to."""
        return Measured(name, self.layers, self.measure)

    def checked(self, net: Network) -> Objective:
        """This objective with full names of layers; ValueError if the network has not what it looks at."""
        for layer in self.layers:
            if layer and net.layers[layer].layout is None:
                raise ValueError(f"{layer} puts out no maps; choose another layer")
        return self

    def __add__(self, other: Objective) -> Objective:
        return Sum([*self.parts(), *other.parts()]) if isinstance(other, Objective) else NotImplemented

    def __sub__(self, other: Objective) -> Objective:
        return self + -other if isinstance(other, Objective) else NotImplemented

    def __mul__(self, factor: float) -> Objective:
        return Sum([(weight * factor, part) for weight, part in self.parts()])

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Objective:
        return self * (1 / divisor)

    def __neg__(self) -> Objective:
        return self * -1


@dataclass(frozen=True, eq=False)
class Measured(Objective):
    """An Objective by what measures it."""

    name: str
    layers: frozenset[str]
    measure: Callable[[Seen], torch.Tensor]


class Sum(Objective):
    """A weighted sum of Objectives."""

    name = "objective"

    def __init__(self, parts: Iterable[tuple[float, Objective]]) -> None:
        self._parts = list(parts)
        self.layers = frozenset().union(*(part.layers for _, part in self._parts))

    def parts(self) -> list[tuple[float, Objective]]:
        return self._parts

    def checked(self, net: Network) -> Objective:
        return Sum([(weight, part.checked(net)) for weight, part in self._parts])

    def measure(self, seen: Seen) -> torch.Tensor:
        return _added([(weight, part.measure(seen)) for weight, part in self._parts])


def _added(weighted: list[tuple[float, torch.Tensor]]) -> torch.Tensor:
    (weight, first), *others = weighted
    total = weight * first
    for weight, value in others:
        total = total + weight * value
    return total


def measured_on(layer: str, name: str, of_maps: Callable[[torch.Tensor], torch.Tensor]) -> Objective:
    """An Objective that looks at the maps of one layer."""
    return Measured(name, frozenset([layer]), lambda seen: of_maps(seen.maps(layer)))


# -- of the network --------------------------------------------------------------------------------------------------------


def log_probability(c: int) -> Objective:
    """The logarithm of the probability of class `c`: to raise it also lowers all other classes."""

    def measure(seen: Seen) -> torch.Tensor:
        scores, end = seen.outputs[SCORES], seen.net.final
        if end == "scores":
            return _one(log_softmax(scores, 1), c, "the scores")
        # of a network that puts out probabilities the gradient is taken at the scores: there this is what raises them
        p = scores.detach().exp() if end == "log_softmax" else scores.detach()
        value = _one(p, c, "the scores").clamp(min=1e-30).log()
        chosen = torch.nn.functional.one_hot(torch.full((len(p),), c, device=p.device), p.shape[1])
        through = (scores * (chosen * (1 - p) if end == "sigmoid" else chosen - p)).sum(1)
        return through + (value - through).detach()

    return Measured("log probability", frozenset([SCORES]), measure)


def channel(layer: str, c: int) -> Objective:
    """A channel of a layer, averaged over all positions: it is to be excited everywhere."""
    return measured_on(layer, "activation", lambda maps: _one(maps, c, layer).mean((1, 2)))


def _one(maps: torch.Tensor, c: int, where: str) -> torch.Tensor:
    if not 0 <= c < maps.shape[1]:
        raise ValueError(f"there is no channel {c} in {where}; they go from 0 to {maps.shape[1] - 1}")
    return maps[:, c]


def layer(name: str) -> Objective:
    """All that a layer puts out, as half its squared norm, of which the activation itself is the gradient.

    A. Mordvintsev, C. Olah, M. Tyka, "Inceptionism", 2015: DeepDream's objective; their code sets the gradient to the
    activation.
    """
    return measured_on(name, "activity", lambda maps: 0.5 * maps.square().sum((1, 2, 3)))


def alike(name: str, guide: torch.Tensor) -> Objective:
    """How well what a layer puts out fits what it made of another picture: at each position the dot product with that
    vector of the guide for which it is largest. Its gradient is that vector: DeepDream guided by a picture (ibid.).

    `guide` is (1, C, h, w), of any h and w.
    """
    vectors = guide[0].flatten(1).T  # (hw, C)

    def fit(maps: torch.Tensor) -> torch.Tensor:
        rows = maps.flatten(2)  # (N, C, HW)
        best = (vectors @ rows.detach()).argmax(1)  # (N, HW)
        return (vectors[best].transpose(1, 2) * rows).sum((1, 2))

    return measured_on(name, "likeness", fit)


def features(name: str, target: torch.Tensor) -> Objective:
    """The squared distance of what a layer puts out from a target (1, C, h, w), over the target's squared norm.

    A. Mahendran, A. Vedaldi, "Understanding deep image representations by inverting them", 2015, eq. 5.
    """
    norm = target.square().sum().clamp(min=1e-12)
    return measured_on(name, "features", lambda maps: (maps - target).square().sum((1, 2, 3)) / norm)


NORMALIZED = ("hw", "chw", "sum")


def gram_matrix(maps: torch.Tensor, normalize: str = "hw") -> torch.Tensor:
    """(N, C, C) products of the channels of maps (N, C, h, w), summed over positions; no position is left in it.

    "hw" divides by the number of positions, a mean of outer products; "chw" by the number of all values; "sum" by nothing.
    """
    rows = maps.flatten(2)
    divisor = {"hw": rows.shape[2], "chw": rows.shape[1] * rows.shape[2], "sum": 1}[normalize]
    return _Products.apply(rows) / divisor


def covariance_matrix(maps: torch.Tensor) -> torch.Tensor:
    """(N, C, C) covariances of the channels of maps (N, C, h, w) over positions."""
    rows = maps.flatten(2)
    rows = rows - rows.mean(2, keepdim=True)
    return _Products.apply(rows) / rows.shape[2]


class _Products(torch.autograd.Function):
    """Products of all rows (N, C, C). They are symmetric, so the way back takes one product where autograd makes two."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        return _product(rows, rows.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (rows,) = ctx.saved_tensors
        return _product(gradient + gradient.transpose(1, 2), rows)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of one matrix each nearly twice as fast as a batch of products."""
    return (a[0] @ b[0])[None] if len(a) == 1 else a @ b


def gram(name: str, target: torch.Tensor, normalize: str = "hw") -> Objective:
    """The squared distance of a layer's Gram matrix from that of target maps (1, C, h, w).

    With "sum" it is over 4 (C h w)^2, as L. Gatys, A. Ecker, M. Bethge, "Texture synthesis using convolutional neural
    networks", 2015, eq. 4, have it; "hw" is the mean outer product of the lecture, "chw" the form of CS231n's assignment.
    """
    wanted = gram_matrix(target, normalize)

    def distance(maps: torch.Tensor) -> torch.Tensor:
        square = (gram_matrix(maps, normalize) - wanted).square().sum((1, 2))
        return square / (4 * maps[0].numel() ** 2) if normalize == "sum" else square

    return measured_on(name, "gram", distance)


def covariance(name: str, target: torch.Tensor) -> Objective:
    """The squared distance of the covariances of a layer's channels from those of target maps (1, C, h, w)."""
    wanted = covariance_matrix(target)
    return measured_on(name, "covariance", lambda maps: (covariance_matrix(maps) - wanted).square().sum((1, 2)))


# -- of the picture alone --------------------------------------------------------------------------------------------------


def squares() -> Objective:
    """The sum of squares of the pixels, less the mean pixel."""
    return Measured("l2", frozenset(), lambda seen: seen.picture.square().sum((1, 2, 3)))


def lp(p: float) -> Objective:
    """The sum of the pixels' magnitudes, less the mean pixel, to the power of `p`: a large one forbids outliers.

    Mahendran and Vedaldi, 2015, section 3: p = 6.
    """
    return Measured(f"l{p:g}", frozenset(), lambda seen: seen.picture.abs().pow(p).sum((1, 2, 3)))


def tv(beta: float = 2.0) -> Objective:
    """Total variation: the sum of (dx^2 + dy^2)^(beta / 2) over pixels and channels, dx and dy to the right and below.

    Mahendran and Vedaldi, 2015, section 3; beta = 1 is the total variation of the calculus, 2 prefers no edges at all.
    """

    def measure(seen: Seen) -> torch.Tensor:
        x = seen.picture
        square = (x[:, :, :-1, 1:] - x[:, :, :-1, :-1]).square() + (x[:, :, 1:, :-1] - x[:, :, :-1, :-1]).square()
        # of 0 the root has no finite slope
        return (square if beta == 2 else (square + 1e-8).pow(beta / 2)).sum((1, 2, 3))

    return Measured("tv", frozenset(), measure)


def measure(net: Network, objective: Objective, batch: torch.Tensor, seen_as: Any = None) -> tuple[torch.Tensor, Seen]:
    """An Objective's value for pictures in [0, 1], (N,), and all that was seen; the forward pass ends as early as it can.

    Parameters
    ----------
    net : Network
    objective : Objective
        Checked.
    batch : (N, C, H, W) tensor in [0, 1]
        What the network is shown.
    seen_as : (N, C, H, W) tensor, optional
        The picture that objectives of the picture alone are about, less the mean pixel, if it is not the same.
    """
    names = [name for name in objective.layers if name]
    scored = SCORES in objective.layers
    outputs: dict[str, torch.Tensor] = {}
    if names or scored:
        with trace(net, names, stop=not scored) as acts:
            outputs[SCORES] = net(batch)
            if net.final != "scores" and outputs[SCORES].grad_fn is not None:
                pass_the_end(outputs[SCORES].grad_fn)
        outputs |= {name: acts[net.layers[name].name] for name in names}
    origin = net.transform.origin(batch)
    seen = Seen(net, batch - origin if seen_as is None else seen_as, outputs)
    values = [(weight, part.name, part.measure(seen)) for weight, part in objective.parts()]
    for _, name, value in values:
        seen.values[name] = seen.values.get(name, 0) + value.detach()
    total = _added([(weight, value) for weight, _, value in values])
    seen.values.setdefault("objective", total.detach())
    return total, seen
