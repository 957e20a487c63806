"""Controls: the run bar, a class picker, an image picker, and one control per kind of knob."""

from __future__ import annotations

import contextlib
import html
import math
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ipywidgets
import numpy as np
import traitlets
from PIL import Image

from ..core import COLORMAPS, Knob, Layers, Run, Transform, Unit, is_photo, open_photo
from .encode import blend, draw_box, with_scale
from .frame_view import FrameView
from .gallery import called

PROGRESS_PERIOD = 0.2  # seconds between two updates of the progress bar
FIELD = 1000  # numbers, of which a slider could not hit one
WHOLE = 72  # pixels of the longer side of a whole photo


class ColorBar(ipywidgets.HBox):
    """A color scale with the raw values at its ends."""

    def __init__(self) -> None:
        self.low, self.high = ipywidgets.Label(""), ipywidgets.Label("", layout={"margin": "0 0 0 6px", "flex": "0 0 auto"})
        self.low.layout.margin, self.low.layout.flex = "0 6px 0 0", "0 0 auto"
        self.bar = FrameView("the color scale")
        super().__init__([self.low, self.bar, self.high], layout={"align_items": "center"})
        self._colormap = ""

    def show(self, colormap: str, low: float, high: float, *, more: bool = False) -> None:
        """Show one of `COLORMAPS`, from `low` to `high`, the color also of what is more than that."""
        if colormap != self._colormap:
            self._colormap = colormap
            self.bar.show(np.repeat(COLORMAPS[colormap][None, ::3], 12, axis=0))
        self.low.value, self.high.value = f"{low + 0.0:.3g}", f"{high + 0.0:.3g}{' or more' if more else ''}"

    def under(self, image: np.ndarray) -> np.ndarray:
        """A picture with this scale under it, for a page without widgets."""
        return with_scale(image, COLORMAPS[self._colormap], self.low.value, self.high.value)


class RunBar(ipywidgets.HBox):
    """Start, pause, step and stop of one computation, with its progress.

    Parameters
    ----------
    begin : callable
        Makes a new, not yet started Run and returns it, or None if that was not possible.
    """

    def __init__(self, begin: Callable[[], Run | None]) -> None:
        def button(description: str, icon: str, tooltip: str, action: Callable[[], None]) -> ipywidgets.Button:
            made = ipywidgets.Button(description=description, icon=icon, tooltip=tooltip)
            made.layout.width = "92px"
            made.on_click(lambda _button: action())
            return made

        self._begin = begin
        self.run: Run | None = None
        self._lock = threading.Lock()  # a Run tells of itself in its own thread
        self._unsubscribe = lambda: None
        self._shown = 0.0
        self._state = ""
        self.start = button("Start", "play", "Begin, or go on after a pause", self.on_start)
        self.pause = button("Pause", "pause", "Wait after the step in progress", self.on_pause)
        self.step = button("Step", "step-forward", "Compute one more step, then wait", self.on_step)
        self.stop = button("Stop", "stop", "End here and keep the picture", self.on_stop)
        self.progress = ipywidgets.FloatProgress(value=0, min=0, max=1, layout={"width": "140px"})
        self.text = ipywidgets.Label("", layout={"margin": "0 0 0 8px"})
        super().__init__([self.start, self.pause, self.step, self.stop, self.progress, self.text])
        self.layout.flex_flow = "row wrap"
        self.layout.align_items = "center"
        self.follow(None)

    def follow(self, run: Run | None) -> None:
        """Show the state of this Run from now on."""
        self._unsubscribe()
        with self._lock:
            self.run, self._state = run, ""
        if run is not None:
            self._unsubscribe = run.subscribe(self.update)
        self.update(run)

    def update(self, run: Run | None) -> None:
        """Bring buttons and progress up to date; cheap enough to be called for every Frame."""
        with self._lock:
            if run is self.run:
                self._update(run)

    def _update(self, run: Run | None) -> None:
        state = run.state if run is not None else "ready"
        now = time.monotonic()
        if state == self._state == "running" and now - self._shown < PROGRESS_PERIOD:
            return
        self._state, self._shown = state, now
        self.start.disabled = state == "running"
        self.pause.disabled = state != "running"
        self.stop.disabled = state not in ("running", "paused")
        frame = run.last if run is not None else None
        if frame is None:
            self.progress.value, self.text.value = 0, "" if state == "ready" else state
            return
        self.progress.value = frame.step / frame.total if frame.total else float(state == "done")
        of = f" of {frame.total}" if frame.total else ""
        self.text.value = f"{state}, {frame.step}{of}"

    def _fresh(self) -> Run | None:
        if self.run is None or self.run.state in ("done", "stopped", "failed"):
            return self._begin()
        return self.run

    def on_start(self) -> None:
        """Begin, or go on."""
        run = self._fresh()
        if run is not None:
            run.start()

    def on_step(self) -> None:
        """One more Frame."""
        run = self._fresh()
        if run is not None:
            run.step()

    def on_pause(self) -> None:
        """Wait."""
        if self.run is not None:
            self.run.pause()

    def on_stop(self) -> None:
        """End."""
        if self.run is not None:
            self.run.stop()

    def close(self) -> None:
        """Remove the bar from every page; its buttons do nothing any more."""
        self._begin = lambda: None
        self.follow(None)
        super().close()


class ClassPicker(ipywidgets.HBox):
    """One of many classes, found by typing part of its name.

    Attributes
    ----------
    value : int or None
        Index of the class; None for the most probable one.
    """

    value = traitlets.Int(None, allow_none=True)
    AUTO = "the most probable"

    def __init__(self, labels: Sequence[str]) -> None:
        self._options = [f"{i}  {label}" for i, label in enumerate(labels)]
        self.box = ipywidgets.Combobox(
            options=[self.AUTO, *self._options],
            placeholder="type to search",
            description="class",
            ensure_option=False,
            continuous_update=False,
        )
        self.hint = ipywidgets.Label("")
        super().__init__([self.box, self.hint])
        self.layout.align_items = "center"
        self.box.value = self.AUTO
        self.box.observe(self._typed, "value")
        self.observe(self._moved, "value")

    def find(self, text: str) -> int | None:
        """The class that a typed text means: its number, its name, or the first name with such a word, or such a part."""
        text = text.strip().lower()
        self._also: list[str] = []
        if not text or text == self.AUTO:
            return None
        names = [option.split("  ", 1)[1].lower() for option in self._options]
        number = text.split()[0]
        if number.isdigit() and int(number) < len(names) and text in (number, self._options[int(number)].lower()):
            return int(number)
        word = re.compile(rf"\b{re.escape(text)}\b")
        for match in (text.__eq__, word.search, lambda name: name.startswith(text), lambda name: text in name):
            found = [i for i, name in enumerate(names) if match(name)]
            if found:
                self._also = [names[i] for i in found[1:]]
                return found[0]
        raise ValueError(f"no class contains {text!r}")

    def _typed(self, change: dict[str, Any]) -> None:
        try:
            self.value = self.find(change["new"])
        except ValueError as error:
            self.hint.value = str(error)
            return
        self._moved()
        if self._also:
            more = f" and {len(self._also) - 3} more" if len(self._also) > 3 else ""
            self.hint.value = f"also: {', '.join(self._also[:3])}{more}"

    def _moved(self, _change: Any = None) -> None:
        self.hint.value = ""
        self.box.value = self.AUTO if self.value is None else self._options[self.value]


class UnitPicker(ipywidgets.HBox):
    """A channel of a layer, by menu and number.

    Parameters
    ----------
    layers : Layers
        The network's.

    Attributes
    ----------
    value : Unit
        With a position only if it was set with one.
    """

    value = traitlets.Instance(Unit)

    def __init__(self, layers: Layers) -> None:
        self._layers = layers
        self.menu = ipywidgets.Dropdown(options=[one.name for one in layers if one.maps is not None], description="layer")
        self.number = ipywidgets.BoundedIntText(0, 0, 0, description="channel")
        self.number.layout.width = "150px"
        self.cell = ipywidgets.Label("")
        super().__init__([self.menu, self.number, self.cell])
        self.layout.align_items = "center"
        self.value = Unit(self.menu.value, 0)
        self.menu.observe(self._chosen, "value")
        self.number.observe(self._chosen, "value")

    def _chosen(self, change: dict[str, Any]) -> None:
        if change["owner"] is self.menu and self.menu.value not in (None, self.value.layer):
            self.value = Unit(self.menu.value, 0)
        elif change["owner"] is self.number and self.number.value != self.value.channel:
            self.value = Unit(self.value.layer, self.number.value)

    @traitlets.observe("value")
    def _moved(self, _change: Any) -> None:
        unit = self.value
        self.menu.value = unit.layer if unit.layer in self.menu.options else None
        limit(self.number, self._layers[unit.layer].channels - 1, unit.channel)
        self.cell.value = "" if unit.position is None else f"cell {unit.position}"


class ImagePicker(ipywidgets.HBox):
    """One of several pictures, or an uploaded one; beside a photo that will be cropped, which part the network sees.

    Parameters
    ----------
    images : dict of name -> picture
        Whatever `Network.image` takes.
    transform : Transform or None
        The network's; None if it is shown all of a photo.
    complain : callable(error)
        Called with what is wrong with an uploaded file, which is then left out.

    Attributes
    ----------
    value : object
        The chosen picture.
    """

    value = traitlets.Any()

    def __init__(self, images: dict[str, Any], transform: Transform | None, complain: Callable[[Exception], None]) -> None:
        self.images = dict(images)
        self._transform, self._complain = transform, complain
        self.whole = FrameView("the whole photo, with a frame around what the network sees")
        self.whole.layout.margin = "0 0 0 8px"
        self.menu = ipywidgets.Dropdown(options=list(self.images), description="picture")
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="Upload")
        self.upload.layout.width = "100px"
        super().__init__([self.menu, self.upload, self.whole])
        self.layout.align_items = "center"
        self.value = self.images[self.menu.value] if self.images else None
        self.menu.observe(self._chosen, "value")
        self.upload.observe(self._uploaded, "value")

    def add(self, name: str, picture: Any) -> None:
        """Put one more picture on the menu and choose it."""
        self.images[name] = picture
        self.menu.unobserve(self._chosen, "value")  # a menu with new options first falls back to its first one
        self.menu.options = list(self.images)
        self.menu.value = name
        self.menu.observe(self._chosen, "value")
        self.value = picture

    def choose(self, picture: Any) -> None:
        """Choose a picture; one that is not there yet is put on the menu."""
        known = next((name for name, one in self.images.items() if one is picture), None)
        self.add(called(picture, self.images) if known is None else known, picture)

    def _chosen(self, change: dict[str, Any]) -> None:
        if change["new"] is not None:
            self.value = self.images[change["new"]]

    def _uploaded(self, change: dict[str, Any]) -> None:
        for file in change["new"]:
            content = bytes(file["content"])
            try:
                open_photo(content, file["name"])
            except ValueError as error:
                self._complain(error)
            else:
                self.add(file["name"], content)

    @traitlets.observe("value")
    def _show_crop(self, _change: Any) -> None:
        picture = None
        if self._transform is not None and is_photo(self.value):
            with contextlib.suppress(ValueError, OSError):  # whoever uses the picture says what is wrong with it
                picture = crop_shown(open_photo(self.value), self._transform)
        self.whole.layout.display = "none" if picture is None else ""
        if picture is not None:
            self.whole.show(picture)


def crop_shown(photo: Image.Image, transform: Transform) -> np.ndarray | None:
    """A small copy of the whole photo with a frame around the part that the network sees; None if it sees all."""
    left, top, right, bottom = transform.crop_box(*photo.size)
    if right - left > photo.width - 1 and bottom - top > photo.height - 1:
        return None
    scale = WHOLE / max(photo.size)
    small = photo.convert("RGB").resize([max(1, round(side * scale)) for side in photo.size])
    seen = np.asarray(small)
    rows, cols = np.ogrid[: small.height, : small.width]
    box = tuple(scale * edge for edge in (top, left, bottom, right))
    outside = (rows < box[0]) | (rows >= box[2]) | (cols < box[1]) | (cols >= box[3])
    return draw_box(blend(seen, np.full_like(seen, 128), 0.65 * outside), box, width=1)


def control(name: str, knob: Knob, value: Any, *, high: float | None = None) -> ipywidgets.Widget:
    """The control for one knob: a menu for words, a slider for a range of numbers, a box to tick for yes or no.

    `high` is where a slider ends if the knob goes further, as at the side of the picture, of which a knob knows nothing.
    """
    description = knob.label or name.replace("_", " ")
    if knob.choices:
        return ipywidgets.Dropdown(options=knob.choices, value=value, description=description)
    if bool in knob.kinds:
        return ipywidgets.Checkbox(value, description=description, indent=True)
    high = min((end for end in (knob.high, high) if end is not None), default=None)
    whole = isinstance(value, int) and isinstance(knob.low, int)
    if whole and (high is None or high - knob.low > FIELD):
        return ipywidgets.BoundedIntText(value, knob.low, high or 2**31 - 1, description=description)
    if whole:
        return ipywidgets.IntSlider(value, knob.low, high, description=description, continuous_update=False)
    if knob.log:
        ends = {"min": _log10(knob.low), "max": _log10(high), "step": 0.001}
        return ipywidgets.FloatLogSlider(value, **ends, description=description)
    step = (high - knob.low) / 500  # a page shows a value only as exactly as its steps are
    return ipywidgets.FloatSlider(value, min=knob.low, max=high, step=step, description=description, readout_format=".3g")


def rounded(slider: ipywidgets.Widget, new: float, value: float) -> bool:
    """Whether a control says this value, or what a page makes of it, which rounds to a slider's steps when it shows it."""
    if isinstance(slider, ipywidgets.FloatLogSlider):
        low = slider.base**slider.min
        return abs(math.log(max(new, low), slider.base) - math.log(max(value, low), slider.base)) <= 0.501 * slider.step
    if isinstance(slider, ipywidgets.FloatSlider):
        return abs(new - value) <= 0.501 * slider.step
    return new == value


def join(owner: traitlets.HasTraits, name: str, made: ipywidgets.Widget) -> None:
    """Let a trait and a control say the same, as `traitlets.link` does, but for what a page's rounding makes of a number."""
    showing = False

    def shown(_change: Any = None) -> None:
        nonlocal showing
        showing = True
        try:
            made.value = getattr(owner, name)
        finally:
            showing = False

    def moved(change: dict[str, Any]) -> None:
        if not showing and not rounded(made, change["new"], getattr(owner, name)):
            setattr(owner, name, change["new"])

    shown()
    owner.observe(shown, name)
    made.observe(moved, "value")


def limit(field: ipywidgets.BoundedIntText, most: int, value: int) -> None:
    """Set a number together with the largest that it may be; a lower limit first would change the number."""
    field.max = max(most, field.max)
    field.value, field.max = value, most


def _log10(value: float | None) -> float:
    return math.log10(value or 1e-6)


def hover_line() -> ipywidgets.HTML:
    """An empty line for what the mouse is on, which keeps its place."""
    return ipywidgets.HTML(layout={"min_height": "28px"})


def note(text: str, *, error: bool = False) -> str:
    """A line of plain text as HTML for a status line: never run, readable in light and dark themes."""
    if not text:
        return ""
    style = "border-left: 3px solid var(--jp-error-color1, #d32f2f); padding-left: 8px" if error else ""
    return f'<div style="line-height: 1.5; overflow-wrap: anywhere; {style}">{html.escape(text)}</div>'
