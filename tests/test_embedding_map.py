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

import ipywidgets
import numpy as np
import openTSNE
import pytest
import torch
import traitlets
from ipywidgets.widgets.widget import _instances
from PIL import Image
from seen import PATIENCE, opening, reached, settled, shown, written
from torch import nn

from convis_widgets import EmbeddingMap, NeighborViewer, Network, demo, link
from convis_widgets.core import ImageSet, Run, Scan
from convis_widgets.core import examine as examine_file
from convis_widgets.techniques import embedding
from convis_widgets.widgets import embedding_map as map_file
from convis_widgets.widgets.chart import GROUND
from convis_widgets.widgets.encode import HIGHLIGHT, jpeg
from convis_widgets.widgets.heat import CATEGORIES, OTHER
from convis_widgets.widgets.patches import fitted

COUNT = 24
NAMES = ["ant", "bee", "cat"]

pytestmark = pytest.mark.usefixtures("own_cache")


def plain(count: int = COUNT) -> np.ndarray:
    """Pictures of one color each, none of which is white, gray or a color of edges."""
    pictures = np.zeros((count, 16, 16, 3), np.uint8)
    for i in range(count):
        pictures[i] = 3 + 7 * (i % 16), 2, 1 + 9 * (i // 16)
    return pictures


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(6).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def labeled(pictures: np.ndarray) -> ImageSet:
    return ImageSet(pictures, labels=[i % 3 for i in range(COUNT)], classes=NAMES)


@pytest.fixture
def open_map() -> Iterator[Callable[..., EmbeddingMap]]:
    with opening(EmbeddingMap) as make:
        yield make


@pytest.fixture
def there(tiny: Network, labeled: ImageSet, open_map: Any) -> EmbeddingMap:
    return settled(open_map(tiny, labeled, "pca"))


class Gate:
    """Lets t-SNE go on, a few iterations at a time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = threading.Semaphore(0)
        optimize = openTSNE.TSNEEmbedding.optimize

        def waiting(mapped: Any, *args: Any, **keywords: Any) -> Any:
            assert self.count.acquire(timeout=PATIENCE)
            return optimize(mapped, *args, **keywords)

        monkeypatch.setattr(openTSNE.TSNEEmbedding, "optimize", waiting)

    def let(self, times: int = 1) -> None:
        self.count.release(times)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.let(10_000)


def mouse(there: EmbeddingMap, kind: str, x: float, y: float, *, buttons: int = 0, shift: bool = False, turn: float = 0):
    """What the page says of the mouse on the map."""
    event = {"type": kind, "relativeX": x, "relativeY": y, "buttons": buttons, "shiftKey": shift, "deltaY": turn}
    there.map_view.on_mouse(event)


def drag(there: EmbeddingMap, *points: tuple[float, float], shift: bool = False, end: str = "mouseup") -> None:
    """Press at the first point, move over the others, release at the last."""
    mouse(there, "mousedown", *points[0], buttons=1, shift=shift)
    for point in points[1:]:
        mouse(there, "mousemove", *point, buttons=1, shift=shift)
    mouse(there, end, *points[-1], shift=shift)


def click(there: EmbeddingMap, x: float, y: float, **keywords: Any) -> None:
    drag(there, (x, y), **keywords)


def on_screen(there: EmbeddingMap, picture: int) -> tuple[float, float]:
    number = there.frame.arrays["images"].tolist().index(picture)
    return tuple(there.chart.on_screen()[number].tolist())


def moving(there: EmbeddingMap) -> np.ndarray:
    """The map as a moving picture shows it."""
    return np.asarray(Image.open(io.BytesIO(jpeg(there._page()[0][0][1]))))


def seen_alone(there: EmbeddingMap) -> list[int]:
    """Pictures that lie under the mouse at their own places, in the window."""
    images = there.frame.arrays["images"].tolist()
    shape = there._tiles.near(there.chart.side).shape[1:3]
    within = [i for i, place in enumerate(there.chart.on_screen()) if (place > 60).all() and (place < 540).all()]
    return [images[i] for i in within if there.chart.at(*there.chart.on_screen()[i], shape) == i]


def pixels_of(image: np.ndarray, color: Any) -> np.ndarray:
    """Where a picture has just this color, (n, 2) of x and y."""
    return np.argwhere(packed(image) == packed(np.asarray(color)))[:, ::-1]


def packed(colors: np.ndarray) -> np.ndarray:
    """Colors (..., 3) as numbers."""
    return colors[..., :3].astype(int) @ (1, 1 << 8, 1 << 16)


def areas(image: np.ndarray, colors: np.ndarray) -> list[int]:
    """How many pixels have each of these colors (n, 3)."""
    counts = Counter(packed(image).ravel().tolist())
    return [counts[color] for color in packed(colors).tolist()]


class Balanced(html.parser.HTMLParser):
    """Fails at an end tag that ends nothing, or something else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def legend(there: EmbeddingMap) -> str:
    """The text of the legend."""
    return html.unescape(re.sub("<[^>]*>", " ", there.legend.value))


# -- the map -------------------------------------------------------------------------------------------------------------


def test_pictures_lie_where_the_technique_puts_them(tiny: Network, open_map: Any) -> None:
    """Of each that can be seen whole the middle is at its point, moved and scaled like all others."""
    colors = np.array([[(40 * i, 37 * j, 1) for i in range(5)] for j in range(5)], np.uint8).reshape(25, 3)
    pictures = np.broadcast_to(colors[:, None, None], (25, 16, 16, 3)).copy()
    there = settled(open_map(tiny, pictures, "pca", color="none", space="pixels"))
    points = Run(embedding(tiny, there.scan, method="pca", space="pixels")).run().arrays["points"]
    image = shown(there.map_view)
    assert image.shape == (600, 600, 3)
    found = [pixels_of(image, color) for color in colors]
    whole = [i for i, pixels in enumerate(found) if len(pixels) == max(map(len, found))]
    assert len(whole) >= 6
    middles = np.array([found[i].mean(0) for i in whole])
    scale = 0.0
    for axis in (0, 1):
        line = np.polyfit(points[whole, axis], middles[:, axis], 1)
        assert np.abs(np.polyval(line, points[whole, axis]) - middles[:, axis]).max() < 1
        assert scale in (0.0, pytest.approx(line[0], rel=0.02)), "distances are the same both ways"
        scale = line[0]
    assert np.ptp(middles) > 200


@pytest.mark.parametrize("count", [5, 40, 60, 150, 230])
def test_on_a_grid_no_picture_covers_another_or_is_cut_off(count: int, tiny: Network, open_map: Any) -> None:
    there = settled(open_map(tiny, plain(count), "pca", space="pixels", color="none", arrangement="grid"))
    image = shown(there.map_view)
    sizes = areas(image, plain(count)[:, 0, 0])
    assert len(set(sizes)) == 1
    assert 150 * 150 < sum(sizes) < 600 * 600


def test_on_a_grid_pictures_stand_in_rows_and_columns_as_the_technique_says(tiny: Network, open_map: Any) -> None:
    there = settled(open_map(tiny, plain(9), "pca", space="pixels", color="none"))
    there.menus[3].value = "grid"
    assert there.arrangement == "grid"
    grid = there.frame.arrays["grid"]
    middles = np.array([pixels_of(shown(there.map_view), color).mean(0) for color in plain(9)[:, 0, 0]])
    for axis in (0, 1):
        rows = [middles[grid[:, axis] == i, axis] for i in range(3)]
        assert all(np.ptp(row) <= 1 for row in rows)
        assert rows[0].mean() < rows[1].mean() < rows[2].mean()
    there.arrangement = "scatter"
    assert not np.allclose([pixels_of(shown(there.map_view), color).mean(0) for color in plain(9)[:, 0, 0]], middles, atol=2)


def test_a_grid_that_came_with_the_map_is_not_made_again(there: EmbeddingMap, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    on_grid = map_file.on_grid
    monkeypatch.setattr(map_file, "on_grid", lambda points: (made.append(len(points)), on_grid(points))[1])
    there.arrangement = "grid"
    assert not made
    assert np.allclose(np.ptp(there.chart.points, axis=0) * 4, np.ptp(there.frame.arrays["grid"], axis=0))


def test_pca_is_there_at_once_and_t_sne_moves_on_before_ones_eyes(
    tiny: Network, labeled: ImageSet, gate: Gate, open_map: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convis_widgets.widgets.pump.PERIOD", 0)
    there = open_map(tiny, labeled)
    run, maps = there.run, []
    reached(run, lambda run: run.last is not None and "points" in run.last.arrays)
    pca = Run(embedding(tiny, there.scan, method="pca")).run()
    assert np.array_equal(there.frame.arrays["points"], pca.arrays["points"])
    for step in range(3):
        maps.append(bytes(there.map_view.value))
        assert np.array_equal(there.frame.arrays["points"], run.last.arrays["points"])
        gate.let()
        reached(run, lambda run, before=run.last: run.last is not before)
        assert run.active
        assert there.map_view.layout.visibility == "visible", step
    assert len(set(maps)) == 3
    gate.let(1000)
    settled(there)
    assert run.state == "done"
    last = Run(embedding(tiny, there.scan)).run()
    assert np.array_equal(there.frame.arrays["points"], last.arrays["points"])
    assert np.array_equal(shown(there.map_view), there._page()[0][0][1]), "in the end just as it is"
    assert f"{COUNT} pictures by t-SNE of their features" in there.map_view.alt


def test_stop_keeps_the_map_and_start_begins_anew(
    tiny: Network, labeled: ImageSet, gate: Gate, open_map: Any, tmp_path: Path
) -> None:
    there = open_map(tiny, labeled)
    run = there.run
    gate.let(3)
    reached(run, lambda run: run.last is not None and run.last.step > 20)
    there.bar.on_stop()
    gate.let()
    assert run.join(PATIENCE)
    assert run.state == "stopped"
    assert there.frame is run.last
    assert np.array_equal(shown(there.map_view), moving(there)), "the newest"
    picture = seen_alone(there)[0]
    click(there, *on_screen(there, picture))
    assert there.picked == picture
    assert there.save(tmp_path / "map.png").exists()
    gate.let(1000)
    there.bar.on_start()
    settled(there)
    assert there.run.state == "done"
    assert there.picked == picture


def test_stopped_while_it_scans_it_goes_on_when_it_is_started(
    tiny: Network, pictures: np.ndarray, open_map: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examine_file, "passes", lambda *_: 8)
    stop = threading.Event()
    advance = Scan.advance
    monkeypatch.setattr(Scan, "advance", lambda scan: (advance(scan), stop.wait(PATIENCE)))
    there = open_map(tiny, pictures, "pca")
    run = there.run
    mouse(there, "mousedown", 300, 300, buttons=1)
    mouse(there, "mousemove", 300, 300)
    mouse(there, "wheel", 300, 300, turn=-1)
    there.whole.click()
    there.zoom_slider.value = 4
    there.color = "cluster"
    assert not there.status.value, "before there is a map the mouse does nothing"
    assert "no map yet" in there._page()[1][0]
    there.bar.on_stop()
    stop.set()
    assert run.join(PATIENCE)
    assert (run.state, there.chart) == ("stopped", None)
    there.bar.on_start()
    settled(there)
    assert len(there.chart.points) == COUNT
    assert not there.status.value


def test_another_method_space_or_perplexity_makes_another_map(there: EmbeddingMap) -> None:
    maps = [there.frame.arrays["points"]]
    assert there.perplexity_slider.layout.display == "none"
    for name, value in (("space", "pixels"), ("method", "tsne"), ("perplexity", 5.0), ("space", "features")):
        before = there.run
        setattr(there, name, value)
        assert there.run is not before
        settled(there)
        maps.append(there.frame.arrays["points"])
        keywords = {"perplexity": there.perplexity} if there.method == "tsne" else {}
        expected = Run(embedding(there.network, there.scan, method=there.method, space=there.space, **keywords)).run()
        assert np.array_equal(maps[-1], expected.arrays["points"])
        assert not any(np.array_equal(maps[-1], other) for other in maps[:-1])
    assert there.perplexity_slider.layout.display == ""
    assert there.perplexity_slider.value == 5
    there.menus[0].value = "pca"
    settled(there)
    assert np.array_equal(there.frame.arrays["points"], maps[0])
    assert "two principal components of their features" in there.map_view.alt


def test_the_window_stays_where_it_is_when_the_map_changes(there: EmbeddingMap) -> None:
    mouse(there, "wheel", 200, 100, turn=-1)
    window = there.chart.x, there.chart.y, there.chart.zoom
    there.space = "pixels"
    settled(there)
    assert (there.chart.x, there.chart.y, there.chart.zoom) == window


# -- colors --------------------------------------------------------------------------------------------------------------


def edge_colors(there: EmbeddingMap, color_of: np.ndarray) -> dict[int, tuple[int, ...]]:
    """Number of each one-colored picture that can be seen -> the color at the middle of its left edge."""
    image, found = shown(there.map_view), {}
    for i, color in enumerate(color_of):
        pixels = pixels_of(image, color)
        if len(pixels) and len(pixels) == np.prod(np.ptp(pixels, axis=0) + 1):
            x, y = pixels[:, 0].min() - 1, int(pixels[:, 1].mean())
            if x > 0 and (image[y, x] != GROUND).any() and tuple(image[y, x]) not in set(map(tuple, color_of.tolist())):
                found[i] = tuple(image[y, x].tolist())
    return found


def test_edges_and_legend_tell_the_label(tiny: Network, open_map: Any) -> None:
    labels = [NAMES[i % 3] if i % 4 else None for i in range(COUNT)]
    there = settled(open_map(tiny, ImageSet(plain(), labels=labels), "pca", space="pixels"))
    edges = edge_colors(there, plain()[:, 0, 0])
    assert len(edges) > 6
    for i, color in edges.items():
        assert color == tuple(OTHER if labels[i] is None else CATEGORIES[NAMES.index(labels[i])])
    for name, count in Counter(filter(None, labels)).items():
        assert f"{name}: {count}" in legend(there)
        assert f"rgb{tuple(int(v) for v in CATEGORIES[NAMES.index(name)])}" in there.legend.value


@pytest.mark.parametrize("color", ["label", "cluster"])
def test_the_legend_is_sound_html(color: str, there: EmbeddingMap) -> None:
    there.color = color
    Balanced(there.legend.value)


def test_edges_and_legend_tell_the_prediction(tiny: Network, open_map: Any) -> None:
    there = settled(open_map(tiny, plain(), "pca", space="pixels", color="prediction"))
    best = there.scan.predictions
    for i, color in edge_colors(there, plain()[:, 0, 0]).items():
        assert color == tuple(CATEGORIES[best[i]])
    for c, count in Counter(best.tolist()).items():
        assert f"{tiny.labels[c]}: {count}" in legend(there)


def test_clusters_are_of_what_is_alike(tiny: Network, open_map: Any) -> None:
    kinds = np.repeat(np.arange(4), 6)
    noise = np.random.default_rng(0).integers(0, 9, (COUNT, 16, 16, 3))
    pictures = (np.array([20, 90, 160, 230])[kinds][:, None, None, None] + noise).astype(np.uint8)
    there = settled(open_map(tiny, pictures, "pca", space="pixels", color="cluster"))
    assert there._groups().shape == (COUNT,)
    for group in set(there._groups().tolist()):
        assert len(set(kinds[there._groups() == group])) == 1, "none has pictures of two kinds"
    counts = [int(count) for count in re.findall(r"cluster \d+: (\d+)", legend(there))]
    assert sum(counts) == COUNT
    assert len(counts) == 10
    there.space = "features"
    settled(there)
    assert "cluster" in legend(there)
    assert not there.status.value


def test_no_color_is_no_edges_and_no_legend(tiny: Network, open_map: Any) -> None:
    there = settled(open_map(tiny, plain(), "pca", space="pixels", color="label"))
    there.menus[2].value = "none"
    assert there.color == "none"
    assert not there.legend.value
    colors = {tuple(color) for color in np.unique(shown(there.map_view).reshape(-1, 3), axis=0).tolist()}
    assert colors <= {(GROUND,) * 3, *map(tuple, plain()[:, 0, 0].tolist())}


def test_without_labels_predictions_color_the_edges(tiny: Network, open_map: Any) -> None:
    there = settled(open_map(tiny, plain(), "pca", space="pixels"))
    assert there.color == there.menus[2].value == "prediction"
    assert "class " in legend(there)
    there.color = "label"
    assert "there are no labels" in legend(there)


def test_without_labels_edges_are_gray_and_it_is_told(tiny: Network, open_map: Any) -> None:
    there = settled(open_map(tiny, plain(), "pca", space="pixels", color="label"))
    assert "there are no labels" in legend(there)
    assert set(edge_colors(there, plain()[:, 0, 0]).values()) == {tuple(OTHER.tolist())}


def test_of_many_labels_the_twelve_most_common_are_named(tiny: Network, open_map: Any) -> None:
    there = settled(open_map(tiny, ImageSet(plain(40), labels=[i % 20 for i in range(40)]), "pca"))
    assert legend(there).count(": 2") == 12
    assert "and 8 more" in legend(there)


def test_names_of_labels_are_shown_and_not_run(tiny: Network, open_map: Any) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    there = settled(open_map(tiny, ImageSet(plain(), labels=[0] * COUNT, classes=[nasty]), "pca"))
    there.picked, there.selection = 3, (1, 2)
    for text in (there.legend, there.hover_caption, there.summary):
        assert "<img" not in text.value
        assert "&lt;img" in text.value


# -- walking -------------------------------------------------------------------------------------------------------------


def test_dragging_moves_the_map_by_just_the_pixels(there: EmbeddingMap) -> None:
    before = there.chart.on_screen()
    drag(there, (300, 300), (310, 300), (340, 280))
    assert np.allclose(there.chart.on_screen() - before, (40, -20))
    assert there.picked is None
    assert there.selection == ()
    assert np.array_equal(shown(there.map_view), there._page()[0][0][1])


def test_a_drag_goes_to_where_the_button_was_released_also_if_the_mouse_was_faster_than_its_reports(
    there: EmbeddingMap,
) -> None:
    before = there.chart.on_screen()
    picture = seen_alone(there)[0]
    x, y = on_screen(there, picture)
    mouse(there, "mousedown", x - 60, y + 30, buttons=1)
    mouse(there, "mouseup", x, y)
    assert np.allclose(there.chart.on_screen() - before, (60, -30))
    assert there.picked is None, "that was no click"
    drag(there, (300, 300), (320, 300))
    before = there.chart.on_screen()
    mouse(there, "mousedown", 300, 300, buttons=1)
    mouse(there, "mousemove", 310, 300, buttons=1)
    mouse(there, "mouseup", 350, 310)
    assert np.allclose(there.chart.on_screen() - before, (50, 10))


def test_after_the_release_the_map_rests(there: EmbeddingMap) -> None:
    drag(there, (300, 300), (340, 280))
    after = there.chart
    mouse(there, "mousemove", 400, 400)
    mouse(there, "mousemove", 410, 400, buttons=1)  # a button that was pressed elsewhere
    assert there.chart is after


@pytest.mark.parametrize("end", ["mouseleave", "came back"])
def test_released_outside_of_the_map_a_drag_is_over(end: str, there: EmbeddingMap) -> None:
    mouse(there, "mousedown", 300, 300, buttons=1)
    mouse(there, "mousemove", 330, 300, buttons=1)
    if end == "mouseleave":
        mouse(there, "mouseleave", 330, 300, buttons=1)
    else:
        mouse(there, "mousemove", 330, 300)
    after = there.chart
    for buttons in (0, 1):
        mouse(there, "mousemove", 200, 200, buttons=buttons)
    assert there.chart is after
    assert there.picked is None


@pytest.mark.parametrize("place", [(300, 300), (120, 500), (590, 40)])
def test_the_wheel_zooms_at_the_mouse(place: tuple[float, float], there: EmbeddingMap) -> None:
    mouse(there, "wheel", *place, turn=-1)
    mouse(there, "wheel", *place, turn=-120)
    assert there.chart.zoom == pytest.approx(1.25**2)
    assert there.zoom_slider.value == pytest.approx(there.chart.zoom)
    before = there.chart.on_map(*place)
    mouse(there, "wheel", *place, turn=-3)
    assert there.chart.on_map(*place) == pytest.approx(before)
    for _ in range(9):
        mouse(there, "wheel", *place, turn=1)
    assert (there.chart.x, there.chart.y, there.chart.zoom) == (0.5, 0.5, 1)
    for _ in range(40):
        mouse(there, "wheel", *place, turn=-1)
    assert (there.chart.zoom, there.zoom_slider.value) == (64, 64)


def test_the_last_turn_of_the_wheel_is_seen_though_none_comes_after_it(there: EmbeddingMap) -> None:
    pump = there.map_view.pump
    pump._clock = lambda: 1000.0  # all within one period
    for turn in (1, 2):
        mouse(there, "wheel", 300, 300, turn=-1)
        pump._parts[1].value = turn  # the page answers
    assert np.array_equal(shown(there.map_view), moving(there))


def test_the_zoom_slider_zooms_at_the_middle_and_a_button_shows_all(there: EmbeddingMap) -> None:
    drag(there, (300, 300), (330, 310))
    middle = there.chart.on_map(300, 300)
    there.zoom_slider.value = 8
    assert there.chart.zoom == pytest.approx(8)
    assert there.chart.on_map(300, 300) == pytest.approx(middle)
    assert np.array_equal(shown(there.map_view), moving(there))
    there.whole.click()
    assert (there.chart.x, there.chart.y, there.chart.zoom, there.zoom_slider.value) == (0.5, 0.5, 1, 1)
    assert np.array_equal(shown(there.map_view), there._page()[0][0][1])


def test_thumbnails_grow_as_one_comes_nearer(tiny: Network, open_map: Any) -> None:
    there = settled(open_map(tiny, plain(200), "pca", space="pixels", color="none"))
    before = max(areas(there._page()[0][0][1], plain(200)[:, 0, 0]))
    there.zoom_slider.value = 6
    assert max(areas(there._page()[0][0][1], plain(200)[:, 0, 0])) > 2 * before


# -- one picture ---------------------------------------------------------------------------------------------------------


def test_the_mouse_shows_the_picture_that_it_is_on(there: EmbeddingMap, pictures: np.ndarray) -> None:
    for picture in seen_alone(there)[:3]:
        mouse(there, "mousemove", *on_screen(there, picture))
        assert np.array_equal(shown(there.hover_view)[::12, ::12], pictures[picture])
        assert there.hover_view.layout.visibility == "visible"
        assert f"picture {picture}, {NAMES[picture % 3]}" in there.hover_caption.value
        best, p = there.network.labels[there.scan.predictions[picture]], there.scan.probabilities[picture]
        assert f"the network says: {best} {p:.1%}" in there.hover_caption.value
        assert there.hover_view.alt == f"picture {picture}, {NAMES[picture % 3]}"
        assert there.picked is None
    mouse(there, "mouseleave", 700, 300)
    assert there.hover_view.layout.visibility == "hidden"
    assert not there.hover_caption.value


def test_a_click_picks_a_picture_and_one_beside_all_picks_none(there: EmbeddingMap) -> None:
    picture = seen_alone(there)[0]
    x, y = on_screen(there, picture)
    click(there, x, y)
    assert there.picked == picture
    assert there.map_view.array[int(y), int(x)].shape == (3,)
    assert len(pixels_of(shown(there.map_view), HIGHLIGHT)) > 50
    mouse(there, "mouseleave", 0, 0)
    assert f"picture {picture}" in there.hover_caption.value, "the picked one is seen while the mouse is elsewhere"
    drag(there, (300, 300), (302, 301))
    assert there.chart.x == 0.5, "a hand that trembles moves nothing"
    there.whole.click()
    empty = next((x, y) for x in range(5, 600, 10) for y in range(5, 600, 10) if there._at(x, y) is None)
    click(there, *empty)
    assert there.picked is None
    assert not len(pixels_of(shown(there.map_view), HIGHLIGHT))


def test_of_those_that_cover_each_other_the_mouse_is_on_the_one_that_is_seen(there: EmbeddingMap) -> None:
    """A picked picture lies above all others."""
    below, above = there.frame.arrays["images"][:2].tolist()
    places = np.zeros((COUNT, 2))
    places[:2] = 0.5
    there.chart = replace(there.chart, points=places)
    middle = np.array(on_screen(there, below))
    side = there._tiles.near(there.chart.side).shape[1] // 2
    for picture, behind in ((below, above), (above, below)):
        there.picked = picture
        tile = there._tiles.near(there.chart.side)[there.frame.arrays["images"].tolist().index(picture)]
        left, top = np.floor(middle - side).astype(int)
        assert np.array_equal(shown(there.map_view)[top : top + 2 * side, left : left + 2 * side], tile)
        mouse(there, "mousemove", *middle)
        assert f"picture {picture}," in there.hover_caption.value, f"not {behind}"


def test_pictures_picked_elsewhere_are_marked_here(tiny: Network, labeled: ImageSet, open_map: Any) -> None:
    there = settled(open_map(tiny, labeled, "pca"))
    viewer = settled(open_map(tiny, labeled, kind=NeighborViewer, queries=[0]))
    link(there, viewer)
    picture = seen_alone(there)[0]
    click(there, *on_screen(there, picture))
    settled(viewer)
    assert viewer.queries[0] == picture
    viewer.picked = 7
    settled(viewer)
    assert there.picked == 7
    assert "picture 7" in there.hover_caption.value
    assert len(pixels_of(shown(there.map_view), HIGHLIGHT)) > 50


# -- some pictures -------------------------------------------------------------------------------------------------------


def within(there: EmbeddingMap, x0: float, y0: float, x1: float, y1: float) -> set[int]:
    images = there.frame.arrays["images"].tolist()
    low, high = (min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1))
    return {
        i for i, place in zip(images, there.chart.on_screen(), strict=True) if (place >= low).all() and (place <= high).all()
    }


@pytest.mark.parametrize("how", ["shift", "mode"])
@pytest.mark.parametrize("end", ["mouseup", "mouseleave"])
def test_a_box_chooses_the_pictures_in_it(how: str, end: str, there: EmbeddingMap) -> None:
    if how == "mode":
        there.mode.value = "choose"
    before = there.chart
    drag(there, (500, 450), (300, 300), (150, 100), shift=how == "shift", end=end)
    expected = within(there, 150, 100, 500, 450)
    assert 3 < len(expected) < COUNT
    assert set(there.selection) == expected
    assert there.chart is before, "the map rests"
    counts = Counter(NAMES[i % 3] for i in expected)
    for name, count in counts.items():
        assert f"{count} {name}" in there.summary.value
    assert f"{len(expected)} pictures" in there.summary.value
    assert len(pixels_of(shown(there.map_view), HIGHLIGHT)) > 50 * len(expected)


def test_while_it_is_drawn_the_box_is_seen(there: EmbeddingMap) -> None:
    there.mode.value = "choose"
    mouse(there, "mousedown", 100, 100, buttons=1)
    mouse(there, "mousemove", 400, 300, buttons=1)
    box = pixels_of(there._map(), HIGHLIGHT)
    assert (abs(box.min(0) - 100).max() <= 3, abs(box.max(0) - (400, 300)).max() <= 3) == (True, True)
    mouse(there, "mouseup", 400, 300)
    there.selection = ()
    assert not len(pixels_of(shown(there.map_view), HIGHLIGHT))


def test_a_box_drawn_faster_than_the_mouse_reports_chooses_too(there: EmbeddingMap) -> None:
    mouse(there, "mousedown", 150, 100, buttons=1, shift=True)
    mouse(there, "mouseup", 500, 450, shift=True)
    assert set(there.selection) == within(there, 150, 100, 500, 450)


def test_an_empty_box_or_a_click_beside_all_chooses_none(there: EmbeddingMap) -> None:
    there.selection = (1, 2)
    assert there.chosen_view.layout.display == ""
    there.mode.value = "choose"
    click(there, 2, 2)
    assert there.selection == ()
    there.selection = (1, 2)
    drag(there, (1, 1), (8, 8))
    assert there.selection == ()
    assert there.chosen_view.layout.display == "none"
    assert not there.summary.value


def test_the_chosen_ones_stand_below_and_a_click_picks_one(there: EmbeddingMap) -> None:
    there.selection = (5, 9, 2)
    tiles = shown(there.chosen_view)
    for place, picture in enumerate((5, 9, 2)):
        top, left, bottom, right = there._mosaic.box(place)
        small = fitted(there.scan.thumbnails(np.array([picture]))[0], map_file.TILE)
        assert np.array_equal(tiles[top:bottom, left:right, :3], small)
        there.chosen_view.on_mouse({"type": "click", "relativeX": left + 20, "relativeY": top + 20})
        assert there.picked == picture
        there.picked = None
    there.chosen_view.on_mouse({"type": "click", "relativeX": 5000, "relativeY": 20})
    assert there.picked is None


def test_of_many_chosen_ones_sixty_are_shown_and_all_counted(tiny: Network, open_map: Any) -> None:
    there = settled(open_map(tiny, plain(70), "pca"))
    there.selection = tuple(range(70))
    assert len(there._mosaic) == 60
    assert "70 pictures" in there.summary.value
    there.picked = 65
    assert not there.status.value


def test_a_selection_can_be_given_beforehand(tiny: Network, labeled: ImageSet, open_map: Any) -> None:
    there = settled(open_map(tiny, labeled, "pca", selection=(3, 4), picked=5))
    assert (there.selection, there.picked) == ((3, 4), 5)
    assert "2 pictures" in there.summary.value
    assert "picture 5" in there.hover_caption.value
    with pytest.raises(traitlets.TraitError, match=f"there is no picture {COUNT}; give indices from 0 to {COUNT - 1}"):
        there.selection = (3, COUNT)
    with pytest.raises(traitlets.TraitError, match="2.5"):
        there.selection = (2.5,)
    assert there.selection == (3, 4)


# -- sets that are small or bad ------------------------------------------------------------------------------------------


def test_of_fewer_than_four_pictures_there_is_no_map_and_it_says_so(
    tiny: Network, pictures: np.ndarray, open_map: Any
) -> None:
    there = settled(open_map(tiny, pictures[:3]))
    assert "a map needs four pictures or more" in there.status.value
    mouse(there, "wheel", 300, 300, turn=-1)
    click(there, 300, 300)
    there.arrangement, there.color, there.selection, there.picked = "grid", "cluster", (1,), 2
    assert "picture 2" in there.hover_caption.value
    assert there.snapshot().shape[2] == 3
    assert "a map needs four pictures" in there.status.value


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_of_four_pictures_there_is_a_map(method: str, tiny: Network, pictures: np.ndarray, open_map: Any) -> None:
    there = settled(open_map(tiny, pictures[:4], method, color="cluster"))
    assert not there.status.value
    assert len(there.chart.points) == 4


@pytest.mark.parametrize("color", ["none", "cluster"])
def test_pictures_that_are_all_alike_have_a_map(color: str, tiny: Network, open_map: Any) -> None:
    there = settled(open_map(tiny, np.full((9, 16, 16, 3), 99, np.uint8), "pca", color=color))
    assert there.run.state == "done"
    assert not there.status.value
    assert len(pixels_of(shown(there.map_view), (99, 99, 99))) > 50


def test_pictures_that_cannot_be_read_are_left_out_and_named(tiny: Network, open_map: Any, tmp_path: Path) -> None:
    there = settled(open_map(tiny, written(tmp_path / "pictures", 8, [2]), "pca", color="cluster"))
    assert "1 of 8 pictures could not be read: 2.png" in there.trouble.value
    assert there.frame.arrays["images"].tolist() == [0, 1, 3, 4, 5, 6, 7]
    assert not there.status.value
    for picture in seen_alone(there):
        mouse(there, "mousemove", *on_screen(there, picture))
        assert f"{picture}.png" in there.hover_caption.value
        click(there, *on_screen(there, picture))
        assert there.picked == picture
    drag(there, (0, 0), (599, 599), shift=True)
    assert set(there.selection) == set(there.frame.arrays["images"].tolist())
    there.picked = 2  # as in a linked widget
    mouse(there, "mouseleave", 0, 0)
    assert there.hover_view.layout.visibility == "hidden"


def test_handwritten_digits_for_a_gray_network(open_map: Any) -> None:
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 10)))
    digits = load_digits()
    images = ImageSet((digits.images[:60] / 16).astype(np.float32), labels=digits.target[:60].tolist())
    there = settled(open_map(net, images, "pca", space="pixels"))
    assert not there.status.value
    assert "7: " in legend(there)
    picture = seen_alone(there)[0]
    mouse(there, "mousemove", *on_screen(there, picture))
    whole = shown(there.hover_view)
    assert np.array_equal(whole[::6, ::6], np.repeat(there.scan.view(picture), 3, 2))
    assert there.snapshot().std() > 5


def test_without_a_word_it_is_t_sne_of_toyscapes_features(open_map: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convis_widgets.widgets.set_viewer.picture_set", lambda _net: ImageSet(demo.Toyscape(40, seed=3)))
    there = settled(open_map())
    assert there.network is Network.demo()
    assert "40 pictures by t-SNE of their features" in there.map_view.alt
    for label in demo.LABELS:
        assert f"{label}: 4" in legend(there)
    assert not there.status.value


# -- making, closing, saving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"method": "umap"}, traitlets.TraitError, "tsne"),
        ({"space": "pixel"}, traitlets.TraitError, "pixels"),
        ({"color": "red"}, traitlets.TraitError, "prediction"),
        ({"arrangement": "circle"}, traitlets.TraitError, "scatter"),
        ({"perplexity": 1}, ValueError, "perplexity=1 is outside 2 to 200"),
        ({"selection": (COUNT,)}, traitlets.TraitError, f"there is no picture {COUNT}"),
        ({"picked": -1}, traitlets.TraitError, "there is no picture -1"),
        ({"metod": "pca"}, TypeError, "EmbeddingMap has no keyword 'metod'; nearest: method"),
        ({"images": "nowhere"}, FileNotFoundError, "nowhere does not exist"),
    ],
)
def test_what_could_not_be_made_says_why_and_leaves_nothing_behind(
    keywords: dict[str, Any], error: type[Exception], message: str, tiny: Network, pictures: np.ndarray
) -> None:
    before = set(_instances)
    with pytest.raises(error, match=message):
        EmbeddingMap(tiny, **({"images": pictures} | keywords))
    assert [type(_instances[key]).__name__ for key in set(_instances) - before] == []


def test_wrong_values_later_change_nothing(there: EmbeddingMap) -> None:
    run = there.run
    for name, wrong in (("method", "umap"), ("space", ""), ("color", 3), ("arrangement", None), ("perplexity", 1000.0)):
        with pytest.raises((traitlets.TraitError, ValueError)):
            setattr(there, name, wrong)
    assert there.run is run
    assert there.perplexity == 30


def test_what_is_saved_is_the_map_and_the_chosen_pictures(there: EmbeddingMap, tmp_path: Path) -> None:
    there.selection = (1, 2, 3)
    panels, lines = there._page()
    assert [title for title, _ in panels] == [there.map_view.alt, "3 chosen pictures"]
    assert np.array_equal(panels[0][1], shown(there.map_view))
    assert "tiny" in lines[0]
    path = there.save(tmp_path / "map.png")
    assert np.array_equal(np.asarray(Image.open(path)), there.snapshot())


def test_every_picture_has_words(there: EmbeddingMap) -> None:
    def below(box: Any) -> list[Any]:
        return [box, *(w for child in getattr(box, "children", ()) for w in below(child))]

    there.selection, there.picked = (1, 2), 3
    seen = [w for w in below(there) if isinstance(w, ipywidgets.Image) and w.layout.visibility != "hidden"]
    assert len(seen) == 3
    assert all(view.tooltip for view in seen)


def test_closed_while_it_computes_it_ends(tiny: Network, labeled: ImageSet, gate: Gate) -> None:
    there = EmbeddingMap(tiny, labeled)
    run = there.run
    gate.let()
    reached(run, lambda run: run.last is not None and run.last.step > 1)
    there.close()
    gate.let(1000)
    assert run.join(PATIENCE)
    assert run.state == "stopped"
    there.method = "pca"
    there.bar.on_start()
    assert there.run is None


def test_closed_it_is_forgotten(tiny: Network, labeled: ImageSet) -> None:
    settled(EmbeddingMap(tiny, labeled, "pca")).close()
    before = set(_instances)
    there = settled(EmbeddingMap(tiny, labeled))
    there.selection, there.picked = (1, 2), 3
    mouse(there, "wheel", 300, 300, turn=-1)
    there._repr_mimebundle_()
    there.close()
    assert [type(_instances[key]).__name__ for key in set(_instances) - before] == []


def test_a_large_label_is_a_color_like_any_other(tiny: Network, open_map: Any) -> None:
    there = settled(open_map(tiny, ImageSet(plain(), labels=[10**9] * COUNT), "pca"))
    assert there.run.state == "done"
    assert "1000000000: 24" in legend(there)


def test_true_is_no_picture(tiny: Network, there: EmbeddingMap) -> None:
    with pytest.raises(traitlets.TraitError, match="there is no picture True"):
        there.picked = True
    assert not there.status.value
