"""Selectors: the one word for what is explained or maximized, `of=`; and its short form for a class, `target=`."""

from __future__ import annotations

import contextlib
import operator
from dataclasses import dataclass
from typing import Any

import torch

from .network import Network
from .objectives import SCORES, Objective, Seen, channel, layer
from .trace import maps_of


@dataclass(frozen=True)
class Unit(Objective):
    """A class score, a channel of a layer, or one unit of it; also as an Objective, to make larger.

    Parameters
    ----------
    layer : str
        Dotted name; "" stands for the class scores.
    channel : int
        Index of the map, or of the class.
    position : (int, int), optional
        Row and column in the map. Without one the strongest position is meant, picture by picture.

    Examples
    --------
    >>> Unit("conv1", 3).values(torch.arange(8.0).reshape(1, 8, 1, 1))
    tensor([3.])
    """

    layer: str
    channel: int
    position: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """What to call its value."""
        return "logit" if self.layer == SCORES else "activation"

    @property
    def layers(self) -> frozenset[str]:
        """The layer that it is in."""
        return frozenset([self.layer])

    def measure(self, seen: Seen) -> torch.Tensor:
        """Its value for every picture, (N,)."""
        return self.values(seen.maps(self.layer))

    @classmethod
    def ensure(cls, of: Any) -> Unit:
        """A Unit, or its parts ``(layer, channel)`` or ``(layer, channel, (row, column))``."""
        if isinstance(of, cls):
            return of
        if isinstance(of, (tuple, list)) and len(of) in (2, 3) and isinstance(of[0], str):
            with contextlib.suppress(TypeError):  # from operator.index, for what is no whole number
                position = None if len(of) < 3 or of[2] is None else tuple(operator.index(i) for i in of[2])
                if not isinstance(of[1], bool) and (position is None or len(position) == 2):
                    return cls(of[0], operator.index(of[1]), position)
        raise TypeError(f"{of!r} names no unit; write (layer, channel) or (layer, channel, (row, column))")

    def checked(self, net: Network) -> Unit:
        """This unit with the layer's full name; ValueError if the network has no such unit."""
        if not self.layer:
            return Unit("", net.target(self.channel))
        layer = net.layers[self.layer]
        if not 0 <= self.channel < layer.channels:
            raise ValueError(f"{layer.name} has channels 0 to {layer.channels - 1}, not {self.channel}")
        if self.position is not None and layer.maps is not None:
            _, h, w = layer.maps
            if not (0 <= self.position[0] < h and 0 <= self.position[1] < w):
                raise ValueError(f"{layer.name} has {h}x{w} positions, {self.position} is not one of them")
        return Unit(layer.name, self.channel, self.position)

    def values(self, maps: torch.Tensor) -> torch.Tensor:
        """The unit's value for every picture, (N,), from the scores (N, classes) or the layer's maps (N, C, h, w)."""
        if maps.ndim == 2:
            return maps[:, self.channel]
        chosen = maps.narrow(1, self.channel, 1).squeeze(1)
        if self.position is not None:
            return chosen[:, self.position[0], self.position[1]]
        return chosen.flatten(1).max(1).values  # of equal ones the first: amax would share out the gradient

    def refuse_unless_finite(self, net: Network, values: torch.Tensor) -> None:
        """ValueError if this unit's values are not all finite."""
        if not bool(values.isfinite().all()):
            raise ValueError(f"{self.layer or 'the score'} of {net.name} is not finite; its weights may have diverged")

    def strongest(self, net: Network, batch: torch.Tensor) -> Unit:
        """This unit with a position: where its map is largest for the one picture of `batch`, unless it has one."""
        if not self.layer or self.position is not None:
            return self
        (maps,) = maps_of(net, batch, [self.layer])
        row, column = divmod(int(maps[0, self.channel].argmax()), maps.shape[3])
        return Unit(self.layer, self.channel, (row, column))


def logit(c: int) -> Unit:
    """The unnormalized score of class `c`."""
    return Unit("", c)


def unit(layer: str, channel: int, position: tuple[int, int] | None = None) -> Unit:
    """One unit of a layer, by default the strongest of its channel, whichever it is."""
    return Unit(layer, channel, position)


def asked(net: Network, image: Any, *, target: int | str | None = None, of: Any = None) -> tuple[torch.Tensor, Unit]:
    """The picture that a technique is asked about, (1, C, H, W), and the unit that is meant, with its position."""
    batch = net.single(image)
    return batch, select(net, target=target, of=of, batch=batch).strongest(net, batch)


def select(net: Network, *, target: int | str | None = None, of: Any = None, batch: torch.Tensor | None = None) -> Unit:
    """What the user means by `target=` and `of=`; the most probable class of `batch` when neither is given."""
    if target is not None and of is not None:
        raise ValueError("give target= (a class) or of= (anything else), not both")
    if of is not None:
        return Unit.ensure(of).checked(net)
    if target is not None:
        return logit(net.target(target))
    if batch is None:
        raise ValueError("give target= (a class) or of= (layer, channel)")
    with torch.no_grad():
        return logit(int(net(batch)[0].argmax()))


def wanted(net: Network, *, target: int | str | None = None, of: Any = None) -> Objective:
    """What is to be made larger: a class's score, a layer by its name, a channel at all positions, a unit at its own, or
    any Objective.
    """
    if isinstance(of, str) and target is None:
        return layer(net.layers[of].name).checked(net)
    if isinstance(of, Objective) and not isinstance(of, Unit) and target is None:
        return of.checked(net)
    found = select(net, target=target, of=of)
    return found if not found.layer or found.position is not None else channel(found.layer, found.channel)
