"""ParamBox: a box of controls that follow the declared Params of its class, and the other way round."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import ipywidgets
import traitlets

from ...core.errors import did_you_mean
from ..controls.sliders import equal_after_rounding
from .params import Param, Setting

ROW = {"flex_flow": "row wrap", "align_items": "center"}
COLUMNS = {"flex_flow": "row wrap", "align_items": "flex-start"}
COLUMNS_IN_ONE_ROW = {"flex_flow": "row nowrap", "align_items": "flex-start"}
LABEL_LENGTH = 12  # characters; a longer label of a control would be cut off

Handler = TypeVar("Handler", bound=Callable[..., Any])


def report_errors(handler: Handler) -> Handler:
    """Decorate a handler: errors are shown in the widget instead of vanishing in a log.

    The handler is not called before the widget is made, after it is closed, and within `ParamBox.handlers_muted`.
    """

    @functools.wraps(handler)
    def wrapper(self: ParamBox, *args: Any, **kwargs: Any) -> Any:
        with self.lock:
            if self.closed or not self.built or self._muted:
                return None
            try:
                return handler(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001
                self.show_error(error)
                return None

    return wrapper  # type: ignore[return-value]


class ParamMeta(type(ipywidgets.VBox)):  # type: ignore[misc]
    """Gives a class the Params of `extra_params`, a signature and a docstring with all Params.

    An instance is made completely or not at all: ipywidgets would keep its parts until they are closed.
    """

    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> Any:
        for key, param in space.get("extra_params", {}).items():
            space.setdefault(key, param)  # in place, since traitlets reads the namespace again
        return super().__new__(cls, name, bases, space)

    def __init__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> None:
        super().__init__(name, bases, space)
        declared = [item for base in reversed(cls.__mro__) for item in vars(base).items() if isinstance(item[1], Setting)]
        cls._declared_settings: dict[str, Setting] = dict(declared)
        cls._declared_params = params = {key: value for key, value in declared if isinstance(value, Param)}
        constructor = inspect.signature(type.__getattribute__(cls, "__init__"))
        own = [p for p in constructor.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD][1:]
        rest = {key: param for key, param in params.items() if key not in {p.name for p in own}}
        keyword = inspect.Parameter.KEYWORD_ONLY
        keywords = [inspect.Parameter(key, keyword, default=param.default_value) for key, param in rest.items()]
        cls.__signature__ = inspect.Signature([*own, *keywords])
        doc = space.get("__doc__")
        if doc:
            entries = "\n".join(param.documentation for param in params.values() if f"\n    {param.name} :" not in doc)
            head, parameters, tail = doc.partition("\n    Examples\n    ---")
            if "\n    Parameters\n" in head and entries:
                before, attributes, after = head.partition("\n    Attributes\n    ---")
                text = before.rstrip() + "\n" + textwrap.indent(entries, "    ") + "\n"
                cls.__doc__ = text + attributes + after + parameters + tail

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        for name, param in cls._declared_params.items():
            if param.effect not in ("", "send") and not hasattr(cls, param.effect):
                raise TypeError(f"effect={param.effect!r} of {name} is not a method of {cls.__name__}")
        made = cls.__new__(cls, *args, **kwargs)
        try:
            made.__init__(*args, **kwargs)
        except BaseException:
            made.close()
            raise
        with made.lock:  # a Run that has started may be updating controls
            made.built = True
        return made

    @property
    def params(cls) -> dict[str, Param]:
        """The Params of the class by name, those of base classes first."""
        return cls._declared_params

    @property
    def settings(cls) -> dict[str, Setting]:
        """The Params and Fields of the class by name."""
        return cls._declared_settings


class ParamBox(ipywidgets.VBox, metaclass=ParamMeta):
    """A box with a control for each Param and Field of its class.

    Attributes
    ----------
    controls : dict of str to widget
        By name of the Param or Field; made by `make_controls`.
    built : bool
        Whether the constructor has ended. Before, changes have no effect.
    """

    rows: ClassVar[tuple[tuple[str, ...], ...]] = ()
    extra_params: ClassVar[dict[str, Param]] = {}
    built = False
    closed = True  # until the constructor has begun
    _muted = 0
    _effects: list[tuple[str, str]] | None = None  # (effect, name) of the changes made within `update`

    def __init__(self, **kwargs: Any) -> None:
        parameters = inspect.signature(type(self)).parameters
        for name in kwargs:
            if name not in parameters and not (self.has_trait(name) and name in ipywidgets.VBox.class_trait_names()):
                raise TypeError(f"{type(self).__name__} has no keyword {name!r}; {did_you_mean(name, list(parameters))}")
        self.lock = threading.RLock()
        self.controls: dict[str, ipywidgets.Widget] = {}
        self.closed = False
        super().__init__(**kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a name that the widget does not have, such as a misspelled setting, unless one of its methods sets it."""
        unknown = self.built and not (name.startswith("_") or hasattr(type(self), name) or name in vars(self))
        if unknown and sys._getframe(1).f_locals.get("self") is not self:
            known = [*type(self).settings, *(["image"] if hasattr(type(self), "image") else [])]
            raise AttributeError(f"{type(self).__name__} has no setting {name!r}; {did_you_mean(name, known)}")
        super().__setattr__(name, value)

    # -- controls ------------------------------------------------------------------------------------------------

    def make_controls(self) -> None:
        """Make the control of every Param and Field and keep it in step with its value."""
        for name, setting in type(self).settings.items():
            control = setting.make_control(self)
            if control is not None:
                for part in (control, *getattr(control, "children", ())):
                    if part.has_trait("description"):  # the page raises an error for a tooltip without one
                        part.tooltip = getattr(setting, "help", None)
                        if len(part.description) > LABEL_LENGTH and part.style.has_trait("description_width"):
                            part.style.description_width = "initial"
                self.controls[name] = control
        self.sync_controls()
        for name, control in self.controls.items():
            control.observe(functools.partial(self._control_changed, name), "value")

    def default_of(self, name: str) -> Any:
        """What is used where a Param is None."""
        raise NotImplementedError(name)

    def sync_controls(self) -> None:
        """Let all controls show the present values, and only those that apply."""
        settings = type(self).settings
        with self.handlers_muted():
            for name, control in self.controls.items():
                settings[name].sync(self, control)
                display = "" if settings[name].visible(self) else "none"
                if control.layout.display != display:
                    control.layout.display = display

    def row(self, *names: str) -> ipywidgets.HBox:
        """Controls, or other parts of the widget, side by side, by name."""
        return ipywidgets.HBox([self.controls.get(name) or getattr(self, name) for name in names], layout=ROW)

    def build(self) -> None:
        """Make the controls and put the parts of the widget into the `rows` of its class."""
        self.make_controls()
        self.children = [self.row(*names) for names in self.rows]

    @report_errors
    def _control_changed(self, name: str, change: dict[str, Any]) -> None:
        setting = type(self).settings[name]
        if not equal_after_rounding(change["owner"], change["new"], setting.shown(self)):
            setting.assign(self, change["new"])
            with self.handlers_muted():  # what was assigned may differ from what was typed
                setting.sync(self, change["owner"])

    # -- changes -------------------------------------------------------------------------------------------------

    @traitlets.observe(traitlets.All)
    @report_errors
    def _param_changed(self, change: dict[str, Any]) -> None:
        param = type(self).params.get(change["name"])
        if param is None:
            return
        if self._effects is not None:
            self._effects.append((param.effect, change["name"]))
        else:
            self.sync_controls()
            self._run_effect(param.effect, change["name"])

    def _run_effect(self, effect: str, name: str) -> None:
        if effect == "send":
            self.send_knob(name)
        elif effect:
            getattr(self, effect)()

    def update(self, **values: Any) -> None:
        """Set several traits; each effect happens once, after all are set."""
        with self.lock:
            self._effects = []
            try:
                for name, value in values.items():
                    setattr(self, name, value)
            finally:
                effects, self._effects = self._effects, None
                self.sync_controls()
                done: set[str] = set()
                for effect, name in effects or ():
                    if effect == "send" or effect not in done:
                        done.add(effect)
                        self._run_effect(effect, name)

    @contextlib.contextmanager
    def handlers_muted(self) -> Iterator[None]:
        """Change traits and controls without triggering handlers."""
        with self.lock:
            self._muted += 1
            try:
                yield
            finally:
                self._muted -= 1

    def send_knob(self, name: str) -> None:
        """Hand the new value of a live knob to the running technique."""
        raise NotImplementedError(name)

    def recompute(self) -> None:
        """Start the computation with the present settings."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw with the present settings."""
        raise NotImplementedError

    def show_error(self, error: BaseException) -> None:
        """Show an error in the widget."""
        raise NotImplementedError
