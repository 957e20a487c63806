"""SaliencyViewer: which pixels the prediction hangs on, by gradient or by hiding them."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Run, colorize, knobs_of, to_unit, value_range
from ..techniques import occlusion, saliency
from .controls import ClassPicker, ColorBar, ImagePicker, RunBar, control, note
from .encode import beside, blend, enlarge, grayed, to_uint8
from .frame_view import FrameView
from .gallery import gallery
from .viewer import Viewer, guarded

SIDE = 256
LEAST = 1e-3  # the range of probabilities shown is at least this
METHODS = {"gradient": saliency, "occlusion": occlusion}


class SaliencyViewer(Viewer):
    """Which pixels matter for a class: the picture, the map with its raw range, and the map over the picture.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    image : picture, or list or dict of pictures, optional
        Whatever `Network.image` takes; bundled pictures otherwise. More can be uploaded.
    method : str
        "gradient": how much each pixel would change the score if it were wiggled. "occlusion": how much the probability
        falls when a patch hides each place; streams, coarse to fine.
    target : int or str, optional
        Class index or label; the most probable class otherwise.
    opacity : float
        How strongly the map covers the picture, 0 to 1.
    patch, stride : int, optional
        Of occlusion, in pixels.
    fill : str
        Of occlusion: "mean", "gray", "black" or "white".

    Examples
    --------
    >>> viewer = SaliencyViewer(target="face")
    >>> viewer.frame.heat.shape
    (64, 64)
    """

    method = traitlets.Enum(list(METHODS), "gradient", help="How the map is made.")
    target = traitlets.Int(None, allow_none=True, help="Index of the class explained; None for the most probable.")
    opacity = traitlets.Float(0.6, min=0, max=1, help="How strongly the map covers the picture.")
    patch = traitlets.Int(1, help="Side of the patch that hides, in pixels.")
    stride = traitlets.Int(1, help="Pixels between two positions of the patch.")
    fill = traitlets.Unicode("mean", help="What the patch shows.")

    def __init__(
        self,
        network: Any = None,
        image: Any = None,
        method: str = "gradient",
        target: int | str | None = None,
        **keywords: Any,
    ) -> None:
        self._ready = False
        super().__init__(network, **keywords)
        side = min(self.network.transform.size)
        if "patch" not in keywords:
            self.patch = max(1, round(side / 5))
        if "stride" not in keywords:
            self.stride = max(1, round(self.patch / 6))
        self.target = None if target is None else self.network.target(target)
        self.frame: Frame | None = None
        self._drawn = None
        self._build(gallery(self.network, image))
        self.method = method
        self._ready = True
        self._begin()
        if self.run is not None and method == "gradient":
            self.run.join()

    def _build(self, images: dict[str, Any]) -> None:
        self.input_view, self.heat_view, self.overlay_view = FrameView(), FrameView(), FrameView()
        self.images = ImagePicker(images, self.network.transform, self.complain)
        self.method_menu = ipywidgets.Dropdown(options=list(METHODS), description="method")
        self.classes = ClassPicker(self.network.labels)
        self.opacity_slider = ipywidgets.FloatSlider(self.opacity, min=0, max=1, step=0.05, description="overlay")
        side = min(self.network.transform.size)
        self.knobs: dict[str, ipywidgets.Widget] = {}
        for name, knob in knobs_of(occlusion).items():
            self.knobs[name] = control(name, knob, getattr(self, name))
            if name != "fill":
                self.knobs[name].max = side
        self.bar = RunBar(self._make_run)
        self.captions = [ipywidgets.HTML(layout={"min_height": "46px"}) for _ in range(3)]  # room for two lines
        self.scale = ColorBar()
        row = {"flex_flow": "row wrap", "align_items": "center"}
        columns = [
            ipywidgets.VBox([self.captions[0], self.input_view]),
            ipywidgets.VBox([self.captions[1], self.heat_view, self.scale]),
            ipywidgets.VBox([self.captions[2], self.overlay_view]),
        ]
        for column in columns:
            column.layout.margin, column.layout.width = "0 6px 0 0", f"{SIDE + 2}px"
        self._occlusion_controls = ipywidgets.HBox(list(self.knobs.values()), layout=row)
        self.children = [
            ipywidgets.HBox([self.images, self.classes], layout=row),
            ipywidgets.HBox([self.method_menu, self.opacity_slider], layout=row),
            self._occlusion_controls,
            self.bar,
            ipywidgets.HBox(columns, layout={"flex_flow": "row wrap", "align_items": "flex-start"}),
            self.status,
        ]
        for trait, widget in (("method", self.method_menu), ("opacity", self.opacity_slider), ("target", self.classes)):
            traitlets.link((self, trait), (widget, "value"))
        for name, widget in self.knobs.items():
            traitlets.link((self, name), (widget, "value"))
        self.images.observe(self._question_changed, "value")

    # -- state -------------------------------------------------------------------------------------------------

    @traitlets.validate("target")
    def _class_exists(self, proposal: dict[str, Any]) -> int | None:
        return None if proposal["value"] is None else self.network.target(proposal["value"])

    @traitlets.validate("patch", "stride", "fill")
    def _knob_fits(self, proposal: dict[str, Any]) -> Any:
        name = proposal["trait"].name
        knobs_of(occlusion)[name].check(name, proposal["value"])
        return proposal["value"] if name == "fill" else min(proposal["value"], *self.network.transform.size)

    @traitlets.observe("method", "target", "patch", "stride", "fill")
    @guarded
    def _question_changed(self, change: Any) -> None:
        if self._ready and (self.method == "occlusion" or change["name"] not in self.knobs):
            self._begin()

    @traitlets.observe("opacity")
    @guarded
    def _opacity_changed(self, _change: Any) -> None:
        if self._ready and self.frame is not None:
            self._draw_overlay(self.frame)

    def _begin(self) -> None:
        """Answer the question as it now stands."""
        run = self._make_run()
        if run is not None:
            run.start()

    def _make_run(self) -> Run | None:
        self._occlusion_controls.layout.display = self.bar.layout.display = "none" if self.method == "gradient" else ""
        try:
            words = {name: getattr(self, name) for name in self.knobs} if self.method == "occlusion" else {}
            frames = METHODS[self.method](self.network, self.images.value, target=self.target, **words)
            self.probabilities = self.network.probabilities_of(self.images.value)
            self.prediction = self.network.predict(self.images.value)
        except Exception as error:  # noqa: BLE001
            self.halt()
            self.complain(error)
            return None
        self.settle()
        run = self.launch(frames, self._arrived, start=False)
        self.bar.follow(run)
        return run

    def _arrived(self, run: Run) -> None:
        self.bar.update(run)
        new = run.last is not self.frame and run.last is not None
        if new:
            self.frame = run.last
        if self.frame is None or not (new or not run.active):
            return
        self._draw(self.frame, streaming=run.active and not self.frame.done)
        if run.state != "running":
            for view in (self.heat_view, self.overlay_view):
                view.pump.flush()

    # -- drawing -----------------------------------------------------------------------------------------------

    @property
    def range(self) -> tuple[float, float]:
        """The raw values at the two ends of the color scale."""
        if self.frame is None:
            return (0.0, 0.0)
        low, high = value_range(self.frame.heat, signed=self._signed)
        # of a probability that hardly changes no differences are to be shown
        return (min(low, -LEAST), max(high, LEAST)) if self._signed else (low, high)

    @property
    def _signed(self) -> bool:
        return self.method == "occlusion"

    def _draw(self, frame: Frame, *, streaming: bool) -> None:
        if frame.image is not self._drawn:
            self._drawn = frame.image
            self.input_view.show(enlarge(to_uint8(frame.image), SIDE))
        for view, compose in ((self.heat_view, self._heat), (self.overlay_view, self._overlay)):
            if streaming:
                view.stream(lambda compose=compose: compose(frame))
            else:
                view.show(compose(frame))
        self._describe()

    def _draw_overlay(self, frame: Frame) -> None:
        self.overlay_view.show(self._overlay(frame))

    def _heat(self, frame: Frame) -> np.ndarray:
        colors = colorize(frame.heat, "balance" if self._signed else "viridis", *self.range)
        colors[~np.isfinite(frame.heat)] = 128
        return enlarge(colors, SIDE)

    def _overlay(self, frame: Frame) -> np.ndarray:
        low, high = self.range
        picture, heat = to_uint8(frame.image), frame.heat
        known = np.isfinite(heat)
        if self._signed:  # where nothing changes the picture stays as it is
            strength = np.abs(to_unit(heat, low, high) - 0.5) * 2
        else:
            strength = to_unit(heat, low, high)
            picture = grayed(picture)
        weight = np.where(known, self.opacity * np.sqrt(strength), 0)
        colors = colorize(heat, "balance" if self._signed else "viridis", low, high)
        return enlarge(blend(picture, colors, weight.astype(np.float32)), SIDE)

    def _describe(self) -> None:
        target = self.target
        label = self.prediction[0][0] if target is None else self.network.labels[target]
        p = self.prediction[0][1] if target is None else float(self.probabilities[target])
        low, high = self.range
        self.scale.show("balance" if self._signed else "viridis", low, high)
        best = self.prediction[0]
        self._text = [
            f"picture: {best[0]} {best[1]:.1%}",
            f"|d score / d pixel| of {label}"
            if self.method == "gradient"
            else f"how much p({label}) = {p:.1%} falls where hidden",
            f"{label}: where it matters",
        ]
        for caption, text in zip(self.captions, self._text, strict=True):
            caption.value = note(text)
        self.input_view.alt = self._text[0]
        self.heat_view.alt = f"{self._text[1]}, from {low:.3g} to {high:.3g}"
        self.overlay_view.alt = self._text[2]

    def snapshot(self) -> np.ndarray:
        """The picture, the map and the overlay, with the raw range."""
        if self.frame is None:
            return beside([("no map yet", np.full((64, 64, 3), 128, np.uint8))])
        low, high = self.range
        views = (self.input_view, self.heat_view, self.overlay_view)
        panels = [(text, view.array) for text, view in zip(self._text, views, strict=True) if view.array is not None]
        return beside(panels, f"{self.network.name}; map from {low:.3g} to {high:.3g}")
