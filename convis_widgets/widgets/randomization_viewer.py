"""RandomizationViewer: does a map depend on what the network has learned?"""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Frames, Network, Run, value_range
from ..techniques import randomization_check
from .controls import RunBar, note
from .encode import beside, enlarge, to_uint8
from .frame_view import FrameView
from .gallery import gallery
from .heat import in_colors
from .methods import METHODS
from .pump import dispose
from .viewer import Viewer

SIDE = 112  # pixels of a map


class RandomizationViewer(Viewer):
    """A method's map while the network forgets, layer by layer from the top; a map that stays shows the picture only.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    image : picture, optional
        Whatever `Network.image` takes; a bundled one otherwise.
    method : str
        As of `SaliencyViewer`.
    target : int or str, optional
        Class index or label; the most probable class otherwise.
    unit : Unit, optional
        Explained instead of a class.
    seed : int
        Of the random weights.

    Examples
    --------
    >>> viewer = RandomizationViewer(method="grad-cam", target="face")
    """

    seed = traitlets.Int(0, help="Of the random weights.")

    def __init__(
        self,
        network: Any = None,
        image: Any = None,
        method: str = "gradient",
        target: int | str | None = None,
        **keywords: Any,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"method={method!r} should be one of {', '.join(METHODS)}")
        super().__init__(network, **keywords)
        self.image = next(iter(gallery(self.network, image).values()))
        self.method = method
        self.target = None if target is None else self.network.target(target)
        self.frame: Frame | None = None
        self.bar = RunBar(self._make_run)
        self.strip = ipywidgets.HBox([], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        words = (
            f"Is the map of {method} worth believing? The weights are made random, from the last layer to the first, and "
            "the map is made again. A map that hardly changes does not show what the network has learned. Below each: the "
            "correlation of the ranks of its pixels, and the structural similarity, with the first map (1 is the same)."
        )
        self.children = [ipywidgets.HTML(note(words)), self.bar, self.strip, self.status]
        run = self._make_run()
        if run is not None:
            run.start()

    def _make_run(self) -> Run | None:
        try:
            frames = randomization_check(
                self.network, self.image, target=self.target, method=self._explained, seed=self.seed
            )
        except Exception as error:  # noqa: BLE001
            self.complain(error)
            return None
        self.settle()
        return self.launch(frames, self._arrived, start=False)

    def _explained(self, network: Network, image: np.ndarray, *, target: int) -> Frames:
        asked = {"target": target} if self.unit is None else {"of": self.unit}
        return METHODS[self.method].technique(network, image, **asked)

    def _arrived(self, run: Run) -> None:
        if run.last is None or run.last is self.frame:
            return
        self.frame = run.last
        stages = len(self.frame.arrays["maps"])
        columns = list(self.strip.children)
        for column in columns[stages:]:  # of the run before
            for part in (*column.children, column):
                dispose(part)
        missing = [self._column() for _ in range(len(columns), stages)]
        self.strip.children = [*columns[:stages], *missing]
        for stage in {stages - 1, *range(len(columns), stages)}:
            self._draw(stage)

    def _column(self) -> ipywidgets.VBox:
        return ipywidgets.VBox([FrameView(), ipywidgets.HTML()], layout={"width": f"{SIDE + 12}px", "margin": "0 4px 6px 0"})

    def _draw(self, stage: int) -> None:
        view, text = self.strip.children[stage].children
        view.show(self._map(stage))
        view.alt = self._words(stage)
        text.value = note(view.alt)

    def _map(self, stage: int) -> np.ndarray:
        heat, signed = self.frame.arrays["maps"][stage], METHODS[self.method].signed
        return enlarge(in_colors(heat, value_range(heat, signed=signed), signed), SIDE)

    def _words(self, stage: int) -> str:
        arrays = self.frame.arrays
        if stage == 0:
            return "as trained"
        ranks, ssim = arrays["rank correlation"][stage], arrays["ssim"][stage]
        return f"{arrays['stages'][stage]} random: ranks {ranks:.2f}, SSIM {ssim:.2f}"

    def snapshot(self) -> np.ndarray:
        """The maps side by side, with their two numbers."""
        if self.frame is None:
            return beside([("no map yet", np.full((64, 64, 3), 128, np.uint8))])
        picture = enlarge(to_uint8(self.frame.image), SIDE) if self.frame.image is not None else None
        panels = [] if picture is None else [("picture", picture)]
        panels += [(self._words(stage).split(":")[0], self._map(stage)) for stage in range(len(self.frame.arrays["maps"]))]
        lines = [f"{self.network.name}, {self.method}", *map(self._words, range(1, len(self.frame.arrays["maps"])))]
        return beside(panels, "\n".join(lines))
