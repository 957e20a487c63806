"""Color maps: numbers to colors, from a named table. Never jet.

Two maps suffice: viridis for amounts, a diverging one for signed values, always centered on zero. Both are
perceptually ordered and safe for the color-blind, and both are written down here as anchor points, so that the
core needs no plotting library.
"""

from __future__ import annotations

import numpy as np

# Evenly spaced anchor points. viridis: S. van der Walt and N. Smith, 2015, dedicated to the public domain (CC0).
# balance: blue - white - red of even lightness on both sides, after K. Moreland, "Diverging color maps for
# scientific visualization", 2009, with white in the middle so that "nothing" vanishes on a page.
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
    points = np.array([[int(word[i : i + 2], 16) for i in (0, 2, 4)] for word in anchors.split()], np.float32)
    at = np.linspace(0, len(points) - 1, 255)  # odd, so that there is a middle
    return np.stack([np.interp(at, np.arange(len(points)), points[:, c]) for c in range(3)], 1).round().astype(np.uint8)


COLORMAPS: dict[str, np.ndarray] = {name: _table(anchors) for name, anchors in _ANCHORS.items()}
"""Name -> (255, 3) uint8 table: ``viridis`` for amounts, ``balance`` for signed values, ``gray``."""


def value_range(values: np.ndarray, *, signed: bool = False) -> tuple[float, float]:
    """The (low, high) that a color bar should show: the values' own range, or symmetric about zero if `signed`.

    Values that are not finite do not count; a range of no width stays so.
    """
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return (0.0, 0.0)
    low, high = float(finite.min()), float(finite.max())
    if signed:
        high = max(abs(low), abs(high))
        low = -high
    return low, high


def to_unit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values scaled from [low, high] to [0, 1], clipped, float32; all 0 if that is no range; NaN becomes 0."""
    if high <= low:
        return np.zeros(np.shape(values), np.float32)
    with np.errstate(over="ignore"):
        scaled = np.clip((np.asarray(values, np.float32) - low) / (high - low), 0, 1)
    return np.nan_to_num(scaled, nan=0.0)


def colorize(values: np.ndarray, cmap: str = "viridis", low: float | None = None, high: float | None = None) -> np.ndarray:
    """Paint numbers with a color map.

    Parameters
    ----------
    values : array of any shape
    cmap : str
        A name in `COLORMAPS`. ``balance`` is centered on zero unless a range is given.
    low, high : float, optional
        The values at the two ends of the map; the values' own range otherwise. Values that are all the same get the color
        of the lower end, of ``balance`` the neutral one.

    Returns
    -------
    array of shape ``values.shape + (3,)``, uint8

    Examples
    --------
    >>> colorize(np.array([-2.0, 0.0, 1.0]), "balance")[1]
    array([247, 247, 247], dtype=uint8)
    """
    if cmap not in COLORMAPS:
        raise ValueError(f"no color map {cmap!r}; there are: {', '.join(COLORMAPS)}")
    if low is None or high is None:
        own = value_range(values, signed=cmap == "balance")
        low, high = own[0] if low is None else low, own[1] if high is None else high
    share = np.full(np.shape(values), 0.5) if cmap == "balance" and high <= low else to_unit(values, low, high)
    return COLORMAPS[cmap][(share * 254 + 0.5).astype(np.uint8)]
