"""HeatPanel: one method's map with its raw range, and below it the map over the picture, or what it cuts out."""

from __future__ import annotations

from collections.abc import Callable

import ipywidgets
import numpy as np

from ..core import Frame, value_range
from .controls import ColorBar, note
from .encode import below, enlarge
from .frame_view import FrameView
from .heat import colormap, cut_out, in_colors, masked, outlined, overlaid
from .methods import METHODS

SIDE = 256  # pixels of a picture
ABOVE = 102  # pixels of what stands above a map


class HeatPanel(ipywidgets.Box):
    """A column of a SaliencyViewer. Knows how to draw a Frame, and nothing of how it is made.

    Parameters
    ----------
    method : str
        One of `METHODS`.
    on_hover : callable(row, column)
        Called with the share of height and width where the mouse is, (None, None) when it leaves.
    """

    def __init__(self, method: str, on_hover: Callable[[float | None, float | None], None]) -> None:
        self.menu = ipywidgets.Dropdown(options=list(METHODS), value=method, tooltip="the method")
        self.menu.layout.width = f"{SIDE - 36}px"
        self.remove = ipywidgets.Button(icon="times", tooltip="Take this map away", layout={"width": "32px"})
        self.caption = ipywidgets.HTML(layout={"min_height": "68px"})  # room for three lines
        self.under = ipywidgets.HTML(layout={"min_height": "28px"})
        self.map_view, self.over_view = (
            FrameView(on_hover=lambda x, y: on_hover(*self.map_view.share(x, y))) for _ in range(2)
        )
        self.scale, self.range = ColorBar(), ipywidgets.Label("")
        head = ipywidgets.HBox([self.menu, self.remove])
        self._parts = [
            ipywidgets.VBox([head, self.caption, self.map_view, self.scale, self.range]),
            ipywidgets.VBox([self.under, self.over_view]),
        ]
        for part in self._parts:
            part.layout.width, part.layout.margin = f"{SIDE + 4}px", "0 8px 0 0"
        super().__init__(self._parts)
        self.layout.align_items = "flex-start"
        self.frame: Frame | None = None
        self.text = self.under_text = ""

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.menu.value

    def arrange(self, *, alone: bool) -> None:
        """Side by side if there is no other panel, else one below the other."""
        self.layout.flex_flow = "row wrap" if alone else "column"
        self.under.layout.min_height = f"{ABOVE}px" if alone else "28px"
        self.remove.layout.display = "none" if alone else ""

    @property
    def limits(self) -> tuple[float, float]:
        """The raw values at the two ends of the color scale."""
        if self.frame is None:
            return (0.0, 0.0)
        return METHODS[self.method].limits(self.frame.heat)

    def show(self, frame: Frame, caption: str, view: str, opacity: float, share: float, *, streaming: bool = False) -> None:
        """Draw a Frame; see `SaliencyViewer` for the words."""
        self.frame, self.text = frame, caption
        for target, compose in ((self.map_view, self._map), (self.over_view, lambda: self._over(view, opacity, share))):
            if streaming:
                target.stream(compose)
            else:
                target.show(compose())
        low, high = self.limits
        least, most = value_range(frame.heat)
        self.scale.show(colormap(METHODS[self.method].signed), low, high, more=most > high)
        self.range.value = f"values from {least:.3g} to {most:.3g}"
        self.under_text = self._under(view, share)
        self.caption.value, self.under.value = note(caption), note(self.under_text)
        self.map_view.alt = f"{caption}; {self.range.value}"
        self.over_view.alt = self.under_text

    @property
    def page(self) -> np.ndarray:
        """What is to be seen, as one picture for a page without widgets; only after `show`."""
        what = self.under_text.partition(":")[0]
        return below([("", self.scale.under(self.map_view.array)), (what, self.over_view.array)])

    def clear(self, sentence: str = "") -> None:
        """Show no map, and say why."""
        if self.frame is None and self.text == sentence and self.map_view.array is not None:
            return
        self.frame, self.text, self.under_text = None, sentence, ""
        self.caption.value, self.under.value = note(sentence, error=True), ""
        blank = np.full((SIDE, SIDE, 3), 128, np.uint8)
        for view in (self.map_view, self.over_view):
            view.show(blank)
            view.alt = sentence

    def flush(self) -> None:
        """Send the pictures that wait."""
        for view in (self.map_view, self.over_view):
            view.pump.flush()

    def _map(self) -> np.ndarray:
        return enlarge(in_colors(self.frame.heat, self.limits, METHODS[self.method].signed), SIDE)

    def _mask(self, share: float) -> np.ndarray:
        frame = self.frame
        return frame.arrays["mask"] if "mask" in frame.arrays else METHODS[self.method].top(frame.heat, share)[0]

    def _over(self, view: str, opacity: float, share: float) -> np.ndarray:
        frame = self.frame
        if view == "mask":
            shown = masked(self._mask(share))
        elif view == "cut-out":
            shown = cut_out(frame.image, self._mask(share))
        elif "mask" in frame.arrays:
            shown = outlined(frame.image, frame.arrays["mask"])
        else:
            shown = overlaid(frame.image, frame.heat, self.limits, METHODS[self.method].signed, opacity)
        return enlarge(shown, SIDE)

    def _under(self, view: str, share: float) -> str:
        if "mask" in self.frame.arrays:
            return f"{view if view != 'overlay' else 'segment'}: {self.frame.arrays['mask'].mean():.0%} of the picture"
        if view == "overlay" and "rise" in self.frame.scalars:
            rise, error = self.frame.scalars["rise"], self.frame.scalars["completeness error"]
            return f"it rises by {rise:.3g}; the sum is off by {error:.2g}"
        if view == "overlay":
            return "the map over the picture"
        mask, bound = METHODS[self.method].top(self.frame.heat, share)
        return f"{view}: where the map is {bound:.3g} or more, {mask.mean():.0%} of the picture"
