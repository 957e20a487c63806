"""FilterGrid: the weights of a layer as images."""

from __future__ import annotations

import math
from typing import Any

import ipywidgets
import numpy as np

from ...core.network.unit import Unit
from ...core.types import NetworkLike
from ..base.param_box import COLUMNS_IN_ONE_ROW, report_errors
from ..base.params import Choice, Index, LayerParam
from ..base.settings import Field
from ..base.viewer import COLUMN_GAP, Panels, Viewer, set_column_width
from ..controls.frame_view import FrameView
from ..controls.text import readout, text_html
from ..drawing.encode import enlarge
from ..drawing.mosaic import Mosaic, choose_layout

SCALINGS = {"each filter by itself": "filter", "symmetric about zero": "symmetric", "all filters alike": "shared"}
TILES_PER_PAGE = 1024
MAX_TILE = 80  # pixels of a filter in the grid
MIN_GRID_WIDTH, GRID_WIDTH, MAX_GRID_WIDTH = 240, 620, 1000  # pixels of the grid
MAX_GRID_HEIGHT = 420  # ... unless tiles are small
DETAIL_SIDE, MAX_DETAIL_SIDE = 210, 400  # pixels of the selected filter


class FilterGrid(Viewer):
    """The filters of a layer: in color for a first layer, one gray tile per input channel for a deeper one.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.

    Examples
    --------
    >>> grid = FilterGrid()
    >>> grid.unit = ("conv1", 3)
    >>> grid.unit.channel
    3
    """

    layer = LayerParam(
        lambda viewer: viewer.network.filter_layers,
        "Name of the layer; the first one with filters by default.",
        default="",
        effect="layer_changed",
    )
    scaling = Choice(
        "filter",
        SCALINGS,
        'Gray levels: "filter" stretches each filter to the full range, which shows its form; "symmetric" does so with zero '
        'as mid-gray; "shared" scales all filters alike, which shows the strong ones.',
    )
    scope = Choice(
        "selected",
        {"selected filter": "selected", "all filters": "all"},
        "Of a deeper layer: the input channels of the selected filter, or those of all filters, paged.",
        buttons=True,
        when=lambda viewer: not viewer.in_color,
    )
    channel = Field(
        lambda viewer: viewer.selected,
        lambda viewer, channel: viewer.select(channel),
        lambda viewer: len(viewer.weights) - 1,
        "Selected filter.",
        label="filter",
    )
    input_channel = Index(
        lambda viewer: viewer.weights.shape[1] - 1,
        "Selected input channel of a deeper layer.",
        label="input",
        when=lambda viewer: not viewer.in_color,
    )
    page = Index(
        lambda viewer: viewer.last_page,
        "Page of all filters; the one with the selected filter by default.",
        when=lambda viewer: not viewer.in_color and viewer.scope == "all" and viewer.last_page > 0,
    )

    def __init__(self, network: NetworkLike = None, layer: str | None = None, **kwargs: Any) -> None:
        super().__init__(network, **kwargs)
        names = self.network.filter_layers
        if not names:
            raise ValueError(f"{self.network.name} has no layer whose weights can be shown as images")
        self.select_default(Unit(self.initial_layer(layer, names[0]), 0))
        self.grid = FrameView(on_click=self._clicked, on_hover=self._hovered)
        self.detail = FrameView()
        self.caption, self.facts, self.hover = ipywidgets.HTML(), ipywidgets.HTML(), readout()
        self._mouse: tuple[float, float] | None = None
        self._load(self.unit)
        self.page = min(kwargs.get("page", self.page), self.last_page)
        self.make_controls()
        self._columns = ipywidgets.VBox([self.grid, self.hover]), ipywidgets.VBox([self.detail, self.facts])
        self._set_sizes()
        self.children = [
            self.row("layer", "scaling", "channel"),
            self.row("scope", "input_channel", "page"),
            self.caption,
            ipywidgets.HBox(self._columns, layout=COLUMNS_IN_ONE_ROW),
            self.status,
        ]
        self.redraw()

    def _set_sizes(self) -> None:
        """Let the grid take two thirds of the page, and the selected filter what is left."""
        self.side = self.column_width(3, DETAIL_SIDE, MAX_DETAIL_SIDE)
        page = self.available_width
        self.grid_width = min(MAX_GRID_WIDTH, page - self.side) - COLUMN_GAP if page else GRID_WIDTH
        set_column_width(self._columns[1], self.side)

    def page_resized(self) -> None:
        """Draw filters that fill the width of the page."""
        self._set_sizes()
        self.redraw()

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def selected(self) -> int:
        """The selected filter of the layer shown. It stays when a unit of a layer without filters is selected elsewhere."""
        return self.shown.channel

    @property
    def in_color(self) -> bool:
        """Whether each filter is one image, in color or gray: a first layer on pixels."""
        channels = self.weights.shape[1]
        first = self.shown.layer == self.network.filter_layers[0]
        return first and channels in (1, 3) and channels == self.network.transform.channels

    @property
    def filters_per_page(self) -> int:
        """Filters on a page of all filters."""
        return max(1, TILES_PER_PAGE // self.weights.shape[1])

    @property
    def last_page(self) -> int:
        """Index of the last page of all filters."""
        return (len(self.weights) - 1) // self.filters_per_page

    def check_layer(self, name: str) -> str:
        """Return the name; ValueError if the layer has no filters."""
        if name not in self.network.filter_layers:
            self.network.weights(name)  # the error lists layers with filters
        return name

    def layer_changed(self) -> None:
        """Select the first filter of another layer."""
        if self.layer != self.shown.layer:
            self.unit = Unit(self.layer, 0)

    def unit_changed(self) -> None:
        """Show the selected filter; units of layers without filters are ignored."""
        unit = self.unit
        if unit is None or unit.layer not in self.network.filter_layers:
            return
        if (unit.layer, unit.channel) != (self.shown.layer, self.shown.channel):
            self._load(unit)
            self.redraw()

    def _load(self, unit: Unit) -> None:
        """Select a filter, its layer and its page."""
        self.shown = unit
        self.weights, self.biases = self.network.weights(unit.layer)
        with self.handlers_muted():
            self.layer = unit.layer
            self.input_channel = min(self.input_channel, self.weights.shape[1] - 1)
            self.page = unit.channel // self.filters_per_page

    def select(self, channel: int) -> None:
        """Select a filter of the layer shown."""
        self.unit = Unit(self.shown.layer, channel)

    @report_errors
    def _clicked(self, x: float, y: float) -> None:
        tile = self._tile_at(x, y)
        if tile is not None:
            channel, input_channel = tile
            changed = channel != self.selected
            with self.handlers_muted():
                self.input_channel = self.input_channel if self.in_color else input_channel
            self.select(channel)
            if not changed:  # otherwise the grid was drawn already
                self.redraw()

    def _tile_at(self, x: float, y: float) -> tuple[int, int] | None:
        """(filter, input channel) of the tile at a point."""
        index = self.mosaic.index_at(x, y)
        if index is None:
            return None
        if self.in_color:
            return index, 0
        channel, input_channel = divmod(index, self.weights.shape[1])
        return self._first + channel, input_channel

    # -- drawing -------------------------------------------------------------------------------------------------

    def redraw(self) -> None:
        """Draw the grid, the selected filter and its numbers."""
        self.clear_error()
        selected, (inputs, h, w) = self.selected, self.weights.shape[1:]
        filters = _to_gray_levels(self.weights, self.scaling)
        if self.in_color:
            tiles, highlight = filters.transpose(0, 2, 3, 1), selected
            detail = tiles[selected]
        else:
            count = 1 if self.scope == "selected" else self.filters_per_page
            self._first = selected if self.scope == "selected" else self.page * count
            tiles = filters[self._first : self._first + count].reshape(-1, h, w, 1)
            highlight = (selected - self._first) * inputs + self.input_channel
            detail = filters[selected, self.input_channel][..., None]
        tiles, detail = (np.broadcast_to(gray, (*gray.shape[:-1], 3)) for gray in (tiles, detail))
        tile = 44 if len(tiles) <= 64 else 30 if len(tiles) <= 256 else 14
        tile = max(tile, min(MAX_TILE, int(math.sqrt(self.grid_width * MAX_GRID_HEIGHT / len(tiles))) - 3))
        columns, zoom = choose_layout(len(tiles), h, w, self.grid_width, tile=tile)
        self.mosaic = Mosaic(tiles, columns, zoom)
        set_column_width(self._columns[0], max(MIN_GRID_WIDTH, self.mosaic.image.shape[1]))
        self.grid.show(self.mosaic.image, selected=self.mosaic.box(highlight), tiles=self.mosaic.layout)
        self.detail.show(enlarge(detail, self.side))
        self._describe(selected)
        self._update_readout()
        self.sync_controls()

    def _describe(self, selected: int) -> None:
        count, inputs, h, w = self.weights.shape
        color = "in color" if self.in_color and inputs == 3 else f"on {inputs} input channel{'s' * (inputs > 1)}"
        text = f"{self.shown.layer}: {count} filters of {h}x{w} {color}"
        if not self.in_color:
            text += "; all filters, one after the other" if self.scope == "all" else f"; inputs of filter {selected}"
        self._text = text
        self.caption.value = text_html(text)
        self.grid.alt = text + f"; filter {selected} is selected"
        self._lines = self._facts(selected, self.input_channel)
        self.facts.value = "".join(map(text_html, self._lines))
        self.detail.alt = ", ".join(self._lines)

    def _facts(self, channel: int, input_channel: int) -> list[str]:
        kernel = self.weights[channel]
        lines = [f"filter {channel} (0 to {len(self.weights) - 1})"]
        if not self.in_color:
            lines.append(f"input channel {input_channel}: norm {np.linalg.norm(kernel[input_channel]):.3g}")
        lines.append(f"norm {np.linalg.norm(kernel):.3g}, weights {kernel.min():.3g} to {kernel.max():.3g}")
        lines.append("no bias" if self.biases is None else f"bias {self.biases[channel]:+.3g}")
        return lines

    @report_errors
    def _hovered(self, x: float | None, y: float | None) -> None:
        self._mouse = None if x is None or y is None else (x, y)
        self._update_readout()

    def _update_readout(self) -> None:
        tile = None if self._mouse is None else self._tile_at(*self._mouse)
        self.hover.value = "" if tile is None else text_html("; ".join(self._facts(*tile)))

    def snapshot_panels(self) -> Panels:
        """The grid and the selected filter."""
        lines = [f"{self.network.name}, {self._text}", ", ".join(self._lines[1:])]
        return [("filters", self.grid.shown), (self._lines[0], self.detail.shown)], lines


def _to_gray_levels(weights: np.ndarray, scaling: str) -> np.ndarray:
    """Weights (out, in, h, w) as uint8: by filter, by filter about zero, or all alike about zero."""
    if scaling == "filter":
        low, high = weights.min((1, 2, 3), keepdims=True), weights.max((1, 2, 3), keepdims=True)
    else:
        high = np.abs(weights).max((1, 2, 3) if scaling == "symmetric" else None, keepdims=True)
        low = -high
    span = np.where(high > low, high - low, 1)
    return (np.where(high > low, (weights - low) / span, 0.5) * 255 + 0.5).astype(np.uint8)
