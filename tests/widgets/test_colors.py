from __future__ import annotations

import matplotlib
import numpy as np
import pytest

from convis_widgets.widgets.drawing.colors import COLORMAPS, colorize, normalize_values, value_range


def test_viridis_matches_matplotlib() -> None:
    theirs = matplotlib.colormaps["viridis"](np.linspace(0, 1, 255))[:, :3] * 255
    assert np.abs(COLORMAPS["viridis"] - theirs).max() < 8


def lightness(table: np.ndarray) -> np.ndarray:
    """CIE L* of sRGB colors, computed from the definition."""
    linear = np.where(table / 255 <= 0.04045, table / 255 / 12.92, ((table / 255 + 0.055) / 1.055) ** 2.4)
    y = linear @ [0.2126, 0.7152, 0.0722]
    return 116 * np.where(y > 0.008856, np.cbrt(y), y * 7.787 + 16 / 116) - 16


def test_colormap_lightness_is_monotonic_and_symmetric() -> None:
    assert (np.diff(lightness(COLORMAPS["viridis"])) > -0.2).all()  # colors are rounded to 8 bits
    balance = lightness(COLORMAPS["balance"])
    assert (np.diff(balance[:128]) > -0.2).all()
    assert (np.diff(balance[127:]) < 0.2).all()
    assert np.abs(balance - balance[::-1]).max() < 12


def test_balance_maps_zero_to_its_center() -> None:
    colors = colorize(np.array([-5.0, 0.0, 0.1]), "balance")
    assert colors[1].tolist() == [247, 247, 247]
    assert value_range(np.array([-5.0, 2.0]), signed=True) == (-5, 5)


def test_value_range_and_normalize_values_handle_nan_and_inf() -> None:
    assert value_range(np.array([np.nan, 2.0, -1.0, np.inf])) == (-1, 2)
    assert value_range(np.array([np.nan])) == (0, 0)
    assert normalize_values(np.full(3, 7.0), 7, 7).tolist() == [0, 0, 0]
    assert normalize_values(np.array([np.nan, -9.0, 9.0]), -1, 1).tolist() == [0, 0, 1]


def test_colorize_of_zeros_is_the_color_of_zero() -> None:
    assert (colorize(np.zeros(4)) == COLORMAPS["viridis"][0]).all()
    assert (colorize(np.zeros(4), "balance") == 247).all()


def test_colorize_rejects_unknown_colormap() -> None:
    with pytest.raises(ValueError, match="jet.*viridis"):
        colorize(np.zeros(2), "jet")
