"""MaxPatchGallery, without a browser."""

from __future__ import annotations

import re
import shutil
import time
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
from widget_helpers import PATIENCE, Slow, finished, opening, reached, selected_box, settled, shown, written

from convis_widgets import ActivationExplorer, FilterGrid, MaxPatchGallery, Network, Unit, demo, link
from convis_widgets.core.dataset import batch_collector
from convis_widgets.core.dataset.image_set import ImageSet
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.deconvnet import deconvnet
from convis_widgets.techniques.attribution.guided_backprop import guided_backprop
from convis_widgets.techniques.attribution.saliency import saliency
from convis_widgets.widgets.dataset import dataset_viewer, max_patch_gallery
from convis_widgets.widgets.drawing import patch_rows
from convis_widgets.widgets.drawing.encode import HIGHLIGHT
from convis_widgets.widgets.drawing.patch_rows import fit_square

BATCH = 4
DEAD = "(never active|inactive|dead)"

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_collector, "auto_batch_size", lambda *_: BATCH)


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(4).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


@pytest.fixture
def open_gallery() -> Iterator[Callable[..., MaxPatchGallery]]:
    with opening(MaxPatchGallery) as make:
        yield make


@pytest.fixture
def gallery(tiny: Network, images: np.ndarray, open_gallery: Any) -> MaxPatchGallery:
    return finished(open_gallery(tiny, images, layer="conv2"))


@pytest.fixture
def slow(images: np.ndarray, small_batches: None) -> Iterator[Slow]:
    slow_images = Slow(images)
    yield slow_images
    slow_images.gate.release(1000)


def click(view: Any, x: float, y: float) -> None:
    view.on_pointer({"type": "click", "x": x, "y": y})


def place(gallery: MaxPatchGallery, channel: int, j: int | None) -> tuple[int, int]:
    """(x, y) of a patch, or of the channel number if j is None, in the rows image."""
    height, width = gallery.patch_rows.image.shape[:2]
    return next(
        (x, y) for y in range(2, height, 4) for x in range(1, width, 4) if gallery.patch_rows.locate(x, y) == (channel, j)
    )


def scanned(gallery: MaxPatchGallery) -> int:
    """How many of the 12 images were scanned, according to the caption."""
    found = re.search(r"(?:\b(\d+) *(?:of|/) *)?\b12\b", gallery.caption.value)
    assert found
    return int(found[1] or 12)


def opaque(view: Any) -> np.ndarray:
    return shown(view)[..., 3] == 255


# -- rows and captions ---------------------------------------------------------------------------------------------------


def test_rows_match_scan(gallery: MaxPatchGallery, images: np.ndarray) -> None:
    top, layer = gallery.scan.top("conv2"), gallery.network.layers["conv2"]
    image = shown(gallery.rows_view)
    assert gallery.scan.num_seen == 12
    for channel in range(8):
        for j in range(9):
            x, y = place(gallery, channel, j)
            x0 = next(v for v in range(x, -1, -1) if gallery.patch_rows.locate(v - 1, y) != (channel, j))
            y0 = next(v for v in range(y, -1, -1) if gallery.patch_rows.locate(x, v - 1) != (channel, j))
            up, left, bottom, right = layer.box((top.rows[channel, j], top.cols[channel, j]))
            expected = fit_square(images[top.images[channel, j]][up:bottom, left:right], 32)
            found = image[y0 + 2 : y0 + 34, x0 : x0 + 32, :3]
            framed = 2 if channel == gallery.shown.channel else 0
            assert np.array_equal(found[: 32 - framed], expected[: 32 - framed])
    assert re.search(r"conv2\b.*Conv2d.*\b8\b", gallery.caption.value)
    assert scanned(gallery) == 12


def test_patches_view_matches_max_patches(gallery: MaxPatchGallery) -> None:
    gallery.unit = ("conv2", 3)
    finished(gallery)
    top = gallery.scan.top("conv2")
    assert gallery.frame.arrays["images"].tolist() == top.images[3, :9].tolist()
    image = shown(gallery.patches_view)[..., :3]
    for j in range(9):
        up, left, bottom, right = (int(edge) for edge in gallery.frame.arrays["boxes"][j])
        seen = gallery.scan.image(int(top.images[3, j]))[up:bottom, left:right]
        y, x = (3 + 67 * (j // 3), 3 + 67 * (j % 3))
        assert np.array_equal(image[y : y + 64, x : x + 64], fit_square(seen, 64))
    for value in top.values[3, :9]:
        assert f"{value:.3g}" in gallery.facts.value


def test_max_patch_gallery_defaults_to_first_conv_of_demo(open_gallery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_viewer, "default_image_set", lambda _net: ImageSet(demo.Toyscape(20, seed=3)))
    gallery = finished(open_gallery())
    assert gallery.network is Network.demo()
    assert (gallery.layer, gallery.unit) == ("conv1", Unit("conv1", 0))
    assert re.search(r"\b9x9\b.*\b20\b", gallery.caption.value)
    assert gallery.bar.layout.display == "none"


def test_max_patch_gallery_with_grayscale_labeled_images(open_gallery: Any) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 10)))
    digits = np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8)
    gallery = finished(open_gallery(net, ImageSet(digits, labels=[f"digit {i % 3}" for i in range(8)])))
    assert not gallery.status.value
    first = int(gallery.scan.top("0").images[0, 0])
    assert re.search(rf"\w+ {first}\b.*digit {first % 3}\b", gallery.whole_caption.value)
    whole = shown(gallery.whole_view)[..., :3]
    assert (np.ptp(whole.astype(int), axis=2) == 0).mean() > 0.5, "all gray except the box"
    assert gallery.snapshot().std() > 5


def test_dead_channel_is_counted_and_described_as_dead(images: np.ndarray, open_gallery: Any) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    with torch.no_grad():
        net.layers["0"].module.bias.copy_(torch.tensor([9.0, -99.0, 9.0, 9.0]))
    gallery = finished(open_gallery(net, images, unit=("0", 1)))
    assert re.search(rf"\b1 [^;]*{DEAD}", gallery.caption.value)
    assert re.search(rf"channel 1\b.*{DEAD}", gallery.facts.value)
    gallery.unit = ("0", 2)
    assert not re.search(DEAD, gallery.facts.value)


def test_max_patch_gallery_with_fewer_images_than_k(tiny: Network, images: np.ndarray, open_gallery: Any) -> None:
    gallery = finished(open_gallery(tiny, images[:2], layer="conv2"))
    assert not gallery.status.value
    assert len(gallery.frame.arrays["images"]) == 2
    assert gallery.facts.value.count(", ") == 1
    click(gallery.rows_view, *place(gallery, 3, 7))
    assert gallery.unit == Unit("conv2", 3)
    assert gallery.image_index is None, "an empty cell has no image"


# -- projections ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("projection", "technique"), [("guided backprop", guided_backprop), ("deconvnet", deconvnet), ("gradient", saliency)]
)
def test_projections_are_attributions_cropped_to_the_box(projection: str, technique: Any, gallery: MaxPatchGallery) -> None:
    gallery.projection = projection
    gallery.unit = ("conv2", 5)
    finished(gallery)
    arrays, image = gallery.frame.arrays, shown(gallery.projections_view)[..., :3]
    assert gallery.projections_box.layout.display == ""
    assert projection in gallery.projections_view.alt
    for j in range(9):
        up, left, bottom, right = arrays["boxes"][j]
        unit = ("conv2", 5, tuple(int(at) for at in arrays["positions"][j]))
        whole = Run(technique(gallery.network, gallery.scan.image(int(arrays["images"][j])), unit=unit)).run()
        part = whole.arrays["gradient"][up:bottom, left:right]
        assert np.allclose(arrays["projections"][j, : bottom - up, : right - left], part, atol=1e-6)
        scaled = np.clip(0.5 + 0.5 * part / np.quantile(np.abs(part), 0.99), 0, 1)
        y, x = 3 + 67 * (j // 3), 3 + 67 * (j % 3)
        expected = fit_square((scaled * 255 + 0.5).astype(np.uint8), 64).astype(int)
        assert np.abs(image[y : y + 64, x : x + 64] - expected).max() <= 1


def test_projection_none_hides_and_other_rules_show_again(gallery: MaxPatchGallery) -> None:
    first = gallery.frame
    gallery.controls["projection"].value = "none"
    assert gallery.projections_box.layout.display == "none"
    gallery.controls["projection"].value = "deconvnet"
    finished(gallery)
    assert gallery.projections_box.layout.display == ""
    assert not np.array_equal(gallery.frame.arrays["projections"], first.arrays["projections"], equal_nan=True)
    gallery.projection = "guided backprop"
    finished(gallery)
    assert gallery.controls["projection"].value == "guided backprop"
    assert np.array_equal(gallery.frame.arrays["projections"], first.arrays["projections"], equal_nan=True)


def test_projections_always_belong_to_selected_channel(gallery: MaxPatchGallery) -> None:
    for channel in (1, 2, 7):
        gallery.unit = ("conv2", channel)
        assert gallery.frame is None or gallery.projections_box.layout.display == ""
        finished(gallery)
        assert gallery.frame.arrays["values"].tolist() == gallery.scan.top("conv2").values[channel, :9].tolist()


def test_projection_unsupported_by_network_shows_error(images: np.ndarray, open_gallery: Any) -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    gallery = finished(open_gallery(Network(nn.Sequential(*parts), size=16), images, layer="2"))
    assert "GELU" in gallery.status.value
    assert opaque(gallery.patches_view).any()
    gallery.projection = "gradient"
    finished(gallery)
    assert gallery.projections_box.layout.display == ""
    assert not gallery.status.value
    gallery.projection = "deconvnet"
    finished(gallery)
    assert "GELU" in gallery.status.value
    assert gallery.projections_box.layout.display == "none", "no projections are shown"
    gallery.unit = ("0", 1)
    finished(gallery)
    assert gallery.run.state == "done"
    assert not gallery.status.value, "there is no GELU below the first convolution"
    gallery.unit = ("2", 1)
    finished(gallery)
    gallery.projection = "none"
    assert not gallery.status.value


# -- while scanning ------------------------------------------------------------------------------------------------------


def test_channels_are_not_dead_before_scanning(tiny: Network, slow: Slow, open_gallery: Any) -> None:
    gallery = open_gallery(tiny, slow)
    assert scanned(gallery) == 0
    assert not re.search(DEAD, gallery.caption.value + gallery.facts.value)
    assert "inf" not in gallery.facts.value
    assert gallery.snapshot().shape[2] == 3


def test_rows_fill_while_scanning(
    tiny: Network, slow: Slow, images: np.ndarray, open_gallery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convis_widgets.widgets.dataset.max_patch_gallery.REDRAW_PERIOD", 0)
    gallery = open_gallery(tiny, slow, layer="conv2")
    run, filled = gallery.run, [opaque(gallery.rows_view).sum()]
    for seen in (4, 8):
        slow.gate.release(4)
        reached(run, lambda run, seen=seen: run.last is not None and run.last.step == seen)
        assert run.active
        assert scanned(gallery) == seen
        alone = Scan(tiny, images[:seen], cache=gallery.scan.folder / "another")
        Run(alone.frames()).run()
        assert np.array_equal(gallery.scan.top("conv2").images[:, :seen], alone.top("conv2").images)
        filled.append(opaque(gallery.rows_view).sum())
        assert gallery.projections_box.layout.display == "none"
        assert gallery.bar.layout.display != "none"
    assert filled[0] < filled[1] < filled[2], "4 patches per row, then 8"
    slow.gate.release(4)
    finished(gallery)
    assert run.state == "done"
    assert scanned(gallery) == 12
    assert gallery.bar.layout.display == "none"
    assert len(gallery.frame.arrays["images"]) == 9


def test_redraw_is_throttled_but_always_final(
    tiny: Network, slow: Slow, open_gallery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convis_widgets.widgets.dataset.max_patch_gallery.REDRAW_PERIOD", 1e6)
    drawn: list[int] = []
    render_rows = max_patch_gallery.render_rows
    monkeypatch.setattr(
        max_patch_gallery, "render_rows", lambda scan, *a, **k: (drawn.append(scan.num_seen), render_rows(scan, *a, **k))[1]
    )
    gallery = open_gallery(tiny, slow)
    gallery._redraw_time = time.monotonic()
    slow.gate.release(12)
    finished(gallery)
    assert drawn == [0, 12]


def test_patches_are_rendered_once(
    tiny: Network, images: np.ndarray, open_gallery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of 8 channels has 9 patches in the rows, and 9 large ones once it is selected."""
    rendered: list[tuple[int, int]] = []
    original = patch_rows.render_patch

    def render_patch(scan: Scan, layer: str, top: Any, channel: int, j: int, side: int) -> np.ndarray:
        rendered.append((channel, j))
        return original(scan, layer, top, channel, j, side)

    for module in (patch_rows, max_patch_gallery):
        monkeypatch.setattr(module, "render_patch", render_patch)
    gallery = finished(open_gallery(tiny, images, layer="conv2"))
    assert len(rendered) == 8 * 9 + 9
    click(gallery.rows_view, *place(gallery, 3, 2))
    assert rendered[81:] == [(3, j) for j in range(9)]
    click(gallery.patches_view, 3 + 67, 3)
    gallery.projection = "none"
    finished(gallery)
    assert len(rendered) == 90
    gallery.k = 4
    assert len(rendered) == 90 + 8 * 4 + 4


def test_step_shows_result_while_paused(tiny: Network, slow: Slow, open_gallery: Any) -> None:
    gallery = open_gallery(tiny, slow)
    run = gallery.run
    gallery.bar.on_pause()
    slow.gate.release(12)
    reached(run, lambda run: run.state == "paused")
    for seen in (4, 8):
        assert scanned(gallery) == seen
        gallery.bar.on_step()
        reached(run, lambda run, seen=seen: run.last.step == seen + 4 and run.state != "running")
    finished(gallery)
    assert scanned(gallery) == 12


def test_scan_finished_during_construction_is_shown(
    tiny: Network, images: np.ndarray, open_gallery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = Run.start
    monkeypatch.setattr(Run, "start", lambda run: (start(run), run.join(PATIENCE))[0])
    gallery = open_gallery(tiny, images, projection="none")
    assert gallery.scan.complete
    assert scanned(gallery) == 12
    assert opaque(gallery.rows_view).any()


def test_stop_keeps_partial_scan_and_start_completes_it(
    tiny: Network, slow: Slow, images: np.ndarray, open_gallery: Any, tmp_path: Path
) -> None:
    gallery = open_gallery(tiny, slow)
    run = gallery.run
    slow.gate.release(4)
    reached(run, lambda run: run.last is not None)
    gallery.bar.on_stop()
    slow.gate.release(1)
    assert run.join(PATIENCE)
    assert (run.state, gallery.scan.num_seen) == ("stopped", 4)
    assert scanned(gallery) == 4
    assert re.search(r"\b4\b\D+\b12 steps", text_of(gallery))
    slow.gate.release(12)
    gallery.bar.on_start()
    finished(gallery)
    assert gallery.scan.complete
    whole = Scan(tiny, images, cache=tmp_path / "another")
    Run(whole.frames()).run()
    for layer in whole.layers:
        assert np.array_equal(gallery.scan.top(layer).images, whole.top(layer).images)
    assert scanned(gallery) == 12


def text_of(gallery: MaxPatchGallery) -> str:
    """The text lines of a snapshot."""
    texts: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convis_widgets.widgets.base.viewer.hstack_panels", lambda _panels, text: texts.append(text))
        gallery.snapshot()
    return texts[0]


def test_close_stops_scan_and_keeps_partial_result(tiny: Network, slow: Slow, images: np.ndarray) -> None:
    gallery = MaxPatchGallery(tiny, slow)
    run, scan = gallery.run, gallery.scan
    slow.gate.release(4)
    reached(run, lambda run: run.last is not None)
    gallery.close()
    slow.gate.release(100)
    assert run.join(PATIENCE)
    assert run.state == "stopped"
    assert scan.num_seen == 4
    assert (scan.folder / "state.npz").exists()


def test_layer_unit_and_k_can_change_while_scanning(tiny: Network, slow: Slow, open_gallery: Any) -> None:
    gallery = open_gallery(tiny, slow, layer="conv2")
    run = gallery.run
    slow.gate.release(4)
    reached(run, lambda run: run.last is not None)
    gallery.controls["layer"].value = "conv1"
    gallery.unit = ("side", 2)
    gallery.projection = "deconvnet"
    gallery.k = 2
    assert gallery.run is run
    assert re.search(r"\bside\b.*Conv2d.*\b8\b", gallery.caption.value)
    slow.gate.release(8)
    finished(gallery)
    assert run.state == "done"
    assert gallery.frame.arrays["images"].tolist() == gallery.scan.top("side").images[2, :2].tolist()


# -- sharing a Scan ------------------------------------------------------------------------------------------------------


def test_second_gallery_of_same_images_reuses_scan(
    tiny: Network, images: np.ndarray, open_gallery: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    step = Scan.step
    monkeypatch.setattr(Scan, "step", lambda scan: (looked.append(scan.num_seen), step(scan))[1])
    first = finished(open_gallery(tiny, images, projection="none"))
    count = len(looked)
    second = open_gallery(tiny, images.copy(), projection="none")
    assert second.run is None
    assert second.scan is first.scan
    assert len(looked) == count
    assert np.array_equal(shown(second.rows_view), shown(first.rows_view))
    assert second.bar.layout.display == "none"


def test_simultaneous_galleries_scan_each_image_once(tiny: Network, slow: Slow, open_gallery: Any) -> None:
    first, second = open_gallery(tiny, slow, projection="none"), open_gallery(tiny, slow, projection="none")
    assert first.scan is second.scan
    slow.gate.release(12)
    for gallery in (first, second):
        finished(gallery)
        assert scanned(gallery) == 12
    assert slow.through == set(range(12))


def test_complete_scan_is_shown_without_a_run(tiny: Network, images: np.ndarray, open_gallery: Any) -> None:
    scan = Scan(tiny, images, layers=["conv2"])
    Run(scan.frames()).run()
    gallery = open_gallery(images=scan, projection="none")
    assert (gallery.network, gallery.scan, gallery.run) == (tiny, scan, None)
    assert "conv1" not in gallery.controls["layer"].options
    assert gallery.layer == "conv2"


def test_unwritable_cache_is_reported(tiny: Network, images: np.ndarray, open_gallery: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    gallery = finished(open_gallery(images=Scan(tiny, images, cache=tmp_path / "file")))
    assert "CONVIS_CACHE" in gallery.notices.value
    assert not finished(open_gallery(tiny, images)).notices.value


# -- selection -----------------------------------------------------------------------------------------------------------


def test_click_on_channel_number_selects_channel(gallery: MaxPatchGallery) -> None:
    click(gallery.rows_view, *place(gallery, 6, None))
    assert gallery.unit == Unit("conv2", 6)
    assert gallery.image_index is None
    assert gallery.controls["channel"].value == 6
    assert re.search(r"channel 6\b.*conv2", gallery.facts.value)
    (x, y), (top, left, bottom, right) = place(gallery, 6, None), selected_box(gallery.rows_view)
    assert top <= y <= bottom
    assert left - 2 <= x <= right  # the frame is 2 pixels wide
    click(gallery.rows_view, 1e5, 3)
    assert gallery.unit == Unit("conv2", 6)


def test_click_on_patch_sets_image_index_and_draws_box(gallery: MaxPatchGallery, images: np.ndarray) -> None:
    top = gallery.scan.top("conv2")
    for channel, j in ((6, 4), (2, 0), (2, 8)):
        click(gallery.rows_view, *place(gallery, channel, j))
        assert gallery.unit == Unit("conv2", channel)
        assert gallery.image_index == top.images[channel, j]
        up, left, bottom, right = gallery.network.layers["conv2"].box((top.rows[channel, j], top.cols[channel, j]))
        whole = shown(gallery.whole_view)
        assert whole.shape[:2] == (256, 256)
        inside = np.s_[16 * up : 16 * bottom, 16 * left : 16 * right]
        expected = images[gallery.image_index].repeat(16, 0).repeat(16, 1)
        assert np.array_equal(whole[inside][..., :3], expected[inside])
        assert gallery.whole_view.marks == [{"box": [16 * up, 16 * left, 16 * bottom, 16 * right]}]
        saved = gallery.whole_view.with_boxes()
        ys, xs = np.nonzero((saved[..., :3] == HIGHLIGHT).all(2))
        assert (ys.min(), xs.min()) == (max(16 * up - 2, 0), max(16 * left - 2, 0))
        assert (ys.max(), xs.max()) == (min(16 * bottom + 1, 255), min(16 * right + 1, 255))
        assert re.search(rf"\w+ {gallery.image_index}\b", gallery.whole_caption.value)
        assert f"{top.values[channel, j]:.3g}" in gallery.whole_caption.value


def test_click_on_large_patch_or_projection_sets_image_index(gallery: MaxPatchGallery) -> None:
    top = gallery.scan.top("conv2")
    for view, j in ((gallery.patches_view, 4), (gallery.projections_view, 7)):
        click(view, 3 + 67 * (j % 3) + 30, 3 + 67 * (j // 3) + 30)
        assert gallery.image_index == top.images[0, j]
        assert gallery.patch == j
        top_edge, left_edge = 3 + 67 * (j // 3), 3 + 67 * (j % 3)
        assert selected_box(gallery.patches_view) == [top_edge, left_edge, top_edge + 64, left_edge + 64]
    click(gallery.patches_view, 5000, 5000)
    assert gallery.patch == 7


def test_hover_describes_patch(gallery: MaxPatchGallery) -> None:
    x, y = place(gallery, 4, 2)
    gallery.rows_view.on_pointer({"type": "move", "x": x, "y": y})
    top = gallery.scan.top("conv2")
    expected = rf"channel 4\b.*{top.values[4, 2]:.3g}.*\b{top.rows[4, 2]}, {top.cols[4, 2]}\b.*\b{top.images[4, 2]}\b"
    assert re.search(expected, gallery.hover.value)
    assert gallery.unit == Unit("conv2", 0)
    gallery.rows_view.on_pointer({"type": "leave"})
    assert not gallery.hover.value


def test_layer_change_selects_first_channel(gallery: MaxPatchGallery) -> None:
    gallery.unit = ("conv2", 5)
    gallery.controls["layer"].value = "conv1"
    finished(gallery)
    assert (gallery.unit, gallery.controls["channel"].value, gallery.controls["channel"].max) == (Unit("conv1", 0), 0, 5)
    assert re.search(r"conv1\b.*Conv2d.*\b6\b.*\b3x3\b", gallery.caption.value)
    gallery.controls["channel"].value = 4
    assert gallery.unit == Unit("conv1", 4)
    gallery.layer = "side"
    assert gallery.controls["layer"].value == "side"
    assert gallery.controls["channel"].max == 7


def test_page_follows_selected_channel(open_gallery: Any) -> None:
    gallery = finished(open_gallery(images=demo.Toyscape(20, seed=3), layer="conv3", projection="none"))
    assert (gallery.controls["page"].max, gallery.controls["page"].layout.display) == (2, "")
    gallery.controls["page"].value = 2
    assert list(gallery.patch_rows.channels) == list(range(64, 96))
    assert gallery.unit == Unit("conv3", 0)
    gallery.unit = ("conv3", 40)
    assert (gallery.page, gallery.controls["page"].value) == (1, 1)
    assert list(gallery.patch_rows.channels) == list(range(32, 64))
    gallery.page = 99
    assert gallery.page == 2
    gallery.layer = "conv1"
    assert (gallery.page, gallery.controls["page"].layout.display) == (0, "none")
    assert list(gallery.patch_rows.channels) == list(range(32))


def test_last_page_can_be_partial(images: np.ndarray, open_gallery: Any) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(3, 37, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    gallery = finished(open_gallery(net, images, unit=("0", 36)))
    assert gallery.page == 1
    assert list(gallery.patch_rows.channels) == [32, 33, 34, 35, 36]
    click(gallery.rows_view, *place(gallery, 34, None))
    assert gallery.unit == Unit("0", 34)
    assert not gallery.status.value


def test_k_sets_number_of_patches_per_channel(gallery: MaxPatchGallery) -> None:
    gallery.k = 4
    finished(gallery)
    assert gallery.patch_rows.k == 4
    assert len(gallery.frame.arrays["values"]) == 4
    assert gallery.facts.value.count(", ") == 3
    gallery.k = 64
    finished(gallery)
    assert len(gallery.frame.arrays["values"]) == 12, "an image counts once"
    with pytest.raises(traitlets.TraitError):
        gallery.k = 0


def test_click_on_patch_draws_once(gallery: MaxPatchGallery, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []
    for view in (gallery.rows_view, gallery.patches_view, gallery.whole_view):
        monkeypatch.setattr(view, "show", lambda image, **_: drawn.append(image))
    click(gallery.rows_view, *place(gallery, 6, 4))
    assert len(drawn) == 3


def test_patch_is_reset_when_k_excludes_it(gallery: MaxPatchGallery) -> None:
    click(gallery.patches_view, 3 + 67 * 2, 3 + 67 * 2)
    assert gallery.patch == 8
    gallery.k = 4
    gallery.image_index = int(gallery.scan.top("conv2").images[0, 2])
    assert gallery.patch == 2
    assert not gallery.status.value


def test_patch_is_reset_when_channel_changes(gallery: MaxPatchGallery) -> None:
    click(gallery.rows_view, *place(gallery, 2, 5))
    gallery.unit = ("conv2", 3)
    assert gallery.patch is None
    assert re.search(rf"\w+ {gallery.scan.top('conv2').images[3, 0]}\b", gallery.whole_caption.value)


def test_image_index_is_a_constructor_argument(tiny: Network, images: np.ndarray, open_gallery: Any) -> None:
    assert finished(open_gallery(tiny, images, image_index=3)).image_index == 3
    with pytest.raises(traitlets.TraitError, match=r"\b12\b.*\b0\b.*\b11\b"):
        MaxPatchGallery(tiny, images, image_index=12)


# -- linking -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def toyscape(tmp_path: Path) -> Scan:
    scan = Scan(Network.demo(), demo.Toyscape(20, seed=3), cache=tmp_path / "toyscape")
    Run(scan.frames()).run()
    return scan


def test_linked_filter_grid_selects_channel(toyscape: Scan, open_gallery: Any) -> None:
    gallery, grid = open_gallery(images=toyscape), FilterGrid()
    link(gallery, grid)
    top, left, _, _ = grid.mosaic.box(21)
    click(grid.grid, left + 1, top + 1)
    finished(gallery)
    assert re.search(r"channel 21\b.*conv1", gallery.facts.value)
    assert gallery.frame.arrays["images"].tolist() == toyscape.top("conv1").images[21, :9].tolist()
    click(gallery.rows_view, *place(gallery, 5, 1))
    assert grid.unit == Unit("conv1", 5)
    assert grid.selected == 5


def test_linked_relu_unit_shows_patches_of_its_convolution(toyscape: Scan, open_gallery: Any) -> None:
    gallery, explorer = open_gallery(images=toyscape), settled(ActivationExplorer(layer="conv2"))
    link(explorer, gallery)
    explorer.unit = ("relu3", 40)
    settled(explorer)
    finished(gallery)
    assert gallery.layer == "relu3"
    assert re.search(r"channel 40\b.*relu3", gallery.facts.value)
    assert gallery.frame.arrays["images"].tolist() == toyscape.top("conv3").images[40, :9].tolist()
    before = shown(gallery.rows_view)
    for other in (("pool3", 7), ("fc8", 3)):
        explorer.unit = other
        settled(explorer)
        assert gallery.unit == explorer.unit
        assert (gallery.layer, gallery.shown) == ("relu3", Unit("relu3", 40))
        assert np.array_equal(shown(gallery.rows_view), before)
        assert not gallery.status.value
    click(gallery.rows_view, *place(gallery, 40, None))
    assert explorer.unit == Unit("relu3", 40)


def test_unit_with_position_shows_its_channel(toyscape: Scan, open_gallery: Any) -> None:
    gallery = open_gallery(images=toyscape, unit=("conv4", 8, (2, 3)))
    finished(gallery)
    assert re.search(r"channel 8\b.*conv4", gallery.facts.value)
    assert gallery.frame.arrays["images"].tolist() == toyscape.top("conv4").images[8, :9].tolist()


# -- errors --------------------------------------------------------------------------------------------------------------


def test_unreadable_files_are_skipped_and_named(tiny: Network, open_gallery: Any, tmp_path: Path) -> None:
    gallery = finished(open_gallery(tiny, written(tmp_path / "<b>", 6, (1, 4))))
    assert gallery.run.state == "done"
    assert re.search(r"\b2\b\D+\b6\b.*\b1\.png", gallery.notices.value)
    assert "4.png" in gallery.notices.value
    assert not gallery.status.value
    assert not {1, 4} & set(gallery.frame.arrays["images"].tolist())


def test_unreadable_files_are_named_up_to_three(tiny: Network, open_gallery: Any, tmp_path: Path) -> None:
    gallery = finished(open_gallery(tiny, written(tmp_path / "noise", 7, (0, 1, 2, 3, 4))))
    assert re.search(r"\b5\b\D+\b7\b.*\b0\.png", gallery.notices.value)
    assert "2.png" in gallery.notices.value
    assert "3.png" not in gallery.notices.value


def test_all_files_unreadable_shows_error(tiny: Network, open_gallery: Any, tmp_path: Path) -> None:
    gallery = finished(open_gallery(tiny, written(tmp_path / "noise", 3, (0, 1, 2))))
    assert re.search(r"\bnoise\b.*\b0\.png", gallery.status.value)
    gallery.unit = ("conv1", 3)
    assert gallery.snapshot().shape[2] == 3


def test_patch_of_padding_only_is_gray(images: np.ndarray, open_gallery: Any) -> None:
    conv = nn.Conv2d(3, 4, 1, padding=1)
    nn.init.constant_(conv.weight, -1.0)
    nn.init.constant_(conv.bias, 5.0)
    net = Network(nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    gallery = finished(open_gallery(net, images))
    assert not gallery.status.value
    assert (shown(gallery.patches_view)[10:60, 10:60, :3] == 128).all()
    click(gallery.rows_view, *place(gallery, 1, 0))
    assert not gallery.status.value
    assert gallery.image_index == gallery.scan.top("0").images[1, 0]


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"images": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"layer": "fc"}, ValueError, r"\bfc\b.*scan.*conv1, conv2, side"),
        ({"unit": ("pool", 1)}, ValueError, r"\bpool\b.*scan"),
        ({"layer": "conv1", "unit": ("conv2", 1)}, ValueError, "conv1.*conv2"),
        ({"unit": ("conv1", 6)}, ValueError, r"conv1.*\b0\b.*\b5\b.*\b6\b"),
        ({"layr": "conv1"}, TypeError, "MaxPatchGallery.*layr.*layer"),
        ({"projection": "guided"}, traitlets.TraitError, "guided backprop"),
        ({"k": 65}, traitlets.TraitError, "k"),
        ({"image_index": -1}, traitlets.TraitError, "-1"),
    ],
)
def test_max_patch_gallery_with_invalid_argument_raises_and_is_closed(
    kwargs: dict[str, Any], error: type[Exception], message: str, tiny: Network, images: np.ndarray
) -> None:
    before = set(_instances)
    with pytest.raises(error, match=message):
        MaxPatchGallery(tiny, **({"images": images} | kwargs))
    assert [type(_instances[key]).__name__ for key in set(_instances) - before] == []


def test_empty_folder_and_scan_of_other_network_raise(tiny: Network, images: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        MaxPatchGallery(tiny, tmp_path / "empty")
    with pytest.raises(ValueError, match=r"\btiny\b"):
        MaxPatchGallery(Network.demo(), Scan(tiny, images))


def test_layer_rejects_unscanned_layers(gallery: MaxPatchGallery) -> None:
    for layer in ("fc", "pool", "conv9"):
        with pytest.raises(ValueError, match=layer):
            gallery.layer = layer
    assert gallery.layer == "conv2"


# -- saving and closing --------------------------------------------------------------------------------------------------


def test_save_contains_rows_patches_projections_and_image(gallery: MaxPatchGallery, tmp_path: Path) -> None:
    panels, lines = gallery.snapshot_panels()
    assert len(panels) == 4
    assert "channel 0" in panels[1][0]
    assert "guided backprop" in panels[2][0]
    assert re.search(r"\btiny\b.*array.*\bconv2\b.*Conv2d.*\b8\b", lines[0])
    path = gallery.save(tmp_path / "patches.png")
    assert np.array_equal(np.asarray(Image.open(path)), gallery.snapshot())
    gallery.projection = "none"
    assert not any("guided backprop" in title for title, _ in gallery.snapshot_panels()[0])


# -- missing, broken and unusual inputs ----------------------------------------------------------------------------------


def test_deleted_image_is_a_gray_patch_and_named(tiny: Network, open_gallery: Any, tmp_path: Path) -> None:
    folder = written(tmp_path / "noise", 6)
    Run(Scan(tiny, folder).frames()).run()
    (scan := Scan(tiny, folder)), (folder / "3.png").unlink()
    gallery = finished(open_gallery(tiny, scan, layer="conv2"))
    assert gallery.run.state == "done"
    assert not gallery.status.value
    assert "3.png" in gallery.notices.value
    top = scan.top("conv2")
    at = top.images[0].tolist().index(3)
    tile = gallery.patches.tiles[at]
    assert (tile == 128).all()
    assert not (gallery.patches.tiles[at - 1] == 128).all()


def test_nonfinite_channel_is_described_and_shows_no_image(
    tiny_module: nn.Module, images: np.ndarray, open_gallery: Any
) -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.rest = nn.Conv2d(3, 3, 3, padding=1), tiny_module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rest(torch.nan_to_num(self.conv(x)))

    module = Broken()
    with torch.no_grad():
        module.conv.weight[1] = torch.nan
    gallery = finished(open_gallery(Network(module.eval(), size=16), images, layer="conv"))
    assert gallery.whole_view.layout.display == ""
    gallery.unit = ("conv", 1)
    finished(gallery)
    assert re.search(r"(?i)channel 1\b.*\bconv\b.*finite", gallery.facts.value)
    assert gallery.whole_view.layout.display == gallery.whole_caption.layout.display == "none"
    assert gallery.whole_view.alt not in gallery.snapshot_panels()[1]
    gallery.unit = ("conv", 2)
    assert gallery.whole_view.layout.display == ""


def test_network_without_convolutions_raises_unless_scanned(images: np.ndarray, open_gallery: Any) -> None:
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(16 * 16 * 3, 4)), size=16, channels=3)
    with pytest.raises(ValueError, match="(?i)convolution.*Scan"):
        open_gallery(net, images)
    gallery = finished(open_gallery(net, Scan(net, images, layers="all")))
    assert gallery.layer


def test_k_larger_than_scan_k_is_described(tiny: Network, open_gallery: Any) -> None:
    many = np.random.default_rng(0).integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    gallery = finished(open_gallery(tiny, many, k=30, projection="none"))
    assert gallery.scan.k == 30
    assert gallery.patch_rows.k == len(gallery.patches.tiles) == 30
    gallery.k = 33
    assert re.search(r"\b30\b.*k=33\b", gallery.caption.value)


def test_snapshot_text_counts_readable_images(tiny: Network, open_gallery: Any, tmp_path: Path) -> None:
    gallery = finished(open_gallery(tiny, written(tmp_path / "noise", 6, (1, 4))))
    expected = r"\btiny\b.*\bnoise\b.*\bconv1\b.*Conv2d.*\b6\b.*\b3x3\b.*\b4\D+6\b"
    assert re.search(expected, gallery.snapshot_panels()[1][0])


@pytest.mark.parametrize("channels", [2, 4])
def test_max_patch_gallery_accepts_two_or_four_input_channels(channels: int, open_gallery: Any) -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)), size=16)
    images = np.random.default_rng(0).integers(0, 256, (6, 16, 16, channels), dtype=np.uint8)
    gallery = finished(open_gallery(net, images))
    assert gallery.run.state == "done"
    assert not gallery.status.value


def test_deleted_results_are_recomputed(tiny: Network, images: np.ndarray, open_gallery: Any) -> None:
    gallery = finished(open_gallery(tiny, images))
    shutil.rmtree(gallery.scan.folder)
    gallery.unit = ("conv2", 3)
    finished(gallery)
    assert not gallery.status.value
    assert len(gallery.frame.arrays["images"]) == 9


def test_image_index_set_externally_shows_image(gallery: MaxPatchGallery) -> None:
    shown_here = gallery.scan.top("conv2").images[0, :9].tolist()
    gallery.image_index = shown_here[4]
    assert gallery.patch == 4
    value = gallery.scan.top("conv2").values[0, 4]
    assert re.search(rf"\w+ {shown_here[4]}\b.*{value:.3g}", gallery.whole_view.alt)
    other = next(i for i in range(12) if i not in shown_here)
    gallery.image_index = other
    assert re.search(rf"\w+ {other}\b.*channel 0\b", gallery.whole_caption.value)
