"""FilterGrid, ActivationExplorer and what they share: clicks, links, images, errors; without a browser."""

from __future__ import annotations

import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from widget_helpers import photo, settled, shown, uploaded

from convis_widgets import (
    ActivationExplorer,
    FilterGrid,
    Network,
    SaliencyViewer,
    Unit,
    demo,
    link,
)
from convis_widgets.widgets.base.viewer import Viewer
from convis_widgets.widgets.controls import pickers
from convis_widgets.widgets.controls.pickers import ClassPicker


def test_filter_grid_draws_first_layer_in_color() -> None:
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


def test_filter_grid_scalings() -> None:
    grid = FilterGrid(scaling="symmetric")
    top, left, bottom, right = grid.mosaic.box(3)
    weights = grid.network.weights("conv1")[0][3]
    tile = shown(grid.grid)[top : bottom : grid.mosaic.times, left : right : grid.mosaic.times, :3].transpose(2, 0, 1)
    assert np.array_equal(tile > 128, weights / np.abs(weights).max() * 127.5 + 128 >= 129)
    grid.scaling = "shared"
    assert shown(grid.grid).std() > 0
    with pytest.raises(Exception, match="scaling"):
        grid.scaling = "wild"


def test_filter_grid_click_selects_filter() -> None:
    grid = FilterGrid()
    top, left, _, _ = grid.mosaic.box(17)
    grid._clicked(left + 2.5, top + 2.5)
    assert grid.unit == Unit("conv1", 17)
    grid._clicked(5000, 5000)
    assert grid.unit == Unit("conv1", 17)
    assert grid.controls["channel"].value == 17
    grid.controls["channel"].value = 3
    assert grid.unit == Unit("conv1", 3)


def test_filter_grid_hover_describes_filter_without_selecting() -> None:
    grid = FilterGrid()
    top, left, _, _ = grid.mosaic.box(9)
    grid._hovered(left + 1, top + 1)
    norm = np.linalg.norm(grid.network.weights("conv1")[0][9])
    assert re.search(r"filter 9\b.*\b31\b", grid.hover.value)
    assert f"norm {norm:.3g}" in grid.hover.value
    assert grid.unit.channel == 0
    assert re.search(r"filter 0\b", grid.facts.value), "facts describe the selected filter"
    grid._hovered(None, None)
    assert not grid.hover.value


def test_filter_grid_of_deeper_layer_shows_input_channels() -> None:
    grid = FilterGrid(layer="conv3")
    assert len(grid.mosaic) == 64
    top, left, _, _ = grid.mosaic.box(40)
    grid._clicked(left + 1, top + 1)
    assert (grid.input_channel, grid.unit.channel) == (40, 0)
    grid.scope = "all"
    assert len(grid.mosaic) == 1024
    assert grid.controls["page"].max == 96 * 64 // 1024 - 1
    grid.page = 2
    grid._clicked(*[v + 1 for v in reversed(grid.mosaic.box(65)[:2])])
    assert grid.unit == Unit("conv3", 2 * 16 + 1)
    assert grid.input_channel == 1


def test_filter_grid_rejects_layer_without_filters() -> None:
    with pytest.raises(ValueError, match="relu1.*ReLU.*conv1"):
        FilterGrid(layer="relu1")
    with pytest.raises(ValueError, match=r"conv0.*conv\d"):
        FilterGrid(layer="conv0")
    with pytest.raises(ValueError, match="(?i)weight|filter"):
        FilterGrid(Network(nn.Sequential(nn.AvgPool2d(8), nn.Flatten()), size=16, channels=3))


# -- ActivationExplorer --------------------------------------------------------------------------------------------------


def test_activation_explorer_follows_linked_filter_grid() -> None:
    grid, explorer = FilterGrid(), ActivationExplorer()
    link(grid, explorer)
    top, left, _, _ = grid.mosaic.box(21)
    grid._clicked(left + 1, top + 1)
    assert explorer.unit == Unit("conv1", 21)
    explorer.layer = "conv4"
    settled(explorer)
    assert grid.layer == "conv4"
    explorer.layer = "relu4"  # without filters: the grid does not change
    assert grid.layer == "conv4"
    assert not grid.status.value
    with pytest.raises(ValueError, match="(?i)network"):
        link(grid, ActivationExplorer(Network.demo(robust=False)))


def test_activation_explorer_click_shows_value_and_receptive_field() -> None:
    explorer = ActivationExplorer(layer="conv3")
    explorer._cell_clicked(150, 100)
    row, column = explorer.unit.position
    layer = explorer.network.layers["conv3"]
    assert (row, column) == (int(100 * 16 / 192), int(150 * 16 / 192))
    assert re.search(rf"\({row}, {column}\).*{explorer.maps[0, row, column]:.4g}", explorer.facts.value)
    top, left, bottom, right = layer.box((row, column))
    assert re.search(rf"\b{top}\D+{bottom - 1}\D+{left}\D+{right - 1}\b", explorer.facts.value)
    scale = explorer.input_view.array.shape[0] / 64
    explorer._pixel_clicked((left + right) / 2 * scale, (top + bottom) / 2 * scale)
    assert explorer.unit.position == (row, column)


def test_activation_explorer_counts_dead_maps() -> None:
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        module[0].bias[:2] = -1e6
        module[0].bias[2:] = 1e2
    net = Network(module, size=16)
    explorer = settled(ActivationExplorer(net, demo.images(1)[0].image[:16, :16], layer="1"))
    assert re.search(r"\b2 [^;]*zero", explorer.caption.value)
    assert re.search(r"\d%", explorer.caption.value)


def test_activation_explorer_accepts_menu_and_upload() -> None:
    explorer = ActivationExplorer()
    first = explorer.maps
    explorer.images.menu.value = "car"
    settled(explorer)
    assert not np.array_equal(first, explorer.maps)
    assert "car" in explorer.top5.value
    good = explorer.maps
    explorer.images._uploaded({"new": [{"name": "bad.png", "content": memoryview(b"not an image")}]})
    assert "bad.png" in explorer.status.value
    assert np.array_equal(explorer.maps, good)
    explorer.images.menu.value = "cup"
    settled(explorer)
    assert not explorer.status.value
    assert "cup" in explorer.top5.value


def test_image_picker_shows_cropped_region() -> None:
    white = Image.new("RGB", (200, 100), "white")
    explorer = settled(ActivationExplorer(image={"wide": white, "whole": white.crop((0, 0, 100, 100))}))
    whole = shown(explorer.images.whole).astype(int)
    assert whole.shape == (36, 72, 3)
    assert (whole[18, 36] == 255).all(), "the central square is inside the crop"
    assert (whole[18, [2, 69]] < 230).all(), "left and right of it are outside"
    assert explorer.images.whole.layout.display == ""
    explorer.images.menu.value = "whole"
    assert explorer.images.whole.layout.display == "none", "a square image is not cropped"


def test_activation_explorer_of_output_layer_names_class() -> None:
    explorer = settled(ActivationExplorer(layer="fc8", unit=("fc8", 4)))
    assert explorer.network.labels[4] in explorer.facts.value
    values = explorer.maps[:, 0, 0]
    low, high = float(explorer.scale.low.value), float(explorer.scale.high.value)
    assert low <= values.min() <= values.max() <= high or (values < 0).any()
    tiles = explorer.mosaic.tiles[:, 0, 0].astype(int)
    order = np.argsort(values)
    assert np.abs(np.diff(tiles[order], axis=0)).sum() > 0
    assert (tiles[values == values[order[-1]]] == tiles[order[-1]]).all()
    assert not ((tiles == 255).all(1)).any(), "no tile is white, which is invisible on a white page"


def test_diverged_network_is_reported() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    nn.init.constant_(module[2].weight, float("nan"))
    net = Network(module, size=16)
    image = np.full((16, 16, 3), 0.5, np.float32)
    explorer = settled(ActivationExplorer(net, image))
    assert "diverge" in explorer.top5.value
    assert np.isfinite(explorer.maps).all()
    assert "diverge" in SaliencyViewer(net, image).status.value


def test_save_right_after_construction_has_a_map(tmp_path: Path) -> None:
    viewer = SaliencyViewer(method="occlusion")
    viewer.save(tmp_path / "map.png")
    assert np.asarray(Image.open(tmp_path / "map.png")).shape[1] > 600
    viewer.close()


def test_activation_explorer_accepts_layer_without_positions() -> None:
    explorer = ActivationExplorer(layer="fc7")
    assert explorer.maps.shape == (128, 1, 1)
    explorer.controls["channel"].value = 127
    assert explorer.unit == Unit("fc7", 127)


# -- shared behavior ------------------------------------------------------------------------------------------------------


def test_class_picker_find() -> None:
    picker = ClassPicker(["tench", "crane", "white shark", "hammerhead shark", "crane"])
    assert picker.find("shark") == 2
    assert picker.find("hammer") == 3
    assert ClassPicker(["catamaran", "tabby cat", "tiger cat"]).find("cat") == 1, "whole words come first"
    assert picker.find("4") == 4
    assert picker.find("4  crane") == 4
    assert picker.find("CRANE") == 1
    assert picker.find("  ") is None
    picker.box.value = "hamm"
    assert picker.value == 3
    picker.box.value = "unicorn"
    assert picker.value == 3
    assert "unicorn" in picker.hint.value


@pytest.mark.parametrize("kind", [ActivationExplorer, SaliencyViewer])
def test_failed_first_computation_shows_error_until_replaced(kind: type[Viewer], monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_viewer: Viewer) -> None:
        raise ValueError("gone.png cannot be read any more")

    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        kind(image="gone.png")
    with monkeypatch.context() as patch:
        patch.setattr(kind, "input_image", failing)
        viewer = kind()
    assert "gone.png" in viewer.status.value
    assert viewer._repr_mimebundle_()
    assert not viewer.input_view.value, "there is nothing to show"
    viewer.images.add("face", demo.images(1, label="face")[0].image)
    settled(viewer)
    assert not viewer.status.value
    assert viewer.input_view.value
    assert viewer.snapshot().std() > 10


def test_error_is_shown_and_cleared_by_next_image(tmp_path: Path) -> None:
    viewer = SaliencyViewer()
    before = viewer.frame
    viewer.images.add("gone", str(tmp_path / "gone.png"))
    assert "gone.png" in viewer.status.value
    assert viewer.frame is before
    viewer.images.menu.value = "tree"
    settled(viewer)
    assert not viewer.status.value
    assert viewer.frame is not before


@pytest.mark.parametrize("unit", [("conv1", 3, (1,)), ("conv1", 3.5), ("conv1", "3"), ("conv1", True), "conv1"])
def test_invalid_unit_raises_type_error(unit: Any) -> None:
    with pytest.raises(TypeError, match=re.escape(repr(unit))):
        FilterGrid(unit=unit)


def test_filter_grid_rejects_unit_of_layer_without_filters() -> None:
    with pytest.raises(ValueError, match="relu1.*ReLU"):
        FilterGrid(unit=("relu1", 3))


def test_link_requires_two_widgets() -> None:
    with pytest.raises(TypeError, match="(?i)two|2"):
        link(FilterGrid())
    with pytest.raises(TypeError, match=r"\bint\b"):
        link(FilterGrid(), 5)


def test_upload_that_is_not_an_image_is_named_and_skipped() -> None:
    viewer = settled(SaliencyViewer())
    before = viewer.images.menu.value
    viewer.images._uploaded({"new": [{"name": "cut.jpg", "content": memoryview(b"not an image")}]})
    assert "cut.jpg" in viewer.status.value
    assert viewer.images.menu.value == before
    assert "cut.jpg" not in viewer.images.menu.options


@pytest.mark.parametrize(
    "arguments",
    [("conv1", "a"), ("conv1", 1.5), ("conv1", True), (3, 1), ("conv1", 1, 5), ("conv1", 1, (2,)), ("conv1", 1, (2, 0.5))],
)
def test_unit_of_something_else_is_refused(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match=r"not a unit; use Unit\(layer, channel\)"):
        Unit(*arguments)
    assert Unit("conv1", np.int64(3), (np.int64(1), 2)) == Unit("conv1", 3, (1, 2))


def test_upload_with_a_name_on_the_menu_gets_a_number() -> None:
    viewer = settled(SaliencyViewer("demo", {"cat.png": demo.images(1, label="star")[0].image}))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    first, second = viewer.images.images["cat.png"], photo(pixels[1])
    for content, name in (
        (photo(pixels[0]), "cat.png (2)"),
        (second, "cat.png (3)"),
        (photo(pixels[0]), "cat.png (2)"),  # the same file again
    ):
        uploaded(viewer.images.upload, "cat.png", content)
        settled(viewer)
        assert (viewer.images.menu.value, viewer.status.value) == (name, "")
        assert viewer.images.value == content
    assert viewer.images.menu.options == ("cat.png", "cat.png (2)", "cat.png (3)")
    assert viewer.images.images["cat.png"] is first
    assert viewer.images.images["cat.png (3)"] == second


def test_uploads_are_bounded_and_the_widget_stays_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    viewer = settled(SaliencyViewer())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    contents = [photo(part) for part in pixels]
    monkeypatch.setattr(pickers, "MAX_UPLOADED_BYTES", sum(map(len, contents)) - 1)
    for i, content in enumerate(contents):
        uploaded(viewer.images.upload, f"{i}.png", content)
        settled(viewer)
        assert viewer.images.upload.value == (), "its copy is dropped"
    assert viewer.images.menu.value == "1.png"
    assert "uploaded images" in viewer.status.value
    assert "2.png" not in viewer.images.menu.options
    viewer.image = "0.png"
    settled(viewer)
    assert viewer.status.value == ""


def test_every_exception_of_an_upload_is_shown() -> None:
    viewer = settled(SaliencyViewer())
    before = viewer.images.menu.options
    for name, content, expected in (
        ("texture.blp", b"BLP2" + struct.pack("<IBBBBII", 9, 7, 8, 8, 8, 8, 8) + bytes(2000), "texture.blp"),
        ("x.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", "x.eps"),
        ("caf\udce9.png", b"", "caf\ufffd.png"),
    ):
        uploaded(viewer.images.upload, name, content)
        assert expected in viewer.status.value
        viewer.status.value.encode()
    uploaded(viewer.images.upload, "caf\udce9.png", photo(np.zeros((9, 9, 3), np.uint8)))
    settled(viewer)
    assert viewer.images.menu.options == (*before, "caf\ufffd.png")
    assert viewer.status.value == ""


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_image_whose_name_is_not_utf_8_is_shown_with_replacement_characters(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    path.write_bytes(photo(np.zeros((9, 9, 3), np.uint8)))
    for images in (path, [path], {path.name: path}):
        viewer = settled(SaliencyViewer("demo", images))
        assert viewer.images.menu.options == ("caf\ufffd.png",)
        assert viewer.status.value == ""
