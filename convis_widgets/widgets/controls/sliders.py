"""Controls for knobs, and comparison of their values with the rounding of sliders taken into account."""

from __future__ import annotations

import math
from typing import Any

import ipywidgets

from ...core.knob import Knob

MAX_SLIDER_STEPS = 1000  # more values get a number field, since a slider cannot reach each of them


def make_control(description: str, knob: Knob, value: Any, *, high: float | None = None) -> ipywidgets.Widget:
    """Make the control for a knob: a menu for words, a slider for a range of numbers, a check box for a flag.

    Parameters
    ----------
    description : str
        Label of the control.
    knob : Knob
    value : object
        Initial value.
    high : float, optional
        Where a slider ends if the range of the knob goes further, e.g. at the side of the image.
    """
    if knob.choices:
        return ipywidgets.Dropdown(options=knob.choices, value=value, description=description)
    if bool in knob.types:
        return ipywidgets.Checkbox(value, description=description, indent=True)
    low = 0 if knob.low is None else knob.low
    high = min((end for end in (knob.high, high) if end is not None), default=None)
    if isinstance(value, int) and isinstance(low, int):
        if high is None or high - low > MAX_SLIDER_STEPS:
            return ipywidgets.BoundedIntText(value, low, high or 2**31 - 1, description=description)
        return ipywidgets.IntSlider(value, low, high, description=description, continuous_update=False)
    if high is None:
        return ipywidgets.FloatText(value, description=description)
    if knob.log:
        ends = {"min": math.log10(low or 1e-6), "max": math.log10(high), "step": 0.001}
        return ipywidgets.FloatLogSlider(value, **ends, description=description)
    step = (high - low) / 500  # the page rounds values to steps
    return ipywidgets.FloatSlider(value, min=low, max=high, step=step, description=description, readout_format=".3g")


def equal_after_rounding(slider: ipywidgets.Widget, new: float, value: float) -> bool:
    """Whether `new`, as reported by a control, is `value` up to the rounding of the page to the steps of a slider."""
    if isinstance(slider, ipywidgets.FloatLogSlider):
        low = slider.base**slider.min
        return abs(math.log(max(new, low), slider.base) - math.log(max(value, low), slider.base)) <= 0.501 * slider.step
    if isinstance(slider, ipywidgets.FloatSlider):
        return abs(new - value) <= 0.501 * slider.step
    return new == value


def set_bounded(field: ipywidgets.BoundedIntText, most: int, value: int) -> None:
    """Set value and upper limit of a number field. A lower limit set first would change the value."""
    field.max = max(most, field.max)
    field.value, field.max = value, most
