"""ActivationExplorer: what every channel of a layer does on a picture, and which pixels a unit sees."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Layer, Run, Unit, colorize, to_unit, value_range
from ..techniques import activations
from .controls import ColorBar, ImagePicker, hover_line, join, limit, note
from .encode import blend, draw_box, enlarge, grayed, to_uint8
from .frame_view import FrameView
from .gallery import gallery
from .heat import colormap
from .mosaic import Mosaic, arrange
from .viewer import PictureViewer, guarded

SIDE = 192  # pixels of the two large pictures
PAGE = 1024  # maps at once
WIDTH = 340  # pixels of the grid of maps, which is about as high


class ActivationExplorer(PictureViewer):
    """The activation maps of a layer as a grid; the selected one large over the picture; the pixels that a cell sees.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    image : picture, or list or dict of pictures, optional
        Whatever `Network.image` takes; bundled pictures otherwise. More can be uploaded, or assigned to `image`.
    layer : str, optional
        The first layer otherwise.
    unit : Unit, optional
        The selected channel, and the selected cell if it has a position.
    opacity : float
        How strongly the map covers the picture, 0 to 1.
    page : int
        Of a layer with more than 1024 maps; the one with the selected channel otherwise.

    Examples
    --------
    >>> explorer = ActivationExplorer()
    >>> explorer.unit = ("conv2", 5)
    >>> explorer.layer
    'conv2'
    """

    opacity = traitlets.Float(0.75, min=0, max=1, help="How strongly the map covers the picture.")
    page = traitlets.Int(0, min=0, help="Page of maps, for layers with more than fit.")
    frame: Frame | None = None
    shown: Unit | None = None
    _asked: Unit | None = None
    _hover: int | None = None

    def __init__(self, network: Any = None, image: Any = None, layer: str | None = None, **keywords: Any) -> None:
        super().__init__(network, **keywords)
        names = [found.name for found in self.network.layers if found.maps is not None]
        if not names:
            raise ValueError(f"{self.network.name} has no layer whose output can be seen as maps")
        wanted, pictures = self._layer_wanted(layer) or names[0], gallery(self.network, image)
        if self.unit is None or not self.unit.layer:
            self.unit = self._default = Unit(wanted, 0)
        self._asked = self.unit
        self.page = keywords.get("page", self.unit.channel // PAGE)
        self._build(names, pictures)
        self._sync_fields()
        self._look()
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
        join(self, "opacity", self.opacity_slider)
        self.images.observe(self._image_changed, "value")
        self.layer_menu.observe(lambda change: self._choose(change["new"], 0), "value")
        self.channel_field.observe(lambda change: self._choose(self.layer, change["new"]), "value")
        self.row_field.observe(self._cell_typed, "value")
        self.column_field.observe(self._cell_typed, "value")
        self.page_field.observe(lambda change: self.set_trait("page", change["new"]), "value")

    # -- state -------------------------------------------------------------------------------------------------

    # A selection is known at once, its maps come later, or never if the picture cannot be read. So there are two units:
    # `_asked`, the last selected one that has maps, which the controls follow, and `shown`, the one that was drawn, to which
    # `frame`, `maps`, `cell` and the mouse belong.

    @property
    def layer(self) -> str:
        """Name of the selected layer."""
        return self._asked.layer

    @layer.setter
    def layer(self, name: str) -> None:
        self.unit = Unit(self.network.layers[name].name, 0)

    @property
    def maps(self) -> np.ndarray | None:
        """The activation volume shown, (C, h, w), raw."""
        return None if self.frame is None else self.frame.arrays["maps"]

    @property
    def cell(self) -> tuple[int, int]:
        """The cell shown: the one selected, or the strongest of its map."""
        with self.lock:
            if self.shown is None:
                return (0, 0)
            chosen = self.maps[self.shown.channel]
            if self.shown.position is not None:
                row, column = self.shown.position
                return min(row, chosen.shape[0] - 1), min(column, chosen.shape[1] - 1)  # an array may be small
            row, column = np.unravel_index(int(np.nan_to_num(chosen, nan=-np.inf).argmax()), chosen.shape)
            return int(row), int(column)

    @traitlets.validate("unit")
    def _unit_exists(self, proposal: dict[str, Any]) -> Unit | None:
        unit = super()._unit_exists(proposal)
        found = self.network.layers[unit.layer] if unit is not None and unit.layer else None
        if found is not None and found.maps is None:
            shape = "x".join(map(str, found.shape))
            raise ValueError(f"{found.name} ({found.kind}) puts out {shape}, which is no set of maps; choose another layer")
        return unit

    @traitlets.validate("page")
    def _page_exists(self, proposal: dict[str, Any]) -> int:
        return proposal["value"] if self._asked is None else min(proposal["value"], self._last_page)

    @property
    def _last_page(self) -> int:
        return (self.network.layers[self.layer].channels - 1) // PAGE

    @traitlets.observe("unit")
    @guarded
    def _unit_changed(self, _change: Any) -> None:
        unit, before = self.unit, self._asked
        if unit is None or not unit.layer:
            return
        self._asked = unit
        if (unit.layer, unit.channel) != (before.layer, before.channel):
            with self.quietly():
                self.page = unit.channel // PAGE
        if unit.layer != before.layer:
            self._sync_fields()
            self._look()
        else:
            self._redraw()

    @traitlets.observe("opacity", "page")
    @guarded
    def _look_changed(self, _change: Any) -> None:
        self._redraw()

    @guarded
    def _image_changed(self, _change: Any) -> None:
        self._asked = Unit(self._asked.layer, self._asked.channel)
        if self.unit is not None and self.unit.position is not None:
            with self.quietly():
                self.unit = self._asked
        self._look()

    def _look(self) -> None:
        """Compute the maps of this picture; until they are there the old ones stay."""
        layer, guess = self._asked.layer, []
        try:
            picture = self.picture()
        except Exception as error:  # noqa: BLE001
            self.halt()
            self.complain(error)
            return
        self.launch(self._frames(picture, layer, guess), lambda run: self._arrived(run, layer, guess))

    def _frames(self, picture: np.ndarray, layer: str, guess: list[str]) -> Iterator[Frame]:
        """The maps, when `guess` has been told what the network says."""
        try:
            guess += [f"{label}  {p:.1%}" for label, p in self.network.predict(picture)]
        except ValueError as error:  # the maps of a network whose scores are not finite may tell where it broke
            guess.append(str(error))
        yield from activations(self.network, picture, layer=layer)

    def _arrived(self, run: Run, layer: str, guess: list[str]) -> None:
        if run.last is not None and run.last is not self.frame and layer == self._asked.layer:
            self.frame, self.shown, self._guess = run.last, self._asked, guess
            self.settle()
            self._redraw()

    @guarded
    def _choose(self, layer: str, channel: int) -> None:
        self.unit = Unit(layer, channel)

    @guarded
    def _cell_typed(self, _change: Any) -> None:
        self._choose_cell(self.row_field.value, self.column_field.value)

    @guarded
    def _map_clicked(self, x: float, y: float) -> None:
        index = None if self.shown is None else self.mosaic.index_at(x, y)
        if index is not None:
            self.unit = Unit(self.shown.layer, self._first + index)

    @guarded
    def _cell_clicked(self, x: float, y: float) -> None:
        if self.shown is not None:
            _, h, w = self.maps.shape
            height, width = self.large.array.shape[:2]
            self._choose_cell(min(h - 1, int(y * h / height)), min(w - 1, int(x * w / width)))

    @guarded
    def _pixel_clicked(self, x: float, y: float) -> None:
        """Select the cell whose field is centered nearest to a pixel."""
        layer = None if self.shown is None else self.network.layers[self.shown.layer]
        if layer is None or layer.field is None or not layer.is_map:
            return
        height, width = self.input_view.array.shape[:2]
        picture = self.frame.image.shape
        at = y * picture[0] / height, x * picture[1] / width
        row, column = (
            int(np.abs((axis.low + axis.high) / 2 - p).argmin()) if len(axis) > 1 else 0
            for axis, p in zip((layer.field.rows, layer.field.cols), at, strict=True)
        )
        self._choose_cell(row, column)

    def _choose_cell(self, row: int, column: int) -> None:
        if self.shown is not None:
            self.unit = Unit(self.shown.layer, self.shown.channel, (row, column))

    # -- drawing -----------------------------------------------------------------------------------------------

    def _redraw(self) -> None:
        """Draw what is selected, or, until its maps are there, what was drawn last."""
        if self.shown is not None:
            if self.shown.layer == self._asked.layer:
                self.shown = self._asked
            self._draw(self.network.layers[self.shown.layer], self.shown.channel, self.cell)
        self._sync_fields()

    def _draw(self, layer: Layer, channel: int, cell: tuple[int, int]) -> None:
        maps = self.maps
        first = self._first = min(self.page, (len(maps) - 1) // PAGE) * PAGE
        part = maps[first : first + PAGE]
        signed = bool((maps < 0).any())
        tile = min(64, max(12, int(math.sqrt(WIDTH * WIDTH / len(part))) - 3))
        tiles = _vector(part, maps, signed, tile) if maps.shape[1] * maps.shape[2] == 1 else _paint(part, signed, tile)
        tiles = _shrink(tiles, tile)
        columns, times = arrange(len(tiles), *tiles.shape[1:3], WIDTH, tile=tile)
        self.mosaic = Mosaic(tiles, columns, times)
        self.maps_view.show(self.mosaic.marked(channel - first))
        self._draw_large(maps[channel], cell, signed)
        self._draw_input(layer, cell)
        self._describe(layer, channel, cell, signed)
        self._tell_hovered()

    def _draw_large(self, chosen: np.ndarray, cell: tuple[int, int], signed: bool) -> None:
        picture = to_uint8(self.frame.image)
        vector = chosen.size == 1
        self.range = value_range(self.maps if vector else chosen, signed=signed)
        self.scale.show(colormap(signed), *self.range)
        base = enlarge(grayed(picture), SIDE)
        height, width = base.shape[:2]
        rows, cols = np.arange(height) * chosen.shape[0] // height, np.arange(width) * chosen.shape[1] // width
        colors = colorize(chosen, colormap(signed), *self.range)[rows][:, cols]
        weight = self.opacity
        if signed:  # where the map is zero the picture stays as it is
            strength = to_unit(np.abs(chosen), 0.0, self.range[1])
            weight = self.opacity * np.sqrt(strength)[rows][:, cols]
        shown = blend(base, colors, weight)
        (r, c), (h, w) = cell, chosen.shape
        if h * w > 1:
            box = (r * height / h, c * width / w, (r + 1) * height / h, (c + 1) * width / w)
            shown = draw_box(shown, box)
        self.large.show(shown)

    def _draw_input(self, layer: Layer, cell: tuple[int, int]) -> None:
        picture = to_uint8(self.frame.image)
        base = enlarge(picture, SIDE)
        top, left, bottom, right = layer.box(cell)
        y, x = base.shape[0] / picture.shape[0], base.shape[1] / picture.shape[1]
        weight = np.full(base.shape[:2], 0.55, np.float32)
        weight[round(top * y) : round(bottom * y), round(left * x) : round(right * x)] = 0
        dimmed = blend(base, np.full_like(base, 128), weight)
        seen = top < bottom and left < right
        self.input_view.show(draw_box(dimmed, (top * y, left * x, bottom * y, right * x)) if seen else dimmed)

    def _describe(self, layer: Layer, channel: int, cell: tuple[int, int], signed: bool) -> None:
        maps = self.maps
        count, h, w = maps.shape
        dead = int((maps.reshape(count, -1) == 0).all(1).sum())
        text = f"{layer.name} ({layer.kind}): {count} maps of {h}x{w}; a unit sees {layer.sees}"
        if not signed:
            text += f"; {(maps != 0).mean():.0%} of the units are not zero"
        if dead:
            text += f"; {dead} map{'s are' if dead > 1 else ' is'} zero everywhere on this picture (marked with a cross)"
        self._text = text
        self.caption.value = note(text)
        r, c = cell
        top, left, bottom, right = layer.box(cell)
        low, high = value_range(maps[channel])
        if h * w == 1:
            lines = [f"channel {channel}{self._class_name(layer, channel)} is {maps[channel, 0, 0]:.4g}"]
        else:
            lines = [f"channel {channel} (0 to {count - 1}): {low:.3g} to {high:.3g}"]
            lines.append(f"cell ({r}, {c}) is {maps[channel, r, c]:.4g}")
        most = "" if layer.field is None or layer.field.exact else "at most "
        seen = f"{most}rows {top} to {bottom - 1}, columns {left} to {right - 1}"
        if top >= bottom or left >= right:
            seen = "only padding" if layer.field is not None else "nothing of the picture"
        lines.append(f"it sees {seen}")
        self._lines = lines
        self.facts.value = "".join(note(line) for line in lines)
        self.top5.value = note("the network says:") + "".join(note(line) for line in self._guess)
        self.maps_view.alt = text
        self.large.alt, self.input_view.alt = ", ".join(lines[:-1]), lines[-1]

    @guarded
    def _map_hovered(self, x: float | None, y: float | None) -> None:
        index = None if x is None or y is None or self.shown is None else self.mosaic.index_at(x, y)
        if index != self._hover:
            self._hover = index
            self._tell_hovered()

    def _tell_hovered(self) -> None:
        """The numbers of the map that the mouse is on."""
        if self._hover is None or self._hover >= len(self.mosaic):
            self.hover.value = ""
            return
        channel = self._first + self._hover
        chosen = self.maps[channel]
        value = f"{chosen[0, 0]:.3g}" if chosen.size == 1 else f"largest {chosen.max():.3g}, mean {chosen.mean():.3g}"
        name = self._class_name(self.network.layers[self.shown.layer], channel)
        self.hover.value = note(f"channel {channel}{name}: {value}")

    def _class_name(self, layer: Layer, channel: int) -> str:
        """The class that a channel stands for, in the layer that puts out the scores."""
        last = layer.value in (self.network.graph.output, self.network.layers[-1].value)
        return f", {self.network.labels[channel]}," if last and layer.channels == len(self.network.labels) else ""

    def _sync_fields(self) -> None:
        """Let the controls follow: layer, channel and page what is selected, row and column what is shown."""
        top = self.network.layers[self.layer].channels - 1
        limits = [(self.channel_field, top, self._asked.channel), (self.page_field, self._last_page, self.page)]
        if self.shown is not None:
            _, h, w = self.maps.shape
            row, column = self.cell
            limits += [(self.row_field, h - 1, row), (self.column_field, w - 1, column)]
        with self.quietly():
            self.layer_menu.value = self.layer if self.layer in self.layer_menu.options else None
            for field, top, value in limits:
                limit(field, top, value)
                field.layout.display = "none" if top == 0 and field is not self.channel_field else ""

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        if self.frame is None:
            return [], [f"{self.network.name}: no maps yet"]
        panels = [
            ("activation maps", self.maps_view.array),
            (self._lines[0], self.large.array),
            ("what the selected cell sees", self.input_view.array),
        ]
        return panels, [f"{self.network.name}, {self._text}", ", ".join(self._guess[:3])]


def _vector(part: np.ndarray, maps: np.ndarray, signed: bool, tile: int) -> np.ndarray:
    """(n, 1, 1) as tiles in color, all on the scale of the whole layer."""
    colors = colorize(part[:, :, 0], colormap(signed), *value_range(maps, signed=signed))
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
