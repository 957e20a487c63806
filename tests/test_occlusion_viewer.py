"""OcclusionViewer, without a browser."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from seen import PATIENCE, settled, shown
from torch import nn

from convis_widgets import FilterGrid, Network, OcclusionViewer, Unit, demo, link
from convis_widgets.core import Run
from convis_widgets.techniques import occlusion
from convis_widgets.widgets.bars import bars
from convis_widgets.widgets.occlusion_viewer import SIDE, TABS


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return demo.images(1, seed=4, label="face")[0].image


@pytest.fixture
def viewer(face: np.ndarray) -> OcclusionViewer:
    made = settled(OcclusionViewer(image=face, target="face", patch=16, stride=4))
    yield made
    made.close()


def test_the_four_maps_stand_in_tabs(viewer: OcclusionViewer, face: np.ndarray) -> None:
    assert viewer.tabs.titles == TABS
    assert not viewer.status.value
    pictures = [shown(viewer.views[name]) for name in TABS]
    assert all(picture.shape[:2] == pictures[0].shape[:2] for picture in pictures)
    assert all(picture.std() > 5 for picture in pictures)
    frame = Run(occlusion(viewer.network, face, target="face", patch=16, stride=4, layer="relu5")).run()
    assert np.array_equal(viewer.frame.arrays["activation"], frame.arrays["activation"])
    low, high = frame.arrays["activation"].min(), max(frame.arrays["activation"].max(), frame.scalars["activation"])
    assert (viewer.scales["activation"].low.value, viewer.scales["activation"].high.value) == (f"{low:.3g}", f"{high:.3g}")
    assert f"map {frame.scalars['channel']:.0f} of relu5" in viewer.captions["activation"].value


def pointing_at(viewer: OcclusionViewer, row: int, column: int) -> dict[str, object]:
    """The mouse on a pixel of the network's input grid."""
    scale = viewer.views["probability"].array.shape[0] / viewer.frame.image.shape[0]
    return {"type": "mousemove", "relativeX": (column + 0.5) * scale, "relativeY": (row + 0.5) * scale}


@pytest.mark.parametrize("where", [(35, 50), (0, 0), (63, 63), (17, 22)])
def test_where_the_mouse_is_the_picture_is_hidden_with_the_top_five_of_just_that(
    viewer: OcclusionViewer, face: np.ndarray, where: tuple[int, int]
) -> None:
    viewer.views["activation"].on_mouse(pointing_at(viewer, *where))
    edges = np.arange(0, 49, 4)
    top, left = (int(edges[np.abs(edges + 7.5 - at).argmin()]) for at in where)
    hidden = face.copy()
    hidden[top : top + 16, left : left + 16] = viewer.network.transform.mean
    expected = viewer.network.predict(hidden)
    assert viewer.top5.value == bars(expected)
    pixels = shown(viewer.input_view)[2::4, 2::4][:64, :64, :3]
    inside = np.s_[top + 2 : top + 14, left + 2 : left + 14]
    assert np.abs(pixels[inside] / 255 - hidden[inside]).max() < 0.01
    assert f"p(face) = {dict(expected).get('face', 0):.3g}" in viewer.hover.value
    viewer.views["activation"].on_mouse({"type": "mouseleave"})
    assert np.abs(shown(viewer.input_view)[2::4, 2::4][:64, :64, :3] / 255 - face).max() < 0.01


def test_a_click_keeps_the_patch_and_a_typed_position_moves_it(viewer: OcclusionViewer) -> None:
    viewer.views["probability"].on_mouse(pointing_at(viewer, 35, 50) | {"type": "click"})
    assert viewer.position == (7, 11)
    assert viewer.position_field.value == "7, 11"
    viewer.position_field.value = "2, 11"
    assert viewer.position == (2, 11)
    assert "position 2, 11" in viewer.input_caption.value
    for wrong, sentence in (
        ("40, 2", "go from 0, 0 to 12, 12, not to 40, 2"),
        ("here", "is no position"),
        ("1", "should be"),
    ):
        viewer.position_field.value = wrong
        assert sentence in viewer.status.value
        assert viewer.position == (2, 11)
    for wrong in ((1.5, 2), "a", (1, 2, 3)):
        with pytest.raises(Exception, match="should be \\(row, column\\), two whole numbers"):
            viewer.position = wrong
    viewer.position_field.value = ""
    assert viewer.position is None
    assert not viewer.status.value


def test_the_position_field_follows_the_mouse(viewer: OcclusionViewer) -> None:
    viewer.views["probability"].on_mouse(pointing_at(viewer, 35, 50))
    assert viewer.position_field.value == "7, 11"
    assert viewer.position is None
    viewer.views["probability"].on_mouse({"type": "mouseleave"})
    assert not viewer.position_field.value


def test_the_legend_names_the_classes_of_the_map(viewer: OcclusionViewer) -> None:
    viewer.fill, viewer.patch = "white", 40
    settled(viewer)
    classes, counts = np.unique(viewer.frame.arrays["top"][..., 0], return_counts=True)
    assert len(classes) > 1
    for c, n in zip(classes, counts, strict=True):
        assert f"{viewer.network.labels[c]} at {n / counts.sum():.0%}" in viewer.legend.value
    assert len({tuple(viewer._color_of(int(c))) for c in classes}) == min(len(classes), 7)


def test_turned_knobs_begin_anew(viewer: OcclusionViewer) -> None:
    first = viewer.run
    viewer.knobs["stride"].value = 12
    settled(viewer)
    assert viewer.run is not first
    assert viewer.frame.arrays["probability"].shape == (5, 5)
    viewer.knobs["fill"].value = "noise"
    settled(viewer)
    assert viewer.frame.arrays["hiding"].std() > 0.2


def test_the_map_watched_is_chosen_by_menu_or_by_a_linked_widget(viewer: OcclusionViewer) -> None:
    grid = FilterGrid()
    link(viewer, grid)
    viewer.layer_menu.value = "conv2"
    settled(viewer)
    assert "of conv2" in viewer.captions["activation"].value
    viewer.channel_menu.value = 5
    settled(viewer)
    assert "map 5 of conv2" in viewer.captions["activation"].value
    assert grid.unit == Unit("conv2", 5)
    grid.unit = ("conv3", 40)
    settled(viewer)
    assert (viewer.layer, viewer.channel_menu.value) == ("conv3", 40)
    assert "map 40 of conv3" in viewer.captions["activation"].value
    viewer.channel_menu.value = -1
    settled(viewer)
    assert viewer.unit is None
    strongest = next(occlusion(viewer.network, viewer.images.value, layer="conv3")).scalars["channel"]
    assert viewer.frame.scalars["channel"] == strongest
    viewer.layer_menu.value = ""
    settled(viewer)
    assert "activation" not in viewer.frame.arrays
    assert "choose a layer" in viewer.captions["activation"].value
    with pytest.raises(Exception, match=r"fc7 \(Linear\) has no maps to watch; there are: conv1"):
        viewer.layer = "fc7"


def test_while_it_streams_what_is_hovered_but_not_there_yet_says_so(face: np.ndarray) -> None:
    viewer = OcclusionViewer(image=face, patch=4, stride=1)
    begun = threading.Event()
    viewer.run.subscribe(lambda run: begun.set() if run.last is not None else None)
    assert viewer.run.last is not None or begun.wait(PATIENCE)
    viewer.bar.on_pause()
    unknown = np.argwhere(viewer.frame.arrays["top"][..., 0] < 0)
    if len(unknown):
        viewer.position = tuple(int(v) for v in unknown[-1])
        assert "not computed yet" in viewer.input_caption.value
        assert not viewer.top5.value
    viewer.close()


def test_a_network_without_a_deconvnet_still_has_the_other_maps(face: np.ndarray) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    viewer = settled(OcclusionViewer(Network(module, size=64), face, patch=20, stride=10))
    assert viewer.run.state == "done"
    assert "has no deconvnet" in viewer.captions["projection"].value
    assert viewer.views["activation"].array.std() > 0


def test_a_network_without_maps_has_the_two_maps_of_the_prediction(face: np.ndarray) -> None:
    torch.manual_seed(0)
    flat = Network(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5)), size=64, channels=3)
    viewer = settled(OcclusionViewer(flat, face, patch=20, stride=10))
    assert viewer.layer == ""
    assert not viewer.status.value
    assert viewer.views["probability"].array.shape[0] <= SIDE
    assert viewer.snapshot().std() > 5
