"""ActivationExplorer: what every channel of a layer does on a picture, and which pixels a unit sees."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Run, Unit, colorize, to_unit, value_range
from ..techniques import activations
from .controls import ColorBar, ImagePicker, hover_line, note
from .encode import beside, blend, draw_box, enlarge, grayed, to_uint8
from .frame_view import FrameView
from .gallery import gallery
from .mosaic import Mosaic, arrange
from .viewer import Viewer, guarded

SIDE = 192  # pixels of the two large pictures
PAGE = 1024  # maps at once
WIDTH = 340  # pixels of the grid of maps, which is about as high


class ActivationExplorer(Viewer):
    """The activation maps of a layer as a grid; the selected one large over the picture; the pixels that a cell sees.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    image : picture, or list or dict of pictures, optional
        Whatever `Network.image` takes; bundled pictures otherwise. More can be uploaded.
    layer : str, optional
        The first layer otherwise.
    unit : Unit, optional
        The selected channel, and the selected cell if it has a position.
    opacity : float
        How strongly the map covers the picture, 0 to 1.

    Examples
    --------
    >>> explorer = ActivationExplorer()
    >>> explorer.unit = ("conv2", 5)
    >>> explorer.layer
    'conv2'
    """

    opacity = traitlets.Float(0.75, min=0, max=1, help="How strongly the map covers the picture.")
    page = traitlets.Int(0, min=0, help="Page of maps, for layers with more than fit.")

    def __init__(self, network: Any = None, image: Any = None, layer: str | None = None, **keywords: Any) -> None:
        self._ready = False
        self.frame: Frame | None = None
        self._frame_layer: str | None = None
        super().__init__(network, **keywords)
        shown = [found for found in self.network.layers if found.maps is not None]
        if layer is not None:
            shown_name = self.network.layers[layer].name
        else:
            shown_name = self.unit.layer if self.unit is not None and self.unit.layer else shown[0].name
        self._build([found.name for found in shown], gallery(self.network, image))
        self._ready = True
        if self.unit is None or self.unit.layer != shown_name:
            self.unit = Unit(shown_name, 0)
        else:
            self._unit_changed(None)
        if self.run is not None:
            self.run.join()

    def _build(self, names: list[str], images: Mapping[str, Any]) -> None:
        self.maps_view = FrameView(on_click=self._map_clicked, on_hover=self._map_hovered)
        self.large = FrameView(on_click=self._cell_clicked)
        self.input_view = FrameView(on_click=self._pixel_clicked)
        self.images = ImagePicker(dict(images), self.network.transform, self.complain)
        self.layer_menu = ipywidgets.Dropdown(options=names, description="layer")
        self.channel_field = ipywidgets.BoundedIntText(0, 0, 0, description="channel")
        self.row_field = ipywidgets.BoundedIntText(0, 0, 0, description="row")
        self.column_field = ipywidgets.BoundedIntText(0, 0, 0, description="column")
        self.page_field = ipywidgets.BoundedIntText(0, 0, 0, description="page")
        for field in (self.channel_field, self.row_field, self.column_field, self.page_field):
            field.layout.width = "150px"
        self.opacity_slider = ipywidgets.FloatSlider(self.opacity, min=0, max=1, step=0.05, description="overlay")
        self.caption, self.facts, self.hover = ipywidgets.HTML(), ipywidgets.HTML(), hover_line()
        self.scale = ColorBar()
        self.top5 = ipywidgets.HTML()
        row = {"flex_flow": "row wrap", "align_items": "center"}
        large = ipywidgets.VBox([ipywidgets.HTML(note("the selected map")), self.large, self.scale, self.facts])
        seen = ipywidgets.VBox([ipywidgets.HTML(note("what the selected cell sees")), self.input_view, self.top5])
        for column in (large, seen):
            column.layout.margin, column.layout.width = "0 0 0 12px", f"{SIDE + 4}px"
        maps = ipywidgets.VBox([self.maps_view, self.hover])
        self.children = [
            ipywidgets.HBox([self.images, self.layer_menu, self.channel_field, self.page_field], layout=row),
            ipywidgets.HBox([self.row_field, self.column_field, self.opacity_slider], layout=row),
            self.caption,
            ipywidgets.HBox([maps, large, seen], layout={"flex_flow": "row wrap", "align_items": "flex-start"}),
            self.status,
        ]
        traitlets.link((self, "opacity"), (self.opacity_slider, "value"))
        self.images.observe(self._image_changed, "value")
        self.layer_menu.observe(lambda change: self._choose(layer=change["new"]), "value")
        self.channel_field.observe(lambda change: self._choose(channel=change["new"]), "value")
        self.row_field.observe(lambda change: self._choose(row=change["new"]), "value")
        self.column_field.observe(lambda change: self._choose(column=change["new"]), "value")
        self.page_field.observe(lambda change: self.set_trait("page", change["new"]), "value")

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def layer(self) -> str:
        """Name of the layer shown."""
        return self.unit.layer

    @layer.setter
    def layer(self, name: str) -> None:
        self.unit = Unit(self.network.layers[name].name, 0)

    @property
    def maps(self) -> np.ndarray | None:
        """The activation volume shown, (C, h, w), raw."""
        return None if self.frame is None else self.frame.arrays["maps"]

    @property
    def cell(self) -> tuple[int, int]:
        """The selected cell: the unit's position, or the strongest one of its map."""
        if self.unit.position is not None:
            return self.unit.position
        if self.maps is None:
            return (0, 0)
        chosen = np.nan_to_num(self.maps[self.unit.channel], nan=-np.inf)
        row, column = np.unravel_index(int(chosen.argmax()), chosen.shape)
        return int(row), int(column)

    @traitlets.observe("unit")
    @guarded
    def _unit_changed(self, change: Any) -> None:
        if not self._ready or self.unit is None or not self.unit.layer:
            return
        old = change["old"] if change else None
        if old is None or old.layer != self.unit.layer:
            self._look()
        elif self.maps is not None and self._frame_layer == self.unit.layer:
            if self._page_of(self.unit.channel) != self.page and len(self.maps) > PAGE:
                self.page = self._page_of(self.unit.channel)
            self._redraw()

    @traitlets.observe("opacity", "page")
    @guarded
    def _look_changed(self, _change: Any) -> None:
        if self._ready and self.maps is not None:
            self._redraw()

    @guarded
    def _image_changed(self, _change: Any) -> None:
        if self._ready:
            if self.unit.position is not None:
                self._ready = False
                self.unit = Unit(self.unit.layer, self.unit.channel)
                self._ready = True
            self._look()

    def _look(self) -> None:
        """Compute the maps of this picture; until they are there the old ones stay."""
        self.page = self._page_of(self.unit.channel)
        try:
            self._guess = [f"{label}  {p:.1%}" for label, p in self.network.predict(self.images.value)]
        except ValueError as error:  # the maps of a network whose scores are not finite may tell where it broke
            if self._readable():
                self._guess = [str(error)]
            else:
                raise
        self.launch(activations(self.network, self.images.value, layer=self.unit.layer), self._arrived)

    @guarded
    def _arrived(self, run: Run) -> None:
        if run.last is not None and run.last is not self.frame:
            self.frame, self._frame_layer = run.last, self.unit.layer
            self._redraw()

    def _page_of(self, channel: int) -> int:
        return channel // PAGE

    @guarded
    def _choose(
        self, *, layer: str | None = None, channel: int | None = None, row: int | None = None, column: int | None = None
    ) -> None:
        if not self._ready:
            return
        if layer is not None:
            self.layer = layer
        elif channel is not None:
            self.unit = Unit(self.layer, channel)
        else:
            now = self.cell
            self.unit = Unit(
                self.layer, self.unit.channel, (now[0] if row is None else row, now[1] if column is None else column)
            )

    def _map_clicked(self, x: float, y: float) -> None:
        index = self.mosaic.index_at(x, y)
        if index is not None:
            self._choose(channel=index + self.page * PAGE)

    def _cell_clicked(self, x: float, y: float) -> None:
        if self.maps is None or self.large.array is None:
            return
        _, h, w = self.maps.shape
        height, width = self.large.array.shape[:2]
        self._choose(row=min(h - 1, int(y * h / height)), column=min(w - 1, int(x * w / width)))

    @guarded
    def _pixel_clicked(self, x: float, y: float) -> None:
        """Select the cell whose field is centered nearest to a pixel."""
        layer = self.network.layers[self.layer]
        if self.maps is None or self.input_view.array is None or layer.field is None or not layer.is_map:
            return
        height, width = self.input_view.array.shape[:2]
        picture = self.frame.image.shape
        at = y * picture[0] / height, x * picture[1] / width
        cell = [
            int(np.abs((axis.low + axis.high) / 2 - p).argmin()) if len(axis) > 1 else 0
            for axis, p in zip((layer.field.rows, layer.field.cols), at, strict=True)
        ]
        self._choose(row=cell[0], column=cell[1])

    # -- drawing -----------------------------------------------------------------------------------------------

    def _redraw(self) -> None:
        if self._frame_layer != self.unit.layer:
            return  # the maps of the layer asked for are on their way
        self.settle()
        maps = self.maps
        channel = self.unit.channel
        first = self.page * PAGE
        part = maps[first : first + PAGE]
        signed = bool((maps < 0).any())
        tile = min(64, max(12, int(math.sqrt(WIDTH * WIDTH / len(part))) - 3))
        tiles = _vector(part, maps, signed, tile) if maps.shape[1] * maps.shape[2] == 1 else _paint(part, signed, tile)
        tiles = _shrink(tiles, tile)
        columns, times = arrange(len(tiles), *tiles.shape[1:3], WIDTH, tile=tile)
        self.mosaic = Mosaic(tiles, columns, times)
        self.maps_view.show(self.mosaic.marked(channel - first))
        self._draw_large(maps[channel], signed)
        self._draw_input()
        self._describe(signed)
        self._sync_fields()

    def _draw_large(self, chosen: np.ndarray, signed: bool) -> None:
        picture = to_uint8(self.frame.image)
        vector = chosen.size == 1
        self.range = value_range(self.maps if vector else chosen, signed=signed)
        self.scale.show("balance" if signed else "viridis", *self.range)
        base = enlarge(grayed(picture), SIDE)
        height, width = base.shape[:2]
        rows, cols = np.arange(height) * chosen.shape[0] // height, np.arange(width) * chosen.shape[1] // width
        colors = colorize(chosen, "balance" if signed else "viridis", *self.range)[rows][:, cols]
        weight = self.opacity
        if signed:  # where the map is zero the picture stays as it is
            strength = np.abs(to_unit(chosen, *self.range) - 0.5) * 2
            weight = self.opacity * np.sqrt(strength)[rows][:, cols]
        shown = blend(base, colors, weight)
        r, c = self.cell
        h, w = chosen.shape
        if h * w > 1:
            box = (r * height / h, c * width / w, (r + 1) * height / h, (c + 1) * width / w)
            shown = draw_box(shown, box)
        self.large.show(shown)

    def _draw_input(self) -> None:
        picture = to_uint8(self.frame.image)
        layer = self.network.layers[self.layer]
        base = enlarge(picture, SIDE)
        top, left, bottom, right = layer.box(self.cell)
        y, x = base.shape[0] / picture.shape[0], base.shape[1] / picture.shape[1]
        weight = np.full(base.shape[:2], 0.55, np.float32)
        weight[round(top * y) : round(bottom * y), round(left * x) : round(right * x)] = 0
        dimmed = blend(base, np.full_like(base, 128), weight)
        self.input_view.show(draw_box(dimmed, (top * y, left * x, bottom * y, right * x)))

    def _describe(self, signed: bool) -> None:
        maps, layer, channel = self.maps, self.network.layers[self.layer], self.unit.channel
        count, h, w = maps.shape
        dead = int((maps.reshape(count, -1) == 0).all(1).sum())
        size = layer.receptive_field
        size = f"the {size}" if isinstance(size, str) else f"{size[0]}x{size[1]} pixels"
        most = "" if layer.field is None or layer.field.exact else "at most "
        text = f"{layer.name} ({layer.kind}): {count} maps of {h}x{w}; a unit sees {most}{size}"
        if not signed:
            text += f"; {(maps != 0).mean():.0%} of the units are not zero"
        if dead:
            text += f"; {dead} map{'s are' if dead > 1 else ' is'} zero everywhere on this picture (marked with a cross)"
        self._text = text
        self.caption.value = note(text)
        r, c = self.cell
        top, left, bottom, right = layer.box((r, c))
        low, high = value_range(maps[channel])
        if h * w == 1:
            lines = [f"channel {channel}{self._class_name(channel)} is {maps[channel, 0, 0]:.4g}"]
        else:
            lines = [f"channel {channel} (0 to {count - 1}): {low:.3g} to {high:.3g}"]
            lines.append(f"cell ({r}, {c}) is {maps[channel, r, c]:.4g}")
        lines.append(f"it sees {most}rows {top} to {bottom - 1}, columns {left} to {right - 1}")
        self._lines = lines
        self.facts.value = "".join(note(line) for line in lines)
        self.top5.value = note("the network says:") + "".join(note(line) for line in self._guess)
        self.maps_view.alt = text
        self.large.alt, self.input_view.alt = ", ".join(lines[:-1]), lines[-1]

    @guarded
    def _map_hovered(self, x: float | None, y: float | None) -> None:
        index = None if x is None or y is None else self.mosaic.index_at(x, y)
        if index == getattr(self, "_hover", None) or self.maps is None:
            return
        self._hover = index
        if index is None:
            self.hover.value = ""
            return
        channel = index + self.page * PAGE
        chosen = self.maps[channel]
        value = f"{chosen[0, 0]:.3g}" if chosen.size == 1 else f"largest {chosen.max():.3g}, mean {chosen.mean():.3g}"
        self.hover.value = note(f"channel {channel}{self._class_name(channel)}: {value}")

    def _class_name(self, channel: int) -> str:
        """The class that a channel stands for, in the layer that puts out the scores."""
        layer = self.network.layers[self.layer]
        last = layer.value in (self.network.graph.output, self.network.layers[-1].value)
        return f", {self.network.labels[channel]}," if last and layer.channels == len(self.network.labels) else ""

    def _readable(self) -> bool:
        try:
            self.network.image(self.images.value)
        except (ValueError, TypeError, OSError):
            return False
        return True

    def _sync_fields(self) -> None:
        count, h, w = self.maps.shape
        self._ready = False
        if self.layer in self.layer_menu.options:
            self.layer_menu.value = self.layer
        for field, top, value in (
            (self.channel_field, count - 1, self.unit.channel),
            (self.row_field, h - 1, self.cell[0]),
            (self.column_field, w - 1, self.cell[1]),
            (self.page_field, (count - 1) // PAGE, self.page),
        ):
            field.max = top
            field.value = value
            field.layout.display = "none" if top == 0 and field is not self.channel_field else ""
        self._ready = True

    def snapshot(self) -> np.ndarray:
        """The maps, the selected one over the picture, and what the selected cell sees."""
        if self.frame is None:
            return beside([("no maps yet", np.full((64, 64, 3), 128, np.uint8))])
        panels = [
            ("activation maps", self.maps_view.array),
            (self._lines[0], self.large.array),
            ("what the selected cell sees", self.input_view.array),
        ]
        return beside(panels, "\n".join([f"{self.network.name}, {self._text}", ", ".join(self._guess[:3])]))


def _vector(part: np.ndarray, maps: np.ndarray, signed: bool, tile: int) -> np.ndarray:
    """(n, 1, 1) as tiles in color, all on the scale of the whole layer."""
    colors = colorize(part[:, :, 0], "balance" if signed else "viridis", *value_range(maps, signed=signed))
    return np.broadcast_to(colors[:, :, None, :], (len(part), tile, tile, 3)).copy()


def _paint(maps: np.ndarray, signed: bool, tile: int) -> np.ndarray:
    """(n, h, w) as gray tiles, each stretched to its own range; zero is black, or mid-gray where maps are signed.

    Maps without any value other than zero get a cross.
    """
    times = max(1, tile // max(maps.shape[1:]))
    maps = maps.repeat(times, axis=1).repeat(times, axis=2)
    n, h, w = maps.shape
    peak = np.abs(np.nan_to_num(maps)).reshape(n, -1).max(1).reshape(n, 1, 1)
    scale = np.where(peak > 0, peak, 1)
    gray = (np.nan_to_num(maps) / scale + 1) / 2 if signed else np.nan_to_num(maps) / scale
    tiles = np.repeat((np.clip(gray, 0, 1) * 255 + 0.5).astype(np.uint8)[..., None], 3, axis=3)
    dead = (maps == 0).all((1, 2))
    if dead.any():
        size = max(h, w)
        i, j = np.arange(size) * h // size, np.arange(size) * w // size
        cross = np.full((h, w, 3), 32, np.uint8)
        cross[i, j] = cross[i, w - 1 - j] = (200, 80, 80)
        tiles[dead] = cross
    return tiles


def _shrink(tiles: np.ndarray, largest: int) -> np.ndarray:
    """Tiles larger than `largest` pixels reduced by a whole number, keeping the brightest pixel of each block."""
    _, h, w, _ = tiles.shape
    by = -(-max(h, w) // largest)
    if by == 1:
        return tiles
    padded = np.pad(tiles, ((0, 0), (0, -h % by), (0, -w % by), (0, 0)), mode="edge")
    n, hh, ww, c = padded.shape
    return padded.reshape(n, hh // by, by, ww // by, by, c).max((2, 4))
