"""FrameView: an image on a canvas of the page, with marks, that reports the pointer.

The page enlarges the image on request, draws marks over it, and marks the tile under the pointer by itself, so that a mark
follows the mouse at once also while the kernel is busy. The last image and its marks are part of the widget's state: a
reloaded page and a second page show them.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from ...core.text import one_line
from ..drawing.encode import draw_box, encode_png, smooth_size
from ..drawing.mosaic import Box, Tiles
from .parts import Parts
from .pump import Pump

MAX_ALT = 500  # characters of a description
GESTURES = ("press", "move", "release", "leave", "wheel")


class FrameView(Parts, anywidget.AnyWidget):
    """An image, displayed pixel for pixel, that reports clicks and mouse moves.

    Ctrl and the wheel, or two fingers, enlarge it; then it can be dragged. A double click shows all of it again.

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

    _esm, _css = ((Path(__file__).parent / f"frame_view.{kind}").read_text() for kind in ("js", "css"))

    value = traitlets.Bytes(b"", help="Encoded image.").tag(sync=True)
    serial = traitlets.Int(0, help="Number of the image.").tag(sync=True)
    size: traitlets.List[int] = traitlets.List([0, 0], help="Height and width in the page.").tag(sync=True)
    alt = traitlets.Unicode("", help="Description of the image for screen readers.").tag(sync=True)
    key = traitlets.Unicode(help="Name of the view in the page.").tag(sync=True)
    marks: traitlets.List[Any] = traitlets.List(help="Frames: dicts with box (top, left, bottom, right).").tag(sync=True)
    tiles: traitlets.Dict[str, Any] = traitlets.Dict(help="Tiles of which the page frames some by itself.").tag(sync=True)
    linked: traitlets.Dict[str, Any] = traitlets.Dict(help="Another view, where it frames boxes, too.").tag(sync=True)
    watched: traitlets.List[str] = traitlets.List(help="Kinds of events that the page reports.").tag(sync=True)

    def __init__(
        self,
        alt: str = "",
        *,
        on_click: Callable[[float, float], None] | None = None,
        on_hover: Callable[[float | None, float | None], None] | None = None,
        on_gesture: Callable[[str, float, float, dict[str, Any]], None] | None = None,
    ) -> None:
        watched = ["click"] * bool(on_click) + ["move", "leave"] * bool(on_hover)
        super().__init__(alt=alt, watched=[*GESTURES] if on_gesture else watched, key=uuid.uuid4().hex)
        self.layout.flex = "0 0 auto"
        self.layout.margin = "0"
        self.pump = Pump(self._send_image)
        self.array: np.ndarray | None = None
        self._next_size: tuple[int, ...] = (0, 0)  # of the array in the page
        self._next_marks: list[dict[str, Any]] = []
        self._next_tiles: dict[str, Any] = {}
        self._is_exact = False  # whether the page has the array, not a JPEG of it
        self._on_click, self._on_hover, self._on_gesture = on_click, on_hover, on_gesture
        self.on_msg(self._on_message)

    @traitlets.validate("alt")
    def _on_one_line(self, proposal: Any) -> str:
        return one_line(proposal.value, MAX_ALT)

    def _send_image(self, data: bytes, serial: int) -> None:
        with self.hold_sync():
            self.value, self.serial = data, serial
            self._send_layout()

    def _send_layout(self) -> None:
        """Send the size of the image and what is framed."""
        with self.hold_sync():
            self.size, self.marks, self.tiles = [*self._next_size], self._next_marks, self._next_tiles

    def _on_message(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        if "painted" in content:
            self.pump.acknowledge(content["painted"])
        elif "seen" in content:
            self.pump.set_seen(content["seen"])
        elif "event" in content:
            self.on_pointer(content["event"])
            if content["event"]["type"] == "click":
                self.send({"handled": "click"})  # the page frames what was clicked until then

    def on_pointer(self, event: dict[str, Any]) -> None:
        """Call the callbacks for an event of the page.

        Parameters
        ----------
        event : dict
            With type "click" or one of `GESTURES`, x and y.
        """
        kind = event["type"]
        if self._on_gesture is not None:
            self._on_gesture(kind, event["x"], event["y"], event)
        elif kind == "click":
            if self._on_click is not None:
                self._on_click(event["x"], event["y"])
        elif self._on_hover is not None:
            if kind == "move":
                self._on_hover(event["x"], event["y"])
            else:
                self._on_hover(None, None)

    def relative_position(self, x: float | None, y: float | None) -> tuple[float, float] | tuple[None, None]:
        """Position (row, column) of a pixel as fractions of height and width; (None, None) without a pixel or an image."""
        height, width = self.size
        return (None, None) if x is None or y is None or not height else (y / height, x / width)

    @property
    def shown(self) -> np.ndarray:
        """The image shown last, without marks; ValueError before there is one."""
        if self.array is None:
            raise ValueError("this view shows no image yet")
        return self.array

    def show(
        self,
        image: np.ndarray,
        *,
        boxes: Iterable[Box] = (),
        selected: Box | None = None,
        tiles: Tiles | None = None,
        side: int | None = None,
    ) -> None:
        """Show an image exactly, as PNG, with frames around boxes.

        Parameters
        ----------
        image : (H, W, 3 or 4) uint8 array
        boxes : iterable of (top, left, bottom, right)
            In pixels; their frames are part of a saved image, see `with_boxes`.
        selected : (top, left, bottom, right), optional
            Box of what is selected, which is not part of a saved image.
        tiles : Tiles, optional
            Parts of the image. The page frames the one under the pointer and the one that is clicked.
        side : int, optional
            Longer side to which the page resizes the image, at no cost for the kernel; for images without boxes and tiles.
        """
        marks: list[dict[str, Any]] = [{"box": [*map(float, box)]} for box in boxes]
        if selected is not None:
            marks.append({"box": [*map(float, selected)], "selection": True})
        with self.pump.lock:
            is_same = self._is_exact and self.array is not None and np.array_equal(image, self.array)
            self._fit(image, side)
            self._next_marks, self._next_tiles = marks, {} if tiles is None else asdict(tiles)
            if is_same:
                self.pump.discard()
                self._send_layout()
            else:
                self.pump.show(encode_png(image))
                self._is_exact = True

    def with_boxes(self) -> np.ndarray:
        """The image shown last, with the frames around its boxes, but without that of what is selected."""
        image = self.shown
        for mark in self._next_marks:
            if not mark.get("selection"):
                image = draw_box(image, mark["box"])
        return image

    def stream(self, compose: Callable[[], np.ndarray], side: int | None = None) -> None:
        """Show one of a stream of images, unless the next one arrives before the page is ready for this one; see `Pump`.

        Parameters
        ----------
        compose : callable() -> (H, W, 3 or 4) uint8 array
            Called only if the image is shown.
        side : int, optional
            Longer side to which the page resizes the image, at no cost for the kernel.
        """

        def compose_and_fit() -> np.ndarray:
            image = compose()
            self._fit(image, side)
            self._is_exact = False
            return image

        self.pump.offer(compose_and_fit)

    def _fit(self, image: np.ndarray, side: int | None) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
            raise ValueError(
                f"the image is {image.dtype} of shape {image.shape}; a view shows uint8 of shape (H, W, 3 or 4), see "
                "drawing.encode.to_rgb_uint8"
            )
        self.array, (height, width) = image, image.shape[:2]
        self._next_size = (height, width) if side is None else smooth_size(height, width, side)

    def close(self) -> None:
        """Remove the image from all pages."""
        self.pump.close()
        super().close()
