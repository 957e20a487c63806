"""EmbeddingMap: an image set as a map on which similar images are close to each other."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ipywidgets
import numpy as np

from ...core.dataset.grid import assign_to_grid
from ...core.knob import Knob
from ...core.runs.frame import Frame
from ...core.text import MAX_NAME, one_line
from ...core.types import ImagesLike, NetworkLike
from ...techniques.dataset.embedding import embedding
from ..base.param_box import COLUMNS, report_errors
from ..base.params import Choice, KnobParam
from ..base.viewer import Panels
from ..controls.frame_view import FrameView
from ..controls.text import text_html
from ..drawing.encode import HIGHLIGHT, draw_box
from ..drawing.mosaic import Mosaic
from ..drawing.patch_rows import fit_square
from ..drawing.scatter import Scatter, Thumbnails, unit_square
from .dataset_viewer import FULL_IMAGE_SIDE, DatasetViewer, ImageParam, ImagesParam
from .image_groups import ImageGroups

WIDTH = HEIGHT = 600  # pixels of the map
TILE_SIDE = 40  # pixels of a selected image
MAX_SELECTED_SHOWN = 60
MAX_STREAMED_GRID = 1000  # images up to which a grid is drawn while t-SNE runs: to assign cells takes longer than a step
MIN_DRAG = 3  # pixels; shorter drags are clicks
ZOOM_IN, ZOOM_OUT = 1.25, 0.8  # factors of a turn of the wheel


@dataclass
class Drag:
    """A drag on the map in progress, from (x, y) on."""

    mode: str
    x: float
    y: float
    moved: bool = False


class EmbeddingMap(DatasetViewer):
    """Images at their points by t-SNE or PCA: drag to pan, turn the wheel to zoom, hover for details, draw a box to select.

    t-SNE can be watched and stopped.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    images : Scan, ImageSet, folder, list, array, Dataset, optional
        See `ImageSet`; Toyscape or handwritten digits by default.

    Examples
    --------
    >>> viewer = EmbeddingMap(method="pca")
    >>> viewer.run.join()
    True
    >>> viewer.frame.arrays["points"].shape
    (400, 2)
    """

    result = "points"

    image_index = ImageParam(None, "Index of the selected image.", effect="selection_changed")
    method = KnobParam.of(embedding, "method")
    space = KnobParam.of(embedding, "space")
    color_by = Choice(
        "label",
        ("label", "prediction", "cluster", "none"),
        'Color of the edges of the images. "cluster" is k-means of features or pixels. By default "prediction" for images '
        "without labels.",
        label="color by",
        effect="color_by_changed",
    )
    arrangement = Choice(
        "scatter",
        ("scatter", "grid"),
        '"scatter" draws the points of the map, "grid" all images side by side, each moved as little as possible.',
        label="layout",
    )
    perplexity = KnobParam.of(embedding, "perplexity", when=lambda viewer: viewer.method == "tsne")
    selection = ImagesParam((), "Indices of the images selected by a box.", effect="selection_changed")
    mode = Choice(
        "pan",
        {"Pan": "pan", "Select": "select"},
        "What a drag does: move the map, or draw a box to select images, as with Shift.",
        buttons=True,
        effect="",
    )
    zoom = KnobParam(1.0, Knob(1.0, 64.0, log=True), "Zoom factor of the map.", effect="zoom_changed")

    def __init__(
        self, network: NetworkLike = None, images: ImagesLike | None = None, method: str = "tsne", **kwargs: Any
    ) -> None:
        super().__init__(network, images, method=method, **kwargs)
        self._color_chosen = "color_by" in kwargs
        self.chart = Scatter(np.empty((0, 2)), WIDTH, HEIGHT, zoom=self.zoom)
        self.groups = ImageGroups(self.scan, np.empty(0, np.int64))
        self.thumbnails = Thumbnails(np.empty((0, 1, 1, 3), np.uint8))
        self.selected_tiles: Mosaic | None = None
        self._grid: tuple[Frame, np.ndarray] | None = None  # a Frame and the cells of its images
        self._drag: Drag | None = None
        self._box: tuple[float, float, float, float] | None = None
        self._hovered_image: int | None = None
        self._make_parts()
        self.recompute()

    def _make_parts(self) -> None:
        self.map_view, self.hover_view = FrameView(on_gesture=self._gesture), FrameView()
        self.selection_view = FrameView(on_click=self._tile_clicked)
        self.hover_caption, self.legend, self.summary = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self.reset_button = ipywidgets.Button(description="Reset view", icon="expand", layout={"width": "120px"})
        self.reset_button.on_click(lambda _button: self.reset_view())
        self.make_controls()
        self.controls["perplexity"].continuous_update = False
        for name in ("method", "space", "color_by", "arrangement"):
            self.controls[name].layout.width = "190px"
        hover = ipywidgets.VBox([self.hover_view, self.hover_caption], layout={"min_height": f"{FULL_IMAGE_SIDE + 60}px"})
        side = ipywidgets.VBox([hover, self.legend], layout={"width": "240px", "margin": "0 0 0 12px"})
        self.children = [
            self.row("method", "space", "color_by", "arrangement", "perplexity"),
            self.progress,
            self.row("mode", "zoom", "reset_button"),
            ipywidgets.HBox([self.map_view, side], layout=COLUMNS),
            self.summary,
            self.selection_view,
            self.status,
        ]
        self.selection_changed()

    # -- state ---------------------------------------------------------------------------------------------------

    def color_by_changed(self) -> None:
        """Draw the map in other colors."""
        self._color_chosen = True
        self._draw_map()
        self._draw_legend()

    def selection_changed(self) -> None:
        """Show the selected images and mark them on the map."""
        self._draw_map()
        self._draw_selection()
        self._update_readout()

    def zoom_changed(self) -> None:
        """Zoom about the center of the window."""
        self._show_chart(self.chart.zoom_at(self.zoom / self.chart.zoom, WIDTH / 2, HEIGHT / 2), streaming=True)
        self.map_view.pump.flush()

    @report_errors
    def reset_view(self) -> None:
        """Show the whole map."""
        self._show_chart(Scatter(self.chart.points, WIDTH, HEIGHT))

    # -- the computation -----------------------------------------------------------------------------------------

    def make_frames(self) -> Iterator[Frame]:
        """The scan, if it is not complete, then the embedding."""
        return embedding(self.network, self.scan, method=self.method, space=self.space, perplexity=self.perplexity)

    # -- drawing -------------------------------------------------------------------------------------------------

    def draw(self, frame: Frame, *, streaming: bool = False) -> None:
        """Draw the map of a Frame."""
        images = frame.arrays["images"]
        is_first = not np.array_equal(images, self.groups.images)
        if is_first:
            self.groups, self.thumbnails = ImageGroups(self.scan, images), Thumbnails(self.scan.thumbnails(images))
            self._choose_color()
        elif streaming and self.arrangement == "grid" and len(images) > MAX_STREAMED_GRID:
            return
        self.chart = replace(self.chart, points=self._positions(frame))
        self._draw_map(streaming=streaming)
        self._draw_legend()
        if is_first:  # the scan has ended
            self._draw_selection()
            self._update_readout()
            self.update_notices()

    def _choose_color(self) -> None:
        """Color images without labels by prediction, unless the user has chosen."""
        if not self._color_chosen and not self.groups.labeled:
            with self.handlers_muted():
                self.color_by = "prediction"
            self.sync_controls()
        self._color_chosen = True

    def _positions(self, frame: Frame) -> np.ndarray:
        """Points of the map in the unit square, (n, 2)."""
        if self.arrangement == "scatter":
            return unit_square(frame.arrays["points"])
        return unit_square(self._grid_cells(frame).astype(np.float64))

    def _grid_cells(self, frame: Frame) -> np.ndarray:
        """Column and row of each image on the grid, (n, 2)."""
        if self._grid is None or self._grid[0] is not frame:
            arrays = frame.arrays
            self._grid = frame, arrays["grid"] if "grid" in arrays else assign_to_grid(arrays["points"])
        return self._grid[1]

    def _tiles(self) -> np.ndarray:
        """Thumbnails in the size in which they are drawn; on a grid they do not overlap."""
        if self.arrangement == "scatter" or self.frame is None:
            return self.thumbnails.at_size(self.chart.side)
        cells = max(1, np.ptp(self._grid_cells(self.frame), axis=0).max())
        return self.thumbnails.at_size(min(self.chart.side, self.chart.scale.min() / cells), within=True)

    def _marks(self) -> np.ndarray:
        """Positions, among the images of the map, of the selected ones."""
        selected = [*self.selection, *([] if self.image_index is None else [self.image_index])]
        return np.flatnonzero(np.isin(self.groups.images, selected))

    def map_image(self) -> np.ndarray:
        """The map, (H, W, 3) uint8."""
        colors = self.groups.colors(self.color_by, self.space)
        image = self.chart.draw(self._tiles(), colors, self._marks(), HIGHLIGHT)
        if self._box is not None:
            x0, y0, x1, y1 = self._box
            image = draw_box(image, (min(y0, y1), min(x0, x1), max(y0, y1), max(x0, x1)))
        return image

    def _draw_map(self, *, streaming: bool = False) -> None:
        if self.frame is None:
            return
        if streaming:
            self.map_view.stream(self.map_image)
        else:
            self.map_view.show(self.map_image())
        method = "t-SNE" if self.method == "tsne" else "PCA"
        self.map_view.alt = f"{len(self.chart.points)} images by {method} of their {self.space}"

    def _draw_legend(self) -> None:
        self.legend.value = "" if self.frame is None else self.groups.legend(self.color_by, self.space)

    def _draw_selection(self) -> None:
        selection = list(self.selection)
        self.selection_view.layout.display = "" if selection else "none"
        if not selection:
            self.selected_tiles, self.summary.value = None, ""
            return
        labels = [one_line(self.images.label_name(int(self.scan.labels[index])), MAX_NAME) for index in selection]
        frequent = collections.Counter(label for label in labels if label).most_common(5)
        text = ": ".join(
            filter(None, [f"{len(selection)} images", ", ".join(f"{count} {label}" for label, count in frequent)])
        )
        thumbnails = self.scan.thumbnails(np.array(selection[:MAX_SELECTED_SHOWN]))
        tiles = np.stack([fit_square(thumbnail, TILE_SIDE) for thumbnail in thumbnails])
        self.selected_tiles = Mosaic(tiles, min(len(tiles), WIDTH // (TILE_SIDE + 3)), 1)
        mark = selection.index(self.image_index) if self.image_index in selection else None
        mosaic = self.selected_tiles
        self.selection_view.show(mosaic.image, selected=mosaic.box(mark), tiles=mosaic.layout)
        self.selection_view.alt, self.summary.value = text, text_html(text)

    def _update_readout(self) -> None:
        """Show the image under the mouse, or else the selected one."""
        index = self.image_index if self._hovered_image is None else self._hovered_image
        self.show_image(self.hover_view, self.hover_caption, index)

    # -- mouse ---------------------------------------------------------------------------------------------------

    def _show_chart(self, chart: Scatter, *, streaming: bool = False) -> None:
        """Show the map through another window."""
        self.chart = chart
        if self.zoom != chart.zoom:
            with self.handlers_muted():
                self.zoom = chart.zoom
            self.sync_controls()
        self._draw_map(streaming=streaming)

    @report_errors
    def _gesture(self, kind: str, x: float, y: float, event: dict[str, Any]) -> None:
        if self.frame is None:
            return
        if kind == "wheel":
            self._show_chart(self.chart.zoom_at(ZOOM_IN if event["deltaY"] < 0 else ZOOM_OUT, x, y), streaming=True)
        elif kind == "press":
            self._drag = Drag("select" if event.get("shiftKey") else self.mode, x, y)
        elif self._drag is None:
            self._hover(self._image_at(x, y) if kind == "move" else None)
        elif kind == "move" and event.get("buttons", 1):
            self._drag_to(self._drag, x, y)
        else:  # released, here or elsewhere
            if kind == "release":  # there may be moves between the last event and this one
                self._drag_to(self._drag, x, y)
            self._end_drag(self._drag, x, y)

    def _drag_to(self, drag: Drag, x: float, y: float) -> None:
        dx, dy = x - drag.x, y - drag.y
        drag.moved = drag.moved or abs(dx) + abs(dy) > MIN_DRAG
        if drag.mode == "select":
            self._box = (drag.x, drag.y, x, y)
            self._draw_map(streaming=True)
        elif drag.moved:
            drag.x, drag.y = x, y
            self._show_chart(self.chart.pan(dx, dy), streaming=True)

    def _end_drag(self, drag: Drag, x: float, y: float) -> None:
        """Select the image at the end of a click, or the images in the box."""
        self._drag = self._box = None
        before = self.image_index, self.selection
        if drag.moved and drag.mode == "select":
            self.selection = self.groups.images[self.chart.points_in_box(drag.x, drag.y, x, y)]
        elif not drag.moved:
            self.update(image_index=self._image_at(x, y), selection=() if drag.mode == "select" else self.selection)
        if (self.image_index, self.selection) == before:  # otherwise the map was drawn already
            self._draw_map()

    def _image_at(self, x: float, y: float) -> int | None:
        """Index of the image at a pixel of the map."""
        position = self.chart.thumbnail_at(x, y, self._tiles().shape[1:3], self._marks().tolist())
        return None if position is None else int(self.groups.images[position])

    def _hover(self, index: int | None) -> None:
        if index != self._hovered_image:
            self._hovered_image = index
            self._update_readout()

    @report_errors
    def _tile_clicked(self, x: float, y: float) -> None:
        position = None if self.selected_tiles is None else self.selected_tiles.index_at(x, y)
        if position is not None:
            self.image_index = self.selection[position]

    def snapshot_panels(self) -> Panels:
        """The map and the selected images."""
        if self.frame is None:
            return [], [f"{self.source_text()}: no map yet"]
        images = [(self.map_view.alt, self.map_image())]
        if self.selected_tiles is not None:
            images.append((f"{len(self.selection)} selected images", self.selected_tiles.image))
        return images, [f"{self.source_text()}, {self.count_text()}; edges: {self.color_by}"]
