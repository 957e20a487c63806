"""RunBar: buttons to start, pause, step and stop a Run, and its progress."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

import ipywidgets

from ...core.runs.run import Run
from .parts import Parts

PROGRESS_PERIOD = 0.2  # seconds between two updates of the progress bar
LATE = 10.0  # seconds after Stop, from which the bar says that the step in progress does not end
STOPPING = "stopping after the step in progress"
NOT_RETURNED = f"the module has not returned for {LATE:g} s; restart the kernel if it does not"


class RunBar(Parts, ipywidgets.HBox):
    """Buttons to start, pause, step and stop a Run, and its progress.

    Parameters
    ----------
    make_run : callable() -> Run or None
        Creates a new Run, not started, or returns None if that is not possible.
    """

    def __init__(self, make_run: Callable[[], Run | None]) -> None:
        def button(description: str, icon: str, tooltip: str, action: Callable[[], None]) -> ipywidgets.Button:
            widget = ipywidgets.Button(description=description, icon=icon, tooltip=tooltip)
            widget.layout.width = "92px"
            widget.on_click(lambda _button: action())
            return widget

        self._make_run = make_run
        self.run: Run | None = None
        self._lock = threading.Lock()  # a Run calls `update` from its own thread
        self._unsubscribe: Callable[[], object] = lambda: None
        self._updated_at = 0.0
        self._state = ""
        self.start = button("Start", "play", "Start, or resume after a pause", self.on_start)
        self.pause = button("Pause", "pause", "Pause after the current step", self.on_pause)
        self.step = button("Step", "step-forward", "Compute one step, then pause", self.on_step)
        self.stop = button("Stop", "stop", "Stop and keep the result so far", self.on_stop)
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
        """Update buttons and progress; cheap enough to be called for every Frame."""
        with self._lock:
            if run is self.run:
                self._update(run)

    def _update(self, run: Run | None) -> None:
        if run is not None and run.stopping:
            self._show_stopping(run)
            return
        state = run.state if run is not None else "ready"
        now = time.monotonic()
        if state == self._state == "running" and now - self._updated_at < PROGRESS_PERIOD:
            return
        self._state, self._updated_at = state, now
        self.start.disabled = state == "running"
        self.step.disabled = False
        self.pause.disabled = state != "running"
        self.stop.disabled = state not in ("running", "paused")
        frame = run.last if run is not None else None
        if frame is None:
            self.progress.value, self.text.value = 0, "" if state == "ready" else state
            return
        self.progress.value = frame.step / frame.total if frame.total else float(state == "done")
        total = f" of {frame.total}" if frame.total else ""
        failed = state == "done" and frame.scalars.get("responded") == 0  # of a unit that stayed inactive
        self.text.value = f"{'did not respond' if failed else state}, {frame.step}{total}"

    def _show_stopping(self, run: Run) -> None:
        """Say once that the Run is being stopped, and later that it takes long."""
        if self._state != "stopping":
            self._state, self.text.value = "stopping", STOPPING
            for button in (self.start, self.pause, self.step, self.stop):
                button.disabled = True
            show_late = weakref.WeakMethod(self._show_late)  # the module may never return
            run.call_if_late(LATE, lambda late: (show_late() or _ignore)(late))

    def _show_late(self, run: Run) -> None:
        with self._lock:
            if run is self.run and run.stopping:
                self.text.value = NOT_RETURNED

    def _unfinished_run(self) -> Run | None:
        """The current Run; a new one if it has ended; None while it is being stopped."""
        if self.run is not None and self.run.stopping:
            return None
        if self.run is None or self.run.state in ("done", "stopped", "failed"):
            return self._make_run()
        return self.run

    def on_start(self) -> None:
        """Start a Run, or resume the current one."""
        run = self._unfinished_run()
        if run is not None:
            run.start()

    def on_step(self) -> None:
        """Compute one Frame."""
        run = self._unfinished_run()
        if run is not None:
            run.step()

    def on_pause(self) -> None:
        """Pause the Run."""
        if self.run is not None:
            self.run.pause()

    def on_stop(self) -> None:
        """Stop the Run; it ends after the step in progress."""
        if self.run is not None:
            self.run.stop()
            self.update(self.run)

    def close(self) -> None:
        """Remove the bar from all pages; its buttons do nothing afterwards."""
        self._make_run = lambda: None
        self.follow(None)
        super().close()


def _ignore(_run: Run) -> None:
    """In place of the method of a bar that is gone."""
