"""ActivationExplorer: what is selected, what is shown, and that they come together whatever happens in between."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
import torch
from seen import settled
from torch import nn

from convis_widgets import ActivationExplorer, Network, SaliencyViewer, Unit, activations, link


def maps_of(explorer: ActivationExplorer, layer: str) -> np.ndarray:
    return next(activations(explorer.network, explorer.image, layer=layer)).arrays["maps"]


def agrees(explorer: ActivationExplorer, unit: Unit) -> None:
    """All that is to be seen is of this unit."""
    assert not explorer.status.value
    assert (explorer.layer, explorer.shown) == (unit.layer, unit)
    assert np.array_equal(explorer.maps, maps_of(explorer, unit.layer))
    assert explorer.caption.value.count(f"{unit.layer} (")
    assert f"channel {unit.channel}" in explorer.facts.value
    count, h, w = explorer.maps.shape
    assert (explorer.layer_menu.value, explorer.channel_field.value) == (unit.layer, unit.channel)
    assert (explorer.channel_field.max, explorer.row_field.max, explorer.column_field.max) == (count - 1, h - 1, w - 1)
    assert (explorer.row_field.value, explorer.column_field.value) == explorer.cell


# -- one thing after the other ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["_draw_large", "_draw_input", "_describe", "_sync_fields"])
def test_a_unit_selected_while_another_is_drawn_comes_next(where: str) -> None:
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
    agrees(settled(explorer), Unit("conv3", 90))
    explorer.layer_menu.value = "conv2"
    agrees(settled(explorer), Unit("conv2", 0))


def slowed(explorer: ActivationExplorer, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """The explorer's next computation waits for this."""
    go_on, forward = threading.Event(), type(explorer.network).__call__

    def wait(network: Network, batch: torch.Tensor) -> torch.Tensor:
        if threading.current_thread().name == "convis-run":
            go_on.wait()
        return forward(network, batch)

    monkeypatch.setattr(type(explorer.network), "__call__", wait)
    return go_on


def test_until_the_maps_are_there_all_that_is_shown_belongs_together(monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = settled(ActivationExplorer(unit=("conv1", 3)))
    before = explorer.maps
    go_on = slowed(explorer, monkeypatch)
    explorer.unit = ("conv3", 90)
    explorer.opacity = 0.2
    assert explorer.layer == explorer.layer_menu.value == "conv3"
    assert explorer.channel_field.max == 95
    assert explorer.maps is before
    assert explorer.shown == Unit("conv1", 3)
    assert explorer.cell == np.unravel_index(before[3].argmax(), before[3].shape)
    top, left, _, _ = explorer.mosaic.box(20)
    explorer._map_clicked(left + 1, top + 1)
    assert explorer.unit == Unit("conv1", 20), "what was clicked"
    go_on.set()
    agrees(settled(explorer), Unit("conv1", 20))


# -- selections that are none -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, ("", 3)])
def test_without_a_unit_of_a_layer_the_last_one_stays(nothing: Any) -> None:
    explorer = ActivationExplorer(unit=("conv2", 5))
    explorer.unit = nothing
    explorer.opacity = 0.3
    explorer.images.menu.value = "car"
    agrees(settled(explorer), Unit("conv2", 5))
    explorer.channel_field.value = 3
    assert explorer.unit == Unit("conv2", 3)
    agrees(explorer, Unit("conv2", 3))


def test_linked_to_a_widget_without_a_selection_it_keeps_its_own() -> None:
    explorer = ActivationExplorer(unit=("conv2", 5))
    link(SaliencyViewer(), explorer)
    explorer.images.menu.value = "car"
    assert explorer.unit == Unit("conv2", 5)
    agrees(settled(explorer), Unit("conv2", 5))


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.deep, self.fc = nn.Conv2d(3, 4, 3, stride=2), nn.Conv3d(1, 2, 1), nn.Linear(2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.deep(self.conv(x).unsqueeze(1)).mean((2, 3, 4)))


def test_a_layer_without_maps_is_refused_and_nothing_changes(picture: np.ndarray) -> None:
    torch.manual_seed(0)
    net = Network(Odd(), size=16)
    explorer = ActivationExplorer(net, picture)
    for select in (lambda: setattr(explorer, "unit", ("deep", 0)), lambda: setattr(explorer, "layer", "deep")):
        with pytest.raises(ValueError, match=r"deep \(Conv3d\) puts out 2x4x7x7, which is no set of maps; choose another"):
            select()
        agrees(explorer, Unit("conv", 0))
    with pytest.raises(ValueError, match="no set of maps"):
        ActivationExplorer(net, picture, layer="deep")


def test_a_layer_that_is_on_no_menu_can_be_left_again() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    net = Network(nn.Sequential(block, nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)
    explorer = ActivationExplorer(net, np.full((16, 16, 3), 0.5, np.float32), layer="0.0")
    explorer.layer = "0"
    assert settled(explorer).layer_menu.value is None
    explorer.layer_menu.value = "0.0"
    agrees(settled(explorer), Unit("0.0", 0))


# -- pictures that are none -------------------------------------------------------------------------------------------------


def test_while_a_picture_cannot_be_read_the_error_stays_and_the_controls_lead() -> None:
    explorer = settled(ActivationExplorer())
    car = explorer.images.images["car"]
    explorer.images.add("gone", "gone.png")
    explorer.opacity = 0.2
    explorer.channel_field.value = 9
    assert "gone.png does not exist" in explorer.status.value
    assert "channel 9 " in explorer.facts.value, "of the picture before"
    explorer.layer_menu.value = "conv2"
    assert (explorer.unit, explorer.channel_field.max) == (Unit("conv2", 0), 63)
    explorer.channel_field.value = 40
    assert explorer.unit == Unit("conv2", 40)
    assert "gone.png does not exist" in explorer.status.value
    explorer.images.menu.value = "car"
    assert explorer.image is car
    agrees(settled(explorer), Unit("conv2", 40))


def test_a_result_that_comes_late_does_not_wipe_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    explorer = settled(ActivationExplorer())
    go_on = slowed(explorer, monkeypatch)
    explorer.layer = "conv2"
    late = explorer.run
    explorer.images.add("gone", "gone.png")
    go_on.set()
    assert late.join(30)
    assert "gone.png does not exist" in explorer.status.value
    assert explorer.shown == Unit("conv1", 0)


def test_an_array_smaller_than_the_network_takes_has_its_own_cells() -> None:
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


def test_pages_follow_the_channel_and_end_with_the_layer(explorer: ActivationExplorer) -> None:
    explorer.unit = ("0", 2400)
    assert (explorer.page, explorer.page_field.value, len(explorer.mosaic)) == (2, 2, 2500 - 2 * 1024)
    explorer.page = 1
    explorer.unit = ("0", 2400, (1, 1))
    assert explorer.page == 1, "the same channel"
    explorer.page = 99
    assert (explorer.page, explorer.page_field.value) == (2, 2)
    agrees(explorer, Unit("0", 2400, (1, 1)))
    explorer.images.menu.value = "b"
    assert settled(explorer).page == 2


def test_a_page_beyond_a_layer_of_one_page_is_its_first() -> None:
    explorer = ActivationExplorer()
    explorer.page = 3
    explorer.opacity = 0.2
    assert explorer.page == 0
    agrees(explorer, Unit("conv1", 0))


def test_a_page_given_at_first_is_kept(broad: Network) -> None:
    black = np.zeros((8, 8, 3), np.float32)
    assert ActivationExplorer(broad, black, page=1).page == 1
    assert ActivationExplorer(broad, black, unit=("0", 2400)).page == 2
    assert ActivationExplorer(broad, black, unit=("0", 2400), page=0).page == 0
    assert ActivationExplorer(broad, black, page=99).page == 2


def hovering(explorer: ActivationExplorer, tile: int) -> str:
    """What is to be read under the mouse on a tile, by definition."""
    chosen = explorer.maps[explorer.page * 1024 + tile]
    return f"channel {explorer.page * 1024 + tile}: largest {chosen.max():.3g}, mean {chosen.mean():.3g}"


def test_under_the_mouse_stands_what_is_there_now(explorer: ActivationExplorer) -> None:
    top, left, _, _ = explorer.mosaic.box(3)
    explorer._map_hovered(left + 1, top + 1)
    seen = {explorer.hover.value}
    assert hovering(explorer, 3) in explorer.hover.value
    for change in (lambda: setattr(explorer, "page", 1), lambda: setattr(explorer.images.menu, "value", "b")):
        change()
        settled(explorer)
        assert hovering(explorer, 3) in explorer.hover.value
        seen.add(explorer.hover.value)
    assert len(seen) == 3
    explorer.layer = "2"
    settled(explorer)
    assert f"channel 3, class 3,: {explorer.maps[3, 0, 0]:.3g}" in explorer.hover.value
    explorer._map_hovered(None, None)
    assert not explorer.hover.value


def test_a_cell_that_sees_nothing_but_padding_says_so(picture: np.ndarray) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 1, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    explorer = ActivationExplorer(Network(module, size=16), picture, unit=("0", 0, (0, 0)))
    assert "it sees only padding" in explorer.facts.value
    explorer.unit = ("0", 0, (1, 1))
    assert "it sees rows 0 to 0, columns 0 to 0" in explorer.facts.value
