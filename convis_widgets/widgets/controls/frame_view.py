"""FrameView: an image that reports mouse events. The only file that imports ipyevents.

Marks and boxes are drawn into the image. A reloaded page, a second page and a front end without ipyevents therefore show the
same image, and lose at most the mouse events. A canvas of ipycanvas over the image could report the mouse as well, but it
captures the wheel, all keys (Shift+Enter, Tab) and touches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
import numpy as np
import traitlets
from ipyevents import Event

from ...core.text import one_line
from ..drawing.encode import encode_png
from .parts import Parts, close_fully
from .pump import Pump

MAX_ALT = 500  # characters of a description
HOVER_PERIOD = 40  # milliseconds between two events while the mouse moves
GESTURES = {"mousedown": "press", "mousemove": "move", "mouseup": "release", "mouseleave": "leave", "wheel": "wheel"}


class FrameView(Parts, ipywidgets.Image):
    """An image, displayed pixel for pixel, that reports clicks and mouse moves.

    Parameters
    ----------
    alt : str
        Description of the image for screen readers.
    on_click : callable(x, y), optional
        Coordinates are in pixels of the image.
    on_hover : callable(x, y), optional
        Called with (None, None) when the mouse leaves the image.
    on_gesture : callable(kind, x, y, event), optional
        Called with "press", "move", "release", "leave" or "wheel", the position, and the event of the page, which has keys
        such as ``shiftKey`` and ``deltaY``. The wheel does not scroll the page then, and the other callbacks are not called.
    """

    # The page reads a widget's tooltip, here the accessible name, only next to a description, which Image lacks.
    description = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        alt: str = "",
        *,
        on_click: Callable[[float, float], None] | None = None,
        on_hover: Callable[[float | None, float | None], None] | None = None,
        on_gesture: Callable[[str, float, float, dict[str, Any]], None] | None = None,
    ) -> None:
        super().__init__(format="png", value=b"", tooltip=alt or None)
        self.layout.visibility = "hidden"  # until there is an image
        self.layout.flex = "0 0 auto"
        self.layout.margin = "0"
        self.pump = Pump(self)
        self.array: np.ndarray | None = None
        self._size: tuple[int, int] | None = None  # (height, width) in the page
        self._on_click, self._on_hover, self._on_gesture = on_click, on_hover, on_gesture
        self._event_sources: list[Event] = []
        if on_click:
            self._watch(["click"], 0)
        if on_hover:
            self._watch(["mousemove", "mouseleave"], HOVER_PERIOD)
        if on_gesture:
            self._watch(["mousedown", "mouseup", "mouseleave", "dragstart"], 0, prevent_default=True)
            self._watch(["wheel"], HOVER_PERIOD, prevent_default=True)
            self._watch(["mousemove"], HOVER_PERIOD, prevent_default=True)

    def _watch(self, events: list[str], wait: int, *, prevent_default: bool = False) -> None:
        source = Event(source=self, watched_events=events, wait=wait, prevent_default_action=prevent_default)
        source.on_dom_event(self.on_mouse)
        self._event_sources.append(source)

    def on_mouse(self, event: dict[str, Any]) -> None:
        """Call the callbacks for a mouse event of the page."""
        kind = event["type"]
        if self._on_gesture is not None:
            if kind in GESTURES:
                self._on_gesture(GESTURES[kind], event["relativeX"], event["relativeY"], event)
        elif kind == "click":
            if self._on_click is not None:
                self._on_click(event["relativeX"], event["relativeY"])
        elif self._on_hover is not None:
            if kind == "mousemove":
                self._on_hover(event["relativeX"], event["relativeY"])
            else:
                self._on_hover(None, None)

    def relative_position(self, x: float | None, y: float | None) -> tuple[float, float] | tuple[None, None]:
        """Position (row, column) of a pixel as fractions of height and width; (None, None) without a pixel or an image."""
        if x is None or y is None or self._size is None:
            return None, None
        return y / self._size[0], x / self._size[1]

    @property
    def shown(self) -> np.ndarray:
        """The image shown last; ValueError before there is one."""
        if self.array is None:
            raise ValueError("this view shows no image yet")
        return self.array

    @property
    def alt(self) -> str:
        """Description of the image for screen readers."""
        return self.tooltip or ""

    @alt.setter
    def alt(self, text: str) -> None:
        self.tooltip = one_line(text, MAX_ALT) or None

    def show(self, image: np.ndarray) -> None:
        """Show an (H, W, 3 or 4) uint8 image exactly, as PNG."""
        self._fit(image)
        self.pump.show(encode_png(image), "png")

    def stream(self, compose: Callable[[], np.ndarray], size: tuple[int, int] | None = None) -> None:
        """Show one of a stream of images, unless the next one arrives before the page is ready for this one; see `Pump`.

        Parameters
        ----------
        compose : callable() -> (H, W, 3 or 4) uint8 array
            Called only if the image is shown.
        size : (int, int), optional
            Height and width to which the page enlarges the image, at no cost for the kernel.
        """

        def compose_and_fit() -> np.ndarray:
            image = compose()
            self._fit(image, size)
            return image

        self.pump.offer(compose_and_fit)

    def _fit(self, image: np.ndarray, size: tuple[int, int] | None = None) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
            raise ValueError(
                f"the image is {image.dtype} of shape {image.shape}; a view shows uint8 of shape (H, W, 3 or 4), see "
                "drawing.encode.to_rgb_uint8"
            )
        height, width = size or image.shape[:2]
        if self._size != (height, width):
            self._size = (height, width)
            self.layout.width, self.layout.height = f"{width}px", f"{height}px"
            self.layout.visibility = "visible"
        self.array = image

    def close(self) -> None:
        """Remove the image from all pages."""
        self.pump.close()
        for source in self._event_sources:
            close_fully(source)
        super().close()
