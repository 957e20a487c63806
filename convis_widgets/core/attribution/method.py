"""The registry of attribution methods: techniques whose map can be compared with others, and how it is shown."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..errors import did_you_mean
from ..knob import get_knobs
from ..registry import FrameStream

Technique = TypeVar("Technique", bound=Callable[..., FrameStream])


@dataclass(frozen=True)
class AttributionMethod:
    """A technique whose Frames have a ``heat``, and how that is shown.

    Parameters
    ----------
    technique : callable
        Called as ``technique(net, image, target=..., **knobs)`` or with ``unit=...``.
    name : str
        Name on menus.
    caption : str
        What the map shows. ``{score}`` stands for the score or the unit that is explained, ``{probability}`` for its
        probability (the value of a regression network) or the unit, ``{value}`` for the value of that, and the name of a
        knob for its value.
    signed : bool
        Whether zero is the middle of the color scale.
    streams : bool
        Whether there is more than one Frame.
    knobs : tuple of str
        Knobs of the technique that have a control.
    min_range : float
        Smallest magnitude at the end of the color scale of a map of probabilities; without it, rounding errors would fill
        the scale of a map that is constant.
    outlier_fraction : float
        Fraction of the pixels, those of the largest magnitude, that may exceed the color scale; without it a few pixels of
        a grainy map would leave the others dark.
    """

    technique: Callable[..., FrameStream]
    name: str
    caption: str
    signed: bool = False
    streams: bool = False
    knobs: tuple[str, ...] = ()
    min_range: float = 0.0
    outlier_fraction: float = 0.0


ATTRIBUTION_METHODS: dict[str, AttributionMethod] = {}
"""All attribution methods by name, in the order of registration, which is that of menus."""


def attribution_method(
    name: str,
    caption: str,
    *,
    signed: bool = False,
    streams: bool = False,
    knobs: tuple[str, ...] = (),
    min_range: float = 0.0,
    outlier_fraction: float = 0.0,
) -> Callable[[Technique], Technique]:
    """Decorate a technique as an attribution method and add it to `ATTRIBUTION_METHODS`.

    Parameters
    ----------
    name : str
        Name on menus, and in `ATTRIBUTION_METHODS`.
    caption : str
        What the map shows; may contain fields such as ``{score}``, see `AttributionMethod`.
    signed : bool
        Whether zero is the middle of the color scale.
    streams : bool
        Whether there is more than one Frame.
    knobs : tuple of str
        Knobs of the technique that have a control.
    min_range : float
        Smallest magnitude at the end of the color scale, in units of the map.
    outlier_fraction : float
        Fraction of the pixels, in [0, 1], that may exceed the color scale.

    Raises
    ------
    ValueError
        The technique has no such knob, or the caption has an unknown field.

    Examples
    --------
    >>> from convis_widgets.core.registry import TECHNIQUES, technique
    >>> from convis_widgets.core.runs.frame import Frame
    >>> @attribution_method("edges", "edges, which do not depend on {score}")
    ... @technique
    ... def edges(net, image, *, target=None, unit=None):
    ...     yield Frame(1, 1, done=True, heat=abs(net.image(image)[1:].mean(2) - net.image(image)[:-1].mean(2)))
    >>> ATTRIBUTION_METHODS["edges"].caption.format(score="the score of cat")
    'edges, which do not depend on the score of cat'
    >>> _ = ATTRIBUTION_METHODS.pop("edges"), TECHNIQUES.pop("edges")
    """

    def register(technique: Technique) -> Technique:
        available = get_knobs(technique)
        for knob in knobs:
            if knob not in available:
                raise ValueError(f"{name} has no knob {knob!r}; {did_you_mean(knob, available)}")
        fields = ("score", "probability", "value", *knobs)
        for _, field, _, _ in string.Formatter().parse(caption):
            if field is not None and field not in fields:
                raise ValueError(f"{{{field}}} in the caption of {name} is unknown; {did_you_mean(field, fields)}")
        method = AttributionMethod(technique, name, caption, signed, streams, knobs, min_range, outlier_fraction)
        ATTRIBUTION_METHODS[name] = method
        return technique

    return register
