"""Receptive fields, verified with NaN: set one pixel to NaN and check which units become NaN.

The support of the gradient cannot be used: ReLU and max-pooling block paths, so it is smaller than the receptive field.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from convis_widgets.core.network.graph import record_graph
from convis_widgets.core.network.layers import Layer
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.receptive_field.axis import Axis
from convis_widgets.core.network.receptive_field.windows import _upsampling_sources
from convis_widgets.core.network.trace import add_hooks, trace


def check_nan_reach(net: Network, count: int = 4, min_layers: int = 1) -> None:
    """For some pixels, in some channels of every layer with spatial output: the units whose box has the pixel become NaN."""
    height, width = net.transform.size
    layers = [layer for layer in net.layers if len(layer.shape) == 3 and layer.field is not None]
    assert len(layers) >= min_layers
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, (height, width), (count, 2)).tolist()
    pixels[0] = [0, width - 1]
    channels = {layer.name: sorted({0, layer.channels - 1, *generator.integers(0, layer.channels, 2)}) for layer in layers}
    extents = {layer.name: [row_and_column_extents(layer, int(c)) for c in channels[layer.name]] for layer in layers}
    for row, col in pixels:
        batch = torch.full((1, net.transform.channels, height, width), 0.5)
        batch[0, :, row, col] = float("nan")
        for layer, nan in nan_units(net, layers, batch):
            for channel, (rows, columns) in zip(channels[layer.name], extents[layer.name], strict=True):
                in_rows, in_columns = (
                    (extent[:, 0] <= place) & (place < extent[:, 1]) for extent, place in ((rows, row), (columns, col))
                )
                in_box, reached = in_rows[:, None] & in_columns, nan[channel]
                if layer.field.exact:
                    assert np.array_equal(in_box, reached), f"channel {channel} of {layer.name} at {row, col}"
                else:
                    assert (in_box | ~reached).all(), f"channel {channel} of {layer.name} at {row, col}"


def row_and_column_extents(layer: Layer, channel: int) -> tuple[np.ndarray, np.ndarray]:
    """(h, 2) and (w, 2): top and bottom of the boxes of a column of units, left and right of those of a row of units."""
    _, h, w = layer.map_shape
    rows = np.array([layer.box((i, w // 2), channel) for i in range(h)])
    columns = np.array([layer.box((h // 2, j), channel) for j in range(w)])
    return rows[:, ::2], columns[:, 1::2]


INTERPOLATE = F.interpolate


def nan_transparent_interpolate(x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """F.interpolate, but NaN times a weight of 0 is 0, as for finite numbers."""
    nan = INTERPOLATE(x.isnan().to(x), *args, **kwargs) != 0
    return INTERPOLATE(x.nan_to_num(), *args, **kwargs).masked_fill(nan, float("nan"))


def nan_units(net: Network, layers: list[Layer], batch: torch.Tensor) -> Iterator[tuple[Layer, np.ndarray]]:
    """(C, h, w) for each layer: which activations are NaN."""
    with torch.no_grad(), trace(net, [layer.name for layer in layers]) as acts, pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "interpolate", nan_transparent_interpolate)
        net(batch)
    for layer in layers:
        yield layer, net.as_maps(layer.name, acts[layer.name]).isnan()[0].numpy()


def check_boxes(net: Network, *, exact: bool | None = True) -> None:
    """For many units: the first and last input row and column that can make it NaN are those of its box.

    With `exact=False` no receptive field may be marked exact. A box that is not exact may be larger than necessary.
    """
    height, width = net.transform.size
    layers = [layer for layer in net.layers if layer.map_shape is not None]
    assert layers
    edges = {layer.name: np.full((4, *layer.map_shape), -1) for layer in layers}  # as boxes are
    for along, length in ((0, height), (1, width)):
        for i in range(length):
            batch = torch.full((1, net.transform.channels, height, width), 0.5)
            batch[(slice(None), slice(None), *((i,) if along == 0 else (slice(None), i)))] = float("nan")
            for layer, reached in nan_units(net, layers, batch):
                first, last = edges[layer.name][along], edges[layer.name][along + 2]
                first[reached & (first < 0)] = i
                last[reached] = i + 1
    for layer in layers:
        if exact is not None and len(layer.shape) > 1:
            assert layer.field.exact == exact, layer.name
        for channel, row, column in some_units(layer):
            box, true = np.array(layer.box((row, column), channel)), edges[layer.name][:, channel, row, column]
            message = f"channel {channel} of {layer.name} at {row, column}: {box}, not {true}"
            if (true < 0).any():  # depends only on padding along at least one axis
                assert not layer.field.exact or (box == 0).all(), message
            elif layer.field.exact:
                assert (box == true).all(), message
            else:
                assert (box[:2] <= true[:2]).all(), message
                assert (box[2:] >= true[2:]).all(), message


def some_units(layer: Layer) -> list[tuple[int, int, int]]:
    """Channel, row and column of units: all rows and all columns of up to 40 channels."""
    channels, h, w = layer.map_shape
    chosen = random.Random(0)
    units = []
    for channel in range(channels) if channels <= 40 else sorted(chosen.sample(range(channels), 40)):
        units += [(channel, row, chosen.randrange(w)) for row in range(h)]
        units += [(channel, chosen.randrange(h), column) for column in range(w)]
    return units


def check_box_of_units(net: Network, layers: list[Layer], seed: int, *, count: int = 5) -> None:
    """Units of these layers: NaN outside the box leaves them finite, NaN in each edge of the box does not."""
    chosen, (height, width) = random.Random(seed), net.transform.size
    differing = [layer for layer in layers if not layer.field.uniform]
    for number in range(count):
        layer = chosen.choice(differing if differing and number < 3 else layers)
        channels, h, w = layer.map_shape
        channel, position = chosen.randrange(channels), (chosen.randrange(h), chosen.randrange(w))
        top, left, bottom, right = layer.box(position, channel)
        batch = torch.rand(5, net.transform.channels, height, width, generator=torch.Generator().manual_seed(number))
        outside = torch.ones(height, width, dtype=torch.bool)
        outside[top:bottom, left:right] = False
        batch[0, :, outside] = float("nan")
        batch[1, :, top, left:right] = batch[2, :, bottom - 1, left:right] = float("nan")
        batch[3, :, top:bottom, left] = batch[4, :, top:bottom, right - 1] = float("nan")
        with torch.no_grad(), trace(net, [layer.name], stop=True) as acts:
            net(batch)
        reached = net.as_maps(layer.name, acts[layer.name])[:, channel, position[0], position[1]].isnan().tolist()
        assert reached == [False, True, True, True, True], f"channel {channel} of {layer.name} at {position}"


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
def test_receptive_fields_of_torchvision_networks(name: str, size: int, known: dict[str, tuple[int, int] | str]) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Network(torchvision.models.get_model(name, weights=None, **options), size=size)
    check_nan_reach(net, count=3, min_layers=10)
    assert all(layer.field.exact for layer in net.layers)
    for layer, field in known.items():
        assert net.layers[layer].receptive_field == field


@pytest.mark.parametrize(
    ("name", "size", "last"),
    [
        ("squeezenet1_1", 127, ""),
        ("googlenet", 96, ""),
        ("densenet121", 96, ""),
        ("shufflenet_v2_x0_5", 96, ""),
        ("mnasnet0_5", 64, ""),
        ("timm/inception_v4", 139, ""),
        ("timm/mixnet_s", 96, "blocks.1"),  # before squeeze-excitation
        ("timm/res2net50_26w_4s", 64, ""),
        ("timm/ghostnet_100", 96, "blocks.2"),
        ("timm/ese_vovnet19b_dw", 96, "stages.0"),
    ],
)
def test_box_of_channel_in_published_networks(name: str, size: int, last: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if name.startswith("timm/"):
            module = pytest.importorskip("timm").create_model(name.removeprefix("timm/"), pretrained=False)
        else:
            options = {"init_weights": False} if name == "googlenet" else {}
            module = torchvision.models.get_model(name, weights=None, **options)
    net = Network(module, size=size)
    layers = [layer for layer in net.layers if layer.is_spatial and layer.receptive_field != "whole image"]
    if last:
        layers = [layer for layer in layers if layer.name <= last or not layer.name.startswith(last.split(".")[0])]
    assert all(layer.field.exact for layer in layers)
    check_box_of_units(net, layers, seed=len(name))


class Fn(nn.Module):
    """A module that calls a function; `parts` are its parameters."""

    def __init__(self, function: Callable[..., torch.Tensor], *parts: torch.Tensor) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ParameterList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x, *self.parts)


def resize(**how: Any) -> Fn:
    return Fn(lambda x: F.interpolate(x, **how))


def write_into_copy(write: Callable[[torch.Tensor, torch.Tensor], Any]) -> Fn:
    """A module that writes into a copy of its input."""

    def function(x: torch.Tensor) -> torch.Tensor:
        copy = x * 1
        write(copy, x)
        return copy * 1

    return Fn(function)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 5, padding=2), nn.Conv2d(2, 2, (1, 3), padding=(0, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.a(x), self.b(x) + self.c(x)], 1)


class Sum(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


def three_fields(x: torch.Tensor) -> torch.Tensor:
    """Twelve channels with three receptive fields, (N, 12, 10, 9) from (N, 3, 20, 17)."""
    x = x[:, :2]
    parts = [F.avg_pool2d(x, (2, 1), 2), F.avg_pool2d(x, (1, 3), 2, (0, 1)), F.avg_pool2d(F.pad(x, (1, 2, 3, 1)), 5, 2)]
    parts = [part[:, :, :10, :8] for part in parts]
    return torch.cat([parts[0], parts[1], parts[2], parts[2] * 2, parts[0], parts[1]], 1)


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.up, self.skip, self.last = nn.ConvTranspose2d(6, 2, 2, stride=2), nn.Identity(), nn.Conv2d(6, 6, 3, groups=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.a(x)
        b = self.b(F.max_pool2d(a, 2, ceil_mode=True))
        return self.last(self.skip(torch.cat([a, self.up(b)[:, :, :, : a.shape[3]]], 1)))


class Select(nn.Module):
    def __init__(self, indices: list[int]) -> None:
        super().__init__()
        self.register_buffer("indices", torch.tensor(indices))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.index_select(x, 1, self.indices)


class Dense(nn.Module):
    def __init__(self, before: nn.Module, size: int, channels: int) -> None:
        super().__init__()
        self.before, self.conv = before, nn.Conv2d(channels - 3, 3, (size, 1), padding="same")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)
        return torch.cat([x, self.conv(x)], 1)


class Res2Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, *parts = x.chunk(4, 1)
        results, last = [first], 0
        for conv, part in zip(self.convs, parts, strict=True):
            last = conv(part + last)
            results.append(last)
        return torch.cat(results, 1)


THREE = Fn(three_fields)
FIRST, LAST = Fn(lambda x: x.permute(0, 2, 3, 1)), Fn(lambda x: x.permute(0, 3, 1, 2))  # to and from channels last
CASES = {
    "stride larger than kernel": [nn.Conv2d(3, 2, 2, stride=3)],
    "dilation": [nn.Conv2d(3, 2, 3, dilation=3, padding=2), nn.Conv2d(2, 2, 3, stride=2)],
    "ceil mode": [nn.Conv2d(3, 2, 3), nn.MaxPool2d(3, 2, ceil_mode=True), nn.MaxPool2d(2, ceil_mode=True)],
    "average pooling with padding": [nn.AvgPool2d(3, 2, padding=1), nn.Conv2d(3, 2, 2)],
    "not square": [nn.Conv2d(3, 2, (1, 5), stride=(2, 1)), nn.MaxPool2d((3, 1))],
    "uneven adaptive pooling": [nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d((5, 4))],
    "even adaptive pooling": [nn.AdaptiveMaxPool2d(10), nn.Conv2d(3, 2, 3)],
    "branches": [nn.Conv2d(3, 2, 3), Branches(), nn.MaxPool2d(2)],
    "upsampling": [nn.Conv2d(3, 2, 3, stride=2), resize(scale_factor=2), nn.Conv2d(2, 2, 3)],
    "bilinear upsampling": [nn.Conv2d(3, 2, 3, stride=2), resize(scale_factor=2, mode="bilinear")],
    "nearest by an odd factor": [nn.Conv2d(3, 2, 3), resize(scale_factor=0.6), resize(scale_factor=1.7)],
    "nearest-exact": [resize(size=(7, 5), mode="nearest-exact"), resize(scale_factor=1.7, mode="nearest-exact")],
    "bilinear by an odd factor": [resize(scale_factor=2.3, mode="bilinear"), resize(scale_factor=0.3, mode="bilinear")],
    "bilinear, corners aligned": [resize(size=(31, 9), mode="bilinear", align_corners=True)],
    "rows and columns exchanged": [Fn(lambda x: x.transpose(2, 3)), nn.Conv2d(3, 2, (3, 1))],
    "turned": [Fn(lambda x: x.flip(2).transpose(2, 3)), nn.Conv2d(3, 2, 3, padding=1)],
    "channels last": [nn.Conv2d(3, 12, (1, 2)), FIRST, LAST],
    "as many channels as rows": [nn.Conv2d(3, 20, (1, 2)), nn.ReLU()],
    "tokens": [nn.Conv2d(3, 4, 3, stride=3), nn.Flatten(2), Fn(lambda x: x.transpose(1, 2)), nn.Unflatten(1, (6, 5)), LAST],
    "parametric ReLU": [nn.Conv2d(3, 2, 3), nn.PReLU(), nn.LogSigmoid()],
    "norm over channels": [nn.Conv2d(3, 4, 3), Fn(lambda x: x / x.norm(dim=1, keepdim=True))],
    "mean over rows": [nn.Conv2d(3, 2, 3), Fn(lambda x: x.mean(2, keepdim=True))],
    "transposed convolution": [nn.Conv2d(3, 2, 3, stride=2), nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1)],
    "reflection padding": [nn.ReflectionPad2d(3), nn.Conv2d(3, 2, 5)],
    "zero padding and cropping": [nn.ZeroPad2d((1, 2, -3, 4)), nn.Conv2d(3, 2, 3)],
    "local response normalization": [nn.Conv2d(3, 6, 3), nn.LocalResponseNorm(3), nn.MaxPool2d(2)],
    "instance normalization": [nn.Conv2d(3, 2, 3), nn.InstanceNorm2d(2)],
    "group normalization": [nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)],
    "channel shuffle": [nn.Conv2d(3, 4, 3), nn.ChannelShuffle(2), nn.Conv2d(4, 2, 3, stride=2)],
    "resized to the same size": [nn.Conv2d(3, 2, 3), resize(size=(18, 15), mode="bilinear"), nn.Conv2d(2, 2, 3)],
    "gated": [nn.Conv2d(3, 4, 3), nn.GLU(1), nn.RReLU()],
    "only the shape is read": [nn.Conv2d(3, 2, 3), Fn(lambda x: x + torch.zeros_like(x) + x.new_ones(1))],
    "written through another name": [write_into_copy(lambda y, x: y.view(y.shape).add_(x.flip(2)))],
    "written over": [write_into_copy(lambda y, x: torch.add(x.flip(2), 1, out=y))],
    "larger than the image": [nn.Conv2d(3, 3, 9, padding=4) for _ in range(5)],
    "padding where all see the same": [Fn(lambda x: x.mean((2, 3), keepdim=True)), nn.Conv2d(3, 4, 3, padding=3)],
    "bilinear by an odd integer": [resize(size=(5, 17), mode="bilinear"), nn.Conv2d(3, 2, 2)],
    "corners aligned, fewer rows": [resize(size=(10, 9), mode="bilinear", align_corners=True), nn.Conv2d(3, 2, (2, 1))],
    "bicubic": [resize(scale_factor=2, mode="bicubic"), nn.Conv2d(3, 2, 2)],
    "bicubic, corners aligned": [resize(size=(39, 9), mode="bicubic", align_corners=True), nn.Conv2d(3, 2, (2, 1))],
    "corners aligned, one row": [resize(size=(1, 33), mode="bilinear", align_corners=True)],
    "concatenated": [THREE, nn.BatchNorm2d(12), nn.MaxPool2d(2), nn.Conv2d(12, 4, 1)],
    "concatenated and chunked": [THREE, Fn(lambda x: torch.cat([x.chunk(2, 1)[1], x[:, 1:9:3] + 1, x[:, -1:]], 1))],
    "channels reordered": [THREE, Fn(lambda x: x[:, [5, 11, 0, 2, 2, 7]]), Fn(lambda x: x[:, torch.arange(6).flip(0)])],
    "channels selected": [THREE, Select([8, 1, 4, 10, 0])],
    "channels masked": [THREE, Fn(lambda x: x[:, torch.arange(12) % 5 == 1])],
    "channels shuffled": [THREE, nn.ChannelShuffle(2), Fn(lambda x: x.view(1, 3, 4, 10, 8).transpose(1, 2).flatten(1, 2))],
    "channels split into heads": [THREE, Fn(lambda x: x.view(1, 3, 2, 2, 10, 8)[:, :, 1].flatten(1, 2))],
    "channels regrouped": [THREE, Fn(lambda x: x.view(1, 4, 3, 10, 8)), Fn(lambda x: x.reshape(1, 6, 2, 10, 8)[:, :, 1])],
    "grouped": [THREE, nn.Conv2d(12, 6, 3, groups=3), nn.Conv2d(6, 4, 1, groups=2)],
    "depthwise": [THREE, nn.Conv2d(12, 24, (1, 3), groups=12), nn.Conv2d(24, 24, 3, stride=2, groups=24)],
    "grouped transposed convolution": [THREE, nn.ConvTranspose2d(12, 8, 3, stride=2, groups=4)],
    "sum of other groups": [THREE, Sum(Fn(lambda x: x.roll(5, 1))), Sum(nn.Conv2d(12, 12, 3, padding=1, groups=4))],
    "gated by other groups": [THREE, nn.GLU(1), Fn(lambda x: x * F.avg_pool2d(x[:, 2:3], 3, 1, 1).sigmoid())],
    "maximum over some channels": [THREE, Fn(lambda x: torch.stack([x[:, :4].amax(1), x[:, 4:6].mean(1)], 1))],
    "softmax over some channels": [THREE, Fn(lambda x: x.view(1, 4, 3, 10, 8).softmax(2).view(x.shape))],
    "normalized over some channels": [THREE, Fn(lambda x: F.local_response_norm(x, 3))],
    "group norm of groups": [THREE, Fn(lambda x: torch.cat([x[:, :4], F.group_norm(x, 6)], 1))],
    "channels padded": [THREE, Fn(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3)))],
    "channels repeated": [THREE, Fn(lambda x: x.repeat(1, 2, 1, 1)[:, 3:21]), Fn(lambda x: x.repeat_interleave(2, 1))],
    "stacked": [THREE, Fn(lambda x: torch.stack([x, x.flip(1)], 2).flatten(1, 2))],
    "channels last, concatenated": [THREE, FIRST, Fn(lambda x: torch.cat([x[..., :5], x], 3)), LAST],
    "tokens, concatenated": [THREE, nn.Flatten(2), Fn(lambda x: torch.cat([x, x[:, 3:5]], 1).transpose(1, 2)), nn.GELU()],
    "flattened": [THREE, Fn(lambda x: x[:, 3:]), nn.Flatten()],
    "pixel shuffle": [nn.Conv2d(3, 8, 3), nn.PixelShuffle(2), nn.Conv2d(2, 2, 2)],
    "pixel unshuffle": [Fn(lambda x: x[..., 1:]), nn.PixelUnshuffle(2), nn.Conv2d(12, 12, 2, groups=12)],
    "space to depth": [Fn(lambda x: torch.cat([x[:, :, i::2, j:16:2] for i in (0, 1) for j in (0, 1)], 1)), nn.ReLU()],
    "channels of a concatenation": [Fn(lambda x: torch.cat([x, F.avg_pool2d(x, 5, 1, 2)], 1)), Fn(lambda x: x[:, 1:5])],
    "constant channels": [Fn(lambda x: torch.cat([x, torch.zeros(1, 3, 20, 17)], 1)), Fn(lambda x: x[:, 2:5])],
    "constant channels unfolded": [Fn(lambda x: torch.cat([x.mean((2, 3)), torch.ones(1, 9)], 1).view(1, 3, 2, 2))],
    "padding beside all branches": [THREE, nn.Conv2d(12, 12, 1, padding=(2, 1), groups=12), nn.Conv2d(12, 2, 1)],
    "a map beside what all see": [Fn(lambda x: torch.cat([x, x.mean((2, 3), keepdim=True).expand(-1, -1, 20, 17)], 1))],
    "skip connections": [UNet()],
    "hierarchical": [THREE, Res2Net()],
    "dense": [Dense(Dense(Dense(nn.Conv2d(3, 2, 3, padding=1), 3, 5), 5, 8), 7, 11), nn.AvgPool2d(2)],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_receptive_field_is_exact(case: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*CASES[case], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    check_boxes(Network(module, size=(20, 17), channels=3))


def repeat_by_expanding(x: torch.Tensor) -> torch.Tensor:
    return x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(len(x), x.shape[1], 2 * x.shape[2], -1)


class Padded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 2, (1, 5), padding=(1, 2)), nn.Conv2d(3, 2, (3, 1), padding=(2, 0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x)


BOUNDS = {
    "repeated rows": [Fn(lambda x: x.repeat_interleave(2, 2))],
    "repeated by expanding": [Fn(repeat_by_expanding)],
    "rows in two dimensions": [Fn(lambda x: x[:, 0, :14, None, 0] + x[:, 0, None, :14, 1]), Fn(lambda x: x[:, None])],
    "matrix from the left": [Fn(lambda x, w: w @ x, torch.rand(6, 20))],
    "rows from elsewhere": [Fn(lambda x: torch.cat([x[:, :, 3:4], x[:, :, 7:8]], 2))],
    "statistics of a vector's own": [Fn(lambda x: F.instance_norm(x.flatten(2)).view(x.shape))],
    "bias that depends on the image": [Fn(lambda x: F.conv2d(x, torch.ones(2, 3, 1, 1), x.mean((0, 2, 3))[:2]))],
    "rows among the channels of a transposed convolution": [Fn(lambda x: x.transpose(1, 2)), nn.ConvTranspose2d(20, 4, 3)],
    "rows among the channels of a group norm": [Fn(lambda x: x.transpose(1, 2)), nn.GroupNorm(20, 20)],
    "one row of rows in two dimensions": [
        Fn(lambda x: (x[:, 0, :14, None, 0] + x[:, 0, None, :14, 1])[:, 3][:, None, :, None])
    ],
    "only padding in one branch": [Padded()],
    "upsampling that processors round differently": [
        Fn(lambda x: x[:, :, :3, :5]),
        resize(size=(19, 23), mode="bilinear"),
    ],
    "a factor that keeps the size": [resize(scale_factor=1.01)],
    "transposed view written": [Fn(lambda x: x[:, :, :17]), write_into_copy(lambda y, x: y.transpose(2, 3).add_(x))],
    "overlapping views written": [write_into_copy(lambda y, x: y[:, :, 1:].add_(x[:, :, :-1]))],
    "a number that Python reads": [Fn(lambda x: x * x.mean().item())],
    "a choice that Python makes": [Fn(lambda x: x.flip(2) if x.mean() > 0 else x.flip(3))],
    "a list": [Fn(lambda x: x * torch.tensor(x.mean((0, 1, 2)).tolist()))],
    "a branch that leaves torch": [Fn(lambda x: x + torch.from_numpy(x.numpy()[:, :, ::-1].copy()))],
    "channels in an order that depends on the image": [THREE, Fn(lambda x: x[:, x.mean((0, 2, 3)).argsort()])],
    "an order of channels that leaves torch": [
        THREE,
        Fn(lambda x: x[:, torch.from_numpy(x.mean((0, 2, 3)).numpy().argsort())]),
    ],
    "pixel shuffle of channels that differ": [THREE, nn.PixelShuffle(2)],
    "rows of a concatenation along rows": [THREE, Fn(lambda x: torch.cat([x[:, :, 4:], x[:, :, :2]], 2))],
    "an operator unheard of": [Fn(lambda x: x.cumsum(2))],
}


@pytest.mark.parametrize("case", BOUNDS)
def test_receptive_field_is_marked_as_upper_bound(case: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(*BOUNDS[case], Fn(lambda x: x.flatten(1)[:, :5]))
    net = Network(module, size=(20, 17), channels=3)
    assert any(not layer.field.exact for layer in net.layers)
    check_boxes(net, exact=None)


class Buffered(nn.Module):
    def __init__(self, write: Callable[..., None]) -> None:
        super().__init__()
        self.write, self.last = write, nn.Identity()
        self.register_buffer("buffer", torch.zeros(1, 3, 12, 12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.write(self.buffer, x)).mean((2, 3))


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.parametrize(
    ("write", "unit", "pixel"),
    [
        (lambda buffer, x: (buffer[:, :, 0].copy_(x[:, :, 5]), buffer + 1)[1], (0, 3), (5, 3)),
        (lambda buffer, x: (torch._foreach_add_([buffer], [x]), buffer * 2)[1], (3, 4), (3, 4)),
        (
            lambda buffer, x: (buffer[:, :, 0].add_(x[:, :, 5]), buffer[:, :, 1].add_(x[:, :, 9]), buffer + 1)[2],
            (0, 3),
            (5, 3),
        ),
        (lambda buffer, x: (buffer.transpose(2, 3).add_(x), buffer + 1)[1], (0, 3), (3, 0)),
        (lambda buffer, x: torch.add(x, x.flip(2), out=buffer) * 1, (3, 4), (8, 4)),
        (lambda buffer, x: torch.from_numpy(x.numpy().copy()) * 1, (3, 4), (3, 4)),
    ],
)
def test_box_includes_writes_to_buffers_and_numpy_round_trips(
    write: Callable[..., torch.Tensor], unit: tuple[int, int], pixel: tuple[int, int]
) -> None:
    top, left, bottom, right = Network(Buffered(write), size=12, channels=3).layers["last"].box(unit)
    assert top <= pixel[0] < bottom
    assert left <= pixel[1] < right


FUZZ: list[Callable[[], nn.Module]] = [
    lambda: nn.Conv2d(3, 3, 3, padding=1),
    lambda: nn.Conv2d(3, 3, (3, 1), stride=(2, 1), padding=(2, 0)),
    lambda: nn.Conv2d(3, 3, 2, dilation=2, padding=1, groups=3),
    lambda: nn.MaxPool2d(3, 2, padding=1, ceil_mode=True),
    lambda: nn.AvgPool2d(2, 1, padding=1),
    lambda: nn.AdaptiveAvgPool2d((7, 5)),
    lambda: nn.ConvTranspose2d(3, 3, 3, stride=2, padding=1, output_padding=1),
    lambda: nn.ReLU(inplace=True),
    lambda: resize(scale_factor=1.5),
    lambda: resize(scale_factor=2, mode="bilinear"),
    lambda: Fn(lambda x: x.flip(2)),
    lambda: Fn(lambda x: x.roll(1, 3)),
    lambda: Fn(lambda x: x[:, :, 1:, ::2]),
    lambda: Fn(lambda x: x.transpose(2, 3).contiguous()),
    lambda: Fn(lambda x: x + x.flip(3)),
    lambda: Fn(lambda x: x * x.mean(2, keepdim=True)),
    lambda: Fn(lambda x: F.pad(x, (1, 0, 1, 1), mode="reflect")),
    lambda: Fn(lambda x: torch.cat([x[:, :2], F.avg_pool2d(x, 3, 1, 1)[:, :1]], 1)),
    lambda: Fn(lambda x: x.repeat_interleave(2, 3)),
    lambda: Fn(lambda x: x.flatten(2).unflatten(2, x.shape[2:])),
]


CHANNEL_FUZZ: list[Callable[[], nn.Module]] = [  # from twelve channels to twelve
    lambda: nn.Conv2d(12, 12, 3, padding=1, groups=12),
    lambda: nn.Conv2d(12, 12, (1, 2), groups=4),
    lambda: nn.ConvTranspose2d(12, 12, 2, stride=2, groups=3),
    lambda: nn.ChannelShuffle(3),
    lambda: nn.GroupNorm(12, 12),
    lambda: nn.MaxPool2d(2, 1, padding=1),
    lambda: nn.PReLU(12),
    lambda: nn.Sequential(nn.Conv2d(12, 24, 1, groups=6), nn.GLU(1)),
    lambda: nn.Sequential(nn.Conv2d(12, 3, 1, groups=3), resize(size=(12, 8)), nn.PixelUnshuffle(2)),
    lambda: nn.Sequential(nn.PixelShuffle(2), Fn(lambda x: torch.cat([x, x[:, [2, 0, 1]], x.flip(2, 1), -x], 1))),
    lambda: Sum(nn.Conv2d(12, 12, 3, padding=1, groups=6)),
    lambda: Sum(Fn(lambda x: F.max_pool2d(x[:, 3:4], 3, 1, 1))),
    lambda: Fn(lambda x: x[:, [3, 1, 11, 0, 2, 2, 7, 5, 4, 9, 8, 10]]),
    lambda: Fn(lambda x: torch.cat(x.chunk(3, 1)[::-1], 1)),
    lambda: Fn(lambda x: torch.stack(x.unbind(1)[::-1], 1)),
    lambda: Fn(lambda x: torch.cat([F.pad(x[:, :7, :-1], (0, 0, 1, 0)), F.avg_pool2d(x[:, 5:10], 3, 1, 1)], 1)),
    lambda: Fn(lambda x: F.pad(x[:, 2:10], (0, 0, 0, 0, 1, 3))),
    lambda: Fn(lambda x: x.view(len(x), 3, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)),
    lambda: Fn(lambda x: x.view(len(x), 2, 6, *x.shape[2:]).softmax(2).flatten(1, 2)),
    lambda: Fn(lambda x: x.permute(0, 2, 3, 1).roll(2, 3).permute(0, 3, 1, 2)),
    lambda: Fn(lambda x: x.flatten(2).view(x.shape).transpose(2, 3)),
    lambda: Fn(lambda x: x * x.view(len(x), 4, 3, *x.shape[2:]).amax(1).repeat(1, 4, 1, 1)),
    lambda: Fn(lambda x: torch.cat([x[:, :6], x[:, :6].mean((2, 3), keepdim=True).expand(-1, -1, *x.shape[2:])], 1)),
    lambda: Fn(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)[:, :, 2:12, :9]),
]


@pytest.mark.parametrize("seed", range(60))
def test_receptive_fields_of_random_operator_chains(seed: int) -> None:
    torch.manual_seed(seed)
    chosen = random.Random(seed)
    if seed < 30:
        parts = [make() for make in chosen.choices(FUZZ, k=4)]
    else:
        parts = [THREE, *(make() for make in chosen.sample(CHANNEL_FUZZ, k=4))]
    module = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    check_boxes(Network(module, size=(14, 11) if seed < 30 else (20, 17), channels=3), exact=None)


def test_receptive_field_size_stride_and_offset() -> None:
    module = nn.Sequential(nn.Conv2d(3, 2, 7, stride=2, padding=3), nn.MaxPool2d(3, 2, padding=1), nn.Flatten())
    net = Network(module, size=64)
    layer = net.layers["1"]
    assert (layer.receptive_field, layer.stride) == ((11, 11), (4, 4))
    assert layer.field.rows.grid == (11, 4, -5)
    assert layer.box((0, 0)) == (0, 0, 6, 6)  # clipped at the corner
    assert layer.box((5, 6)) == (15, 19, 26, 30)


def test_receptive_field_after_global_pooling_is_whole_image(tiny: Network) -> None:
    assert tiny.layers["fc"].receptive_field == "whole image"
    assert tiny.layers["fc"].box() == (0, 0, 16, 16)
    assert tiny.layers["fc"].stride is None


def test_receptive_field_of_slice_assignment_is_upper_bound() -> None:
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
    assert not net.layers["last"].field.exact  # marked as an upper bound
    assert net.layers["last"].receptive_field == "whole image"


@pytest.mark.parametrize("how", [{"mode": mode} for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")])
def test_upsampling_sources_match_interpolate(how: dict[str, Any]) -> None:
    chosen = random.Random(0)
    sizes = [{"size": (chosen.randint(1, 40),) * 2} for _ in range(120)]
    scales = [{"scale_factor": chosen.choice([1.01, 2, 2.1, chosen.uniform(0.3, 2.5)])} for _ in range(120)]
    aligned = [{**given, "align_corners": True} for given in sizes] if how["mode"][:2] == "bi" else []
    for given in (*sizes, *scales, *aligned):
        n = chosen.randint(2, 24)
        module = Fn(lambda x, given=given: F.interpolate(x, **how, **given))
        add_hooks(module)
        op = next(
            op for op in record_graph(module, torch.zeros(1, 1, n, n), lambda output: output)[0].ops if "upsample" in op.name
        )
        batch = torch.zeros(n, 1, n, n)
        batch[torch.arange(n), :, :, torch.arange(n)] = 1
        reached = (module(batch)[:, 0, 0] != 0).numpy()  # neighbors whose weight is not 0
        first, last, certain = _upsampling_sources(op, n, reached.shape[1], -1)
        low, high = reached.argmax(0), n - 1 - reached[::-1].argmax(0)
        compare = operator.eq if certain else operator.le
        assert compare(first, low).all(), (n, given)
        assert compare(high, last).all(), (n, given)


def test_as_maps_rejects_tokens_of_other_image_size() -> None:
    net = Network(nn.Sequential(nn.Conv2d(3, 4, 3, stride=3), nn.Flatten(2), Fn(lambda x: x.mean(2))), size=16, channels=3)
    with torch.no_grad(), trace(net, ["1"]) as acts:
        net(torch.rand(1, 3, 22, 19))
    with pytest.raises(ValueError, match="4x42.*4x25"):
        net.as_maps("1", acts["1"])


def test_axis_of_units_that_see_only_padding_is_empty() -> None:
    axis = Axis(np.arange(4), np.arange(4), (1, 1, 0)).window(8, 1, 1, 2, 1)
    assert axis.high[0] < 0
    assert axis.grid == (1, 1, -2)
