from __future__ import annotations

import numpy as np
import pytest

from convis_widgets.widgets.plots import POINTS, Curve, round_numbers


@pytest.mark.parametrize(("low", "high"), [(1, 256), (-0.5, 0.6), (0, 1e-7), (1e4, 1.01e4), (-300, 5), (0.999, 1.0)])
def test_round_numbers_are_round_and_inside(low: float, high: float) -> None:
    found = round_numbers(low, high)
    assert 2 <= len(found) <= 6
    assert found.min() >= low - 1e-12
    assert found.max() <= high + 1e-12
    step = np.diff(found)
    assert np.allclose(step, step[0])
    mantissa = step[0] / 10 ** np.floor(np.log10(step[0]) + 1e-9)
    assert any(np.isclose(mantissa, one) for one in (1, 2, 5))


def test_one_number_is_itself() -> None:
    assert round_numbers(3, 3).tolist() == [3]


def test_a_curve_shows_the_last_number_told_until_another_is_chosen() -> None:
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


def test_a_long_curve_is_thinned_out() -> None:
    curve = Curve()
    for step in range(1, 5001):
        curve.add(step, {"objective": step})
    curve.draw()
    assert POINTS <= len(curve.line.x) < 2 * POINTS
