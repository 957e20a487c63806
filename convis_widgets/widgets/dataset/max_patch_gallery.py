"""MaxPatchGallery: the image patches with the largest activations, for every channel of a layer."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import ipywidgets
import numpy as np

from ...core.dataset.top_k import TopActivations
from ...core.network.unit import Unit
from ...core.runs.frame import Frame
from ...core.runs.run import Run
from ...core.types import ImagesLike, NetworkLike
from ...techniques.dataset.max_patches import max_patches
from ...techniques.dataset.scan import scan
from ..base.param_box import COLUMNS_IN_ONE_ROW, report_errors
from ..base.params import Index, KnobParam, LayerParam
from ..base.settings import Field
from ..base.viewer import COLUMN_GAP, Panels, set_column_width
from ..controls.frame_view import FrameView
from ..controls.text import readout, text_html
from ..drawing.heatmap import diverging_rgb
from ..drawing.mosaic import Box, Mosaic
from ..drawing.patch_rows import PatchRows, fit_square, patch_box, render_patch, render_rows, row_width
from .dataset_viewer import DatasetViewer

PATCH_SIDE = 32  # pixels of a patch in a row
LARGE_PATCH_SIDE, MIN_LARGE_SIDE, MAX_LARGE_SIDE = 64, 40, 112  # ... of the selected channel
SOURCE_SIDE = 256  # ... of the image that a patch comes from
CHANNELS_PER_PAGE = 32
ROW_COLUMNS, PATCH_COLUMNS = 2, 3
WIDE_PAGE = 1240  # pixels from which there are two columns of rows
REDRAW_PERIOD = 0.7  # seconds between two redraws during a scan
OUTLIER_FRACTION = 0.01  # of the values of a projection


class MaxPatchGallery(DatasetViewer):
    """The patches of an image set that maximally activate each channel of a layer.

    One row of patches per channel; one channel enlarged, with the projection of each patch; the image that a patch comes
    from. The rows fill while the images are scanned.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    images : Scan, ImageSet, folder, list, array, Dataset, optional
        See `ImageSet`; Toyscape or handwritten digits by default. A Scan brings its own layers.

    Examples
    --------
    >>> gallery = MaxPatchGallery(unit=("conv3", 5))
    >>> gallery.run is None or gallery.run.join()
    True
    """

    linkable = ("unit", "image_index")
    result = "projections"

    layer = LayerParam(
        lambda viewer: [layer.name for layer in viewer.network.layers if viewer.has_patches(layer.name)],
        "Name of the layer; the first one of the scan by default.",
        default="",
        effect="layer_changed",
    )
    channel = Field(
        lambda viewer: viewer.shown.channel,
        lambda viewer, channel: viewer.select(channel),
        lambda viewer: viewer.num_channels - 1,
        "Selected channel.",
    )
    page = Index(
        lambda viewer: viewer.last_page,
        f"Page of channels, for layers with more than {CHANNELS_PER_PAGE}; the one with the selected channel by default.",
        when=lambda viewer: viewer.last_page > 0,
    )
    k = KnobParam.of(max_patches, "k", effect="settings_changed", label="patches")
    projection = KnobParam.of(max_patches, "projection", effect="settings_changed")

    def __init__(
        self, network: NetworkLike = None, images: ImagesLike | None = None, layer: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(network, images, **kwargs)
        if not self.scan.layers:
            raise ValueError(f"{self.network.name} has no convolution; Scan(net, images, layers=...) scans other layers")
        self.select_default(Unit(self.initial_layer(layer, self.scan.layers[0]), 0))
        self.layer = self.unit.layer
        self.shown = Unit(self.layer, self.unit.channel)  # the selected channel, of a layer that was scanned
        self.page = min(kwargs.get("page", self.shown.channel // CHANNELS_PER_PAGE), self.last_page)
        self.patch: int | None = None  # the selected patch of the channel
        self.patch_rows = PatchRows(np.empty((0, 0, 4), np.uint8), (), ROW_COLUMNS, 0, PATCH_SIDE)
        self.patches = Mosaic(np.empty((0, 1, 1, 3), np.uint8), PATCH_COLUMNS, 1)
        self._rows_key: tuple[Any, ...] = ()  # what the rows, the patches and the projections were made for
        self._patches_key: tuple[Any, ...] = ()
        self._projections_key: tuple[Any, ...] = ()
        self._redraw_time = 0.0
        self._make_parts()
        self.redraw()
        self.recompute()

    def _make_parts(self) -> None:
        self.rows_view = FrameView(on_click=self._row_clicked, on_hover=self._row_hovered)
        self.patches_view, self.projections_view = (FrameView(on_click=self._patch_clicked) for _ in range(2))
        self.whole_view = FrameView()
        self.caption, self.facts, self.whole_caption, self.hover = *(ipywidgets.HTML() for _ in range(3)), readout()
        patches_box, self.projections_box = (
            ipywidgets.VBox([ipywidgets.HTML(text_html(title)), view])
            for title, view in (("strongest patches", self.patches_view), ("projection", self.projections_view))
        )
        self.projections_box.layout.display = "none"  # until there are projections
        self.make_controls()
        pair = ipywidgets.HBox([patches_box, self.projections_box], layout={"grid_gap": "8px"})
        side = ipywidgets.VBox([self.facts, pair, self.whole_caption, self.whole_view])
        self._columns = ipywidgets.VBox([self.rows_view, self.hover]), side
        self._set_sizes()
        self.children = [
            self.row("layer", "channel", "page", "k", "projection"),
            self.progress,
            self.caption,
            ipywidgets.HBox(self._columns, layout=COLUMNS_IN_ONE_ROW),
            self.status,
        ]

    def _set_sizes(self) -> None:
        """Let the rows and what is beside them fill the width of the page."""
        page, k = self.available_width, min(self.k, self.scan.k)
        self.row_columns = ROW_COLUMNS if not page or page > WIDE_PAGE else 1
        rows = self.row_columns * row_width(k, PATCH_SIDE)
        self.large_side = LARGE_PATCH_SIDE
        if page:
            side = (page - rows - COLUMN_GAP) // (2 * PATCH_COLUMNS) - 6
            self.large_side = max(MIN_LARGE_SIDE, min(MAX_LARGE_SIDE, side))
        set_column_width(self._columns[0], rows)
        set_column_width(self._columns[1], 2 * PATCH_COLUMNS * (self.large_side + 4) + 22)

    def page_resized(self) -> None:
        """Draw patches that fill the width of the page."""
        self._set_sizes()
        self.redraw()
        if self.frame is not None:
            self.draw(self.frame)

    # -- state ---------------------------------------------------------------------------------------------------

    @property
    def patches_per_channel(self) -> int:
        """Activations that the Scan has to keep of each channel."""
        return self.k

    @property
    def num_channels(self) -> int:
        """Channels of the layer."""
        return self.network.layers[self.layer].channels

    @property
    def last_page(self) -> int:
        """Index of the last page of channels."""
        return (self.num_channels - 1) // CHANNELS_PER_PAGE

    def has_patches(self, layer: str) -> bool:
        """Whether a layer was scanned, or the convolution before a ReLU."""
        try:
            return bool(self.scan.scanned_layer(layer))
        except ValueError:
            return False

    def check_layer(self, name: str) -> str:
        """Return the name; ValueError if the layer was not scanned."""
        self.scan.scanned_layer(name)
        return name

    def layer_changed(self) -> None:
        """Select the first channel of another layer."""
        if self.layer != self.shown.layer:
            self.unit = Unit(self.layer, 0)

    def unit_changed(self) -> None:
        """Show the selected channel; units of layers that were not scanned are ignored."""
        if self.unit is not None and self.unit.layer and self.has_patches(self.unit.layer):
            self._show_channel(self.unit)

    def select(self, channel: int) -> None:
        """Select a channel of the layer shown."""
        self.unit = Unit(self.shown.layer, channel)

    def select_patch(self, channel: int, patch: int) -> None:
        """Select a channel of the layer shown, one of its patches, and the image that the patch comes from."""
        top = self.scan.top(self.layer)
        if patch >= self._num_patches(top, channel):
            self.select(channel)
            return
        with self.handlers_muted():  # all is drawn once
            self.unit = Unit(self.shown.layer, channel)
            self.image_index = int(top.images[channel, patch])
        self._show_channel(self.unit, patch)

    def _show_channel(self, unit: Unit, patch: int | None = None) -> None:
        with self.handlers_muted():
            self.layer = unit.layer
            if (unit.layer, unit.channel) != (self.shown.layer, self.shown.channel):
                self.page = unit.channel // CHANNELS_PER_PAGE
        self.shown, self.patch = Unit(unit.layer, unit.channel), patch
        self.settings_changed()

    def selection_changed(self) -> None:
        """Show the selected image: its patch if the channel has one, the whole image otherwise."""
        index, top = self.image_index, self.scan.top(self.layer)
        if index is None or not self.is_scanned(index):
            return
        images = top.images[self.shown.channel, : self._num_patches(top, self.shown.channel)].tolist()
        if index not in images:
            text = f"{self.image_text(index)}: not among the patches of {self._channel_text}"
            self._show_source(self.full_image(index, SOURCE_SIDE), text)
        elif images[self.patch or 0] != index:
            self.patch = images.index(index)
            self._draw_channel(top)
        else:
            self._draw_source(top)

    # -- the computation -----------------------------------------------------------------------------------------

    def make_frames(self) -> Iterator[Frame] | None:
        """The rest of the scan or, once it is complete, the projections of the selected channel."""
        if not self.scan.complete:
            return scan(self.network, self.scan)
        self._projections_key, self.frame = self._projection_settings, None
        self.projections_box.layout.display = "none"
        if self.projection == "none":
            return None
        return max_patches(self.network, self.scan, unit=self.shown, k=self.k, projection=self.projection)

    @property
    def _projection_settings(self) -> tuple[Any, ...]:
        """What the projections depend on."""
        return self.shown, self.k, self.projection

    def settings_changed(self) -> None:
        """Draw with the present settings, and compute other projections once the scan is complete."""
        self.redraw()
        if self.scan.complete and self._projections_key != self._projection_settings:
            self.recompute()

    def run_changed(self, run: Run) -> None:
        """Draw the newest projections or, from time to time, the newest rows."""
        super().run_changed(run)
        is_scan = run.last is None or self.result not in run.last.arrays
        is_due = run.last is not None and time.monotonic() - self._redraw_time >= REDRAW_PERIOD
        if is_scan and (is_due or run.state != "running"):
            self.settings_changed()
            self._redraw_time = time.monotonic()  # after drawing, which may take longer than the period

    # -- drawing -------------------------------------------------------------------------------------------------

    def redraw(self) -> None:
        """Draw everything but the projections. What has not changed is not rendered again."""
        top = self.scan.top(self.layer)
        self.bar.layout.display = "none" if self.scan.complete else ""
        self._draw_rows()
        self._draw_channel(top)
        self._describe(top)
        self.sync_controls()

    def _draw_rows(self) -> None:
        first = self.page * CHANNELS_PER_PAGE
        channels = range(first, min(first + CHANNELS_PER_PAGE, self.num_channels))
        columns, k = self.row_columns, min(self.k, self.scan.k)
        key = self.layer, channels, k, self.scan.num_seen, columns
        if key != self._rows_key:
            self._rows_key = key
            self.patch_rows = render_rows(self.scan, self.layer, channels, k=k, side=PATCH_SIDE, columns=columns)
        self.rows_view.show(self.patch_rows.image, selected=self.patch_rows.box(self.shown.channel))

    def _draw_channel(self, top: TopActivations) -> None:
        """Draw the patches of the selected channel and the image of the selected patch."""
        channel = self.shown.channel
        count = self._num_patches(top, channel)
        self.patch = self.patch if self.patch is not None and self.patch < count else None
        key = self.shown, count, self.scan.num_seen, self.large_side
        if key != self._patches_key:
            self._patches_key = key
            self.patches = _mosaic(
                [render_patch(self.scan, self.layer, top, channel, j, self.large_side) for j in range(count)],
                self.large_side,
            )
        self.patches_view.show(self.patches.image, selected=self.patches.box(self.patch), tiles=self.patches.layout)
        values = ", ".join(f"{value:.3g}" for value in top.values[channel, :count])
        text = f"{self._channel_text}: {values}"
        if channel in top.dead:
            text = f"{self._channel_text} is never active: at most {top.values[channel, 0]:.3g}"
        elif count == 0 and len(self.scan.valid):
            text = f"{self._channel_text} is not finite for any image"
        self._facts_text, self.facts.value = text, text_html(text)
        self.patches_view.alt = f"strongest patches of {text}"
        self.whole_view.layout.display = self.whole_caption.layout.display = "" if count else "none"
        if count:
            self._draw_source(top)
        self.update_notices()

    @property
    def _channel_text(self) -> str:
        return f"channel {self.shown.channel} of {self.shown.layer}"

    def _num_patches(self, top: TopActivations, channel: int) -> int:
        return min(self.k, top.count(channel))

    def _draw_source(self, top: TopActivations) -> None:
        """Draw the image of the selected patch, or of the strongest one, with a box around the patch."""
        channel, patch = self.shown.channel, self.patch or 0
        index = int(top.images[channel, patch])
        image = self.full_image(index, SOURCE_SIDE)
        scale = image.shape[0] / self.network.transform.size[0]
        box = [scale * edge for edge in patch_box(self.scan, self.layer, top, channel, patch)]
        self._show_source(image, f"{self.image_text(index)}: {top.values[channel, patch]:.3g} in the box", [box])

    def _show_source(self, image: np.ndarray, text: str, boxes: Sequence[Box] = ()) -> None:
        self.whole_view.layout.display = self.whole_caption.layout.display = ""
        self.whole_view.show(image, boxes=boxes)
        self.whole_view.alt, self.whole_caption.value = text, text_html(text)

    def draw(self, frame: Frame, *, streaming: bool = False) -> None:
        """Draw the projections of the selected channel; nothing before the first one."""
        arrays = frame.arrays
        if not np.isfinite(arrays["projections"]).any():
            return
        side = self.large_side
        tiles = [np.full((side, side, 3), 128, np.uint8) for _ in arrays["boxes"]]
        for tile, projection, (top, left, bottom, right) in zip(tiles, arrays["projections"], arrays["boxes"], strict=True):
            values = projection[: bottom - top, : right - left]
            if values.size and np.isfinite(values).all():
                tile[:] = fit_square(diverging_rgb(values, OUTLIER_FRACTION), side)
        mosaic = _mosaic(tiles, side)
        self.projections_view.show(mosaic.image, tiles=mosaic.layout)
        self.projections_view.alt = f"projections of the patches by {self.projection}"
        self.projections_box.layout.display = ""

    def _describe(self, top: TopActivations) -> None:
        layer, dead = self.network.layers[self.layer], len(top.dead)
        text = f"{layer.name} ({layer.kind}): {layer.channels} channels; receptive field: {layer.receptive_field_text}"
        text += f"; {self.count_text()}"
        if dead:
            text += f"; {dead} channel{'s are' if dead > 1 else ' is'} never active"
        if self.k > self.scan.k:
            text += f"; this scan keeps {self.scan.k} patches per channel, Scan(net, images, k={self.k}) keeps more"
        self._text = text
        self.caption.value, self.rows_view.alt = text_html(text), text

    # -- mouse ---------------------------------------------------------------------------------------------------

    @report_errors
    def _row_clicked(self, x: float, y: float) -> None:
        position = self.patch_rows.locate(x, y)
        if position is not None:
            channel, patch = position
            if patch is None:
                self.select(channel)
            else:
                self.select_patch(channel, patch)

    @report_errors
    def _patch_clicked(self, x: float, y: float) -> None:
        patch = self.patches.index_at(x, y)
        if patch is not None:
            self.select_patch(self.shown.channel, patch)

    @report_errors
    def _row_hovered(self, x: float | None, y: float | None) -> None:
        position = None if x is None or y is None else self.patch_rows.locate(x, y)
        self.hover.value = "" if position is None else text_html(self._patch_text(*position))

    def _patch_text(self, channel: int, patch: int | None) -> str:
        top = self.scan.top(self.layer)
        if patch is None or patch >= top.count(channel):
            return f"channel {channel}"
        image, row, column = (int(array[channel, patch]) for array in (top.images, top.rows, top.cols))
        return f"channel {channel}: {top.values[channel, patch]:.3g} at {row}, {column} in {self.image_text(image)}"

    def snapshot_panels(self) -> Panels:
        """The rows, the patches and projections of the selected channel, and the image of a patch."""
        views = [("strongest patches", self.rows_view), (f"channel {self.shown.channel}", self.patches_view)]
        lines = [f"{self.source_text()}, {self._text}", self._facts_text]
        if self.projections_box.layout.display != "none":
            views.append((self.projection, self.projections_view))
        if self.whole_view.layout.display != "none" and self.whole_view.array is not None:
            views.append(("image of a patch", self.whole_view))
            lines.append(self.whole_view.alt)
        return [(title, view.with_boxes()) for title, view in views if view.array is not None], lines


def _mosaic(tiles: list[np.ndarray], side: int) -> Mosaic:
    """Patches of this side in columns; one gray tile if there are none."""
    gray = np.full((side, side, 3), 128, np.uint8)
    return Mosaic(np.stack(tiles or [gray]), PATCH_COLUMNS, 1)
