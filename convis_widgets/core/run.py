"""Run: drives any iterator of Frames, inline or in one worker thread. The only file that knows threads.

A Run is a flag, a thread and the newest Frame. Buttons set flags and return at once; nothing is killed. A
computation looks at the flag between two Frames, and a long forward pass between two layers (`checkpoint`).
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from .frame import Frame

_current: ContextVar[Run | None] = ContextVar("convis_run", default=None)
_started: weakref.WeakSet[Run] = weakref.WeakSet()


class Stopped(Exception):
    """Raised inside a computation, between two layers, when its Run was told to stop."""


def checkpoint() -> None:
    """A place where a computation may be stopped: raises `Stopped` if it runs in a Run that was told to stop."""
    run = _current.get()
    if run is not None and run._stopping:
        raise Stopped


class Run:
    """Drive an iterator of Frames: start, pause, resume, step, stop; the newest Frame is `last`.

    Parameters
    ----------
    frames : iterator of Frame
        Usually what a technique returned. Nothing is computed before `run`, `start` or `step`.

    Attributes
    ----------
    state : str
        "ready", "running", "paused", and at the end "done" (ran to its end), "stopped" or "failed".
    last : Frame or None
        The newest Frame. Kept whatever happens.
    error : BaseException or None
        What went wrong, when `state` is "failed".

    Examples
    --------
    >>> Run(iter([Frame(1), Frame(2, done=True)])).run()
    Frame(2/?, done)
    """

    def __init__(self, frames: Iterator[Frame]) -> None:
        self.frames = frames
        self.last: Frame | None = None
        self.error: BaseException | None = None
        self.state = "ready"
        self._stopping = False
        self._steps: int | None = None  # frames still allowed before pausing; None: no limit
        self._sent: dict[str, Any] = {}
        self._subscribers: list[Callable[[Run], None]] = []
        self._thread: threading.Thread | None = None
        self._change = threading.Condition()
        self._over = threading.Event()

    # -- what a button does ------------------------------------------------------------------------------------

    def start(self) -> Run:
        """Begin, or go on after a pause, in a worker thread; returns at once."""
        return self._go(None)

    resume = start

    def step(self) -> Run:
        """Compute one more Frame in the worker thread, then pause; returns at once."""
        return self._go(1)

    def pause(self) -> None:
        """Wait after the Frame in progress."""
        with self._change:
            self._steps = 0

    def stop(self) -> None:
        """Ask the computation to end at its next checkpoint. Safe from any thread, any number of times."""
        with self._change:
            self._stopping = True
            self._change.notify_all()
            if self._thread is None and self.state == "ready":
                self.state = "stopped"
                self._over.set()

    def send(self, **values: Any) -> None:
        """Hand new values of live knobs to the computation, which obeys at its next step.

        Raises ValueError at once, and changes nothing, if a name or value is not accepted.
        """
        check = getattr(self.frames, "check", None)
        if check is None:
            raise ValueError("this computation takes no values while it runs")
        check(values)
        with self._change:
            self._sent.update(values)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the Run is over; True if it is."""
        return self._over.wait(timeout)

    def run(self) -> Frame | None:
        """Compute here, in this thread, to the end; return the last Frame.

        Ctrl-C stops it and keeps what there is. An error is raised, with the last Frame still in `last`.
        """
        if self.state != "ready":
            raise RuntimeError(f"this Run is {self.state}; make a new one with Run(frames)")
        self._work()
        if isinstance(self.error, Exception):
            raise self.error
        return self.last

    # -- who watches -------------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[Run], None]) -> Callable[[], None]:
        """Call `callback(run)` after every Frame and every change of state, in the thread that computes.

        Returns a function that ends the subscription. A callback that raises fails the Run.
        """
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._subscribers.remove(callback)

        return unsubscribe

    @property
    def active(self) -> bool:
        """Whether there is still something to stop."""
        return self.state in ("running", "paused")

    def __repr__(self) -> str:
        return f"Run({self.frames!r}, {self.state}, last={self.last!r})"

    # -- the work ----------------------------------------------------------------------------------------------

    def _go(self, steps: int | None) -> Run:
        with self._change:
            if self._over.is_set():
                raise RuntimeError(f"this Run is {self.state}; make a new one with Run(frames)")
            self._steps = steps
            self._change.notify_all()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="convis-run", daemon=True)
                _started.add(self)
                self._thread.start()
        return self

    def _work(self) -> None:
        token = _current.set(self)
        state = "failed"
        try:
            while self._may_continue():
                with self._change:
                    values, self._sent = self._sent, {}
                frame = self.frames.send(values) if values else next(self.frames)  # type: ignore[attr-defined]
                self.last = frame
                if self._steps:
                    self._steps -= 1
                self._tell()
            state = "stopped"
        except StopIteration:
            state = "done"
        except (Stopped, KeyboardInterrupt):
            state = "stopped"
        except Exception as error:  # noqa: BLE001 (kept in .error and shown by whoever watches)
            self.error = error
        finally:
            try:
                getattr(self.frames, "close", lambda: None)()
            except Exception as error:  # noqa: BLE001
                self.error, state = self.error or error, "failed"
            self._enter(state, last=True)
            _current.reset(token)

    def _may_continue(self) -> bool:
        """Wait out a pause; False when told to stop."""
        if self._steps == 0 and not self._stopping:
            self._enter("paused")
        with self._change:
            self._change.wait_for(lambda: self._steps != 0 or self._stopping)
        if self._stopping:
            return False
        if self.state != "running":
            self._enter("running")
        return True

    def _enter(self, state: str, *, last: bool = False) -> None:
        self.state = state
        if not last:
            self._tell()
            return
        try:
            self._tell()
        except Exception as error:  # noqa: BLE001
            self.state, self.error = "failed", self.error or error
        finally:
            self._over.set()

    def _tell(self) -> None:
        for callback in tuple(self._subscribers):
            callback(self)


@atexit.register
def _stop_all() -> None:
    """At the interpreter's exit no thread may be left inside a torch kernel."""
    runs = [run for run in _started if not run._over.is_set()]
    for run in runs:
        run.stop()
    for run in runs:
        run.join(2)
