"""NeighborViewer: the nearest neighbors of images in an image set, in pixel space and in feature space."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets
import numpy as np

from ...core.runs.frame import Frame
from ...core.runs.run import Run
from ...core.text import MAX_NAME, one_line
from ...core.types import ImagesLike, NetworkLike
from ...techniques.dataset.neighbors import neighbors
from ..base.param_box import COLUMNS, report_errors
from ..base.params import KnobParam, Number
from ..base.settings import Field
from ..base.viewer import Panels
from ..controls.frame_view import FrameView
from ..controls.text import readout, text_html
from ..drawing.compose import draw_labels
from ..drawing.patch_rows import fit_square
from .dataset_viewer import MAX_NAMED_FILES, DatasetViewer, ImagesParam

TILE_SIDE = 52  # pixels of an image
FRAME_WIDTH = 3  # ... of the frame that tells whether a neighbor has the label of the query
CELL_SIDE = TILE_SIDE + 2 * FRAME_WIDTH + 2
GROUP_GAP = 22  # ... between the query, its neighbors in pixel space, and those in feature space
TITLE_HEIGHT = 20
SAME_LABEL, OTHER_LABEL, NO_LABEL = (0, 158, 115, 255), (213, 94, 0, 255), (128, 128, 128, 255)
MAX_NEIGHBORS = 12
MAX_QUERIES = 6
MAX_AGREEMENT_QUERIES = 500  # images of which the label agreement of a set is computed


class NeighborViewer(DatasetViewer):
    """Query images, each beside its nearest neighbors in an image set: by their pixels, and by the features of the network.

    The frame of a neighbor tells whether it has the label of the query. A click makes a neighbor the first query. Neighbors
    in pixel space often share background and pose, those in feature space the class.

    Parameters
    ----------
    network : Network, str, torch.nn.Module or None
        See `Network.ensure`; the demo network by default.
    images : Scan, ImageSet, folder, list, array, Dataset, optional
        See `ImageSet`; Toyscape or handwritten digits by default.

    Examples
    --------
    >>> viewer = NeighborViewer(queries=[3, 14])
    >>> viewer.run.join()
    True
    >>> viewer.frame.arrays["features"].shape
    (2, 5)
    """

    result = "features"  # computed after those in pixel space

    queries = ImagesParam(
        None, f"Indices of the query images; by default the selected image or {MAX_QUERIES} random ones.", effect="recompute"
    )
    query = Field(
        lambda viewer: [*(viewer.queries or ()), viewer.image_index or 0][0],
        lambda viewer, index: viewer.select(index),
        lambda viewer: len(viewer.images) - 1,
        "Index of the first query image.",
        label="image",
    )
    metric = KnobParam.of(neighbors, "metric", effect="metric_changed")
    k = Number(5, 1, MAX_NEIGHBORS, "Number of neighbors in each space.", label="neighbors", effect="metric_changed")

    def __init__(
        self, network: NetworkLike = None, images: ImagesLike | None = None, queries: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(network, images, queries=queries, **kwargs)
        if self.queries is None and self.image_index is not None:
            self.queries = (self.image_index,)
        self._agreement = ""
        self._make_parts()
        self.recompute()

    def _make_parts(self) -> None:
        self.agreement_button = ipywidgets.Button(
            description="Label agreement", icon="calculator", layout={"width": "160px"}
        )
        self.agreement_button.tooltip = "How often the neighbors of all images have the label of their query"
        self.agreement_button.on_click(lambda _button: self.compute_agreement())
        self.table = FrameView(on_click=self._clicked, on_hover=self._hovered)
        self.whole_view, self.whole_caption = FrameView(), ipywidgets.HTML()
        self.caption, self.agreement, self.hover = ipywidgets.HTML(), ipywidgets.HTML(), readout()
        self.make_controls()
        self.controls["metric"].layout.width = "190px"
        side = ipywidgets.VBox([self.whole_view, self.whole_caption], layout={"width": "240px", "margin": "0 0 0 12px"})
        self.children = [
            self.row("query", "metric", "k", "agreement_button"),
            self.progress,
            self.caption,
            ipywidgets.HBox([self.table, side], layout=COLUMNS),
            self.hover,
            self.agreement,
            self.status,
        ]

    # -- state ---------------------------------------------------------------------------------------------------

    def select(self, index: int) -> None:
        """Select an image and make it the first query."""
        if index == self.image_index:
            self.selection_changed()
        else:
            self.image_index = index

    def selection_changed(self) -> None:
        """Make the selected image, here or in a linked widget, the first query."""
        queries = self.queries
        if self.image_index is not None:
            others = [index for index in queries or () if index != self.image_index]
            self.queries = (self.image_index, *others)[: max(MAX_QUERIES, len(queries or ()))]
        if self.queries == queries:  # otherwise it is drawn with the new neighbors
            self.show_image(self.whole_view, self.whole_caption, self.image_index)

    def metric_changed(self) -> None:
        """Compute other neighbors, and discard the label agreement of the previous ones."""
        self._agreement = self.agreement.value = ""
        self.recompute()

    @report_errors
    def _clicked(self, x: float, y: float) -> None:
        cell = self._cell_at(x, y)
        if cell is not None:
            self.select(cell[2])

    @report_errors
    def _hovered(self, x: float | None, y: float | None) -> None:
        cell = None if x is None or y is None else self._cell_at(x, y)
        self.hover.value = "" if cell is None or self.frame is None else text_html(self._cell_text(self.frame, *cell))
        self.show_image(self.whole_view, self.whole_caption, self.image_index if cell is None else cell[2])

    def _cell_at(self, x: float, y: float) -> tuple[int, int, int] | None:
        """Row, column and image index of the table cell at a point; None beside the images."""
        if self.frame is None or y < TITLE_HEIGHT:
            return None
        table, row = _neighbor_table(self.frame), int((y - TITLE_HEIGHT) // CELL_SIDE)
        edges = _column_edges(table.shape[1])
        column = next((j for j, left in enumerate(edges) if left <= x < left + CELL_SIDE), None)
        if column is None or row >= len(table) or table[row, column] < 0:
            return None
        return row, column, int(table[row, column])

    # -- the computation -----------------------------------------------------------------------------------------

    def make_frames(self) -> Iterator[Frame]:
        """The scan, if it is not complete, then the neighbors."""
        return self._frames(self.queries, self.k, self.metric)

    def _frames(self, queries: tuple[int, ...] | None, k: int, metric: str) -> Iterator[Frame]:
        """The neighbors of the readable ones of these queries, or of random images."""
        yield from self.scan.frames(1)
        if queries is None:
            valid = self.scan.valid
            queries = tuple(valid[np.random.default_rng(0).permutation(len(valid))[:MAX_QUERIES]].tolist())
            with self.lock, self.handlers_muted():
                self.queries = self.queries or queries
                self.sync_controls()
        queries = tuple(index for index in queries if index not in self.scan.skipped) or queries
        yield from neighbors(self.network, self.scan, queries, k=k, metric=metric)

    @report_errors
    def compute_agreement(self) -> None:
        """Compute how often neighbors have the label of their query, for all images or `MAX_AGREEMENT_QUERIES` of them."""
        self.clear_error()
        count, k, metric = len(self.images), self.k, self.metric

        def frames() -> Iterator[Frame]:
            yield from self.scan.frames(count)
            queries = np.unique(np.linspace(0, count - 1, min(MAX_AGREEMENT_QUERIES, count)).astype(int))
            queries = np.setdiff1d(queries, list(self.scan.skipped))
            yield from neighbors(self.network, self.scan, queries, k=k, metric=metric)

        def show(run: Run) -> None:
            if run.state == "done" and run.last is not None:
                self._agreement = _agreement_text(run.last, f"of {len(run.last.arrays['query'])} images")
                self.agreement.value = text_html(self._agreement)
                if self.frame is None:  # this Run has taken the place of the one for the table
                    self.recompute()

        self.start_run(frames(), show)

    # -- drawing -------------------------------------------------------------------------------------------------

    def draw(self, frame: Frame, *, streaming: bool = False) -> None:
        """Draw the table of neighbors."""
        table = _neighbor_table(frame)
        edges = _column_edges(table.shape[1])
        image = np.zeros((TITLE_HEIGHT + len(table) * CELL_SIDE, edges[-1] + CELL_SIDE, 4), np.uint8)
        for row, indices in enumerate(table.tolist()):
            top = TITLE_HEIGHT + row * CELL_SIDE
            for column, (left, index) in enumerate(zip(edges, indices, strict=True)):
                if index >= 0:
                    cell = image[top : top + CELL_SIDE - 2, left : left + CELL_SIDE - 2]
                    self._draw_cell(cell, index, indices[0] if column else None)
        k = table.shape[1] // 2
        titles = {0: "query", 1: "nearest in pixels", 1 + k: "nearest in features"}
        self.table.show(draw_labels(image, [(edges[column] + FRAME_WIDTH, 0, title) for column, title in titles.items()]))
        self._describe(frame)
        self.show_image(self.whole_view, self.whole_caption, self.image_index)
        self.update_notices()

    def _draw_cell(self, cell: np.ndarray, index: int, query: int | None) -> None:
        """Draw an image, and a frame around it if it is a neighbor of a query."""
        labels, tile = self.scan.labels, cell[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH]
        if query is not None:
            known = min(labels[query], labels[index]) >= 0
            cell[:] = (SAME_LABEL if labels[query] == labels[index] else OTHER_LABEL) if known else NO_LABEL
        tile[..., :3] = fit_square(self.scan.image(index), TILE_SIDE)
        tile[..., 3] = 255

    def _describe(self, frame: Frame) -> None:
        text = _agreement_text(frame, "shown")
        skipped = [
            one_line(self.images.names[index], MAX_NAME) for index in self.queries or () if index in self.scan.skipped
        ]
        if skipped:
            more = f" and {len(skipped) - MAX_NAMED_FILES} more" if len(skipped) > MAX_NAMED_FILES else ""
            text += f"; {', '.join(skipped[:MAX_NAMED_FILES])}{more} could not be read"
        self._text, self.caption.value = text, text_html(text)
        self.table.alt = f"nearest neighbors of {len(frame.arrays['query'])} images; {text}"

    def _cell_text(self, frame: Frame, row: int, column: int, index: int) -> str:
        text, k = self.image_text(index), frame.arrays["pixels"].shape[1]
        if column:
            space, rank = ("pixels", column - 1) if column <= k else ("features", column - 1 - k)
            text += f": {self.metric} distance {frame.arrays[f'{space} distance'][row, rank]:.3g} in {space}"
        return text

    def snapshot_panels(self) -> Panels:
        """The table and its label agreement."""
        if self.frame is None or self.table.array is None:
            return [], [f"{self.source_text()}: no neighbors yet"]
        lines = [f"{self.source_text()}, {self.count_text()}, {self.metric}", self._text]
        return [("", self.table.array)], [*lines, *filter(None, [self._agreement])]


def _neighbor_table(frame: Frame) -> np.ndarray:
    """Image indices, a row for each query: the query, its neighbors in pixel space, those in feature space; -1 for none."""
    arrays = frame.arrays
    return np.concatenate([arrays["query"][:, None], arrays["pixels"], arrays["features"]], 1)


def _column_edges(columns: int) -> list[int]:
    """Left edges of the columns of the table in pixels."""
    k = columns // 2
    return [column * CELL_SIDE + ((column > 0) + (column > k)) * GROUP_GAP for column in range(columns)]


def _agreement_text(frame: Frame, which: str) -> str:
    """Fractions of neighbors with the label of their query, in words."""
    fractions = [(space, frame.scalars.get(f"{space} agreement")) for space in ("pixels", "features")]
    texts = [f"{fraction:.0%} in {space}" for space, fraction in fractions if fraction is not None]
    if len(texts) < len(fractions):
        return "the images have no labels to compare"
    return f"neighbors {which} with the label of their query (green): {', '.join(texts)}"
