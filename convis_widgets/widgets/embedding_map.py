"""EmbeddingMap: a set of pictures as a map to walk on, where those lie together that the network finds alike."""

from __future__ import annotations

import collections
import html
from dataclasses import replace
from typing import Any

import ipywidgets
import numpy as np
import traitlets

from ..core import Frame, Run, knobs_of
from ..techniques import embedding
from ..techniques.embedding import on_grid
from .chart import Chart, Thumbnails, unit_square
from .controls import control, join, note
from .encode import HIGHLIGHT, draw_box
from .frame_view import FrameView
from .heat import CATEGORIES, OTHER
from .mosaic import Mosaic
from .patches import fitted
from .set_viewer import WHOLE, SetViewer
from .viewer import guarded

WIDTH = HEIGHT = 600
SHOWN = 60  # selected pictures that are shown
TILE = 40
CLUSTERS = 10
COLORS = ("label", "prediction", "cluster", "none")
ZOOMS = {"wheel up": 1.25, "wheel down": 0.8}


class EmbeddingMap(SetViewer):
    """Pictures at the places where PCA or t-SNE puts them: drag and turn the wheel to walk, hover to see one, draw a box to
    choose some. t-SNE can be watched, and stopped.

    Parameters
    ----------
    network : Network, str, module or None
        See `Network.ensure`; the demo network otherwise.
    images : Scan, ImageSet, folder, list, array, Dataset, optional
        See `ImageSet`; Toyscape or handwritten digits otherwise.
    method : str
        "tsne" or "pca".
    space : str
        What is alike: "features" or "pixels".
    color : str
        What the edges of the pictures tell: "label", "prediction" (where there are no labels), "cluster" (k-means of what is
        compared) or "none".
    arrangement : str
        "scatter", or "grid": all side by side, each moved as little as possible.
    perplexity : float
        About how many neighbors a picture minds, for t-SNE.
    selection : tuple of int
        Indices of the chosen pictures.

    Examples
    --------
    >>> there = EmbeddingMap(method="pca")
    >>> there.run.join()
    True
    >>> there.frame.arrays["points"].shape
    (400, 2)
    """

    method = traitlets.Enum(["tsne", "pca"], "tsne", help="How the map is made.")
    space = traitlets.Enum(["features", "pixels"], "features", help="What is alike.")
    color = traitlets.Enum(COLORS, "label", help="What the edges of the pictures tell.")
    arrangement = traitlets.Enum(["scatter", "grid"], "scatter", help="Places of the map, or a regular grid.")
    perplexity = traitlets.Float(30.0, help="About how many neighbors a picture minds.")
    selection = traitlets.Tuple(help="Indices of the chosen pictures.")

    def __init__(self, network: Any = None, images: Any = None, method: str = "tsne", **keywords: Any) -> None:
        chosen = keywords.pop("selection", ())
        super().__init__(network, images, method=method, **keywords)
        self.selection = chosen  # of the pictures that there are now
        self._undecided = "color" not in keywords
        self.frame: Frame | None = None  # the newest with points
        self.chart: Chart | None = None
        self._grid: tuple[Frame, np.ndarray] | None = None
        self._tiles: Thumbnails | None = None
        self._clusters: dict[str, np.ndarray] = {}
        self._drag: tuple[str, float, float] | None = None
        self._box: tuple[float, float, float, float] | None = None
        self._hover: int | None = None
        self._build()
        self._make_run().start()

    def _build(self) -> None:
        def menu(name: str, options: Any) -> ipywidgets.Dropdown:
            made = ipywidgets.Dropdown(
                options=options, value=getattr(self, name), description=name.replace("arrangement", "arranged")
            )
            made.layout.width = "190px"
            traitlets.link((self, name), (made, "value"))
            return made

        self.menus = [
            menu("method", ["tsne", "pca"]),
            menu("space", ["features", "pixels"]),
            menu("color", COLORS),
            menu("arrangement", ["scatter", "grid"]),
        ]
        self.perplexity_slider = control("perplexity", knobs_of(embedding)["perplexity"], self.perplexity)
        self.perplexity_slider.continuous_update = False
        join(self, "perplexity", self.perplexity_slider)
        self.mode = ipywidgets.ToggleButtons(options=["walk", "choose"], tooltips=["Drag the map", "Draw a box (or Shift)"])
        self.mode.style.button_width = "80px"
        self.whole = ipywidgets.Button(description="Whole map", icon="expand", layout={"width": "120px"})
        self.whole.on_click(lambda _button: self._look_through())
        self.zoom_slider = ipywidgets.FloatLogSlider(1.0, min=0, max=6, base=2, description="zoom", readout=False)
        self.zoom_slider.observe(self._zoomed, "value")
        self.map_view = FrameView(on_gesture=self._gesture)
        self.hover_view = FrameView()
        self.hover_caption, self.legend, self.summary = (ipywidgets.HTML() for _ in range(3))
        self.chosen_view = FrameView(on_click=self._chosen_clicked)
        row = {"flex_flow": "row wrap", "align_items": "center"}
        seen = ipywidgets.VBox([self.hover_view, self.hover_caption], layout={"min_height": f"{WHOLE + 60}px"})
        side = ipywidgets.VBox([seen, self.legend], layout={"width": "240px", "margin": "0 0 0 12px"})
        self.children = [
            ipywidgets.HBox([*self.menus, self.perplexity_slider], layout=row),
            self.progress,
            ipywidgets.HBox([self.mode, self.zoom_slider, self.whole], layout=row),
            ipywidgets.HBox([self.map_view, side], layout={"flex_flow": "row wrap", "align_items": "flex-start"}),
            self.summary,
            self.chosen_view,
            self.status,
        ]

    # -- state -------------------------------------------------------------------------------------------------

    @traitlets.validate("perplexity")
    def _perplexity_fits(self, proposal: dict[str, Any]) -> float:
        knobs_of(embedding)["perplexity"].check("perplexity", proposal["value"])
        return proposal["value"]

    @traitlets.validate("selection")
    def _pictures_exist(self, proposal: dict[str, Any]) -> tuple[int, ...]:
        return self._existing(proposal["value"])

    @traitlets.observe("method", "space", "perplexity")
    @guarded
    def _question_changed(self, _change: Any) -> None:
        self._make_run().start()

    @traitlets.observe("color", "arrangement")
    @guarded
    def _look_changed(self, _change: Any) -> None:
        self._undecided = False
        self._redraw()

    @traitlets.observe("picked", "selection")
    @guarded
    def _choice_changed(self, _change: Any) -> None:
        self._draw_map()
        self._draw_chosen()
        self._tell_hovered()

    # -- the computation ---------------------------------------------------------------------------------------

    def _make_run(self) -> Run:
        self.settle()
        self.perplexity_slider.layout.display = "" if self.method == "tsne" else "none"
        knobs = {"perplexity": self.perplexity} if self.method == "tsne" else {}
        frames = embedding(self.network, self.scan, method=self.method, space=self.space, **knobs)
        return self.launch(frames, self._arrived, start=False)

    def _arrived(self, run: Run) -> None:
        if run.last is not None and run.last is not self.frame and "points" in run.last.arrays:
            fresh = self.frame is None or not np.array_equal(self.frame.arrays["images"], run.last.arrays["images"])
            self.frame = run.last
            if fresh:
                self._tiles = Thumbnails(self.scan.thumbnails(self.frame.arrays["images"]))
                self._clusters = {}
                self._decide()
                self._tell()
            self._redraw(streaming=run.active and not run.last.done)
        if not run.active:
            self.map_view.pump.flush()

    def _decide(self) -> None:
        """Of pictures without labels the prediction tells more, if nobody has chosen a color."""
        if self._undecided and (self.scan.labels[self.frame.arrays["images"]] < 0).all():
            with self.quietly():
                self.color = "prediction"
        self._undecided = False

    # -- drawing -----------------------------------------------------------------------------------------------

    @property
    def _places(self) -> np.ndarray:
        if self.arrangement == "scatter":
            return unit_square(self.frame.arrays["points"])
        if self._grid is None or self._grid[0] is not self.frame:
            arrays = self.frame.arrays
            self._grid = self.frame, arrays["grid"] if "grid" in arrays else on_grid(arrays["points"])
        return unit_square(self._grid[1].astype(np.float64))

    def _redraw(self, *, streaming: bool = False) -> None:
        if self.frame is None:
            return
        if streaming and self.arrangement == "grid" and len(self.frame.arrays["points"]) > 1000 and self.chart is not None:
            return  # to assign cells takes longer than a step
        before = self.chart or Chart(np.empty((0, 2)), WIDTH, HEIGHT)
        self.chart = replace(before, points=self._places)
        self._draw_map(streaming=streaming)
        self._draw_legend()
        if not streaming:
            self._tell_hovered()
            self._draw_chosen()

    def _draw_map(self, *, streaming: bool = False) -> None:
        if self.chart is None:
            return
        if streaming:
            self.map_view.stream(self._map)
        else:
            self.map_view.show(self._map())
        what = "t-SNE" if self.method == "tsne" else "two principal components"
        self.map_view.alt = f"{len(self.chart.points)} pictures by {what} of their {self.space}"

    @property
    def _sized(self) -> np.ndarray:
        """Thumbnails in the size that fits; on a grid none covers another."""
        if self.arrangement == "scatter":
            return self._tiles.near(self.chart.side)
        cells = max(1, np.ptp(self._grid[1], axis=0).max())
        return self._tiles.near(min(self.chart.side, self.chart.scale.min() / cells), within=True)

    @property
    def _marked(self) -> np.ndarray:
        """The numbers, on the chart, of the pictures that are selected or picked."""
        chosen = [*self.selection, *([] if self.picked is None else [self.picked])]
        return np.flatnonzero(np.isin(self.frame.arrays["images"], chosen))

    def _map(self) -> np.ndarray:
        picture = self.chart.draw(self._sized, self._edges(), self._marked, HIGHLIGHT)
        if self._box is not None:
            x0, y0, x1, y1 = self._box
            picture = draw_box(picture, (min(y0, y1), min(x0, x1), max(y0, y1), max(x0, x1)))
        return picture

    def _groups(self) -> np.ndarray:
        """What each picture is colored by, as whole numbers; -1 for nothing."""
        images = self.frame.arrays["images"]
        if self.color == "label":
            return self.scan.labels[images]
        if self.color == "prediction":
            return self.scan.predictions[images]
        if self.space not in self._clusters:
            from sklearn.cluster import KMeans

            rows = self.scan.features(images) if self.space == "features" else self.scan.thumbnails(images)
            rows = rows.reshape(len(images), -1).astype(np.float32)
            count = min(CLUSTERS, len(np.unique(rows, axis=0)))  # equal pictures make no more clusters
            self._clusters[self.space] = KMeans(count, n_init=1, random_state=0).fit_predict(rows)
        return self._clusters[self.space]

    def _edges(self) -> np.ndarray | None:
        if self.color == "none":
            return None
        groups = self._groups()
        return np.where(groups[:, None] >= 0, _colors(groups), OTHER)

    def _draw_legend(self) -> None:
        if self.color == "none":
            self.legend.value = ""
            return
        groups = self._groups()
        common = collections.Counter(groups[groups >= 0].tolist()).most_common(12)
        square = '<span style="background: rgb{}; padding: 0 7px; margin-right: 6px"></span>'
        lines = []
        for group, count in sorted(common):
            color = tuple(map(int, _colors(group)))
            lines.append(square.format(color) + html.escape(f"{self._group_name(group)}: {count}"))
        more = len(set(groups[groups >= 0].tolist())) - len(common)
        if more > 0:
            lines.append(note(f"and {more} more"))
        self.legend.value = "".join(f"<div>{line}</div>" for line in lines) if lines else note("there are no labels")

    def _group_name(self, group: int) -> str:
        if self.color == "cluster":
            return f"cluster {group}"
        return self.images.label_name(group) if self.color == "label" else self.network.labels[group]

    def _draw_chosen(self) -> None:
        chosen = list(self.selection)
        self.chosen_view.layout.display = "" if chosen else "none"
        labels = [self.images.label_name(int(self.scan.labels[index])) for index in chosen]
        common = collections.Counter(label for label in labels if label).most_common(5)
        counts = ", ".join(f"{count} {label}" for label, count in common)
        text = f"{len(chosen)} pictures{f': {counts}' if counts else ''}" if chosen else ""
        self.summary.value = note(text)
        if chosen:
            tiles = np.stack([fitted(tile, TILE) for tile in self.scan.thumbnails(np.array(chosen[:SHOWN]))])
            self._mosaic = Mosaic(tiles, min(len(tiles), WIDTH // (TILE + 3)), 1)
            at = chosen.index(self.picked) if self.picked in chosen else None
            self.chosen_view.show(self._mosaic.marked(at))
            self.chosen_view.alt = text

    def _tell_hovered(self) -> None:
        self._draw_whole(self.hover_view, self.hover_caption, self.picked if self._hover is None else self._hover)

    # -- mouse -------------------------------------------------------------------------------------------------

    def _look_through(self, chart: Chart | None = None, *, streaming: bool = False) -> None:
        """Another window on the map; the whole of it if none is given."""
        if self.chart is not None:
            self.chart = chart or Chart(self.chart.points, WIDTH, HEIGHT)
            with self.quietly():
                self.zoom_slider.value = self.chart.zoom
            self._draw_map(streaming=streaming)

    @guarded
    def _zoomed(self, change: dict[str, Any]) -> None:
        if self.chart is not None:
            self._look_through(self.chart.zoomed(change["new"] / self.chart.zoom, WIDTH / 2, HEIGHT / 2), streaming=True)
            self.map_view.pump.flush()

    @guarded
    def _gesture(self, kind: str, x: float, y: float, event: dict[str, Any]) -> None:
        if self.chart is None:
            return
        if kind == "wheel":
            factor = ZOOMS["wheel up" if event["deltaY"] < 0 else "wheel down"]
            self._look_through(self.chart.zoomed(factor, x, y), streaming=True)
        elif kind == "press":
            choose = self.mode.value == "choose" or event.get("shiftKey")
            self._drag = ("choose" if choose else "walk", x, y)
            self._moved = False
        elif kind == "move" and self._drag is not None and event.get("buttons", 1):
            self._dragged(x, y)
        elif self._drag is not None:  # released, here or elsewhere
            if kind == "release":  # moves between the last report and this one were not told
                self._dragged(x, y)
            self._dropped(x, y)
        elif kind == "move":
            self._hovered(x, y)
        else:
            self._hover = None
            self._tell_hovered()

    def _dragged(self, x: float, y: float) -> None:
        kind, x0, y0 = self._drag
        self._moved = self._moved or abs(x - x0) + abs(y - y0) > 3
        if kind == "choose":
            self._box = (x0, y0, x, y)
            self._draw_map(streaming=True)
        elif self._moved:
            self._drag = (kind, x, y)
            self._look_through(self.chart.moved(x - x0, y - y0), streaming=True)

    def _dropped(self, x: float, y: float) -> None:
        (kind, x0, y0), self._drag, self._box = self._drag, None, None
        images = self.frame.arrays["images"]
        if not self._moved:
            there = self._at(x, y)
            self.picked = None if there is None else int(images[there])
            if kind == "choose":
                self.selection = ()
        elif kind == "choose":
            self.selection = tuple(images[self.chart.within(x0, y0, x, y)].tolist())
        self._draw_map()

    def _at(self, x: float, y: float) -> int | None:
        return self.chart.at(x, y, self._sized.shape[1:3], self._marked)

    def _hovered(self, x: float, y: float) -> None:
        there = self._at(x, y)
        index = None if there is None else int(self.frame.arrays["images"][there])
        if index != self._hover:
            self._hover = index
            self._tell_hovered()

    @guarded
    def _chosen_clicked(self, x: float, y: float) -> None:
        index = self._mosaic.index_at(x, y)
        if index is not None:
            self.picked = self.selection[index]

    def _page(self) -> tuple[list[tuple[str, np.ndarray]], list[str]]:
        if self.chart is None:
            return [], [f"{self.network.name}, {self.images.name}: no map yet"]
        panels = [(self.map_view.alt, self._map())]
        lines = [f"{self.network.name}, {self.images.name}, {self._counted}; edges: {self.color}"]
        if self.selection:
            panels.append((f"{len(self.selection)} chosen pictures", self._mosaic.image))
        return panels, lines


def _colors(groups: Any) -> np.ndarray:
    """A color for each group; after seven that all can tell apart the same ones darker, and so on."""
    shades = [np.clip(CATEGORIES * shade, 0, 255) for shade in (1.0, 0.6, 1.35, 0.4)]
    colors = np.concatenate(shades).astype(np.uint8)
    return colors[groups % len(colors)]
