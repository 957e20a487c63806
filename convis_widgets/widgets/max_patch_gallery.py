"""MaxPatchGallery: for every channel of a layer the patches of a data set that excite it most."""

from __future__ import annotations

from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Run, Top, Unit
from ..techniques import max_patches
from .controls import hover_line, limit, note
from .encode import draw_box
from .frame_view import FrameView
from .heat import around_gray
from .mosaic import Mosaic
from .patches import Rows, box_of, fitted, patch_of, rows_of
from .set_viewer import SetViewer
from .viewer import guarded

SIDE = 32  # pixels of a patch in a row
LARGE = 64  # ... of the selected channel
SOURCE = 256  # ... of the picture that a patch comes from
PAGE = 32  # channels on a page
COLUMNS = 2
PROJECTIONS = ("guided backprop", "deconvnet", "gradient", "none")


class MaxPatchGallery(SetViewer):
    """What the channels of a layer look for: the patches, from a whole set of pictures, that excite each one most.

    Rows of patches, a row for each channel; one channel in full, each patch beside its projection; the whole picture that a
    patch comes from. It fills while the pictures are looked at.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    images : Scan, ImageSet, folder, list, array, Dataset, optional
        See `ImageSet`; Toyscape or handwritten digits otherwise. A Scan brings its own layers.
    layer : str, optional
        The first that was scanned otherwise.
    unit : Unit, optional
        The channel in full.
    k : int
        Patches of each channel.
    projection : str
        By which rule a patch's projection is made: "guided backprop", "deconvnet", "gradient", or "none".

    Examples
    --------
    >>> gallery = MaxPatchGallery(unit=("conv3", 5))
    >>> gallery.run is None or gallery.run.join()
    True
    """

    shares = ("unit", "picked")
    layer = traitlets.Unicode("", help="The layer shown.")
    k = traitlets.Int(9, min=1, max=64, help="Patches of each channel.")
    page = traitlets.Int(0, min=0, help="Which part of the channels is shown.")
    projection = traitlets.Enum(PROJECTIONS, "guided backprop", help="How projections are made.")

    def __init__(self, network: Any = None, images: Any = None, layer: str | None = None, **keywords: Any) -> None:
        super().__init__(network, images, **keywords)
        if not self.scan.layers:
            raise ValueError(f"{self.network.name} has no convolution; Scan(net, images, layers=...) looks at other layers")
        wanted = self._layer_wanted(layer) or self.scan.layers[0]
        self.scan.home(wanted)  # the error says which layers were scanned
        if self.unit is None or not self.unit.layer:
            self.unit = self._default = Unit(wanted, 0)
        self.shown = self.unit
        self.layer = self.shown.layer
        self.page = keywords.get("page", self.shown.channel // PAGE)
        self.rows: Rows | None = None
        self.frame: Frame | None = None  # patches and projections of the channel in full
        self.patch: int | None = None  # which of them is shown in its picture
        self._lines: list[str] = []
        self._projected: tuple[Any, ...] = ()
        self._build()
        self._begin()

    def _build(self) -> None:
        names = [one.name for one in self.network.layers if self._scanned_at(one.name)]
        self.layer_menu = ipywidgets.Dropdown(options=names, value=self.layer, description="layer")
        self.channel_field = ipywidgets.BoundedIntText(0, 0, 0, description="channel", layout={"width": "150px"})
        self.page_field = ipywidgets.BoundedIntText(0, 0, 0, description="page", layout={"width": "150px"})
        self.projection_menu = ipywidgets.Dropdown(options=PROJECTIONS, description="projection")
        self.rows_view = FrameView(on_click=self._row_clicked, on_hover=self._row_hovered)
        self.patches_view, self.projections_view = (FrameView(on_click=self._patch_clicked) for _ in range(2))
        self.whole_view = FrameView()
        self.caption, self.facts, self.whole_caption = (ipywidgets.HTML() for _ in range(3))
        self.hover = hover_line()
        row = {"flex_flow": "row wrap", "align_items": "flex-start"}
        patches_box, self.projections_box = (
            ipywidgets.VBox([ipywidgets.HTML(note(head)), view])
            for head, view in (("strongest patches", self.patches_view), ("what excites it in them", self.projections_view))
        )
        pair = ipywidgets.HBox([patches_box, self.projections_box], layout={"grid_gap": "8px"})
        side = ipywidgets.VBox(
            [self.facts, pair, self.whole_caption, self.whole_view], layout={"width": "430px", "margin": "0 0 0 12px"}
        )
        self.children = [
            ipywidgets.HBox([self.layer_menu, self.channel_field, self.page_field, self.projection_menu], layout=row),
            self.progress,
            self.caption,
            ipywidgets.HBox([ipywidgets.VBox([self.rows_view, self.hover]), side], layout=row),
            self.status,
        ]
        traitlets.link((self, "projection"), (self.projection_menu, "value"))
        traitlets.link((self, "layer"), (self.layer_menu, "value"))
        self.channel_field.observe(lambda change: self._choose(change["new"]), "value")
        self.page_field.observe(lambda change: self.set_trait("page", change["new"]), "value")

    def _scanned_at(self, name: str) -> bool:
        try:
            return bool(self.scan.home(name))
        except ValueError:
            return False

    # -- state -------------------------------------------------------------------------------------------------

    @property
    def _kept(self) -> int:
        return self.k

    @property
    def _channels(self) -> int:
        return self.network.layers[self.layer].channels

    @traitlets.validate("layer")
    def _layer_exists(self, proposal: dict[str, Any]) -> str:
        name = self.network.layers[proposal["value"]].name
        self.scan.home(name)
        return name

    @traitlets.validate("page")
    def _page_exists(self, proposal: dict[str, Any]) -> int:
        return min(proposal["value"], (self._channels - 1) // PAGE) if self.layer else proposal["value"]

    @traitlets.observe("layer")
    @guarded
    def _layer_changed(self, _change: Any) -> None:
        if self.layer != self.shown.layer:
            self.unit = Unit(self.layer, 0)

    @traitlets.observe("unit")
    @guarded
    def _unit_changed(self, _change: Any) -> None:
        """A unit of a layer that was not scanned, selected elsewhere, changes nothing."""
        if self.unit is not None and self.unit.layer and self._scanned_at(self.unit.layer):
            self.shown = Unit(self.unit.layer, self.unit.channel)
            with self.quietly():
                self.layer, self.page = self.shown.layer, self.shown.channel // PAGE
            self.patch = None
            self._redraw()

    @traitlets.observe("page", "k", "projection")
    @guarded
    def _look_changed(self, _change: Any) -> None:
        self._redraw()

    @traitlets.observe("picked")
    @guarded
    def _picked_changed(self, _change: Any) -> None:
        """A picture picked elsewhere: its patch, if it is one of the channel's, or the whole of it."""
        if self.picked is None or self.picked >= self.scan.seen or self.picked in self.scan.skipped:
            return
        top = self.scan.top(self.layer)
        shown = top.images[self.shown.channel, : min(self.k, top.count(self.shown.channel))].tolist()
        if self.picked in shown:
            self.patch = self.patch if shown[self.patch or 0] == self.picked else shown.index(self.picked)
            self._draw_channel()
        else:
            self.whole_view.layout.display = self.whole_caption.layout.display = ""
            self.whole_view.show(self._whole(self.picked, SOURCE))
            self.whole_view.alt = f"{self._named(self.picked)}: not among the patches of channel {self.shown.channel}"
            self.whole_caption.value = note(self.whole_view.alt)

    @guarded
    def _choose(self, channel: int) -> None:
        self.unit = Unit(self.shown.layer, channel)

    @guarded
    def _row_clicked(self, x: float, y: float) -> None:
        there = self.rows.at(x, y) if self.rows is not None else None
        if there is not None:
            self.unit = Unit(self.shown.layer, there[0])
            if there[1] is not None:
                self._look_at(there[1])

    @guarded
    def _row_hovered(self, x: float | None, y: float | None) -> None:
        there = self.rows.at(x, y) if x is not None and y is not None and self.rows is not None else None
        self.hover.value = "" if there is None else note(self._about(*there))

    def _about(self, channel: int, j: int | None) -> str:
        top = self.scan.top(self.layer)
        if j is None or j >= top.images.shape[1] or top.images[channel, j] < 0:
            return f"channel {channel}"
        image, row, col = (int(part[channel, j]) for part in (top.images, top.rows, top.cols))
        return f"channel {channel}: {top.values[channel, j]:.3g} at {row}, {col} in {self._named(image)}"

    @guarded
    def _patch_clicked(self, x: float, y: float) -> None:
        index = self._mosaic.index_at(x, y)
        if index is not None:
            self._look_at(index)

    def _look_at(self, j: int) -> None:
        """Show the picture that a patch of the selected channel comes from."""
        top = self.scan.top(self.layer)
        if j < min(self.k, top.count(self.shown.channel)):
            self.patch = j
            self._draw_channel()
            self.picked = int(top.images[self.shown.channel, j])

    # -- the computation ---------------------------------------------------------------------------------------

    def _project(self) -> None:
        """Compute the projections of the channel in full, once the scan is complete."""
        asked = (self.shown, self.k, self.projection)
        if self.projection == "none":
            self.settle()
        if not self.scan.complete or self.projection == "none" or asked == self._projected:
            return
        self.settle()
        self._projected, self.frame = asked, None
        self._draw_projections()
        frames = max_patches(self.network, self.scan, of=self.shown, k=self.k, projection=self.projection)

        def arrived(run: Run) -> None:
            if run.last is not None and run.last is not self.frame and "projections" in run.last.arrays:
                self.frame = run.last
                self._draw_projections()

        self.launch(frames, arrived)

    # -- drawing -----------------------------------------------------------------------------------------------

    def _redraw(self) -> None:
        first = self.page * PAGE
        channels = range(first, min(first + PAGE, self._channels))
        k = min(self.k, self.scan.k)
        self.rows = rows_of(self.scan, self.layer, channels, k=k, side=SIDE, columns=COLUMNS)
        self.rows_view.show(self.rows.marked(self.shown.channel))
        self._sync_fields()
        self._draw_channel()
        self._describe()
        self._project()

    def _draw_channel(self) -> None:
        top, channel = self.scan.top(self.layer), self.shown.channel
        count = min(self.k, top.count(channel))
        tiles = np.full((max(1, count), LARGE, LARGE, 3), 128, np.uint8)
        for j in range(count):
            tiles[j] = patch_of(self.scan, self.layer, top, channel, j, LARGE)
        self._mosaic = Mosaic(tiles, 3, 1)
        self.patches_view.show(self._mosaic.marked(self.patch))
        values = ", ".join(f"{value:.3g}" for value in top.values[channel, :count])
        self._lines = [f"channel {channel} of {self.layer}: {values}"]
        if channel in top.dead:
            self._lines = [f"channel {channel} of {self.layer} is never active: at most {top.values[channel, 0]:.3g}"]
        elif count == 0 and len(self.scan.known):
            self._lines = [f"channel {channel} of {self.layer} is not a finite number anywhere"]
        self.facts.value = "".join(map(note, self._lines))
        self.patches_view.alt = f"the strongest patches of {self._lines[0]}"
        self.whole_view.layout.display = self.whole_caption.layout.display = "" if count else "none"
        if count:
            self._draw_source(top, channel)
        self._draw_projections()
        self._tell()

    def _draw_source(self, top: Top, channel: int) -> None:
        """The picture that a patch comes from, with a box around the patch."""
        j = self.patch or 0
        image = int(top.images[channel, j])
        shown = self._whole(image, SOURCE)
        scale = shown.shape[0] / self.network.transform.size[0]
        self.whole_view.show(draw_box(shown, tuple(scale * edge for edge in box_of(self.scan, self.layer, top, channel, j))))
        self.whole_view.alt = f"{self._named(image)}: {top.values[channel, j]:.3g} in the box"
        self.whole_caption.value = note(self.whole_view.alt)

    def _draw_projections(self) -> None:
        there = self.frame is not None and self._projected[:1] == (self.shown,) and self.projection != "none"
        there = there and bool(np.isfinite(self.frame.arrays["projections"]).any())  # not before there is one, if ever
        self.projections_box.layout.display = "" if there else "none"
        if not there:
            return
        arrays = self.frame.arrays
        tiles = np.full((max(1, len(arrays["projections"])), LARGE, LARGE, 3), 128, np.uint8)
        for tile, projection, (up, left, bottom, right) in zip(tiles, arrays["projections"], arrays["boxes"], strict=False):
            part = projection[: bottom - up, : right - left]
            if np.isfinite(part).all() and part.size:
                tile[:] = fitted(around_gray(part, beyond=0.01), LARGE)
        self.projections_view.show(Mosaic(tiles, 3, 1).image)
        self.projections_view.alt = f"what in each patch excites the channel, by {self.projection}"

    def _describe(self) -> None:
        layer, dead = self.network.layers[self.layer], len(self.scan.top(self.layer).dead)
        text = f"{layer.name} ({layer.kind}): {self._channels} channels, each sees {layer.sees}; {self._counted}"
        if dead:
            text += f"; {dead} {'is' if dead == 1 else 'are'} never active"
        if self.k > self.scan.k:
            text += f"; this scan keeps {self.scan.k} of each, Scan(net, images, k={self.k}) more"
        self._text = text
        self.caption.value, self.rows_view.alt = note(text), text

    def _sync_fields(self) -> None:
        with self.quietly():
            last = (self._channels - 1) // PAGE
            for field, most, value in (
                (self.channel_field, self._channels - 1, self.shown.channel),
                (self.page_field, last, self.page),
            ):
                limit(field, most, value)
        self.page_field.layout.display = "" if last else "none"

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        panels = [("strongest patches", self.rows_view.array), (f"channel {self.shown.channel}", self.patches_view.array)]
        if self.frame is not None and self.projections_box.layout.display != "none":
            panels.append((self.projection, self.projections_view.array))
        lines = [f"{self.network.name}, {self.images.name}, {self._text}", *self._lines]
        if self.whole_view.layout.display != "none" and self.whole_view.array is not None:
            panels.append(("the picture of a patch", self.whole_view.array))
            lines.append(self.whole_view.alt)
        return panels, lines
