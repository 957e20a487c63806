"""ColorBar: a color scale with the values at its ends."""

from __future__ import annotations

import ipywidgets
import numpy as np

from ..drawing.colors import COLORMAPS
from ..drawing.compose import append_color_bar
from .frame_view import FrameView
from .parts import Parts

HEIGHT = 10  # pixels


class ColorBar(Parts, ipywidgets.VBox):
    """A color scale with the values at its ends below it.

    Parameters
    ----------
    width : int
        In pixels.
    """

    def __init__(self, width: int = 192) -> None:
        self.low, self.high = (ipywidgets.Label("", layout={"margin": "0", "flex": "0 0 auto"}) for _ in range(2))
        self.bar = FrameView("color scale")
        self._labels = ipywidgets.HBox([self.low, self.high], layout={"justify_content": "space-between"})
        super().__init__([self.bar, self._labels], layout={"margin": "4px 0 0 0", "flex": "0 0 auto"})
        self._colormap = ""
        self.set_width(width)

    def set_width(self, width: int) -> None:
        """Make it as wide as an image, in pixels."""
        self.layout.width = self._labels.layout.width = f"{width}px"
        self._width = width
        self._draw()

    def _draw(self) -> None:
        if self._colormap:
            steps = np.linspace(0, len(COLORMAPS[self._colormap]) - 1, self._width).round().astype(int)
            self.bar.show(np.repeat(COLORMAPS[self._colormap][None, steps], HEIGHT, axis=0))

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
            self._draw()
        self.low.value, self.high.value = f"{low + 0.0:.3g}", f"{high + 0.0:.3g}{' or more' if more else ''}"

    def append_to(self, image: np.ndarray) -> np.ndarray:
        """Image (H, W, 3) with this color bar drawn below it, for pages without widgets."""
        return append_color_bar(image, COLORMAPS[self._colormap], self.low.value, self.high.value)
