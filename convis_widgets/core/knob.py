"""Knob: the declared range of a technique's keyword. Value checks and widget controls are derived from it."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from types import MappingProxyType, NoneType
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Knob:
    """The range of a keyword of a technique, declared as ``Annotated[float, Knob(0, 1)]``.

    Parameters
    ----------
    low, high : float, optional
        Smallest and largest allowed value.
    choices : tuple of str
        Allowed strings.
    log : bool
        Whether its slider is logarithmic.
    live : bool
        Whether it can be changed while the technique runs, see `Run.send`.
    label : str
        Label of its control; the keyword by default.
    types : tuple of type
        Allowed types; `get_knobs` reads them from the annotation.
    length : int, optional
        Number of values in a sequence, if it is fixed; read from the annotation, too.

    Examples
    --------
    >>> Knob(0, 1).check("opacity", 0.5)
    >>> Knob(0, 1).check("opacity", 2)
    Traceback (most recent call last):
    ...
    ValueError: opacity=2 is outside 0 to 1
    """

    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    log: bool = False
    live: bool = False
    label: str = ""
    types: tuple[type, ...] = (float,)
    length: int | None = None

    def check(self, name: str, value: Any) -> None:
        """Raise ValueError unless `value` is allowed.

        Parameters
        ----------
        name : str
            The keyword, for the message.
        value : object
        """
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if value is None and NoneType in self.types:
            return
        if isinstance(value, str) and self.choices and value in self.choices:
            return
        if bool in self.types and isinstance(value, bool):
            return
        is_sequence = tuple in self.types and isinstance(value, (tuple, list)) and len(value) > 0
        if is_sequence and self.length is not None and len(value) != self.length:
            raise ValueError(f"{name}={value!r} should be {self._expected()}")
        items = value if is_sequence else (value,)
        if not all(self._is_number(item) for item in items):
            raise ValueError(f"{name}={value!r} should be {self._expected()}")
        for item in items:
            if (self.low is not None and item < self.low) or (self.high is not None and item > self.high):
                raise ValueError(f"{name}={item:g} is outside {self._range()}")

    def describe(self) -> str:
        """Type and range as in a numpy docstring.

        Examples
        --------
        >>> Knob(0, 1).describe(), Knob(1, 8, types=(int,)).describe(), Knob(choices=("a", "b")).describe()
        ('float, 0 to 1', 'int, 1 to 8', "{'a', 'b'}")
        """
        options = ["{" + ", ".join(map(repr, self.choices)) + "}"] if self.choices else []
        types = [t for t in (bool, int, float, tuple) if t in self.types and not (self.choices and t is float)]
        options += [t.__name__ for t in types]
        return f"{' or '.join(options)}, {self._range()}".rstrip(", ")

    def _is_number(self, value: Any) -> bool:
        if isinstance(value, bool) or value != value:
            return False
        return (float in self.types and isinstance(value, Real)) or (int in self.types and isinstance(value, Integral))

    def _expected(self) -> str:
        """Description of the allowed values."""
        options = [repr(choice) for choice in self.choices]
        if bool in self.types:
            options.append("True or False")
        if int in self.types or float in self.types:
            number = "a number" if float in self.types else "a whole number"
            options.append(f"{number} {self._range('from ')}".rstrip())
        if tuple in self.types:
            options.append("a sequence of them" if self.length is None else f"{self.length} of them, as a tuple")
        return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)

    def _range(self, prefix: str = "") -> str:
        if self.low is not None and self.high is not None:
            return f"{prefix}{self.low:g} to {self.high:g}"
        return f"{self.low:g} or more" if self.low is not None else "" if self.high is None else f"up to {self.high:g}"


@functools.cache
def get_knobs(technique: Callable[..., Any]) -> Mapping[str, Knob]:
    """The declared knobs of a technique by keyword, in the order of its signature."""
    hints = typing.get_type_hints(inspect.unwrap(technique), include_extras=True)
    knobs = {}
    for name, hint in hints.items():
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Knob):
                types = typing.get_args(hint.__origin__) or (hint.__origin__,)
                sizes = [typing.get_args(kind) for kind in types if typing.get_origin(kind) is tuple]
                length = len(sizes[0]) if sizes and ... not in sizes[0] else None
                kinds = tuple(typing.get_origin(kind) or kind for kind in types)
                knobs[name] = replace(extra, types=kinds, length=length)
    return MappingProxyType(knobs)
