"""FoolingPanel: a picture that is changed until the network sees something else, and the change, magnified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame
from ..techniques import fooling
from .controls import ClassPicker, note
from .encode import enlarge, to_uint8
from .frame_view import FrameView
from .picture_panel import PicturePanel
from .synthesis_panel import display
from .viewer import ClassTrait

MANY = 0.995  # of the differences are within what is shown


class FoolingPanel(PicturePanel):
    """Any picture becomes any class: three pictures side by side, as it was, as it is, and the difference, magnified.

    Its knobs are those of `techniques.fooling`, as traits.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    images : picture, list or dict of pictures, optional
        The pictures to choose from; some that are always at hand otherwise.
    target : int or str, optional
        The class that the picture is to become; the one that is least probable for it otherwise.
    method : str
        "normalized" (the lecture's rule), "pgd" or "fgsm".

    Examples
    --------
    >>> panel = FoolingPanel(target="cup", rate=0.005, iterations=100)
    >>> panel.run.join()
    True
    >>> panel.frame.scalars["fooled"]
    1.0
    """

    technique = fooling
    first = ("method", "rate", "epsilon", "iterations")
    side, watched = 256, "target"
    cropped = True
    target = ClassTrait(None, help="Index or name of the class that the picture is to become.")

    def _question(self) -> list[ipywidgets.Widget]:
        self.classes = ClassPicker(self.network.labels)
        self.classes.AUTO = "the least probable"
        self.classes.box.options = [self.classes.AUTO, *self.classes.box.options[1:]]
        self.classes.box.value = self.classes.AUTO
        self.classes.box.description = "becomes"
        self._leads(self.classes, "target")
        return [*super()._question(), self.classes]

    def _pictures(self) -> list[ipywidgets.Widget]:
        self.before, self.difference = FrameView(), FrameView()
        self.captions = [ipywidgets.HTML() for _ in range(3)]
        views = zip(self.captions, (self.before, self.view, self.difference), strict=True)
        margin = {"width": f"{self.side + 4}px", "margin": "0 8px 0 0"}
        return [ipywidgets.VBox([caption, view], layout=margin) for caption, view in views]

    # -- state -------------------------------------------------------------------------------------------------

    @traitlets.observe("target")
    def _other_class(self, change: Any) -> None:
        self._ask_anew(change)

    def _show_question(self) -> None:
        with self.quietly():
            self.classes.value = self.target

    # -- the computation ---------------------------------------------------------------------------------------

    def _frames(self, knobs: dict[str, Any]) -> Iterator[Frame]:
        self._original = to_uint8(self.picture())
        self.frame = None  # nothing was changed yet, and will not be if it is of that class already
        self.bars.value = self.captions[1].value = self.captions[2].value = ""
        self._draw(lambda: self._original)
        self.before.show(enlarge(self._original, self.side))
        label, p = self.network.predict(self._in_channels(self._original), 1)[0]
        self.captions[0].value = note(f"as it was: {label} ({p:.0%})")
        self.before.alt = f"the picture as it was, {label}"
        return fooling(self.network, self._in_channels(self._original), target=self.target, **knobs)

    def _draw(self, picture: Callable[[], np.ndarray], *, streaming: bool = False) -> None:
        super()._draw(picture, streaming=streaming)
        original = self._original

        def magnified() -> np.ndarray:
            return enlarge(self._magnified(picture(), original)[0], self.side)

        display(self.difference, magnified, streaming=streaming)

    def _magnified(self, picture: np.ndarray, original: np.ndarray) -> tuple[np.ndarray, int]:
        """The difference of two pictures around gray, and how often it was multiplied."""
        difference = picture.astype(np.int16) - original
        times = max(1, int(127 // max(1, np.quantile(np.abs(difference), MANY))))
        return (127.5 + times * difference).clip(0, 255).astype(np.uint8), times

    # -- drawing -----------------------------------------------------------------------------------------------

    def _draw_bars(self) -> None:
        super()._draw_bars()
        picture = self._shown()
        if picture is not None:
            label, p = self._seen[0]
            difference = (picture.astype(np.float64) - self._original)[..., : self.network.transform.channels]
            times = self._magnified(picture, self._original)[1]
            most, norm = int(np.abs(difference).max()), np.sqrt((difference**2).sum()) / 255
            self.captions[1].value = note(f"as it is: {label} ({p:.0%})")
            self.captions[2].value = note(f"difference x {times}; Linf {most}/255, L2 {norm:.2g}")
            self.difference.alt = f"the difference of the two pictures, {times} times; {most} of 255 at most"

    def caption_text(self) -> str:
        """What is being painted, in words."""
        wanted = "the least probable class" if self.target is None else self.network.labels[self.target]
        if self.frame is None or self.run is None or self.run.last is not self.frame:
            return f"towards {wanted}"
        steps = f"{self.frame.step} step{'s' if self.frame.step > 1 else ''}"
        if self.frame.scalars["fooled"]:
            return f"towards {wanted}: fooled after {steps}"
        return f"towards {wanted}: not fooled{'' if self.run.active else f', given up after {steps}'}"

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        picture = self._shown()
        if picture is None:
            return super()._page()
        difference, times = self._magnified(picture, self._original)
        shown = (self._original, picture, difference)
        titles = ("as it was", self.shown_step.value, f"difference x {times}")
        panels = [(title, enlarge(one, self.side)) for title, one in zip(titles, shown, strict=True)]
        return panels, [f"{self.network.name}: {self._told}"]
