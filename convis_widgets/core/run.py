"""Run: drives any iterator of Frames, inline or in one worker thread. The only file that knows threads.

A Run is a flag, a thread and the newest Frame. Buttons set flags and return at once; nothing is killed. A
computation looks at the flag between two Frames, and a long forward pass between two layers (`checkpoint`).
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from .frame import Frame

_current: ContextVar[Run | None] = ContextVar("convis_run", default=None)
_started: weakref.WeakSet[Run] = weakref.WeakSet()


class Stopped(BaseException):
    """Raised inside a computation, between two layers, when its Run was told to stop.

    Not an Exception, so that no ``except Exception`` in a model goes on in spite of it.
    """


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
        if not hasattr(frames, "__next__"):
            raise TypeError(f"{frames!r} is no iterator of frames; call a technique, as in Run(saliency(net, image))")
        self.frames = frames
        self.last: Frame | None = None
        self.error: BaseException | None = None
        self.state = "ready"
        self._subscribers: list[Callable[[Run], None]] = []
        self._change = threading.Condition()  # guards the four below
        self._begun = False  # somebody computes, or never will
        self._stopping = False
        self._steps: int | None = None  # frames still allowed before pausing; None: no limit
        self._sent: dict[str, Any] = {}
        self._over = threading.Event()

    # -- what a button does ------------------------------------------------------------------------------------

    def start(self) -> Run:
        """Begin, or go on after a pause, in a worker thread; returns at once."""
        return self._go(lambda _steps: None)

    resume = start

    def step(self) -> Run:
        """Compute one more Frame in the worker thread, then pause; returns at once."""
        return self._go(lambda steps: (steps or 0) + 1)

    def pause(self) -> None:
        """Wait after the Frame in progress."""
        with self._change:
            self._steps = 0

    def stop(self) -> None:
        """Ask the computation to end at its next checkpoint. Safe from any thread, any number of times."""
        with self._change:
            self._stopping = True
            never, self._begun = not self._begun, True
            self._change.notify_all()
        if never:
            self._finish("stopped")

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
        with self._change:
            if self._begun:
                raise self._used()
            self._begun, self._steps = True, None
        self._work()
        if self.error is not None:
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

    def _used(self) -> RuntimeError:
        return RuntimeError(f"this Run is {self.state}; make a new one with Run(frames)")

    def _go(self, steps: Callable[[int | None], int | None]) -> Run:
        with self._change:
            if self._over.is_set():
                raise self._used()
            self._steps = steps(self._steps)
            first, self._begun = not self._begun, True
            if first:
                self.state = "running"
            self._change.notify_all()
        if first:
            _started.add(self)
            threading.Thread(target=self._work_aside, name="convis-run", daemon=True).start()
        return self

    def _work_aside(self) -> None:
        self._work()
        if self.error is not None:  # its traceback holds all that the computation held
            traceback.clear_frames(self.error.__traceback__)

    def _work(self) -> None:
        state = "failed"
        try:
            self._enter("running")
            while self._may_continue():
                if not self._advance():
                    state = "done"
                    return
                self._tell()
            state = "done" if self.last is not None and self.last.done else "stopped"
        except (Stopped, KeyboardInterrupt):
            state = "stopped"
        except BaseException as error:  # noqa: BLE001 (kept in .error and shown by whoever watches)
            self.error = error
        finally:
            self._finish(state)

    def _advance(self) -> bool:
        """Compute one Frame; False if there is none left."""
        with self._change:
            values, self._sent = self._sent, {}
        token = _current.set(self)  # only here: a subscriber that computes something is not to be stopped by this Run
        try:
            self.last = self.frames.send(values) if values else next(self.frames)  # type: ignore[attr-defined]
        except StopIteration:
            return False
        finally:
            _current.reset(token)
        with self._change:
            if self._steps:
                self._steps -= 1
        return True

    def _may_continue(self) -> bool:
        """Wait out a pause; False when told to stop."""
        with self._change:
            waits = self._steps == 0 and not self._stopping
        if waits:
            self._enter("paused")
            with self._change:
                self._change.wait_for(lambda: self._steps != 0 or self._stopping)
            if not self._stopping:
                self._enter("running")
        return not self._stopping

    def _enter(self, state: str) -> None:
        self.state = state
        self._tell()

    def _finish(self, state: str) -> None:
        try:
            getattr(self.frames, "close", lambda: None)()
        except Exception as error:  # noqa: BLE001
            self.error, state = self.error or error, "failed"
        finally:
            try:
                self._enter(state)
            except Exception as error:  # noqa: BLE001
                self.state, self.error = "failed", self.error or error
            finally:
                self._over.set()

    def _tell(self) -> None:
        """Call every subscriber; then raise the first error that one of them raised."""
        first: Exception | None = None
        for callback in tuple(self._subscribers):
            try:
                callback(self)
            except Exception as error:  # noqa: BLE001
                first = first or error
        if first is not None:
            raise first


@atexit.register
def _stop_all() -> None:
    """At the interpreter's exit no thread may be left inside a torch kernel."""
    runs = [run for run in _started if not run._over.is_set()]
    for run in runs:
        run.stop()
    for run in runs:
        run.join(2)
