"""SynthesisPanel: the base of the widgets that synthesize images: knobs of a technique, image, curves, history."""

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

from ...core.files import check_output, write_atomic
from ...core.registry import FrameStream
from ...core.runs.frame import Frame
from ...core.runs.run import Run
from ...core.synthesis.budget import Workload, check_budget
from ...core.types import NetworkLike
from ..base.param_box import COLUMNS, ROW, report_errors
from ..base.params import KnobParam
from ..base.viewer import Panels, Viewer
from ..controls.curve import Curve
from ..controls.frame_view import FrameView
from ..controls.run_bar import RunBar
from ..controls.text import text_html
from ..drawing.bars import prediction_bars
from ..drawing.compose import composite_on_white
from ..drawing.encode import enlarge, to_rgb_uint8, zoom_factor
from .history import History

IMAGE_SIDE = 384  # pixels
MAX_IMAGE_SIDE = 640  # ... of a large image
MIN_UPDATE_PERIOD = 0.4  # seconds between two updates of curve, bars and history, at least
UPDATE_COST_FACTOR = 50  # ... and at least this many times the duration of one


class SynthesisPanel(Viewer):
    """Base of the widgets that synthesize images.

    A subclass sets `technique`, and `extra_params` to `knob_params(technique)`; it makes the Frames in
    `make_technique_frames`, and its constructor ends with `build`. Live knobs are sent to the computation in progress; any
    other change starts it again.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.

    Attributes
    ----------
    history : History
        Images of the computation so far.
    init_image : (H, W, 3) uint8 array or None
        The image that the computation continues from.
    predictions : list of (str, float)
        Labels and probabilities of the most probable classes for the image on screen.
    drawn_caption : str
        Caption of the image on screen, also while another computation starts.
    """

    technique: ClassVar[Callable[..., FrameStream]]
    target_controls: ClassVar[tuple[str, ...]] = ()  # controls and other parts for what is synthesized, by name
    main_knobs: ClassVar[tuple[str, ...]] = ()  # shown beside them; the other knobs are under "more"
    num_classes: ClassVar[int] = 5  # whose probabilities are shown
    image_side: ClassVar[int] = IMAGE_SIDE
    composite: ClassVar[bool] = False  # whether more is shown than an image of the history, see `displayed`
    default_curve: ClassVar[str] = ""  # the scalar whose curve is shown first

    def __init__(self, network: NetworkLike = None, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        self.history = History()
        self.init_image: np.ndarray | None = None
        self._estimate = ""
        self._history_run: Run | None = None  # the Run of the images in the history
        self._status_frame: Frame | None = None  # the Frame at the last `update_status`
        self.drawn_caption = ""
        self.predictions: list[tuple[str, float]] = []
        self._next_update = 0.0

    # -- what a subclass may define ------------------------------------------------------------------------------

    def load_inputs(self) -> None:
        """Read and show the inputs of a computation; called before it is made."""

    def make_technique_frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        """Return the computation for these values of the knobs."""
        raise NotImplementedError

    def image_parts(self) -> list[ipywidgets.Widget]:
        """The view of the image and what is shown beside it."""
        return [self.view]

    def displayed(self, image: np.ndarray) -> np.ndarray:
        """An image of the history in the size in which it is shown."""
        return enlarge(image, self.display_side(image))

    def display_side(self, image: np.ndarray) -> int:
        """Pixels of the longer side of an image on screen."""
        return max(self.image_side, min(max(image.shape[:2]), MAX_IMAGE_SIDE))

    def frame_image(self, frame: Frame) -> np.ndarray:
        """The image of a Frame for the history, (H, W, 3), uint8."""
        return to_rgb_uint8(frame.image)

    def workload(self, knobs: dict[str, Any]) -> list[Workload]:
        """What the computation will do, for the estimate of its cost; nothing if it is cheap."""
        return []

    def caption_text(self) -> str:
        """What is synthesized, in words."""
        return type(self).__name__

    def default_of(self, name: str) -> Any:
        """What is used where a knob is None: the technique's default."""
        return type(self).technique.__wrapped__.__kwdefaults__[name]  # type: ignore[attr-defined]

    # -- building ------------------------------------------------------------------------------------------------

    def build(self) -> None:
        """Make the controls and the other parts, and start the computation."""
        self.view = FrameView()
        self.curve, self.bars = Curve(self.default_curve), ipywidgets.HTML(layout={"width": "330px", "min_height": "124px"})
        self.scrub = ipywidgets.IntSlider(0, 0, 0, description="history", readout=False, layout={"width": "300px"})
        self.shown_step = ipywidgets.Label("")
        self.resume = ipywidgets.Button(description="Continue from here", icon="repeat", layout={"width": "190px"})
        self.png_button = ipywidgets.Button(description="Save PNG", icon="save", layout={"width": "110px"})
        self.gif_button = ipywidgets.Button(description="Save GIF", icon="film", layout={"width": "110px"})
        self.saved, self.caption = ipywidgets.HTML(), ipywidgets.HTML()
        self.bar = RunBar(self.make_run)
        self.make_controls()
        other_knobs = [name for name in self.knob_names if name not in self.main_knobs]
        for name in (*self.main_knobs, *other_knobs):
            self.controls[name].style.description_width, self.controls[name].layout.width = "130px", "330px"
        more = ipywidgets.Accordion([self.row(*other_knobs)], titles=("more",))
        more.layout.display = "" if other_knobs else "none"
        side = ipywidgets.VBox([self.bars, self.curve], layout={"margin": "0 0 0 16px"})
        self.children = [
            self.row(*self.target_controls, *self.main_knobs),
            more,
            self.bar,
            self.caption,
            ipywidgets.HBox([*self.image_parts(), side], layout=COLUMNS),
            ipywidgets.HBox([self.scrub, self.shown_step, self.resume, self.png_button, self.gif_button], layout=ROW),
            self.saved,
            self.status,
        ]
        self.resume.layout.display = "" if "init_image" in inspect.signature(type(self).technique).parameters else "none"
        self.bars.layout.display = "" if self.num_classes else "none"
        self.scrub.observe(self._scrubbed, "value")
        self.resume.on_click(lambda _button: self.continue_from())
        self.png_button.on_click(lambda _button: self._save_as("png"))
        self.gif_button.on_click(lambda _button: self._save_as("gif"))
        self.recompute()

    @property
    def knob_names(self) -> list[str]:
        """Names of the traits that are knobs of the technique."""
        return [name for name in type(self).extra_params if isinstance(type(self).params.get(name), KnobParam)]

    # -- the computation -----------------------------------------------------------------------------------------

    def recompute(self) -> None:
        """Start the computation from the beginning."""
        self.init_image = None
        super().recompute()

    @report_errors
    def continue_from(self) -> None:
        """Continue from the image on screen, with the present settings."""
        self.init_image = None if self.frame is None else self.shown_image(self.frame)
        super().recompute()

    def make_frames(self) -> Iterator[Frame]:
        """The computation for the present settings; ValueError if it needs more memory than there is."""
        self.load_inputs()
        knobs = {name: getattr(self, name) for name in self.knob_names}
        frames = self.make_technique_frames(knobs)
        workload = self.workload({name: self.default_of(name) if value is None else value for name, value in knobs.items()})
        self._estimate = f"takes about {check_budget(self.network, workload)}" if workload else ""
        return frames

    def make_run(self) -> Run | None:
        """Make the Run and show what it will cost."""
        run = super().make_run()
        if run is not None:
            self.caption.value = text_html(self._caption_line())
        return run

    def snapshot_ready(self, frame: Frame) -> bool:
        """A snapshot waits for the last Frame."""
        return frame.done

    def run_changed(self, run: Run) -> None:
        """Draw the newest Frame, keep it in the history, update the curve."""
        frame = run.last
        if frame is None:
            if not run.active and self.frame is not None:  # the image of the previous computation stays
                self.caption.value = text_html(self.drawn_caption)
            return
        if frame is not self.frame:
            if run is not self._history_run:
                self._history_run = run
                self._clear_history()
            follows = self.scrub.value >= self.scrub.max
            self.frame = frame
            self.curve.add(frame.step, dict(frame.scalars))
            image = functools.cache(lambda: self.frame_image(frame))
            if self.history.accepts(frame.step) or frame.done:
                self.history.add(frame.step, image(), last=frame.done)
            if follows:
                self.draw_image(image, streaming=True)
            if run.active and not frame.done and time.monotonic() < self._next_update:
                return
            self.update_status(frame, follows)
        if not run.active and self.scrub.value >= self.scrub.max:
            self.draw_image(lambda: self.frame_image(frame))
            if self._status_frame is not frame:
                self.update_status(frame, True)

    def _clear_history(self) -> None:
        """Called with the first image of a computation."""
        self.history = History()
        with self.handlers_muted():
            self.scrub.value = self.scrub.max = 0
        self.curve.clear()

    # -- drawing -------------------------------------------------------------------------------------------------

    def draw_image(self, image: Callable[[], np.ndarray], *, streaming: bool = False) -> None:
        """Show an image of the history, (H, W, 3), uint8; `image` is called only when it is sent."""
        if self.composite or not streaming:
            show_or_stream(self.view, lambda: self.displayed(image()), streaming=streaming)
            return
        pixels = image()
        height, width = pixels.shape[:2]
        side = self.display_side(pixels)
        if zoom_factor(height, width, side) > 1:
            self.view.stream(lambda: self.displayed(pixels))
        else:
            self.view.stream(lambda: pixels, side)

    def update_status(self, frame: Frame, follows: bool) -> None:
        """Update everything but the image. The next update waits long enough to keep its cost small.

        Parameters
        ----------
        frame : Frame
            The newest one.
        follows : bool
            Whether its image is the one on screen; otherwise an image of the history is.
        """
        start = time.monotonic()
        with self.handlers_muted():
            last = max(0, len(self.history) - 1)
            self.scrub.max = max(last, self.scrub.max)
            self.scrub.value = last if follows else min(self.scrub.value, last)
            self.scrub.max = last
        self.curve.draw()
        self._status_frame = frame
        self.drawn_caption = self.caption_text()
        self.caption.value = text_html(self._caption_line())
        self._show_step(frame)
        now = time.monotonic()
        self._next_update = now + max(MIN_UPDATE_PERIOD, UPDATE_COST_FACTOR * (now - start))

    def shown_image(self, frame: Frame) -> np.ndarray:
        """The image on screen in its own size, (H, W, 3), uint8: that of the newest Frame, or one of the history."""
        return self.history.images[self.scrub.value] if self._shows_past else self.frame_image(frame)

    @property
    def _shows_past(self) -> bool:
        return len(self.history) > 0 and self.scrub.value < self.scrub.max

    def _show_step(self, frame: Frame) -> None:
        self.shown_step.value = f"step {self.history.steps[self.scrub.value] if self._shows_past else frame.step}"
        self.describe_image(frame, self.shown_image(frame))

    def describe_image(self, frame: Frame, image: np.ndarray) -> None:
        """Show the prediction for the image on screen.

        Parameters
        ----------
        frame : Frame
            The newest one.
        image : (H, W, 3) uint8 array
        """
        self.view.alt = self.caption_text()
        if self.num_classes:
            network_input = self.network.transform.resized_image(self.in_channels(image))
            self.predictions = self.network.predict(network_input, self.num_classes)
            self.bars.value = prediction_bars(self.predictions, self.network.output)
            self.view.alt += f"; prediction: {self.network.output.describe(*self.predictions[0])}"

    def in_channels(self, image: np.ndarray) -> np.ndarray:
        """An image of the history with as many channels as the network takes."""
        return image if self.network.transform.channels == 3 else image[..., :1]

    @property
    def init_input(self) -> np.ndarray | None:
        """The image to continue from, with as many channels as the network takes; None for the technique's own start."""
        return None if self.init_image is None else self.in_channels(self.init_image)

    def _caption_line(self) -> str:
        return "; ".join(filter(None, [self.caption_text(), self._estimate]))

    def redraw(self) -> None:
        """Draw the image that the history slider selects."""
        if self.frame is not None:
            image = self.shown_image(self.frame)
            self.draw_image(lambda: image)
            self._show_step(self.frame)

    @report_errors
    def _scrubbed(self, _change: Any) -> None:
        self.redraw()

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the present state to a .png file, or the history as an animation to a .gif file."""
        output = check_output(path, (".png", ".gif"))
        if output.suffix.lower() == ".png":
            return super().save(output)
        with self.lock:
            data = self.history.to_gif(lambda image: composite_on_white(self.displayed(image)))
        return write_atomic(output, data)

    @report_errors
    def _save_as(self, kind: str) -> None:
        stem = type(self).technique.__name__
        path = next(p for i in range(10_000) if not (p := Path(f"{stem} {i}.{kind}" if i else f"{stem}.{kind}")).exists())
        self.saved.value = text_html(f"saved as {self.save(path)}")

    def snapshot_panels(self) -> Panels:
        """The image on screen."""
        if self.frame is None:
            return [], [f"{self.network.name}: {self.caption_text()}; no image yet"]
        image = self.shown_image(self.frame)
        return [(self.shown_step.value, self.displayed(image))], [f"{self.network.name}: {self.drawn_caption}"]


def show_or_stream(view: FrameView, compose: Callable[[], np.ndarray], *, streaming: bool) -> None:
    """Show an image exactly, or stream it if another one follows soon."""
    if streaming:
        view.stream(compose)
    else:
        view.show(compose())
