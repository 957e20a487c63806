"""RandomizationViewer: whether the map of a method depends on what the network has learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets
import numpy as np

from ...core.attribution.method import ATTRIBUTION_METHODS
from ...core.network.network import Network
from ...core.network.unit import resolve_inputs
from ...core.registry import FrameStream
from ...core.runs.frame import Frame
from ...core.types import NetworkLike
from ...techniques import randomization_check
from ..base.param_box import COLUMNS
from ..base.params import ClassParam, KnobParam, UnitParam
from ..base.viewer import Panels, Viewer
from ..controls.frame_view import FrameView
from ..controls.parts import close_fully
from ..controls.run_bar import RunBar
from ..controls.text import text_html
from ..default_images import default_images
from ..drawing.encode import enlarge, to_rgb_uint8
from ..drawing.heatmap import colorize_map
from .methods import MethodParam, method_color_limits

MAP_SIDE = 112  # pixels of a map
EXPLANATION = (
    "Sanity check: the weights are randomized from the last layer to the first, and the map is computed at each stage. "
    "A map that hardly changes does not show what the network has learned. Below each map: the lowest randomized layer, and "
    "the similarity to the first map, as rank correlation of the pixels and as structural similarity (1: identical)."
)


class RandomizationViewer(Viewer):
    """The map of a method while the network is randomized layer by layer, from the last to the first.

    A map that does not change shows the image, not what the network has learned.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    image : image, optional
        See `Network.image`; a bundled image by default.

    Examples
    --------
    >>> viewer = RandomizationViewer(method="grad-cam", target="face")
    >>> viewer.run.join()
    True
    >>> viewer.frame.arrays["maps"].shape
    (9, 64, 64)
    """

    method = MethodParam("gradient", "Attribution method, see `SaliencyViewer`.", effect="recompute")
    target = ClassParam(
        None,
        "Index or label of the class that is explained; the most probable class by default.",
        when=lambda viewer: viewer.unit is None,
    )
    unit = UnitParam(
        None,
        "Unit that is explained instead of a class; the position defaults to that of the largest activation in the trained "
        "network.",
        effect="recompute",
    )
    seed = KnobParam.of(randomization_check, "seed")

    def __init__(
        self,
        network: NetworkLike = None,
        image: Any = None,
        method: Any = "gradient",
        target: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, method=method, target=target, **kwargs)
        self.image = next(iter(default_images(self.network, image).values()))
        self.network.image(self.image)  # an error is raised here, not shown later
        self._next_subject = self._subject = ("", "")  # (method, class or unit) of the present Run, and of the maps shown
        self.bar, self.caption = RunBar(self.make_run), ipywidgets.HTML()
        self.strip = ipywidgets.HBox([], layout=COLUMNS)
        self.make_controls()
        self.children = [
            ipywidgets.HTML(text_html(EXPLANATION)),
            self.row("method", "target", "seed", "bar"),
            self.caption,
            self.strip,
            self.status,
        ]
        self.recompute()

    # -- the computation -----------------------------------------------------------------------------------------

    def make_frames(self) -> Iterator[Frame]:
        """The computation for the present settings."""
        technique = ATTRIBUTION_METHODS[self.method].technique
        target = None if self.unit is not None else self.target
        _, unit = resolve_inputs(self.network, self.image, target=target, unit=self.unit)
        position = f" at {unit.position[0]}, {unit.position[1]}" if unit.position else ""
        explained = f"{unit.layer}, channel {unit.channel}{position}" if unit.layer else self.network.labels[unit.channel]
        self._next_subject = self.method, explained

        def explain(network: Network, image: np.ndarray, *, target: int) -> FrameStream:
            return technique(network, image, **({"unit": unit} if unit.layer else {"target": target}))

        target = None if unit.layer else unit.channel
        return randomization_check(self.network, self.image, target=target, method=explain, seed=self.seed)

    def snapshot_ready(self, frame: Frame) -> bool:
        """A snapshot waits for the last stage."""
        return frame.done

    # -- drawing -------------------------------------------------------------------------------------------------

    def draw(self, frame: Frame, *, streaming: bool = False) -> None:
        """Draw the map of the newest stage, and those of earlier ones that are not drawn yet."""
        self._subject = self._next_subject
        self.caption.value = text_html(" of ".join(self._subject))
        stages, columns = len(frame.arrays["maps"]), list(self.strip.children)
        for column in columns[stages + 1 :]:  # of an earlier computation
            close_fully(column)
        new = [_make_column() for _ in range(len(columns), stages + 1)]
        self.strip.children = [*columns[: stages + 1], *new]
        self._draw_column(0, enlarge(to_rgb_uint8(frame.image), MAP_SIDE), ["image"])
        for stage in range(stages) if stages == 1 else {stages - 1, *range(max(0, len(columns) - 1), stages)}:
            self._draw_column(stage + 1, self._map(frame, stage), _describe(frame, stage))

    def _draw_column(self, index: int, image: np.ndarray, lines: list[str]) -> None:
        view, text = self.strip.children[index].children
        view.show(image)
        view.alt = ", ".join(lines)
        text.value = "".join(map(text_html, lines))

    def _map(self, frame: Frame, stage: int) -> np.ndarray:
        heat, method = frame.arrays["maps"][stage], ATTRIBUTION_METHODS[self._subject[0]]
        scalars = {} if self.unit is None and self.network.output.has_probabilities else {"value": float(np.nanmax(heat))}
        return enlarge(colorize_map(heat, method_color_limits(method, heat, scalars), method.signed), MAP_SIDE)

    def snapshot_panels(self) -> Panels:
        """The image and the maps of all stages."""
        frame = self.frame
        if frame is None:
            return [], [f"{self.network.name}, {self.method}: no map yet"]
        stages = range(len(frame.arrays["maps"]))
        panels = [("image", enlarge(to_rgb_uint8(frame.image), MAP_SIDE))]
        panels += [(f"stage {stage}" if stage else "as trained", self._map(frame, stage)) for stage in stages]
        lines = [f"{self.network.name}, {' of '.join(self._subject)}"]
        return panels, lines + [f"stage {stage}: {', '.join(_describe(frame, stage))}" for stage in stages[1:]]


def _make_column() -> ipywidgets.VBox:
    layout = {"width": f"{MAP_SIDE + 12}px", "margin": "0 4px 6px 0"}
    return ipywidgets.VBox([FrameView(), ipywidgets.HTML()], layout=layout)


def _describe(frame: Frame, stage: int) -> list[str]:
    """The lowest randomized layer, and the similarity to the first map."""
    if stage == 0:
        return ["as trained"]
    ranks, ssim = frame.arrays["rank correlation"][stage], frame.arrays["ssim"][stage]
    lowest = frame.arrays["stages"][stage].rpartition(", ")[2]
    similarity = ["the map is constant"] if np.isnan(ranks) else [f"rank correlation {ranks:.2f}", f"SSIM {ssim:.2f}"]
    return [f"randomized down to {lowest}", *similarity]
