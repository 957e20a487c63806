"""FrameView: a picture in the page, and where the mouse is on it. The only file that imports ipyevents.

All that is to be seen is in the picture itself, marks and boxes too. So a reloaded page, a second page and a front end
without ipyevents show the same picture, and lose the mouse at most. A canvas of ipycanvas over the picture would report the
mouse as well, but it keeps the wheel, all keys (Shift+Enter, Tab) and touches for itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ipywidgets
import numpy as np
import traitlets
from ipyevents import Event

from .encode import png
from .pump import Pump, dispose

HOVER_PERIOD = 40  # milliseconds between two reports of a moving mouse
GESTURES = {"mousedown": "press", "mousemove": "move", "mouseup": "release", "mouseleave": "leave", "wheel": "wheel"}


class FrameView(ipywidgets.Image):
    """A picture of fixed size in pixels that reports clicks and hovering.

    Parameters
    ----------
    alt : str
        What the picture shows, for those who cannot see it.
    on_click, on_hover : callable(x, y)
        Called with coordinates in the picture's own pixels; `on_hover` with (None, None) when the mouse leaves.
    on_gesture : callable(kind, x, y, event)
        Called with "press", "move", "release", "leave" or "wheel", where the mouse is, and what else the page says of it,
        such as ``shiftKey`` and ``deltaY``. The wheel then no longer scrolls the page.
    """

    # The page reads a widget's tooltip, here the accessible name, only beside a description, which Image lacks.
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
        self.layout.visibility = "hidden"  # until there is a picture
        self.layout.flex = "0 0 auto"
        self.layout.margin = "0"
        self.pump = Pump(self)
        self.array: np.ndarray | None = None
        self._size: tuple[int, int] | None = None  # (height, width) in the page
        self._on_click, self._on_hover, self._on_gesture = on_click, on_hover, on_gesture
        self._mice: list[Event] = []
        if on_click:
            self._watch(["click"], 0)
        if on_hover:
            self._watch(["mousemove", "mouseleave"], HOVER_PERIOD)
        if on_gesture:
            self._watch(["mousedown", "mouseup", "mouseleave", "dragstart"], 0, keep=True)
            self._watch(["wheel"], HOVER_PERIOD, keep=True)
            self._watch(["mousemove"], HOVER_PERIOD, keep=True)

    def _watch(self, events: list[str], wait: int, *, keep: bool = False) -> None:
        mouse = Event(source=self, watched_events=events, wait=wait, prevent_default_action=keep)
        mouse.on_dom_event(self.on_mouse)
        self._mice.append(mouse)

    def on_mouse(self, event: dict[str, Any]) -> None:
        """Hand on what the page reports: a click, a move, or that the mouse has left."""
        if self._on_gesture is not None:
            if event["type"] in GESTURES:
                self._on_gesture(GESTURES[event["type"]], event["relativeX"], event["relativeY"], event)
        elif event["type"] == "click":
            self._on_click(event["relativeX"], event["relativeY"])
        elif event["type"] == "mousemove":
            self._on_hover(event["relativeX"], event["relativeY"])
        else:
            self._on_hover(None, None)

    def share(self, x: float | None, y: float | None) -> tuple[float, float] | tuple[None, None]:
        """Where a point is, as shares of height and width; (None, None) for none, or where no picture is."""
        if x is None or y is None or self._size is None:
            return None, None
        return y / self._size[0], x / self._size[1]

    @property
    def alt(self) -> str:
        """What the picture shows, in words."""
        return self.tooltip or ""

    @alt.setter
    def alt(self, text: str) -> None:
        self.tooltip = text or None

    def show(self, image: np.ndarray) -> None:
        """Show an (H, W, 3 or 4) uint8 picture exactly, pixel for pixel."""
        self._fit(image)
        self.pump.show(png(image), "png")

    def stream(self, compose: Callable[[], np.ndarray], size: tuple[int, int] | None = None) -> None:
        """Show a picture that will soon be followed by another; `compose` is called only if it is this one's turn.

        With a `size` (height, width) the page enlarges it to that, which costs the kernel nothing.
        """

        def later() -> np.ndarray:
            image = compose()
            self._fit(image, size)
            return image

        self.pump.offer(later)

    def _fit(self, image: np.ndarray, size: tuple[int, int] | None = None) -> None:
        height, width = size or image.shape[:2]
        if self._size != (height, width):
            self._size = (height, width)
            self.layout.width, self.layout.height = f"{width}px", f"{height}px"
            self.layout.visibility = "visible"
        self.array = image

    def close(self) -> None:
        """Remove the picture from every page."""
        self.pump.close()
        for mouse in self._mice:
            dispose(mouse)
        super().close()
