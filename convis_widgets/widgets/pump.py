"""The pump: pictures from a worker to the page, the newest always, never more than the page can take.

Nothing between a kernel and a browser holds a sender back: pictures sent faster than they are painted queue up for
seconds, and a click on Stop waits behind them. So the page acknowledges pictures, a few may be under way at once, and
while they are, newer ones replace each other here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import ipywidgets
import numpy as np

from .encode import jpeg, png

PERIOD = 1 / 30  # no faster than this
WINDOW = 4  # pictures under way: hides the round trip of about 60 ms
PATIENCE = 1.0  # without an answer for so long ...
BLIND_PERIOD = 1 / 10  # ... pictures go out at this rate unanswered (nobody looks, or the kernel's main thread is busy)


def dispose(widget: ipywidgets.Widget) -> None:
    """Close a widget with its layout and style, which are widgets, too, and otherwise stay registered for ever."""
    for part in (getattr(widget, "layout", None), getattr(widget, "style", None)):
        if part is not None:
            part.close()
    widget.close()


class Pump:
    """Feeds one `ipywidgets.Image`.

    The acknowledgement is a pair of invisible numbers linked in the page: it copies the one to the other after it
    has processed the picture sent before.

    Parameters
    ----------
    picture : ipywidgets.Image
    clock : callable
        Seconds; for tests.
    """

    def __init__(self, picture: ipywidgets.Image, clock: Callable[[], float] = time.monotonic) -> None:
        self._picture, self._clock = picture, clock
        self._lock = threading.RLock()
        self._waiting: Callable[[], np.ndarray] | None = None
        self._sent = self._seen = 0
        self._last_sent = self._last_seen = float("-inf")
        self._ping: ipywidgets.IntText | None = None
        self._closed = False

    def show(self, data: bytes, kind: str) -> None:
        """Send this picture now, whatever is under way; pictures still waiting are dropped."""
        with self._lock:
            self._waiting = None
            self._put(data, kind)

    def offer(self, compose: Callable[[], np.ndarray]) -> None:
        """Send this (H, W, 3) uint8 picture if it is time for one, else keep it until it is or a newer one comes.

        `compose` makes the picture; it is called only when it is to be sent.
        """
        with self._lock:
            self._waiting = compose
            self._pour()

    def flush(self) -> None:
        """Send the picture that waits, if one does: there may be no other to push it."""
        with self._lock:
            self._pour(now=True)

    def close(self) -> None:
        """Send nothing any more."""
        with self._lock:
            self._closed, self._waiting = True, None
            for part in getattr(self, "_parts", ()):
                dispose(part)

    def _pour(self, *, now: bool = False) -> None:
        if self._waiting is None or self._closed or not (now or self._due()):
            return
        self._connect()
        compose, self._waiting = self._waiting, None
        self._last_sent = self._clock()
        image = compose()
        see_through = image.ndim == 3 and image.shape[2] == 4
        self._put(*((png(image), "png") if see_through else (jpeg(image), "jpeg")))
        if self._sent == self._seen:
            self._last_seen = self._last_sent  # the page has answered all so far: start its patience anew
        self._sent += 1
        self._ping.value = self._sent

    def _due(self) -> bool:
        now = self._clock()
        if self._sent and self._sent == self._seen:
            return True  # the page waits for no other: this one may be the last
        if now - self._last_sent < PERIOD:
            return False
        if self._sent - self._seen < WINDOW:
            return True
        return now - self._last_seen > PATIENCE and now - self._last_sent >= BLIND_PERIOD

    def _put(self, data: bytes, kind: str) -> None:
        if self._closed:
            return
        with self._picture.hold_sync():
            self._picture.format = kind
            self._picture.value = data

    def _connect(self) -> None:
        """Make the pair of numbers, the first time that something streams."""
        if self._ping is None:
            self._ping, pong = ipywidgets.IntText(), ipywidgets.IntText()
            self._parts = (self._ping, pong, ipywidgets.jslink((self._ping, "value"), (pong, "value")))
            pong.observe(self._answered, "value")

    def _answered(self, change: dict[str, int]) -> None:
        with self._lock:
            if change["new"] > self._seen:
                self._seen = change["new"]
                self._last_seen = self._clock()
                self._pour()
