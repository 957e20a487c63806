"""OcclusionViewer, without a browser."""

from __future__ import annotations

import html
import re
import threading

import numpy as np
import pytest
import torch
from torch import nn
from widget_helpers import PATIENCE, settled, shown

from convis_widgets import FilterGrid, Network, OcclusionViewer, Unit, demo, link
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.occlusion import occlusion
from convis_widgets.widgets.attribution.occlusion_maps import MAPS
from convis_widgets.widgets.attribution.occlusion_viewer import MAP_SIDE, MOST_ACTIVE
from convis_widgets.widgets.drawing.bars import prediction_bars


@pytest.fixture(scope="module")
def face() -> np.ndarray:
    return demo.images(1, seed=4, label="face")[0].image


@pytest.fixture
def viewer(face: np.ndarray) -> OcclusionViewer:
    made = settled(OcclusionViewer(image=face, target="face", patch_size=16, stride=4))
    yield made
    made.close()


def plain_text(markup: str) -> str:
    """The text of an HTML value, without tags."""
    return html.unescape(re.sub(r"<[^>]*>", " ", markup))


def names_map(markup: str, layer: str, channel: int) -> bool:
    """Whether a caption names this channel of this layer."""
    between = r"\W+(?:[a-z]+\W+){0,2}"
    return bool(re.search(rf"\b{channel}{between}{layer}\b|\b{layer}{between}{channel}\b", plain_text(markup)))


def test_occlusion_viewer_shows_four_maps_in_tabs(viewer: OcclusionViewer, face: np.ndarray) -> None:
    assert viewer.tabs.titles == MAPS
    assert not viewer.status.value
    maps = [shown(viewer.map_views[name]) for name in MAPS]
    assert all(array.shape[:2] == maps[0].shape[:2] for array in maps)
    assert all(array.std() > 5 for array in maps)
    frame = Run(occlusion(viewer.network, face, target="face", patch_size=16, stride=4, layer="relu5")).run()
    assert np.array_equal(viewer.frame.arrays["activation"], frame.arrays["activation"])
    low, high = frame.arrays["activation"].min(), max(frame.arrays["activation"].max(), frame.scalars["activation"])
    assert (viewer.scales["activation"].low.value, viewer.scales["activation"].high.value) == (f"{low:.3g}", f"{high:.3g}")
    assert names_map(viewer.captions["activation"].value, "relu5", int(frame.scalars["channel"]))


def mouse_at(viewer: OcclusionViewer, row: int, column: int) -> dict[str, object]:
    """A mouse event at a pixel of the network's input."""
    scale = viewer.map_views["probability"].array.shape[0] / viewer.frame.image.shape[0]
    return {"type": "move", "x": (column + 0.5) * scale, "y": (row + 0.5) * scale}


@pytest.mark.parametrize("where", [(35, 50), (0, 0), (63, 63), (17, 22)])
def test_occlusion_viewer_hover_shows_occluded_image_and_its_top5(
    viewer: OcclusionViewer, face: np.ndarray, where: tuple[int, int]
) -> None:
    viewer.map_views["activation"].on_pointer(mouse_at(viewer, *where))
    edges = np.arange(0, 49, 4)
    top, left = (int(edges[np.abs(edges + 7.5 - at).argmin()]) for at in where)
    occluded = face.copy()
    occluded[top : top + 16, left : left + 16] = viewer.network.transform.mean
    expected = viewer.network.predict(occluded)
    assert viewer.top5.value == prediction_bars(expected, viewer.network.output)
    pixels = shown(viewer.input_view)[2::4, 2::4][:64, :64, :3]
    inside = np.s_[top + 2 : top + 14, left + 2 : left + 14]
    assert np.abs(pixels[inside] / 255 - occluded[inside]).max() < 0.01
    probability = re.escape(f"{dict(expected).get('face', 0):.3g}")
    assert re.search(rf"\bface\D*{probability}", plain_text(viewer.hover.value))
    viewer.map_views["activation"].on_pointer({"type": "leave"})
    assert np.abs(shown(viewer.input_view)[2::4, 2::4][:64, :64, :3] / 255 - face).max() < 0.01


def test_occlusion_viewer_position_is_set_by_click_and_by_typing(viewer: OcclusionViewer) -> None:
    viewer.map_views["probability"].on_pointer(mouse_at(viewer, 35, 50) | {"type": "click"})
    assert viewer.position == (7, 11)
    assert viewer.controls["position"].value == "7, 11"
    viewer.controls["position"].value = "2, 11"
    assert viewer.position == (2, 11)
    assert re.search(r"\b2\D+11\b", plain_text(viewer.input_caption.value))
    for wrong, expected in (("40, 2", {"40", "2", "12"}), ("here", {"here"}), ("1", {"1"})):
        viewer.controls["position"].value = wrong
        assert expected <= set(re.findall(r"\w+", plain_text(viewer.status.value)))
        assert viewer.position == (2, 11)
    for wrong in ((1.5, 2), "a", (1, 2, 3)):
        with pytest.raises(Exception, match="(?i)position.*row.*column"):
            viewer.position = wrong
    viewer.controls["position"].value = ""
    assert viewer.position is None
    assert not viewer.status.value


def test_occlusion_viewer_position_field_follows_mouse(viewer: OcclusionViewer) -> None:
    viewer.map_views["probability"].on_pointer(mouse_at(viewer, 35, 50))
    assert viewer.controls["position"].value == "7, 11"
    assert viewer.position is None
    viewer.map_views["probability"].on_pointer({"type": "leave"})
    assert not viewer.controls["position"].value


def test_occlusion_viewer_legend_lists_class_shares(viewer: OcclusionViewer) -> None:
    viewer.update(baseline="white", patch_size=40)
    settled(viewer)
    classes, counts = np.unique(viewer.frame.arrays["top"][..., 0], return_counts=True)
    assert len(classes) > 1
    for c, n in zip(classes, counts, strict=True):
        label, share = viewer.network.labels[c], f"{n / counts.sum():.0%}"
        assert re.search(rf"\b{label}\D*\b{share}", plain_text(viewer.legend.value))
    assert len({tuple(viewer.maps.color_of(int(c))) for c in classes}) == min(len(classes), 7)


def test_occlusion_viewer_restarts_when_knob_changes(viewer: OcclusionViewer) -> None:
    first = viewer.run
    viewer.controls["stride"].value = 12
    settled(viewer)
    assert viewer.run is not first
    assert viewer.frame.arrays["probability"].shape == (5, 5)
    viewer.controls["baseline"].value = "noise"
    settled(viewer)
    assert viewer.frame.arrays["baseline"].std() > 0.2


def test_occlusion_viewer_channel_is_set_by_menu_or_linked_widget(viewer: OcclusionViewer) -> None:
    grid = FilterGrid()
    link(viewer, grid)
    viewer.controls["layer"].value = "conv2"
    settled(viewer)
    assert "conv2" in viewer.captions["activation"].value
    viewer.controls["channel"].value = 5
    settled(viewer)
    assert names_map(viewer.captions["activation"].value, "conv2", 5)
    assert grid.unit == Unit("conv2", 5)
    grid.unit = ("conv3", 40)
    settled(viewer)
    assert (viewer.layer, viewer.controls["channel"].value) == ("conv3", 40)
    assert names_map(viewer.captions["activation"].value, "conv3", 40)
    viewer.controls["channel"].value = MOST_ACTIVE
    settled(viewer)
    assert viewer.unit is None
    strongest = next(occlusion(viewer.network, viewer.images.value, layer="conv3")).scalars["channel"]
    assert viewer.frame.scalars["channel"] == strongest
    viewer.controls["layer"].value = ""
    settled(viewer)
    assert "activation" not in viewer.frame.arrays
    caption = plain_text(viewer.captions["activation"].value)
    assert "layer" in caption.lower()
    assert "conv3" not in caption
    with pytest.raises(Exception, match="fc7.*Linear.*conv1"):
        viewer.layer = "fc7"


def test_occlusion_viewer_marks_positions_not_yet_computed(face: np.ndarray) -> None:
    viewer = OcclusionViewer(image=face, patch_size=4, stride=1)
    begun = threading.Event()
    viewer.run.subscribe(lambda run: begun.set() if run.last is not None else None)
    assert viewer.run.last is not None or begun.wait(PATIENCE)
    viewer.bar.on_pause()
    unknown = np.argwhere(viewer.frame.arrays["top"][..., 0] < 0)
    if len(unknown):
        viewer.position = tuple(int(v) for v in unknown[-1])
        assert re.search(r"(?i)comput|pending|\byet\b", plain_text(viewer.input_caption.value))
        assert not viewer.top5.value
    viewer.close()


def test_occlusion_viewer_without_deconvnet_shows_other_maps(face: np.ndarray) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    viewer = settled(OcclusionViewer(Network(module, size=64), face, patch_size=20, stride=10))
    assert viewer.run.state == "done"
    assert "ReLU" in viewer.captions["projection"].value
    assert viewer.map_views["activation"].array.std() > 0


def test_occlusion_viewer_without_spatial_layers_shows_prediction_maps(face: np.ndarray) -> None:
    torch.manual_seed(0)
    flat = Network(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5)), size=64, channels=3)
    viewer = settled(OcclusionViewer(flat, face, patch_size=20, stride=10))
    assert viewer.layer == ""
    assert not viewer.status.value
    assert viewer.map_views["probability"].array.shape[0] <= MAP_SIDE
    assert viewer.snapshot().std() > 5
