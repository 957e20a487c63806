"""AttributionViewer: what the widgets share that ask which pixels of a picture an answer hangs on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Frames, Run, knobs_of
from .controls import control
from .viewer import ClassTrait, PictureViewer

SIZES = ("patch", "stride")  # knobs in pixels: more than the picture has makes no sense


class AttributionViewer(PictureViewer):
    """Base of the widgets that explain a class and can hide parts of the picture. See a subclass.

    A subclass makes the Frames, in `_frames`, and draws them, in `_arrived`.
    """

    target = ClassTrait(None, help="Index or name of the class explained; None for the most probable.")
    patch = traitlets.Int(1, help="Side of the patch that hides, in pixels.")
    stride = traitlets.Int(1, help="Pixels between two positions of the patch.")
    fill = traitlets.Unicode("mean", help="What the patch shows.")

    def __init__(self, network: Any, target: int | str | None, *, overlap: int, **keywords: Any) -> None:
        super().__init__(network, **keywords)
        if "patch" not in keywords:
            self.patch = max(1, round(self._side / 5))
        if "stride" not in keywords:
            self.stride = max(1, round(self.patch / overlap))
        self.target = target

    @property
    def _side(self) -> int:
        return min(self.network.transform.size)

    def _fitting(self, technique: Callable[..., Frames], proposal: dict[str, Any]) -> Any:
        """A value proposed for a knob; ValueError if the technique does not take it, or the picture is smaller."""
        name, value = proposal["trait"].name, proposal["value"]
        knobs_of(technique)[name].check(name, value)
        if name in SIZES and value > self._side:
            raise ValueError(f"{name}={value} is more than the picture has; give 1 to {self._side} pixels")
        return value

    def _control(self, technique: Callable[..., Frames], name: str) -> ipywidgets.Widget:
        high = self._side if name in SIZES else None
        return control(name, knobs_of(technique)[name], getattr(self, name), high=high)

    def _begin(self) -> None:
        """Answer the question as it now stands."""
        run = self._make_run()
        if run is not None:
            run.start()

    def _make_run(self) -> Run | None:
        try:
            frames = self._frames(self.picture())
        except Exception as error:  # noqa: BLE001
            self.halt()
            self.complain(error)
            return None
        self.settle()
        return None if frames is None else self.launch(frames, self._arrived, start=False)

    def _frames(self, picture: np.ndarray) -> Iterator[Frame] | None:
        """What answers the question; None if all of it is answered."""
        raise NotImplementedError

    def _arrived(self, run: Run) -> None:
        """Draw what a Run has come to."""
        raise NotImplementedError
