"""The methods that a SaliencyViewer offers: which technique makes the map, and what it shows, in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core import Frames, nearest
from ..techniques import (
    deconvnet,
    grad_cam,
    guided_backprop,
    integrated_gradients,
    occlusion,
    saliency,
    segmentation,
    smooth_grad,
)
from .heat import scale_of

LEAST_FALL = 1e-3  # a probability that changes by less hardly changes: no differences are to be shown


@dataclass(frozen=True)
class Method:
    """How a map is made and shown.

    Parameters
    ----------
    technique : callable
        Yields Frames whose `heat` is the map.
    shows : str
        What the map shows, with places for {what} is explained, its {value}, and the {baseline}.
    signed : bool
        Whether its zero is the middle of the color scale.
    streams : bool
        Whether it is worth watching.
    knobs : tuple of str
        What may be turned on screen.
    least : float
        The largest magnitude on the color scale is at least this.
    beyond : float
        The share of pixels, those of the largest magnitude, for which the color scale need not reach: a few single pixels
        would leave the rest of a grainy map in the dark.
    """

    technique: Callable[..., Frames]
    shows: str
    signed: bool = False
    streams: bool = False
    knobs: tuple[str, ...] = ()
    least: float = 0.0
    beyond: float = 0.0

    def limits(self, heat: np.ndarray) -> tuple[float, float]:
        """The raw values at the two ends of a map's color scale."""
        low, high = scale_of(heat, signed=self.signed, beyond=self.beyond)
        return (min(low, -self.least), max(high, self.least)) if self.least else (low, high)

    def top(self, heat: np.ndarray, share: float) -> tuple[np.ndarray, float]:
        """The mask (H, W) of the given share of pixels with the highest values, and the value that they exceed.

        Fewer if there are not so many that matter: that are above the lowest, or positive where the map has a sign.
        """
        known = heat[np.isfinite(heat)]
        if not known.size:
            return np.zeros(heat.shape, bool), np.inf
        least = self.least if self.signed else float(known.min())
        bound = max(float(np.quantile(known, 1 - share)), np.nextafter(least, np.inf, dtype=known.dtype))
        return heat >= bound, bound


FEW = 0.005

METHODS = {
    "gradient": Method(saliency, "how much each pixel would change {what}: |gradient|", beyond=FEW),
    "guided backprop": Method(guided_backprop, "pixels that raise {what}, by positive gradients only", beyond=FEW),
    "deconvnet": Method(deconvnet, "{what}, taken back to the pixels through the network, turned around", beyond=FEW),
    "smooth grad": Method(
        smooth_grad, "|mean gradient| of {what} over noisy copies", streams=True, knobs=("samples", "noise"), beyond=FEW
    ),
    "integrated gradients": Method(
        integrated_gradients,
        "each pixel's share in the rise of {what} from the {baseline} picture",
        signed=True,
        streams=True,
        knobs=("steps", "baseline"),
        beyond=FEW,
    ),
    "grad-cam": Method(grad_cam, "where maps are active that raise {what}"),
    "occlusion": Method(
        occlusion,
        "how much {what} = {value} falls when this place is hidden",
        signed=True,
        streams=True,
        knobs=("patch", "stride", "fill"),
        least=LEAST_FALL,
    ),
    "segmentation": Method(segmentation, "|gradient| of {what}; its top seeds the cut", streams=True, beyond=FEW),
}


def method_named(name: Any) -> str:
    """The name on the menu of what is called so there, or as a technique, or is that technique.

    >>> method_named("grad_cam"), method_named("saliency"), method_named(saliency)
    ('grad-cam', 'gradient', 'gradient')
    """
    plain = getattr(name, "__name__", str(name)).lower().replace("_", " ").replace("-", " ")
    for known, method in METHODS.items():
        if plain in (known.replace("-", " "), method.technique.__name__.replace("_", " ")):
            return known
    raise ValueError(f"no method {name!r}; {nearest(str(name), METHODS, len(METHODS))}")
