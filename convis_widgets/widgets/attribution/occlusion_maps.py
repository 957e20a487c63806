"""The four maps of occlusion, their captions and legend, and the occluded image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ...core.network.network import Network
from ...core.runs.frame import Frame
from ..drawing.colors import value_range
from ..drawing.encode import blend, to_rgb_uint8
from ..drawing.heatmap import CATEGORIES, OTHER_CATEGORY, UNKNOWN_GRAY, colorize_map, diverging_rgb, upsample_grid

MAPS = ("probability", "class", "activation", "projection")
MIN_RANGE = 1e-3  # of a color scale of probabilities; smaller differences are not relevant


class Occluded(NamedTuple):
    """The image with the patch at one position."""

    image: np.ndarray
    box: tuple[int, int, int, int]
    predictions: list[tuple[str, float]]
    known: bool


class OcclusionMaps:
    """Draws the Frames of one run of `occlusion`.

    Parameters
    ----------
    network : Network
    target : int or None
        The class that is explained; None for the most probable one.
    layer : str
        The layer whose activations are monitored, or "".
    patch_size : int
        In pixels.

    Attributes
    ----------
    prediction : list of (str, float)
        Most probable classes of the image; empty before they are computed.
    """

    def __init__(self, network: Network, target: int | None, layer: str, patch_size: int) -> None:
        self.network, self.target, self.layer, self.patch_size = network, target, layer, patch_size
        self.key = "probability" if network.output.has_probabilities else "value"  # in the Frames
        self.prediction: list[tuple[str, float]] = []
        self._colors: dict[int, np.ndarray] = {}

    @property
    def label(self) -> str:
        """The class that is explained."""
        return self.prediction[0][0] if self.target is None else self.network.labels[self.target]

    @property
    def symbol(self) -> str:
        """The name of the prediction that is explained: "p(cat)", or "age" for a value."""
        return self.network.output.symbol(self.label)

    def draw(self, name: str, frame: Frame, opacity: float) -> np.ndarray:
        """One of `MAPS` over the image, (H, W, 3) uint8."""
        if name == "probability":
            p = frame.scalars[self.key] - frame.heat
            return self._overlay(frame, colorize_map(p, self.limits(name, frame), False), np.isfinite(p), opacity)
        if name == "class" and self.network.output.has_probabilities:
            classes = self._upsample(frame, frame.arrays["top"][..., 0])
            return self._overlay(frame, self._class_colors(classes), classes >= 0, opacity)
        if name not in frame.arrays:
            return np.full((*frame.image.shape[:2], 3), UNKNOWN_GRAY, np.uint8)
        if name == "activation":
            total = self._upsample(frame, frame.arrays[name])
            return self._overlay(frame, colorize_map(total, self.limits(name, frame), False), np.isfinite(total), opacity)
        return diverging_rgb(frame.arrays[name], outlier_fraction=0.001)

    def limits(self, name: str, frame: Frame) -> tuple[float, float]:
        """The values at the ends of the color scale of the probability or activation map."""
        key = self.key if name == "probability" else name
        low, high = value_range(np.append(frame.arrays[key], np.float32(frame.scalars[key])))
        middle, min_range = (low + high) / 2, MIN_RANGE if key == "probability" else 0.0
        return min(low, middle - min_range / 2), max(high, middle + min_range / 2)

    def captions(self, frame: Frame) -> dict[str, str]:
        """What each map shows, in words."""
        captions = dict.fromkeys(MAPS, "choose a layer under monitor layer to see the effect on one of its channels")
        unhidden = self.network.output.format(frame.scalars[self.key])
        captions["probability"] = f"{self.symbol} with the patch centered here; {unhidden} without it"
        captions["class"] = "most probable class with the patch centered here; in the legend, fraction of the positions"
        if not self.network.output.has_probabilities:
            captions["class"] = f"{self.network.name} returns values, of which none is the most probable"
        if "activation" in frame.arrays:
            channel = f"channel {frame.scalars['channel']:.0f} of {self.layer}"
            activation = frame.scalars["activation"]
            captions["activation"] = f"total activation of {channel} with the patch here; {activation:.3g} without it"
            captions["projection"] = f"projection of {channel} on the whole image, by a deconvnet"
            if "projection" not in frame.arrays:
                captions["projection"] = f"not all nonlinearities of {self.network.name} are ReLU, as a deconvnet requires"
        return captions

    def legend(self, frame: Frame) -> list[tuple[str, tuple[int, ...]]]:
        """The classes that are most probable at some positions, the fraction of the positions, and the color."""
        if not self.network.output.has_probabilities:
            return []
        classes, counts = np.unique(frame.arrays["top"][..., 0], return_counts=True)
        known = sorted(((int(n), int(c)) for c, n in zip(classes, counts, strict=True) if c >= 0), reverse=True)
        total = max(1, sum(n for n, _ in known))
        return [
            (f"{self.network.labels[c]} at {n / total:.0%}", tuple(map(int, self.color_of(c))))
            for n, c in known[: len(CATEGORIES)]
        ]

    def color_of(self, index: int) -> np.ndarray:
        """The color of a class: each of the first few has its own, which does not change while the map grows."""
        if index not in self._colors:
            count = len(self._colors)
            self._colors[index] = CATEGORIES[count] if count < len(CATEGORIES) else OTHER_CATEGORY
        return self._colors[index]

    def position_at(self, frame: Frame, row: float, column: float) -> tuple[int, int]:
        """The position whose patch is centered nearest to a pixel."""
        middle = (self.patch_size - 1) / 2
        rows, cols = frame.arrays["rows"], frame.arrays["cols"]
        return int(np.abs(rows + middle - row).argmin()), int(np.abs(cols + middle - column).argmin())

    def occlude(self, frame: Frame, position: tuple[int, int]) -> Occluded:
        """The image with the patch at a position, and its most probable classes."""
        top, left = int(frame.arrays["rows"][position[0]]), int(frame.arrays["cols"][position[1]])
        box = (top, left, top + self.patch_size, left + self.patch_size)
        image = frame.image.copy()
        patch = np.s_[box[0] : box[2], box[1] : box[3]]
        image[patch] = frame.arrays["baseline"][patch]
        classes, probabilities = frame.arrays["top"][position], frame.arrays["top probability"][position]
        if classes[0] < 0:
            return Occluded(image, box, [], known=False)
        pairs = zip(classes, probabilities, strict=True)
        return Occluded(image, box, [(self.network.labels[c], float(p)) for c, p in pairs], known=True)

    def values_at(self, frame: Frame, position: tuple[int, int]) -> str:
        """The values of the maps at a position, in words."""
        arrays, (i, j) = frame.arrays, position
        text = f"patch from row {arrays['rows'][i]} and column {arrays['cols'][j]}: {self.symbol}"
        text += f" = {arrays[self.key][position]:.3g}"
        return f"{text}, total activation {arrays['activation'][position]:.3g}" if "activation" in arrays else text

    def _upsample(self, frame: Frame, grid: np.ndarray) -> np.ndarray:
        return upsample_grid(grid, frame.arrays["rows"], frame.arrays["cols"], self.patch_size, frame.image.shape[:2])

    def _class_colors(self, classes: np.ndarray) -> np.ndarray:
        colors = np.full((*classes.shape, 3), UNKNOWN_GRAY, np.uint8)
        for index in np.unique(classes[classes >= 0]):
            colors[classes == index] = self.color_of(int(index))
        return colors

    def _overlay(self, frame: Frame, colors: np.ndarray, known: np.ndarray, opacity: float) -> np.ndarray:
        return blend(to_rgb_uint8(frame.image), colors, (known * opacity).astype(np.float32))
