"""SynthesisPanel: what the widgets share that paint pictures: a technique's knobs, its picture, its curves, its history."""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets
import numpy as np
import traitlets

from ..core import Effort, Frame, Frames, Knob, Run, afford, knobs_of
from .bars import bars
from .controls import RunBar, control, note, rounded
from .encode import enlarge, factor, on_white, smooth_size, to_uint8
from .frame_view import FrameView
from .history import History
from .plots import Curve
from .viewer import Viewer, guarded, in_folder, replaced

SIDE = 384  # pixels of the picture
LARGEST = 640  # ... of a large one
PERIOD = 0.4  # seconds between two updates of curve, bars and history, at least
SHARE = 50  # ... and times what one takes


class KnobTrait(traitlets.Any):
    """A knob of a technique as a trait of its panel; None for what the technique would take."""

    def __init__(self, knob: Knob, default: Any) -> None:
        super().__init__(default)
        self.allow_none, self.knob = default is None, knob

    def validate(self, _panel: Any, value: Any) -> Any:
        if value is None:
            return self.default_value
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
    side: ClassVar[int] = SIDE
    composed: ClassVar[bool] = False  # whether more is shown than a picture of the history, see `_sized`
    watched: ClassVar[str] = ""  # the number whose curve is shown at first

    def __init__(self, network: Any = None, **keywords: Any) -> None:
        super().__init__(network, **keywords)
        self.frame: Frame | None = None
        self.history = History()
        self.start: Any = None  # the picture to begin with
        self._estimate = ""
        self._painting: Run | None = None  # the one whose pictures are those of the history
        self._told = ""  # what was painted to become the picture on screen
        self._seen: list[tuple[str, float]] = []  # classes of the picture on screen
        self._next = 0.0  # when curve and bars are drawn again
        self._build()

    # -- what a subclass says ------------------------------------------------------------------------------------

    def _frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        """The computation that the panel now asks for."""
        raise NotImplementedError

    def _usual(self, name: str) -> Any:
        """What a knob is when its trait is None: what the technique takes."""
        return type(self).technique.__wrapped__.__kwdefaults__[name]

    def _question(self) -> list[ipywidgets.Widget]:
        """The controls for what is asked, above those of the knobs."""
        return []

    def _pictures(self) -> list[ipywidgets.Widget]:
        """What is to be seen: the picture, and beside it whatever belongs to it."""
        return [self.view]

    def _draw(self, picture: Callable[[], np.ndarray], *, streaming: bool = False) -> None:
        """Show a picture of the history, (H, W, 3) uint8; it is asked for only when it is its turn."""
        if self.composed or not streaming:
            display(self.view, lambda: self._sized(picture()), streaming=streaming)
            return
        seen = picture()
        height, width = seen.shape[:2]
        side = self._side(seen)
        if factor(height, width, side) > 1:
            self.view.stream(lambda: self._sized(seen))
        else:
            self.view.stream(lambda: seen, smooth_size(height, width, side))

    def _sized(self, picture: np.ndarray) -> np.ndarray:
        """A picture of the history as large as it is shown."""
        return enlarge(picture, self._side(picture))

    def _side(self, picture: np.ndarray) -> int:
        return max(self.side, min(max(picture.shape[:2]), LARGEST))

    def _effort(self, knobs: dict[str, Any]) -> list[Effort]:
        """What the computation will do, as far as its cost is worth knowing before it begins."""
        return []

    # -- building ------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        self.controls = {name: control(name, self.traits()[name].knob, self._on_control(name)) for name in self._knobs}
        for name, made in self.controls.items():
            made.style.description_width, made.layout.width = "130px", "330px"
            made.observe(self._turned(name), "value")
        self.view = FrameView()
        self.curve, self.bars = Curve(self.watched), ipywidgets.HTML(layout={"width": "330px", "min_height": "124px"})
        self.scrub = ipywidgets.IntSlider(0, 0, 0, description="history", readout=False, layout={"width": "300px"})
        self.shown_step = ipywidgets.Label("")
        self.again = ipywidgets.Button(description="Continue from here", icon="repeat", layout={"width": "190px"})
        self.png_button = ipywidgets.Button(description="Save PNG", icon="save", layout={"width": "110px"})
        self.gif_button = ipywidgets.Button(description="Save GIF", icon="film", layout={"width": "110px"})
        self.saved, self.caption = ipywidgets.HTML(), ipywidgets.HTML()
        self.bar = RunBar(self._make_run)
        self.again.layout.display = "" if "start" in inspect.signature(type(self).technique).parameters else "none"
        rest = [made for name, made in self.controls.items() if name not in self.first]
        more = ipywidgets.Accordion([ipywidgets.HBox(rest, layout={"flex_flow": "row wrap"})], titles=("more",))
        more.layout.display = "" if rest else "none"
        row = {"flex_flow": "row wrap", "align_items": "center"}
        side = ipywidgets.VBox([self.bars, self.curve], layout={"margin": "0 0 0 16px"})
        self.children = [
            ipywidgets.HBox([*self._question(), *(self.controls[name] for name in self.first)], layout=row),
            more,
            self.bar,
            self.caption,
            ipywidgets.HBox([*self._pictures(), side], layout={"flex_flow": "row wrap", "align_items": "flex-start"}),
            ipywidgets.HBox([self.scrub, self.shown_step, self.again, self.png_button, self.gif_button], layout=row),
            self.saved,
            self.status,
        ]
        self.bars.layout.display = "" if self.top else "none"
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

    def _on_control(self, name: str) -> Any:
        """What the control of a knob says: of a height and a width the longer one."""
        value = self._value(name)
        return max(value) if isinstance(value, (tuple, list)) else value

    # -- state ---------------------------------------------------------------------------------------------------

    def _turned(self, name: str) -> Callable[[Any], None]:
        """What happens when a control was moved."""

        @guarded
        def moved(self: SynthesisPanel, change: Any) -> None:
            if not rounded(change["owner"], change["new"], self._on_control(name)):
                setattr(self, name, change["new"])

        return lambda change: moved(self, change)

    @traitlets.observe(traitlets.All)
    @guarded
    def _knob_changed(self, change: Any) -> None:
        name = change["name"]
        if name not in getattr(self, "controls", {}):
            return
        with self.quietly():
            for other, made in self.controls.items():
                if other == name or getattr(self, other) is None:  # what is usual may depend on other knobs
                    made.value = self._on_control(other)
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
        knobs = {name: getattr(self, name) for name in self._knobs}
        try:
            frames = self._frames(knobs)
            self._afford(knobs)
        except Exception as error:  # noqa: BLE001
            self.halt()
            self.complain(error)
            return None
        self.settle()
        self.caption.value = note(self._said())
        return self.launch(frames, self._arrived, start=False)

    def _afford(self, knobs: dict[str, Any]) -> None:
        """Tell what the computation will take; ValueError if that is more than there is."""
        efforts = self._effort({name: self._value(name) if value is None else value for name, value in knobs.items()})
        self._estimate = f"takes about {afford(self.network, efforts)}" if efforts else ""

    def _worth_keeping(self, frame: Frame) -> bool:
        return frame.done

    def _arrived(self, run: Run) -> None:
        frame = run.last
        if frame is None:
            if not run.active and self.frame is not None:  # which is still the answer to the question before
                self.caption.value = note(self._told)
            return
        if frame is not self.frame:
            if run is not self._painting:
                self._painting = run
                self._forget()
            follows = self.scrub.value >= self.scrub.max
            self.frame = frame
            self.curve.add(frame.step, dict(frame.scalars))
            seen = functools.cache(lambda: self._bytes(frame))
            if self.history.wants(frame.step) or frame.done:
                self.history.add(frame.step, seen(), last=frame.done)
            if follows:
                self._draw(seen, streaming=True)
            if run.active and not frame.done and time.monotonic() < self._next:
                return
            self._tell(follows)
        if not run.active and self.scrub.value >= self.scrub.max:
            self._draw(lambda: self._bytes(self.frame))
            self._tell(True)

    def _forget(self) -> None:
        """A new computation has its first picture: those of the last one are of no use any more."""
        self.history = History()
        with self.quietly():
            self.scrub.value = self.scrub.max = 0
        self.curve.clear()

    @staticmethod
    def _bytes(frame: Frame) -> np.ndarray:
        return to_uint8(frame.image)

    # -- drawing -------------------------------------------------------------------------------------------------

    def _tell(self, follows: bool) -> None:
        """Bring everything but the picture up to date, and not again before that has cost little of the time."""
        began = time.monotonic()
        with self.quietly():
            last = max(0, len(self.history) - 1)
            self.scrub.max = max(last, self.scrub.max)
            self.scrub.value = last if follows else min(self.scrub.value, last)
            self.scrub.max = last
        self.curve.draw()
        self._told = self.caption_text()
        self.caption.value = note(self._said())
        self._show_step()
        now = time.monotonic()
        self._next = now + max(PERIOD, SHARE * (now - began))

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
        self.view.alt = self.caption_text()
        if picture is not None and self.top:
            self._seen = self.network.predict(self.network.transform.fit(self._in_channels(picture)), self.top)
            self.bars.value = bars(self._seen)
            self.view.alt += f"; the network sees {self._seen[0][0]} ({self._seen[0][1]:.0%})"

    @property
    def _started(self) -> np.ndarray | None:
        """The picture to begin with as the network takes it; None for a beginning of the technique's own."""
        return None if self.start is None else self._in_channels(self.start)

    def _in_channels(self, picture: np.ndarray) -> np.ndarray:
        """A picture of the history as the network takes it."""
        return picture if self.network.transform.channels == 3 else picture[..., :1]

    def caption_text(self) -> str:
        """What is being painted, in words."""
        return type(self).__name__

    def _said(self) -> str:
        """The line above the picture."""
        return "; ".join(filter(None, [self.caption_text(), self._estimate]))

    @guarded
    def _scrubbed(self, _change: Any) -> None:
        picture = self._shown()
        if picture is not None:
            self._draw(lambda: picture)
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
        in_folder(path)
        with self.lock:
            data = self.history.film(lambda picture: on_white(self._sized(picture)))
        return replaced(path, data)

    @guarded
    def _save_as(self, kind: str) -> None:
        stem = type(self).technique.__name__
        path = next(p for i in range(10_000) if not (p := Path(f"{stem} {i}.{kind}" if i else f"{stem}.{kind}")).exists())
        self.saved.value = note(f"saved as {self.save(path)}")

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        picture = self._shown()
        if picture is None:
            return [], [f"{self.network.name}: {self.caption_text()}; no picture yet"]
        return [(self.shown_step.value, self._sized(picture))], [f"{self.network.name}: {self._told}"]


def display(view: FrameView, compose: Callable[[], np.ndarray], *, streaming: bool) -> None:
    """Show a picture exactly, or one that will soon be followed by another when it is its turn."""
    if streaming:
        view.stream(compose)
    else:
        view.show(compose())
