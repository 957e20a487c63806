"""OcclusionViewer: how a patch at each position of the image changes the prediction and an activation map."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from itertools import starmap
from typing import Any

import ipywidgets
import numpy as np

from ...core.errors import did_you_mean
from ...core.network.unit import Unit
from ...core.runs.frame import Frame
from ...core.types import NetworkLike
from ...techniques import occlusion
from ..base.image_viewer import ImageViewer
from ..base.param_box import COLUMNS_IN_ONE_ROW, report_errors
from ..base.params import ClassParam, KnobParam, LayerParam, Number, Param
from ..base.settings import Field, Setting
from ..base.viewer import COLUMN_GAP, MAX_COLUMN_WIDTH, Panels, set_column_width
from ..controls.color_bar import ColorBar
from ..controls.frame_view import FrameView
from ..controls.run_bar import RunBar
from ..controls.text import readout, text_html
from ..drawing.bars import legend_html, prediction_bars
from ..drawing.compose import draw_legend
from ..drawing.encode import enlarge, to_rgb_uint8
from ..drawing.mosaic import Box
from .methods import default_patch_size
from .occlusion_maps import MAPS, OcclusionMaps

MAP_SIDE = 256  # pixels of an image, if nothing else is known
MIN_TABS_WIDTH, TABS_PADDING = 400, 40  # pixels
MOST_ACTIVE = -1  # the channel with the largest total activation; None would be no choice at all in a menu
POSITIONS_PER_PATCH = 4  # along one side of a patch, for the default stride


class PositionParam(Param):
    """A position of the patch, (row, column), or None."""

    type_text = "(int, int)"

    def check(self, viewer: Any, value: Any) -> tuple[int, int]:
        """Reject everything but two whole numbers within the grid of positions."""
        try:
            i, j = (operator.index(number) for number in value)
        except (TypeError, ValueError):
            raise ValueError(f"position={value!r} should be (row, column), two whole numbers") from None
        if viewer.frame is None:
            raise ValueError("there are no positions yet; wait for the first map")
        n, m = len(viewer.frame.arrays["rows"]), len(viewer.frame.arrays["cols"])
        if not (0 <= i < n and 0 <= j < m):
            raise ValueError(f"position={i, j} is outside of the positions, 0, 0 to {n - 1}, {m - 1}")
        return i, j

    def shown(self, viewer: Any) -> str:
        """The position under the mouse or the selected one, as text."""
        position = viewer.position_shown
        return "" if position is None else f"{position[0]}, {position[1]}"

    def assign(self, viewer: Any, text: str) -> None:
        """Read the position from a text."""
        viewer.clear_error()
        text = text.strip("() ")
        try:
            numbers = tuple(int(part) for part in text.split(",")) if text else None
        except ValueError:
            raise ValueError(f"{text!r} is not a position; write a row and a column, such as 3, 4") from None
        viewer.position = numbers

    def make_control(self, viewer: Any) -> ipywidgets.Widget:
        """A text field."""
        layout = {"width": "200px"}
        return ipywidgets.Text(
            description=self.description, placeholder="row, column", continuous_update=False, layout=layout
        )


class ChannelMenu(Field):
    """A menu of the channels of a layer, with an entry for the most active one."""

    def make_control(self, viewer: Any) -> ipywidgets.Widget:
        """A menu."""
        return ipywidgets.Dropdown(description=self.description)

    def sync(self, viewer: Any, control: ipywidgets.Widget) -> None:
        """List the channels, and select one."""
        count = self.limit(viewer) + 1
        if len(control.options) != count + 1:
            control.options = [("most active", MOST_ACTIVE), *((str(channel), channel) for channel in range(count))]
        Setting.sync(self, viewer, control)


class OcclusionViewer(ImageViewer):
    """How a patch at each position changes the prediction and an activation map; the occluded image under the mouse.

    Four maps, as in the figure of Zeiler and Fergus: the probability of the class with the patch at each position, the most
    probable class there, the total activation of one channel of a layer, and the projection of that channel to the pixels of
    the whole image.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    image : image, or list or dict of images, optional
        See `Network.image`; bundled images by default. Others can be uploaded, or assigned to `image`.

    Examples
    --------
    >>> viewer = OcclusionViewer(target="face", patch_size=16, stride=8)
    >>> viewer.run.join()
    True
    >>> viewer.frame.arrays["probability"].shape
    (7, 7)
    """

    target = ClassParam(
        None,
        "Index or label of the class that is explained; the most probable class by default.",
        effect="settings_changed",
    )
    patch_size = KnobParam.of(
        occlusion, "patch_size", effect="settings_changed", limit=lambda viewer: min(viewer.network.transform.size)
    )
    stride = KnobParam(
        None,
        KnobParam.of(occlusion, "stride").knob,
        "Pixels between two positions; a quarter of the patch by default.",
        effect="settings_changed",
        limit=lambda viewer: min(viewer.network.transform.size),
    )
    baseline = KnobParam.of(occlusion, "baseline", effect="settings_changed")
    layer = LayerParam(
        lambda viewer: viewer.spatial_layers,
        'Layer whose activations are monitored, or ""; the last one with positions that is not a pooling layer by default.',
        default="",
        none_label="none",
        label="monitor layer",
        effect="layer_changed",
    )
    channel = ChannelMenu(
        lambda viewer: MOST_ACTIVE if viewer.monitored_channel is None else viewer.monitored_channel,
        lambda viewer, channel: viewer.select(channel),
        lambda viewer: viewer.network.layers[viewer.layer].channels - 1 if viewer.layer else -1,
        "Channel that is monitored.",
    )
    position = PositionParam(
        None, "Selected position of the patch, row and column in the grid of positions.", effect="position_changed"
    )
    opacity = Number(0.75, 0.0, 1.0, "Opacity of the maps over the image.", label="overlay")

    def __init__(
        self,
        network: NetworkLike = None,
        image: Any = None,
        target: int | str | None = None,
        layer: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, image, target=target, **kwargs)
        self.spatial_layers = [made.name for made in self.network.layers if made.is_spatial]
        last = self.network.layers.last_spatial_layer()
        default = last.name if last is not None else "".join(self.spatial_layers[-1:])
        self.layer = "" if layer == "" else self.initial_layer(layer, default)
        self._hovered_position: tuple[int, int] | None = None
        self._new_maps: OcclusionMaps | None = None  # of the present Run
        self.maps: OcclusionMaps | None = None  # of the Frame shown
        self._predictions: list[tuple[str, float]] = []  # of the image shown
        self._captions: dict[str, str] = {}
        self._make_parts()
        self.recompute()

    def _make_parts(self) -> None:
        self.bar = RunBar(self.make_run)
        self.input_view = FrameView(on_hover=self._hovered, on_click=self._clicked)
        self.input_caption, self.top5 = ipywidgets.HTML(layout={"min_height": "28px"}), ipywidgets.HTML()
        self.map_views = {name: FrameView(on_hover=self._hovered, on_click=self._clicked) for name in MAPS}
        self.captions = {name: ipywidgets.HTML(layout={"min_height": "28px"}) for name in MAPS}
        self.scales = {name: ColorBar() for name in ("probability", "activation")}
        self.legend, self.hover = ipywidgets.HTML(), readout()
        self.make_controls()
        self.controls["opacity"].step = 0.05
        below = {**self.scales, "class": self.legend, "projection": ipywidgets.Box([])}
        pages = [ipywidgets.VBox([self.captions[name], self.map_views[name], below[name]]) for name in MAPS]
        self.tabs = ipywidgets.Tab(pages, titles=[*map(self._title, MAPS)], layout={"flex": "0 0 auto"})
        self._column = ipywidgets.VBox([self.input_caption, self.input_view, self.controls["position"], self.top5])
        self._set_sizes()
        self.children = [
            self.row("images", "target"),
            self.row("patch_size", "stride", "baseline"),
            self.row("layer", "channel", "opacity"),
            self.bar,
            ipywidgets.HBox([self._column, self.tabs], layout=COLUMNS_IN_ONE_ROW),
            self.hover,
            self.status,
        ]
        self.images.observe(self._image_changed, "value")

    def _set_sizes(self) -> None:
        """Let the image and the maps fill the width of the page, side by side."""
        self.side, tabs = MAP_SIDE, MIN_TABS_WIDTH
        if page := self.available_width:
            tabs = max(MIN_TABS_WIDTH, min((page + TABS_PADDING - COLUMN_GAP) // 2, MAX_COLUMN_WIDTH + TABS_PADDING))
            self.side = min(page - tabs - COLUMN_GAP, tabs - TABS_PADDING)
        set_column_width(self._column, self.side)
        self.tabs.layout.width = f"{tabs}px"
        for scale in self.scales.values():
            scale.set_width(self.side)

    def page_resized(self) -> None:
        """Draw images that fill the width of the page."""
        self._set_sizes()
        self.redraw()
        if self.frame is not None and self.maps is not None:
            self._draw_input(self.frame, self.maps)

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def monitored_channel(self) -> int | None:
        """The monitored channel; None for the most active one."""
        selected = self.unit is not None and self.layer and self.unit.layer == self.layer
        return self.unit.channel if selected else None

    @property
    def position_shown(self) -> tuple[int, int] | None:
        """The position under the mouse, or else the selected one."""
        return self._hovered_position or self.position

    def default_of(self, name: str) -> int:
        """What is used where a setting is None."""
        patch_size = self.patch_size or default_patch_size(self.network)
        return patch_size if name == "patch_size" else max(1, round(patch_size / POSITIONS_PER_PATCH))

    def views(self) -> Iterable[FrameView]:
        """The views of the maps."""
        return self.map_views.values()

    def check_layer(self, name: str) -> str:
        """Return the name; ValueError if the layer has no positions."""
        layer = self.network.layers[name]
        if not layer.is_spatial:
            raise ValueError(f"{name} ({layer.kind}) has no activation maps; {did_you_mean(name, self.spatial_layers)}")
        return name

    def settings_changed(self) -> None:
        """Compute new maps."""
        with self.handlers_muted():
            self.position = self._hovered_position = None
        self.sync_controls()
        self.recompute()

    @report_errors
    def _image_changed(self, _change: Any) -> None:
        self.settings_changed()

    def layer_changed(self) -> None:
        """Monitor the most active channel of another layer."""
        if self.unit is not None and self.unit.layer != self.layer:
            with self.handlers_muted():
                self.unit = None
        self.settings_changed()

    def unit_changed(self) -> None:
        """Monitor the selected unit; units of layers without positions are ignored."""
        if self.unit is not None and self.unit.layer not in self.spatial_layers:
            return
        if self.unit is not None:
            with self.handlers_muted():
                self.layer = self.unit.layer
        self.sync_controls()
        self.recompute()

    def select(self, channel: int) -> None:
        """Monitor a channel of the layer, or the most active one."""
        if self.layer:
            self.unit = None if channel == MOST_ACTIVE else Unit(self.layer, channel)

    def position_changed(self) -> None:
        """Show the image with the patch at the selected position."""
        if self.frame is not None and self.maps is not None:
            self._draw_input(self.frame, self.maps)

    def _position_at(self, x: float, y: float) -> tuple[int, int] | None:
        """The position whose patch is centered nearest to a point of a view."""
        if self.frame is None or self.maps is None or self.input_view.array is None:
            return None
        (height, width), view = self.frame.image.shape[:2], self.input_view.array.shape
        return self.maps.position_at(self.frame, y / view[0] * height - 0.5, x / view[1] * width - 0.5)

    @report_errors
    def _hovered(self, x: float | None, y: float | None) -> None:
        position = None if x is None or y is None else self._position_at(x, y)
        if position != self._hovered_position:
            self._hovered_position = position
            self.position_changed()

    @report_errors
    def _clicked(self, x: float, y: float) -> None:
        position = self._position_at(x, y)
        self.position = None if position == self.position else position

    # -- the computation -----------------------------------------------------------------------------------------

    def make_frames(self) -> Iterator[Frame]:
        """The computation for the present settings."""
        image = self.input_image()
        patch_size = min(self.patch_size or self.default_of("patch_size"), *image.shape[:2])
        frames = occlusion(
            self.network,
            image,
            target=self.target,
            patch_size=patch_size,
            stride=self.stride or self.default_of("stride"),
            baseline=self.baseline,
            layer=self.layer or None,
            channel=self.monitored_channel,
        )
        maps = self._new_maps = OcclusionMaps(self.network, self.target, self.layer, patch_size)

        def with_prediction() -> Iterator[Frame]:
            maps.prediction = self.network.predict(image)
            yield from frames

        return with_prediction()

    # -- drawing -------------------------------------------------------------------------------------------------

    def draw(self, frame: Frame, *, streaming: bool = False) -> None:
        """Draw the four maps, and the occluded image where it has changed."""
        first, self.maps = self.maps is not self._new_maps, self._new_maps
        if self.maps is not None:
            self._draw_maps(frame, self.maps, streaming=streaming)
            if first or self.position_shown is not None:
                self._draw_input(frame, self.maps)

    def redraw(self) -> None:
        """Draw the maps with the present opacity."""
        if self.frame is not None and self.maps is not None:
            self._draw_maps(self.frame, self.maps)

    def _draw_maps(self, frame: Frame, maps: OcclusionMaps, *, streaming: bool = False) -> None:
        for name, view in self.map_views.items():

            def compose(name: str = name, side: int = self.side) -> np.ndarray:
                return enlarge(maps.draw(name, frame, self.opacity), side)

            if streaming and name != "projection":
                view.stream(compose)
            elif not streaming or frame.step == 0:  # the projection does not change
                view.show(compose())
        self.scales["activation"].layout.display = "" if "activation" in frame.arrays else "none"
        for name, scale in self.scales.items():
            if name == "probability" or name in frame.arrays:
                scale.show("viridis", *maps.limits(name, frame))
        self._captions = maps.captions(frame)
        for name, text in self._captions.items():
            self.captions[name].value = text_html(text)
            self.map_views[name].alt = text
        self.legend.value = legend_html(maps.legend(frame))

    def _draw_input(self, frame: Frame, maps: OcclusionMaps) -> None:
        """Show the image, with the patch at a position, and its most probable classes."""
        position, image, self._predictions = self.position_shown, frame.image, maps.prediction
        boxes: list[Box] = []
        caption, readout_text = f"image: {self.network.output.describe(*self._predictions[0])}", ""
        if position is not None:
            occluded = maps.occlude(frame, position)
            image, self._predictions = occluded.image, occluded.predictions
            caption = f"patch at position {position[0]}, {position[1]}{'' if occluded.known else ': not computed yet'}"
            readout_text = maps.values_at(frame, position) if occluded.known else ""
            boxes.append(occluded.box)
        shown = enlarge(to_rgb_uint8(image), self.side)
        scale = shown.shape[0] / image.shape[0]
        self.input_view.show(shown, boxes=[[scale * edge for edge in box] for box in boxes])
        self.input_view.alt = caption
        self.input_caption.value, self.hover.value = text_html(caption), text_html(readout_text)
        self.top5.value = prediction_bars(self._predictions, self.network.output)
        with self.handlers_muted():
            type(self).settings["position"].sync(self, self.controls["position"])

    def snapshot_panels(self) -> Panels:
        """The image, the maps and the legend."""
        if self.frame is None or self.maps is None or self.input_view.array is None:
            return [], [f"{self.network.name}: no map yet"]
        names = MAPS if "activation" in self.frame.arrays else MAPS[:2]
        panels: list[tuple[str, np.ndarray]] = [(self.input_view.alt, self.input_view.with_boxes())]
        for name in names:
            array = self.map_views[name].array
            if array is not None:
                panels.append((self._title(name), self.scales[name].append_to(array) if name in self.scales else array))
        panels.append(("class: fraction of the positions", draw_legend(self.maps.legend(self.frame))))
        lines = [f"{self.network.name}: {', '.join(starmap(self.network.output.describe, self._predictions))}"]
        return panels, lines + [f"{self._title(name)}: {self._captions[name]}" for name in names]

    def _title(self, name: str) -> str:
        """Title of a map: "value" instead of "probability" for a network that returns values."""
        return "value" if name == "probability" and not self.network.output.has_probabilities else name
