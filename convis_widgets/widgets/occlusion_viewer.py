"""OcclusionViewer: everything that can be seen while a patch slides over the picture and hides one place after another."""

from __future__ import annotations

import html
import operator
from collections.abc import Iterator
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Frames, Run, Unit, nearest, value_range
from ..techniques import occlusion
from .attribution_viewer import AttributionViewer
from .bars import bars
from .controls import ClassPicker, ColorBar, ImagePicker, RunBar, hover_line, join, note
from .encode import blend, draw_box, enlarge, legend, to_uint8
from .frame_view import FrameView
from .gallery import gallery
from .heat import CATEGORIES, OTHER, UNKNOWN, around_gray, in_colors, on_pixels
from .methods import LEAST_FALL
from .viewer import guarded

SIDE = 256
TABS = ("probability", "class", "activation", "projection")
STRONGEST = -1  # the channel with the largest total activation; a menu takes None for no choice


class OcclusionViewer(AttributionViewer):
    """What hiding a place does to the prediction and to a map inside; the hidden picture where the mouse is.

    Four maps, as in Zeiler and Fergus's figure: the probability of the class with the patch at each place, the most probable
    class there, the total activation of one map of a layer, and the projection of that map in the whole picture.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    image : picture, or list or dict of pictures, optional
        Whatever `Network.image` takes; bundled pictures otherwise. More can be uploaded.
    target : int or str, optional
        Class index or label; the most probable class otherwise.
    layer : str, optional
        Whose map is watched; the last layer with positions that is no pooling otherwise.
    unit : Unit, optional
        The map watched; the strongest of the layer otherwise.
    patch, stride : int, optional
        In pixels.
    fill : str
        What the patch shows: "mean", "gray", "black", "white", "blur" or "noise".
    opacity : float
        How strongly a map covers the picture, 0 to 1.

    Examples
    --------
    >>> viewer = OcclusionViewer(target="face", patch=16, stride=8)
    >>> viewer.run.join()
    True
    >>> viewer.frame.arrays["probability"].shape
    (7, 7)
    """

    layer = traitlets.Unicode("", help="Whose map is watched.")
    opacity = traitlets.Float(0.75, min=0, max=1, help="How strongly a map covers the picture.")
    position = traitlets.Any(None, allow_none=True, help="(row, column) of the patch in the grid of positions, or None.")

    def __init__(
        self,
        network: Any = None,
        image: Any = None,
        target: int | str | None = None,
        layer: str | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(network, target, overlap=4, **keywords)
        self._layers = [one.name for one in self.network.layers if one.is_map]
        if layer is not None:
            self.layer = layer
        elif self.unit is not None and self.unit.layer:
            self.layer = self.unit.layer
        elif self._layers:
            last = self.network.layers.last_maps()
            self.layer = self._layers[-1] if last is None else last.name
        self.frame: Frame | None = None
        self._streaming = self._drawn_for = None  # what the worker now draws from, and when the picture was last drawn
        self._hover: tuple[int, int] | None = None
        self._colors: dict[int, np.ndarray] = {}
        self._build(gallery(self.network, image))
        self._begin()

    def _build(self, images: dict[str, Any]) -> None:
        self.images = ImagePicker(images, self.network.transform, self.complain)
        self.classes = ClassPicker(self.network.labels)
        self.knobs = {name: self._control(occlusion, name) for name in ("patch", "stride", "fill")}
        self.layer_menu = ipywidgets.Dropdown(
            options=[("no map", ""), *((n, n) for n in self._layers)], description="map of"
        )
        self.channel_menu = ipywidgets.Dropdown(description="channel")
        self.opacity_slider = ipywidgets.FloatSlider(self.opacity, min=0, max=1, step=0.05, description="overlay")
        self.position_field = ipywidgets.Text(
            description="position", placeholder="row, column", continuous_update=False, layout={"width": "200px"}
        )
        self.bar = RunBar(self._make_run)
        self.input_view = FrameView(on_hover=self._hovered, on_click=self._clicked)
        self.input_caption = ipywidgets.HTML(layout={"min_height": "28px"})
        self.top5 = ipywidgets.HTML()
        self.views = {name: FrameView(on_hover=self._hovered, on_click=self._clicked) for name in TABS}
        self.captions = {name: ipywidgets.HTML(layout={"min_height": "28px"}) for name in TABS}
        self.scales = {name: ColorBar() for name in ("probability", "activation")}
        self.legend, self.hover = ipywidgets.HTML(), hover_line()
        row = {"flex_flow": "row wrap", "align_items": "center"}
        beneath = {**self.scales, "class": self.legend, "projection": ipywidgets.Box([])}
        pages = [ipywidgets.VBox([self.captions[name], self.views[name], beneath[name]]) for name in TABS]
        self.tabs = ipywidgets.Tab(pages, titles=TABS, layout={"width": "400px"})
        seen = ipywidgets.VBox(
            [self.input_caption, self.input_view, self.position_field, self.top5],
            layout={"width": f"{SIDE + 4}px", "margin": "0 12px 0 0"},
        )
        self.children = [
            ipywidgets.HBox([self.images, self.classes], layout=row),
            ipywidgets.HBox([*self.knobs.values()], layout=row),
            ipywidgets.HBox([self.layer_menu, self.channel_menu, self.opacity_slider], layout=row),
            self.bar,
            ipywidgets.HBox([seen, self.tabs], layout={"flex_flow": "row wrap", "align_items": "flex-start"}),
            self.hover,
            self.status,
        ]
        self._list_channels()
        for trait, widget in (
            ("target", self.classes),
            ("layer", self.layer_menu),
            ("opacity", self.opacity_slider),
            *self.knobs.items(),
        ):
            join(self, trait, widget)
        self.channel_menu.observe(self._channel_chosen, "value")
        self.images.observe(self._question_changed, "value")
        self.position_field.observe(self._position_typed, "value")

    # -- state -------------------------------------------------------------------------------------------------

    @traitlets.validate("layer")
    def _layer_exists(self, proposal: dict[str, Any]) -> str:
        if not proposal["value"]:
            return ""
        found = self.network.layers[proposal["value"]]
        if not found.is_map:
            raise traitlets.TraitError(
                f"{found.name} ({found.kind}) has no maps to watch; {nearest(found.name, self._layers)}"
            )
        return found.name

    @traitlets.validate("patch", "stride", "fill")
    def _knob_fits(self, proposal: dict[str, Any]) -> Any:
        return self._fitting(occlusion, proposal)

    @traitlets.observe("target", "layer", "patch", "stride", "fill")
    @guarded
    def _question_changed(self, change: Any) -> None:
        if change["name"] == "layer" and (self.unit is None or self.unit.layer != self.layer):
            with self.quietly():
                self.unit = None
                self._list_channels()
        self.position = self._hover = None
        self._begin()

    @traitlets.observe("unit")
    @guarded
    def _unit_changed(self, _change: Any) -> None:
        """A map chosen here or in a linked widget; one of a layer without positions is none."""
        if self.unit is not None and self.unit.layer not in self._layers:
            return
        with self.quietly():
            self.layer = self.unit.layer if self.unit is not None else self.layer
            self._list_channels()
        self._begin()

    def _list_channels(self) -> None:
        count = self.network.layers[self.layer].channels if self.layer else 0
        options = [("the strongest", STRONGEST), *((str(channel), channel) for channel in range(count))]
        if tuple(options) != self.channel_menu.options:
            self.channel_menu.options = options
        self.channel_menu.value = self.unit.channel if self.unit is not None and self.unit.layer == self.layer else STRONGEST

    @guarded
    def _channel_chosen(self, change: dict[str, Any]) -> None:
        if self.layer:
            self.unit = None if change["new"] == STRONGEST else Unit(self.layer, change["new"])

    @traitlets.validate("position")
    def _position_exists(self, proposal: dict[str, Any]) -> tuple[int, int] | None:
        value = proposal["value"]
        if value is None:
            return None
        try:
            i, j = (operator.index(number) for number in value)
        except (TypeError, ValueError):
            raise traitlets.TraitError(f"position={value!r} should be (row, column), two whole numbers") from None
        if self.frame is None:
            raise traitlets.TraitError("there are no positions yet; wait for the first map")
        n, m = len(self.frame.arrays["rows"]), len(self.frame.arrays["cols"])
        if not (0 <= i < n and 0 <= j < m):
            raise traitlets.TraitError(f"positions of the patch go from 0, 0 to {n - 1}, {m - 1}, not to {i}, {j}")
        return i, j

    @traitlets.observe("position")
    @guarded
    def _position_changed(self, _change: Any) -> None:
        if self.frame is not None:
            self._draw_input()

    @guarded
    def _position_typed(self, change: Any) -> None:
        self.settle()
        text = change["new"].strip("() ")
        try:
            self.position = tuple(int(part) for part in text.split(",")) if text else None
        except ValueError:
            raise ValueError(f"{change['new']!r} is no position; write a row and a column, such as 3, 4") from None

    def _under(self, x: float, y: float) -> tuple[int, int]:
        """The position whose patch is centered nearest to a point of a shown picture."""
        rows, cols = self.frame.arrays["rows"], self.frame.arrays["cols"]
        shown, (height, width) = self.input_view.array.shape, self.frame.image.shape[:2]
        middle = (self._patch - 1) / 2
        down, across = y / shown[0] * height - 0.5, x / shown[1] * width - 0.5
        return int(np.abs(rows + middle - down).argmin()), int(np.abs(cols + middle - across).argmin())

    @guarded
    def _hovered(self, x: float | None, y: float | None) -> None:
        there = None if x is None or y is None or self.frame is None else self._under(x, y)
        if there != self._hover:
            self._hover = there
            if self.frame is not None:
                self._draw_input()

    @guarded
    def _clicked(self, x: float, y: float) -> None:
        if self.frame is not None:
            there = self._under(x, y)
            self.position = None if there == self.position else there

    @traitlets.observe("opacity")
    @guarded
    def _opacity_changed(self, _change: Any) -> None:
        if self.frame is not None:
            self._draw(self.frame)

    # -- the computation ---------------------------------------------------------------------------------------

    def _frames(self, picture: np.ndarray) -> Iterator[Frame]:
        watch = {"layer": self.layer or None}
        if self.unit is not None and self.unit.layer == self.layer:
            watch["channel"] = self.unit.channel
        knobs = {name: getattr(self, name) for name in self.knobs}
        frames = occlusion(self.network, picture, target=self.target, **watch, **knobs)
        self._colors, self._streaming = {}, frames
        return self._with_prediction(picture, frames)

    def _with_prediction(self, picture: np.ndarray, frames: Frames) -> Iterator[Frame]:
        prediction, target, layer = self.network.predict(picture), self.target, self.layer
        with self.lock:
            if frames is self._streaming:  # and no other worker has taken the place of this one
                self.prediction, self._watched = prediction, layer
                self._label = prediction[0][0] if target is None else self.network.labels[target]
        yield from frames

    def _arrived(self, run: Run) -> None:
        if run.last is not None and run.last is not self.frame:
            first, self._drawn_for = self._drawn_for is not self._streaming, self._streaming
            self.frame = run.last
            self._patch = min(self.patch, *self.frame.image.shape[:2])
            self._draw(self.frame, streaming=run.active and not self.frame.done)
            if first or self._hover is not None or self.position is not None:
                self._draw_input()
        if run.state != "running":
            for view in self.views.values():
                view.pump.flush()

    # -- drawing -----------------------------------------------------------------------------------------------

    def _draw(self, frame: Frame, *, streaming: bool = False) -> None:
        composes = {
            "probability": self._probability,
            "class": self._classes,
            "activation": self._activation,
            "projection": self._projection,
        }
        for name, compose in composes.items():
            if streaming and name != "projection":
                self.views[name].stream(lambda compose=compose: enlarge(compose(frame), SIDE))
            elif not streaming or frame.step == 0:
                self.views[name].show(enlarge(compose(frame), SIDE))
        self._describe(frame)

    def _grid(self, frame: Frame, name: str) -> np.ndarray:
        arrays = frame.arrays
        grid = arrays["top"][..., 0] if name == "top" else arrays[name]
        return on_pixels(grid, arrays["rows"], arrays["cols"], self._patch, frame.image.shape[:2])

    def _over(self, frame: Frame, colors: np.ndarray, known: np.ndarray) -> np.ndarray:
        return blend(to_uint8(frame.image), colors, (known * self.opacity).astype(np.float32))

    def _probability(self, frame: Frame) -> np.ndarray:
        p = frame.scalars["probability"] - frame.heat
        return self._over(frame, in_colors(p, self._limits(frame, "probability"), False), np.isfinite(p))

    def _activation(self, frame: Frame) -> np.ndarray:
        if "activation" not in frame.arrays:
            return np.full((*frame.image.shape[:2], 3), UNKNOWN, np.uint8)
        total = self._grid(frame, "activation")
        return self._over(frame, in_colors(total, self._limits(frame, "activation"), False), np.isfinite(total))

    def _classes(self, frame: Frame) -> np.ndarray:
        classes = self._grid(frame, "top")
        colors = np.full((*classes.shape, 3), UNKNOWN, np.uint8)
        for c in np.unique(classes[classes >= 0]):
            colors[classes == c] = self._color_of(int(c))
        return self._over(frame, colors, classes >= 0)

    def _color_of(self, c: int) -> np.ndarray:
        """A color of its own for each of the first few classes met; it stays while the map grows."""
        if c not in self._colors:
            taken = len(self._colors)
            self._colors[c] = CATEGORIES[taken] if taken < len(CATEGORIES) else OTHER
        return self._colors[c]

    def _projection(self, frame: Frame) -> np.ndarray:
        """The signed projection around mid-gray, stretched so that all but a few pixels fit."""
        if "projection" not in frame.arrays:
            return np.full((*frame.image.shape[:2], 3), UNKNOWN, np.uint8)
        return around_gray(frame.arrays["projection"], beyond=0.001)

    def _limits(self, frame: Frame, name: str) -> tuple[float, float]:
        low, high = value_range(np.append(frame.arrays[name], np.float32(frame.scalars[name])))
        middle = (low + high) / 2
        least = LEAST_FALL if name == "probability" else 0.0
        return min(low, middle - least / 2), max(high, middle + least / 2)

    def _describe(self, frame: Frame) -> None:
        p = frame.scalars["probability"]
        texts = dict.fromkeys(TABS, "choose a layer (map of) to watch one of its maps")
        texts["probability"] = f"p({self._label}) with the patch centered there; {p:.1%} without it"
        texts["class"] = "the most probable class with the patch centered there, and at which share of the positions"
        self.scales["probability"].show("viridis", *self._limits(frame, "probability"))
        self.scales["activation"].layout.display = "none"
        if "activation" in frame.arrays:
            which = f"map {frame.scalars['channel']:.0f} of {self._watched}"
            texts["activation"] = (
                f"total activation of {which} with the patch there; {frame.scalars['activation']:.3g} without"
            )
            texts["projection"] = (
                f"what {which} responds to in the whole picture, by a deconvnet"
                if "projection" in frame.arrays
                else f"{self.network.name} has no deconvnet: not all its nonlinearities are ReLU"
            )
            self.scales["activation"].layout.display = ""
            self.scales["activation"].show("viridis", *self._limits(frame, "activation"))
        for name in TABS:
            self.captions[name].value = note(texts[name])
            self.views[name].alt = texts[name]
        self._texts = texts
        self._draw_legend(frame)

    def _entries(self, frame: Frame) -> list[tuple[str, tuple[int, ...]]]:
        """The classes that win somewhere, at which share of the known positions, and the color of each."""
        classes, counts = np.unique(frame.arrays["top"][..., 0], return_counts=True)
        won = sorted(((n, int(c)) for c, n in zip(classes, counts, strict=True) if c >= 0), reverse=True)
        total = max(1, sum(n for n, _ in won))
        return [
            (f"{self.network.labels[c]} at {n / total:.0%}", tuple(map(int, self._color_of(c))))
            for n, c in won[: len(CATEGORIES)]
        ]

    def _draw_legend(self, frame: Frame) -> None:
        square = '<span style="background: rgb{}; padding: 0 9px; margin-right: 8px"></span>'
        self.legend.value = "".join(
            f"<div>{square.format(color)}{html.escape(name)}</div>" for name, color in self._entries(frame)
        )

    def _draw_input(self) -> None:
        """The picture, with the patch laid in where the mouse is, and the top five of just that."""
        frame, at = self.frame, self._hover or self.position
        picture, best = frame.image, self.prediction
        if at is None:
            caption, box = f"the picture: {best[0][0]} {best[0][1]:.1%}", None
        else:
            top, left = int(frame.arrays["rows"][at[0]]), int(frame.arrays["cols"][at[1]])
            box = (top, left, top + self._patch, left + self._patch)
            picture = picture.copy()
            part = np.s_[top : top + self._patch, left : left + self._patch]
            picture[part] = frame.arrays["hiding"][part]
            known = frame.arrays["top"][at]
            best = [
                (self.network.labels[c], float(p)) for c, p in zip(known, frame.arrays["top probability"][at], strict=True)
            ]
            caption = f"hidden at position {at[0]}, {at[1]}"
            if known[0] < 0:
                caption, best = f"{caption}: not computed yet", []
        shown = enlarge(to_uint8(picture), SIDE)
        if box is not None:
            scale = shown.shape[0] / picture.shape[0]
            shown = draw_box(shown, tuple(scale * edge for edge in box))
        self.input_view.show(shown)
        self.input_view.alt = caption
        self.input_caption.value = note(caption)
        self._best, self.top5.value = best, bars(best)
        value = "" if at is None or not best else self._value_at(at)
        self.hover.value = note(value)
        with self.quietly():
            self.position_field.value = "" if at is None else f"{at[0]}, {at[1]}"

    def _value_at(self, at: tuple[int, int]) -> str:
        arrays = self.frame.arrays
        text = f"patch at rows {arrays['rows'][at[0]]} and on, columns {arrays['cols'][at[1]]} and on: "
        text += f"p({self._label}) = {arrays['probability'][at]:.3g}"
        return f"{text}, total activation {arrays['activation'][at]:.3g}" if "activation" in arrays else text

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        if self.frame is None or self.input_view.array is None:
            return [], [f"{self.network.name}: no map yet"]
        panels = [(self.input_view.alt, self.input_view.array)]
        shown = TABS if "activation" in self.frame.arrays else TABS[:2]
        for name in shown:
            if self.views[name].array is not None:
                scale = self.scales.get(name)
                panels.append((name, self.views[name].array if scale is None else scale.under(self.views[name].array)))
        panels.append(("class: at this share of the positions", legend(self._entries(self.frame))))
        lines = [f"{self.network.name}: {', '.join(f'{label} {p:.1%}' for label, p in self._best)}"]
        for name in shown:
            lines.append(f"{name}: {self._texts[name]}")
        return panels, lines
