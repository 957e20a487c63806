"""Pump: images from a worker thread to the page, always the newest, at the rate that the page can display.

Nothing between a kernel and a browser slows down the sender. Images that are sent faster than they are displayed queue up
for seconds, and a click on Stop waits behind them. Therefore the page acknowledges images, only a few are in flight at once,
and newer images replace the one that waits here. All pumps share one page: there is also a limit for all of them, and they
take turns.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable

import numpy as np

from ..drawing.encode import encode_jpeg, encode_png

MIN_PERIOD = 1 / 30  # seconds between two images
MAX_IN_FLIGHT = 4  # images of one pump without acknowledgement; hides the round trip of about 60 ms
MAX_IN_FLIGHT_OF_ALL = 10  # images of all pumps without acknowledgement
ACK_TIMEOUT = 1.0  # seconds; without an acknowledgement for that long, the kernel's main thread is busy ...
UNACKNOWLEDGED_PERIOD = 1 / 16  # ... and images are sent with this period in seconds
UNSEEN_PERIOD = 1.0  # seconds between two images while nobody sees them


class Turns:
    """The pumps that share a limit of images in flight, and those that wait for their turn."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pumps: weakref.WeakSet[Pump] = weakref.WeakSet()
        self._waiting: list[weakref.ref[Pump]] = []

    def join(self, pump: Pump) -> None:
        """Add a pump."""
        with self._lock:
            self._pumps.add(pump)

    def take(self, pump: Pump) -> bool:
        """Whether a pump may send an image now; otherwise it waits until others have been acknowledged."""
        with self._lock:
            if not self._all_taken():
                return True
            if all(reference() is not pump for reference in self._waiting):
                self._waiting.append(weakref.ref(pump))
            return False

    def pass_on(self) -> None:
        """Let the pumps that wait send their images, the one that waits longest first."""
        for _ in range(len(self._waiting)):  # not as long as there are any: others keep coming
            with self._lock:
                if not self._waiting or self._all_taken():
                    return
                pump = self._waiting.pop(0)()
            if pump is not None:
                pump.send_pending()

    def _all_taken(self) -> bool:
        return sum(pump.in_flight for pump in self._pumps) >= MAX_IN_FLIGHT_OF_ALL


_turns = Turns()


class Pump:
    """Sends images to one view.

    Parameters
    ----------
    send : callable(data, serial)
        Sends an encoded image and its number to the page, which calls `acknowledge` with the number.
    clock : callable() -> float
        Time in seconds; for tests.
    turns : Turns
        Shared with the other pumps of the page.

    Attributes
    ----------
    lock : RLock
        Held while an image is composed and sent.
    """

    def __init__(
        self,
        send: Callable[[bytes, int], None],
        clock: Callable[[], float] = time.monotonic,
        turns: Turns = _turns,
    ) -> None:
        self._send, self._clock, self._turns = send, clock, turns
        self.lock = threading.RLock()
        self._pending: Callable[[], np.ndarray] | None = None
        self._sent = self._acknowledged = 0  # numbers of the last images
        self._last_sent = self._last_acknowledged = float("-inf")
        self._is_seen, self._closed = True, False
        turns.join(self)

    def show(self, data: bytes) -> None:
        """Send an encoded image immediately and discard the pending one."""
        with self.lock:
            self.discard()
            self._put(data)

    def discard(self) -> None:
        """Discard the pending image."""
        with self.lock:
            self._pending = None

    def offer(self, compose: Callable[[], np.ndarray]) -> None:
        """Send an image when the page is ready for it, unless a newer one replaces it before.

        Parameters
        ----------
        compose : callable() -> (H, W, 3 or 4) uint8 array
            Called only if the image is sent.
        """
        with self.lock:
            self._pending = compose
            self.send_pending()

    def flush(self) -> None:
        """Send the pending image, if any, at the end of a stream."""
        with self.lock:
            if self._pending is not None:
                self._send_now()

    def acknowledge(self, serial: int) -> None:
        """Take note that the page displays an image, and send what waits."""
        with self.lock:
            if serial > self._acknowledged:
                self._acknowledged = serial
                self._last_acknowledged = self._clock()
            self._is_seen = True
        self._turns.pass_on()
        self.send_pending()

    def set_seen(self, seen: bool) -> None:
        """Take note whether somebody sees the view."""
        with self.lock:
            self._is_seen = seen
        self._turns.pass_on()

    @property
    def in_flight(self) -> int:
        """Images that the page will acknowledge soon: none of a view that nobody sees or that does not answer."""
        if not self._is_seen or self._clock() - max(self._last_acknowledged, self._last_sent) > ACK_TIMEOUT:
            return 0
        return self._sent - self._acknowledged

    def close(self) -> None:
        """Stop sending."""
        with self.lock:
            self._closed, self._pending = True, None
            self._acknowledged = self._sent
        self._turns.pass_on()

    def send_pending(self) -> bool:
        """Send the pending image, if there is one and it is due; return whether it was sent."""
        with self.lock:
            if self._pending is None or self._closed or not self._is_due():
                return False
            self._send_now()
            return True

    def _send_now(self) -> None:
        compose, self._pending = self._pending, None
        if compose is None or self._closed:
            return
        self._last_sent = self._clock()
        if self._sent == self._acknowledged:
            self._last_acknowledged = self._last_sent  # all images were acknowledged: the timeout starts now
        image = compose()
        transparent = image.ndim == 3 and image.shape[2] == 4
        self._put(encode_png(image) if transparent else encode_jpeg(image))

    def _is_due(self) -> bool:
        now = self._clock()
        if not self._is_seen:
            return now - self._last_sent >= UNSEEN_PERIOD
        if self._sent > self._acknowledged:  # otherwise no acknowledgement would trigger this image, perhaps the last
            if now - self._last_sent < MIN_PERIOD:
                return False
            if self._sent - self._acknowledged >= MAX_IN_FLIGHT:
                return now - self._last_acknowledged > ACK_TIMEOUT and now - self._last_sent >= UNACKNOWLEDGED_PERIOD
        return self._turns.take(self)

    def _put(self, data: bytes) -> None:
        if not self._closed:
            self._sent += 1
            self._send(data, self._sent)
