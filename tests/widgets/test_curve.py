from __future__ import annotations

import numpy as np
import pytest

from convis_widgets.widgets.controls.curve import LOG_SCALE_RATIO, MAX_POINTS, Curve, linear_ticks, log_ticks
from convis_widgets.widgets.controls.parts import close_fully


@pytest.mark.parametrize(("low", "high"), [(1, 256), (-0.5, 0.6), (0, 1e-7), (1e4, 1.01e4), (-300, 5), (0.999, 1.0)])
def test_linear_ticks_are_round_and_inside(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert ticks.min() >= low - 1e-12
    assert ticks.max() <= high + 1e-12
    step = np.diff(ticks)
    assert np.allclose(step, step[0])
    mantissa = step[0] / 10 ** np.floor(np.log10(step[0]) + 1e-9)
    assert any(np.isclose(mantissa, factor) for factor in (1, 2, 5))


def test_linear_ticks_of_single_value() -> None:
    assert linear_ticks(3, 3).tolist() == [3]


def test_curve_shows_last_quantity_until_another_is_chosen() -> None:
    curve = Curve()
    for step in range(1, 4):
        curve.add(step, {"logit": 2.0 * step, "objective": -step})
    curve.draw()
    assert curve.menu.options == ("logit", "objective")
    assert curve.menu.value == "objective"
    assert curve.line.x.tolist() == [1, 2, 3]
    assert curve.line.y.tolist() == [-1, -2, -3]
    curve.menu.value = "logit"
    assert curve.line.y.tolist() == [2, 4, 6]
    curve.add(4, {"logit": 8.0, "objective": -4, "l2": 1.0})
    curve.draw()
    assert curve.menu.value == "logit"
    curve.menu.value = "l2"
    assert np.isnan(curve.line.y[:3]).all()
    assert curve.line.y[3] == 1
    curve.clear()
    curve.draw()
    assert len(curve.line.y) == 0


def test_curve_limits_number_of_points() -> None:
    curve = Curve()
    for step in range(1, 5001):
        curve.add(step, {"objective": step})
    curve.draw()
    assert MAX_POINTS <= len(curve.line.x) < 2 * MAX_POINTS


def test_curve_keeps_steps_of_intermittent_quantity() -> None:
    curve = Curve()
    for step in range(1, 7):
        curve.add(step, {"loss": step, **({"style": 10.0 * step} if step in (2, 3, 6) else {})})
    curve.draw()
    curve.menu.value = "style"
    finite = np.isfinite(curve.line.y)
    assert curve.line.x[finite].tolist() == [2, 3, 6]
    assert curve.line.y[finite].tolist() == [20, 30, 60]
    assert curve.line.x.tolist() == [1, 2, 3, 4, 5, 6]


def test_curve_starts_with_default_quantity() -> None:
    curve = Curve("style")
    curve.add(1, {"style": 3.0, "tv": 2.0})
    curve.draw()
    assert curve.menu.value == "style"
    curve.menu.value = "tv"
    curve.add(2, {"style": 3.0, "tv": 1.0, "more": 0.0})
    curve.draw()
    assert curve.menu.value == "tv", "the chosen quantity stays"
    other = Curve("loss")
    other.add(1, {"style": 3.0, "tv": 2.0})
    other.draw()
    assert other.menu.value == "tv", "falls back to the last quantity"


def scale_types(curve: Curve) -> set[str]:
    """Scale types of line and axis."""
    return {type(curve.line.scales["y"]).__name__, type(curve.figure.axes[1].scale).__name__}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1.0, 1.01 * LOG_SCALE_RATIO], "LogScale"),
        ([1.0, 0.99 * LOG_SCALE_RATIO], "LinearScale"),
        ([0.0, 1000.0], "LinearScale"),
        ([-1.0, 1e5], "LinearScale"),
        ([float("nan"), 1e-7, 1e-3, float("inf")], "LogScale"),
        ([float("nan")], "LinearScale"),
    ],
)
def test_curve_uses_log_scale_for_steep_values(values: list[float], kind: str) -> None:
    curve = Curve()
    for step, value in enumerate(values, 1):
        curve.add(step, {"loss": value})
    curve.draw()
    assert scale_types(curve) == {kind}
    curve.clear()
    curve.add(1, {"loss": 1.0})
    curve.draw()
    assert scale_types(curve) == {"LinearScale"}, "the scale is chosen anew after clear"


def test_curve_chooses_scale_per_quantity() -> None:
    curve = Curve()
    for step, value in enumerate((1e-3, 1.0, 1e3), 1):
        curve.add(step, {"loss": value, "p": step / 10})
    curve.draw()
    assert scale_types(curve) == {"LinearScale"}
    curve.menu.value = "loss"
    assert scale_types(curve) == {"LogScale"}
    assert curve.figure.axes[1].tick_values.tolist() == [1e-3, 0.1, 10, 1000]
    curve.menu.value = "p"
    assert scale_types(curve) == {"LinearScale"}


@pytest.mark.parametrize("low", [1e-12, 3e-9, 1e-3, 0.02, 1.0, 7.0, 1e3, 1e6])
@pytest.mark.parametrize("times", [201, 1e3, 1e4, 3e5, 1e6, 1e9])
def test_log_ticks_are_inside_and_few(low: float, times: float) -> None:
    ticks = log_ticks(low, low * times)
    assert 1 <= len(ticks) <= 5
    assert ticks[0] >= low * (1 - 1e-12)
    assert ticks[-1] <= low * times * (1 + 1e-12)
    powers = np.log10(ticks)
    assert np.allclose(powers, np.round(powers), atol=1e-9)
    assert len({*np.round(np.diff(powers)).tolist()}) <= 1
    assert ticks[0] < 10.0001 * low, "the first power of ten is included"


def test_close_fully_releases_curve_widgets() -> None:
    from ipywidgets.widgets.widget import _instances

    before = {*_instances}
    curve = Curve()
    for step in range(1, 4):
        curve.add(step, {"loss": 10.0 ** (2 * step)})
    curve.draw()
    for child in curve.children:
        close_fully(child)
    close_fully(curve)
    assert {*_instances} == before
