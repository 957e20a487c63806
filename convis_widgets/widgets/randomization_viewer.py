"""RandomizationViewer: does a map depend on what the network has learned?"""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Frames, Network, Run, asked
from ..techniques import randomization_check
from .controls import RunBar, note
from .encode import enlarge, to_uint8
from .frame_view import FrameView
from .gallery import gallery
from .heat import in_colors
from .methods import METHODS, method_named
from .pump import dispose
from .viewer import ClassTrait, Viewer, guarded

SIDE = 112  # pixels of a map
WORDS = (
    "Is this map worth believing? The weights are made random, from the last layer to the first, and the map is made again. "
    "A map that hardly changes does not show what the network has learned. Below each: the lowest layer that is random, and "
    "how far the map is still the first one, by the correlation of the ranks of its pixels and by structural similarity "
    "(1 is the same)."
)


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
        Explained instead of a class; without a position the one that is strongest before anything is random.
    seed : int
        Of the random weights.

    Examples
    --------
    >>> viewer = RandomizationViewer(method="grad-cam", target="face")
    """

    method = traitlets.Any("gradient", help="How the map is made.")
    target = ClassTrait(None, help="Index or name of the class explained; None for the most probable.")
    seed = traitlets.Int(0, help="Of the random weights.")

    def __init__(
        self,
        network: Any = None,
        image: Any = None,
        method: Any = "gradient",
        target: int | str | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(network, **keywords)
        self.method, self.target = method, target
        self._image = next(iter(gallery(self.network, image).values()))
        self.frame: Frame | None = None
        self._shown = self._about = ""  # the method of what is shown, and what it explains
        self.menu = ipywidgets.Dropdown(options=list(METHODS), value=self.method, description="method")
        self.bar = RunBar(self._make_run)
        self.caption = ipywidgets.HTML()
        self.strip = ipywidgets.HBox([], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        row = ipywidgets.HBox([self.menu, self.bar], layout={"flex_flow": "row wrap"})
        self.children = [ipywidgets.HTML(note(WORDS)), row, self.caption, self.strip, self.status]
        traitlets.link((self, "method"), (self.menu, "value"))
        self._begin()

    @traitlets.validate("method")
    def _method_exists(self, proposal: dict[str, Any]) -> str:
        return method_named(proposal["value"])

    @traitlets.observe("method", "target", "unit", "seed")
    @guarded
    def _question_changed(self, _change: Any) -> None:
        self._begin()

    def _begin(self) -> None:
        run = self._make_run()
        if run is not None:
            run.start()

    def _make_run(self) -> Run | None:
        method, technique = self.method, METHODS[self.method].technique
        try:
            _, unit = asked(self.network, self._image, target=None if self.unit else self.target, of=self.unit)
            place = f" at {unit.position[0]}, {unit.position[1]}" if unit.position else ""
            about = f"{unit.layer}, channel {unit.channel}{place}" if unit.layer else self.network.labels[unit.channel]

            def explain(network: Network, image: np.ndarray, *, target: int) -> Frames:
                return technique(network, image, **({"of": unit} if unit.layer else {"target": target}))

            target = None if unit.layer else unit.channel
            frames = randomization_check(self.network, self._image, target=target, method=explain, seed=self.seed)
        except Exception as error:  # noqa: BLE001
            self.complain(error)
            return None
        self.settle()
        return self.launch(frames, lambda run: self._arrived(run, method, about), start=False)

    def _worth_keeping(self, frame: Frame) -> bool:
        return frame.done

    def _arrived(self, run: Run, method: str, about: str) -> None:
        if run.last is None or run.last is self.frame:
            return
        self.frame, self._shown, self._about = run.last, method, about
        self.caption.value = note(f"{method} of {about}")
        stages = len(self.frame.arrays["maps"])
        columns = list(self.strip.children)
        for column in columns[stages + 1 :]:  # of the run before
            for part in (*column.children, column):
                dispose(part)
        missing = [self._column() for _ in range(len(columns), stages + 1)]
        self.strip.children = [*columns[: stages + 1], *missing]
        self._draw(0, enlarge(to_uint8(self.frame.image), SIDE), ["picture"])
        for stage in range(stages) if stages == 1 else {stages - 1, *range(max(0, len(columns) - 1), stages)}:
            self._draw(stage + 1, self._map(stage), self._words(stage))

    def _column(self) -> ipywidgets.VBox:
        return ipywidgets.VBox([FrameView(), ipywidgets.HTML()], layout={"width": f"{SIDE + 12}px", "margin": "0 4px 6px 0"})

    def _draw(self, place: int, picture: np.ndarray, words: list[str]) -> None:
        view, text = self.strip.children[place].children
        view.show(picture)
        view.alt = ", ".join(words)
        text.value = "".join(map(note, words))

    def _map(self, stage: int) -> np.ndarray:
        heat, method = self.frame.arrays["maps"][stage], METHODS[self._shown]
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
        lines = [f"{self.network.name}, {self._shown} of {self._about}"]
        return panels, lines + [f"stage {stage}: {', '.join(self._words(stage))}" for stage in stages[1:]]
