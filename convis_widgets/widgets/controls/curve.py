"""Curve: scalars of a Run over its steps. The only file that imports bqplot."""

from __future__ import annotations

import bqplot
import ipywidgets
import numpy as np

from .parts import Parts, close_fully

LOG_SCALE_RATIO = 200  # largest by smallest value from which the axis is logarithmic
MAX_POINTS = 500  # of a curve, approximately; at most twice as many are drawn


class Curve(Parts, ipywidgets.VBox):
    """Curve of one of several scalars over the steps, chosen by a menu.

    Parameters
    ----------
    default : str
        Name of the scalar shown first; the last one if there is no such scalar.
    """

    def __init__(self, default: str = "") -> None:
        self._default = default
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
        """Remove all values."""
        self._steps, self._values = [], {}

    def add(self, step: int, scalars: dict[str, float]) -> None:
        """Append the scalars of one step; they are shown at the next `draw`."""
        self._steps.append(step)
        for name in {**self._values, **scalars}:
            values = self._values.setdefault(name, [float("nan")] * (len(self._steps) - 1))
            values.append(scalars.get(name, float("nan")))

    def draw(self) -> None:
        """Draw the chosen curve."""
        names = list(self._values)
        if list(self.menu.options) != names:
            previous = self.menu.value
            self.menu.options = names
            preferred = [name for name in (previous, self._default) if name in names]
            self.menu.value = [*preferred, *reversed(names), None][0]
        values = self._values.get(self.menu.value, [])
        stride = max(1, len(values) // MAX_POINTS)
        with self.line.hold_sync():
            self.line.x = np.array(self._steps[: len(values)][::stride])
            self.line.y = np.array(values[::stride])
        finite = self.line.y[np.isfinite(self.line.y)]
        log = bool(len(finite) > 0 and finite.min() > 0 and finite.max() > LOG_SCALE_RATIO * finite.min())
        if self.line.scales["y"] is not self._scales[log]:
            self.figure.axes[1].scale = self._scales[log]
            self.line.scales = {**self.line.scales, "y": self._scales[log]}
        for axis, coordinates in zip(self.figure.axes, (self.line.x, self.line.y), strict=True):
            finite = coordinates[np.isfinite(coordinates)]
            ticks = log_ticks if log and axis.orientation == "vertical" else linear_ticks
            axis.tick_values = ticks(finite.min(), finite.max()) if len(finite) else None

    def close(self) -> None:
        """Remove the curve from all pages."""
        super().close()
        for scale in self._scales.values():
            close_fully(scale)


class _Figure(bqplot.Figure):
    """A bqplot Figure that closes its axes, marks and scales with itself."""

    def close(self) -> None:
        """Remove the figure from all pages."""
        parts = [*self.axes, *self.marks, self.scale_x, self.scale_y, *self.marks[0].scales.values()]
        super().close()
        for part in parts:
            close_fully(part)


def log_ticks(low: float, high: float, max_count: int = 5) -> np.ndarray:
    """Powers of ten from `low` to `high`, evenly spaced on a logarithmic axis, at most `max_count`.

    Examples
    --------
    >>> log_ticks(0.002, 3000).tolist()
    [0.01, 1.0, 100.0]
    """
    first, last = int(np.ceil(np.log10(low))), int(np.floor(np.log10(high)))
    return 10.0 ** np.arange(first, last + 1, max(1, -(-(last - first + 1) // max_count)))


def linear_ticks(low: float, high: float, max_count: int = 5) -> np.ndarray:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`, about `max_count` at most.

    Examples
    --------
    >>> linear_ticks(1, 256).tolist()
    [100.0, 200.0]
    """
    if not high > low:
        return np.array([low])
    power = 10.0 ** np.floor(np.log10((high - low) / max_count))
    step = next(step for factor in (1, 2, 5, 10) if (high - low) / (step := factor * power) <= max_count)
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
