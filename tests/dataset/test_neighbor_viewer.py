"""NeighborViewer, without a browser."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import traitlets
from ipywidgets.widgets.widget import _instances
from PIL import Image
from torch import nn
from widget_helpers import PATIENCE, Slow, finished, opening, settled, shown, written

from convis_widgets import MaxPatchGallery, NeighborViewer, Network, demo, link
from convis_widgets.core.dataset import batch_collector
from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.dataset.neighbors import neighbors
from convis_widgets.widgets.dataset.neighbor_viewer import (
    FRAME_WIDTH,
    GROUP_GAP,
    NO_LABEL,
    OTHER_LABEL,
    SAME_LABEL,
    TILE_SIDE,
    TITLE_HEIGHT,
)
from convis_widgets.widgets.drawing.patch_rows import fit_square

KINDS = 3

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (15, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def labeled(images: np.ndarray) -> ImageSet:
    return ImageSet(images, labels=[i % KINDS for i in range(15)], classes=["ant", "bee", "cat"])


@pytest.fixture
def open_viewer() -> Iterator[Callable[..., NeighborViewer]]:
    with opening(NeighborViewer) as make:
        yield make


@pytest.fixture
def viewer(tiny: Network, labeled: ImageSet, open_viewer: Any) -> NeighborViewer:
    return settled(open_viewer(tiny, labeled, queries=[3, 11], k=4))


def corner(row: int, column: int, k: int) -> tuple[int, int]:
    """(x, y) of a table cell, by hand: a query, k neighbors in pixels, k in features."""
    step = TILE_SIDE + 2 * FRAME_WIDTH + 2
    return column * step + (column > 0) * GROUP_GAP + (column > k) * GROUP_GAP, TITLE_HEIGHT + row * step


def on(row: int, column: int, k: int = 4) -> dict[str, Any]:
    """A click at the center of a cell."""
    x, y = corner(row, column, k)
    return {"type": "click", "x": x + FRAME_WIDTH + TILE_SIDE / 2, "y": y + FRAME_WIDTH + TILE_SIDE / 2}


def table(viewer: NeighborViewer) -> list[list[int]]:
    """Table rows computed by the technique itself, -1 for an empty cell."""
    last = Run(neighbors(viewer.network, viewer.scan, viewer.queries, k=viewer.k, metric=viewer.metric)).run().arrays
    rows = zip(viewer.queries, last["pixels"], last["features"], strict=True)
    return [[query, *pixels.tolist(), *features.tolist()] for query, pixels, features in rows]


def assert_shows(viewer: NeighborViewer, rows: list[list[int]]) -> None:
    """Compare the table pixel by pixel: images, and frames colored by label agreement."""
    image, labels = shown(viewer.table), viewer.scan.labels
    for row, indices in enumerate(rows):
        for column, index in enumerate(indices):
            x, y = corner(row, column, viewer.k)
            cell = image[y : y + TILE_SIDE + 2 * FRAME_WIDTH, x : x + TILE_SIDE + 2 * FRAME_WIDTH]
            if index < 0:
                assert (cell[..., 3] == 0).all()
                continue
            assert np.array_equal(
                cell[FRAME_WIDTH:-FRAME_WIDTH, FRAME_WIDTH:-FRAME_WIDTH, :3], fit_square(viewer.scan.image(index), TILE_SIDE)
            )
            known = min(labels[indices[0]], labels[index]) >= 0
            edge = (SAME_LABEL if labels[indices[0]] == labels[index] else OTHER_LABEL) if known else NO_LABEL
            frame = np.concatenate(
                [cell[:FRAME_WIDTH].reshape(-1, 4), cell[-FRAME_WIDTH:].reshape(-1, 4), cell[:, 0], cell[:, -1]]
            )
            assert (frame == (edge if column else 0)).all()
    assert image.shape[0] == corner(len(rows), 0, viewer.k)[1]


# -- the table -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["L2", "cosine"])
@pytest.mark.parametrize("k", [1, 4, 12])
def test_table_matches_neighbors(k: int, metric: str, tiny: Network, labeled: ImageSet, open_viewer: Any) -> None:
    viewer = settled(open_viewer(tiny, labeled, queries=[3, 11, 0], k=k, metric=metric))
    rows = table(viewer)
    assert len(rows[0]) == 1 + 2 * k
    assert_shows(viewer, rows)
    assert not viewer.status.value


def test_frames_and_caption_show_label_agreement(viewer: NeighborViewer) -> None:
    labels = viewer.scan.labels
    for name, columns in (("pixels", range(1, 5)), ("features", range(5, 9))):
        rows = table(viewer)
        same = [labels[row[column]] == labels[row[0]] for row in rows for column in columns]
        assert re.search(rf"\b{np.mean(same):.0%}\D+{name}", viewer.caption.value)
        image = shown(viewer.table)
        corners = [corner(row, column, 4) for row in range(2) for column in columns]
        green = [tuple(image[y, x]) == SAME_LABEL for x, y in corners]
        assert green == same


def test_table_has_empty_cells_for_small_image_set(tiny: Network, images: np.ndarray, open_viewer: Any) -> None:
    viewer = settled(open_viewer(tiny, images[:3], queries=[1]))
    assert table(viewer)[0][3:6] == [-1, -1, -1]
    assert_shows(viewer, table(viewer))
    viewer.table.on_pointer(on(0, 4, 5))
    assert viewer.image_index is None
    viewer.table.on_pointer(on(0, 4, 5) | {"type": "move"})
    assert not viewer.hover.value
    alone = settled(open_viewer(tiny, images[:1]))
    assert not alone.status.value
    assert alone.queries == (0,)


def test_frames_are_gray_without_labels(tiny: Network, images: np.ndarray, open_viewer: Any) -> None:
    viewer = settled(open_viewer(tiny, images, queries=[2, 7]))
    assert_shows(viewer, table(viewer))
    assert "label" in viewer.caption.value
    assert "%" not in viewer.caption.value
    assert tuple(shown(viewer.table)[TITLE_HEIGHT, corner(0, 1, 5)[0]]) == NO_LABEL
    viewer.agreement_button.click()
    settled(viewer)
    assert "label" in viewer.agreement.value
    assert "%" not in viewer.agreement.value


def test_frames_compare_only_labeled_images(tiny: Network, images: np.ndarray, open_viewer: Any) -> None:
    labels = [i % 2 if i % 3 else None for i in range(15)]
    viewer = settled(open_viewer(tiny, ImageSet(images, labels=labels), queries=[1, 3]))
    assert_shows(viewer, table(viewer))
    x, y = corner(1, 1, 5)
    assert tuple(shown(viewer.table)[y, x]) == NO_LABEL, "image 3 has no label"


def test_queries_default_to_six_images(tiny: Network, labeled: ImageSet, open_viewer: Any) -> None:
    one, other = (settled(open_viewer(tiny, labeled)) for _ in range(2))
    assert len(set(one.queries)) == 6
    assert one.queries == other.queries
    assert_shows(one, table(one))


def test_default_queries_set_during_construction_keep_handlers(
    tiny: Network, labeled: ImageSet, open_viewer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handlers muted by a Run must be active again if the constructor returns meanwhile."""
    within, made, handlers_muted, start = threading.Event(), threading.Event(), NeighborViewer.handlers_muted, Run.start

    @contextlib.contextmanager
    def slowly(viewer: NeighborViewer) -> Iterator[None]:
        with handlers_muted(viewer):
            yield
            if threading.current_thread().name == "convis-run":
                within.set()
                made.wait(0.2)  # unless the constructor waits for this thread

    monkeypatch.setattr(NeighborViewer, "handlers_muted", slowly)
    monkeypatch.setattr(Run, "start", lambda run: (start(run), within.wait(PATIENCE))[0])
    viewer = open_viewer(tiny, labeled)
    made.set()
    monkeypatch.undo()
    settled(viewer)
    viewer.table.on_pointer(on(0, 1, 5))
    settled(viewer)
    assert viewer.image_index is not None
    assert viewer.queries[0] == viewer.image_index


def test_neighbor_viewer_with_grayscale_images(open_viewer: Any) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 10)))
    digits = np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8)
    viewer = settled(open_viewer(net, ImageSet(digits, labels=range(8)), image_index=2, k=3))
    assert viewer.queries == (2,)
    assert_shows(viewer, table(viewer))
    whole = shown(viewer.whole_view)
    assert whole.shape == (168, 168, 3)
    assert np.array_equal(whole[::6, ::6], np.repeat(viewer.scan.image(2), 3, 2))


# -- the mouse -----------------------------------------------------------------------------------------------------------


def test_click_on_neighbor_makes_it_a_query(viewer: NeighborViewer) -> None:
    rows = table(viewer)
    chosen = rows[1][6]
    viewer.table.on_pointer(on(1, 6))
    settled(viewer)
    assert viewer.image_index == chosen
    assert viewer.queries[0] == chosen
    assert set(viewer.queries) == {3, 11, chosen}
    assert viewer.controls["query"].value == chosen
    assert_shows(viewer, table(viewer))
    assert re.search(rf">\w+ {chosen}\b", viewer.whole_caption.value)


def test_click_on_query_moves_it_to_top(viewer: NeighborViewer) -> None:
    viewer.table.on_pointer(on(1, 0))
    settled(viewer)
    assert viewer.queries == (11, 3)
    assert_shows(viewer, table(viewer))


def test_click_on_current_image_index_moves_it_to_top(viewer: NeighborViewer) -> None:
    viewer.image_index = 7
    viewer.queries = (3, 11, 7)
    settled(viewer)
    viewer.table.on_pointer(on(2, 0))
    settled(viewer)
    assert viewer.queries[0] == 7


def test_table_keeps_its_own_queries_while_another_run_starts(viewer: NeighborViewer) -> None:
    def frames() -> Iterator[Frame]:
        for frame in viewer._frames((3, 11), 4, "L2"):
            next(viewer._frames((7, 3, 11), 4, "L2"))  # as from a stopped Run that has not noticed yet
            yield frame

    viewer.start_run(frames(), viewer.run_changed)
    settled(viewer)
    viewer.table.on_pointer(on(1, 0))
    settled(viewer)
    assert viewer.image_index == 11


def test_queries_keep_last_six_clicks(viewer: NeighborViewer) -> None:
    for index in (0, 1, 2, 4, 5, 6, 8):
        viewer.image_index = index
        settled(viewer)
    assert viewer.queries == (8, 6, 5, 4, 2, 1)
    viewer.queries = tuple(range(9))
    viewer.image_index = 10
    settled(viewer)
    assert viewer.queries == (10, *range(8)), "the number of queries is kept"


def test_click_between_images_or_outside_table_does_nothing(viewer: NeighborViewer) -> None:
    width, height = corner(0, 9, 4)[0], corner(2, 0, 4)[1]
    before_pixels, before_features = corner(0, 1, 4)[0] - GROUP_GAP / 2, corner(0, 5, 4)[0] - GROUP_GAP / 2
    for x, y in ((5, 5), (before_pixels, 50), (before_features, 50), (width + 30, 50), (5, height + 5), (-5, 50), (5, -5)):
        viewer.table.on_pointer({"type": "click", "x": x, "y": y})
        assert viewer.image_index is None
        assert viewer.queries == (3, 11)


def test_hover_describes_image_and_distance(viewer: NeighborViewer) -> None:
    rows = table(viewer)
    arrays = viewer.frame.arrays
    for column, name, at in ((2, "pixels", 1), (8, "features", 3)):
        index = rows[1][column]
        viewer.table.on_pointer(on(1, column) | {"type": "move"})
        distance = arrays[f"{name} distance"][1, at]
        label = ["ant", "bee", "cat"][index % KINDS]
        assert re.search(rf"\w+ {index}\b.*{label}.*L2.*{distance:.3g}.*{name}", viewer.hover.value)
        whole = shown(viewer.whole_view)
        assert np.array_equal(whole[::12, ::12], viewer.scan.image(index))
        best, p = viewer.network.labels[viewer.scan.predictions[index]], viewer.scan.probabilities[index]
        assert re.search(rf"{best}\W+{p:.1%}", viewer.whole_caption.value)
    viewer.table.on_pointer(on(0, 0) | {"type": "move"})
    assert re.search(r"\w+ 3\b.*ant", viewer.hover.value)
    assert "L2" not in viewer.hover.value
    assert viewer.queries == (3, 11)
    viewer.table.on_pointer({"type": "leave"})
    assert not viewer.hover.value
    assert viewer.whole_view.layout.visibility == "hidden"
    viewer.image_index = 5
    settled(viewer)
    viewer.table.on_pointer(on(1, 2) | {"type": "move"})
    viewer.table.on_pointer({"type": "leave"})
    assert np.array_equal(shown(viewer.whole_view)[::12, ::12], viewer.scan.image(5)), "image_index is shown again"


def test_mouse_events_are_ignored_before_first_table(tiny: Network, slow: Any, open_viewer: Any) -> None:
    viewer = open_viewer(tiny, slow, queries=[1])
    for event in (on(0, 1), on(0, 0) | {"type": "move"}, {"type": "leave"}):
        viewer.table.on_pointer(event)
    assert not viewer.status.value
    assert viewer.image_index is None
    panels, lines = viewer.snapshot_panels()
    assert not panels
    assert "tiny" in lines[0]
    assert viewer.snapshot().shape[2] == 3


# -- queries and knobs ---------------------------------------------------------------------------------------------------


def test_metric_and_k_are_bound_to_controls(viewer: NeighborViewer) -> None:
    viewer.controls["metric"].value = "cosine"
    viewer.controls["k"].value = 2
    settled(viewer)
    assert (viewer.metric, viewer.k) == ("cosine", 2)
    assert_shows(viewer, table(viewer))
    viewer.table.on_pointer(on(0, 1, 2) | {"type": "move"})
    assert "cosine" in viewer.hover.value
    viewer.metric, viewer.k = "L2", 6
    settled(viewer)
    assert (viewer.controls["metric"].value, viewer.controls["k"].value) == ("L2", 6)
    assert_shows(viewer, table(viewer))
    for name, wrong in (("metric", "l1"), ("k", 0), ("k", 13)):
        with pytest.raises(traitlets.TraitError):
            setattr(viewer, name, wrong)


def test_query_field_sets_first_query(viewer: NeighborViewer) -> None:
    assert (viewer.controls["query"].min, viewer.controls["query"].max) == (0, 14)
    viewer.controls["query"].value = 9
    settled(viewer)
    assert viewer.queries == (9, 3, 11)
    assert viewer.image_index == 9


@pytest.mark.parametrize(
    ("queries", "expected"), [(5, (5,)), (np.int64(5), (5,)), (np.array([2, 1]), (2, 1)), (range(3), (0, 1, 2))]
)
def test_queries_accepts_int_or_sequence(
    queries: Any, expected: tuple[int, ...], tiny: Network, images: np.ndarray, open_viewer: Any
) -> None:
    viewer = settled(open_viewer(tiny, images, queries=queries))
    assert viewer.queries == expected
    assert all(type(query) is int for query in viewer.queries)


def test_image_index_is_the_default_query(tiny: Network, images: np.ndarray, open_viewer: Any) -> None:
    viewer = settled(open_viewer(tiny, images, image_index=4))
    assert viewer.queries == (4,)
    assert re.search(r">\w+ 4\b", viewer.whole_caption.value)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"queries": [15]}, traitlets.TraitError, r"\b15\b.*\b0\b.*\b14\b"),
        ({"queries": [2, -1]}, traitlets.TraitError, "-1"),
        ({"queries": []}, traitlets.TraitError, r"(?i)quer.*\b0\b.*\b14\b"),
        ({"queries": [1.5]}, traitlets.TraitError, "1.5"),
        ({"queries": ["first"]}, traitlets.TraitError, "first"),
        ({"image_index": 15}, traitlets.TraitError, r"\b15\b"),
        ({"metric": "l2"}, traitlets.TraitError, "metric"),
        ({"k": 0}, traitlets.TraitError, "k"),
        ({"query": [1]}, TypeError, "NeighborViewer.*'query'.*queries"),
        ({"images": "nowhere"}, FileNotFoundError, "nowhere"),
    ],
)
def test_neighbor_viewer_with_invalid_argument_raises_and_is_closed(
    kwargs: dict[str, Any], error: type[Exception], message: str, tiny: Network, images: np.ndarray
) -> None:
    before = set(_instances)
    with pytest.raises(error, match=message):
        NeighborViewer(tiny, **({"images": images} | kwargs))
    assert [type(_instances[key]).__name__ for key in set(_instances) - before] == []


def test_invalid_queries_raise_and_change_nothing(viewer: NeighborViewer) -> None:
    for wrong in ((15,), (-1,), (), (1.5,)):
        with pytest.raises(traitlets.TraitError):
            viewer.queries = wrong
    with pytest.raises(traitlets.TraitError, match=r"\b15\b"):
        viewer.image_index = 15
    assert viewer.queries == (3, 11)
    assert_shows(viewer, table(viewer))


# -- label agreement -----------------------------------------------------------------------------------------------------


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
def test_agreement_matches_reference(
    metric: str, tiny: Network, labeled: ImageSet, images: np.ndarray, open_viewer: Any
) -> None:
    viewer = settled(open_viewer(tiny, labeled, queries=[3], k=4, metric=metric))
    before = shown(viewer.table)
    viewer.agreement_button.click()
    settled(viewer)
    labels = np.arange(15) % KINDS
    for name, rows in (("pixels", images.reshape(15, -1) / 255), ("features", viewer.scan.features())):
        share = agreement_by_hand(rows.astype(np.float64), labels, 4, metric)
        assert re.search(rf"\b{share:.0%}\D+{name}", viewer.agreement.value)
    assert re.search(r"\b15 \w+", viewer.agreement.value)
    assert np.array_equal(shown(viewer.table), before), "the table does not change"
    assert any(re.search(r"\b15 \w+.*%", line) for line in viewer.snapshot_panels()[1])


def test_agreement_is_cleared_when_metric_or_k_changes(viewer: NeighborViewer) -> None:
    viewer.agreement_button.click()
    settled(viewer)
    viewer.queries = (5,)
    settled(viewer)
    assert re.search(r"\b15 \w+", viewer.agreement.value), "it does not depend on the queries"
    for name, value in (("metric", "cosine"), ("k", 1)):
        viewer.agreement_button.click()
        settled(viewer)
        assert re.search(r"\b15 \w+", viewer.agreement.value)
        setattr(viewer, name, value)
        settled(viewer)
        assert not viewer.agreement.value
        assert not any(re.search(r"\b15 \w+.*%", line) for line in viewer.snapshot_panels()[1])


def test_agreement_of_large_set_is_sampled(tiny: Network, open_viewer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convis_widgets.widgets.dataset.neighbor_viewer.MAX_AGREEMENT_QUERIES", 10)
    many = np.random.default_rng(0).integers(0, 256, (33, 16, 16, 3), dtype=np.uint8)
    viewer = settled(open_viewer(tiny, ImageSet(many, labels=[i % 2 for i in range(33)]), queries=[0]))
    viewer.agreement_button.click()
    settled(viewer)
    assert re.search(r"\b10 \w+", viewer.agreement.value)


@pytest.fixture
def slow(images: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    monkeypatch.setattr(batch_collector, "auto_batch_size", lambda *_: 5)
    slow_images = Slow(images)
    slow_images.targets = [i % KINDS for i in range(len(images))]
    yield slow_images
    slow_images.gate.release(1000)


def test_agreement_requested_while_scanning_keeps_table(tiny: Network, slow: Slow, open_viewer: Any) -> None:
    viewer = open_viewer(tiny, slow, queries=[3])
    slow.gate.release(5)
    viewer.agreement_button.click()
    slow.gate.release(10)
    finished(viewer)
    assert re.search(r"\b15 \w+", viewer.agreement.value)
    assert viewer.frame is not None
    assert_shows(viewer, table(viewer))


def test_traits_changed_while_scanning_take_effect(tiny: Network, slow: Slow, open_viewer: Any) -> None:
    viewer = open_viewer(tiny, slow, queries=[3])
    slow.gate.release(5)
    viewer.queries, viewer.k, viewer.metric = (14, 2), 2, "cosine"
    slow.gate.release(10)
    settled(viewer)
    assert_shows(viewer, table(viewer))


def test_start_resumes_scan_after_stop(tiny: Network, slow: Slow, open_viewer: Any) -> None:
    viewer = open_viewer(tiny, slow, queries=[3])
    run = viewer.run
    viewer.bar.on_stop()
    slow.gate.release(15)
    assert run.join(PATIENCE)
    assert (run.state, viewer.frame) == ("stopped", None)
    viewer.bar.on_start()
    settled(viewer)
    assert_shows(viewer, table(viewer))


def test_close_stops_scan(tiny: Network, slow: Slow) -> None:
    viewer = NeighborViewer(tiny, slow, queries=[3])
    run = viewer.run
    viewer.close()
    slow.gate.release(15)
    assert run.join(PATIENCE)
    assert run.state == "stopped"
    viewer.bar.on_start()
    assert viewer.run is None


# -- unreadable files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [(2,), (0, 1, 3)])
def test_default_queries_skip_unreadable_files(
    bad: tuple[int, ...], tiny: Network, open_viewer: Any, tmp_path: Path
) -> None:
    viewer = finished(open_viewer(tiny, written(tmp_path / "noise", 5, bad)))
    assert not viewer.status.value
    assert not set(bad) & set(viewer.queries)
    assert_shows(viewer, table(viewer))
    assert re.search(rf"\b{len(bad)}\b\D+\b5\b.*\b{bad[0]}\.png", viewer.notices.value)


def test_unreadable_query_is_named_and_skipped(tiny: Network, open_viewer: Any, tmp_path: Path) -> None:
    viewer = finished(open_viewer(tiny, written(tmp_path / "noise", 5, (2,)), queries=[1]))
    before = shown(viewer.table)
    viewer.queries = (1, 2)
    settled(viewer)
    assert "2.png" in viewer.caption.value
    assert np.array_equal(shown(viewer.table), before)
    viewer.table.on_pointer(on(0, 1, 5) | {"type": "move"})
    assert ".png" in viewer.hover.value
    for index in (2, 0, 4):
        viewer.image_index = index
        settled(viewer)
        assert not viewer.status.value
    assert viewer.frame.arrays["query"].tolist() == [4, 0, 1]
    assert viewer.frame.arrays["features"].shape == (3, 5)
    viewer.queries = (2,)
    settled(viewer)
    assert re.search(r"\w+ 2\b", viewer.status.value)


def test_agreement_skips_unreadable_files(tiny: Network, open_viewer: Any, tmp_path: Path) -> None:
    viewer = settled(open_viewer(tiny, written(tmp_path / "noise", 6, (2,)), queries=[1]))
    viewer.agreement_button.click()
    settled(viewer)
    assert viewer.run.state == "done"
    assert not viewer.status.value


# -- linking -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def toyscape(tmp_path: Path) -> Scan:
    scan = Scan(Network.demo(), demo.Toyscape(20, seed=3), cache=tmp_path / "toyscape")
    Run(scan.frames()).run()
    return scan


def patch_in(gallery: MaxPatchGallery, channel: int, j: int) -> dict[str, Any]:
    height, width = gallery.patch_rows.image.shape[:2]
    x, y = next(
        (x, y) for y in range(2, height, 4) for x in range(1, width, 4) if gallery.patch_rows.locate(x, y) == (channel, j)
    )
    return {"type": "click", "x": x, "y": y}


def test_linked_gallery_patch_becomes_query(toyscape: Scan, open_viewer: Any) -> None:
    gallery = open_viewer(images=toyscape, kind=MaxPatchGallery, projection="none")
    viewer = settled(open_viewer(images=toyscape, queries=[0]))
    link(gallery, viewer)
    gallery.rows_view.on_pointer(patch_in(gallery, 7, 3))
    settled(viewer)
    assert viewer.image_index == gallery.image_index == toyscape.top("conv1").images[7, 3]
    assert viewer.queries == tuple(dict.fromkeys([viewer.image_index, 0]))
    assert_shows(viewer, table(viewer))
    viewer.table.on_pointer(on(0, 2, 5))
    assert gallery.image_index == viewer.image_index == viewer.queries[0]


@pytest.mark.parametrize("first", ["gallery", "viewer"])
def test_link_shares_current_image_index(first: str, toyscape: Scan, open_viewer: Any) -> None:
    gallery = open_viewer(images=toyscape, kind=MaxPatchGallery, projection="none")
    viewer = settled(open_viewer(images=toyscape, queries=[0]))
    {"gallery": gallery, "viewer": viewer}[first].image_index = 5
    link(gallery, viewer)
    assert gallery.image_index == viewer.image_index == 5


def test_link_does_not_share_image_index_between_image_sets(toyscape: Scan, open_viewer: Any, tmp_path: Path) -> None:
    other = Scan(toyscape.net, demo.Toyscape(20, seed=4), layers="conv1", cache=tmp_path)
    gallery = open_viewer(images=toyscape, kind=MaxPatchGallery, projection="none")
    viewer = settled(open_viewer(images=other, queries=[0]))
    with pytest.raises(ValueError, match="MaxPatchGallery|NeighborViewer"):
        link(gallery, viewer)
    another = open_viewer(images=other, kind=MaxPatchGallery, projection="none")
    link(gallery, another, settled(open_viewer(images=toyscape, queries=[0])))
    gallery.rows_view.on_pointer(patch_in(gallery, 7, 3))
    assert gallery.image_index is not None
    assert another.image_index is None
    assert viewer.queries == (0,)
    assert another.unit == gallery.unit, "the unit is still shared"


# -- saving and closing --------------------------------------------------------------------------------------------------


def test_save_contains_table_and_caption(viewer: NeighborViewer, tmp_path: Path) -> None:
    panels, lines = viewer.snapshot_panels()
    assert np.array_equal(panels[0][1], shown(viewer.table))
    assert "L2" in lines[0]
    assert re.search("label.*%", lines[1])
    path = viewer.save(tmp_path / "neighbors.png")
    assert np.array_equal(np.asarray(Image.open(path)), viewer.snapshot())


def test_label_names_are_html_escaped(tiny: Network, images: np.ndarray, open_viewer: Any) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    viewer = settled(open_viewer(tiny, ImageSet(images, labels=[0] * 15, classes=[nasty]), queries=[1], image_index=2))
    viewer.table.on_pointer(on(0, 1, 5) | {"type": "move"})
    for text in (viewer.hover, viewer.whole_caption, viewer.caption):
        assert "<img" not in text.value
    assert "&lt;img" in viewer.hover.value


def test_deleted_images_are_gray_and_named(tiny: Network, open_viewer: Any, tmp_path: Path) -> None:
    folder = written(tmp_path / "noise", 6)
    Run(Scan(tiny, folder).frames()).run()
    scan = Scan(tiny, folder)
    (folder / "3.png").unlink()
    viewer = settled(open_viewer(tiny, scan, queries=[3, 1], k=5))
    assert viewer.run.state == "done"
    assert not viewer.status.value
    assert "3.png" in viewer.notices.value
    x, y = corner(0, 0, 5)
    assert (
        shown(viewer.table)[y + FRAME_WIDTH : y + FRAME_WIDTH + TILE_SIDE, x + FRAME_WIDTH : x + FRAME_WIDTH + TILE_SIDE, :3]
        == 128
    ).all()
    assert viewer.frame.arrays["pixels"][0].tolist() == [-1] * 5
    assert 3 in viewer.frame.arrays["features"][1]


def test_snapshot_text_counts_readable_images(tiny: Network, open_viewer: Any, tmp_path: Path) -> None:
    viewer = finished(open_viewer(tiny, written(tmp_path / "noise", 6, (1, 4))))
    assert re.search(r"\btiny\b.*\bnoise\b.*\b4\D+6\b.*\bL2\b", viewer.snapshot_panels()[1][0])


def test_neighbor_viewer_with_network_without_convolutions(open_viewer: Any, images: np.ndarray) -> None:
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, 4)), size=16, channels=3)
    assert settled(open_viewer(net, images, queries=[2])).frame.arrays["features"].shape == (1, 5)


def test_neighbor_viewer_uses_images_with_other_labels_and_says_so(
    tiny: Network, images: np.ndarray, open_viewer: Callable[..., NeighborViewer]
) -> None:
    boxes = {"boxes": np.zeros((2, 4))}
    viewer = finished(open_viewer(tiny, [(image, boxes) for image in images]))
    assert viewer.scan.complete
    assert viewer.notices.value.count("labels that are not classes") == 1
    viewer = finished(open_viewer(tiny, ImageSet([(image, boxes) for image in images], labels=range(15))))
    assert not viewer.notices.value
