from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.network.unit import Unit
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.score_cam import score_cam

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def upsample(grid: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear interpolation, pixel by pixel, between the centers of the cells."""
    result = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            row = min(max((y + 0.5) * grid.shape[0] / height - 0.5, 0), grid.shape[0] - 1)
            col = min(max((x + 0.5) * grid.shape[1] / width - 0.5, 0), grid.shape[1] - 1)
            top, left = int(row), int(col)
            bottom, right = min(top + 1, grid.shape[0] - 1), min(left + 1, grid.shape[1] - 1)
            upper = grid[top, left] * (1 - col + left) + grid[top, right] * (col - left)
            lower = grid[bottom, left] * (1 - col + left) + grid[bottom, right] * (col - left)
            result[y, x] = upper * (1 - row + top) + lower * (row - top)
    return result


def reference_score_cam(
    activations: Callable[[torch.Tensor], torch.Tensor],
    score: Callable[[torch.Tensor], float],
    image: np.ndarray,
    channels: int,
) -> tuple[list[int], list[float], np.ndarray]:
    """Channels, weights and map (H, W) by the definition: one channel, one image and one pixel at a time.

    Both functions take a normalized image (1, C, H, W). A product of it with a mask hides pixels behind the mean color.
    """
    height, width, _ = image.shape
    x = torch.zeros(1, 3, height, width)
    for y in range(height):
        for column in range(width):
            for c in range(3):
                x[0, c, y, column] = (float(image[y, column, c]) - MEAN[c]) / STD[c]
    with torch.no_grad():
        maps = activations(x)[0].numpy().astype(float)
        order = sorted(range(len(maps)), key=lambda k: -maps[k].mean())[:channels]
        increases = []
        for k in order:
            mask = upsample(maps[k], height, width)
            low, high = min(mask.flat), max(mask.flat)
            masked = torch.zeros_like(x)
            for y in range(height):
                for column in range(width):
                    value = (mask[y, column] - low) / (high - low) if high > low else 0
                    masked[0, :, y, column] = value * x[0, :, y, column]
            increases.append(score(masked) - score(torch.zeros_like(x)))
    total = sum(math.exp(increase) for increase in increases)
    weights = [math.exp(increase) / total for increase in increases]
    coarse = np.zeros(maps.shape[1:])
    for k, weight in zip(order, weights, strict=True):
        coarse += weight * maps[k]
    return order, weights, upsample(np.maximum(coarse, 0), height, width)


def conv2(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Output of the layer conv2 of `Tiny`."""
    return module.conv2(module.conv1(x).relu())


@pytest.mark.parametrize("channels", [3, 64])
@pytest.mark.parametrize("target", [0, 2])
def test_score_cam_matches_reference_channel_by_channel(
    tiny: Network, tiny_module: nn.Module, image: np.ndarray, target: int, channels: int
) -> None:
    frame = Run(score_cam(tiny, image, target=target, layer="conv2", channels=channels)).run()
    order, weights, heat = reference_score_cam(
        lambda x: conv2(tiny_module, x), lambda x: float(tiny_module(x)[0, target]), image, channels
    )
    assert frame.arrays["channels"].tolist() == order
    assert len(order) == min(channels, 8)
    assert np.ptp(weights) > 1e-2
    assert np.allclose(frame.arrays["weights"], weights, atol=1e-5)
    assert heat.max() > 1e-2
    assert np.allclose(frame.heat, heat, atol=1e-5)
    assert frame.scalars["value"] == pytest.approx(float(tiny(tiny.batch(image))[0, target]), abs=1e-5)


def test_score_cam_of_unit_matches_reference(tiny: Network, tiny_module: nn.Module, image: np.ndarray) -> None:
    frame = Run(score_cam(tiny, image, unit=("conv2", 5, (3, 4)), layer="conv1")).run()
    order, weights, heat = reference_score_cam(
        tiny_module.conv1, lambda x: float(conv2(tiny_module, x)[0, 5, 3, 4]), image, 64
    )
    assert frame.arrays["channels"].tolist() == order
    assert np.allclose(frame.arrays["weights"], weights, atol=1e-5)
    assert np.ptp(weights) > 1e-3
    assert np.allclose(frame.heat, heat, atol=1e-5)


def test_score_cam_of_channel_uses_position_of_largest_activation(tiny: Network, image: np.ndarray) -> None:
    unit = Unit("conv2", 5).with_argmax_position(tiny, tiny.batch(image))
    frames = [Run(score_cam(tiny, image, unit=u, layer="conv1")).run() for u in (("conv2", 5), unit)]
    assert np.array_equal(frames[0].heat, frames[1].heat)


def color_network() -> Network:
    """Channels red and blue, relative to mid-gray; the class score is twelve times the mean of red."""
    conv, fc = nn.Conv2d(3, 2, 1, bias=False), nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[1.0, 0, 0], [0, 0, 1]])[:, :, None, None])
        fc.weight.copy_(torch.tensor([[12.0, 0]]))
    return Network(nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc), size=8, mean=0.5, std=1)


def test_score_cam_weights_follow_definition_on_color_network() -> None:
    """A red left half and a blue right half: showing only the red half raises the score, only the blue half does not."""
    image = np.full((8, 8, 3), 0.5, np.float32)
    image[:, :4, 0] = 1
    image[:, 4:, 2] = 1
    frame = Run(score_cam(color_network(), image, target=0)).run()
    increases = dict(zip(frame.arrays["channels"].tolist(), frame.arrays["increases"].tolist(), strict=True))
    assert increases == {0: pytest.approx(12 * 0.25), 1: pytest.approx(0, abs=1e-6)}
    red = math.exp(3) / (math.exp(3) + 1)
    assert np.allclose(frame.heat[:, :4], 0.5 * red, atol=1e-6)
    assert np.allclose(frame.heat[:, 4:], 0.5 * (1 - red), atol=1e-6)


def test_score_cam_map_has_no_negative_part() -> None:
    image = np.full((8, 8, 3), 0.5, np.float32)
    image[:, :4, 0] = 1
    image[:, 4:, 0] = 0
    frame = Run(score_cam(color_network(), image, target=0)).run()
    assert frame.heat[:, :4].min() > 0
    assert (frame.heat[:, 4:] == 0).all()


def test_score_cam_constant_channel_hides_whole_image() -> None:
    """The blue channel is constant, so it masks everything, and the score does not increase."""
    image = np.full((8, 8, 3), 0.9, np.float32)
    image[:, :4, 0] = 1
    frame = Run(score_cam(color_network(), image, target=0)).run()
    increases = dict(zip(frame.arrays["channels"].tolist(), frame.arrays["increases"].tolist(), strict=True))
    assert increases[1] == 0
    assert increases[0] > 0


def test_score_cam_streams_channels_by_mean_activation(
    tiny: Network, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Run(score_cam(tiny, image, target=1, layer="conv2")).run()
    monkeypatch.setattr("convis_widgets.techniques.attribution.score_cam.auto_batch_size", lambda *_args: 3)
    frames = list(score_cam(tiny, image, target=1, layer="conv2"))
    assert [(frame.step, frame.total, frame.done) for frame in frames] == [(3, 8, False), (6, 8, False), (8, 8, True)]
    for frame in frames:
        assert np.array_equal(frame.arrays["channels"], whole.arrays["channels"][: frame.step])
        assert np.allclose(frame.arrays["increases"], whole.arrays["increases"][: frame.step], atol=1e-5)
        assert frame.arrays["weights"].sum() == pytest.approx(1, abs=1e-5)
        first = Run(score_cam(tiny, image, target=1, layer="conv2", channels=frame.step)).run()
        assert np.allclose(first.heat, frame.heat, atol=1e-5)
    assert np.allclose(frames[-1].heat, whole.heat, atol=1e-5), "independent of the batch size"


class WithOutput(nn.Module):
    """A module followed by a function."""

    def __init__(self, module: nn.Module, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.module, self.function = module, function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self.module(x))


@pytest.mark.parametrize(
    "function",
    [lambda x: x.softmax(1), lambda x: x.log_softmax(1), torch.sigmoid, lambda x: x.sigmoid_()],
    ids=["softmax", "log_softmax", "sigmoid", "sigmoid in place"],
)
def test_score_cam_uses_logits_before_output_activation(
    tiny: Network, tiny_module: nn.Module, image: np.ndarray, function: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    net = Network(WithOutput(tiny_module, function), transform=tiny.transform)
    assert net.output_activation != "none"
    expected = Run(score_cam(tiny, image, target=1, layer="conv2")).run()
    frame = Run(score_cam(net, image, target=1, layer="module.conv2")).run()
    for name in ("increases", "weights"):
        assert np.allclose(frame.arrays[name], expected.arrays[name], atol=1e-5)
    assert np.allclose(frame.heat, expected.heat, atol=1e-5)
    output = float(function(tiny(tiny.batch(image)).detach())[0, 1])
    assert frame.scalars["value"] == pytest.approx(output, abs=1e-5)


@pytest.mark.parametrize(
    ("output", "score"),
    [
        (lambda x: x.softmax(1), lambda x: x.log_softmax(1)),
        (lambda x: x.log_softmax(1), lambda x: x.log_softmax(1)),
        (torch.sigmoid, lambda x: x),
    ],
    ids=["softmax", "log_softmax", "sigmoid"],
)
def test_score_cam_uses_log_probability_if_no_layer_has_logits(
    tiny: Network,
    tiny_module: nn.Module,
    image: np.ndarray,
    output: Callable[[torch.Tensor], torch.Tensor],
    score: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    """Logits that are the sum of two layers are not the output of any layer."""
    net = Network(WithOutput(tiny_module, lambda x: output(0.5 * x + 0.1)), transform=tiny.transform)
    frame = Run(score_cam(net, image, target=1, layer="module.conv2")).run()
    order, weights, heat = reference_score_cam(
        lambda x: conv2(tiny_module, x), lambda x: float(score(0.5 * tiny_module(x) + 0.1)[0, 1]), image, 64
    )
    assert frame.arrays["channels"].tolist() == order
    assert np.allclose(frame.arrays["weights"], weights, atol=1e-5)
    assert np.allclose(frame.heat, heat, atol=1e-5)


def test_score_cam_default_layer_is_that_of_grad_cam(demo_net: Network) -> None:
    image = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    for unit, layer in ((("fc8", 0), "relu5"), (("conv3", 5), "relu2")):
        frames = [
            Run(score_cam(demo_net, image, unit=unit, channels=4, **kwargs)).run() for kwargs in ({}, {"layer": layer})
        ]
        assert np.array_equal(frames[0].heat, frames[1].heat)


class BatchSplitter(nn.Module):
    """Computes the convolution of two halves of the image as a batch of two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = self.conv(torch.cat(x.chunk(2, 3)))
        return self.fc(torch.cat(halves.mean((2, 3)).chunk(2), 1))


def test_score_cam_rejects_layer_without_maps_of_the_image(tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\bfc\b.*position"):
        next(score_cam(tiny, image, layer="fc"))
    with pytest.raises(ValueError, match=r"\bconv\b.*\b2\b.*\b1\b"):
        next(score_cam(Network(BatchSplitter(), size=16), image, layer="conv"))
    flat = Network(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), size=16, channels=3)
    with pytest.raises(ValueError, match="saliency"):
        next(score_cam(flat, image))
