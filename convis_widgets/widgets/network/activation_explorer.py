"""ActivationExplorer: the activation maps of a layer, and the receptive field of a unit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import starmap
from typing import Any

import ipywidgets
import numpy as np

from ...core.network.layers import Layer
from ...core.network.unit import Unit
from ...core.runs.frame import Frame
from ...core.runs.run import Run
from ...core.types import NetworkLike
from ...techniques import activations
from ..base.image_viewer import ImageViewer
from ..base.param_box import COLUMNS_IN_ONE_ROW, report_errors
from ..base.params import Index, LayerParam, Number
from ..base.settings import Field
from ..base.viewer import FIRST_FRAME_TIMEOUT, Panels, set_column_width
from ..controls.color_bar import ColorBar
from ..controls.frame_view import FrameView
from ..controls.text import readout, text_html
from ..drawing.activation_tiles import map_over_image, map_tiles, max_pool_tiles, vector_tiles
from ..drawing.colors import value_range
from ..drawing.encode import blend, desaturate, enlarge, to_rgb_uint8
from ..drawing.heatmap import colormap_name
from ..drawing.mosaic import Mosaic, Tiles, choose_layout

IMAGE_SIDE = 192  # pixels of the two large images
MAPS_PER_PAGE = 1024
GRID_WIDTH, MAX_GRID_WIDTH = 340, 720  # pixels of the grid of maps, which is about square
MAX_TILE = 96  # pixels of a map in the grid


class ActivationExplorer(ImageViewer):
    """The activation maps of a layer as a grid; the selected one large over the image; the pixels that a cell sees.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    image : image, or list or dict of images, optional
        See `Network.image`; bundled images by default. Others can be uploaded, or assigned to `image`.

    Examples
    --------
    >>> explorer = ActivationExplorer()
    >>> explorer.unit = ("conv2", 5)
    >>> explorer.layer
    'conv2'
    """

    layer = LayerParam(
        lambda viewer: [layer.name for layer in viewer.network.layers if layer.map_shape is not None],
        "Name of the layer; the first one by default.",
        default="",
        effect="layer_changed",
    )
    channel = Field(
        lambda viewer: viewer.selected.channel,
        lambda viewer, channel: viewer.select(Unit(viewer.selected.layer, channel)),
        lambda viewer: viewer.network.layers[viewer.selected.layer].channels - 1,
        "Selected channel.",
    )
    page = Index(
        lambda viewer: viewer.last_page,
        f"Page of maps, for layers with more than {MAPS_PER_PAGE}; the one with the selected channel by default.",
        when=lambda viewer: viewer.last_page > 0,
    )
    cell_row = Field(
        lambda viewer: viewer.cell[0],
        lambda viewer, row: viewer.select_cell(row, viewer.cell[1]),
        lambda viewer: viewer.map_size[0] - 1,
        "Row of the selected cell.",
        label="row",
        when=lambda viewer: viewer.map_size[0] > 1,
    )
    cell_column = Field(
        lambda viewer: viewer.cell[1],
        lambda viewer, column: viewer.select_cell(viewer.cell[0], column),
        lambda viewer: viewer.map_size[1] - 1,
        "Column of the selected cell.",
        label="column",
        when=lambda viewer: viewer.map_size[1] > 1,
    )
    opacity = Number(0.75, 0.0, 1.0, "Opacity of the map over the image.", label="overlay")

    # A selection is known at once, its maps come later, or never if the image cannot be read. `selected` is the last unit
    # whose layer has maps; the controls show it. `shown` is the unit that was drawn; `frame`, `maps`, `cell` and the mouse
    # belong to it.
    selected: Unit
    shown: Unit | None = None
    _hovered_tile: int | None

    def __init__(self, network: NetworkLike = None, image: Any = None, layer: str | None = None, **kwargs: Any) -> None:
        super().__init__(network, image, **kwargs)
        names = [layer.name for layer in self.network.layers if layer.map_shape is not None]
        if not names:
            raise ValueError(f"{self.network.name} has no layer whose output is a set of activation maps")
        self.select_default(Unit(self.initial_layer(layer, names[0]), 0))
        self.selected = self.unit
        self.layer = self.selected.layer
        self.page = min(kwargs.get("page", self.selected.channel // MAPS_PER_PAGE), self.last_page)
        self.predictions, self._hovered_tile = list[str](), None
        self._make_parts()
        self.recompute()
        if self.run is not None:
            self.run.join(FIRST_FRAME_TIMEOUT)

    def _make_parts(self) -> None:
        self.maps_view = FrameView(on_click=self._map_clicked, on_hover=self._map_hovered)
        self.large = FrameView(on_click=self._cell_clicked)
        self.input_view = FrameView(on_click=self._pixel_clicked)
        self.caption, self.facts, self.hover, self.top5 = ipywidgets.HTML(), ipywidgets.HTML(), readout(), ipywidgets.HTML()
        self.scale = ColorBar()
        self.make_controls()
        large = ipywidgets.VBox([ipywidgets.HTML(text_html("selected map")), self.large, self.scale, self.facts])
        field = ipywidgets.VBox([ipywidgets.HTML(text_html("receptive field")), self.input_view, self.top5])
        self._columns = ipywidgets.VBox([self.maps_view, self.hover]), large, field
        self._set_sizes()
        self.children = [
            self.row("images", "layer", "channel", "page"),
            self.row("cell_row", "cell_column", "opacity"),
            self.caption,
            ipywidgets.HBox(self._columns, layout=COLUMNS_IN_ONE_ROW),
            self.status,
        ]
        self.images.observe(self._image_changed, "value")

    def _set_sizes(self) -> None:
        """Let the grid take half of the page, and the two images a quarter each."""
        self.side = self.column_width(4, IMAGE_SIDE)
        self.grid_width = self.column_width(2, GRID_WIDTH, MAX_GRID_WIDTH)
        for column, width in zip(self._columns, (self.grid_width, self.side, self.side), strict=True):
            set_column_width(column, width)
        self.scale.set_width(self.side)

    def page_resized(self) -> None:
        """Draw images that fill the width of the page."""
        self._set_sizes()
        self.redraw()

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def maps(self) -> np.ndarray:
        """The activations shown, (C, h, w); empty before there are any."""
        return np.zeros((1, 1, 1), np.float32) if self.frame is None else self.frame.arrays["maps"]

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the maps shown."""
        return self.maps.shape[1], self.maps.shape[2]

    @property
    def cell(self) -> tuple[int, int]:
        """The cell shown: the selected one, or the one with the largest activation."""
        with self.lock:
            if self.shown is None:
                return (0, 0)
            chosen = self.maps[self.shown.channel]
            if self.shown.position is not None:
                row, column = self.shown.position
                return min(row, chosen.shape[0] - 1), min(column, chosen.shape[1] - 1)  # an array may be small
            return divmod(int(np.nan_to_num(chosen, nan=-np.inf).argmax()), chosen.shape[1])

    @property
    def last_page(self) -> int:
        """Index of the last page of maps."""
        return (self.network.layers[self.selected.layer].channels - 1) // MAPS_PER_PAGE

    def check_unit(self, unit: Unit) -> Unit:
        """Return the unit; ValueError if its layer has no activation maps."""
        if unit.layer:
            self.check_layer(unit.layer)
        return unit

    def check_layer(self, name: str) -> str:
        """Return the name; ValueError if the layer has no activation maps."""
        layer = self.network.layers[name]
        if layer.map_shape is None:
            shape = "x".join(map(str, layer.shape))
            raise ValueError(f"the output of {name} ({layer.kind}) is {shape}, not a set of maps; choose another layer")
        return name

    def layer_changed(self) -> None:
        """Select the first channel of another layer."""
        if self.layer != self.selected.layer:
            self.unit = Unit(self.layer, 0)

    def unit_changed(self) -> None:
        """Show the selected unit; class logits are ignored."""
        unit, before = self.unit, self.selected
        if unit is None or not unit.layer:
            return
        self.selected = unit
        with self.handlers_muted():
            self.layer = unit.layer
            if (unit.layer, unit.channel) != (before.layer, before.channel):
                self.page = unit.channel // MAPS_PER_PAGE
        if unit.layer != before.layer:
            self.sync_controls()
            self.recompute()
        else:
            self.redraw()

    def select(self, unit: Unit) -> None:
        """Select a unit."""
        self.unit = unit

    def select_cell(self, row: int, column: int) -> None:
        """Select a cell of the map shown."""
        if self.shown is not None:
            self.unit = Unit(self.shown.layer, self.shown.channel, (row, column))

    @report_errors
    def _image_changed(self, _change: Any) -> None:
        self.selected = Unit(self.selected.layer, self.selected.channel)
        if self.unit is not None and self.unit.position is not None:
            with self.handlers_muted():
                self.unit = self.selected
        self.recompute()

    @report_errors
    def _map_clicked(self, x: float, y: float) -> None:
        index = None if self.shown is None else self.mosaic.index_at(x, y)
        if self.shown is not None and index is not None:
            self.unit = Unit(self.shown.layer, self._first + index)

    @report_errors
    def _cell_clicked(self, x: float, y: float) -> None:
        if self.shown is not None and self.large.array is not None:
            (h, w), (height, width) = self.map_size, self.large.array.shape[:2]
            self.select_cell(min(h - 1, int(y * h / height)), min(w - 1, int(x * w / width)))

    @report_errors
    def _pixel_clicked(self, x: float, y: float) -> None:
        """Select the cell whose receptive field is centered nearest to a pixel."""
        if self.shown is None or self.frame is None or self.input_view.array is None:
            return
        layer = self.network.layers[self.shown.layer]
        if layer.field is None or not layer.is_spatial:
            return
        height, width = self.input_view.array.shape[:2]
        pixels = self.frame.image.shape
        at = y * pixels[0] / height, x * pixels[1] / width
        row, column = (
            int(np.argmin(np.where(edges.any(1), np.abs(edges.sum(1) - 2 * pixel), np.inf)))
            for edges, pixel in zip(layer.edges(self.shown.channel), at, strict=True)
        )
        self.select_cell(row, column)

    # -- the computation -----------------------------------------------------------------------------------------

    def make_run(self) -> Run | None:
        """Compute the maps of this image and layer; until they are there the old ones stay."""
        try:
            image = self.input_image()
        except Exception as error:  # noqa: BLE001
            self.stop_run()
            self.show_error(error)
            return None
        layer, predictions = self.selected.layer, list[str]()
        frames = self._frames(image, layer, predictions)
        return self.start_run(frames, lambda run: self._maps_arrived(run, layer, predictions), start=False)

    def _frames(self, image: np.ndarray, layer: str, predictions: list[str]) -> Iterator[Frame]:
        """The maps; the most probable classes go into `predictions`."""
        try:
            predictions += starmap(self.network.output.describe, self.network.predict(image))
        except ValueError as error:  # the maps of a network whose scores are not finite may show where it broke
            predictions.append(str(error))
        yield from activations(self.network, image, layer=layer)

    def _maps_arrived(self, run: Run, layer: str, predictions: list[str]) -> None:
        if run.last is not None and run.last is not self.frame and layer == self.selected.layer:
            self.frame, self.shown, self.predictions = run.last, self.selected, predictions
            self.clear_error()
            self.redraw()

    # -- drawing -------------------------------------------------------------------------------------------------

    def redraw(self) -> None:
        """Draw the selected unit or, until its maps are there, the previous one."""
        if self.frame is not None and self.shown is not None:
            if self.shown.layer == self.selected.layer:
                self.shown = self.selected
            layer, channel, cell = self.network.layers[self.shown.layer], self.shown.channel, self.cell
            signed = bool((self.maps < 0).any())
            self._draw_grid(channel, signed)
            self._draw_large(self.frame, channel, cell, signed)
            self._draw_input(self.frame, layer, channel, cell)
            self._describe(layer, channel, cell, signed)
            self._update_readout()
        self.sync_controls()

    def _draw_grid(self, channel: int, signed: bool) -> None:
        maps = self.maps
        first = self._first = min(self.page, (len(maps) - 1) // MAPS_PER_PAGE) * MAPS_PER_PAGE
        part = maps[first : first + MAPS_PER_PAGE]
        side = min(MAX_TILE, max(12, int(math.sqrt(self.grid_width**2 / len(part))) - 3))
        if self.map_size == (1, 1):
            tiles = vector_tiles(part[:, 0, 0], colormap_name(signed), value_range(maps, signed=signed), side)
        else:
            tiles = map_tiles(part, signed, side)
        tiles = max_pool_tiles(tiles, side)
        columns, zoom = choose_layout(len(tiles), tiles.shape[1], tiles.shape[2], self.grid_width, tile=side)
        self.mosaic = Mosaic(tiles, columns, zoom)
        self.maps_view.show(self.mosaic.image, selected=self.mosaic.box(channel - first), tiles=self.mosaic.layout)

    def _draw_large(self, frame: Frame, channel: int, cell: tuple[int, int], signed: bool) -> None:
        chosen = self.maps[channel]
        self.range = value_range(self.maps if chosen.size == 1 else chosen, signed=signed)
        self.scale.show(colormap_name(signed), *self.range)
        image = enlarge(desaturate(to_rgb_uint8(frame.image)), self.side)
        (height, width), (h, w) = image.shape[:2], chosen.shape
        cells = Tiles((height / h, width / w), 0, w, h * w if chosen.size > 1 else 0)
        boxes = [cells.box(cell[0] * w + cell[1])] if chosen.size > 1 else []
        self.large.show(map_over_image(image, chosen, self.range, self.opacity, signed=signed), boxes=boxes, tiles=cells)

    def _draw_input(self, frame: Frame, layer: Layer, channel: int, cell: tuple[int, int]) -> None:
        image = to_rgb_uint8(frame.image)
        base = enlarge(image, self.side)
        top, left, bottom, right = layer.box(cell, channel)
        y, x = base.shape[0] / image.shape[0], base.shape[1] / image.shape[1]
        weight = np.full(base.shape[:2], 0.55, np.float32)
        weight[round(top * y) : round(bottom * y), round(left * x) : round(right * x)] = 0
        dimmed = blend(base, np.full_like(base, 128), weight)
        visible = top < bottom and left < right
        self.input_view.show(dimmed, boxes=[(top * y, left * x, bottom * y, right * x)] if visible else [])
        rows, columns = layer.edges(channel)
        self.large.linked = {"key": self.input_view.key, "rows": (y * rows).tolist(), "columns": (x * columns).tolist()}

    def _describe(self, layer: Layer, channel: int, cell: tuple[int, int], signed: bool) -> None:
        maps = self.maps
        count, h, w = maps.shape
        dead = int((maps.reshape(count, -1) == 0).all(1).sum())
        text = f"{layer.name} ({layer.kind}): {count} maps of {h}x{w}; receptive field: {layer.receptive_field_text}"
        if not signed:
            text += f"; {(maps != 0).mean():.0%} of the activations are not zero"
        if dead:
            text += f"; {dead} map{'s are' if dead > 1 else ' is'} zero everywhere on this image (marked with a cross)"
        self._text = text
        self.caption.value = text_html(text)
        self._lines = [*self._numbers(layer, channel, cell), f"receptive field: {layer.box_text(cell, channel)}"]
        self.facts.value = "".join(map(text_html, self._lines))
        self.top5.value = text_html("Prediction:") + "".join(map(text_html, self.predictions))
        self.maps_view.alt = text
        self.large.alt, self.input_view.alt = ", ".join(self._lines[:-1]), self._lines[-1]

    def _numbers(self, layer: Layer, channel: int, cell: tuple[int, int]) -> list[str]:
        chosen = self.maps[channel]
        if chosen.size == 1:
            return [f"channel {channel}{self._class_name(layer, channel)} is {chosen[0, 0]:.4g}"]
        low, high = value_range(chosen)
        range_ = f"channel {channel} (0 to {len(self.maps) - 1}): {low:.3g} to {high:.3g}"
        return [range_, f"cell ({cell[0]}, {cell[1]}) is {chosen[cell]:.4g}"]

    @report_errors
    def _map_hovered(self, x: float | None, y: float | None) -> None:
        index = None if x is None or y is None or self.shown is None else self.mosaic.index_at(x, y)
        if index != self._hovered_tile:
            self._hovered_tile = index
            self._update_readout()

    def _update_readout(self) -> None:
        """Show the numbers of the map under the mouse."""
        if self.shown is None or self._hovered_tile is None or self._hovered_tile >= len(self.mosaic):
            self.hover.value = ""
            return
        channel = self._first + self._hovered_tile
        chosen = self.maps[channel]
        value = f"{chosen[0, 0]:.3g}" if chosen.size == 1 else f"largest {chosen.max():.3g}, mean {chosen.mean():.3g}"
        name = self._class_name(self.network.layers[self.shown.layer], channel)
        self.hover.value = text_html(f"channel {channel}{name}: {value}")

    def _class_name(self, layer: Layer, channel: int) -> str:
        """The class of a channel, for a layer that computes the scores."""
        last = layer.value in (self.network.graph.output, self.network.layers[-1].value)
        return f", {self.network.labels[channel]}," if last and layer.channels == len(self.network.labels) else ""

    def snapshot_panels(self) -> Panels:
        """The grid, the selected map and the receptive field."""
        if self.frame is None or self.large.array is None or self.input_view.array is None or self.maps_view.array is None:
            return [], [f"{self.network.name}: no maps yet"]
        images = [
            ("activation maps", self.maps_view.with_boxes()),
            (self._lines[0], self.large.with_boxes()),
            ("receptive field of the selected cell", self.input_view.with_boxes()),
        ]
        return images, [f"{self.network.name}, {self._text}", ", ".join(self.predictions[:3])]
