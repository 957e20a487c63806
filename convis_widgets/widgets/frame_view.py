"""FrameView: a picture in the page, and where the mouse is on it. The only file that imports ipycanvas.

All that is to be seen is in the picture itself, marks and boxes too; the canvas on top is transparent, never drawn on, and
only takes the mouse. So a reloaded page, a second page and a front end without ipycanvas all show the same picture,
and none of ipycanvas's drawing state (shared by all canvases and all threads, lost on reload) can go wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets
import numpy as np
import traitlets
from ipycanvas import Canvas

from .encode import png
from .pump import Pump, dispose


class Picture(ipywidgets.Image):
    """An Image with a text for those who cannot see it: its `tooltip` becomes the picture's accessible name.

    The page reads a widget's tooltip only beside a description, which Image lacks, and fails to draw it otherwise.
    """

    description = traitlets.Unicode("").tag(sync=True)


class FrameView(ipywidgets.GridBox):
    """A picture of fixed size in pixels that reports clicks and hovering.

    Parameters
    ----------
    alt : str
        What the picture shows, for those who cannot see it.
    on_click, on_hover : callable(x, y)
        Called with coordinates in the picture's own pixels; `on_hover` with (None, None) when the mouse leaves.
    """

    def __init__(
        self,
        alt: str = "",
        *,
        on_click: Callable[[float, float], None] | None = None,
        on_hover: Callable[[float | None, float | None], None] | None = None,
    ) -> None:
        self.picture = Picture(format="png", value=b"", tooltip=alt or None)
        self.pump = Pump(self.picture)
        self.array: np.ndarray | None = None
        parts: list[ipywidgets.Widget] = [self.picture]
        self.pad: Canvas | None = None
        if on_click or on_hover:
            self.pad = Canvas(width=1, height=1)
            parts.append(self.pad)
        for part in parts:
            part.layout.grid_area = "1 / 1 / 2 / 2"
            part.layout.margin = "0"
        super().__init__(parts)
        self.layout.visibility = "hidden"  # until there is a picture
        self.layout.flex = "0 0 auto"
        self.layout.overflow = "visible"
        if self.pad is not None and on_click:
            self.pad.on_mouse_down(on_click)
        if self.pad is not None and on_hover:
            self.pad.on_mouse_move(on_hover)
            self.pad.on_mouse_out(lambda x, y: on_hover(None, None))

    @property
    def alt(self) -> str:
        """What the picture shows, in words."""
        return self.picture.tooltip or ""

    @alt.setter
    def alt(self, text: str) -> None:
        self.picture.tooltip = text or None

    def show(self, image: np.ndarray) -> None:
        """Show an (H, W, 3 or 4) uint8 picture exactly, pixel for pixel."""
        self._fit(image)
        self.pump.show(png(image), "png")

    def stream(self, compose: Callable[[], np.ndarray]) -> None:
        """Show a picture that will soon be followed by another; `compose` is called only if it is this one's turn."""

        def later() -> np.ndarray:
            image = compose()
            self._fit(image)
            return image

        self.pump.offer(later)

    def _fit(self, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        if self.array is None or self.array.shape[:2] != (height, width):
            for part in (self, *self.children):
                part.layout.width, part.layout.height = f"{width}px", f"{height}px"
            if self.pad is not None:
                self.pad.width, self.pad.height = width, height
            self.layout.visibility = "visible"
        self.array = image

    def close(self) -> None:
        """Remove the picture from every page."""
        self.pump.close()
        for part in self.children:
            dispose(part)
        super().close()
