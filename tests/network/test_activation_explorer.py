"""ActivationExplorer: selection and display agree, also when events interleave."""

from __future__ import annotations

import re
import threading
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from widget_helpers import settled

from convis_widgets import ActivationExplorer, Network, SaliencyViewer, Unit, activations, link


def maps_of(explorer: ActivationExplorer, layer: str) -> np.ndarray:
    return next(activations(explorer.network, explorer.image, layer=layer)).arrays["maps"]


def assert_shows(explorer: ActivationExplorer, unit: Unit) -> None:
    """Check that everything displayed belongs to this unit."""
    assert not explorer.status.value
    assert (explorer.layer, explorer.shown) == (unit.layer, unit)
    assert np.array_equal(explorer.maps, maps_of(explorer, unit.layer))
    assert explorer.caption.value.count(f"{unit.layer} (")
    assert f"channel {unit.channel}" in explorer.facts.value
    count, h, w = explorer.maps.shape
    assert (explorer.controls["layer"].value, explorer.controls["channel"].value) == (unit.layer, unit.channel)
    assert (explorer.controls["channel"].max, explorer.controls["cell_row"].max, explorer.controls["cell_column"].max) == (
        count - 1,
        h - 1,
        w - 1,
    )
    assert (explorer.controls["cell_row"].value, explorer.controls["cell_column"].value) == explorer.cell


# -- interleaved events -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["_draw_large", "_draw_input", "_describe", "sync_controls"])
def test_unit_set_while_drawing_is_drawn_next(where: str) -> None:
    explorer = settled(ActivationExplorer())
    part = getattr(explorer, where)
    other = threading.Thread(target=lambda: setattr(explorer, "unit", ("conv3", 90)))

    def interrupted(*args: Any) -> None:
        if other.ident is None:
            other.start()
            while explorer.unit.layer != "conv3":  # the trait is set before its observers run
                other.join(0.001)
        part(*args)

    setattr(explorer, where, interrupted)
    explorer.unit = ("conv1", 5)
    other.join()
    assert_shows(settled(explorer), Unit("conv3", 90))
    explorer.controls["layer"].value = "conv2"
    assert_shows(settled(explorer), Unit("conv2", 0))


def block_next_run(explorer: ActivationExplorer, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """An event that the explorer's next computation waits for."""
    go_on, forward = threading.Event(), type(explorer.network).__call__

    def wait(network: Network, batch: torch.Tensor) -> torch.Tensor:
        if threading.current_thread().name == "convis-run":
            go_on.wait()
        return forward(network, batch)

    monkeypatch.setattr(type(explorer.network), "__call__", wait)
    return go_on


def test_display_is_consistent_until_new_maps_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = settled(ActivationExplorer(unit=("conv1", 3)))
    before = explorer.maps
    go_on = block_next_run(explorer, monkeypatch)
    explorer.unit = ("conv3", 90)
    explorer.opacity = 0.2
    assert explorer.layer == explorer.controls["layer"].value == "conv3"
    assert explorer.controls["channel"].max == 95
    assert explorer.maps is before
    assert explorer.shown == Unit("conv1", 3)
    assert explorer.cell == np.unravel_index(before[3].argmax(), before[3].shape)
    top, left, _, _ = explorer.mosaic.box(20)
    explorer._map_clicked(left + 1, top + 1)
    assert explorer.unit == Unit("conv1", 20), "the unit that was clicked"
    go_on.set()
    assert_shows(settled(explorer), Unit("conv1", 20))


# -- empty and invalid selections -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, ("", 3)])
def test_unit_without_layer_keeps_previous_selection(nothing: Any) -> None:
    explorer = ActivationExplorer(unit=("conv2", 5))
    explorer.unit = nothing
    explorer.opacity = 0.3
    explorer.images.menu.value = "car"
    assert_shows(settled(explorer), Unit("conv2", 5))
    explorer.controls["channel"].value = 3
    assert explorer.unit == Unit("conv2", 3)
    assert_shows(explorer, Unit("conv2", 3))


def test_link_to_widget_without_unit_keeps_own_unit() -> None:
    explorer = ActivationExplorer(unit=("conv2", 5))
    link(SaliencyViewer(), explorer)
    explorer.images.menu.value = "car"
    assert explorer.unit == Unit("conv2", 5)
    assert_shows(settled(explorer), Unit("conv2", 5))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep, self.fc = nn.Conv2d(3, 4, 3, stride=2), nn.Conv3d(1, 2, 1), nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.deep(self.conv(x).unsqueeze(1)).mean((2, 3, 4)))


def test_layer_without_maps_raises_and_changes_nothing(image: np.ndarray) -> None:
    torch.manual_seed(0)
    net = Network(Odd(), size=16)
    explorer = ActivationExplorer(net, image)
    for select in (lambda: setattr(explorer, "unit", ("deep", 0)), lambda: setattr(explorer, "layer", "deep")):
        with pytest.raises(ValueError, match="deep.*Conv3d.*2x4x7x7"):
            select()
        assert_shows(explorer, Unit("conv", 0))
    with pytest.raises(ValueError, match="deep"):
        ActivationExplorer(net, image, layer="deep")


def test_layer_menu_can_leave_layer_that_is_not_listed() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    net = Network(nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    explorer = ActivationExplorer(net, np.full((16, 16, 3), 0.5, np.float32), layer="0.0")
    explorer.layer = "0"
    assert settled(explorer).controls["layer"].value is None
    explorer.controls["layer"].value = "0.0"
    assert_shows(settled(explorer), Unit("0.0", 0))


# -- unreadable and small images --------------------------------------------------------------------------------------------


def test_unreadable_image_error_stays_while_controls_work() -> None:
    explorer = settled(ActivationExplorer())
    car = explorer.images.images["car"]
    explorer.images.add("gone", "gone.png")
    explorer.opacity = 0.2
    explorer.controls["channel"].value = 9
    assert "gone.png" in explorer.status.value
    assert re.search(r"channel 9\b", explorer.facts.value), "of the previous image"
    explorer.controls["layer"].value = "conv2"
    assert (explorer.unit, explorer.controls["channel"].max) == (Unit("conv2", 0), 63)
    explorer.controls["channel"].value = 40
    assert explorer.unit == Unit("conv2", 40)
    assert "gone.png" in explorer.status.value
    explorer.images.menu.value = "car"
    assert explorer.image is car
    assert_shows(settled(explorer), Unit("conv2", 40))


def test_late_result_does_not_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = settled(ActivationExplorer())
    go_on = block_next_run(explorer, monkeypatch)
    explorer.layer = "conv2"
    late = explorer.run
    explorer.images.add("gone", "gone.png")
    go_on.set()
    assert late.join(30)
    assert "gone.png" in explorer.status.value
    assert explorer.shown == Unit("conv1", 0)


def test_small_array_has_its_own_map_size() -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    rng = np.random.default_rng(0)
    explorer = ActivationExplorer(net, rng.random((8, 8, 3)), unit=("0", 1, (13, 2)))
    assert explorer.maps.shape == (4, 6, 6)
    assert explorer.cell == (5, 2)
    assert not explorer.status.value


# -- pages and the mouse ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def broad() -> Network:
    torch.manual_seed(0)
    return Network(nn.Sequential(nn.Conv2d(3, 2500, 4, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=8)


@pytest.fixture
def explorer(broad: Network) -> ActivationExplorer:
    rng = np.random.default_rng(0)
    return ActivationExplorer(broad, {name: rng.random((8, 8, 3)).astype(np.float32) for name in "ab"})


def test_page_follows_channel_and_is_clipped_to_layer(explorer: ActivationExplorer) -> None:
    explorer.unit = ("0", 2400)
    assert (explorer.page, explorer.controls["page"].value, len(explorer.mosaic)) == (2, 2, 2500 - 2 * 1024)
    explorer.page = 1
    explorer.unit = ("0", 2400, (1, 1))
    assert explorer.page == 1, "the same channel"
    explorer.page = 99
    assert (explorer.page, explorer.controls["page"].value) == (2, 2)
    assert_shows(explorer, Unit("0", 2400, (1, 1)))
    explorer.images.menu.value = "b"
    assert settled(explorer).page == 2


def test_page_of_single_page_layer_is_zero() -> None:
    explorer = ActivationExplorer()
    explorer.page = 3
    explorer.opacity = 0.2
    assert explorer.page == 0
    assert_shows(explorer, Unit("conv1", 0))


def test_page_is_a_constructor_argument(broad: Network) -> None:
    black = np.zeros((8, 8, 3), np.float32)
    assert ActivationExplorer(broad, black, page=1).page == 1
    assert ActivationExplorer(broad, black, unit=("0", 2400)).page == 2
    assert ActivationExplorer(broad, black, unit=("0", 2400), page=0).page == 0
    assert ActivationExplorer(broad, black, page=99).page == 2


def hover_pattern(explorer: ActivationExplorer, tile: int) -> str:
    """Regular expression for the readout of a tile under the mouse."""
    chosen = explorer.maps[explorer.page * 1024 + tile]
    return rf"channel {explorer.page * 1024 + tile}\b.*{chosen.max():.3g}.*{chosen.mean():.3g}"


def test_hover_is_updated_when_page_image_or_layer_changes(explorer: ActivationExplorer) -> None:
    top, left, _, _ = explorer.mosaic.box(3)
    explorer._map_hovered(left + 1, top + 1)
    seen = {explorer.hover.value}
    assert re.search(hover_pattern(explorer, 3), explorer.hover.value)
    for change in (lambda: setattr(explorer, "page", 1), lambda: setattr(explorer.images.menu, "value", "b")):
        change()
        settled(explorer)
        assert re.search(hover_pattern(explorer, 3), explorer.hover.value)
        seen.add(explorer.hover.value)
    assert len(seen) == 3
    explorer.layer = "2"
    settled(explorer)
    assert re.search(rf"channel 3\b.*class 3\b.*{explorer.maps[3, 0, 0]:.3g}", explorer.hover.value)
    explorer._map_hovered(None, None)
    assert not explorer.hover.value


def test_cell_of_padding_only_is_described(image: np.ndarray) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    explorer = ActivationExplorer(Network(module, size=16), image, unit=("0", 0, (0, 0)))
    assert "padding" in explorer.facts.value
    explorer.unit = ("0", 0, (1, 1))
    assert re.search(r"(?i)rows? 0\D+0\D+0\D+0\b", explorer.facts.value)
