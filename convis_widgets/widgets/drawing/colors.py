"""Color maps: viridis for unsigned values, the diverging balance for signed values, always centered on zero.

Both are perceptually ordered and readable for the color-blind. They are defined here by anchor points, so that no plotting
library is needed.
"""

from __future__ import annotations

import numpy as np

# Evenly spaced anchor points. viridis: S. van der Walt and N. Smith, 2015, dedicated to the public domain (CC0).
# balance: blue - white - red, of equal lightness on both sides, after K. Moreland, "Diverging color maps for scientific
# visualization", 2009, with white in the middle, so that zero blends into the page.
_ANCHORS = {
    "viridis": (
        "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e 1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725"
    ),
    "balance": (
        "053061 134b87 2166ac 3580b9 4e9ac6 82bbd9 b2d5e7 d9e9f1 f7f7f7 fbe3d5 f8c4aa f1a284 e08064 cb5a4b b2182b "
        "8c0d25 67001f"
    ),
    "gray": "000000 ffffff",
}


def _table(anchors: str) -> np.ndarray:
    points = np.array([[int(code[i : i + 2], 16) for i in (0, 2, 4)] for code in anchors.split()], np.float32)
    positions = np.linspace(0, len(points) - 1, 255)  # an odd number, so that one color is the middle
    channels = [np.interp(positions, np.arange(len(points)), points[:, c]) for c in range(3)]
    return np.stack(channels, 1).round().astype(np.uint8)


COLORMAPS: dict[str, np.ndarray] = {name: _table(anchors) for name, anchors in _ANCHORS.items()}
"""Color maps by name, (255, 3) uint8 each: ``viridis`` for unsigned values, ``balance`` for signed values, ``gray``."""


def value_range(values: np.ndarray, *, signed: bool = False) -> tuple[float, float]:
    """Range (low, high) of a color bar: the range of the finite values, or symmetric about zero if `signed`.

    (0, 0) if no value is finite. The range is empty if all values are equal.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return (0.0, 0.0)
    low, high = float(finite.min()), float(finite.max())
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    return low, high


def normalize_values(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values scaled from [low, high] to [0, 1] and clipped, float32; 0 for NaN, and everywhere if the range is empty."""
    if high <= low:
        return np.zeros(np.shape(values), np.float32)
    with np.errstate(over="ignore"):
        scaled = np.clip((np.asarray(values, np.float32) - low) / (high - low), 0, 1)
    return np.nan_to_num(scaled, nan=0.0)


def colorize(values: np.ndarray, cmap: str = "viridis", low: float | None = None, high: float | None = None) -> np.ndarray:
    """Colors of values, by a color map.

    Parameters
    ----------
    values : array of any shape
    cmap : str
        A name in `COLORMAPS`. ``balance`` is centered on zero unless a range is given.
    low, high : float, optional
        Values at the ends of the color map; the range of the values by default. If that is empty, all values get the lowest
        color, or the middle color of ``balance``.

    Returns
    -------
    uint8 array of shape ``values.shape + (3,)``

    Raises
    ------
    ValueError
        There is no color map `cmap`.

    Examples
    --------
    >>> colorize(np.array([-2.0, 0.0, 1.0]), "balance")[1]
    array([247, 247, 247], dtype=uint8)
    """
    if cmap not in COLORMAPS:
        raise ValueError(f"no color map {cmap!r}; choose one of {', '.join(COLORMAPS)}")
    if low is None or high is None:
        lowest, highest = value_range(values, signed=cmap == "balance")
        low, high = lowest if low is None else low, highest if high is None else high
    flat = cmap == "balance" and high <= low
    positions = np.full(np.shape(values), 0.5) if flat else normalize_values(values, low, high)
    return COLORMAPS[cmap][(positions * 254 + 0.5).astype(np.uint8)]
