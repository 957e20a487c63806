"""FilterGrid: the weights of a layer as pictures."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Unit
from .controls import hover_line, note
from .encode import beside, enlarge
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

    def __init__(self, network: Any = None, layer: str | None = None, **keywords: Any) -> None:
        self._ready = False
        super().__init__(network, **keywords)
        names = self.network.with_filters()
        if not names:
            raise ValueError(f"{self.network.name} has no layer whose weights can be seen as pictures")
        if layer is None and self.unit is not None and self.unit.layer not in names:
            self.network.weights(self.unit.layer)  # the error says which layers have filters
        if layer is None:
            layer = self.unit.layer if self.unit is not None and self.unit.layer in names else names[0]
        self._build(names)
        self._ready = True
        self.layer = layer

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
    def selected(self) -> int | None:
        """The selected filter of the layer shown, or None."""
        return self.unit.channel if self.unit is not None and self.unit.layer == self.layer else None

    @property
    def in_color(self) -> bool:
        """Whether the filters are pictures in color or gray by themselves: a first layer on pixels."""
        return (
            self.weights.shape[1] in (1, 3)
            and self.weights.shape[1] == self.network.transform.channels
            and (self.layer == self.network.with_filters()[0])
        )

    @traitlets.validate("layer")
    def _layer_exists(self, proposal: dict[str, Any]) -> str:
        if self._ready:
            self.network.weights(proposal["value"])  # the error says which layers have filters
        return proposal["value"]

    @traitlets.observe("layer")
    @guarded
    def _layer_changed(self, _change: Any) -> None:
        if not self._ready or not self.layer:
            return
        self.weights, self.biases = self.network.weights(self.layer)
        count, inputs = self.weights.shape[:2]
        self._ready = False
        self.layer_menu.value = self.layer
        self.filter_field.max, self.input_field.max = count - 1, max(0, inputs - 1)
        self.input_channel = min(self.input_channel, inputs - 1)
        self.page = 0
        self._ready = True
        if self.selected is None:
            self.unit = Unit(self.layer, 0)
        else:
            self._redraw()

    @traitlets.observe("unit")
    @guarded
    def _unit_changed(self, _change: Any) -> None:
        if not self._ready or self.unit is None:
            return
        if self.unit.layer != self.layer and self.unit.layer in self.network.with_filters():
            self.layer = self.unit.layer
        else:
            self._redraw()

    @traitlets.observe("scaling", "view", "input_channel", "page")
    @guarded
    def _look_changed(self, _change: Any) -> None:
        if self._ready and self.layer:
            self._redraw()

    def _choose(self, index: int) -> None:
        if self._ready and self.layer:
            self.unit = Unit(self.layer, index)

    def _clicked(self, x: float, y: float) -> None:
        tile = self._tile_at(x, y)
        if tile is None:
            return
        filter_, channel = tile
        if not self.in_color:
            self.input_channel = channel
        self.unit = Unit(self.layer, filter_)

    def _tile_at(self, x: float, y: float) -> tuple[int, int] | None:
        """(filter, input channel) of the tile at a point."""
        index = self.mosaic.index_at(x, y)
        if index is None:
            return None
        if self.in_color:
            return index, 0
        per_filter = self.weights.shape[1]
        if self.view == "one":
            return (self.selected or 0), index
        return divmod(index + self.page * self._per_page, per_filter)

    # -- drawing -----------------------------------------------------------------------------------------------

    def _redraw(self) -> None:
        self.settle()
        weights, color = self.weights, self.in_color
        count, inputs, h, w = weights.shape
        chosen = self.selected or 0
        whole_filters = max(1, PAGE // inputs)
        self._per_page = whole_filters * inputs
        pages = -(-count // whole_filters)
        self.page_field.max = max(0, pages - 1)
        self.page_field.layout.display = "" if not color and self.view == "all" and pages > 1 else "none"
        self._deep.layout.display = "none" if color else ""
        gray = _scaled(weights, self.scaling)
        if color:
            tiles, highlight = gray.transpose(0, 2, 3, 1), chosen
        elif self.view == "one":
            tiles, highlight = gray[chosen][..., None], self.input_channel
        else:
            first = min(self.page, pages - 1) * whole_filters
            tiles = gray[first : first + whole_filters].reshape(-1, h, w, 1)
            highlight = (chosen - first) * inputs + self.input_channel
        if tiles.shape[3] == 1:
            tiles = np.repeat(tiles, 3, axis=3)
        columns, times = arrange(len(tiles), h, w, 620, tile=44 if len(tiles) <= 64 else 30 if len(tiles) <= 256 else 14)
        self.mosaic = Mosaic(tiles, columns, times)
        self.grid.show(self.mosaic.marked(highlight))
        tile = tiles[highlight] if 0 <= highlight < len(tiles) else tiles[0]
        self.detail.show(enlarge(tile, 210))
        self._describe(chosen)
        self._sync_fields(chosen)

    def _describe(self, chosen: int) -> None:
        count, inputs, h, w = self.weights.shape
        what = "in color" if self.in_color and inputs == 3 else f"on {inputs} input channel{'s' * (inputs > 1)}"
        text = f"{self.layer}: {count} filters of {h}x{w} {what}"
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
        tile = None if x is None or y is None else self._tile_at(x, y)
        self.hover.value = "" if tile is None else note("; ".join(self._facts(*tile)))

    def _sync_fields(self, chosen: int) -> None:
        self._ready = False
        self.filter_field.value, self.input_field.value = chosen, self.input_channel
        self.page_field.value = self.page
        self._ready = True

    def snapshot(self) -> np.ndarray:
        """The tiles and the selected one, with the caption."""
        panels = [("filters", self.grid.array), (self._lines[0], self.detail.array)]
        return beside(panels, "\n".join([f"{self.network.name}, {self._text}", ", ".join(self._lines[1:])]))


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
