"""Run: drives an iterator of Frames, inline or in one worker thread. The only file that starts threads.

A Run is a flag, a thread and the newest Frame. Buttons set flags and return at once; nothing is killed. The flag is read
between two Frames and, in a forward pass, between two layers (`raise_if_stopped`).
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar
from typing import Any

from ..threads import limit_threads
from .frame import Frame

EXIT_PATIENCE = 2.0  # seconds that the interpreter waits for all Runs before it exits

_current_run: ContextVar[Run | None] = ContextVar("convis_run", default=None)
_started_runs: weakref.WeakSet[Run] = weakref.WeakSet()


class RunStopped(BaseException):
    """Raised inside a computation, between two layers, when its Run is stopped.

    It is not an Exception, so ``except Exception`` in a model does not catch it.
    """


def raise_if_stopped() -> None:
    """Raise `RunStopped` if the current computation belongs to a Run that is being stopped."""
    run = _current_run.get()
    if run is not None and run._stopping:
        raise RunStopped


class Run:
    """Drive an iterator of Frames: start, pause, resume, step, stop; the newest Frame is `last`.

    The first Run of a process lowers torch's thread count to the cores that the process may use, see `limit_threads`.

    Parameters
    ----------
    frames : iterator of Frame
        Usually the FrameStream of a technique. Nothing is computed before `run`, `start` or `step`.

    Attributes
    ----------
    state : str
        "ready", "running", "paused", and at the end "done" (completed), "stopped" or "failed".
    last : Frame or None
        The newest Frame, kept after a stop or an error.
    error : BaseException or None
        The error, if `state` is "failed".

    Examples
    --------
    >>> Run(iter([Frame(1), Frame(2, done=True)])).run()
    Frame(2/?, done)
    """

    def __init__(self, frames: Iterator[Frame]) -> None:
        if not hasattr(frames, "__next__"):
            raise TypeError(f"{frames!r} is not an iterator of Frames; call a technique, as in Run(saliency(net, image))")
        _check_unused(frames)
        self.frames = frames
        self.last: Frame | None = None
        self.error: BaseException | None = None
        self.state = "ready"
        self._subscribers: list[Callable[[Run], None]] = []
        self._change = threading.Condition()  # guards the following four
        self._started = False  # running, finished, or stopped before the start
        self._stopping = False
        self._steps: int | None = None  # Frames to compute before the next pause; None: no limit
        self._pending: dict[str, Any] = {}  # values of live knobs for the next step
        self._finished = threading.Event()

    # -- control -----------------------------------------------------------------------------------------------

    def start(self) -> Run:
        """Start, or resume after a pause, in a worker thread; returns at once."""
        return self._start_thread(lambda _steps: None)

    resume = start

    def step(self) -> Run:
        """Compute one more Frame in the worker thread, then pause; returns at once."""
        return self._start_thread(lambda steps: (steps or 0) + 1)

    def pause(self) -> None:
        """Pause after the Frame in progress."""
        with self._change:
            self._steps = 0

    def stop(self) -> None:
        """Stop the computation at the next layer or Frame. Safe from any thread, any number of times."""
        with self._change:
            self._stopping = True
            first, self._started = not self._started, True
            self._change.notify_all()
        if first:
            self._finish("stopped")

    def send(self, **values: Any) -> None:
        """Change live knobs at the next step of the computation.

        Parameters
        ----------
        **values
            New values, by keyword of the technique.

        Raises
        ------
        ValueError
            A name is not a live knob, or a value is out of range. No knob is changed.
        RuntimeError
            The Run is stopped or finished, so that the values would have no effect.
        """
        check = getattr(self.frames, "check", None)
        if check is None:
            raise ValueError("this computation does not accept values while it runs")
        check(values)
        with self._change:
            if self._stopping or self._finished.is_set():
                raise RuntimeError(f"{', '.join(values)} cannot be changed any more: {self._reuse_error()}")
            self._pending.update(values)

    def join(self, timeout: float | None = None) -> bool:
        """Wait, at most `timeout` seconds, until the Run is finished; return whether it is."""
        return self._finished.wait(timeout)

    def run(self) -> Frame:
        """Compute all Frames in the current thread and return the last one.

        Ctrl-C stops the computation and keeps the last Frame. Errors of the computation are raised as they are; `last`
        remains available.

        Raises
        ------
        RuntimeError
            The computation yielded no Frame, or the Run was started before.
        """
        with self._change:
            if self._started:
                raise self._reuse_error()
            _check_unused(self.frames)
            self._started, self._steps = True, None
        limit_threads()
        self._work()
        if self.error is not None:
            raise self.error
        if self.last is None:
            stopped = self.state == "stopped"
            raise RuntimeError("the computation was stopped before its first Frame" if stopped else "there are no Frames")
        return self.last

    # -- observation -------------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[Run], None]) -> Callable[[], None]:
        """Call `callback(run)` after every Frame and every change of state, in the computing thread.

        Returns a function that ends the subscription. An exception in a callback fails the Run.
        """
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._subscribers.remove(callback)

        return unsubscribe

    @property
    def active(self) -> bool:
        """Whether the Run is running or paused."""
        return self.state in ("running", "paused")

    @property
    def stopping(self) -> bool:
        """Whether the Run was stopped and the step in progress has not ended."""
        return self._stopping and self.active

    def call_if_late(self, seconds: float, callback: Callable[[Run], object]) -> None:
        """Call `callback(run)` in another thread if the Run is not finished in so many seconds.

        Parameters
        ----------
        seconds : float
        callback : callable(run)
        """

        def wait() -> None:
            if not self.join(seconds):
                callback(self)

        with contextlib.suppress(RuntimeError):  # no thread can be started while the interpreter exits
            threading.Thread(target=wait, name="convis-late", daemon=True).start()

    def __repr__(self) -> str:
        return f"Run({self.frames!r}, {self.state}, last={self.last!r})"

    # -- computation -------------------------------------------------------------------------------------------

    def _reuse_error(self) -> RuntimeError:
        if self.stopping:
            return RuntimeError("this Run is being stopped; create a new one with Run(frames)")
        if self.state == "paused":
            return RuntimeError("this Run is paused; continue it with resume(), and wait for it with join()")
        if self.state == "running":
            return RuntimeError("this Run is running already; wait for it with join()")
        return RuntimeError(f"this Run is {self.state}, its last Frame is in last; create a new one with Run(frames)")

    def _start_thread(self, update_steps: Callable[[int | None], int | None]) -> Run:
        with self._change:
            if self._stopping or self._finished.is_set():
                raise self._reuse_error()
            if not self._started:
                _check_unused(self.frames)
            self._steps = update_steps(self._steps)
            first, self._started = not self._started, True
            if first:
                self.state = "running"
            self._change.notify_all()
        if first:
            limit_threads()  # here, since the worker thread inherits the limit and other threads would not
            _started_runs.add(self)
            threading.Thread(target=self._work_in_thread, name="convis-run", daemon=True).start()
        return self

    def _work_in_thread(self) -> None:
        self._work()
        if self.error is not None:  # its traceback references all local variables of the computation
            traceback.clear_frames(self.error.__traceback__)

    def _work(self) -> None:
        state = "failed"
        try:
            self._set_state("running")
            while self._wait_while_paused():
                if not self._compute_frame():
                    state = "done"
                    return
                self._tell()
            state = "done" if self.last is not None and self.last.done else "stopped"
        except (RunStopped, KeyboardInterrupt):
            state = "stopped"
        except BaseException as error:  # noqa: BLE001 (stored in .error, for subscribers to show)
            self.error = error
        finally:
            self._finish(state)

    def _compute_frame(self) -> bool:
        """Compute one Frame; False at the end of the iterator."""
        with self._change:
            values, self._pending = self._pending, {}
        token = _current_run.set(self)  # only here, so that this Run does not stop computations of its subscribers
        try:
            frame = self.frames.send(values) if values and isinstance(self.frames, Generator) else next(self.frames)
        except StopIteration:
            return False
        finally:
            _current_run.reset(token)
        if not isinstance(frame, Frame):
            raise TypeError(f"{self.frames!r} yielded an object of type {type(frame).__name__} instead of a Frame")
        self.last = frame
        with self._change:
            if self._steps:
                self._steps -= 1
        return True

    def _wait_while_paused(self) -> bool:
        """Wait for the end of a pause; False if the Run is being stopped."""
        with self._change:
            paused = self._steps == 0 and not self._stopping
        if paused:
            self._set_state("paused")
            with self._change:
                self._change.wait_for(lambda: self._steps != 0 or self._stopping)
            if not self._stopping:
                self._set_state("running")
        return not self._stopping

    def _set_state(self, state: str) -> None:
        self.state = state
        self._tell()

    def _finish(self, state: str) -> None:
        try:
            getattr(self.frames, "close", lambda: None)()
        except Exception as error:  # noqa: BLE001
            self.error, state = self.error or error, "failed"
        finally:
            try:
                self._set_state(state)
            except Exception as error:  # noqa: BLE001
                self.state, self.error = "failed", self.error or error
            finally:
                self._finished.set()

    def _tell(self) -> None:
        """Call every subscriber, then raise the first error of one of them."""
        first: Exception | None = None
        for callback in tuple(self._subscribers):
            try:
                callback(self)
            except Exception as error:  # noqa: BLE001
                first = first or error
        if first is not None:
            raise first


def _check_unused(frames: Iterator[Frame]) -> None:
    """Raise RuntimeError if a generator has ended: another loop or Run has used its Frames."""
    if getattr(frames, "gi_frame", frames) is None:
        raise RuntimeError(f"{frames!r} has ended already; call the technique again, as in Run(saliency(net, image))")


@atexit.register
def _stop_all() -> None:
    """Stop all Runs: when the interpreter exits, no thread may be inside a torch kernel."""
    runs = [run for run in _started_runs if not run._finished.is_set()]
    for run in runs:
        run.stop()
    deadline = time.monotonic() + EXIT_PATIENCE
    for run in runs:
        run.join(max(0.0, deadline - time.monotonic()))
