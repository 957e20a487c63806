"""Plots: curves of numbers that a computation tells. The only file that imports bqplot."""

from __future__ import annotations

from collections.abc import Sequence

import bqplot
import ipywidgets
import numpy as np

from .pump import dispose

STEEP = 200  # how often the largest number contains the smallest where powers of ten are at equal distances
POINTS = 500  # of a curve, at most


class Curve(ipywidgets.VBox):
    """One of several numbers, as it changes from step to step; a menu says which, at first the one called `first`."""

    def __init__(self, first: str = "") -> None:
        self._first = first
        self._steps: list[int] = []
        self._values: dict[str, list[float]] = {}
        x, y = bqplot.LinearScale(), bqplot.LinearScale()
        self._scales = {False: y, True: bqplot.LogScale()}
        self.line = bqplot.Lines(scales={"x": x, "y": y}, colors=["#0072B2"], stroke_width=2)
        axes = [
            bqplot.Axis(scale=x, grid_lines="none"),
            bqplot.Axis(scale=y, orientation="vertical", tick_format=".3~g", tick_style={"font-size": "11px"}),
        ]
        margin = {"top": 8, "bottom": 24, "left": 56, "right": 12}
        self.figure = _Figure(marks=[self.line], axes=axes, fig_margin=margin, animation_duration=0)
        self.figure.layout.width, self.figure.layout.height = "330px", "180px"
        self.menu = ipywidgets.Dropdown(description="curve", layout={"width": "250px"})
        self.menu.observe(lambda _change: self.draw(), "value")
        super().__init__([self.menu, self.figure])

    def clear(self) -> None:
        """Begin anew."""
        self._steps, self._values = [], {}

    def add(self, step: int, values: dict[str, float]) -> None:
        """Take in what the numbers were; they are shown at the next `draw`."""
        self._steps.append(step)
        for name in {**self._values, **values}:
            earlier = self._values.setdefault(name, [float("nan")] * (len(self._steps) - 1))
            earlier.append(values.get(name, float("nan")))

    def draw(self) -> None:
        """Show what was taken in so far."""
        names: Sequence[str] = list(self._values)
        if tuple(self.menu.options) != tuple(names):
            kept = self.menu.value
            self.menu.options = names
            wanted = [name for name in (kept, self._first) if name in names]
            self.menu.value = [*wanted, *reversed(names), None][0]
        values = self._values.get(self.menu.value, [])
        every = max(1, len(values) // POINTS)
        with self.line.hold_sync():
            self.line.x = np.array(self._steps[: len(values)][::every])
            self.line.y = np.array(values[::every])
        finite = self.line.y[np.isfinite(self.line.y)]
        steep = len(finite) > 0 and finite.min() > 0 and finite.max() > STEEP * finite.min()
        if self.line.scales["y"] is not self._scales[steep]:
            self.figure.axes[1].scale = self._scales[steep]
            self.line.scales = {**self.line.scales, "y": self._scales[steep]}
        for axis, ends in zip(self.figure.axes, (self.line.x, self.line.y), strict=True):
            finite = ends[np.isfinite(ends)]
            ticks = powers_of_ten if steep and axis.orientation == "vertical" else round_numbers
            axis.tick_values = ticks(finite.min(), finite.max()) if len(finite) else None

    def close(self) -> None:
        """Remove it from every page."""
        super().close()
        for scale in self._scales.values():
            dispose(scale)


class _Figure(bqplot.Figure):
    """Closed, it takes along what it is made of."""

    def close(self) -> None:
        """Remove it from every page."""
        parts = [*self.axes, *self.marks, self.scale_x, self.scale_y, *self.marks[0].scales.values()]
        super().close()
        for part in parts:
            dispose(part)


def powers_of_ten(low: float, high: float, most: int = 5) -> np.ndarray:
    """Powers of ten from `low` to `high`, no more than `most`, evenly apart.

    >>> powers_of_ten(0.002, 3000).tolist()
    [0.01, 1.0, 100.0]
    """
    first, last = int(np.ceil(np.log10(low))), int(np.floor(np.log10(high)))
    return 10.0 ** np.arange(first, last + 1, max(1, -(-(last - first + 1) // most)))


def round_numbers(low: float, high: float, most: int = 5) -> np.ndarray:
    """Numbers from `low` to `high`, no more than `most`, at steps of 1, 2 or 5 times a power of ten.

    >>> round_numbers(1, 256).tolist()
    [100.0, 200.0]
    """
    if not high > low:
        return np.array([low])
    power = 10.0 ** np.floor(np.log10((high - low) / most))
    step = next(step for times in (1, 2, 5, 10) if (high - low) / (step := times * power) <= most)
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
