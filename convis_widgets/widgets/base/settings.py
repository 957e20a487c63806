"""Setting: what Params and Fields have in common; Field: a control for something that is not a trait of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
import traitlets

from ..controls.sliders import set_bounded

FIELD_WIDTH = "150px"


class ParamError(traitlets.TraitError, ValueError):
    """The value of a setting is not valid."""


class Setting:
    """What Params and Fields have in common: a control, which is kept in step with its value."""

    name: str | None = None
    label: str = ""
    when: Callable[[Any], bool] | None = None

    def make_control(self, viewer: Any) -> ipywidgets.Widget | None:
        """Make the control; None for a setting without one."""
        return None

    def shown(self, viewer: Any) -> Any:
        """The value that the control shows."""
        raise NotImplementedError

    def assign(self, viewer: Any, value: Any) -> None:
        """Take over a value from the control."""
        raise NotImplementedError

    def sync(self, viewer: Any, control: ipywidgets.Widget) -> None:
        """Bring the control up to date."""
        value = self.shown(viewer)
        if control.value != value:
            control.value = value

    def visible(self, viewer: Any) -> bool:
        """Whether the control is shown now."""
        return self.when is None or bool(self.when(viewer))

    @property
    def description(self) -> str:
        """The label of the control."""
        return self.label or str(self.name).replace("_", " ")


class IndexSetting(Setting):
    """A setting with a number field, from 0 to a limit that depends on the widget's state."""

    limit: Callable[[Any], int]

    def make_control(self, viewer: Any) -> ipywidgets.Widget:
        """A number field."""
        return ipywidgets.BoundedIntText(0, 0, 0, description=self.description, layout={"width": FIELD_WIDTH})

    def sync(self, viewer: Any, control: ipywidgets.Widget) -> None:
        """Set limit and value."""
        set_bounded(control, self.limit(viewer), self.shown(viewer))


class Field(IndexSetting):
    """A number field for something that is derived from other traits.

    Parameters
    ----------
    get : callable(viewer) -> int
    set : callable(viewer, int)
    limit : callable(viewer) -> int
        The largest value.
    help : str
    label : str
    when : callable(viewer) -> bool, optional
    """

    def __init__(
        self,
        get: Callable[[Any], int],
        set: Callable[[Any, int], None],
        limit: Callable[[Any], int],
        help: str,
        *,
        label: str = "",
        when: Callable[[Any], bool] | None = None,
    ) -> None:
        self.get, self.set, self.limit, self.help, self.label, self.when = get, set, limit, help, label, when

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def shown(self, viewer: Any) -> int:
        """The present value."""
        return self.get(viewer)

    def assign(self, viewer: Any, value: int) -> None:
        """Hand the typed value over."""
        self.set(viewer, value)
