"""Boxes, crops, patches and captions of a layer that concatenates branches: exact for a channel, "at most" for the layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from widget_helpers import settled

from convis_widgets import (
    ActivationExplorer,
    MaxPatchGallery,
    Network,
    Run,
    deconvnet,
    guided_backprop,
    max_patches,
    saliency,
)
from convis_widgets.core.dataset.scan import Scan
from convis_widgets.core.network.trace import trace
from convis_widgets.widgets.drawing.patch_rows import patch_box

REACH = [1, 1, 1, 3, 3, 3]  # pixels on each side of the position that a channel depends on


class Fire(nn.Module):
    """Three channels that see 3x3 pixels and three that see 7x7."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(3, 4, 3, padding=1)
        self.expand1x1, self.expand5x5 = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 5, padding=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(x)
        return torch.cat([self.expand1x1(x), self.expand5x5(x)], 1)


@pytest.fixture
def net() -> Network:
    torch.manual_seed(3)
    return Network(nn.Sequential(Fire(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), size=16)


@pytest.fixture
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(4).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8))


def window(channel: int, row: int, col: int) -> tuple[int, int, int, int]:
    reach = REACH[channel]
    return max(row - reach, 0), max(col - reach, 0), min(row + reach + 1, 16), min(col + reach + 1, 16)


def test_box_of_channel_is_that_of_its_branch(net: Network) -> None:
    for name in ("0", "1"):
        layer = net.layers[name]
        assert layer.field.exact
        for channel in range(6):
            assert layer.box((5, 9), channel) == window(channel, 5, 9)
            assert layer.box((0, 15), channel) == window(channel, 0, 15)
        assert layer.box((5, 9)) == window(5, 5, 9)  # all channels
        assert layer.box(None, 0) == layer.box() == (0, 0, 16, 16)  # all positions
        with pytest.raises(ValueError, match=rf"{name}\b.*\b0 to 5\b.*\b6\b"):
            layer.box((5, 9), 6)


def test_layer_with_different_branches_is_described_by_an_upper_bound(net: Network) -> None:
    assert net.layers["0"].receptive_field == (7, 7)
    assert net.layers["0"].stride == (1, 1)
    assert net.layers["0"].receptive_field_text == "at most 7x7 pixels"
    assert net.layers["0.expand1x1"].receptive_field_text == "3x3 pixels"
    assert net.layers["0.expand5x5"].receptive_field_text == "7x7 pixels"
    lines = {line.split()[0]: line for line in repr(net.layers).splitlines()}
    assert "at most 7x7" in lines["0"]
    assert "at most" not in lines["0.squeeze"] + lines["0.expand1x1"] + lines["0.expand5x5"] + lines["2"]


@pytest.mark.parametrize("technique", [saliency, guided_backprop, deconvnet])
@pytest.mark.parametrize("channel", [1, 4])
def test_gradient_of_unit_fills_its_box(technique: type, channel: int, net: Network, images: list[np.ndarray]) -> None:
    options = {} if technique is saliency else {"crop": True}
    arrays = next(technique(net, images[0], unit=("0", channel, (6, 7)), **options)).arrays
    top, left, bottom, right = box = tuple(arrays["box"])
    assert box == window(channel, 6, 7)
    support = np.abs(arrays["gradient"]).max(2) > 0
    rows, cols = np.flatnonzero(support.any(1)), np.flatnonzero(support.any(0))
    assert (rows[0], cols[0], rows[-1] + 1, cols[-1] + 1) == box  # there is no ReLU before
    if options:
        assert np.array_equal(arrays["crop"], arrays["gradient"][top:bottom, left:right])


@pytest.mark.parametrize("channel", [0, 5])
def test_patch_is_what_the_channel_depends_on(channel: int, net: Network, images: list[np.ndarray], tmp_path: Path) -> None:
    scan = Scan(net, images, layers=["1"], cache=tmp_path)
    arrays = Run(max_patches(net, scan, unit=("1", channel), k=3, projection="none")).run().arrays
    for j, (value, image, position, box) in enumerate(
        zip(arrays["values"], arrays["images"], arrays["positions"], arrays["boxes"], strict=True)
    ):
        assert tuple(box) == window(channel, *position) == patch_box(scan, "1", scan.top("1"), channel, j)
        top, left, bottom, right = box
        batch = torch.full((1, 3, 16, 16), float("nan"))
        inside = torch.from_numpy(images[image][top:bottom, left:right]).permute(2, 0, 1) / 255
        batch[0, :, top:bottom, left:right] = inside
        with torch.no_grad(), trace(net, ["1"]) as acts:
            net(batch)
        assert acts["1"][0, channel, position[0], position[1]].item() == pytest.approx(value, abs=1e-4)


def test_explorer_and_gallery_show_the_box_of_the_channel(net: Network, images: list[np.ndarray], tmp_path: Path) -> None:
    explorer = settled(ActivationExplorer(net, images[0]))
    for channel in (2, 3):
        explorer.unit = ("0", channel, (8, 4))
        settled(explorer)
        top, left, bottom, right = window(channel, 8, 4)
        assert f"rows {top} to {bottom - 1}, columns {left} to {right - 1}" in explorer.facts.value
        assert "at most 7x7 pixels" in explorer.caption.value
        scale = explorer.input_view.array.shape[0] / 16
        explorer._pixel_clicked(8.6 * scale, 11.4 * scale)
        assert explorer.unit.position == (11, 8)
    gallery = settled(MaxPatchGallery(net, Scan(net, images, layers=["0"], cache=tmp_path)))
    assert "at most 7x7 pixels" in gallery.caption.value
