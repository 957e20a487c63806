"""Params: the declared settings of a widget.

A Param is a trait together with its check, its control, when that control is shown, and what a change of it causes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ...core.errors import did_you_mean
from ...core.knob import Knob, get_knobs
from ...core.network.unit import Unit
from ..controls.pickers import ClassPicker, UnitPicker
from ..controls.sliders import make_control
from .settings import IndexSetting, ParamError, Setting


class Param(Setting, traitlets.TraitType[Any, Any]):
    """A setting of a widget, declared in its class.

    Parameters
    ----------
    default : object
    help : str
        One sentence; the tooltip of the control, and the parameter's text in the widget's docstring.
    effect : str
        What a change causes: "recompute", "redraw", "send" (a live knob is sent to the running technique, any other one
        recomputes), the name of another method of the widget, or "" for nothing.
    label : str
        Label of the control; the name with spaces otherwise.
    when : callable(viewer) -> bool, optional
        Whether the control is shown; always otherwise.
    """

    type_text = "object"

    def __init__(
        self,
        default: Any,
        help: str,
        *,
        effect: str = "redraw",
        label: str = "",
        when: Callable[[Any], bool] | None = None,
    ) -> None:
        super().__init__(default, allow_none=default is None, help=help)
        self.effect, self.label, self.when = effect, label, when

    def check(self, viewer: Any, value: Any) -> Any:
        """Return the value in its final form; ValueError or TypeError if it is not valid."""
        return value

    def validate(self, viewer: Any, value: Any) -> Any:
        """Check a value on assignment."""
        if isinstance(value, (np.ndarray, np.generic)):  # a comparison of arrays has no truth value
            value = value.tolist()
        try:
            return self.check(viewer, value)
        except ValueError as error:
            raise ParamError(str(error)) from None

    def to_names(self, value: Any) -> tuple[str, ...]:
        """A name or a sequence of names as a tuple; ValueError for anything else."""
        names = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if not all(isinstance(name, str) for name in names):
            raise ValueError(f"{self.name}={value!r} should be a name or a sequence of names")
        return names

    def shown(self, viewer: Any) -> Any:
        """The value of the trait; for None what the widget uses instead."""
        value = getattr(viewer, str(self.name))
        return viewer.default_of(self.name) if value is None else value

    def assign(self, viewer: Any, value: Any) -> None:
        """Set the trait."""
        setattr(viewer, str(self.name), value)

    @property
    def documentation(self) -> str:
        """An entry of a numpy docstring: type, range and default, and the help text."""
        text = re.sub(r"\s+", " ", self.help or "").strip()
        default = f"{self.default_value:.3g}" if isinstance(self.default_value, float) else repr(self.default_value)
        return f"{self.name} : {self.type_text}, default {default}\n    {text}"


class Choice(Param):
    """One of several values, chosen from a menu.

    Parameters
    ----------
    options : sequence of str, or mapping of label to value
    buttons : bool
        Toggle buttons instead of a menu.
    """

    def __init__(
        self, default: Any, options: Iterable[Any] | Mapping[str, Any], help: str, *, buttons: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(default, help, **kwargs)
        self.options = dict(options) if isinstance(options, Mapping) else {str(value): value for value in options}
        self.buttons = buttons

    @property
    def type_text(self) -> str:  # type: ignore[override]
        """The allowed values."""
        return "{" + ", ".join(map(repr, self.options.values())) + "}"

    def check(self, viewer: Any, value: Any) -> Any:
        """Reject everything but the options."""
        if value not in self.options.values():
            raise ValueError(f"{self.name}={value!r} should be one of {', '.join(map(repr, self.options.values()))}")
        return value

    def make_control(self, viewer: Any) -> ipywidgets.Widget:
        """A menu, or toggle buttons."""
        if self.buttons:
            made = ipywidgets.ToggleButtons(options=self.options, value=self.shown(viewer), tooltips=[self.help or ""])
            made.style.button_width = "110px"
            return made
        return ipywidgets.Dropdown(options=self.options, value=self.shown(viewer), description=self.description)


class KnobParam(Param):
    """A number, word or flag with the range of a Knob.

    Parameters
    ----------
    knob : Knob
    limit : callable(viewer) -> number, optional
        The largest value for this widget, where it is less than the knob's: larger ones are rejected.
    """

    def __init__(
        self, default: Any, knob: Knob, help: str, *, limit: Callable[[Any], float] | None = None, **kwargs: Any
    ) -> None:
        kwargs.setdefault("label", knob.label)
        super().__init__(default, help, **kwargs)
        self.knob, self.limit = knob, limit
        self.allow_none = default is None

    @classmethod
    def of(cls, technique: Callable[..., Any], name: str, default: Any = None, **kwargs: Any) -> KnobParam:
        """The Param for a knob of a technique: range, default and help text are the technique's."""
        knobs = get_knobs(technique)
        if name not in knobs:
            raise ValueError(f"{technique.__name__} has no knob {name!r}; {did_you_mean(name, knobs)}")
        default = technique.__wrapped__.__kwdefaults__[name] if default is None else default  # type: ignore[attr-defined]
        kwargs.setdefault("effect", "send" if knobs[name].live else "recompute")
        return cls(default, knobs[name], parameter_text(technique, name), **kwargs)

    @property
    def type_text(self) -> str:  # type: ignore[override]
        """Type and range."""
        return self.knob.describe()

    def check(self, viewer: Any, value: Any) -> Any:
        """Reject what the knob does not accept. None stands for the default."""
        if value is None:
            return self.default_value
        value = tuple(value) if isinstance(value, list) else value
        self.knob.check(str(self.name), value)
        high = None if self.limit is None else self.limit(viewer)
        if high is not None and not isinstance(value, str) and value > high:
            raise ValueError(f"{self.name}={value:g} is too large here; give {self.knob.low or 0:g} to {high:g}")
        return value

    def shown(self, viewer: Any) -> Any:
        """The value; of a height and a width the larger one; None for a number that is accepted in place of a word."""
        value = super().shown(viewer)
        if self.knob.choices:
            return value if isinstance(value, str) else None
        return max(value) if isinstance(value, (tuple, list)) else value

    def make_control(self, viewer: Any) -> ipywidgets.Widget:
        """A menu, a slider, a check box or a field, depending on the knob."""
        high = None if self.limit is None else self.limit(viewer)
        return make_control(self.description, self.knob, self.shown(viewer), high=high)


class Number(KnobParam):
    """A number within a range that belongs to the widget itself.

    Parameters
    ----------
    low, high : float
        A range of whole numbers if all of `default`, `low` and `high` are.
    """

    def __init__(self, default: float, low: float, high: float | None, help: str, **kwargs: Any) -> None:
        whole = all(isinstance(number, int) for number in (default, low) if number is not None)
        super().__init__(default, Knob(low, high, types=(int,) if whole else (float,)), help, **kwargs)


class Index(IndexSetting, Param):
    """A whole number from 0 to a limit that depends on the widget's state; larger values are lowered to the limit.

    Parameters
    ----------
    limit : callable(viewer) -> int
        The largest value.
    """

    type_text = "int"

    def __init__(self, limit: Callable[[Any], int], help: str, *, default: int = 0, **kwargs: Any) -> None:
        super().__init__(default, help, **kwargs)
        self.limit = limit

    def check(self, viewer: Any, value: Any) -> int:
        """Reject negative numbers, lower those above the limit once there is one."""
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{self.name}={value!r} should be a whole number from 0")
        return min(value, self.limit(viewer)) if viewer.built else value


class ClassParam(Param):
    """A class of the widget's network, given as an index or a label and kept as an index.

    Parameters
    ----------
    default : int or None
    auto_label : str
        Text in the search field for None, an automatic choice; "" if None stands for the default.
    """

    type_text = "int or str"

    def __init__(self, default: int | None, help: str, *, auto_label: str = ClassPicker.AUTO, **kwargs: Any) -> None:
        kwargs.setdefault("label", "class")
        kwargs.setdefault("effect", "recompute")
        super().__init__(default, help, **kwargs)
        self.allow_none, self.auto_label = bool(auto_label), auto_label

    def check(self, viewer: Any, value: Any) -> int:
        """Resolve a label."""
        return self.default_value if value is None else viewer.network.class_index(value)

    def shown(self, viewer: Any) -> int | None:
        """The index; None for an automatic choice."""
        return getattr(viewer, str(self.name))

    def make_control(self, viewer: Any) -> ipywidgets.Widget:
        """A search field."""
        return ClassPicker(viewer.network.labels, description=self.description, auto_label=self.auto_label)


class LayerParam(Param):
    """The name of a layer.

    Parameters
    ----------
    options : callable(viewer) -> list of str
        Names on the menu.
    none_label : str
        Label of an entry for no layer, "".
    """

    type_text = "str"

    def __init__(
        self,
        options: Callable[[Any], list[str]],
        help: str,
        *,
        default: str | None = None,
        none_label: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(default, help, **kwargs)
        self.options, self.none_label = options, none_label

    def check(self, viewer: Any, value: Any) -> str:
        """Resolve the full name; ValueError with similar names if there is no such layer."""
        if not value and self.none_label:
            return ""
        is_index = isinstance(value, int) and not isinstance(value, bool) and abs(value) < len(viewer.network.layers)
        if not (is_index or isinstance(value, str)):
            available = did_you_mean("", self.options(viewer))
            raise ValueError(f"{self.name}={value!r} should be the name of a layer; {available}")
        return viewer.check_layer(viewer.network.layers[value].name)

    def make_control(self, viewer: Any) -> ipywidgets.Widget:
        """A menu."""
        options = [*([(self.none_label, "")] if self.none_label else []), *((name, name) for name in self.options(viewer))]
        return ipywidgets.Dropdown(options=options, description=self.description)

    def sync(self, viewer: Any, control: ipywidgets.Widget) -> None:
        """Select the layer, or nothing if it is not on the menu."""
        value = self.shown(viewer)
        control.value = value if value in [option for _, option in control.options] else None


class UnitParam(Param):
    """The selected unit: a Unit, (layer, channel) or (layer, channel, (row, column)), or None.

    Parameters
    ----------
    picker : bool
        Whether it has a control, for units of layers. Before one is selected the control shows `viewer.default_of`.
    """

    type_text = "Unit or tuple"

    def __init__(self, default: Any, help: str, *, picker: bool = False, **kwargs: Any) -> None:
        super().__init__(default, help, **kwargs)
        self.picker = picker

    def check(self, viewer: Any, value: Any) -> Unit:
        """Convert to a Unit that the network has."""
        return viewer.check_unit(Unit.ensure(value).validate(viewer.network))

    def shown(self, viewer: Any) -> Unit:
        """The unit; for None and for a class what `viewer.default_of` returns."""
        unit = getattr(viewer, str(self.name))
        return unit if unit is not None and unit.layer else viewer.default_of(self.name)

    def make_control(self, viewer: Any) -> ipywidgets.Widget | None:
        """A menu of layers and a number field, or nothing."""
        return UnitPicker(viewer.network.layers) if self.picker else None


def knob_params(
    technique: Callable[..., Any], *, prefix: str = "", leave_out: Iterable[str] = (), **kwargs: Any
) -> dict[str, Param]:
    """Params for all knobs of a technique, by trait name.

    Parameters
    ----------
    technique : callable
    prefix : str
        Put before each name, with an underscore.
    leave_out : iterable of str
        Knobs without a Param.
    **kwargs
        Passed to `KnobParam.of`.
    """
    names = [name for name in get_knobs(technique) if name not in {*leave_out}]
    return {f"{prefix}_{name}" if prefix else name: KnobParam.of(technique, name, **kwargs) for name in names}


def parameter_text(function: Callable[..., Any], name: str) -> str:
    """The text of a parameter in a numpy docstring; "" if there is none."""
    doc = re.sub(r"\A\s*", "", function.__doc__ or "")
    section = re.search(r"\n\s*Parameters\n\s*-+\n(.*?)(?=\n\s*\w+\n\s*-{3,}\n|\Z)", doc, re.DOTALL)
    if section is None:
        return ""
    text: list[str] = []
    inside, depth = False, len(section[1]) - len(section[1].lstrip())
    for line in section[1].splitlines():
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent <= depth:
            inside = name in re.split(r",\s*", line.partition(":")[0].strip())
        elif inside:
            text.append(line.strip())
    return " ".join(text).strip()
