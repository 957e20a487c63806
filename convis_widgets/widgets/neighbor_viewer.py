"""NeighborViewer: the pictures nearest to some others, by their pixels and by what the network makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Run
from ..techniques import neighbors
from .controls import hover_line, note
from .encode import written
from .frame_view import FrameView
from .patches import fitted
from .set_viewer import SetViewer
from .viewer import guarded

TILE = 52  # pixels of a picture
EDGE = 3  # ... of the frame that tells whether it has the query's label
GAP = 22  # ... between the query, its neighbors in pixels, and those in features
HEAD = 20
SAME, OTHER, UNKNOWN = (0, 158, 115, 255), (213, 94, 0, 255), (128, 128, 128, 255)
QUERIES = 6
ALL = 500  # queries of which the agreement of a whole set is taken, at most


class NeighborViewer(SetViewer):
    """Some pictures, and beside each those of the set that are nearest: by pixels, and by the network's features.

    As in the lecture: the neighbors in pixels share a background and a pose, those in features a class. A frame tells
    whether a neighbor has the query's label. A click makes a neighbor the query.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    images : Scan, ImageSet, folder, list, array, Dataset, optional
        See `ImageSet`; Toyscape or handwritten digits otherwise.
    queries : sequence of int, optional
        Indices of the pictures whose neighbors are shown; some at random otherwise.
    k : int
        Neighbors in each space.
    metric : str
        "L2" or "cosine".

    Examples
    --------
    >>> viewer = NeighborViewer(queries=[3, 14])
    >>> viewer.run.join()
    True
    >>> viewer.frame.arrays["features"].shape
    (2, 5)
    """

    queries = traitlets.Tuple(help="Indices of the pictures whose neighbors are shown.")
    k = traitlets.Int(5, min=1, max=12, help="Neighbors in each space.")
    metric = traitlets.Enum(["L2", "cosine"], "L2", help="How distance is measured.")

    def __init__(self, network: Any = None, images: Any = None, queries: Any = None, **keywords: Any) -> None:
        super().__init__(network, images, **keywords)
        self.frame: Frame | None = None
        self._agreement = ""
        self._build()
        first = [] if self.picked is None else [self.picked]
        if queries is not None:
            self.queries = (queries,) if isinstance(queries, (int, np.integer)) else tuple(queries)
        elif first:
            self.queries = (self.picked,)
        self.query_field.value = [*first, *self.queries, 0][0]
        self._ask()

    def _build(self) -> None:
        self.metric_menu = ipywidgets.Dropdown(options=["L2", "cosine"], description="metric", layout={"width": "190px"})
        self.k_slider = ipywidgets.IntSlider(self.k, 1, 12, description="neighbors", continuous_update=False)
        self.query_field = ipywidgets.BoundedIntText(0, 0, len(self.images) - 1, description="picture")
        self.query_field.layout.width = "180px"
        self.all_button = ipywidgets.Button(description="Whole set", icon="calculator", tooltip="How often labels agree")
        self.table = FrameView(on_click=self._clicked, on_hover=self._hovered)
        self.whole_view, self.whole_caption = FrameView(), ipywidgets.HTML()
        self.caption, self.agreement, self.hover = ipywidgets.HTML(), ipywidgets.HTML(), hover_line()
        row = {"flex_flow": "row wrap", "align_items": "center"}
        side = ipywidgets.VBox([self.whole_view, self.whole_caption], layout={"width": "240px", "margin": "0 0 0 12px"})
        self.children = [
            ipywidgets.HBox([self.query_field, self.metric_menu, self.k_slider, self.all_button], layout=row),
            self.progress,
            self.caption,
            ipywidgets.HBox([self.table, side], layout={"flex_flow": "row wrap", "align_items": "flex-start"}),
            self.hover,
            self.agreement,
            self.status,
        ]
        traitlets.link((self, "metric"), (self.metric_menu, "value"))
        traitlets.link((self, "k"), (self.k_slider, "value"))
        self.query_field.observe(self._typed, "value")
        self.all_button.on_click(lambda _button: self.ask_all())

    # -- state -------------------------------------------------------------------------------------------------

    @traitlets.validate("queries")
    def _pictures_exist(self, proposal: dict[str, Any]) -> tuple[int, ...]:
        if not proposal["value"]:
            raise traitlets.TraitError(f"there is no query; give indices from 0 to {len(self.images) - 1}")
        return self._existing(proposal["value"])

    @traitlets.observe("picked")
    @guarded
    def _picked_changed(self, _change: Any) -> None:
        """What is picked, here or in a linked widget, becomes the first query."""
        self._ask_about_picked()

    def _ask_about_picked(self) -> None:
        if self.picked is not None:
            with self.quietly():
                self.query_field.value = self.picked
            rest = [index for index in self.queries if index != self.picked]
            self.queries = (self.picked, *rest)[: max(QUERIES, len(self.queries))]

    @traitlets.observe("queries", "k", "metric")
    @guarded
    def _question_changed(self, change: Any) -> None:
        if change["name"] != "queries":
            self._agreement = self.agreement.value = ""
        self._ask()

    @guarded
    def _typed(self, change: Any) -> None:
        self.picked = change["new"]

    @guarded
    def _clicked(self, x: float, y: float) -> None:
        index = self._picture_at(x, y)
        if index is not None and index == self.picked:
            self._ask_about_picked()
        elif index is not None:
            self.picked = index

    @guarded
    def _hovered(self, x: float | None, y: float | None) -> None:
        there = None if x is None or y is None else self._cell_at(x, y)
        index = None if there is None else self._picture_at(x, y)
        self.hover.value = "" if index is None else note(self._about(*there, index))
        self._draw_whole(self.whole_view, self.whole_caption, self.picked if index is None else index)

    def _cell_at(self, x: float, y: float) -> tuple[int, int] | None:
        """(row, column) of the table at a point: column 0 is the query, then pixels, then features."""
        row, step = int((y - HEAD) // (TILE + 2 * EDGE + 2)), TILE + 2 * EDGE + 2
        if self.frame is None or y < HEAD or not 0 <= row < len(self.frame.arrays["query"]):
            return None
        k = self._shown
        for start, x0 in ((0, 0), (1, step + GAP), (1 + k, (1 + k) * step + 2 * GAP)):
            column = int((x - x0) // step)
            if x >= x0 and column < (1 if start == 0 else k):
                return row, start + column
        return None

    def _picture_at(self, x: float, y: float) -> int | None:
        there = self._cell_at(x, y)
        if there is None:
            return None
        index = self._table()[there]
        return None if index < 0 else int(index)

    # -- the computation ---------------------------------------------------------------------------------------

    def _ask(self) -> None:
        self._make_run().start()

    def _make_run(self) -> Run:
        self.settle()
        return self.launch(self._frames(self.queries, self.k, self.metric), self._arrived, start=False)

    def _frames(self, queries: tuple[int, ...], k: int, metric: str) -> Iterator[Frame]:
        """The neighbors of those of these pictures that can be read; if nobody has chosen any, of some."""
        yield from self.scan.frames(1)
        known = self.scan.known
        if not queries:
            chosen = np.random.default_rng(0).permutation(len(known))[:QUERIES]
            queries = tuple(known[chosen].tolist())
            with self.lock, self.quietly():
                self.queries = self.queries or queries
                self.query_field.value = self.queries[0]
        queries = tuple(index for index in queries if index not in self.scan.skipped) or queries
        yield from neighbors(self.network, self.scan, queries, k=k, metric=metric)

    def _arrived(self, run: Run) -> None:
        if run.last is not None and run.last is not self.frame and "features" in run.last.arrays:
            self.frame = run.last
            self._tell()
            self._redraw()

    def ask_all(self) -> None:
        """How often the neighbors of all pictures, or of 500 of them, have the label of their query."""
        count = len(self.images)

        def frames() -> Iterator[Frame]:
            yield from self.scan.frames(count)
            chosen = np.unique(np.linspace(0, count - 1, min(ALL, count)).astype(int))
            chosen = np.setdiff1d(chosen, list(self.scan.skipped))
            yield from neighbors(self.network, self.scan, chosen, k=self.k, metric=self.metric)

        def arrived(run: Run) -> None:
            if run.state == "done":
                self._agreement = self._agreed(run.last, f"of {len(run.last.arrays['features'])} pictures")
                self.agreement.value = note(self._agreement)
                if self.frame is None:  # it took the place of what was to come first
                    self._ask()

        self.launch(frames(), arrived)

    # -- drawing -----------------------------------------------------------------------------------------------

    @property
    def _shown(self) -> int:
        return self.frame.arrays["pixels"].shape[1]

    def _table(self) -> np.ndarray:
        """Indices of the pictures in the table, a row for each query; -1 for none."""
        arrays = self.frame.arrays
        return np.concatenate([arrays["query"][:, None], arrays["pixels"], arrays["features"]], 1)

    def _redraw(self) -> None:
        if self.frame is None:
            return
        table, step, k = self._table(), TILE + 2 * EDGE + 2, self._shown
        image = np.zeros((HEAD + len(table) * step, (1 + 2 * k) * step + 2 * GAP, 4), np.uint8)
        for row, indices in enumerate(table):
            for column, index in enumerate(indices.tolist()):
                if index >= 0:
                    x = column * step + (0 if column == 0 else GAP if column <= k else 2 * GAP)
                    self._put(image, HEAD + row * step, x, index, indices[0] if column else None)
        heads = ((0, "query"), (step + GAP, "nearest in pixels"), ((1 + k) * step + 2 * GAP, "nearest in features"))
        self._image = written(image, [(x + EDGE, 0, text) for x, text in heads])
        self.table.show(self._image)
        self._text = self._agreed(self.frame, "shown")
        missing = [self.images.names[index] for index in self.queries if index in self.scan.skipped]
        if missing:
            self._text += f"; {', '.join(missing)} could not be read"
        self.table.alt = f"nearest pictures of {len(table)} queries; {self._text}"
        self.caption.value = note(self._text)
        self._draw_whole(self.whole_view, self.whole_caption, self.picked)

    def _put(self, image: np.ndarray, y: int, x: int, index: int, query: int | None) -> None:
        labels, edge = self.scan.labels, UNKNOWN
        if query is not None and min(labels[query], labels[index]) >= 0:
            edge = SAME if labels[query] == labels[index] else OTHER
        if query is not None:
            image[y : y + TILE + 2 * EDGE, x : x + TILE + 2 * EDGE] = edge
        tile = image[y + EDGE : y + EDGE + TILE, x + EDGE : x + EDGE + TILE]
        tile[..., :3] = fitted(self.scan.view(index), TILE)
        tile[..., 3] = 255

    def _agreed(self, frame: Frame, whose: str) -> str:
        shares = {name: frame.scalars.get(f"{name} agreement") for name in ("pixels", "features")}
        if None in shares.values():
            return "the pictures have no labels to compare"
        told = ", ".join(f"{share:.0%} in {name}" for name, share in shares.items())
        return f"neighbors {whose} with the label of their query (green): {told}"

    def _about(self, row: int, column: int, index: int) -> str:
        text, k = self._named(index), self._shown
        if column:
            name, at = ("pixels", column - 1) if column <= k else ("features", column - 1 - k)
            text += f": {self.metric} distance {self.frame.arrays[f'{name} distance'][row, at]:.3g} in {name}"
        return text

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        if self.frame is None:
            return [], [f"{self.network.name}, {self.images.name}: no neighbors yet"]
        lines = [f"{self.network.name}, {self.images.name}, {self._counted}, {self.metric}", self._text]
        return [("", self._image)], [*lines, *filter(None, [self._agreement])]
