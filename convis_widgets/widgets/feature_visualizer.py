"""FeatureVisualizer: the picture that a class or a unit looks for, painted while you watch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets
import traitlets

from ..core import Frame, Unit
from ..techniques import gradient_ascent
from ..techniques.gradient_ascent import PRESETS, USUAL
from .controls import ClassPicker, UnitPicker
from .synthesis_panel import SynthesisPanel
from .viewer import ClassTrait, guarded


class FeatureVisualizer(SynthesisPanel):
    """Gradient ascent, live: a picture grows that raises a class's score, or a channel, or one unit.

    Its knobs are those of `techniques.gradient_ascent`, as traits; None is what the preset has. Those that are live may be
    moved while it paints.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    target : int or str, optional
        The class; the first one otherwise.
    unit : Unit, optional
        The unit to paint for instead: a channel everywhere, or with a position one unit. Linked, what is clicked in a
        FilterGrid or a MaxPatchGallery is painted.
    preset : str
        "modern", "simonyan", "cs231n", "yosinski 1" to "yosinski 4".

    Examples
    --------
    >>> painter = FeatureVisualizer(target="star", iterations=20)
    >>> painter.run.join()
    True
    >>> painter.frame.image.shape
    (64, 64, 3)
    """

    technique = gradient_ascent
    first = ("preset", "rate", "iterations")
    target = ClassTrait(0, help="Index or name of the class to paint.")

    def __init__(self, network: Any = None, target: int | str | None = None, **keywords: Any) -> None:
        if target is not None and keywords.get("unit") is not None:
            raise ValueError("give target= (a class) or unit= (anything else), not both")
        super().__init__(network, **keywords)
        if target is not None:
            self.target = target
        self._follow_unit()
        self._show_question()
        self._anew()

    def _question(self) -> list[ipywidgets.Widget]:
        self.kind = ipywidgets.Dropdown(options=["a class", "a unit"], description="paint")
        self.classes, self.units = ClassPicker(self.network.labels), UnitPicker(self.network.layers)
        self.kind.observe(self._question_changed, "value")
        self.classes.observe(self._question_changed, "value")
        self.units.observe(self._question_changed, "value")
        return [self.kind, self.classes, self.units]

    def _usual(self, name: str) -> Any:
        return (USUAL | PRESETS[self.preset])[name]

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def _class(self) -> int:
        return 0 if self.target is None else self.target

    @traitlets.observe("preset")
    @guarded
    def _preset_changed(self, _change: Any) -> None:
        """A preset is all of its knobs."""
        with self.quietly():
            for name in self._knobs:
                if name not in ("preset", "seed"):
                    setattr(self, name, None)
                    self.controls[name].value = self._value(name)

    @traitlets.observe("target", "unit")
    @guarded
    def _asked(self, change: Any) -> None:
        if change["name"] == "unit":
            if self.unit is None:
                return
            with self.quietly():
                self._follow_unit()
        else:
            with self.quietly():
                self.kind.value = "a class"
        self._show_question()
        self._anew()

    def _follow_unit(self) -> None:
        if self.unit is not None and self.unit.layer:
            self.units.value, self.kind.value = self.unit, "a unit"
        elif self.unit is not None:
            self.target, self.kind.value = self.unit.channel, "a class"

    @guarded
    def _question_changed(self, change: Any) -> None:
        if change["owner"] is self.classes:
            self.target = change["new"]
        elif change["owner"] is self.units:
            self.unit = change["new"]
        else:
            self._show_question()
            self._anew()

    def _show_question(self) -> None:
        with self.quietly():
            self.classes.value = self._class
        of_class = self.kind.value == "a class"
        self.classes.layout.display = "" if of_class else "none"
        self.units.layout.display = "none" if of_class else ""

    # -- the computation ---------------------------------------------------------------------------------------

    def _frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        what = {"target": self._class} if self.kind.value == "a class" else {"of": self.units.value}
        return gradient_ascent(self.network, **what, start=self.start, **knobs)

    def caption_text(self) -> str:
        """What is being painted, in words."""
        if self.kind.value == "a class":
            return f"{self.network.labels[self._class]}, preset {self.preset}"
        unit: Unit = self.units.value
        where = "" if unit.position is None else f" at {unit.position}"
        return f"channel {unit.channel} of {unit.layer}{where}, preset {self.preset}"
