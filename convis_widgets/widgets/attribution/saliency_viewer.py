"""SaliencyViewer: which pixels matter, by several attribution methods side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import ipywidgets
import numpy as np

from ...core.attribution.method import ATTRIBUTION_METHODS
from ...core.network.unit import Unit
from ...core.runs.frame import Frame
from ...core.runs.run import Run
from ...core.types import NetworkLike
from ..base.image_viewer import ImageViewer
from ..base.param_box import COLUMNS_IN_ONE_ROW, report_errors
from ..base.params import Choice, ClassParam, Number, UnitParam
from ..base.viewer import FIRST_FRAME_TIMEOUT, Panels, set_column_width
from ..controls.frame_view import FrameView
from ..controls.run_bar import RunBar
from ..controls.text import readout, text_html
from ..drawing.encode import enlarge, to_rgb_uint8
from .heat_panel import DISPLAYS, HEAD_HEIGHT, MAP_SIDE, HeatPanel
from .method_maps import Knobs, MethodMaps
from .methods import MethodsParam, default_knob, knob_trait, method_caption, method_knobs, method_params
from .randomization_viewer import RandomizationViewer


class SaliencyViewer(ImageViewer):
    """Attribution maps for a class or a unit: the image, and for each method its map with the raw range.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    image : image, or list or dict of images, optional
        See `Network.image`; bundled images by default. Others can be uploaded, or assigned to `image`.

    Attributes
    ----------
    frames : dict of str to Frame
        The newest Frame of each method, by its name on the menu. After a setting has changed, that of the previous setting
        until the first new one is computed; ``viewer.run.join()`` waits for the last one.
    errors : dict of str to str
        For a method without a map, the reason.
    randomization : RandomizationViewer or None
        The sanity check, if it is open.

    Examples
    --------
    >>> viewer = SaliencyViewer(method=["gradient", "grad-cam"], target="face")
    >>> viewer.frames["grad-cam"].heat.shape
    (64, 64)
    """

    bar: RunBar
    extra_params = method_params(ATTRIBUTION_METHODS.values())

    method = MethodsParam(
        "gradient",
        f"One or more of {', '.join(ATTRIBUTION_METHODS)}, side by side; names of their techniques are accepted, too.",
        effect="method_changed",
    )
    target = ClassParam(
        None,
        "Index or label of the class that is explained; the most probable class by default.",
        effect="target_changed",
        when=lambda viewer: viewer.target_type == "class",
    )
    unit = UnitParam(
        None,
        "Unit that is explained instead of a class. Selecting a unit in a linked widget sets it.",
        picker=True,
        effect="unit_changed",
        when=lambda viewer: viewer.target_type == "unit",
    )
    target_type = Choice(
        "class",
        {"a class": "class", "a unit": "unit"},
        'Whether the class or the unit is explained; "unit" by default if `unit` is one of a layer.',
        effect="explanation_changed",
        label="explain",
    )
    display = Choice(
        "overlay",
        DISPLAYS,
        'Shown next to a map: the map over the image ("overlay"), or the "mask" or the "cut-out" of its highest values.',
        label="show as",
    )
    opacity = Number(
        0.6, 0.0, 1.0, "Opacity of the map over the image.", label="overlay", when=lambda viewer: viewer.display == "overlay"
    )
    mask_fraction = Number(
        0.15,
        0.0,
        1.0,
        "Fraction of the pixels in the mask, those with the highest values.",
        label="mask top %",
        when=lambda viewer: viewer.display != "overlay",
    )

    def __init__(
        self,
        network: NetworkLike = None,
        image: Any = None,
        method: Any = "gradient",
        target: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        new = {
            name: param for name, param in method_params(ATTRIBUTION_METHODS.values()).items() if not self.has_trait(name)
        }
        if new:  # methods that were registered after this class was created
            self.add_traits(**new)
        if target is not None and kwargs.get("unit") is not None and "target_type" not in kwargs:
            raise ValueError("both target= and unit= are given; add target_type='class' or target_type='unit'")
        super().__init__(network, image, method=method, target=target, **kwargs)
        self.maps = MethodMaps(self.network, self.lock)
        self.frames, self.errors = self.maps.frames, self.maps.errors
        self.panels: list[HeatPanel] = []
        self._image: np.ndarray | None = None  # that of the maps
        self.randomization: RandomizationViewer | None = None
        self._last_unit = Unit(next((layer.name for layer in self.network.layers if layer.map_shape is not None), ""), 0)
        if self.unit is not None:
            self._follow_unit(keep_type="target_type" in kwargs)
        self._make_parts()
        self._arrange()
        self.recompute()
        if self.run is not None and not self._streams:
            self.run.join(FIRST_FRAME_TIMEOUT)

    def _make_parts(self) -> None:
        self.add_method = ipywidgets.Button(description="Compare", icon="plus", tooltip="Add a method")
        tooltip = "Randomize the network layer by layer and compare the maps of the first method"
        self.sanity_check = ipywidgets.Button(description="Sanity check", icon="question", tooltip=tooltip)
        self.bar = RunBar(self.restart)
        self.input_view = FrameView(on_hover=lambda x, y: self._hovered(*self.input_view.relative_position(x, y)))
        self.input_caption = ipywidgets.HTML()
        self.hover = readout()
        self.make_controls()
        self.controls["opacity"].step = 0.05
        self.controls["mask_fraction"].step, self.controls["mask_fraction"].readout_format = 0.01, ".0%"
        knobs = [knob_trait(method, knob) for method in ATTRIBUTION_METHODS.values() for knob in method.knobs]
        title = ipywidgets.Label("image", layout={"height": f"{HEAD_HEIGHT}px", "margin": "0", "flex": "0 0 auto"})
        column = ipywidgets.VBox([title, self.input_view, self.input_caption])
        self._columns, self._bottom = ipywidgets.HBox([column], layout=COLUMNS_IN_ONE_ROW), ipywidgets.VBox([])
        self.children = [
            self.row("images", "target_type", "target", "unit"),
            self.row("display", "opacity", "mask_fraction", "add_method", "sanity_check"),
            self.row(*knobs),
            self.bar,
            self._columns,
            self.hover,
            self.status,
            self._bottom,
        ]
        self.images.observe(self._image_changed, "value")
        self.add_method.on_click(lambda _button: self._add())
        self.sanity_check.on_click(lambda _button: self.open_sanity_check())

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods shown, from left to right."""
        return (self.method,) if isinstance(self.method, str) else self.method

    @property
    def explained(self) -> dict[str, Any]:
        """The class or unit that is explained, as a keyword argument of a technique."""
        return {"target": self.target} if self.target_type == "class" else {"unit": self._last_unit}

    @property
    def predictions(self) -> np.ndarray:
        """Probabilities of the classes for the image, or values, (classes,); empty before they are computed."""
        return self.maps.predictions

    @property
    def _streams(self) -> bool:
        return any(ATTRIBUTION_METHODS[name].streams for name in self.methods)

    def default_of(self, name: str) -> Any:
        """What is shown for a setting that is None."""
        return self._last_unit if name == "unit" else default_knob(self, name)

    def views(self) -> Iterable[FrameView]:
        """The views of the panels."""
        return [view for panel in self.panels for view in panel.views]

    def target_changed(self) -> None:
        """Explain the class."""
        with self.handlers_muted():
            self.target_type = "class"
        self.explanation_changed()

    def unit_changed(self) -> None:
        """Explain the selected unit, or the class that it belongs to."""
        if self.unit is not None:
            with self.handlers_muted():
                self._follow_unit()
            self.explanation_changed()

    def _follow_unit(self, *, keep_type: bool = False) -> None:
        if self.unit.layer:
            self._last_unit = self.unit
        else:
            self.target = self.unit.channel
        if not keep_type:
            self.target_type = "unit" if self.unit.layer else "class"

    def explanation_changed(self) -> None:
        """Explain another image, class or unit."""
        self.maps.invalidate()
        self.sync_controls()
        self.close_sanity_check()
        self.recompute()

    @report_errors
    def _image_changed(self, _change: Any) -> None:
        self.explanation_changed()

    def method_changed(self) -> None:
        """Show the panels of the chosen methods."""
        if self.randomization is not None and self.randomization.method != self.methods[0]:
            self.close_sanity_check()
        self._arrange()
        self.recompute()

    def _arrange(self) -> None:
        """Make a panel for each method; the others stay as they are."""
        with self.handlers_muted():
            for panel, name in zip(self.panels, self.methods, strict=False):
                panel.menu.value = name
        for panel in self.panels[len(self.methods) :]:
            panel.close()
        self.panels = self.panels[: len(self.methods)]
        for name in self.methods[len(self.panels) :]:
            panel = HeatPanel(name, self._hovered)
            panel.menu.observe(self._menu_changed, "value")
            panel.remove.on_click(lambda _button, panel=panel: self._remove(panel))
            self.panels.append(panel)
        self._set_sides()
        self._columns.children = [self._columns.children[0], *self.panels]
        self.add_method.disabled = len(self.methods) == len(ATTRIBUTION_METHODS)
        self.bar.layout.display = "" if self._streams else "none"
        self.frame = self.frames.get(self.methods[0])
        for panel in self.panels:
            if panel.method not in self.frames and panel.method not in self.errors:
                panel.clear()
        self._draw_panels()

    def _set_sides(self) -> None:
        """Let the image and the panels fill the width of the page, in one row."""
        alone = len(self.panels) == 1
        self.side = self.column_width(3 if alone else 1 + len(self.panels), MAP_SIDE)
        set_column_width(self._columns.children[0], self.side)
        for panel in self.panels:
            panel.arrange(alone=alone, side=self.side)

    def page_resized(self) -> None:
        """Draw images that fill the width of the page."""
        self._set_sides()
        self._draw_input()
        self._draw_panels()

    @report_errors
    def _menu_changed(self, change: Any) -> None:
        for panel in self.panels:  # a panel with the same method gets the previous one
            if panel.menu is not change["owner"] and panel.method == change["new"]:
                with self.handlers_muted():
                    panel.menu.value = change["old"]
        self.method = tuple(panel.method for panel in self.panels)

    @report_errors
    def _add(self) -> None:
        if len(self.methods) < len(ATTRIBUTION_METHODS):  # a second click may arrive before the button is disabled
            self.method = (*self.methods, next(name for name in ATTRIBUTION_METHODS if name not in self.methods))

    @report_errors
    def _remove(self, panel: HeatPanel) -> None:
        if panel in self.panels and len(self.panels) > 1:  # a second click may arrive for a panel that is already removed
            index = self.panels.index(panel)
            self.panels.pop(index).close()
            self.method = (*self.methods[:index], *self.methods[index + 1 :])

    @report_errors
    def open_sanity_check(self) -> None:
        """Compare the map of the first method with those of randomized networks, below the panels."""
        self.close_sanity_check()
        self.randomization = RandomizationViewer(self.network, self.images.value, self.methods[0], **self.explained)
        self._bottom.children = [self.randomization]

    def close_sanity_check(self) -> None:
        """Remove the sanity check."""
        if self.randomization is not None:
            self._bottom.children = []
            self.randomization.close()
            self.randomization = None

    # -- the computation -----------------------------------------------------------------------------------------

    def restart(self) -> Run | None:
        """Make a Run for all methods shown, also for those whose map is complete: the weights may have changed."""
        self.maps.invalidate()
        return self.make_run()

    def recompute(self) -> None:
        """Compute the maps that are not complete, unless that is already in progress."""
        active, missing = self.run is not None and self.run.active, self._missing()
        if (missing or active) and not (active and self.maps.is_computing(missing)):
            super().recompute()

    def make_frames(self) -> Iterator[Frame] | None:
        """The computation of the maps that are not complete; None if there are none."""
        image = self.input_image()
        self.maps.discard_outdated({name: method_knobs(self, name) for name in self.frames if name not in self.methods})
        missing = self._missing()
        self.maps.cancel()
        return self.maps.compute(image, self.explained, missing) if missing else None

    def _missing(self) -> Knobs:
        return self.maps.missing({name: method_knobs(self, name) for name in self.methods})

    def snapshot_ready(self, frame: Frame) -> bool:
        """A snapshot waits for the first map of every method."""
        return all(name in self.frames or name in self.errors for name in self.methods)

    def run_changed(self, run: Run) -> None:
        """Draw the new maps."""
        self.frame = self.frames.get(self.methods[0])
        if self.maps.new_image is not None:
            self._image, self.maps.new_image = self.maps.new_image, None
            self._draw_input()
        self._draw_panels(streaming=run.active)
        if run.state != "running":
            for view in self.views():
                view.pump.flush()

    # -- drawing -------------------------------------------------------------------------------------------------

    def _draw_panels(self, *, streaming: bool = False) -> None:
        """Draw what is new."""
        for panel in self.panels:
            frame = self.frames.get(panel.method)
            if panel.method in self.errors:
                panel.clear(self.errors[panel.method])
            elif frame is not None and (frame is not panel.frame or (panel.streamed and not streaming)):
                panel.draw_map(frame, self._caption(panel.method, frame), streaming=streaming and not frame.done)
                self._draw_detail(panel, frame, streaming=streaming and not frame.done)

    def _draw_detail(self, panel: HeatPanel, frame: Frame, *, streaming: bool = False) -> None:
        panel.draw_detail(frame, self.display, self.opacity, self.mask_fraction, streaming=streaming)

    def redraw(self) -> None:
        """Draw the details with the present settings."""
        for panel in self.panels:
            if panel.frame is not None:
                self._draw_detail(panel, panel.frame)

    def _draw_input(self) -> None:
        if self._image is None:
            return
        self.input_view.show(enlarge(to_rgb_uint8(self._image), self.side), side=self.side)
        predicted = self.network.output.default_class(self.predictions)
        lines = [f"Prediction: {self._with_prediction(predicted)}"]
        if self.target_type == "class" and self.target not in (None, predicted):
            lines.append(f"target class: {self._with_prediction(self.target)}")
        self.input_view.alt = f"image; {', '.join(lines)}"
        self.input_caption.value = "".join(map(text_html, lines))

    def _with_prediction(self, index: int) -> str:
        return self.network.output.describe(self.network.labels[index], self.predictions[index])

    def _caption(self, name: str, frame: Frame) -> str:
        method, knobs = ATTRIBUTION_METHODS[name], method_knobs(self, name, defaults=True)
        return method_caption(method, frame, self.network, self.predictions, knobs, **self.explained)

    @report_errors
    def _hovered(self, row: float | None, column: float | None) -> None:
        """Show the raw values of all maps under the mouse, given as fractions of height and width."""
        frames = [(panel.method, panel.frame) for panel in self.panels if panel.frame is not None]
        if row is None or column is None or not frames:
            self.hover.value = ""
            return
        height, width = frames[0][1].heat.shape
        i, j = min(height - 1, max(0, int(row * height))), min(width - 1, max(0, int(column * width)))
        values = "; ".join(f"{name} {frame.heat[i, j]:.3g}" for name, frame in frames)
        self.hover.value = text_html(f"row {i}, column {j}: {values}")

    def snapshot_panels(self) -> Panels:
        """The image and the panels; methods without a map are named below."""
        drawn = [panel for panel in self.panels if panel.frame is not None]
        waiting = [f"{panel.method}: {panel.text or 'no map yet'}" for panel in self.panels if panel.frame is None]
        if not drawn or self.input_view.array is None:
            return [], [self.network.name, *waiting]
        images = [("image", self.input_view.array), *((panel.method, panel.snapshot()) for panel in drawn)]
        lines = [f"{self.network.name}, {self.input_view.alt}"]
        lines += [f"{panel.method}, {panel.map_view.alt}; {panel.detail_text}" for panel in drawn]
        return images, [*lines, *waiting]
