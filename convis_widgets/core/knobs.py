"""Knobs: what may be turned on a technique, declared once in its signature; and the mark that makes a technique.

From the declaration come the check of a value, the widget's control, and which values may be sent into a
computation that is already running.
"""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace
from numbers import Integral, Real
from types import NoneType
from typing import Any

import numpy as np
import torch

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
    kinds : tuple of type
        What it may be: read from the annotation by `knobs_of`.
    """

    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    log: bool = False
    live: bool = False
    label: str = ""
    kinds: tuple[type, ...] = (float,)

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError, with what to do, unless `value` lies in the range."""
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if value is None and NoneType in self.kinds:
            return
        if isinstance(value, str) and self.choices and value in self.choices:
            return
        if bool in self.kinds and isinstance(value, bool):
            return
        several = tuple in self.kinds and isinstance(value, (tuple, list)) and len(value) > 0
        if not all(self._is_number(item) for item in (value if several else (value,))):
            raise ValueError(f"{name}={value!r} should be {self._wanted()}")
        for item in value if several else (value,):
            if (self.low is not None and item < self.low) or (self.high is not None and item > self.high):
                raise ValueError(f"{name}={item:g} is outside {self._range()}")

    def _is_number(self, value: Any) -> bool:
        if isinstance(value, bool) or value != value:
            return False
        return (float in self.kinds and isinstance(value, Real)) or (int in self.kinds and isinstance(value, Integral))

    def _wanted(self) -> str:
        """What it should be, in words."""
        words = [repr(choice) for choice in self.choices]
        if bool in self.kinds:
            words.append("True or False")
        if int in self.kinds or float in self.kinds:
            words.append(f"{'a number' if float in self.kinds else 'a whole number'} {self._range('from ')}".rstrip())
        if tuple in self.kinds:
            words.append("several of them")
        return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)

    def _range(self, start: str = "") -> str:
        if self.low is not None and self.high is not None:
            return f"{start}{self.low:g} to {self.high:g}"
        return f"{self.low:g} and up" if self.low is not None else "" if self.high is None else f"up to {self.high:g}"


def knobs_of(technique: Callable[..., Any]) -> dict[str, Knob]:
    """The declared knobs of a technique, by keyword, in the order of its signature."""
    hints = typing.get_type_hints(inspect.unwrap(technique), include_extras=True)
    knobs = {}
    for name, hint in hints.items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Knob):
                kinds = typing.get_args(hint.__origin__) or (hint.__origin__,)
                knobs[name] = replace(extra, kinds=tuple(typing.get_origin(kind) or kind for kind in kinds))
    return knobs


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
        with torch.inference_mode(False):  # which a caller may be in; what is made in it never has gradients
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

    def __getattr__(self, name: str) -> Any:
        if name in ("image", "heat", "scalars", "arrays"):  # of a Frame
            raise AttributeError(f"nothing is computed yet: the last Frame's is Run({self._name}(...)).run().{name}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def technique(function: Callable[..., Iterator[Frame]]) -> Callable[..., Frames]:
    """Mark a generator function as a technique.

    Its first argument becomes a Network (whatever `Network.ensure` takes), its knobs are checked when it is
    called and not at the first step, and it is listed in `TECHNIQUES`.
    """
    signature, knobs = inspect.signature(function), knobs_of(function)

    @functools.wraps(function)
    def begin(net: Any, *things: Any, **keywords: Any) -> Frames:
        for name, value in keywords.items():
            if name not in signature.parameters:
                raise TypeError(f"{function.__name__} has no knob {name!r}; {nearest(name, signature.parameters)}")
            if name in knobs:
                knobs[name].check(name, value)
        signature.bind(net, *things, **keywords)
        return Frames(function(Network.ensure(net), *things, **keywords), function.__name__, knobs)

    TECHNIQUES[function.__name__] = begin
    return begin


def technique_named(name: str) -> Callable[..., Frames]:
    """A technique by its name, "grad_cam" or "grad-cam"; ValueError with near names if there is none."""
    plain = name.lower().replace("-", "_").replace(" ", "_")
    if plain not in TECHNIQUES:
        raise ValueError(f"no technique {name!r}; {nearest(plain, TECHNIQUES)}")
    return TECHNIQUES[plain]


def heat_by(method: str | Callable[..., Iterator[Frame]], net: Network, image: np.ndarray, target: int) -> np.ndarray:
    """The map that a method ends with for a class of a picture.

    Parameters
    ----------
    method : str or callable
        A technique's name, or anything called as ``method(net, image, target=class)`` that gives Frames.
    net : Network
    image : (H, W, C) array in [0, 1]
    target : int
        Class index.

    Returns
    -------
    heat : (H, W) float32 array
        Of the method's last Frame, raw and signed.

    Raises
    ------
    ValueError, TypeError
        No technique of that name, or no method at all; no map comes of it, or one of another size than the picture's.
        An error of the method itself is passed on.
    """
    if not (isinstance(method, str) or callable(method)):
        raise TypeError(f"method={method!r} should be a technique's name or a function that yields Frames")
    called = method if isinstance(method, str) else getattr(method, "__name__", type(method).__name__)
    last = None
    for frame in (technique_named(method) if isinstance(method, str) else method)(net, image, target=target):
        last = frame
    if last is None or last.heat is None:
        raise ValueError(f"{called} gives no map; choose a technique whose Frames have a heat, such as 'saliency'")
    if last.heat.shape != image.shape[:2]:
        given, wanted = ("x".join(map(str, shape)) for shape in (last.heat.shape, image.shape[:2]))
        raise ValueError(f"{called} gives a {given} map of a {wanted} picture; let it be enlarged to the picture's size")
    return last.heat
