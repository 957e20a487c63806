"""MethodMaps: the maps of several attribution methods for one image, computed in turn and kept while they are valid."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ...core.attribution.method import ATTRIBUTION_METHODS
from ...core.network.network import Network
from ...core.registry import FrameStream
from ...core.runs.frame import Frame
from ...core.runs.interleave import interleave
from .methods import find_method

Knobs = Mapping[str, Mapping[str, Any]]
"""Values of knobs, by the name of the method."""


class FramesByMethod(dict[str, Frame]):
    """Frames by the name of the method on menus; found by all other names of the method, too, see `find_method`."""

    def __missing__(self, name: Any) -> Frame:
        with contextlib.suppress(ValueError):
            known = find_method(name)
            if known in self:
                return self[known]
        raise KeyError(f"{name}; there are frames of {', '.join(self) or 'no method yet'}")


class MethodMaps:
    """The maps of several attribution methods for one image.

    Parameters
    ----------
    network : Network
    lock : lock
        Held while a result is stored.

    Attributes
    ----------
    frames : FramesByMethod
        The newest Frame of each method.
    errors : dict of str to str
        For a method without a map, the reason.
    predictions : (classes,) array
        Probabilities of the classes, or values, see `Network.predict_array`; empty before they are computed.
    new_image : (H, W, C) array or None
        The image of these predictions, until it is drawn.
    """

    def __init__(self, network: Network, lock: threading.RLock) -> None:
        self.network, self._lock = network, lock
        self.frames: dict[str, Frame] = FramesByMethod()
        self.errors: dict[str, str] = {}
        self.predictions = np.zeros(0, np.float32)
        self.new_image: np.ndarray | None = None
        self._version = 0
        self._keys: dict[str, str] = {}  # what each Frame was computed with
        self._computing: dict[str, str] = {}  # keys of the computation in progress; a new object for each

    def invalidate(self) -> None:
        """Compute all maps again: the image, the class or unit, or the weights are different."""
        self._version += 1

    def discard_outdated(self, knobs: Knobs) -> None:
        """Remove maps of these methods unless they are valid for these values."""
        for name, values in knobs.items():
            if name in self.frames and self._keys[name] != self._key(values):
                del self.frames[name]

    def missing(self, knobs: Knobs) -> Knobs:
        """The methods whose map for these values is not complete."""
        return {name: values for name, values in knobs.items() if not self._has_map(name, self._key(values))}

    def is_computing(self, knobs: Knobs) -> bool:
        """Whether these methods with these values are what remains of the last computation."""
        keys = {name: self._key(values) for name, values in knobs.items()}
        return keys == {name: key for name, key in self._computing.items() if not self._has_map(name, key)}

    def cancel(self) -> None:
        """Ignore the results of the computation in progress."""
        self._computing = {}

    def compute(self, image: np.ndarray, explained: Mapping[str, Any], knobs: Knobs) -> Iterator[Frame]:
        """Compute the prediction and the maps; the Frames yielded are the progress of all.

        Parameters
        ----------
        image : (H, W, C) array
        explained : dict
            ``{"target": ...}`` or ``{"unit": ...}``.
        knobs : dict of str to dict
            By method.
        """
        computing = self._computing = {name: self._key(values) for name, values in knobs.items()}
        streams: dict[str, FrameStream] = {}
        for name, values in knobs.items():
            try:
                streams[name] = ATTRIBUTION_METHODS[name].technique(self.network, image, **explained, **values)
            except ImportError as error:
                self.errors[name] = str(error)
        return self._frames(image, streams, computing)

    def _frames(self, image: np.ndarray, streams: dict[str, FrameStream], computing: dict[str, str]) -> Iterator[Frame]:
        predictions = self.network.predict_array(image)
        with self._lock:
            if computing is self._computing:
                self.predictions, self.new_image = predictions, image
        with contextlib.closing(interleave(streams)) as turns:
            for name, result, progress in turns:
                with self._lock:
                    if computing is self._computing:  # otherwise another one has taken its place
                        self._store(name, result)
                yield progress

    def _store(self, name: str, result: Frame | ValueError) -> None:
        if isinstance(result, Frame):
            self.frames[name], self._keys[name] = result, self._computing[name]
            self.errors.pop(name, None)
        else:
            self.frames.pop(name, None)
            self.errors[name] = str(result)

    def _key(self, values: Mapping[str, Any]) -> str:
        return f"{self._version} {values}"

    def _has_map(self, name: str, key: str) -> bool:
        return name in self.frames and self.frames[name].done and self._keys[name] == key
