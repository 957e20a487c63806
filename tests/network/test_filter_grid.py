"""FilterGrid: selection and display agree."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import DeformConv2d
from widget_helpers import selected_box, settled, shown

from convis_widgets import ActivationExplorer, FilterGrid, Network, Unit, link


def detail(grid: FilterGrid, layer: str, channel: int, input_channel: int) -> np.ndarray:
    """Reference: one filter channel in gray levels, scaled to the range of the whole filter."""
    kernel = grid.network.weights(layer)[0][channel]
    low, high = kernel.min(), kernel.max()
    return ((kernel[input_channel] - low) / (high - low) * 255 + 0.5).astype(np.uint8)


def pixels(grid: FilterGrid, side: int) -> np.ndarray:
    """The large tile as sent to the page, one gray level per weight."""
    image = shown(grid.detail)
    assert (image[..., 0] == image[..., 1]).all()
    step = image.shape[0] // side
    return image[step // 2 :: step, step // 2 :: step, 0][:side, :side]


def framed(grid: FilterGrid) -> list[int]:
    """Indices of the highlighted tiles."""
    return [n for n in range(len(grid.mosaic)) if [*grid.mosaic.box(n)] == selected_box(grid.grid)]


# -- pages ------------------------------------------------------------------------------------------------------------------


def test_detail_shows_selected_filter_on_any_page() -> None:
    grid = FilterGrid(layer="conv3", scope="all")
    grid.unit, grid.input_channel = ("conv3", 90), 7
    for page in (5, 0, 3):
        grid.page = page
        assert np.array_equal(pixels(grid, 3), detail(grid, "conv3", 90, 7))
        assert re.search(r"filter 90\b", grid.facts.value)
        assert framed(grid) == ([10 * 64 + 7] if page == 5 else [])


def test_page_follows_unit() -> None:
    grid = FilterGrid(layer="conv3", scope="all")
    grid.unit = ("conv3", 90)
    assert (grid.page, grid.controls["page"].value) == (90 // 16, 90 // 16)
    grid.page = 2
    grid.unit = ("conv3", 90, (1, 1))
    assert grid.page == 2, "the same filter"
    grid.unit = ("conv3", 3)
    assert grid.page == 0


def test_page_is_a_constructor_argument() -> None:
    assert FilterGrid(layer="conv3", scope="all", page=2).page == 2
    assert FilterGrid(scope="all", unit=("conv3", 90)).page == 5
    assert FilterGrid(scope="all", unit=("conv3", 90), page=1).page == 1
    assert FilterGrid(layer="conv3", scope="all", page=99).page == 5


def test_click_selects_filter_on_any_page() -> None:
    grid = FilterGrid(layer="conv3", scope="all", page=4)
    top, left, _, _ = grid.mosaic.box(64 * 3 + 11)
    grid._clicked(left + 1, top + 1)
    assert (grid.unit, grid.input_channel, grid.page) == (Unit("conv3", 4 * 16 + 3), 11, 4)


def test_page_and_input_channel_are_clipped_to_layer() -> None:
    grid = FilterGrid(layer="conv3", scope="all")
    grid.page = 999
    assert (grid.page, grid.controls["page"].value) == (5, 5)
    grid.input_channel = 999
    assert (grid.input_channel, grid.controls["input_channel"].value) == (63, 63)
    assert np.array_equal(pixels(grid, 3), detail(grid, "conv3", 0, 63))
    grid.layer = "conv2"
    assert (grid.input_channel, grid.page) == (31, 0)
    assert not grid.status.value
    assert FilterGrid(layer="conv2", input_channel=40).input_channel == 31


# -- the selection ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("elsewhere", [("relu1", 7), ("", 3), None])
def test_unit_without_filters_keeps_previous_selection(elsewhere: object) -> None:
    grid = FilterGrid(unit=("conv1", 5))
    grid.unit = elsewhere
    assert (grid.selected, grid.controls["channel"].value, framed(grid)) == (5, 5, [5])
    assert not grid.status.value
    grid.controls["channel"].value = 0
    assert grid.unit == Unit("conv1", 0)


def test_linked_activation_explorer_is_followed_where_possible() -> None:
    grid, explorer = FilterGrid(), ActivationExplorer()
    link(grid, explorer)
    explorer.unit = ("conv2", 60)
    assert (grid.layer, grid.selected) == ("conv2", 60)
    explorer.unit = ("relu1", 7)
    assert (grid.layer, grid.selected) == ("conv2", 60)
    grid.layer = "conv3"
    assert explorer.unit == Unit("conv3", 0)
    grid.controls["channel"].value = 4
    assert settled(explorer).unit == Unit("conv3", 4)


def test_hover_is_updated_when_page_changes() -> None:
    grid = FilterGrid(layer="conv3", scope="all")
    top, left, _, _ = grid.mosaic.box(3)
    grid._hovered(left + 1, top + 1)
    assert re.search(r"filter 0\b", grid.hover.value)
    assert re.search(r"input channel 3\b", grid.hover.value)
    grid.page = 2
    assert re.search(r"filter 32\b", grid.hover.value)
    grid._hovered(None, None)
    grid.page = 1
    assert not grid.hover.value


# -- which layers have filters ----------------------------------------------------------------------------------------------


class Standardized(nn.Module):
    """A custom convolution with weight standardization."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(5, 4, 3, 3)), False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.conv2d(x, (self.weight - self.weight.mean()) / self.weight.std())


class Deformed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.offset, self.conv = nn.Conv2d(5, 18, 3), DeformConv2d(5, 6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x, self.offset(x))


@pytest.fixture
def unusual() -> Network:
    torch.manual_seed(0)
    grouped = nn.ConvTranspose2d(6, 8, 2, groups=2)
    parts = [nn.Conv2d(3, 4, 3), Standardized(), Deformed(), grouped, nn.PReLU(8), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return Network(nn.Sequential(*parts, nn.Linear(8, 3)), size=16)


def test_weights_exist_exactly_for_filter_layers(unusual: Network) -> None:
    assert unusual.filter_layers == ["0", "1", "2.offset", "2.conv", "3"]
    for layer in unusual.layers:
        if layer.name in unusual.filter_layers:
            weights, biases = unusual.weights(layer.name)
            assert weights.ndim == 4
            assert len(weights) == layer.channels
            assert biases is None or biases.shape == (layer.channels,)
        else:
            with pytest.raises(ValueError, match=layer.kind):
                unusual.weights(layer.name)


def test_filter_grid_shows_every_filter_layer(unusual: Network) -> None:
    grid = FilterGrid(unusual)
    for name in [*unusual.filter_layers, "0"]:
        grid.layer = name
        assert (grid.controls["layer"].value, grid.unit) == (name, Unit(name, 0))
        assert not grid.status.value
    grid.controls["layer"].value = "1"
    grid.controls["channel"].value = 4
    assert grid.unit == Unit("1", 4)
    assert np.array_equal(pixels(grid, 3), detail(grid, "1", 4, 0))


def test_weights_of_grouped_transposed_conv_match_reference(unusual: Network) -> None:
    filters = unusual.weights("3")[0]
    module = unusual.layers["3"].module
    assert filters.shape == (8, 3, 2, 2)
    with torch.no_grad():
        for i in range(6):
            x = torch.zeros(1, 6, 1, 1)
            x[0, i] = 1
            out = (module(x) - module(torch.zeros_like(x)))[0].numpy()
            for o in range(8):
                there = filters[o, i % 3] if o // 4 == i // 3 else np.zeros((2, 2))
                assert np.allclose(out[o], there, atol=1e-6)
