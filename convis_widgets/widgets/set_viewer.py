"""SetViewer: what the widgets share that look at a whole set of pictures: one Scan, watched while it goes on."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import ImageSet, Run, Scan
from ..techniques import scan
from .controls import RunBar, note
from .encode import enlarge, in_color
from .frame_view import FrameView
from .gallery import picture_set
from .viewer import Viewer

PERIOD = 0.7  # seconds between two looks at a scan in progress
WHOLE = 192  # pixels of a whole picture


class SetViewer(Viewer):
    """Base of the widgets that look at a set of pictures. See a subclass.

    A subclass draws what the Scan has found so far, in `_redraw`.

    Attributes
    ----------
    scan : Scan
    picked : int or None
        The picture of the set that is looked at.
    """

    shares = ("picked",)
    picked = traitlets.Int(None, allow_none=True, help="Index of the picture that is looked at.")

    def __init__(self, network: Any, images: Any, picked: int | None = None, **keywords: Any) -> None:
        super().__init__(images.net if network is None and isinstance(images, Scan) else network, **keywords)
        self.scan = Scan.ensure(self.network, picture_set(self.network) if images is None else images, self._kept)
        self._looked = 0.0
        self.bar = RunBar(self._make_run)
        self.trouble = ipywidgets.HTML()
        self.progress = ipywidgets.VBox([self.bar, self.trouble])
        self.children = [self.progress, self.status]  # so that they go if what follows fails
        self.picked = picked

    @property
    def _kept(self) -> int:
        """Activations of each channel that are needed."""
        return 1

    @property
    def images(self) -> ImageSet:
        """The pictures."""
        return self.scan.images

    @traitlets.validate("picked")
    def _picture_exists(self, proposal: dict[str, Any]) -> int | None:
        value, count = proposal["value"], len(self.images)
        if value is not None and (isinstance(value, bool) or not 0 <= value < count):
            raise traitlets.TraitError(f"there is no picture {value}; give an index from 0 to {count - 1}")
        return value

    def _existing(self, indices: Iterable[Any]) -> tuple[int, ...]:
        """Indices of pictures of the set; TraitError if one is none."""
        count, indices = len(self.images), tuple(indices)
        wrong = [i for i in indices if isinstance(i, bool) or not isinstance(i, (int, np.integer)) or not 0 <= i < count]
        if wrong:
            raise traitlets.TraitError(f"there is no picture {wrong[0]!r}; give indices from 0 to {count - 1}")
        return tuple(int(index) for index in indices)

    def _begin(self) -> None:
        """Draw what is known, and look at the pictures that are left."""
        self._tell()
        self._redraw()
        if not self.scan.complete:
            self._make_run().start()
        else:
            self.bar.layout.display = "none"

    def _make_run(self) -> Run:
        self.settle()
        return self.launch(scan(self.network, self.scan), self._scanned, start=False)

    def _worth_keeping(self, frame: Any) -> bool:
        return frame.done

    def _scanned(self, run: Run) -> None:
        soon = run.last is None or time.monotonic() - self._looked < PERIOD
        if run.state == "running" and soon:
            return
        self._tell()
        self._redraw()
        self._looked = time.monotonic()  # after the drawing: it may take longer than the period
        if self.scan.complete:
            self.bar.layout.display = "none"

    def _tell(self) -> None:
        """What could not be read, and whether the results will be found again."""
        skipped, lines = self.scan.skipped, []
        if skipped:
            named = "; ".join(list(skipped.values())[:3])
            lines.append(f"{len(skipped)} of {self.scan.seen} pictures could not be read: {named}")
        if self.scan.lost:
            named = "; ".join(list(self.scan.lost.values())[:3])
            lines.append(
                f"gray: a picture that is no longer what was looked at ({named}); make a new Scan of those there are"
            )
        if not self.scan.kept:
            lines.append("the results are not kept: the cache folder cannot be written (CONVIS_CACHE may name another one)")
        self.trouble.value = "".join(map(note, lines))

    def _redraw(self) -> None:
        """Draw what the scan has found so far."""
        raise NotImplementedError

    def _whole(self, index: int, side: int) -> np.ndarray:
        """A picture as the network sees it, enlarged."""
        return enlarge(in_color(self.scan.view(index)), side)

    def _draw_whole(self, view: FrameView, caption: ipywidgets.HTML, index: int | None) -> None:
        """Show a picture with its name and what the network says; nothing of one that was not looked at."""
        there = index is not None and index < self.scan.seen and index not in self.scan.skipped
        view.layout.visibility, caption.value = "visible" if there else "hidden", ""
        if there:
            view.show(self._whole(index, WHOLE))
            p, best = self.scan.probabilities[index], self.network.labels[self.scan.predictions[index]]
            view.alt = self._named(index)
            caption.value = note(view.alt) + note(f"the network says: {best} {p:.1%}")
            self._tell()

    @property
    def _counted(self) -> str:
        """How many pictures there are, and how many of them were looked at and could be read."""
        known, count = len(self.scan.known), len(self.images)
        return f"{count} pictures" if known == count else f"{known} of {count} pictures"

    def _named(self, index: int) -> str:
        """A picture's name, and its label."""
        label = self.images.label_name(int(self.scan.labels[index]))
        name = self.images.names[index]
        return f"{name}, {label}" if label and label not in name else name
