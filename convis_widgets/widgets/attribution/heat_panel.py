"""HeatPanel: the map of one attribution method with its raw range, and the map over the image or what it selects."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets
import numpy as np

from ...core.attribution.method import ATTRIBUTION_METHODS, AttributionMethod
from ...core.runs.frame import Frame
from ..base.viewer import set_column_width
from ..controls.color_bar import ColorBar
from ..controls.frame_view import FrameView
from ..controls.parts import Parts
from ..controls.text import text_html
from ..drawing.colors import value_range
from ..drawing.compose import vstack_panels
from ..drawing.encode import enlarge
from ..drawing.heatmap import colorize_map, colormap_name, cut_out, darken_outside, mask_image, overlay_map
from .methods import method_color_limits, top_mask

MAP_SIDE = 256  # pixels of an image, if nothing else is known
HEAD_HEIGHT = 32  # pixels above a map
DISPLAYS = ("overlay", "mask", "cut-out")


class HeatPanel(Parts, ipywidgets.Box):
    """A column of a SaliencyViewer: draws Frames of one method.

    Parameters
    ----------
    method : str
        A name in `ATTRIBUTION_METHODS`.
    on_hover : callable(row, column)
        Called with the mouse position as fractions of height and width, (None, None) when it leaves.

    Attributes
    ----------
    frame : Frame or None
        The Frame shown.
    streamed : bool
        Whether it has to be drawn again: it was streamed, in reduced quality, or drawn in another size.
    """

    def __init__(self, method: str, on_hover: Callable[[float | None, float | None], None]) -> None:
        self.menu = ipywidgets.Dropdown(options=list(ATTRIBUTION_METHODS), value=method, tooltip="Attribution method")
        self.remove = ipywidgets.Button(icon="times", tooltip="Remove", layout={"width": "32px"})
        self.caption, self.detail_caption = ipywidgets.HTML(), ipywidgets.HTML()
        self.map_view, self.detail_view = (
            FrameView(on_hover=lambda x, y: on_hover(*self.map_view.relative_position(x, y))) for _ in range(2)
        )
        self.scale, self.range = ColorBar(MAP_SIDE), ipywidgets.HTML()
        self._head = ipywidgets.HBox([self.menu, self.remove], layout={"height": f"{HEAD_HEIGHT}px", "flex": "0 0 auto"})
        self._space = ipywidgets.Box(layout={"height": f"{HEAD_HEIGHT}px", "flex": "0 0 auto"})
        self._columns = ipywidgets.VBox(), ipywidgets.VBox()
        super().__init__(self._columns, layout={"align_items": "flex-start", "flex_flow": "row nowrap", "flex": "0 0 auto"})
        self.frame: Frame | None = None
        self.streamed = False
        self._side = MAP_SIDE
        self.text = self.detail_text = ""
        self.arrange(alone=True, side=MAP_SIDE)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.menu.value

    @property
    def views(self) -> tuple[FrameView, FrameView]:
        """The views of the map and of the detail."""
        return self.map_view, self.detail_view

    @property
    def limits(self) -> tuple[float, float]:
        """The raw values at the two ends of the color scale."""
        return (0.0, 0.0) if self.frame is None else method_color_limits(self._method, self.frame.heat, self.frame.scalars)

    @property
    def _method(self) -> AttributionMethod:
        return ATTRIBUTION_METHODS[self.method]

    def arrange(self, *, alone: bool, side: int) -> None:
        """Put map and detail side by side if this is the only panel, otherwise one below the other, in line with others.

        Parameters
        ----------
        alone : bool
        side : int
            Longer side of an image in pixels.
        """
        detail, texts = [self.detail_view, self.detail_caption], [self.caption, self.range]
        first, second = self._columns
        first.children = [self._head, self.map_view, self.scale, *(texts if alone else [*detail, *texts])]
        second.children = [self._space, *(detail if alone else [])]
        second.layout.display = "" if alone else "none"
        self.remove.layout.display = "none" if alone else ""
        self.menu.layout.width = f"{side - 42}px"
        self.scale.set_width(side)
        for column in self._columns:
            set_column_width(column, side)
        if side != self._side:
            self._side, self.streamed = side, True  # draw again

    def draw_map(self, frame: Frame, caption: str, *, streaming: bool = False) -> None:
        """Draw the map of a Frame with its color scale."""
        method = self._method
        self.frame, self.text, self.streamed = frame, caption, streaming
        low, high = limits = self.limits
        self._show(self.map_view, lambda: colorize_map(frame.heat, limits, method.signed), streaming)
        lowest, highest = value_range(frame.heat)
        self.scale.show(colormap_name(method.signed), low, high, more=highest > high)
        values = f"values from {lowest:.3g} to {highest:.3g}"
        self.range.value = text_html(values)
        self.caption.value = text_html(caption)
        self.map_view.alt = f"{caption}; {values}"

    def draw_detail(
        self, frame: Frame, display: str, opacity: float, mask_fraction: float, *, streaming: bool = False
    ) -> None:
        """Draw the map over the image, or the mask of its highest values, or what that cuts out; see `SaliencyViewer`."""
        limits, method = self.limits, self._method
        mask = frame.arrays.get("mask")

        def compose() -> np.ndarray:
            if display == "overlay" and mask is not None:
                return darken_outside(frame.image, mask)
            if display == "overlay":
                return overlay_map(frame.image, frame.heat, limits, method.signed, opacity)
            selected = top_mask(method, frame.heat, frame.scalars, mask_fraction)[0] if mask is None else mask
            return mask_image(selected) if display == "mask" else cut_out(frame.image, selected)

        self._show(self.detail_view, compose, streaming)
        self.detail_text = detail_caption(method, frame, display, mask_fraction)
        self.detail_caption.value = text_html(self.detail_text)
        self.detail_view.alt = self.detail_text

    def _show(self, view: FrameView, compose: Callable[[], np.ndarray], streaming: bool) -> None:
        side = self._side
        if streaming:
            view.stream(lambda: enlarge(compose(), side), side)
        else:
            view.show(enlarge(compose(), side), side=side)

    def clear(self, message: str = "") -> None:
        """Show gray in place of the map, and the reason."""
        if self.frame is None and self.text == message and self.map_view.array is not None and not self.streamed:
            return
        self.frame, self.text, self.detail_text, self.streamed = None, message, "", False
        self.caption.value, self.detail_caption.value = text_html(message, error=True), ""
        blank = np.full((self._side, self._side, 3), 128, np.uint8)
        for view in self.views:
            view.show(blank, side=self._side)
            view.alt = message

    def snapshot(self) -> np.ndarray:
        """The panel as one image for pages without widgets; only after a map was drawn."""
        assert self.map_view.array is not None
        assert self.detail_view.array is not None
        title = self.detail_text.partition(":")[0]
        return vstack_panels([("", self.scale.append_to(self.map_view.array)), (title, self.detail_view.array)])


def detail_caption(method: AttributionMethod, frame: Frame, display: str, mask_fraction: float) -> str:
    """What the detail of a panel shows, in words."""
    if "mask" in frame.arrays:
        return f"{'segment' if display == 'overlay' else display}: {frame.arrays['mask'].mean():.0%} of the image"
    if display == "overlay" and "rise" in frame.scalars:
        rise, error = frame.scalars["rise"], frame.scalars["completeness error"]
        return f"rise of {rise:.3g}; completeness error {error:.2g}"
    if display == "overlay":
        return "the map over the image"
    mask, threshold = top_mask(method, frame.heat, frame.scalars, mask_fraction)
    return f"{display}: map values of {threshold:.3g} or more, {mask.mean():.0%} of the image"
