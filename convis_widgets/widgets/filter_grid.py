"""FilterGrid: the weights of a layer as pictures."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Unit
from .controls import hover_line, limit, note
from .encode import enlarge
from .frame_view import FrameView
from .mosaic import Mosaic, arrange
from .viewer import Viewer, guarded

SCALINGS = {"each filter by itself": "filter", "symmetric about zero": "symmetric", "all filters alike": "shared"}
PAGE = 1024  # tiles at once


class FilterGrid(Viewer):
    """The filters of a layer: in color for a first layer, one gray tile per input channel for a deeper one.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    layer : str, optional
        The first layer with filters otherwise.
    scaling : str
        "filter" stretches every filter to the full range by itself, which shows its form; "symmetric" does so too but
        keeps zero at mid-gray; "shared" scales all alike, which shows which are strong.
    view : str
        For deeper layers: "one" shows the input channels of the selected filter, "all" those of all filters, paged.
    unit : Unit, optional
        The selected filter.
    input_channel : int
        The selected input channel of a deeper layer.
    page : int
        Of the view of all filters; the one with the selected filter otherwise.

    Examples
    --------
    >>> grid = FilterGrid()
    >>> grid.unit = ("conv1", 3)
    >>> grid.unit.channel
    3
    """

    layer = traitlets.Unicode(help="Name of the layer shown.")
    scaling = traitlets.Enum(list(SCALINGS.values()), "filter", help="What weight is black and what is white.")
    view = traitlets.Enum(["one", "all"], "one", help="Of a deeper layer: the selected filter, or all.")
    input_channel = traitlets.Int(0, min=0, help="Selected input channel of a deeper layer.")
    page = traitlets.Int(0, min=0, help="Page of the view of all filters.")
    shown: Unit | None = None
    weights: np.ndarray | None = None
    _mouse: tuple[float, float] | None = None

    def __init__(self, network: Any = None, layer: str | None = None, **keywords: Any) -> None:
        super().__init__(network, **keywords)
        names = self.network.with_filters()
        if not names:
            raise ValueError(f"{self.network.name} has no layer whose weights can be seen as pictures")
        wanted = self._layer_wanted(layer) or names[0]
        if self.unit is None or not self.unit.layer:
            self.unit = self._default = Unit(wanted, 0)
        self._build(names)
        self._take(self.unit)
        self.page = keywords.get("page", self.page)
        self._redraw()

    def _build(self, names: list[str]) -> None:
        self.grid = FrameView(on_click=self._clicked, on_hover=self._hovered)
        self.detail = FrameView()
        self.layer_menu = ipywidgets.Dropdown(options=names, description="layer")
        self.scaling_menu = ipywidgets.Dropdown(options=SCALINGS, description="scaling")
        self.view_menu = ipywidgets.ToggleButtons(options={"selected filter": "one", "all filters": "all"})
        self.view_menu.style.button_width = "110px"
        self.filter_field = ipywidgets.BoundedIntText(0, 0, 0, description="filter")
        self.input_field = ipywidgets.BoundedIntText(0, 0, 0, description="input")
        self.page_field = ipywidgets.BoundedIntText(0, 0, 0, description="page")
        for field in (self.filter_field, self.input_field, self.page_field):
            field.layout.width = "150px"
        self.caption, self.facts = ipywidgets.HTML(), ipywidgets.HTML()
        self.hover = hover_line()
        self.facts.layout.width = "240px"
        row = {"flex_flow": "row wrap", "align_items": "center"}
        self._deep = ipywidgets.HBox([self.view_menu, self.input_field, self.page_field], layout=row)
        side = ipywidgets.VBox([self.detail, self.facts], layout={"margin": "0 0 0 16px"})
        self.children = [
            ipywidgets.HBox([self.layer_menu, self.scaling_menu, self.filter_field], layout=row),
            self._deep,
            self.caption,
            ipywidgets.HBox(
                [ipywidgets.VBox([self.grid, self.hover]), side],
                layout={"flex_flow": "row wrap", "align_items": "flex-start"},
            ),
            self.status,
        ]
        traitlets.link((self, "scaling"), (self.scaling_menu, "value"))
        traitlets.link((self, "view"), (self.view_menu, "value"))
        self.layer_menu.observe(lambda change: self.set_trait("layer", change["new"]), "value")
        self.filter_field.observe(lambda change: self._choose(change["new"]), "value")
        self.input_field.observe(lambda change: self.set_trait("input_channel", change["new"]), "value")
        self.page_field.observe(lambda change: self.set_trait("page", change["new"]), "value")

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def selected(self) -> int:
        """The selected filter of the layer shown; it stays when a unit of a layer without filters is selected elsewhere."""
        return self.shown.channel

    @property
    def in_color(self) -> bool:
        """Whether the filters are pictures in color or gray by themselves: a first layer on pixels."""
        return (
            self.weights.shape[1] in (1, 3)
            and self.weights.shape[1] == self.network.transform.channels
            and self.shown.layer == self.network.with_filters()[0]
        )

    @property
    def _filters_a_page(self) -> int:
        return max(1, PAGE // self.weights.shape[1])

    @traitlets.validate("layer")
    def _layer_exists(self, proposal: dict[str, Any]) -> str:
        name = self.network.layers[proposal["value"]].name
        if name not in self.network.with_filters():
            self.network.weights(name)  # the error says which layers have filters
        return name

    @traitlets.validate("input_channel", "page")
    def _within_the_layer(self, proposal: dict[str, Any]) -> int:
        if self.weights is None:
            return proposal["value"]
        count, inputs = self.weights.shape[:2]
        last = inputs - 1 if proposal["trait"].name == "input_channel" else (count - 1) // self._filters_a_page
        return min(proposal["value"], last)

    @traitlets.observe("layer")
    @guarded
    def _layer_changed(self, _change: Any) -> None:
        if self.layer != self.shown.layer:
            self.unit = Unit(self.layer, 0)

    @traitlets.observe("unit")
    @guarded
    def _unit_changed(self, _change: Any) -> None:
        unit = self.unit
        if unit is None or unit.layer not in self.network.with_filters():
            return
        if (unit.layer, unit.channel) != (self.shown.layer, self.shown.channel):
            self._take(unit)
            self._redraw()

    def _take(self, unit: Unit) -> None:
        """Select a filter, its layer and the page that it is on."""
        if self.shown is None or unit.layer != self.shown.layer:
            self.weights, self.biases = self.network.weights(unit.layer)
        self.shown = unit
        with self.quietly():
            self.layer = unit.layer
            self.input_channel = min(self.input_channel, self.weights.shape[1] - 1)
            self.page = unit.channel // self._filters_a_page

    @traitlets.observe("scaling", "view", "input_channel", "page")
    @guarded
    def _look_changed(self, _change: Any) -> None:
        self._redraw()

    @guarded
    def _choose(self, index: int) -> None:
        self.unit = Unit(self.shown.layer, index)

    @guarded
    def _clicked(self, x: float, y: float) -> None:
        tile = self._tile_at(x, y)
        if tile is None:
            return
        filter_, channel = tile
        if not self.in_color:
            self.input_channel = channel
        self.unit = Unit(self.shown.layer, filter_)

    def _tile_at(self, x: float, y: float) -> tuple[int, int] | None:
        """(filter, input channel) of the tile at a point."""
        index = self.mosaic.index_at(x, y)
        if index is None:
            return None
        if self.in_color:
            return index, 0
        filter_, channel = divmod(index, self.weights.shape[1])
        return self._first + filter_, channel

    # -- drawing -----------------------------------------------------------------------------------------------

    def _redraw(self) -> None:
        self.settle()
        chosen, (inputs, h, w) = self.selected, self.weights.shape[1:]
        filters = _scaled(self.weights, self.scaling)
        if self.in_color:
            tiles, highlight = filters.transpose(0, 2, 3, 1), chosen
            detail = tiles[chosen]
        else:
            many = 1 if self.view == "one" else self._filters_a_page
            self._first = chosen if self.view == "one" else self.page * many
            tiles = filters[self._first : self._first + many].reshape(-1, h, w, 1)
            highlight = (chosen - self._first) * inputs + self.input_channel
            detail = filters[chosen, self.input_channel][..., None]
        tiles, detail = (np.broadcast_to(gray, (*gray.shape[:-1], 3)) for gray in (tiles, detail))
        columns, times = arrange(len(tiles), h, w, 620, tile=44 if len(tiles) <= 64 else 30 if len(tiles) <= 256 else 14)
        self.mosaic = Mosaic(tiles, columns, times)
        self.grid.show(self.mosaic.marked(highlight))
        self.detail.show(enlarge(detail, 210))
        self._describe(chosen)
        self._tell_hovered()
        self._sync_fields()

    def _describe(self, chosen: int) -> None:
        count, inputs, h, w = self.weights.shape
        what = "in color" if self.in_color and inputs == 3 else f"on {inputs} input channel{'s' * (inputs > 1)}"
        text = f"{self.shown.layer}: {count} filters of {h}x{w} {what}"
        if not self.in_color:
            text += f"; shown: {'all filters, filter by filter' if self.view == 'all' else f'the inputs of filter {chosen}'}"
        self._text = text
        self.caption.value = note(text)
        self.grid.alt = text + f"; filter {chosen} is selected"
        self._lines = self._facts(chosen, self.input_channel)
        self.facts.value = "".join(note(line) for line in self._lines)
        self.detail.alt = ", ".join(self._lines)

    def _facts(self, filter_: int, channel: int) -> list[str]:
        kernel = self.weights[filter_]
        lines = [f"filter {filter_} (0 to {len(self.weights) - 1})"]
        if not self.in_color:
            lines.append(f"input channel {channel}: norm {np.linalg.norm(kernel[channel]):.3g}")
        lines.append(f"norm {np.linalg.norm(kernel):.3g}, weights {kernel.min():.3g} to {kernel.max():.3g}")
        lines.append("no bias" if self.biases is None else f"bias {self.biases[filter_]:+.3g}")
        return lines

    @guarded
    def _hovered(self, x: float | None, y: float | None) -> None:
        self._mouse = None if x is None or y is None else (x, y)
        self._tell_hovered()

    def _tell_hovered(self) -> None:
        tile = None if self._mouse is None else self._tile_at(*self._mouse)
        self.hover.value = "" if tile is None else note("; ".join(self._facts(*tile)))

    def _sync_fields(self) -> None:
        count, inputs = self.weights.shape[:2]
        last_page = (count - 1) // self._filters_a_page
        with self.quietly():
            self.layer_menu.value = self.shown.layer
            for field, top, value in (
                (self.filter_field, count - 1, self.selected),
                (self.input_field, inputs - 1, self.input_channel),
                (self.page_field, last_page, self.page),
            ):
                limit(field, top, value)
        self._deep.layout.display = "none" if self.in_color else ""
        self.page_field.layout.display = "" if self.view == "all" and last_page > 0 else "none"

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        panels = [("filters", self.grid.array), (self._lines[0], self.detail.array)]
        return panels, [f"{self.network.name}, {self._text}", ", ".join(self._lines[1:])]


def _scaled(weights: np.ndarray, scaling: str) -> np.ndarray:
    """Weights (out, in, h, w) as uint8: by filter, by filter about zero, or all alike about zero."""
    if scaling == "filter":
        low, high = weights.min((1, 2, 3), keepdims=True), weights.max((1, 2, 3), keepdims=True)
    else:
        axes = (1, 2, 3) if scaling == "symmetric" else None
        high = np.abs(weights).max(axes, keepdims=True)
        low = -high
    span = np.where(high > low, high - low, 1)
    return (np.where(high > low, (weights - low) / span, 0.5) * 255 + 0.5).astype(np.uint8)
