"""RandomizationViewer: does a map depend on what the network has learned?"""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Frames, Network, Run
from ..techniques import randomization_check
from .controls import RunBar, note
from .encode import enlarge, to_uint8
from .frame_view import FrameView
from .gallery import gallery
from .heat import in_colors
from .methods import METHODS, method_named
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
        super().__init__(network, **keywords)
        self.image = next(iter(gallery(self.network, image).values()))
        self.method = method_named(method)
        self.target = None if target is None else self.network.target(target)
        self.frame: Frame | None = None
        self.bar = RunBar(self._make_run)
        self.strip = ipywidgets.HBox([], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        words = (
            f"Is the map of {self.method} worth believing? The weights are made random, from the last layer to the first, "
            "and the map is made again. A map that hardly changes does not show what the network has learned. Below each: "
            "the lowest layer that is random, and how far the map is still the first one, by the correlation of the ranks "
            "of its pixels and by structural similarity (1 is the same)."
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

    def _worth_keeping(self, frame: Frame) -> bool:
        return frame.done

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
        view.alt = ", ".join(self._words(stage))
        text.value = "".join(map(note, self._words(stage)))

    def _map(self, stage: int) -> np.ndarray:
        heat, method = self.frame.arrays["maps"][stage], METHODS[self.method]
        return enlarge(in_colors(heat, method.limits(heat), method.signed), SIDE)

    def _words(self, stage: int) -> list[str]:
        """What is random, and how far the map is still the first one."""
        arrays = self.frame.arrays
        if stage == 0:
            return ["as trained"]
        ranks, ssim = arrays["rank correlation"][stage], arrays["ssim"][stage]
        agreement = [f"ranks {ranks:.2f}", f"SSIM {ssim:.2f}"]
        if np.isnan(ranks):
            agreement = ["no map: it is the same everywhere"]
        lowest = arrays["stages"][stage].rpartition(", ")[2]
        return [f"random down to {lowest}", *agreement]

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        if self.frame is None:
            return [], [f"{self.network.name}, {self.method}: no map yet"]
        stages = range(len(self.frame.arrays["maps"]))
        panels = [("picture", enlarge(to_uint8(self.frame.image), SIDE))]
        panels += [(f"stage {stage}" if stage else "as trained", self._map(stage)) for stage in stages]
        lines = [f"{self.network.name}, {self.method}"]
        return panels, lines + [f"stage {stage}: {', '.join(self._words(stage))}" for stage in stages[1:]]
