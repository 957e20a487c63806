"""SetViewer: what the widgets share that look at a whole set of pictures: one Scan, watched while it goes on."""

from __future__ import annotations

import time
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import ImageSet, Run, Scan
from ..techniques import scan
from .controls import RunBar, note
from .gallery import picture_set
from .viewer import Viewer

PERIOD = 0.7  # seconds between two looks at a scan in progress


class SetViewer(Viewer):
    """Base of the widgets that look at a set of pictures. See a subclass.

    A subclass draws what the Scan has found so far, in `_redraw`.

    Attributes
    ----------
    scan : Scan
    picked : int or None
        The picture of the set that is looked at; linked like `unit` among widgets of one set.
    """

    picked = traitlets.Int(None, allow_none=True, help="Index of the picture that is looked at.")

    def __init__(self, network: Any, images: Any, picked: int | None = None, **keywords: Any) -> None:
        super().__init__(images.net if network is None and isinstance(images, Scan) else network, **keywords)
        self.scan = Scan.ensure(self.network, picture_set(self.network) if images is None else images)
        self._looked = 0.0
        self.bar = RunBar(self._make_run)
        self.progress = ipywidgets.VBox([self.bar, *(line := [ipywidgets.HTML()])])
        self.trouble = line[0]
        self.children = [self.progress, self.status]  # so that they go if what follows fails
        self.picked = picked

    @property
    def images(self) -> ImageSet:
        """The pictures."""
        return self.scan.images

    @traitlets.validate("picked")
    def _picture_exists(self, proposal: dict[str, Any]) -> int | None:
        value, count = proposal["value"], len(self.images)
        if value is not None and not 0 <= value < count:
            raise traitlets.TraitError(f"there is no picture {value}; give an index from 0 to {count - 1}")
        return value

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
        if not self.scan.kept:
            lines.append("the results are not kept: the cache folder cannot be written (CONVIS_CACHE may name another one)")
        self.trouble.value = "".join(map(note, lines))

    def _redraw(self) -> None:
        """Draw what the scan has found so far."""
        raise NotImplementedError

    def _named(self, index: int) -> str:
        """A picture's name, and its label."""
        label = self.images.label_name(int(self.scan.labels[index]))
        name = self.images.names[index]
        return f"{name}, {label}" if label and label not in name else name

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        raise NotImplementedError
