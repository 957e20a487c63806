"""EmbeddingMap, without a browser."""

from __future__ import annotations

import html
import html.parser
import io
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openTSNE
import pytest
import torch
import traitlets
from ipywidgets.widgets.widget import _instances
from PIL import Image
from torch import nn
from widget_helpers import PATIENCE, opening, reached, settled, shown, written

from convis_widgets import EmbeddingMap, NeighborViewer, Network, demo, link
from convis_widgets.core.dataset import batch_collector
from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.dataset.embedding import embedding
from convis_widgets.widgets.dataset import dataset_viewer, embedding_map
from convis_widgets.widgets.drawing.encode import HIGHLIGHT, encode_jpeg
from convis_widgets.widgets.drawing.heatmap import CATEGORIES, OTHER_CATEGORY
from convis_widgets.widgets.drawing.patch_rows import fit_square
from convis_widgets.widgets.drawing.scatter import BACKGROUND

COUNT = 24
NAMES = ["ant", "bee", "cat"]

pytestmark = pytest.mark.usefixtures("own_cache")


def plain(count: int = COUNT) -> np.ndarray:
    """Single-color images, none of them white, gray or an edge color."""
    images = np.zeros((count, 16, 16, 3), np.uint8)
    for i in range(count):
        images[i] = 3 + 7 * (i % 16), 2, 1 + 9 * (i // 16)
    return images


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(6).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def labeled(images: np.ndarray) -> ImageSet:
    return ImageSet(images, labels=[i % 3 for i in range(COUNT)], classes=NAMES)


@pytest.fixture
def open_map() -> Iterator[Callable[..., EmbeddingMap]]:
    with opening(EmbeddingMap) as make:
        yield make


@pytest.fixture
def widget(tiny: Network, labeled: ImageSet, open_map: Any) -> EmbeddingMap:
    return settled(open_map(tiny, labeled, "pca"))


class Gate:
    """Lets t-SNE continue, a few iterations at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = threading.Semaphore(0)
        optimize = openTSNE.TSNEEmbedding.optimize

        def waiting(mapped: Any, *args: Any, **kwargs: Any) -> Any:
            assert self.count.acquire(timeout=PATIENCE)
            return optimize(mapped, *args, **kwargs)

        monkeypatch.setattr(openTSNE.TSNEEmbedding, "optimize", waiting)

    def let(self, times: int = 1) -> None:
        self.count.release(times)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.let(10_000)


def mouse(widget: EmbeddingMap, kind: str, x: float, y: float, *, buttons: int = 0, shift: bool = False, turn: float = 0):
    """Send a mouse event on the map, as the page does."""
    event = {"type": kind, "x": x, "y": y, "buttons": buttons, "shiftKey": shift, "deltaY": turn}
    widget.map_view.on_pointer(event)


def drag(widget: EmbeddingMap, *points: tuple[float, float], shift: bool = False, end: str = "release") -> None:
    """Press at the first point, move through the others, release at the last."""
    mouse(widget, "press", *points[0], buttons=1, shift=shift)
    for point in points[1:]:
        mouse(widget, "move", *point, buttons=1, shift=shift)
    mouse(widget, end, *points[-1], shift=shift)


def click(widget: EmbeddingMap, x: float, y: float, **kwargs: Any) -> None:
    drag(widget, (x, y), **kwargs)


def on_screen(widget: EmbeddingMap, index: int) -> tuple[float, float]:
    number = widget.frame.arrays["images"].tolist().index(index)
    return tuple(widget.chart.to_screen()[number].tolist())


def moving(widget: EmbeddingMap) -> np.ndarray:
    """The map as it is streamed, JPEG-compressed."""
    return np.asarray(Image.open(io.BytesIO(encode_jpeg(widget.snapshot_panels()[0][0][1]))))


def seen_alone(widget: EmbeddingMap) -> list[int]:
    """Indices of visible images that are topmost at their own position."""
    images = widget.frame.arrays["images"].tolist()
    shape = widget.thumbnails.at_size(widget.chart.side).shape[1:3]
    within = [i for i, place in enumerate(widget.chart.to_screen()) if (place > 60).all() and (place < 540).all()]
    return [images[i] for i in within if widget.chart.thumbnail_at(*widget.chart.to_screen()[i], shape) == i]


def pixels_of(image: np.ndarray, color: Any) -> np.ndarray:
    """(x, y) of the pixels with exactly this color, (n, 2)."""
    return np.argwhere(packed(image) == packed(np.asarray(color)))[:, ::-1]


def packed(colors: np.ndarray) -> np.ndarray:
    """Colors (..., 3) as integers."""
    return colors[..., :3].astype(int) @ (1, 1 << 8, 1 << 16)


def areas(image: np.ndarray, colors: np.ndarray) -> list[int]:
    """Number of pixels of each of these colors (n, 3)."""
    counts = Counter(packed(image).ravel().tolist())
    return [counts[color] for color in packed(colors).tolist()]


class Balanced(html.parser.HTMLParser):
    """Fails if an end tag does not match the open tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def legend(widget: EmbeddingMap) -> str:
    """Text of the legend, without markup."""
    return html.unescape(re.sub("<[^>]*>", " ", widget.legend.value))


# -- the map -------------------------------------------------------------------------------------------------------------


def test_map_view_places_images_at_embedding_points(tiny: Network, open_map: Any) -> None:
    """Centers of fully visible images are an affine function of the embedding, with one scale for both axes."""
    colors = np.array([[(40 * i, 37 * j, 1) for i in range(5)] for j in range(5)], np.uint8).reshape(25, 3)
    images = np.broadcast_to(colors[:, None, None], (25, 16, 16, 3)).copy()
    widget = settled(open_map(tiny, images, "pca", color_by="none", space="pixels"))
    points = Run(embedding(tiny, widget.scan, method="pca", space="pixels")).run().arrays["points"]
    image = shown(widget.map_view)
    assert image.shape == (600, 600, 3)
    found = [pixels_of(image, color) for color in colors]
    whole = [i for i, pixels in enumerate(found) if len(pixels) == max(map(len, found))]
    assert len(whole) >= 6
    middles = np.array([found[i].mean(0) for i in whole])
    scale = 0.0
    for axis in (0, 1):
        line = np.polyfit(points[whole, axis], middles[:, axis], 1)
        assert np.abs(np.polyval(line, points[whole, axis]) - middles[:, axis]).max() < 1
        assert scale in (0.0, pytest.approx(line[0], rel=0.02)), "x and y share one scale"
        scale = line[0]
    assert np.ptp(middles) > 200


@pytest.mark.parametrize("count", [5, 40, 60, 150, 230])
def test_grid_arrangement_has_no_overlap_or_clipping(count: int, tiny: Network, open_map: Any) -> None:
    widget = settled(open_map(tiny, plain(count), "pca", space="pixels", color_by="none", arrangement="grid"))
    image = shown(widget.map_view)
    sizes = areas(image, plain(count)[:, 0, 0])
    assert len(set(sizes)) == 1
    assert 150 * 150 < sum(sizes) < 600 * 600


def test_grid_arrangement_matches_embedding_rows_and_columns(tiny: Network, open_map: Any) -> None:
    widget = settled(open_map(tiny, plain(9), "pca", space="pixels", color_by="none"))
    widget.controls["arrangement"].value = "grid"
    assert widget.arrangement == "grid"
    grid = widget.frame.arrays["grid"]
    middles = np.array([pixels_of(shown(widget.map_view), color).mean(0) for color in plain(9)[:, 0, 0]])
    for axis in (0, 1):
        rows = [middles[grid[:, axis] == i, axis] for i in range(3)]
        assert all(np.ptp(row) <= 1 for row in rows)
        assert rows[0].mean() < rows[1].mean() < rows[2].mean()
    widget.arrangement = "scatter"
    assert not np.allclose(
        [pixels_of(shown(widget.map_view), color).mean(0) for color in plain(9)[:, 0, 0]], middles, atol=2
    )


def test_grid_arrangement_reuses_grid_of_frame(widget: EmbeddingMap, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedding_map, "assign_to_grid", lambda points: pytest.fail("assigned again"))
    widget.arrangement = "grid"
    assert not widget.status.value
    assert np.allclose(np.ptp(widget.chart.points, axis=0) * 4, np.ptp(widget.frame.arrays["grid"], axis=0))


def test_tsne_starts_from_pca_and_redraws_every_step(
    tiny: Network, labeled: ImageSet, gate: Gate, open_map: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convis_widgets.widgets.controls.pump.MIN_PERIOD", 0)
    widget = open_map(tiny, labeled)
    run, maps = widget.run, []
    reached(run, lambda run: run.last is not None and "points" in run.last.arrays)
    pca = Run(embedding(tiny, widget.scan, method="pca")).run()
    assert np.array_equal(widget.frame.arrays["points"], pca.arrays["points"])
    for step in range(3):
        maps.append(bytes(widget.map_view.value))
        assert np.array_equal(widget.frame.arrays["points"], run.last.arrays["points"])
        gate.let()
        reached(run, lambda run, before=run.last: run.last is not before)
        assert run.active
        assert widget.map_view.value, step
    assert len(set(maps)) == 3
    gate.let(1000)
    settled(widget)
    assert run.state == "done"
    last = Run(embedding(tiny, widget.scan)).run()
    assert np.array_equal(widget.frame.arrays["points"], last.arrays["points"])
    assert np.array_equal(shown(widget.map_view), widget.snapshot_panels()[0][0][1]), "the final map is sent losslessly"
    assert re.search(rf"\b{COUNT}\b.*t-SNE.*features", widget.map_view.alt)


def test_stop_keeps_map_and_start_restarts(
    tiny: Network, labeled: ImageSet, gate: Gate, open_map: Any, tmp_path: Path
) -> None:
    widget = open_map(tiny, labeled)
    run = widget.run
    gate.let(3)
    reached(run, lambda run: run.last is not None and run.last.step > 20)
    widget.bar.on_stop()
    gate.let()
    assert run.join(PATIENCE)
    assert run.state == "stopped"
    assert widget.frame is run.last
    assert np.array_equal(shown(widget.map_view), moving(widget)), "the newest frame"
    index = seen_alone(widget)[0]
    click(widget, *on_screen(widget, index))
    assert widget.image_index == index
    assert widget.save(tmp_path / "map.png").exists()
    gate.let(1000)
    widget.bar.on_start()
    settled(widget)
    assert widget.run.state == "done"
    assert widget.image_index == index


def test_start_resumes_scan_after_stop(
    tiny: Network, images: np.ndarray, open_map: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_collector, "auto_batch_size", lambda *_: 8)
    stop = threading.Event()
    step = Scan.step
    monkeypatch.setattr(Scan, "step", lambda scan: (step(scan), stop.wait(PATIENCE)))
    widget = open_map(tiny, images, "pca")
    run = widget.run
    mouse(widget, "press", 300, 300, buttons=1)
    mouse(widget, "move", 300, 300)
    mouse(widget, "wheel", 300, 300, turn=-1)
    widget.reset_button.click()
    widget.controls["zoom"].value = 4
    widget.color_by = "cluster"
    assert not widget.status.value, "mouse events are ignored before there is a map"
    panels, lines = widget.snapshot_panels()
    assert not panels
    assert "tiny" in lines[0]
    widget.bar.on_stop()
    stop.set()
    assert run.join(PATIENCE)
    assert (run.state, widget.frame) == ("stopped", None)
    widget.bar.on_start()
    settled(widget)
    assert len(widget.chart.points) == COUNT
    assert not widget.status.value


def test_method_space_and_perplexity_recompute_map(widget: EmbeddingMap) -> None:
    maps = [widget.frame.arrays["points"]]
    assert widget.controls["perplexity"].layout.display == "none"
    for name, value in (("space", "pixels"), ("method", "tsne"), ("perplexity", 5.0), ("space", "features")):
        before = widget.run
        setattr(widget, name, value)
        assert widget.run is not before
        settled(widget)
        maps.append(widget.frame.arrays["points"])
        kwargs = {"perplexity": widget.perplexity} if widget.method == "tsne" else {}
        expected = Run(embedding(widget.network, widget.scan, method=widget.method, space=widget.space, **kwargs)).run()
        assert np.array_equal(maps[-1], expected.arrays["points"])
        assert not any(np.array_equal(maps[-1], other) for other in maps[:-1])
    assert widget.controls["perplexity"].layout.display == ""
    assert widget.controls["perplexity"].value == 5
    widget.controls["method"].value = "pca"
    settled(widget)
    assert np.array_equal(widget.frame.arrays["points"], maps[0])
    assert re.search("(?i)(pca|principal).*features", widget.map_view.alt)


def test_viewport_is_kept_when_map_changes(widget: EmbeddingMap) -> None:
    mouse(widget, "wheel", 200, 100, turn=-1)
    window = widget.chart.x, widget.chart.y, widget.chart.zoom
    widget.space = "pixels"
    settled(widget)
    assert (widget.chart.x, widget.chart.y, widget.chart.zoom) == window


# -- colors --------------------------------------------------------------------------------------------------------------


def edge_colors(widget: EmbeddingMap, color_of: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Index of each visible single-color image -> color at the middle of its left edge."""
    image, found = shown(widget.map_view), {}
    for i, color in enumerate(color_of):
        pixels = pixels_of(image, color)
        if len(pixels) and len(pixels) == np.prod(np.ptp(pixels, axis=0) + 1):
            x, y = pixels[:, 0].min() - 1, int(pixels[:, 1].mean())
            if x > 0 and (image[y, x] != BACKGROUND).any() and tuple(image[y, x]) not in set(map(tuple, color_of.tolist())):
                found[i] = tuple(image[y, x].tolist())
    return found


def test_color_label_sets_edges_and_legend(tiny: Network, open_map: Any) -> None:
    labels = [NAMES[i % 3] if i % 4 else None for i in range(COUNT)]
    widget = settled(open_map(tiny, ImageSet(plain(), labels=labels), "pca", space="pixels"))
    edges = edge_colors(widget, plain()[:, 0, 0])
    assert len(edges) > 6
    for i, color in edges.items():
        assert color == tuple(OTHER_CATEGORY if labels[i] is None else CATEGORIES[NAMES.index(labels[i])])
    for name, count in Counter(filter(None, labels)).items():
        assert f"{name}: {count}" in legend(widget)
        assert f"rgb{tuple(int(v) for v in CATEGORIES[NAMES.index(name)])}" in widget.legend.value


@pytest.mark.parametrize("color_by", ["label", "cluster"])
def test_legend_is_well_formed_html(color_by: str, widget: EmbeddingMap) -> None:
    widget.color_by = color_by
    Balanced(widget.legend.value)


def test_color_prediction_sets_edges_and_legend(tiny: Network, open_map: Any) -> None:
    widget = settled(open_map(tiny, plain(), "pca", space="pixels", color_by="prediction"))
    best = widget.scan.predictions
    for i, color in edge_colors(widget, plain()[:, 0, 0]).items():
        assert color == tuple(CATEGORIES[best[i]])
    for c, count in Counter(best.tolist()).items():
        assert f"{tiny.labels[c]}: {count}" in legend(widget)


def test_color_cluster_groups_similar_images(tiny: Network, open_map: Any) -> None:
    kinds = np.repeat(np.arange(4), 6)
    noise = np.random.default_rng(0).integers(0, 9, (COUNT, 16, 16, 3))
    images = (np.array([20, 90, 160, 230])[kinds][:, None, None, None] + noise).astype(np.uint8)
    widget = settled(open_map(tiny, images, "pca", space="pixels", color_by="cluster"))
    assert widget.groups.numbers("cluster", "pixels").shape == (COUNT,)
    for group in set(widget.groups.numbers("cluster", "pixels").tolist()):
        assert len(set(kinds[widget.groups.numbers("cluster", "pixels") == group])) == 1, "no cluster mixes two kinds"
    counts = [int(count) for count in re.findall(r"cluster \d+: (\d+)", legend(widget))]
    assert sum(counts) == COUNT
    assert len(counts) == 10
    widget.space = "features"
    settled(widget)
    assert "cluster" in legend(widget)
    assert not widget.status.value


def test_color_none_draws_no_edges_and_no_legend(tiny: Network, open_map: Any) -> None:
    widget = settled(open_map(tiny, plain(), "pca", space="pixels", color_by="label"))
    widget.controls["color_by"].value = "none"
    assert widget.color_by == "none"
    assert not widget.legend.value
    colors = {tuple(color) for color in np.unique(shown(widget.map_view).reshape(-1, 3), axis=0).tolist()}
    assert colors <= {(BACKGROUND,) * 3, *map(tuple, plain()[:, 0, 0].tolist())}


def test_color_defaults_to_prediction_without_labels(tiny: Network, open_map: Any) -> None:
    widget = settled(open_map(tiny, plain(), "pca", space="pixels"))
    assert widget.color_by == widget.controls["color_by"].value == "prediction"
    assert any(label in legend(widget) for label in tiny.labels)
    widget.color_by = "label"
    assert "label" in legend(widget)


def test_color_label_without_labels_draws_gray_edges(tiny: Network, open_map: Any) -> None:
    widget = settled(open_map(tiny, plain(), "pca", space="pixels", color_by="label"))
    assert "label" in legend(widget)
    assert set(edge_colors(widget, plain()[:, 0, 0]).values()) == {tuple(OTHER_CATEGORY.tolist())}


def test_legend_lists_twelve_most_common_labels(tiny: Network, open_map: Any) -> None:
    widget = settled(open_map(tiny, ImageSet(plain(40), labels=[i % 20 for i in range(40)]), "pca"))
    assert legend(widget).count(": 2") == 12
    assert re.search(r"\b8\b(?!: 2)", legend(widget))


def test_label_names_are_html_escaped(tiny: Network, open_map: Any) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    widget = settled(open_map(tiny, ImageSet(plain(), labels=[0] * COUNT, classes=[nasty]), "pca"))
    widget.image_index, widget.selection = 3, (1, 2)
    for text in (widget.legend, widget.hover_caption, widget.summary):
        assert "<img" not in text.value
        assert "&lt;img" in text.value


# -- panning and zooming -------------------------------------------------------------------------------------------------


def test_drag_pans_by_exact_pixels(widget: EmbeddingMap) -> None:
    before = widget.chart.to_screen()
    drag(widget, (300, 300), (310, 300), (340, 280))
    assert np.allclose(widget.chart.to_screen() - before, (40, -20))
    assert widget.image_index is None
    assert widget.selection == ()
    assert np.array_equal(shown(widget.map_view), widget.snapshot_panels()[0][0][1])


def test_drag_pans_to_release_point_without_move_events(
    widget: EmbeddingMap,
) -> None:
    before = widget.chart.to_screen()
    index = seen_alone(widget)[0]
    x, y = on_screen(widget, index)
    mouse(widget, "press", x - 60, y + 30, buttons=1)
    mouse(widget, "release", x, y)
    assert np.allclose(widget.chart.to_screen() - before, (60, -30))
    assert widget.image_index is None, "a drag is not a click"
    drag(widget, (300, 300), (320, 300))
    before = widget.chart.to_screen()
    mouse(widget, "press", 300, 300, buttons=1)
    mouse(widget, "move", 310, 300, buttons=1)
    mouse(widget, "release", 350, 310)
    assert np.allclose(widget.chart.to_screen() - before, (50, 10))


def test_drag_ends_on_release(widget: EmbeddingMap) -> None:
    drag(widget, (300, 300), (340, 280))
    after = widget.chart
    mouse(widget, "move", 400, 400)
    mouse(widget, "move", 410, 400, buttons=1)  # a button that was pressed outside the map
    assert widget.chart is after


@pytest.mark.parametrize("end", ["leave", "came back"])
def test_drag_ends_when_released_outside_map(end: str, widget: EmbeddingMap) -> None:
    mouse(widget, "press", 300, 300, buttons=1)
    mouse(widget, "move", 330, 300, buttons=1)
    if end == "leave":
        mouse(widget, "leave", 330, 300, buttons=1)
    else:
        mouse(widget, "move", 330, 300)
    after = widget.chart
    for buttons in (0, 1):
        mouse(widget, "move", 200, 200, buttons=buttons)
    assert widget.chart is after
    assert widget.image_index is None


@pytest.mark.parametrize("place", [(300, 300), (120, 500), (590, 40)])
def test_wheel_zooms_about_mouse_position(place: tuple[float, float], widget: EmbeddingMap) -> None:
    mouse(widget, "wheel", *place, turn=-1)
    mouse(widget, "wheel", *place, turn=-120)
    assert widget.chart.zoom == pytest.approx(1.25**2)
    assert widget.controls["zoom"].value == pytest.approx(widget.chart.zoom)
    before = widget.chart.to_map(*place)
    mouse(widget, "wheel", *place, turn=-3)
    assert widget.chart.to_map(*place) == pytest.approx(before)
    for _ in range(9):
        mouse(widget, "wheel", *place, turn=1)
    assert (widget.chart.x, widget.chart.y, widget.chart.zoom) == (0.5, 0.5, 1)
    for _ in range(40):
        mouse(widget, "wheel", *place, turn=-1)
    assert widget.zoom == widget.chart.zoom == 64
    assert widget.controls["zoom"].value == pytest.approx(64)


def test_wheel_draws_last_event_of_a_burst(widget: EmbeddingMap) -> None:
    pump = widget.map_view.pump
    pump._clock = lambda: 1000.0  # all events within one period
    for _ in range(2):
        mouse(widget, "wheel", 300, 300, turn=-1)
        pump.acknowledge(widget.map_view.serial)
    assert np.array_equal(shown(widget.map_view), moving(widget))


def test_zoom_slider_zooms_about_center_and_button_resets(widget: EmbeddingMap) -> None:
    drag(widget, (300, 300), (330, 310))
    middle = widget.chart.to_map(300, 300)
    widget.controls["zoom"].value = 8
    assert widget.chart.zoom == pytest.approx(8)
    assert widget.chart.to_map(300, 300) == pytest.approx(middle)
    assert np.array_equal(shown(widget.map_view), moving(widget))
    widget.reset_button.click()
    assert (widget.chart.x, widget.chart.y, widget.chart.zoom, widget.controls["zoom"].value) == (0.5, 0.5, 1, 1)
    assert np.array_equal(shown(widget.map_view), widget.snapshot_panels()[0][0][1])


def test_zoom_and_mode_are_constructor_arguments(tiny: Network, labeled: ImageSet, open_map: Any) -> None:
    widget = settled(open_map(tiny, labeled, "pca", zoom=4, mode="select", arrangement="grid"))
    assert (widget.chart.zoom, widget.controls["mode"].value) == (4, "select")
    drag(widget, (0, 0), (599, 599))
    assert len(widget.selection) > 0
    assert widget.controls["arrangement"].description == "layout"


def test_zoom_slider_enlarges_thumbnails(tiny: Network, open_map: Any) -> None:
    widget = settled(open_map(tiny, plain(200), "pca", space="pixels", color_by="none"))
    before = max(areas(widget.snapshot_panels()[0][0][1], plain(200)[:, 0, 0]))
    widget.controls["zoom"].value = 6
    assert max(areas(widget.snapshot_panels()[0][0][1], plain(200)[:, 0, 0])) > 2 * before


# -- one image -----------------------------------------------------------------------------------------------------------


def test_hover_shows_image_under_mouse(widget: EmbeddingMap, images: np.ndarray) -> None:
    for index in seen_alone(widget)[:3]:
        mouse(widget, "move", *on_screen(widget, index))
        assert np.array_equal(shown(widget.hover_view)[::12, ::12], images[index])
        assert widget.hover_view.layout.visibility == "visible"
        assert re.search(rf">\w+ {index}\b.*{NAMES[index % 3]}", widget.hover_caption.value)
        best, p = widget.network.labels[widget.scan.predictions[index]], widget.scan.probabilities[index]
        assert re.search(rf"{best}\W+{p:.1%}", widget.hover_caption.value)
        assert re.search(rf"\w+ {index}\b.*{NAMES[index % 3]}", widget.hover_view.alt)
        assert widget.image_index is None
    mouse(widget, "leave", 700, 300)
    assert widget.hover_view.layout.visibility == "hidden"
    assert not widget.hover_caption.value


def test_click_sets_image_index_and_background_clears_it(widget: EmbeddingMap) -> None:
    index = seen_alone(widget)[0]
    x, y = on_screen(widget, index)
    click(widget, x, y)
    assert widget.image_index == index
    assert widget.map_view.array[int(y), int(x)].shape == (3,)
    assert len(pixels_of(shown(widget.map_view), HIGHLIGHT)) > 50
    mouse(widget, "leave", 0, 0)
    assert re.search(rf">\w+ {index}\b", widget.hover_caption.value), "image_index is shown while the mouse is elsewhere"
    drag(widget, (300, 300), (302, 301))
    assert widget.chart.x == 0.5, "a movement of two pixels does not pan"
    widget.reset_button.click()
    empty = next((x, y) for x in range(5, 600, 10) for y in range(5, 600, 10) if widget._image_at(x, y) is None)
    click(widget, *empty)
    assert widget.image_index is None
    assert not len(pixels_of(shown(widget.map_view), HIGHLIGHT))


def test_hover_finds_topmost_of_overlapping_images(widget: EmbeddingMap) -> None:
    """The image at image_index is drawn on top."""
    below, above = widget.frame.arrays["images"][:2].tolist()
    places = np.zeros((COUNT, 2))
    places[:2] = 0.5
    widget.chart = replace(widget.chart, points=places)
    middle = np.array(on_screen(widget, below))
    side = widget.thumbnails.at_size(widget.chart.side).shape[1] // 2
    for index, behind in ((below, above), (above, below)):
        widget.image_index = index
        tile = widget.thumbnails.at_size(widget.chart.side)[widget.frame.arrays["images"].tolist().index(index)]
        left, top = np.floor(middle - side).astype(int)
        assert np.array_equal(shown(widget.map_view)[top : top + 2 * side, left : left + 2 * side], tile)
        mouse(widget, "move", *middle)
        assert re.search(rf">\w+ {index}\b", widget.hover_caption.value), f"shows {index} instead of {behind}"


def test_image_index_of_linked_viewer_is_highlighted(tiny: Network, labeled: ImageSet, open_map: Any) -> None:
    widget = settled(open_map(tiny, labeled, "pca"))
    viewer = settled(open_map(tiny, labeled, kind=NeighborViewer, queries=[0]))
    link(widget, viewer)
    index = seen_alone(widget)[0]
    click(widget, *on_screen(widget, index))
    settled(viewer)
    assert viewer.queries[0] == index
    viewer.image_index = 7
    settled(viewer)
    assert widget.image_index == 7
    assert re.search(r">\w+ 7\b", widget.hover_caption.value)
    assert len(pixels_of(shown(widget.map_view), HIGHLIGHT)) > 50


# -- selection -----------------------------------------------------------------------------------------------------------


def within(widget: EmbeddingMap, x0: float, y0: float, x1: float, y1: float) -> set[int]:
    images = widget.frame.arrays["images"].tolist()
    low, high = (min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1))
    return {
        i
        for i, place in zip(images, widget.chart.to_screen(), strict=True)
        if (place >= low).all() and (place <= high).all()
    }


@pytest.mark.parametrize("how", ["shift", "mode"])
@pytest.mark.parametrize("end", ["release", "leave"])
def test_box_selects_images_inside(how: str, end: str, widget: EmbeddingMap) -> None:
    if how == "mode":
        widget.controls["mode"].value = "select"
    before = widget.chart
    drag(widget, (500, 450), (300, 300), (150, 100), shift=how == "shift", end=end)
    expected = within(widget, 150, 100, 500, 450)
    assert 3 < len(expected) < COUNT
    assert set(widget.selection) == expected
    assert widget.chart is before, "selecting does not pan"
    counts = Counter(NAMES[i % 3] for i in expected)
    for name, count in counts.items():
        assert f"{count} {name}" in widget.summary.value
    assert re.search(rf"\b{len(expected)} \w+", widget.summary.value)
    assert len(pixels_of(shown(widget.map_view), HIGHLIGHT)) > 50 * len(expected)


def test_box_is_drawn_while_dragging(widget: EmbeddingMap) -> None:
    widget.controls["mode"].value = "select"
    mouse(widget, "press", 100, 100, buttons=1)
    mouse(widget, "move", 400, 300, buttons=1)
    box = pixels_of(widget.map_image(), HIGHLIGHT)
    assert (abs(box.min(0) - 100).max() <= 3, abs(box.max(0) - (400, 300)).max() <= 3) == (True, True)
    mouse(widget, "release", 400, 300)
    widget.selection = ()
    assert not len(pixels_of(shown(widget.map_view), HIGHLIGHT))


def test_box_selects_without_move_events(widget: EmbeddingMap) -> None:
    mouse(widget, "press", 150, 100, buttons=1, shift=True)
    mouse(widget, "release", 500, 450, shift=True)
    assert set(widget.selection) == within(widget, 150, 100, 500, 450)


def test_selection_by_drag_or_click_is_drawn_once(widget: EmbeddingMap, monkeypatch: pytest.MonkeyPatch) -> None:
    widget.selection, widget.image_index, drawn = (1, 2), 3, list[np.ndarray]()
    monkeypatch.setattr(widget.map_view, "show", drawn.append)
    drag(widget, (500, 450), (150, 100), shift=True)
    assert len(drawn) == 1
    click(widget, 2, 2, shift=True)
    assert (widget.selection, widget.image_index) == ((), None)
    assert len(drawn) == 2


def test_empty_box_or_background_click_clears_selection(widget: EmbeddingMap) -> None:
    widget.selection = (1, 2)
    assert widget.selection_view.layout.display == ""
    widget.controls["mode"].value = "select"
    click(widget, 2, 2)
    assert widget.selection == ()
    widget.selection = (1, 2)
    drag(widget, (1, 1), (8, 8))
    assert widget.selection == ()
    assert widget.selection_view.layout.display == "none"
    assert not widget.summary.value


def test_selection_shows_thumbnails_that_set_image_index(widget: EmbeddingMap) -> None:
    widget.selection = (5, 9, 2)
    tiles = shown(widget.selection_view)
    for place, index in enumerate((5, 9, 2)):
        top, left, bottom, right = widget.selected_tiles.box(place)
        small = fit_square(widget.scan.thumbnails(np.array([index]))[0], embedding_map.TILE_SIDE)
        assert np.array_equal(tiles[top:bottom, left:right, :3], small)
        widget.selection_view.on_pointer({"type": "click", "x": left + 20, "y": top + 20})
        assert widget.image_index == index
        widget.image_index = None
    widget.selection_view.on_pointer({"type": "click", "x": 5000, "y": 20})
    assert widget.image_index is None


def test_selection_shows_sixty_thumbnails_and_counts_all(tiny: Network, open_map: Any) -> None:
    widget = settled(open_map(tiny, plain(70), "pca"))
    widget.selection = tuple(range(70))
    assert len(widget.selected_tiles) == 60
    assert re.search(r"\b70\b", widget.summary.value)
    widget.image_index = 65
    assert not widget.status.value


def test_selection_and_image_index_are_constructor_arguments(tiny: Network, labeled: ImageSet, open_map: Any) -> None:
    widget = settled(open_map(tiny, labeled, "pca", selection=(3, 4), image_index=5))
    assert (widget.selection, widget.image_index) == ((3, 4), 5)
    assert re.search(r"\b2 \w+", widget.summary.value)
    assert re.search(r">\w+ 5\b", widget.hover_caption.value)
    with pytest.raises(traitlets.TraitError, match=rf"\b{COUNT}\b.*\b0\b.*\b{COUNT - 1}\b"):
        widget.selection = (3, COUNT)
    with pytest.raises(traitlets.TraitError, match="2.5"):
        widget.selection = (2.5,)
    assert widget.selection == (3, 4)


# -- small and unreadable image sets -------------------------------------------------------------------------------------


def test_embedding_map_of_three_images_shows_error(tiny: Network, images: np.ndarray, open_map: Any) -> None:
    widget = settled(open_map(tiny, images[:3]))
    assert re.search(r"(?i)\b(four|4)\b", widget.status.value)
    mouse(widget, "wheel", 300, 300, turn=-1)
    click(widget, 300, 300)
    widget.arrangement, widget.color_by, widget.selection, widget.image_index = "grid", "cluster", (1,), 2
    assert re.search(r">\w+ 2\b", widget.hover_caption.value)
    assert widget.snapshot().shape[2] == 3
    assert re.search(r"(?i)\b(four|4)\b", widget.status.value)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_embedding_map_of_four_images_has_points(method: str, tiny: Network, images: np.ndarray, open_map: Any) -> None:
    widget = settled(open_map(tiny, images[:4], method, color_by="cluster"))
    assert not widget.status.value
    assert len(widget.chart.points) == 4


@pytest.mark.parametrize("color_by", ["none", "cluster"])
def test_embedding_map_of_identical_images_is_drawn(color_by: str, tiny: Network, open_map: Any) -> None:
    widget = settled(open_map(tiny, np.full((9, 16, 16, 3), 99, np.uint8), "pca", color_by=color_by))
    assert widget.run.state == "done"
    assert not widget.status.value
    assert len(pixels_of(shown(widget.map_view), (99, 99, 99))) > 50


def test_unreadable_images_are_skipped_and_named(tiny: Network, open_map: Any, tmp_path: Path) -> None:
    widget = settled(open_map(tiny, written(tmp_path / "noise", 8, [2]), "pca", color_by="cluster"))
    assert re.search(r"\b1\b\D+\b8\b.*\b2\.png", widget.notices.value)
    assert widget.frame.arrays["images"].tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert not widget.status.value
    for index in seen_alone(widget):
        mouse(widget, "move", *on_screen(widget, index))
        assert f"{index}.png" in widget.hover_caption.value
        click(widget, *on_screen(widget, index))
        assert widget.image_index == index
    drag(widget, (0, 0), (599, 599), shift=True)
    assert set(widget.selection) == set(widget.frame.arrays["images"].tolist())
    widget.image_index = 2  # as set by a linked widget
    mouse(widget, "leave", 0, 0)
    assert widget.hover_view.layout.visibility == "hidden"


def test_embedding_map_of_digits_for_grayscale_network(open_map: Any) -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 10)))
    digits = load_digits()
    images = ImageSet((digits.images[:60] / 16).astype(np.float32), labels=digits.target[:60].tolist())
    widget = settled(open_map(net, images, "pca", space="pixels"))
    assert not widget.status.value
    assert "7: " in legend(widget)
    index = seen_alone(widget)[0]
    mouse(widget, "move", *on_screen(widget, index))
    whole = shown(widget.hover_view)
    assert np.array_equal(whole[::6, ::6], np.repeat(widget.scan.image(index), 3, 2))
    assert widget.snapshot().std() > 5


def test_embedding_map_defaults_to_tsne_of_toyscape_features(open_map: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_viewer, "default_image_set", lambda _net: ImageSet(demo.Toyscape(40, seed=3)))
    widget = settled(open_map())
    assert widget.network is Network.demo()
    assert re.search(r"\b40\b.*t-SNE.*features", widget.map_view.alt)
    for label in demo.LABELS:
        assert f"{label}: 4" in legend(widget)
    assert not widget.status.value


# -- constructing, closing, saving ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"method": "umap"}, traitlets.TraitError, "tsne"),
        ({"space": "pixel"}, traitlets.TraitError, "pixels"),
        ({"color_by": "red"}, traitlets.TraitError, "prediction"),
        ({"arrangement": "circle"}, traitlets.TraitError, "scatter"),
        ({"perplexity": 1}, ValueError, r"perplexity.*\b1\b.*\b2\b.*\b200\b"),
        ({"selection": (COUNT,)}, traitlets.TraitError, rf"\b{COUNT}\b"),
        ({"image_index": -1}, traitlets.TraitError, "-1"),
        ({"metod": "pca"}, TypeError, "EmbeddingMap.*metod.*method"),
        ({"images": "nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_embedding_map_with_invalid_argument_raises_and_is_closed(
    kwargs: dict[str, Any], error: type[Exception], message: str, tiny: Network, images: np.ndarray
) -> None:
    before = set(_instances)
    with pytest.raises(error, match=message):
        EmbeddingMap(tiny, **({"images": images} | kwargs))
    assert [type(_instances[key]).__name__ for key in set(_instances) - before] == []


def test_invalid_trait_value_raises_and_changes_nothing(widget: EmbeddingMap) -> None:
    run = widget.run
    for name, wrong in (("method", "umap"), ("space", ""), ("color_by", 3), ("arrangement", None), ("perplexity", 1000.0)):
        with pytest.raises((traitlets.TraitError, ValueError)):
            setattr(widget, name, wrong)
    assert widget.run is run
    assert widget.perplexity == 30


def test_save_contains_map_and_selection(widget: EmbeddingMap, tmp_path: Path) -> None:
    widget.selection = (1, 2, 3)
    panels, lines = widget.snapshot_panels()
    (map_title, _), (selection_title, _) = panels
    assert map_title == widget.map_view.alt
    assert re.search(r"\b3\b", selection_title)
    assert np.array_equal(panels[0][1], shown(widget.map_view))
    assert "tiny" in lines[0]
    path = widget.save(tmp_path / "map.png")
    assert np.array_equal(np.asarray(Image.open(path)), widget.snapshot())


def test_close_stops_running_tsne(tiny: Network, labeled: ImageSet, gate: Gate) -> None:
    widget = EmbeddingMap(tiny, labeled)
    run = widget.run
    gate.let()
    reached(run, lambda run: run.last is not None and run.last.step > 1)
    widget.close()
    gate.let(1000)
    assert run.join(PATIENCE)
    assert run.state == "stopped"
    widget.method = "pca"
    widget.bar.on_start()
    assert widget.run is None


def test_color_label_accepts_large_integer_label(tiny: Network, open_map: Any) -> None:
    widget = settled(open_map(tiny, ImageSet(plain(), labels=[10**9] * COUNT), "pca"))
    assert widget.run.state == "done"
    assert "1000000000: 24" in legend(widget)


def test_image_index_rejects_bool(tiny: Network, widget: EmbeddingMap) -> None:
    with pytest.raises(traitlets.TraitError, match="True"):
        widget.image_index = True
    assert not widget.status.value
