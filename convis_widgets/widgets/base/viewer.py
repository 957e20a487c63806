"""Viewer: the base of all widgets. A network, declared settings, one Run, snapshots, errors on screen.

The state of a Viewer is its traits. Handlers set traits or start and stop Runs. Drawing happens with the lock held, since
handlers and Runs call it from different threads.
"""

from __future__ import annotations

import base64
import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import ipywidgets
import numpy as np
import traitlets

from ...core.errors import PLAIN_ERRORS, describe_error
from ...core.files import check_output, write_atomic
from ...core.network.network import Network
from ...core.network.unit import Unit
from ...core.runs.frame import Frame
from ...core.runs.run import Run
from ...core.text import one_line
from ...core.types import NetworkLike
from ..controls.frame_view import FrameView
from ..controls.page_size import PageSize
from ..controls.parts import Parts, close_fully
from ..controls.run_bar import RunBar
from ..controls.text import text_html
from ..drawing.compose import hstack_panels
from ..drawing.encode import encode_png
from .param_box import ParamBox, report_errors
from .params import UnitParam

SNAPSHOT_TIMEOUT = 2.0  # seconds
MIN_COLUMN_WIDTH, MAX_COLUMN_WIDTH = 96, 480  # pixels of images in columns
COLUMN_GAP = 14  # pixels between columns
FIRST_FRAME_TIMEOUT = 5.0  # seconds that a constructor waits for a computation that is usually quick

Panels = tuple[list[tuple[str, np.ndarray]], list[str]]
"""Images with their titles, and lines of text below them."""


def set_column_width(column: ipywidgets.Widget, width: int) -> None:
    """Make a column of images this wide, in pixels, with a gap to the next one."""
    column.layout.width, column.layout.margin, column.layout.flex = f"{width}px", f"0 {COLUMN_GAP}px 0 0", "0 0 auto"


class Viewer(Parts, ParamBox):
    """Base of the widgets.

    A subclass declares its settings as Params (see `params`), makes its parts in the constructor and calls `build`. With a
    computation, it returns the Frames in `make_frames` and draws each one in `draw`; `recompute` starts the computation.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.

    Attributes
    ----------
    network : Network
    frame : Frame or None
        The newest Frame that was drawn.
    run : Run or None
        The computation.
    bar : RunBar or None
        Follows the computation.
    notice : HTML or None
        What was guessed about the network, and how it is run, see `Network.notes`; below all other parts of the widget.
    linkable : tuple of str
        Traits that `link` shares with other widgets.
    """

    linkable: ClassVar[tuple[str, ...]] = ("unit",)

    unit = UnitParam(None, "The selected unit.", effect="unit_changed")
    bar: RunBar | None = None
    frame: Frame | None = None
    notice: ipywidgets.HTML | None = None
    page_size: PageSize | None = None
    _widgets_of_cells: ClassVar[dict[str, tuple[str, weakref.WeakSet[Viewer]]]] = {}

    def __init__(self, network: NetworkLike = None, **kwargs: Any) -> None:
        self._network = Network.ensure(network)
        self.run: Run | None = None
        self._snapshot_event = threading.Event()
        self._error_text = ""
        self._default_unit: Unit | None = None  # selected by the widget, not by the user
        self._links: weakref.WeakSet[traitlets.link] = weakref.WeakSet()
        super().__init__(**kwargs)
        self.status = ipywidgets.HTML()
        if self.network.notes:
            self.notice = ipywidgets.HTML("".join(map(text_html, self.network.notes)))
        self.page_size = PageSize(self._page_resized)
        self.children = [self.status]
        self._stop_previous_execution()

    @property
    def network(self) -> Network:
        """The network; for another one, make another widget."""
        return self._network

    @traitlets.validate("children")
    def _complete_children(self, proposal: dict[str, Any]) -> tuple[ipywidgets.Widget, ...]:
        always = [part for part in (self.page_size, self.notice) if part is not None]
        return (*(child for child in proposal["value"] if child not in always), *always)

    # -- what a subclass may define ------------------------------------------------------------------------------

    def make_frames(self) -> Iterator[Frame] | None:
        """Return the computation for the present settings; None if there is nothing to compute."""
        raise NotImplementedError

    def draw(self, frame: Frame, *, streaming: bool = False) -> None:
        """Draw a Frame. With `streaming`, another one follows soon."""
        raise NotImplementedError

    def snapshot_panels(self) -> Panels:
        """Return the images and lines of text of a snapshot; no images before there are any."""
        raise NotImplementedError

    def snapshot_ready(self, frame: Frame) -> bool:
        """Whether a snapshot need not wait for more than this Frame."""
        return frame.step > 0

    def page_resized(self) -> None:
        """Called when the page displays the widget, and when its width has changed; see `column_width`."""

    def unit_changed(self) -> None:
        """Called after `unit` has changed."""

    def views(self) -> Iterable[FrameView]:
        """The views that stream; their last image is sent when the computation pauses or ends."""
        return [value for value in vars(self).values() if isinstance(value, FrameView)]

    # -- size ----------------------------------------------------------------------------------------------------

    def column_width(self, columns: int, default: int, largest: int = MAX_COLUMN_WIDTH) -> int:
        """Width in pixels of each of several columns of images that fill the page.

        Parameters
        ----------
        columns : int
            Columns in a row.
        default : int
            The result before the page has displayed the widget.
        largest : int
            The largest result.
        """
        if not self.available_width:
            return default
        width = (self.available_width + COLUMN_GAP) // columns - COLUMN_GAP
        return max(MIN_COLUMN_WIDTH, min(largest, width))

    @property
    def available_width(self) -> int:
        """Pixels of the page for columns; 0 before the page has displayed the widget."""
        return 0 if self.page_size is None else max(0, self.page_size.width - COLUMN_GAP)

    @report_errors
    def _page_resized(self, _width: int) -> None:
        self.page_resized()

    # -- settings ------------------------------------------------------------------------------------------------

    def check_unit(self, unit: Unit) -> Unit:
        """Return a unit that this widget can select; ValueError otherwise."""
        if "unit" not in self.linkable:
            raise ValueError(f"{type(self).__name__} does not show units; unit= has no effect on it")
        return unit

    def check_layer(self, name: str) -> str:
        """Return the full name of a layer that this widget can show; ValueError otherwise."""
        return name

    def can_link(self, name: str, other: Viewer) -> bool:
        """Whether a trait can be shared with another widget, see `link`."""
        return name in self.linkable and name in other.linkable

    def initial_layer(self, layer: str | None, default: str) -> str:
        """The layer that the constructor's `layer` or `unit` names; ValueError if they differ."""
        selected = self.unit.layer if self.unit is not None and self.unit.layer else None
        if layer is None:
            return selected or default
        name = self.network.layers[layer].name
        if selected not in (None, name):
            raise ValueError(f"layer={layer!r} is not the layer of unit={self.unit!r}; give one of the two")
        return name

    def select_default(self, unit: Unit) -> None:
        """Select a unit unless the user has selected one of a layer."""
        if self.unit is None or not self.unit.layer:
            self.unit = self._default_unit = unit

    # -- the computation -----------------------------------------------------------------------------------------

    def recompute(self) -> None:
        """Start the computation for the present settings."""
        run = self.make_run()
        if run is not None:
            run.start()

    def make_run(self) -> Run | None:
        """Make a Run for the present settings without starting it; an error is shown, and the result is None."""
        with self.lock:  # an earlier Run may be drawing
            try:
                frames = self.make_frames()
            except Exception as error:  # noqa: BLE001
                self.stop_run()
                self.show_error(error)
                return None
            self.clear_error()
            if frames is None:
                self.stop_run()
                return None
            return self.start_run(frames, self.run_changed, start=False)

    def run_changed(self, run: Run) -> None:
        """Draw the newest Frame of the Run; called with the lock held."""
        frame = run.last
        if frame is not None and frame is not self.frame:
            self.frame = frame
            self.draw(frame, streaming=run.active and not frame.done)
        if run.state != "running":
            for view in self.views():
                view.pump.flush()

    def redraw(self) -> None:
        """Draw the newest Frame with the present settings."""
        if self.frame is not None:
            self.draw(self.frame)

    def start_run(self, frames: Iterator[Frame], on_change: Callable[[Run], None], *, start: bool = True) -> Run:
        """Stop the present Run and make another.

        Parameters
        ----------
        frames : iterator of Frame
        on_change : callable(run)
            Called with the lock held after every Frame and change of state, until another Run takes its place.
        start : bool
            Start it in a worker thread.
        """
        run = Run(frames)

        def follow(changed: Run) -> None:
            with self.lock:
                if changed is self.run and not self.closed:
                    if changed.error is not None:
                        self.show_error(changed.error)
                    on_change(changed)
                    if not changed.active or (changed.last is not None and self.snapshot_ready(changed.last)):
                        self._snapshot_event.set()

        run.subscribe(follow)
        with self.lock:
            self.stop_run()
            self._snapshot_event.clear()
            self.run = run
        if self.bar is not None:
            self.bar.follow(run)
        if start:
            run.start()
        return run

    def stop_run(self) -> None:
        """Stop the present Run, if any. Returns at once; later Frames of it are not drawn."""
        run, self.run = self.run, None
        if run is not None:
            run.stop()
            if self.bar is not None and not self.closed:
                self.bar.update(run)

    def send_knob(self, name: str) -> None:
        """Send the new value of a live knob to the running computation."""
        if self.run is not None and self.run.active and not self.run.stopping:
            value = getattr(self, name)
            with contextlib.suppress(RuntimeError):  # the Run has ended in between
                self.run.send(**{name: self.default_of(name) if value is None else value})

    # -- snapshots -----------------------------------------------------------------------------------------------

    def snapshot(self) -> np.ndarray:
        """The present state as one image (H, W, 3), uint8, on white."""
        panels, lines = self.snapshot_panels()
        run = self.run
        if run is not None and run.last is not None and run.state != "done" and not run.last.done:
            total = f" of {run.last.total}" if run.last.total else ""
            lines = [*lines, f"not finished: {run.last.step}{total} steps"]
        lines = [*lines, *self.network.notes, *filter(None, [self._error_text])]
        return hstack_panels(panels, "\n".join(map(one_line, lines)))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the present state to a PNG file, completely or not at all.

        Raises
        ------
        ValueError, OSError
            The name does not end in .png; the image is too large; the file cannot be written there.
        """
        output = check_output(path, (".png",))
        self._wait_for_snapshot()
        with self.lock:
            data = encode_png(self.snapshot())
        return write_atomic(output, data)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """The live widget, with a PNG for pages and files without a kernel."""
        made = super()._repr_mimebundle_(**kwargs)
        data, metadata = made if isinstance(made, tuple) else (made, {})
        self._wait_for_snapshot()
        with self.lock:
            image = base64.b64encode(encode_png(self.snapshot())).decode()
        return {**data, "image/png": image, "text/plain": repr(self)}, metadata

    def _wait_for_snapshot(self) -> None:
        """Give a computation that has just started a moment for its first result."""
        if self.run is not None and self.run.state != "ready":
            self._snapshot_event.wait(SNAPSHOT_TIMEOUT)

    def __repr__(self) -> str:
        return one_line(f"{type(self).__name__}({self.network!r}, unit={self.unit!r})")

    # -- errors --------------------------------------------------------------------------------------------------

    def show_error(self, error: BaseException) -> None:
        """Show an error in the widget: the message only for user errors, type and message otherwise."""
        modules = {id(module): name for name, module in self.network.module.named_modules() if name}
        text = describe_error(error, modules=modules, plain=(*PLAIN_ERRORS, traitlets.TraitError))
        technique = getattr(self.run.frames, "name", "") if self.run is not None and error is self.run.error else ""
        self._error_text = f"{technique}, {text}" if technique and text.startswith("in ") else text
        self.status.value = text_html(self._error_text, error=True)

    def clear_error(self) -> None:
        """Remove the error from the widget."""
        if self._error_text:
            self._error_text = self.status.value = ""

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop the computation and remove the widget from every page."""
        if not self.closed:
            with self.lock:
                self.closed = True
                self.stop_run()
            for made in list(self._links):
                made.unlink()
            owned = [value for value in vars(self).values() if isinstance(value, ipywidgets.Widget)]
            for part in (*self.controls.values(), *owned):  # some may have no place in the widget (yet)
                close_fully(part)
        super().close()

    def _stop_previous_execution(self) -> None:
        """When a cell is executed again, stop the Runs of the widgets of its previous execution."""
        cell, execution = _current_cell()
        if cell is None or execution is None:
            return
        last, viewers = Viewer._widgets_of_cells.get(cell, ("", weakref.WeakSet()))
        if last != execution:
            for viewer in list(viewers):
                viewer.stop_run()
            viewers = weakref.WeakSet()
        viewers.add(self)
        Viewer._widgets_of_cells[cell] = (execution, viewers)


def _current_cell() -> tuple[str | None, str | None]:
    """(cell, execution) that this code runs in, as far as the front end tells."""
    from IPython import get_ipython

    shell = get_ipython()
    parent: dict[str, Any] = getattr(shell, "get_parent", dict)() if shell is not None else {}
    return parent.get("metadata", {}).get("cellId"), parent.get("header", {}).get("msg_id")
