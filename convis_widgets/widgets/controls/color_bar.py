"""ColorBar: a color scale with the values at its ends."""

from __future__ import annotations

import ipywidgets
import numpy as np

from ..drawing.colors import COLORMAPS
from ..drawing.compose import append_color_bar
from .frame_view import FrameView
from .parts import Parts


class ColorBar(Parts, ipywidgets.HBox):
    """A color scale with the values at its ends."""

    def __init__(self) -> None:
        self.low, self.high = ipywidgets.Label(""), ipywidgets.Label("", layout={"margin": "0 0 0 6px", "flex": "0 0 auto"})
        self.low.layout.margin, self.low.layout.flex = "0 6px 0 0", "0 0 auto"
        self.bar = FrameView("color scale")
        super().__init__([self.low, self.bar, self.high], layout={"align_items": "center"})
        self._colormap = ""

    def show(self, colormap: str, low: float, high: float, *, more: bool = False) -> None:
        """Show a color map and its limits.

        Parameters
        ----------
        colormap : str
            A name in `COLORMAPS`.
        low, high : float
            Values at the ends.
        more : bool
            Whether there are values above `high`, which have the same color.
        """
        if colormap != self._colormap:
            self._colormap = colormap
            self.bar.show(np.repeat(COLORMAPS[colormap][None, ::3], 12, axis=0))
        self.low.value, self.high.value = f"{low + 0.0:.3g}", f"{high + 0.0:.3g}{' or more' if more else ''}"

    def append_to(self, image: np.ndarray) -> np.ndarray:
        """Image (H, W, 3) with this color bar drawn below it, for pages without widgets."""
        return append_color_bar(image, COLORMAPS[self._colormap], self.low.value, self.high.value)
