"""NeighborViewer, without a browser."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
import traitlets
from ipywidgets.widgets.widget import _instances
from PIL import Image
from seen import PATIENCE, Slow, finished, opening, settled, shown, written
from torch import nn

from convis_widgets import MaxPatchGallery, NeighborViewer, Network, demo, link
from convis_widgets.core import Frame, ImageSet, Run, Scan
from convis_widgets.core import examine as examine_file
from convis_widgets.techniques import neighbors
from convis_widgets.widgets.neighbor_viewer import EDGE, GAP, HEAD, OTHER, SAME, TILE, UNKNOWN
from convis_widgets.widgets.patches import fitted

KINDS = 3

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def pictures() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (15, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def labeled(pictures: np.ndarray) -> ImageSet:
    return ImageSet(pictures, labels=[i % KINDS for i in range(15)], classes=["ant", "bee", "cat"])


@pytest.fixture
def open_viewer() -> Iterator[Callable[..., NeighborViewer]]:
    with opening(NeighborViewer) as make:
        yield make


@pytest.fixture
def viewer(tiny: Network, labeled: ImageSet, open_viewer: Any) -> NeighborViewer:
    return settled(open_viewer(tiny, labeled, queries=[3, 11], k=4))


def corner(row: int, column: int, k: int) -> tuple[int, int]:
    """(x, y) of a cell of the table, worked out by hand: a query, k neighbors in pixels, k in features."""
    step = TILE + 2 * EDGE + 2
    return column * step + (column > 0) * GAP + (column > k) * GAP, HEAD + row * step


def on(row: int, column: int, k: int = 4) -> dict[str, Any]:
    """The mouse in the middle of a cell."""
    x, y = corner(row, column, k)
    return {"type": "click", "relativeX": x + EDGE + TILE / 2, "relativeY": y + EDGE + TILE / 2}


def table(viewer: NeighborViewer) -> list[list[int]]:
    """The rows of the table as the technique alone gives them, -1 for none."""
    last = Run(neighbors(viewer.network, viewer.scan, viewer.queries, k=viewer.k, metric=viewer.metric)).run().arrays
    rows = zip(viewer.queries, last["pixels"], last["features"], strict=True)
    return [[query, *pixels.tolist(), *features.tolist()] for query, pixels, features in rows]


def assert_shows(viewer: NeighborViewer, rows: list[list[int]]) -> None:
    """The picture of the table, pixel by pixel: pictures, and frames that tell whether the labels are the same."""
    image, labels = shown(viewer.table), viewer.scan.labels
    for row, indices in enumerate(rows):
        for column, index in enumerate(indices):
            x, y = corner(row, column, viewer.k)
            cell = image[y : y + TILE + 2 * EDGE, x : x + TILE + 2 * EDGE]
            if index < 0:
                assert (cell[..., 3] == 0).all()
                continue
            assert np.array_equal(cell[EDGE:-EDGE, EDGE:-EDGE, :3], fitted(viewer.scan.view(index), TILE))
            known = min(labels[indices[0]], labels[index]) >= 0
            edge = (SAME if labels[indices[0]] == labels[index] else OTHER) if known else UNKNOWN
            frame = np.concatenate([cell[:EDGE].reshape(-1, 4), cell[-EDGE:].reshape(-1, 4), cell[:, 0], cell[:, -1]])
            assert (frame == (edge if column else 0)).all()
    assert image.shape[0] == corner(len(rows), 0, viewer.k)[1]


# -- the table -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["L2", "cosine"])
@pytest.mark.parametrize("k", [1, 4, 12])
def test_the_table_shows_what_neighbors_finds(
    k: int, metric: str, tiny: Network, labeled: ImageSet, open_viewer: Any
) -> None:
    viewer = settled(open_viewer(tiny, labeled, queries=[3, 11, 0], k=k, metric=metric))
    rows = table(viewer)
    assert len(rows[0]) == 1 + 2 * k
    assert_shows(viewer, rows)
    assert not viewer.status.value


def test_frames_and_the_caption_tell_how_often_the_labels_are_the_same(viewer: NeighborViewer) -> None:
    labels = viewer.scan.labels
    for name, columns in (("pixels", range(1, 5)), ("features", range(5, 9))):
        rows = table(viewer)
        same = [labels[row[column]] == labels[row[0]] for row in rows for column in columns]
        assert f"{np.mean(same):.0%} in {name}" in viewer.caption.value
        image = shown(viewer.table)
        corners = [corner(row, column, 4) for row in range(2) for column in columns]
        green = [tuple(image[y, x]) == SAME for x, y in corners]
        assert green == same


def test_a_small_set_leaves_cells_empty(tiny: Network, pictures: np.ndarray, open_viewer: Any) -> None:
    viewer = settled(open_viewer(tiny, pictures[:3], queries=[1]))
    assert table(viewer)[0][3:6] == [-1, -1, -1]
    assert_shows(viewer, table(viewer))
    viewer.table.on_mouse(on(0, 4, 5))
    assert viewer.picked is None
    viewer.table.on_mouse(on(0, 4, 5) | {"type": "mousemove"})
    assert not viewer.hover.value
    alone = settled(open_viewer(tiny, pictures[:1]))
    assert not alone.status.value
    assert alone.queries == (0,)


def test_without_labels_frames_are_gray(tiny: Network, pictures: np.ndarray, open_viewer: Any) -> None:
    viewer = settled(open_viewer(tiny, pictures, queries=[2, 7]))
    assert_shows(viewer, table(viewer))
    assert "the pictures have no labels to compare" in viewer.caption.value
    assert tuple(shown(viewer.table)[HEAD, corner(0, 1, 5)[0]]) == UNKNOWN
    viewer.all_button.click()
    settled(viewer)
    assert "no labels" in viewer.agreement.value


def test_where_some_have_labels_only_those_are_compared(tiny: Network, pictures: np.ndarray, open_viewer: Any) -> None:
    labels = [i % 2 if i % 3 else None for i in range(15)]
    viewer = settled(open_viewer(tiny, ImageSet(pictures, labels=labels), queries=[1, 3]))
    assert_shows(viewer, table(viewer))
    x, y = corner(1, 1, 5)
    assert tuple(shown(viewer.table)[y, x]) == UNKNOWN, "picture 3 has no label"


def test_without_a_word_six_pictures_of_the_set_are_the_queries(tiny: Network, labeled: ImageSet, open_viewer: Any) -> None:
    one, other = (settled(open_viewer(tiny, labeled)) for _ in range(2))
    assert len(set(one.queries)) == 6
    assert one.queries == other.queries
    assert_shows(one, table(one))


def test_queries_found_while_the_widget_is_still_being_made_leave_it_alive(
    tiny: Network, labeled: ImageSet, open_viewer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Run that sets controls quietly must not make the widget deaf when its constructor ends meanwhile."""
    within, made, quietly, start = threading.Event(), threading.Event(), NeighborViewer.quietly, Run.start

    @contextlib.contextmanager
    def slowly(viewer: NeighborViewer) -> Iterator[None]:
        with quietly(viewer):
            yield
            if threading.current_thread().name == "convis-run":
                within.set()
                made.wait(0.2)  # unless the constructor is waiting for this

    monkeypatch.setattr(NeighborViewer, "quietly", slowly)
    monkeypatch.setattr(Run, "start", lambda run: (start(run), within.wait(PATIENCE))[0])
    viewer = open_viewer(tiny, labeled)
    made.set()
    monkeypatch.undo()
    settled(viewer)
    viewer.table.on_mouse(on(0, 1, 5))
    settled(viewer)
    assert viewer.picked is not None
    assert viewer.queries[0] == viewer.picked


def test_gray_pictures(open_viewer: Any) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 10)))
    digits = np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8)
    viewer = settled(open_viewer(net, ImageSet(digits, labels=range(8)), picked=2, k=3))
    assert viewer.queries == (2,)
    assert_shows(viewer, table(viewer))
    whole = shown(viewer.whole_view)
    assert whole.shape == (168, 168, 3)
    assert np.array_equal(whole[::6, ::6], np.repeat(viewer.scan.view(2), 3, 2))


# -- the mouse -----------------------------------------------------------------------------------------------------------


def test_a_click_makes_a_neighbor_the_query(viewer: NeighborViewer) -> None:
    rows = table(viewer)
    chosen = rows[1][6]
    viewer.table.on_mouse(on(1, 6))
    settled(viewer)
    assert viewer.picked == chosen
    assert viewer.queries[0] == chosen
    assert set(viewer.queries) == {3, 11, chosen}
    assert viewer.query_field.value == chosen
    assert_shows(viewer, table(viewer))
    assert f"picture {chosen}" in viewer.whole_caption.value


def test_a_query_that_is_clicked_goes_to_the_top_and_stands_there_once(viewer: NeighborViewer) -> None:
    viewer.table.on_mouse(on(1, 0))
    settled(viewer)
    assert viewer.queries == (11, 3)
    assert_shows(viewer, table(viewer))


def test_the_picture_picked_last_can_be_clicked_again(viewer: NeighborViewer) -> None:
    viewer.picked = 7
    viewer.queries = (3, 11, 7)
    settled(viewer)
    viewer.table.on_mouse(on(2, 0))
    settled(viewer)
    assert viewer.queries[0] == 7


def test_a_table_is_about_its_own_queries_whatever_is_asked_meanwhile(viewer: NeighborViewer) -> None:
    def frames() -> Iterator[Frame]:
        for frame in viewer._frames((3, 11), 4, "L2"):
            next(viewer._frames((7, 3, 11), 4, "L2"))  # of a Run that has been stopped and does not know it yet
            yield frame

    viewer.launch(frames(), viewer._arrived)
    settled(viewer)
    viewer.table.on_mouse(on(1, 0))
    settled(viewer)
    assert viewer.picked == 11


def test_of_many_clicks_the_last_six_remain(viewer: NeighborViewer) -> None:
    for index in (0, 1, 2, 4, 5, 6, 8):
        viewer.picked = index
        settled(viewer)
    assert viewer.queries == (8, 6, 5, 4, 2, 1)
    viewer.queries = tuple(range(9))
    viewer.picked = 10
    settled(viewer)
    assert viewer.queries == (10, *range(8)), "as many as there were"


def test_between_the_pictures_and_beside_the_table_nothing_happens(viewer: NeighborViewer) -> None:
    width, height = corner(0, 9, 4)[0], corner(2, 0, 4)[1]
    before_pixels, before_features = corner(0, 1, 4)[0] - GAP / 2, corner(0, 5, 4)[0] - GAP / 2
    for x, y in ((5, 5), (before_pixels, 50), (before_features, 50), (width + 30, 50), (5, height + 5), (-5, 50), (5, -5)):
        viewer.table.on_mouse({"type": "click", "relativeX": x, "relativeY": y})
        assert viewer.picked is None
        assert viewer.queries == (3, 11)


def test_the_mouse_tells_name_label_and_distance_and_shows_the_picture(viewer: NeighborViewer) -> None:
    rows = table(viewer)
    arrays = viewer.frame.arrays
    for column, name, at in ((2, "pixels", 1), (8, "features", 3)):
        index = rows[1][column]
        viewer.table.on_mouse(on(1, column) | {"type": "mousemove"})
        distance = arrays[f"{name} distance"][1, at]
        label = ["ant", "bee", "cat"][index % KINDS]
        assert f"picture {index}, {label}: L2 distance {distance:.3g} in {name}" in viewer.hover.value
        whole = shown(viewer.whole_view)
        assert np.array_equal(whole[::12, ::12], viewer.scan.view(index))
        best, p = viewer.network.labels[viewer.scan.predictions[index]], viewer.scan.probabilities[index]
        assert f"the network says: {best} {p:.1%}" in viewer.whole_caption.value
    viewer.table.on_mouse(on(0, 0) | {"type": "mousemove"})
    assert "picture 3, ant" in viewer.hover.value
    assert "distance" not in viewer.hover.value
    assert viewer.queries == (3, 11)
    viewer.table.on_mouse({"type": "mouseleave"})
    assert not viewer.hover.value
    assert viewer.whole_view.layout.visibility == "hidden"
    viewer.picked = 5
    settled(viewer)
    viewer.table.on_mouse(on(1, 2) | {"type": "mousemove"})
    viewer.table.on_mouse({"type": "mouseleave"})
    assert np.array_equal(shown(viewer.whole_view)[::12, ::12], viewer.scan.view(5)), "the picked one is seen again"


def test_before_there_is_a_table_the_mouse_does_nothing(tiny: Network, slow: Any, open_viewer: Any) -> None:
    viewer = open_viewer(tiny, slow, queries=[1])
    for event in (on(0, 1), on(0, 0) | {"type": "mousemove"}, {"type": "mouseleave"}):
        viewer.table.on_mouse(event)
    assert not viewer.status.value
    assert viewer.picked is None
    panels, lines = viewer._page()
    assert not panels
    assert "no neighbors yet" in lines[0]
    assert viewer.snapshot().shape[2] == 3


# -- what is asked -------------------------------------------------------------------------------------------------------


def test_metric_and_k_are_turned_on_screen_or_as_traits(viewer: NeighborViewer) -> None:
    viewer.metric_menu.value = "cosine"
    viewer.k_slider.value = 2
    settled(viewer)
    assert (viewer.metric, viewer.k) == ("cosine", 2)
    assert_shows(viewer, table(viewer))
    viewer.table.on_mouse(on(0, 1, 2) | {"type": "mousemove"})
    assert "cosine distance" in viewer.hover.value
    viewer.metric, viewer.k = "L2", 6
    settled(viewer)
    assert (viewer.metric_menu.value, viewer.k_slider.value) == ("L2", 6)
    assert_shows(viewer, table(viewer))
    for name, wrong in (("metric", "l1"), ("k", 0), ("k", 13)):
        with pytest.raises(traitlets.TraitError):
            setattr(viewer, name, wrong)


def test_a_number_in_the_field_is_the_first_query(viewer: NeighborViewer) -> None:
    assert (viewer.query_field.min, viewer.query_field.max) == (0, 14)
    viewer.query_field.value = 9
    settled(viewer)
    assert viewer.queries == (9, 3, 11)
    assert viewer.picked == 9


@pytest.mark.parametrize(
    ("queries", "expected"), [(5, (5,)), (np.int64(5), (5,)), (np.array([2, 1]), (2, 1)), (range(3), (0, 1, 2))]
)
def test_queries_come_as_one_number_or_many(
    queries: Any, expected: tuple[int, ...], tiny: Network, pictures: np.ndarray, open_viewer: Any
) -> None:
    viewer = settled(open_viewer(tiny, pictures, queries=queries))
    assert viewer.queries == expected
    assert all(type(query) is int for query in viewer.queries)


def test_the_picked_picture_is_the_query(tiny: Network, pictures: np.ndarray, open_viewer: Any) -> None:
    viewer = settled(open_viewer(tiny, pictures, picked=4))
    assert viewer.queries == (4,)
    assert "picture 4" in viewer.whole_caption.value


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"queries": [15]}, traitlets.TraitError, "there is no picture 15; give indices from 0 to 14"),
        ({"queries": [2, -1]}, traitlets.TraitError, "there is no picture -1"),
        ({"queries": []}, traitlets.TraitError, "there is no query; give indices from 0 to 14"),
        ({"queries": [1.5]}, traitlets.TraitError, "1.5"),
        ({"queries": ["first"]}, traitlets.TraitError, "first"),
        ({"picked": 15}, traitlets.TraitError, "there is no picture 15"),
        ({"metric": "l2"}, traitlets.TraitError, "metric"),
        ({"k": 0}, traitlets.TraitError, "k"),
        ({"query": [1]}, TypeError, "has no keyword 'query'; nearest: queries"),
        ({"images": "nowhere"}, FileNotFoundError, "nowhere does not exist"),
    ],
)
def test_what_could_not_be_made_says_why_and_leaves_nothing_behind(
    keywords: dict[str, Any], error: type[Exception], message: str, tiny: Network, pictures: np.ndarray
) -> None:
    before = set(_instances)
    with pytest.raises(error, match=message):
        NeighborViewer(tiny, **({"images": pictures} | keywords))
    assert [type(_instances[key]).__name__ for key in set(_instances) - before] == []


def test_wrong_queries_later_change_nothing(viewer: NeighborViewer) -> None:
    for wrong in ((15,), (-1,), (), (1.5,)):
        with pytest.raises(traitlets.TraitError):
            viewer.queries = wrong
    with pytest.raises(traitlets.TraitError, match="there is no picture 15"):
        viewer.picked = 15
    assert viewer.queries == (3, 11)
    assert_shows(viewer, table(viewer))


# -- the whole set -------------------------------------------------------------------------------------------------------


def agreement_by_hand(rows: np.ndarray, labels: np.ndarray, k: int, metric: str) -> float:
    same = []
    for i, row in enumerate(rows):
        distance = np.linalg.norm(rows - row, axis=1)
        if metric == "cosine":
            distance = 1 - rows @ row / np.linalg.norm(rows, axis=1) / np.linalg.norm(row)
        order = [j for j in np.argsort(distance, kind="stable") if j != i][:k]
        same += [labels[j] == labels[i] for j in order]
    return float(np.mean(same))


@pytest.mark.parametrize("metric", ["L2", "cosine"])
def test_slow_twin_the_agreement_of_the_whole_set(
    metric: str, tiny: Network, labeled: ImageSet, pictures: np.ndarray, open_viewer: Any
) -> None:
    viewer = settled(open_viewer(tiny, labeled, queries=[3], k=4, metric=metric))
    before = shown(viewer.table)
    viewer.all_button.click()
    settled(viewer)
    labels = np.arange(15) % KINDS
    for name, rows in (("pixels", pictures.reshape(15, -1) / 255), ("features", viewer.scan.features())):
        share = agreement_by_hand(rows.astype(np.float64), labels, 4, metric)
        assert f"{share:.0%} in {name}" in viewer.agreement.value
    assert "of 15 pictures" in viewer.agreement.value
    assert np.array_equal(shown(viewer.table), before), "the table stays"
    assert any("of 15 pictures" in line for line in viewer._page()[1])


def test_an_agreement_is_told_only_of_the_metric_and_k_on_screen(viewer: NeighborViewer) -> None:
    viewer.all_button.click()
    settled(viewer)
    viewer.queries = (5,)
    settled(viewer)
    assert "of 15 pictures" in viewer.agreement.value, "whatever the queries are"
    for name, value in (("metric", "cosine"), ("k", 1)):
        viewer.all_button.click()
        settled(viewer)
        assert "of 15 pictures" in viewer.agreement.value
        setattr(viewer, name, value)
        settled(viewer)
        assert not viewer.agreement.value
        assert not any("of 15 pictures" in line for line in viewer._page()[1])


def test_of_large_sets_500_pictures_are_asked_about(
    tiny: Network, open_viewer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convis_widgets.widgets.neighbor_viewer.ALL", 10)
    many = np.random.default_rng(0).integers(0, 256, (33, 16, 16, 3), dtype=np.uint8)
    viewer = settled(open_viewer(tiny, ImageSet(many, labels=[i % 2 for i in range(33)]), queries=[0]))
    viewer.all_button.click()
    settled(viewer)
    assert "of 10 pictures" in viewer.agreement.value


@pytest.fixture
def slow(pictures: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    monkeypatch.setattr(examine_file, "passes", lambda *_: 5)
    images = Slow(pictures)
    images.targets = [i % KINDS for i in range(len(pictures))]
    yield images
    images.gate.release(1000)


def test_asked_about_the_whole_set_while_it_scans_it_still_comes_to_its_table(
    tiny: Network, slow: Slow, open_viewer: Any
) -> None:
    viewer = open_viewer(tiny, slow, queries=[3])
    slow.gate.release(5)
    viewer.all_button.click()
    slow.gate.release(10)
    finished(viewer)
    assert "of 15 pictures" in viewer.agreement.value
    assert viewer.frame is not None
    assert_shows(viewer, table(viewer))


def test_another_question_while_it_scans_is_answered_in_the_end(tiny: Network, slow: Slow, open_viewer: Any) -> None:
    viewer = open_viewer(tiny, slow, queries=[3])
    slow.gate.release(5)
    viewer.queries, viewer.k, viewer.metric = (14, 2), 2, "cosine"
    slow.gate.release(10)
    settled(viewer)
    assert_shows(viewer, table(viewer))


def test_stopped_while_it_scans_it_goes_on_when_it_is_started(tiny: Network, slow: Slow, open_viewer: Any) -> None:
    viewer = open_viewer(tiny, slow, queries=[3])
    run = viewer.run
    viewer.bar.on_stop()
    slow.gate.release(15)
    assert run.join(PATIENCE)
    assert (run.state, viewer.frame) == ("stopped", None)
    viewer.bar.on_start()
    settled(viewer)
    assert_shows(viewer, table(viewer))


def test_closed_while_it_scans_it_ends(tiny: Network, slow: Slow) -> None:
    viewer = NeighborViewer(tiny, slow, queries=[3])
    run = viewer.run
    viewer.close()
    slow.gate.release(15)
    assert run.join(PATIENCE)
    assert run.state == "stopped"
    viewer.bar.on_start()
    assert viewer.run is None


# -- files ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [(2,), (0, 1, 3)])
def test_one_bad_file_among_pictures_that_nobody_chose_is_no_reason_to_show_nothing(
    bad: tuple[int, ...], tiny: Network, open_viewer: Any, tmp_path: Path
) -> None:
    viewer = finished(open_viewer(tiny, written(tmp_path / "pictures", 5, bad)))
    assert not viewer.status.value
    assert not set(bad) & set(viewer.queries)
    assert_shows(viewer, table(viewer))
    assert f"{len(bad)} of 5 pictures could not be read: {bad[0]}.png" in viewer.trouble.value


def test_a_query_that_cannot_be_read_is_told_and_left_out(tiny: Network, open_viewer: Any, tmp_path: Path) -> None:
    viewer = finished(open_viewer(tiny, written(tmp_path / "pictures", 5, (2,)), queries=[1]))
    before = shown(viewer.table)
    viewer.queries = (1, 2)
    settled(viewer)
    assert "2.png could not be read" in viewer.caption.value
    assert np.array_equal(shown(viewer.table), before)
    viewer.table.on_mouse(on(0, 1, 5) | {"type": "mousemove"})
    assert ".png" in viewer.hover.value
    for index in (2, 0, 4):
        viewer.picked = index
        settled(viewer)
        assert not viewer.status.value
    assert viewer.frame.arrays["query"].tolist() == [4, 0, 1]
    assert viewer.frame.arrays["features"].shape == (3, 5)
    viewer.queries = (2,)
    settled(viewer)
    assert "picture 2 could not be read; choose another one" in viewer.status.value


def test_the_whole_set_is_asked_about_without_those_that_cannot_be_read(
    tiny: Network, open_viewer: Any, tmp_path: Path
) -> None:
    viewer = settled(open_viewer(tiny, written(tmp_path / "pictures", 6, (2,)), queries=[1]))
    viewer.all_button.click()
    settled(viewer)
    assert viewer.run.state == "done"
    assert not viewer.status.value


# -- linked --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def toyscape(tmp_path: Path) -> Scan:
    scan = Scan(Network.demo(), demo.Toyscape(20, seed=3), cache=tmp_path / "toyscape")
    Run(scan.frames()).run()
    return scan


def patch_in(gallery: MaxPatchGallery, channel: int, j: int) -> dict[str, Any]:
    height, width = gallery.rows.image.shape[:2]
    x, y = next((x, y) for y in range(2, height, 4) for x in range(1, width, 4) if gallery.rows.at(x, y) == (channel, j))
    return {"type": "click", "relativeX": x, "relativeY": y}


def test_the_picture_of_a_patch_is_the_query_of_a_linked_viewer(toyscape: Scan, open_viewer: Any) -> None:
    gallery = open_viewer(images=toyscape, kind=MaxPatchGallery, projection="none")
    viewer = settled(open_viewer(images=toyscape, queries=[0]))
    link(gallery, viewer)
    gallery.rows_view.on_mouse(patch_in(gallery, 7, 3))
    settled(viewer)
    assert viewer.picked == gallery.picked == toyscape.top("conv1").images[7, 3]
    assert viewer.queries == tuple(dict.fromkeys([viewer.picked, 0]))
    assert_shows(viewer, table(viewer))
    viewer.table.on_mouse(on(0, 2, 5))
    assert gallery.picked == viewer.picked == viewer.queries[0]


@pytest.mark.parametrize("first", ["gallery", "viewer"])
def test_linking_begins_with_the_picture_that_is_picked(first: str, toyscape: Scan, open_viewer: Any) -> None:
    gallery = open_viewer(images=toyscape, kind=MaxPatchGallery, projection="none")
    viewer = settled(open_viewer(images=toyscape, queries=[0]))
    {"gallery": gallery, "viewer": viewer}[first].picked = 5
    link(gallery, viewer)
    assert gallery.picked == viewer.picked == 5


def test_widgets_of_different_sets_share_no_picture(toyscape: Scan, open_viewer: Any, tmp_path: Path) -> None:
    other = Scan(toyscape.net, demo.Toyscape(20, seed=4), layers="conv1", cache=tmp_path)
    gallery = open_viewer(images=toyscape, kind=MaxPatchGallery, projection="none")
    viewer = settled(open_viewer(images=other, queries=[0]))
    with pytest.raises(ValueError, match="has no selection in common with the others"):
        link(gallery, viewer)
    another = open_viewer(images=other, kind=MaxPatchGallery, projection="none")
    link(gallery, another, settled(open_viewer(images=toyscape, queries=[0])))
    gallery.rows_view.on_mouse(patch_in(gallery, 7, 3))
    assert gallery.picked is not None
    assert another.picked is None
    assert viewer.queries == (0,)
    assert another.unit == gallery.unit, "the unit is still shared"


# -- pictures of it ------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_the_table_with_what_it_means(viewer: NeighborViewer, tmp_path: Path) -> None:
    panels, lines = viewer._page()
    assert np.array_equal(panels[0][1], shown(viewer.table))
    assert "L2" in lines[0]
    assert "with the label of their query" in lines[1]
    path = viewer.save(tmp_path / "neighbors.png")
    assert np.array_equal(np.asarray(Image.open(path)), viewer.snapshot())


def test_every_picture_has_words(viewer: NeighborViewer) -> None:
    def below(box: Any) -> list[Any]:
        return [box, *(w for child in getattr(box, "children", ()) for w in below(child))]

    viewer.picked = 1
    settled(viewer)
    seen = [w for w in below(viewer) if isinstance(w, ipywidgets.Image) and w.layout.visibility != "hidden"]
    assert len(seen) == 2
    assert all(view.tooltip for view in seen)


def test_html_in_names_is_shown_and_not_run(tiny: Network, pictures: np.ndarray, open_viewer: Any) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    viewer = settled(open_viewer(tiny, ImageSet(pictures, labels=[0] * 15, classes=[nasty]), queries=[1], picked=2))
    viewer.table.on_mouse(on(0, 1, 5) | {"type": "mousemove"})
    for text in (viewer.hover, viewer.whole_caption, viewer.caption):
        assert "<img" not in text.value
    assert "&lt;img" in viewer.hover.value


def test_closed_it_is_forgotten(tiny: Network, labeled: ImageSet) -> None:
    settled(NeighborViewer(tiny, labeled)).close()
    before = set(_instances)
    viewer = settled(NeighborViewer(tiny, labeled))
    viewer._repr_mimebundle_()
    viewer.close()
    assert [type(_instances[key]).__name__ for key in set(_instances) - before] == []


def test_pictures_that_are_gone_are_gray_and_named(tiny: Network, open_viewer: Any, tmp_path: Path) -> None:
    folder = written(tmp_path / "pictures", 6)
    Run(Scan(tiny, folder).frames()).run()
    scan = Scan(tiny, folder)
    (folder / "3.png").unlink()
    viewer = settled(open_viewer(tiny, scan, queries=[3, 1], k=5))
    assert viewer.run.state == "done"
    assert not viewer.status.value
    assert "3.png does not exist" in viewer.trouble.value
    x, y = corner(0, 0, 5)
    assert (shown(viewer.table)[y + EDGE : y + EDGE + TILE, x + EDGE : x + EDGE + TILE, :3] == 128).all()
    assert viewer.frame.arrays["pixels"][0].tolist() == [-1] * 5
    assert 3 in viewer.frame.arrays["features"][1]


def test_a_page_says_how_many_pictures_it_is_of(tiny: Network, open_viewer: Any, tmp_path: Path) -> None:
    viewer = finished(open_viewer(tiny, written(tmp_path / "pictures", 6, (1, 4))))
    assert viewer._page()[1][0] == "tiny, pictures, 4 of 6 pictures, L2"


def test_a_network_without_convolutions_has_neighbors(open_viewer: Any, pictures: np.ndarray) -> None:
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, 4)), size=16, channels=3)
    assert settled(open_viewer(net, pictures, queries=[2])).frame.arrays["features"].shape == (1, 5)
