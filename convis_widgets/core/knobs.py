"""Knobs: what may be turned on a technique, declared once in its signature; and the mark that makes a technique.

From the declaration come the check of a value, the widget's control, and which values may be sent into a
computation that is already running.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

from .errors import nearest
from .frame import Frame
from .network import Network

TECHNIQUES: dict[str, Callable[..., Frames]] = {}
"""Every technique by name."""


@dataclass(frozen=True)
class Knob:
    """The range of a keyword of a technique, written ``Annotated[float, Knob(0, 1)]``.

    Parameters
    ----------
    low, high : float, optional
        Smallest and largest sensible value.
    choices : tuple of str
        The words it may be, for a knob that is a word.
    log : bool
        Whether a slider for it should be logarithmic.
    live : bool
        Whether it may be sent into the running generator.
    label : str
        What to call it on screen; its name otherwise.
    """

    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    log: bool = False
    live: bool = False
    label: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError, with what to do, unless `value` lies in the range."""
        if self.choices:
            if isinstance(value, str) and value not in self.choices:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(self.choices)}")
            return
        values = value if isinstance(value, (tuple, list)) else (value,)
        for item in values:
            if item is None:
                continue
            if isinstance(item, bool) or not isinstance(item, (int, float)) or item != item:
                raise ValueError(f"{name}={value!r} should be a number from {self.low:g} to {self.high:g}")
            if (self.low is not None and item < self.low) or (self.high is not None and item > self.high):
                raise ValueError(f"{name}={item:g} is outside {self.low:g} to {self.high:g}")


def knobs_of(technique: Callable[..., Any]) -> dict[str, Knob]:
    """The declared knobs of a technique, by keyword, in the order of its signature."""
    hints = typing.get_type_hints(inspect.unwrap(technique), include_extras=True)
    return {
        name: next(extra for extra in hint.__metadata__ if isinstance(extra, Knob))
        for name, hint in hints.items()
        if any(isinstance(extra, Knob) for extra in getattr(hint, "__metadata__", ()))
    }


class Frames(Generator[Frame, "dict[str, Any] | None", None]):
    """The iterator of Frames that a technique returns: a generator that minds what is sent into it.

    Values for live knobs may be sent at any time, also before the first Frame; a name that is not a live knob or
    a value out of range raises ValueError and leaves the computation as it was.
    """

    def __init__(self, generator: Generator[Frame, Any, None], name: str, knobs: dict[str, Knob]) -> None:
        self._generator, self._name = generator, name
        self._knobs = knobs
        self._pending: dict[str, Any] = {}
        self._started = False

    def check(self, values: dict[str, Any]) -> None:
        """Raise ValueError unless every key is a live knob and every value in its range."""
        live = {name: knob for name, knob in self._knobs.items() if knob.live}
        for name, value in values.items():
            if name not in live:
                raise ValueError(f"{self._name} has no live knob {name!r}; it has {', '.join(live) or 'none'}")
            live[name].check(name, value)

    def send(self, values: dict[str, Any] | None) -> Frame:
        """Go on to the next Frame, with new values for live knobs (or None)."""
        if values:
            self.check(values)
            self._pending.update(values)
        if not self._started:  # a generator that has not begun takes None only; the values wait for the next step
            self._started = True
            return next(self._generator)
        values, self._pending = self._pending, {}
        return self._generator.send(values or None)

    def throw(self, *args: Any) -> Frame:
        """Raise an exception inside the computation."""
        return self._generator.throw(*args)

    def close(self) -> None:
        """End the computation and let it clean up."""
        self._generator.close()

    def __repr__(self) -> str:
        return f"<frames of {self._name}>"


def technique(function: Callable[..., Iterator[Frame]]) -> Callable[..., Frames]:
    """Mark a generator function as a technique.

    Its first argument becomes a Network (whatever `Network.ensure` takes), its knobs are checked when it is
    called and not at the first step, and it is listed in `TECHNIQUES`.
    """
    signature, knobs = inspect.signature(function), knobs_of(function)
    words = [name for name, parameter in signature.parameters.items() if parameter.kind is parameter.KEYWORD_ONLY]

    @functools.wraps(function)
    def begin(net: Any, *things: Any, **keywords: Any) -> Frames:
        for name, value in keywords.items():
            if name not in words:
                raise TypeError(f"{function.__name__} has no knob {name!r}; {nearest(name, words)}")
            if name in knobs:
                knobs[name].check(name, value)
        return Frames(function(Network.ensure(net), *things, **keywords), function.__name__, knobs)

    TECHNIQUES[function.__name__] = begin
    return begin
