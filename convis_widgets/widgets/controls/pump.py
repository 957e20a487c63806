"""Pump: images from a worker thread to the page, always the newest, at the rate that the page can display.

Nothing between a kernel and a browser slows down the sender. Images that are sent faster than they are displayed queue up
for seconds, and a click on Stop waits behind them. Therefore the page acknowledges images, only a few are in flight at once,
and newer images replace the one that waits here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import ipywidgets
import numpy as np

from ..drawing.encode import encode_jpeg, encode_png
from .parts import close_fully

MIN_PERIOD = 1 / 30  # seconds between two images
MAX_IN_FLIGHT = 4  # images without acknowledgement; hides the round trip of about 60 ms
ACK_TIMEOUT = 1.0  # seconds; without an acknowledgement for that long, nobody looks or the kernel's main thread is busy ...
UNACKNOWLEDGED_PERIOD = 1 / 10  # ... and images are sent with this period in seconds


class Pump:
    """Sends images to one `ipywidgets.Image`.

    Acknowledgements use a pair of invisible number fields that are linked in the page. The page copies the first to the
    second after it has processed the image sent before.

    Parameters
    ----------
    image_widget : ipywidgets.Image
    clock : callable() -> float
        Time in seconds; for tests.
    """

    def __init__(self, image_widget: ipywidgets.Image, clock: Callable[[], float] = time.monotonic) -> None:
        self._image_widget, self._clock = image_widget, clock
        self._lock = threading.RLock()
        self._pending: Callable[[], np.ndarray] | None = None
        self._sent = self._seen = 0  # images streamed and images acknowledged
        self._last_sent = self._last_seen = float("-inf")
        self._ping: ipywidgets.IntText | None = None
        self._parts: tuple[ipywidgets.Widget, ...] = ()
        self._closed = False

    def show(self, data: bytes, kind: str) -> None:
        """Send an encoded image immediately and discard the pending one.

        Parameters
        ----------
        data : bytes
        kind : {"png", "jpeg"}
        """
        with self._lock:
            self._pending = None
            self._send(data, kind)

    def offer(self, compose: Callable[[], np.ndarray]) -> None:
        """Send an image when the page is ready for it, unless a newer one replaces it before.

        Parameters
        ----------
        compose : callable() -> (H, W, 3 or 4) uint8 array
            Called only if the image is sent.
        """
        with self._lock:
            self._pending = compose
            self._send_pending()

    def flush(self) -> None:
        """Send the pending image, if any, at the end of a stream."""
        with self._lock:
            self._send_pending(force=True)

    def close(self) -> None:
        """Stop sending."""
        with self._lock:
            self._closed, self._pending = True, None
            for part in self._parts:
                close_fully(part)

    def _send_pending(self, *, force: bool = False) -> None:
        if self._pending is None or self._closed or not (force or self._is_due()):
            return
        ping = self._connect()
        compose, self._pending = self._pending, None
        self._last_sent = self._clock()
        image = compose()
        transparent = image.ndim == 3 and image.shape[2] == 4
        self._send(*((encode_png(image), "png") if transparent else (encode_jpeg(image), "jpeg")))
        if self._sent == self._seen:
            self._last_seen = self._last_sent  # all images were acknowledged: the timeout starts now
        self._sent += 1
        ping.value = self._sent

    def _is_due(self) -> bool:
        now = self._clock()
        if self._sent and self._sent == self._seen:
            return True  # all images were acknowledged, and no acknowledgement would trigger this one, perhaps the last
        if now - self._last_sent < MIN_PERIOD:
            return False
        if self._sent - self._seen < MAX_IN_FLIGHT:
            return True
        return now - self._last_seen > ACK_TIMEOUT and now - self._last_sent >= UNACKNOWLEDGED_PERIOD

    def _send(self, data: bytes, kind: str) -> None:
        if self._closed:
            return
        with self._image_widget.hold_sync():
            self._image_widget.format = kind
            self._image_widget.value = data

    def _connect(self) -> ipywidgets.IntText:
        """Create the pair of linked number fields, once, and return the first."""
        if self._ping is None:
            self._ping, pong = ipywidgets.IntText(), ipywidgets.IntText()
            self._parts = (self._ping, pong, ipywidgets.jslink((self._ping, "value"), (pong, "value")))
            pong.observe(self._on_acknowledgement, "value")
        return self._ping

    def _on_acknowledgement(self, change: dict[str, int]) -> None:
        with self._lock:
            if change["new"] > self._seen:
                self._seen = change["new"]
                self._last_seen = self._clock()
                self._send_pending()
