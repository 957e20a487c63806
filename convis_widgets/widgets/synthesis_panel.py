"""SynthesisPanel: what the widgets share that paint pictures: a technique's knobs, its picture, its curves, its history."""

from __future__ import annotations

import html
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Frames, Knob, Run, knobs_of
from .controls import RunBar, control, note
from .encode import enlarge, to_uint8
from .frame_view import FrameView
from .history import History
from .plots import Curve
from .viewer import Viewer, guarded

SIDE = 384  # pixels of the picture
PERIOD = 0.4  # seconds between two updates of curve, bars and history


class KnobTrait(traitlets.Any):
    """A knob of a technique as a trait of its panel; None for what the technique would take."""

    def __init__(self, knob: Knob, default: Any) -> None:
        super().__init__(default, allow_none=True)
        self.knob = knob

    def validate(self, _panel: Any, value: Any) -> Any:
        if value is not None:
            try:
                self.knob.check(self.name, value)
            except ValueError as error:
                raise traitlets.TraitError(str(error)) from None
        return value


class _WithKnobs(type(Viewer)):
    """Gives a panel a trait for every knob of its `technique`."""

    def __new__(cls, name: str, bases: tuple[type, ...], space: dict[str, Any]) -> type:
        technique = space.get("technique")
        if technique is not None:
            defaults = technique.__wrapped__.__kwdefaults__
            knobs = knobs_of(technique)
            for knob in knobs:  # in place, since traitlets reads the space once more
                space.setdefault(knob, KnobTrait(knobs[knob], defaults[knob]))
        return super().__new__(cls, name, bases, space)


class SynthesisPanel(Viewer, metaclass=_WithKnobs):
    """Base of the widgets that paint. See a subclass.

    A subclass names its `technique` and which knobs are seen at once, `first`; it makes the Frames, in `_frames`, and says
    what a knob is when nobody has set it, in `_usual`. Live knobs are obeyed by the computation in progress; any other
    change begins it anew.

    Attributes
    ----------
    frame : Frame or None
        The newest.
    history : History
        Pictures of the computation so far.
    """

    technique: ClassVar[Callable[..., Frames] | None] = None
    first: ClassVar[tuple[str, ...]] = ()
    top: ClassVar[int] = 5  # classes whose probabilities are shown

    def __init__(self, network: Any = None, **keywords: Any) -> None:
        super().__init__(network, **keywords)
        self.frame: Frame | None = None
        self.history = History()
        self.start: Any = None  # the picture to begin with
        self._told = 0.0  # when curve and bars were drawn
        self._build()

    # -- what a subclass says ------------------------------------------------------------------------------------

    def _frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        """The computation that the panel now asks for."""
        raise NotImplementedError

    def _usual(self, name: str) -> Any:
        """What a knob is when its trait is None."""
        raise NotImplementedError

    def _question(self) -> list[ipywidgets.Widget]:
        """The controls for what is asked, above those of the knobs."""
        return []

    # -- building ------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.controls = {name: control(name, self.traits()[name].knob, self._value(name)) for name in self._knobs}
        for name, made in self.controls.items():
            made.style.description_width, made.layout.width = "130px", "330px"
            made.observe(self._turned(name), "value")
        self.view = FrameView()
        self.curve, self.bars = Curve(), ipywidgets.HTML(layout={"width": "330px", "min_height": "124px"})
        self.scrub = ipywidgets.IntSlider(0, 0, 0, description="history", readout=False, layout={"width": "300px"})
        self.shown_step = ipywidgets.Label("")
        self.again = ipywidgets.Button(description="Continue from here", icon="repeat", layout={"width": "190px"})
        self.png_button = ipywidgets.Button(description="Save PNG", icon="save", layout={"width": "110px"})
        self.gif_button = ipywidgets.Button(description="Save GIF", icon="film", layout={"width": "110px"})
        self.saved, self.caption = ipywidgets.HTML(), ipywidgets.HTML()
        self.bar = RunBar(self._make_run)
        rest = [made for name, made in self.controls.items() if name not in self.first]
        more = ipywidgets.Accordion([ipywidgets.HBox(rest, layout={"flex_flow": "row wrap"})], titles=("more",))
        row = {"flex_flow": "row wrap", "align_items": "center"}
        side = ipywidgets.VBox([self.bars, self.curve], layout={"margin": "0 0 0 16px"})
        self.children = [
            ipywidgets.HBox([*self._question(), *(self.controls[name] for name in self.first)], layout=row),
            more,
            self.bar,
            self.caption,
            ipywidgets.HBox([self.view, side], layout={"flex_flow": "row wrap", "align_items": "flex-start"}),
            ipywidgets.HBox([self.scrub, self.shown_step, self.again, self.png_button, self.gif_button], layout=row),
            self.saved,
            self.status,
        ]
        self.scrub.observe(self._scrubbed, "value")
        self.again.on_click(lambda _button: self.continue_from())
        self.png_button.on_click(lambda _button: self._save_as("png"))
        self.gif_button.on_click(lambda _button: self._save_as("gif"))

    @property
    def _knobs(self) -> list[str]:
        return [name for name in knobs_of(type(self).technique) if isinstance(self.traits().get(name), KnobTrait)]

    def _value(self, name: str) -> Any:
        value = getattr(self, name)
        return self._usual(name) if value is None else value

    # -- state ---------------------------------------------------------------------------------------------------

    def _turned(self, name: str) -> Callable[[Any], None]:
        """What happens when a control was moved."""

        @guarded
        def moved(self: SynthesisPanel, change: Any) -> None:
            if change["new"] != self._value(name):
                setattr(self, name, change["new"])

        return lambda change: moved(self, change)

    @traitlets.observe(traitlets.All)
    @guarded
    def _knob_changed(self, change: Any) -> None:
        name = change["name"]
        if name not in getattr(self, "controls", {}):
            return
        with self.quietly():
            self.controls[name].value = self._value(name)
        if not self.traits()[name].knob.live:
            self._anew()
        elif self.run is not None and self.run.active:
            self.run.send(**{name: self._value(name)})

    def _anew(self) -> None:
        """Another question: what was painted for the old one is no beginning."""
        self.start = None
        run = self._make_run()
        if run is not None:
            run.start()

    # -- the computation -----------------------------------------------------------------------------------------

    def _make_run(self) -> Run | None:
        try:
            frames = self._frames({name: getattr(self, name) for name in self._knobs})
        except Exception as error:  # noqa: BLE001
            self.halt()
            self.complain(error)
            return None
        self.settle()
        self.history = History()
        self.curve.clear()
        return self.launch(frames, self._arrived, start=False)

    def _worth_keeping(self, frame: Frame) -> bool:
        return frame.done

    def _arrived(self, run: Run) -> None:
        frame = run.last
        if frame is not None and frame is not self.frame:
            follows = self.scrub.value >= self.scrub.max
            self.frame = frame
            self.curve.add(frame.step, dict(frame.scalars))
            if self.history.wants(frame.step) or frame.done:
                self.history.add(frame.step, self._bytes(frame), last=frame.done)
            if follows:
                self.view.stream(lambda: enlarge(to_uint8(frame.image), SIDE))
            if run.active and not frame.done and time.monotonic() - self._told < PERIOD:
                return
            self._tell(follows)
        if not run.active and self.frame is not None and self.scrub.value >= self.scrub.max:
            self.view.show(enlarge(to_uint8(self.frame.image), SIDE))
            self._tell(True)

    @staticmethod
    def _bytes(frame: Frame) -> np.ndarray:
        return to_uint8(frame.image)

    # -- drawing -------------------------------------------------------------------------------------------------

    def _tell(self, follows: bool) -> None:
        """Bring everything but the picture up to date."""
        with self.quietly():
            last = max(0, len(self.history) - 1)
            self.scrub.max = max(last, self.scrub.max)
            self.scrub.value = last if follows else min(self.scrub.value, last)
            self.scrub.max = last
        self.curve.draw()
        self._show_step()
        self._told = time.monotonic()

    def _shown(self) -> np.ndarray | None:
        """The picture on screen, in its own size, (H, W, 3) uint8."""
        if self.frame is None:
            return None
        if len(self.history) and self.scrub.value < self.scrub.max:
            return self.history.pictures[self.scrub.value]
        return self._bytes(self.frame)

    def _show_step(self) -> None:
        old = len(self.history) > 0 and self.scrub.value < self.scrub.max
        step = self.history.steps[self.scrub.value] if old else self.frame.step if self.frame is not None else 0
        self.shown_step.value = f"step {step}"
        self._draw_bars()

    def _draw_bars(self) -> None:
        picture = self._shown()
        if picture is not None:
            channels = self.network.transform.channels
            found = self.network.predict(picture if channels == 3 else picture[..., :1], self.top)
            self.bars.value = bars(found)
            self.view.alt = f"{self.caption_text()}; the network sees {found[0][0]} ({found[0][1]:.0%})"

    def caption_text(self) -> str:
        """What is being painted, in words."""
        return type(self).__name__

    @guarded
    def _scrubbed(self, _change: Any) -> None:
        picture = self._shown()
        if picture is not None:
            self.view.show(enlarge(picture, SIDE))
            self._show_step()

    @guarded
    def continue_from(self) -> None:
        """Paint on from the picture on screen, with the knobs as they are."""
        self.start = self._shown()
        run = self._make_run()
        if run is not None:
            run.start()

    # -- files -----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write what is to be seen to a .png, or the whole history as a film to a .gif."""
        path = Path(path).expanduser()
        if path.suffix.lower() not in (".png", ".gif"):
            raise ValueError(f"{path} should end in .png or .gif")
        if path.suffix.lower() == ".png":
            return super().save(path)
        with self.lock:
            data = self.history.film()
        part = path.with_name(f"{uuid.uuid4().hex}.part")
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return path

    @guarded
    def _save_as(self, kind: str) -> None:
        stem = type(self).technique.__name__
        path = next(p for i in range(10_000) if not (p := Path(f"{stem} {i}.{kind}" if i else f"{stem}.{kind}")).exists())
        self.saved.value = note(f"saved as {self.save(path)}")

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        picture = self._shown()
        text = f"{self.network.name}: {self.caption_text()}"
        if picture is None:
            return [], [f"{text}; no picture yet"]
        return [(self.shown_step.value, enlarge(picture, SIDE))], [text]


def bars(found: list[tuple[str, float]]) -> str:
    """Classes with their probabilities as lines of HTML with bars."""
    lines = []
    for label, p in found:
        width = f"{100 * p:.1f}%"
        lines.append(
            '<div style="position: relative; line-height: 22px; margin: 1px 0; padding: 0 6px; display: flex; '
            f'justify-content: space-between"><div style="position: absolute; left: 0; top: 0; bottom: 0; width: {width}; '
            'background: #0072B2; opacity: 0.35"></div>'
            '<span style="position: relative; overflow: hidden; white-space: nowrap; text-overflow: ellipsis">'
            f'{html.escape(label)}</span><span style="position: relative">{p:.1%}</span></div>'
        )
    return "".join(lines)
