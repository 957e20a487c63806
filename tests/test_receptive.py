"""Receptive fields, proved with NaN: poke one pixel, and see which units turn NaN.

The support of a gradient would not do: ReLU and max-pooling close paths, so it is smaller than the field.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from convis_widgets.core import Network, trace
from convis_widgets.core.receptive import Axis


def prove(net: Network, pokes: int = 4, least: int = 1) -> None:
    """For some pixels and every layer that puts out maps: exactly the units whose box holds the pixel turn NaN."""
    height, width = net.transform.size
    layers = [layer for layer in net.layers if len(layer.shape) == 3 and layer.field is not None]
    assert len(layers) >= least
    spots = np.random.default_rng(0).integers(0, (height, width), (pokes, 2)).tolist()
    spots[0] = [0, width - 1]
    for row, col in spots:
        batch = torch.full((1, net.transform.channels, height, width), 0.5)
        batch[0, 0, row, col] = float("nan")
        with torch.no_grad(), trace(net, [layer.name for layer in layers]) as acts:
            net(batch)
        for layer in layers:
            reached = acts[layer.name].isnan().any(1)[0].numpy()
            rows, cols = layer.field.rows, layer.field.cols
            expected = np.outer((rows.low <= row) & (row <= rows.high), (cols.low <= col) & (col <= cols.high))
            assert np.array_equal(np.broadcast_to(expected, reached.shape), reached), f"{layer.name} at {row, col}"
            assert layer.field.exact


def prove_boxes(net: Network) -> None:
    """For every unit: the first and last input row, and column, that can turn it NaN are those of its box."""
    height, width = net.transform.size
    layers = [layer for layer in net.layers if len(layer.shape) == 3]
    for along, length in ((0, height), (1, width)):
        reached = {layer.name: [] for layer in layers}
        for i in range(length):
            batch = torch.full((1, net.transform.channels, height, width), 0.5)
            batch[(slice(None), slice(None), *((i,) if along == 0 else (slice(None), i)))] = float("nan")
            with torch.no_grad(), trace(net, list(reached)) as acts:
                net(batch)
            for name, found in acts.items():
                reached[name].append(found.isnan().any(1)[0].any(1 - along).numpy())
        for layer in layers:
            hits = np.array(reached[layer.name])  # (input index, unit)
            axis = (layer.field.rows, layer.field.cols)[along]
            assert layer.field.exact
            for unit, seen in enumerate(hits.T):
                where = np.flatnonzero(seen)
                at = min(unit, len(axis) - 1)  # an axis of length 1 counts for every unit
                found = (axis.low[at], axis.high[at]) if axis.high[at] >= 0 else ()
                expected = (where[0], where[-1]) if len(where) else ()
                assert found == expected, f"{layer.name}, {'row' if along == 0 else 'column'} {unit}"


@pytest.mark.parametrize(
    ("name", "size", "known"),
    [
        ("squeezenet1_1", 224, {"features.5": (31, 31), "features.12": (207, 207)}),
        ("vgg11", 96, {"features.20": (150, 150)}),
        ("resnet18", 224, {"layer4": (435, 435)}),
        ("googlenet", 128, {"inception3a": (43, 43)}),  # torchvision has 3x3 where the paper has 5x5
        ("inception_v3", 139, {"Mixed_5b": (63, 63)}),
        ("densenet121", 64, {}),
        ("shufflenet_v2_x0_5", 64, {}),
        ("mobilenet_v3_small", 96, {"features.0": (3, 3), "features.1": "whole image"}),  # squeeze-excitation
    ],
)
def test_torchvision_networks(name: str, size: int, known: dict[str, tuple[int, int] | str]) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Network(torchvision.models.get_model(name, weights=None, **options), size=size)
    prove(net, pokes=3, least=10)
    for layer, field in known.items():
        assert net.layers[layer].receptive_field == field


class Upscale(nn.Module):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.interpolate(x, scale_factor=2, mode=self.mode)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 5, padding=2), nn.Conv2d(2, 2, (1, 3), padding=(0, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.a(x), self.b(x) + self.c(x)], 1)


CASES = {
    "stride larger than kernel": [nn.Conv2d(3, 2, 2, stride=3)],
    "dilation": [nn.Conv2d(3, 2, 3, dilation=3, padding=2), nn.Conv2d(2, 2, 3, stride=2)],
    "ceil mode": [nn.Conv2d(3, 2, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, ceil_mode=True)],
    "average pooling with padding": [nn.AvgPool2d(3, 2, padding=1), nn.Conv2d(3, 2, 2)],
    "not square": [nn.Conv2d(3, 2, (1, 5), stride=(2, 1)), nn.MaxPool2d((3, 1))],
    "uneven adaptive pooling": [nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d((5, 4))],
    "even adaptive pooling": [nn.AdaptiveMaxPool2d(10), nn.Conv2d(3, 2, 3)],
    "branches": [nn.Conv2d(3, 2, 3), Branches(), nn.MaxPool2d(2)],
    "upsampling": [nn.Conv2d(3, 2, 3, stride=2), Upscale("nearest"), nn.Conv2d(2, 2, 3)],
    "bilinear upsampling": [nn.Conv2d(3, 2, 3, stride=2), Upscale("bilinear")],
    "transposed convolution": [nn.Conv2d(3, 2, 3, stride=2), nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1)],
    "reflection padding": [nn.ReflectionPad2d(3), nn.Conv2d(3, 2, 5)],
    "zero padding and cropping": [nn.ZeroPad2d((1, 2, -3, 4)), nn.Conv2d(3, 2, 3)],
    "local response normalization": [nn.Conv2d(3, 6, 3), nn.LocalResponseNorm(3), nn.MaxPool2d(2)],
    "instance normalization": [nn.Conv2d(3, 2, 3), nn.InstanceNorm2d(2)],
    "group normalization": [nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)],
    "channel shuffle": [nn.Conv2d(3, 4, 3), nn.ChannelShuffle(2), nn.Conv2d(4, 2, 3, stride=2)],
    "larger than the image": [nn.Conv2d(3, 3, 9, padding=4) for _ in range(5)],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_arithmetic(case: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*CASES[case], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    prove_boxes(Network(module, size=(20, 17), channels=3))


def test_size_stride_and_start_of_an_unclipped_field() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 7, stride=2, padding=3), nn.MaxPool2d(3, 2, padding=1), nn.Flatten())
    net = Network(module, size=64)
    layer = net.layers["1"]
    assert (layer.receptive_field, layer.stride) == ((11, 11), (4, 4))
    assert layer.field.rows.grid == (11, 4, -5)
    assert layer.box((0, 0)) == (0, 0, 6, 6)  # clipped at the corner
    assert layer.box((5, 6)) == (15, 19, 26, 30)


def test_everything_after_global_pooling_sees_the_whole_image(tiny: Network) -> None:
    assert tiny.layers["fc"].receptive_field == "whole image"
    assert tiny.layers["fc"].box() == (0, 0, 16, 16)
    assert tiny.layers["fc"].stride is None


def test_two_modules_that_share_memory_in_place_are_followed() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3, padding=1)
            self.last = nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out = torch.zeros(1, 2, *x.shape[2:])
            out[:, :, ::2] = self.conv(x)[:, :, ::2]
            return self.last(out * 1).mean((2, 3))

    net = Network(Writes(), size=12)
    assert not net.layers["last"].field.exact  # an upper bound, and it says so
    assert net.layers["last"].receptive_field == "whole image"


def test_units_that_see_only_padding_see_nothing() -> None:
    axis = Axis(np.arange(4), np.arange(4), (1, 1, 0)).window(8, 1, 1, 2, 1)
    assert axis.high[0] < 0
    assert axis.grid == (1, 1, -2)
