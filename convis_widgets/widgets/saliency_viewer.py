"""SaliencyViewer: which pixels the answer hangs on, by every method there is for it, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Frames, Run
from .attribution_viewer import AttributionViewer
from .controls import ClassPicker, ImagePicker, RunBar, UnitPicker, hover_line, join, note
from .encode import enlarge, to_uint8
from .frame_view import FrameView
from .gallery import gallery
from .heat import VIEWS
from .heat_panel import ABOVE, SIDE, HeatPanel
from .methods import METHODS, method_named
from .randomization_viewer import RandomizationViewer
from .viewer import guarded

KNOBS = {knob: name for name, method in METHODS.items() for knob in method.knobs}
"""Which method has a knob."""


class SaliencyViewer(AttributionViewer):
    """Which pixels matter for a class or a unit: the picture, and for each method its map with the raw range.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    image : picture, or list or dict of pictures, optional
        Whatever `Network.image` takes; bundled pictures otherwise. More can be uploaded.
    method : str or sequence of str
        One of "gradient", "guided backprop", "deconvnet", "smooth grad", "integrated gradients", "grad-cam", "occlusion" and
        "segmentation", or several of them, side by side. The names of techniques will do, too.
    target : int or str, optional
        Class index or label; the most probable class otherwise.
    unit : Unit, optional
        Explained instead of a class, also one that is selected in a linked widget.
    explain : str
        "a class" or "a unit".
    view : str
        What stands beside a map: "overlay" (the map over the picture), or of its highest values the "mask" or "cut-out".
    opacity : float
        How strongly the map covers the picture, 0 to 1.
    share : float
        How much of the picture counts as its highest values, 0 to 1.
    patch, stride, fill, samples, noise, steps, baseline : optional
        Knobs of `occlusion`, `smooth_grad` and `integrated_gradients`; sizes in pixels.

    Examples
    --------
    >>> viewer = SaliencyViewer(method=["gradient", "grad-cam"], target="face")
    >>> viewer.frames["grad-cam"].heat.shape
    (64, 64)
    """

    method = traitlets.Any("gradient", help="How the map is made; a tuple for several side by side.")
    explain = traitlets.Enum(["a class", "a unit"], "a class", help="What is explained.")
    view = traitlets.Enum(VIEWS, "overlay", help="What stands beside a map.")
    opacity = traitlets.Float(0.6, min=0, max=1, help="How strongly the map covers the picture.")
    share = traitlets.Float(0.15, min=0, max=1, help="How much of the picture the mask keeps.")
    samples = traitlets.Int(32, help="Noisy copies of the picture.")
    noise = traitlets.Float(0.15, help="Deviation of the noise, as a share of the picture's range.")
    steps = traitlets.Int(64, help="Points on the path from the baseline to the picture.")
    baseline = traitlets.Unicode("mean", help="Where that path begins.")

    def __init__(
        self,
        network: Any = None,
        image: Any = None,
        method: Any = "gradient",
        target: int | str | None = None,
        **keywords: Any,
    ) -> None:
        if target is not None and keywords.get("unit") is not None and "explain" not in keywords:
            raise ValueError("give target= (a class) or unit= (anything else), or say which one to explain=")
        super().__init__(network, target, overlap=6, **keywords)
        if self.unit is not None and self.unit.layer and "explain" not in keywords:
            self.explain = "a unit"
        self.frames: dict[str, Frame] = {}  # the newest of each method
        self.refusals: dict[str, str] = {}  # why a method has none
        self._answered: set[str] = set()  # methods whose last Frame is there
        self._streaming: dict[str, Frames] = {}  # what the worker now draws from
        self._seen: np.ndarray | None = None  # the picture that is asked about, until it is drawn
        self._check: RandomizationViewer | None = None
        self.method = method
        self._build(gallery(self.network, image))
        self._arrange()
        self._begin()
        if self.run is not None and not any(METHODS[name].streams for name in self.methods):
            self.run.join()

    def _build(self, images: dict[str, Any]) -> None:
        self.images = ImagePicker(images, self.network.transform, self.complain)
        self.explain_menu = ipywidgets.Dropdown(options=["a class", "a unit"], description="explain")
        self.classes, self.units = ClassPicker(self.network.labels), UnitPicker(self.network.layers)
        self.view_menu = ipywidgets.Dropdown(options=VIEWS, description="show as")
        slider = {"min": 0, "max": 1, "step": 0.05}
        self.opacity_slider = ipywidgets.FloatSlider(self.opacity, description="overlay", **slider)
        self.share_slider = ipywidgets.FloatSlider(
            self.share, min=0.01, max=1, step=0.01, description="keep", readout_format=".0%"
        )
        self.add = ipywidgets.Button(description="Compare", icon="plus", tooltip="Put one more method beside")
        self.doubt = ipywidgets.Button(
            description="Worth believing?",
            icon="question",
            tooltip="Randomize the network from the top down and see whether the first map changes",
        )
        self.doubt.layout.width = "160px"
        self.knobs = {knob: self._control(METHODS[name].technique, knob) for knob, name in KNOBS.items()}
        self.bar = RunBar(self._anew)
        self.input_view = FrameView(on_hover=lambda x, y: self._hovered(*self.input_view.share(x, y)))
        self.input_caption = ipywidgets.HTML()
        self.input_caption.layout.min_height = f"{ABOVE}px"
        self.hover = hover_line()
        row = {"flex_flow": "row wrap", "align_items": "center"}
        picture = ipywidgets.VBox([self.input_caption, self.input_view], layout={"width": f"{SIDE + 4}px"})
        picture.layout.margin = "0 8px 0 0"
        self._row = ipywidgets.HBox([picture], layout={"flex_flow": "row wrap", "align_items": "flex-start"})
        self._knob_row = ipywidgets.HBox(list(self.knobs.values()), layout=row)
        self._below = ipywidgets.VBox([])
        self.panels: list[HeatPanel] = []
        self.children = [
            ipywidgets.HBox([self.images, self.explain_menu, self.classes, self.units], layout=row),
            ipywidgets.HBox([self.view_menu, self.opacity_slider, self.share_slider, self.add, self.doubt], layout=row),
            self._knob_row,
            self.bar,
            self._row,
            self.hover,
            self.status,
            self._below,
        ]
        for trait, widget in (
            ("target", self.classes),
            ("explain", self.explain_menu),
            ("view", self.view_menu),
            ("opacity", self.opacity_slider),
            ("share", self.share_slider),
            *self.knobs.items(),
        ):
            join(self, trait, widget)
        if self.unit is not None and self.unit.layer:
            self.units.value = self.unit
        elif self.unit is not None:
            self.target = self.unit.channel
        self.units.observe(lambda change: self.set_trait("unit", change["new"]), "value")
        self.images.observe(self._question_changed, "value")
        self.add.on_click(lambda _button: self._add())
        self.doubt.on_click(lambda _button: self.check())

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods shown, from left to right."""
        return (self.method,) if isinstance(self.method, str) else self.method

    @property
    def frame(self) -> Frame | None:
        """The newest Frame of the first method."""
        return self.frames.get(self.methods[0])

    @traitlets.validate("method")
    def _method_exists(self, proposal: dict[str, Any]) -> Any:
        value = proposal["value"]
        names = tuple(map(method_named, value if isinstance(value, (list, tuple)) else [value]))
        if not names or len(set(names)) < len(names):
            raise traitlets.TraitError(f"method={value!r} should be different ones of {', '.join(METHODS)}")
        return names[0] if len(names) == 1 else names

    @traitlets.validate(*KNOBS)
    def _knob_fits(self, proposal: dict[str, Any]) -> Any:
        return self._fitting(METHODS[KNOBS[proposal["trait"].name]].technique, proposal)

    @traitlets.observe("target", "unit", "explain")
    @guarded
    def _question_changed(self, change: Any) -> None:
        if change["name"] == "unit":
            if self.unit is None:
                return
            with self.quietly():
                self._follow_unit()
        elif change["name"] == "target":
            with self.quietly():
                self.explain = "a class"
        self._show_controls()
        self._forget(*METHODS)
        self._dismiss_check()
        self._begin()

    def _follow_unit(self) -> None:
        """What was selected, here or in a linked widget, is what is explained."""
        if self.unit.layer:
            self.units.value, self.explain = self.unit, "a unit"
        else:
            self.target, self.explain = self.unit.channel, "a class"

    @traitlets.observe(*KNOBS)
    @guarded
    def _knob_changed(self, change: Any) -> None:
        self._forget(KNOBS[change["name"]])
        if KNOBS[change["name"]] in self.methods:
            self._begin()

    @traitlets.observe("method")
    @guarded
    def _method_changed(self, _change: Any) -> None:
        if self._check is not None and self._check.method != self.methods[0]:
            self._dismiss_check()
        self._arrange()
        self._begin()

    @traitlets.observe("opacity", "share", "view")
    @guarded
    def _look_changed(self, _change: Any) -> None:
        self._show_controls()
        self._draw(self.panels)

    def _forget(self, *names: str) -> None:
        """The answers of these methods are no longer true; what is shown stays until there is something better."""
        self._answered.difference_update(names)
        for name in {*names} - {*self.methods}:
            self.frames.pop(name, None)

    def _arrange(self) -> None:
        """A panel for each method, those that stay untouched."""
        with self.quietly():
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
        for panel in self.panels:
            panel.arrange(alone=len(self.panels) == 1)
        self._row.children = [self._row.children[0], *self.panels]
        self._show_controls()
        for panel in self.panels:
            if panel.frame is not None and panel.frame is not self.frames.get(panel.method):
                panel.clear()
        self._draw([panel for panel in self.panels if panel.frame is None])

    def _show_controls(self) -> None:
        """The controls of what is chosen, and no others."""
        self.add.disabled = len(self.methods) == len(METHODS)
        for knob, widget in self.knobs.items():
            widget.layout.display = "" if KNOBS[knob] in self.methods else "none"
        for widget, there in (
            (self.classes, self.explain == "a class"),
            (self.units, self.explain == "a unit"),
            (self.opacity_slider, self.view == "overlay"),
            (self.share_slider, self.view != "overlay"),
            (self.bar, any(METHODS[name].streams for name in self.methods)),
        ):
            widget.layout.display = "" if there else "none"

    @guarded
    def _menu_changed(self, change: Any) -> None:
        for panel in self.panels:  # one that shows this method already takes the other's place
            if panel.menu is not change["owner"] and panel.method == change["new"]:
                with self.quietly():
                    panel.menu.value = change["old"]
        self.method = tuple(panel.method for panel in self.panels)

    @guarded
    def _add(self) -> None:
        if len(self.methods) < len(METHODS):  # a second click may come before the button is disabled
            self.method = (*self.methods, next(name for name in METHODS if name not in self.methods))

    @guarded
    def _remove(self, panel: HeatPanel) -> None:
        if panel in self.panels and len(self.panels) > 1:  # so may one on a panel that is gone, or the last one
            at = self.panels.index(panel)
            self.panels.pop(at).close()
            self.method = (*self.methods[:at], *self.methods[at + 1 :])

    @guarded
    def check(self) -> None:
        """See whether the first method's map depends on what the network has learned; the answer appears below."""
        self._dismiss_check()
        asked = {"target": self.target} if self.explain == "a class" else {"unit": self.units.value}
        self._check = RandomizationViewer(self.network, self.images.value, self.methods[0], **asked)
        self._below.children = [self._check]

    def _dismiss_check(self) -> None:
        """Its answer is that to another question."""
        if self._check is not None:
            self._below.children = []
            self._check.close()
            self._check = None

    # -- the computation ---------------------------------------------------------------------------------------

    def _anew(self) -> Run | None:
        self._forget(*METHODS)
        return self._make_run()

    def _frames(self, picture: np.ndarray) -> Iterator[Frame] | None:
        missing = [name for name in dict.fromkeys(self.methods) if name not in self._answered]
        asked = {"target": self.target} if self.explain == "a class" else {"of": self.units.value}
        streams = self._streams(missing, picture, asked)
        if not streams:
            self._draw(self.panels)
            return None
        self._streaming = streams
        return self._in_turn(picture, streams)

    def _streams(self, names: list[str], picture: np.ndarray, asked: dict[str, Any]) -> dict[str, Frames]:
        streams = {}
        for name in names:
            method = METHODS[name]
            knobs = {knob: getattr(self, knob) for knob in method.knobs}
            try:
                streams[name] = method.technique(self.network, picture, **asked, **knobs)
            except ImportError as error:
                self.refusals[name] = str(error)
        return streams

    def _in_turn(self, picture: np.ndarray, streams: dict[str, Frames]) -> Iterator[Frame]:
        """One Frame of every method after the other, so that none waits for the others; one that cannot says why."""
        at: dict[str, tuple[int, int]] = {}
        try:
            p = self.network.probabilities_of(picture)
            self._note(streams, seen=(picture, p))
            while streams:
                for name in list(streams):
                    try:
                        frame = next(streams[name])
                    except StopIteration:
                        del streams[name]
                        continue
                    except ValueError as error:
                        del streams[name]
                        self._note(streams, name, refusal=str(error))
                        frame = Frame(1, 1)
                    else:
                        self._note(streams, name, frame=frame)
                    at[name] = (frame.step, frame.total or frame.step)
                    step, total = (sum(counts) for counts in zip(*at.values(), strict=True))
                    yield Frame(step, total, done=step == total and len(streams) == 1)
        finally:
            for frames in streams.values():
                frames.close()

    def _note(
        self,
        streams: dict[str, Frames],
        name: str = "",
        *,
        frame: Frame | None = None,
        refusal: str = "",
        seen: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> None:
        """Keep what a worker found, unless another one has taken its place."""
        with self.lock:
            if streams is not self._streaming:
                return
            if seen is not None:
                self._seen, self.probabilities = seen
            if frame is not None:
                self.frames[name] = frame
                self.refusals.pop(name, None)
                if frame.done:
                    self._answered.add(name)
            if refusal:
                self.frames.pop(name, None)
                self.refusals[name] = refusal

    def _worth_keeping(self, _frame: Frame) -> bool:
        return all(name in self.frames or name in self.refusals for name in self.methods)

    def _arrived(self, run: Run) -> None:
        streaming = run.active
        new = [panel for panel in self.panels if self.frames.get(panel.method) is not panel.frame]
        refused = [panel for panel in self.panels if panel.method in self.refusals]
        self._draw([*new, *refused] if streaming else self.panels, streaming=streaming)
        if run.state != "running":
            for panel in self.panels:
                panel.flush()

    # -- drawing -----------------------------------------------------------------------------------------------

    def _draw(self, panels: list[HeatPanel], *, streaming: bool = False) -> None:
        for panel in panels:
            frame = self.frames.get(panel.method)
            if panel.method in self.refusals:
                panel.clear(self.refusals[panel.method])
            elif frame is not None:
                moving = streaming and not frame.done
                panel.show(frame, self._caption(panel.method, frame), self.view, self.opacity, self.share, streaming=moving)
        if self._seen is not None:
            self.input_view.show(enlarge(to_uint8(self._seen), SIDE))
            self._seen = None
            classes = [int(self.probabilities.argmax())]
            if self.explain == "a class" and self.target not in (None, classes[0]):
                classes.append(self.target)
            said = [f"{self.network.labels[c]} {self.probabilities[c]:.1%}" for c in classes]
            self.input_view.alt = f"picture: {', '.join(said)}"
            self.input_caption.value = "".join(map(note, [f"picture: {said[0]}", *(f"asked: {p}" for p in said[1:])]))

    def _caption(self, name: str, frame: Frame) -> str:
        if self.explain == "a unit":
            unit = self.units.value
            what, value = f"{unit.layer}, channel {unit.channel}", f"{frame.scalars.get('value', float('nan')):.3g}"
        else:
            target = int(self.probabilities.argmax()) if self.target is None else self.target
            label, value = self.network.labels[target], f"{self.probabilities[target]:.1%}"
            what = f"p({label})" if name == "occlusion" else f"the score of {label}"
        caption = METHODS[name].shows.format(what=what, value=value, baseline=self.baseline)
        if self.explain == "a unit" and frame.done and not frame.heat.any():
            return f"{what} is off in this picture: no pixel changes it a little"
        return caption

    @guarded
    def _hovered(self, down: float | None, across: float | None) -> None:
        """The raw values of all maps at the pixel under the mouse."""
        there = [panel for panel in self.panels if panel.frame is not None]
        if down is None or across is None or not there:
            self.hover.value = ""
            return
        height, width = there[0].frame.heat.shape
        row, column = min(height - 1, max(0, int(down * height))), min(width - 1, max(0, int(across * width)))
        values = "; ".join(f"{panel.method} {panel.frame.heat[row, column]:.3g}" for panel in there)
        self.hover.value = note(f"row {row}, column {column}: {values}")

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        there = [panel for panel in self.panels if panel.frame is not None]
        waiting = [f"{panel.method}: {panel.text or 'no map yet'}" for panel in self.panels if panel.frame is None]
        if not there or self.input_view.array is None:
            return [], [self.network.name, *waiting]
        panels = [("picture", self.input_view.array), *((panel.method, panel.page) for panel in there)]
        lines = [f"{self.network.name}, {self.input_view.alt}"]
        for panel in there:
            lines.append(f"{panel.method}, {panel.map_view.alt}; {panel.under_text}")
        return panels, [*lines, *waiting]
