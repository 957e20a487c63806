"""The widgets without a browser: state, drawing, linking, errors, threads."""

from __future__ import annotations

import base64
import gc
import io
import threading
import weakref
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
import torch
from PIL import Image
from seen import PATIENCE, settled, shown
from torch import nn

from convis_widgets import (
    ActivationExplorer,
    FilterGrid,
    Network,
    OcclusionViewer,
    RandomizationViewer,
    SaliencyViewer,
    Unit,
    demo,
    link,
)
from convis_widgets.widgets.controls import ClassPicker, note
from convis_widgets.widgets.viewer import Viewer

KINDS = [FilterGrid, ActivationExplorer, SaliencyViewer, OcclusionViewer, RandomizationViewer]


@pytest.fixture(scope="module")
def mnist() -> Network:
    torch.manual_seed(0)
    return Network(nn.Sequential(nn.Conv2d(1, 4, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(576, 10)))


@pytest.mark.parametrize("kind", KINDS)
def test_one_line_gives_a_picture(kind: type[Viewer]) -> None:
    viewer = settled(kind())
    assert viewer.snapshot().std() > 10
    assert not viewer.status.value
    viewer.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_gray_28_pixel_network_works_too(kind: type[Viewer], mnist: Network) -> None:
    viewer = settled(kind(mnist))
    assert viewer.snapshot().std() > 5
    assert not viewer.status.value


@pytest.mark.parametrize("kind", KINDS)
def test_save_writes_a_png_whole_or_not_at_all(kind: type[Viewer], tmp_path: Path) -> None:
    viewer = settled(kind())
    path = viewer.save(tmp_path / "x.png")
    assert np.array_equal(np.asarray(Image.open(path)), viewer.snapshot())
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]
    with pytest.raises(ValueError, match=r"should end in \.png"):
        viewer.save(tmp_path / "x.jpg")
    with pytest.raises(FileNotFoundError, match="make it first"):
        viewer.save(tmp_path / "no" / "x.png")


@pytest.mark.parametrize("kind", KINDS)
def test_where_no_kernel_runs_there_is_a_png_beside_the_widget(kind: type[Viewer]) -> None:
    viewer = settled(kind())
    data, _ = viewer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in data
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(data["image/png"])))), viewer.snapshot())
    assert len(repr(viewer)) < 200


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_keyword_is_refused_with_near_names(kind: type[Viewer]) -> None:
    with pytest.raises(TypeError, match="has no keyword 'unti'; nearest: unit"):
        kind(unti=3)


@pytest.mark.parametrize("kind", KINDS)
def test_widgets_on_one_name_share_one_network(kind: type[Viewer]) -> None:
    assert kind().network is Network.demo()


@pytest.mark.parametrize("kind", KINDS)
def test_every_picture_has_words_for_those_who_cannot_see_it(kind: type[Viewer]) -> None:
    viewer = settled(kind())
    pictures = [w for w in every_widget(viewer) if isinstance(w, ipywidgets.Image)]
    assert len(pictures) >= 2
    assert all(picture.tooltip for picture in pictures)


def every_widget(box: ipywidgets.Widget) -> list[ipywidgets.Widget]:
    return [box, *(w for child in getattr(box, "children", ()) for w in every_widget(child))]


@pytest.mark.parametrize("kind", KINDS)
def test_html_in_a_name_is_shown_and_not_run(kind: type[Viewer], tiny_module: nn.Module) -> None:
    nasty = "<img src=x onerror=alert(1)>"
    net = Network(tiny_module, size=16, labels=[nasty, "b", "c", "d"], name=nasty)
    viewer = settled(kind(net) if kind is FilterGrid else kind(net, {nasty: np.zeros((16, 16, 3))}))
    if kind is SaliencyViewer:
        viewer.target = 0
        settled(viewer)
    for widget in every_widget(viewer):
        if isinstance(widget, ipywidgets.HTML):
            assert "<img" not in widget.value
    assert note(nasty).count("<") == 2  # its own div


@pytest.mark.parametrize("kind", KINDS)
def test_close_ends_its_threads_and_later_events_do_nothing(kind: type[Viewer]) -> None:
    viewer = kind()
    if kind is SaliencyViewer:
        viewer.method = "occlusion"
    run = viewer.run
    viewer.close()
    if run is not None:
        assert run.join(PATIENCE)
    viewer.unit = None
    assert not [
        thread for thread in threading.enumerate() if thread.name == "convis-run" and thread.is_alive() and run is None
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_closed_is_forgotten(kind: type[Viewer]) -> None:
    """Every widget of ipywidgets is held by a registry until it is closed, its layout and style too."""
    from ipywidgets.widgets.widget import _instances

    kind().close()
    gc.collect()
    before = set(_instances)
    viewer = settled(kind())
    viewer._repr_mimebundle_()
    viewer.close()
    gone = weakref.ref(viewer)
    del viewer
    gc.collect()
    assert [type(_instances[key]).__name__ for key in set(_instances) - before] == []
    assert gone() is None


# -- FilterGrid ----------------------------------------------------------------------------------------------------------


def test_first_layer_filters_are_painted_in_color_pixel_for_pixel() -> None:
    grid = FilterGrid()
    weights, biases = grid.network.weights("conv1")
    image = shown(grid.grid)
    for n in (0, 13, 31):
        w = weights[n]
        expected = ((w - w.min()) / (w.max() - w.min()) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0)
        top, left, _, _ = grid.mosaic.box(n)
        t = grid.mosaic.times
        assert np.array_equal(image[top + t // 2 :: t, left + t // 2 :: t][:9, :9, :3], expected)
    grid.unit = ("conv1", 13)
    assert f"bias {biases[13]:+.3g}" in grid.facts.value


def test_scalings() -> None:
    grid = FilterGrid(scaling="symmetric")
    top, left, bottom, right = grid.mosaic.box(3)
    weights = grid.network.weights("conv1")[0][3]
    tile = shown(grid.grid)[top : bottom : grid.mosaic.times, left : right : grid.mosaic.times, :3].transpose(2, 0, 1)
    assert np.array_equal(tile > 128, weights / np.abs(weights).max() * 127.5 + 128 >= 129)
    grid.scaling = "shared"
    assert shown(grid.grid).std() > 0
    with pytest.raises(Exception, match="scaling"):
        grid.scaling = "wild"


def test_a_click_selects_a_filter_and_beside_the_tiles_nothing_happens() -> None:
    grid = FilterGrid()
    top, left, _, _ = grid.mosaic.box(17)
    grid._clicked(left + 2.5, top + 2.5)
    assert grid.unit == Unit("conv1", 17)
    grid._clicked(5000, 5000)
    assert grid.unit == Unit("conv1", 17)
    assert grid.filter_field.value == 17
    grid.filter_field.value = 3
    assert grid.unit == Unit("conv1", 3)


def test_hovering_tells_number_norm_and_bias_without_selecting() -> None:
    grid = FilterGrid()
    top, left, _, _ = grid.mosaic.box(9)
    grid._hovered(left + 1, top + 1)
    norm = np.linalg.norm(grid.network.weights("conv1")[0][9])
    assert "filter 9 (0 to 31)" in grid.hover.value
    assert f"norm {norm:.3g}" in grid.hover.value
    assert grid.unit.channel == 0
    assert "filter 0 " in grid.facts.value, "under the selected filter stands the selected one"
    grid._hovered(None, None)
    assert not grid.hover.value


def test_a_deeper_layer_shows_one_gray_tile_per_input_channel() -> None:
    grid = FilterGrid(layer="conv3")
    assert len(grid.mosaic) == 64
    top, left, _, _ = grid.mosaic.box(40)
    grid._clicked(left + 1, top + 1)
    assert (grid.input_channel, grid.unit.channel) == (40, 0)
    grid.view = "all"
    assert len(grid.mosaic) == 1024
    assert grid.page_field.max == 96 * 64 // 1024 - 1
    grid.page = 2
    grid._clicked(*[v + 1 for v in reversed(grid.mosaic.box(65)[:2])])
    assert grid.unit == Unit("conv3", 2 * 16 + 1)
    assert grid.input_channel == 1


def test_a_layer_without_filters_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"relu1 \(ReLU\) has no filters; choose one of .*conv1"):
        FilterGrid(layer="relu1")
    with pytest.raises(ValueError, match="no layer 'conv0'; nearest: conv"):
        FilterGrid(layer="conv0")
    with pytest.raises(ValueError, match="has no layer whose weights can be seen"):
        FilterGrid(Network(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), size=16, channels=3))


# -- ActivationExplorer --------------------------------------------------------------------------------------------------


def test_a_linked_explorer_follows_a_click_on_a_filter() -> None:
    grid, explorer = FilterGrid(), ActivationExplorer()
    link(grid, explorer)
    top, left, _, _ = grid.mosaic.box(21)
    grid._clicked(left + 1, top + 1)
    assert explorer.unit == Unit("conv1", 21)
    explorer.layer = "conv4"
    settled(explorer)
    assert grid.layer == "conv4"
    explorer.layer = "relu4"  # without filters: the grid stays
    assert grid.layer == "conv4"
    assert not grid.status.value
    with pytest.raises(ValueError, match="another network; give both the same Network object"):
        link(grid, ActivationExplorer(Network.demo(robust=False)))


def test_a_click_on_a_cell_shows_its_value_and_the_box_it_sees() -> None:
    explorer = ActivationExplorer(layer="conv3")
    explorer._cell_clicked(150, 100)
    row, column = explorer.unit.position
    layer = explorer.network.layers["conv3"]
    assert (row, column) == (int(100 * 16 / 192), int(150 * 16 / 192))
    assert f"cell ({row}, {column}) is {explorer.maps[0, row, column]:.4g}" in explorer.facts.value
    top, left, bottom, right = layer.box((row, column))
    assert f"rows {top} to {bottom - 1}, columns {left} to {right - 1}" in explorer.facts.value
    scale = explorer.input_view.array.shape[0] / 64
    explorer._pixel_clicked((left + right) / 2 * scale, (top + bottom) / 2 * scale)
    assert explorer.unit.position == (row, column)


def test_dead_maps_are_counted_and_crossed() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        module[0].bias[:2] = -1e6
        module[0].bias[2:] = 1e2
    net = Network(module, size=16)
    explorer = settled(ActivationExplorer(net, demo.images(1)[0].image[:16, :16], layer="1"))
    assert "2 maps are zero everywhere" in explorer.caption.value
    assert "% of the units are not zero" in explorer.caption.value


def test_pictures_by_menu_and_by_upload_also_bad_ones() -> None:
    explorer = ActivationExplorer()
    first = explorer.maps
    explorer.images.menu.value = "car"
    settled(explorer)
    assert not np.array_equal(first, explorer.maps)
    assert "car" in explorer.top5.value
    good = explorer.maps
    explorer.images._uploaded({"new": [{"name": "bad.png", "content": memoryview(b"no picture")}]})
    assert "is not a picture" in explorer.status.value
    assert np.array_equal(explorer.maps, good)
    explorer.images.menu.value = "cup"
    settled(explorer)
    assert not explorer.status.value
    assert "cup" in explorer.top5.value


def test_beside_a_photo_stands_which_part_the_network_sees() -> None:
    white = Image.new("RGB", (200, 100), "white")
    explorer = settled(ActivationExplorer(image={"wide": white, "whole": white.crop((0, 0, 100, 100))}))
    whole = shown(explorer.images.whole).astype(int)
    assert whole.shape == (36, 72, 3)
    assert (whole[18, 36] == 255).all(), "the middle is seen"
    assert (whole[18, [2, 69]] < 230).all(), "left and right of the central square is not"
    assert explorer.images.whole.layout.display == ""
    explorer.images.menu.value = "whole"
    assert explorer.images.whole.layout.display == "none", "nothing is cut off"


def test_the_last_layer_says_which_class_a_channel_is_and_all_tiles_share_one_scale() -> None:
    explorer = settled(ActivationExplorer(layer="fc8", unit=("fc8", 4)))
    assert explorer.network.labels[4] in explorer.facts.value
    values = explorer.maps[:, 0, 0]
    low, high = float(explorer.scale.low.value), float(explorer.scale.high.value)
    assert low <= values.min() <= values.max() <= high or (values < 0).any()
    tiles = explorer.mosaic.tiles[:, 0, 0].astype(int)
    order = np.argsort(values)
    assert np.abs(np.diff(tiles[order], axis=0)).sum() > 0
    assert (tiles[values == values[order[-1]]] == tiles[order[-1]]).all()
    assert not ((tiles == 255).all(1)).any(), "white vanishes on a white page"


def test_a_network_that_has_diverged_says_so() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    nn.init.constant_(module[2].weight, float("nan"))
    net = Network(module, size=16)
    picture = np.full((16, 16, 3), 0.5, np.float32)
    explorer = settled(ActivationExplorer(net, picture))
    assert "may have diverged" in explorer.top5.value
    assert np.isfinite(explorer.maps).all()
    assert "may have diverged" in SaliencyViewer(net, picture).status.value


def test_what_is_saved_or_displayed_at_once_has_a_first_map(tmp_path: Path) -> None:
    viewer = SaliencyViewer(method="occlusion")
    viewer.save(tmp_path / "map.png")
    assert np.asarray(Image.open(tmp_path / "map.png")).shape[1] > 600
    viewer.close()


def test_layers_without_positions_work() -> None:
    explorer = ActivationExplorer(layer="fc7")
    assert explorer.maps.shape == (128, 1, 1)
    explorer.channel_field.value = 127
    assert explorer.unit == Unit("fc7", 127)


# -- what they share ------------------------------------------------------------------------------------------------------


def test_the_class_picker_searches() -> None:
    picker = ClassPicker(["tench", "crane", "white shark", "hammerhead shark", "crane"])
    assert picker.find("shark") == 2
    assert picker.find("hammer") == 3
    assert ClassPicker(["catamaran", "tabby cat", "tiger cat"]).find("cat") == 1, "a word comes before a part of one"
    assert picker.find("4") == 4
    assert picker.find("4  crane") == 4
    assert picker.find("CRANE") == 1
    assert picker.find("  ") is None
    picker.box.value = "hamm"
    assert picker.value == 3
    picker.box.value = "unicorn"
    assert picker.value == 3
    assert "no class contains 'unicorn'" in picker.hint.value


@pytest.mark.parametrize("kind", [ActivationExplorer, SaliencyViewer])
def test_without_any_picture_that_can_be_shown_it_says_why_and_waits(kind: type[Viewer]) -> None:
    viewer = kind(image="gone.png")
    assert "gone.png does not exist" in viewer.status.value
    assert viewer._repr_mimebundle_()
    assert viewer.input_view.layout.visibility == "hidden", "a browser would show a broken picture"
    viewer.images.add("face", demo.images(1, label="face")[0].image)
    settled(viewer)
    assert not viewer.status.value
    assert viewer.input_view.layout.visibility == "visible"
    assert viewer.snapshot().std() > 10


def test_an_error_is_shown_and_the_widget_stays_usable(tmp_path: Path) -> None:
    viewer = SaliencyViewer()
    before = viewer.frame
    viewer.images.add("gone", str(tmp_path / "gone.png"))
    assert "does not exist" in viewer.status.value
    assert viewer.frame is before
    viewer.images.menu.value = "tree"
    settled(viewer)
    assert not viewer.status.value
    assert viewer.frame is not before


@pytest.mark.parametrize("unit", [("conv1", 3, (1,)), ("conv1", 3.5), ("conv1", "3"), ("conv1", True), "conv1"])
def test_what_is_no_unit_is_refused(unit: Any) -> None:
    with pytest.raises(TypeError, match="names no unit; write"):
        FilterGrid(unit=unit)


def test_a_unit_of_a_layer_without_filters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"relu1 \(ReLU\) has no filters"):
        FilterGrid(unit=("relu1", 3))


def test_link_takes_two_widgets() -> None:
    with pytest.raises(TypeError, match="two or more"):
        link(FilterGrid())
    with pytest.raises(TypeError, match="int is no widget"):
        link(FilterGrid(), 5)


def test_an_upload_that_is_no_picture_is_named_and_left_out() -> None:
    viewer = settled(SaliencyViewer())
    before = viewer.images.menu.value
    viewer.images._uploaded({"new": [{"name": "cut.jpg", "content": memoryview(b"no picture")}]})
    assert "cut.jpg is not a picture" in viewer.status.value
    assert viewer.images.menu.value == before
    assert "cut.jpg" not in viewer.images.menu.options
