from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from convis_widgets import demo
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis.default_layers import default_style_layers
from convis_widgets.core.synthesis.image_optimizer import noise
from convis_widgets.techniques.synthesis.texture import texture


def statistics(net: Network, image: np.ndarray, layers: tuple[str, ...], statistic: str = "gram") -> list[np.ndarray]:
    """Means over positions of channel products, at layers of the network with average pooling."""
    net, matrices = net.with_average_pooling(), []
    batch = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    with torch.no_grad(), trace(net, list(layers), stop=True) as acts:
        net(batch)
    for name in layers:
        maps = acts[name][0].double().numpy()
        if statistic == "covariance":
            maps = maps - maps.mean((1, 2), keepdims=True)
        matrices.append(np.einsum("ahw,bhw->ab", maps, maps) / maps[0].size)
    return matrices


def distance(
    net: Network,
    image: np.ndarray,
    sample: np.ndarray,
    layers: tuple[str, ...] = (),
    weights: tuple[float, ...] = (),
    statistic: str = "gram",
) -> float:
    layers = layers or default_style_layers(net).style
    weights = weights or (1 / len(layers),) * len(layers)
    pairs = zip(*(statistics(net, x, layers, statistic) for x in (image, sample)), weights, strict=True)
    return sum(weight * ((a - b) ** 2).sum() / (b**2).sum() for a, b, weight in pairs)


def white_noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape).astype(np.float32)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    maps = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
    return interpolate(maps, size=size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()


CASES = [
    {},
    {"statistic": "covariance"},
    {"optimizer": "adam"},
    {"layers": ("conv1", "conv2"), "weights": (0.2, 3.0)},
    {"layers": ("conv1",)},
]


@pytest.mark.parametrize("kwargs", CASES)
def test_texture_losses_match_reference(kwargs: dict[str, Any], tiny: Network, image: np.ndarray) -> None:
    """Each frame reports values of the image before its step."""
    sample = np.random.default_rng(3).random((20, 28, 3)).astype(np.float32) ** 2
    frames = list(texture(tiny, sample, size=(24, 18), scales=1, iterations=5, **kwargs))
    before = noise(tiny, 0.05, 0, size=(24, 18))[0].permute(1, 2, 0).numpy()
    settings = {key: kwargs[key] for key in ("layers", "weights", "statistic") if key in kwargs}
    for frame in frames:
        assert frame.scalars["style"] == pytest.approx(distance(tiny, before, sample, **settings), rel=2e-3)
        x = before.astype(np.float64)
        across, down = x[:-1, 1:] - x[:-1, :-1], x[1:, :-1] - x[:-1, :-1]
        assert frame.scalars["tv"] == pytest.approx((across**2 + down**2).sum(), rel=1e-3)
        before = frame.image
    assert frames[-1].scalars["style"] < frames[0].scalars["style"]


def test_texture_scales_double_image_and_sample(tiny: Network) -> None:
    sample = white_noise(40, 52, 3) ** 2
    frames = list(texture(tiny, sample, size=(96, 64), scales=4, iterations=3))
    assert [(frame.step, frame.total) for frame in frames] == [(i, 6) for i in range(1, 7)], "32 and 64; 16 is too small"
    assert {frame.image.shape for frame in frames} == {(96, 64, 3)}
    assert [frame.done for frame in frames] == [False] * 5 + [True]
    half = resize(sample, (20, 26))
    first = noise(tiny, 0.05, 0, size=(48, 32))[0].permute(1, 2, 0).numpy()
    assert frames[0].scalars["style"] == pytest.approx(distance(tiny, first, half), rel=1e-3)
    assert frames[3].scalars["style"] == pytest.approx(distance(tiny, frames[2].image, sample), rel=1e-3)


@pytest.mark.parametrize("scales", [1, 2, 3])
def test_texture_runs_iterations_per_scale(scales: int, tiny: Network, image: np.ndarray) -> None:
    assert len(list(texture(tiny, image, size=112, scales=scales, iterations=2))) == 2 * scales


@pytest.mark.parametrize("label", ["tree", "face", "boat"])
def test_texture_is_1000_times_closer_than_white_noise(label: str, demo_net: Network) -> None:
    sample = demo.images(1, label=label)[0].image
    kwargs = {"scales": 2, "iterations": 100, "tv_weight": 0.0, "layers": ("relu1", "relu2")}
    last = Run(texture(demo_net, sample, **kwargs)).run()
    noise_distance = distance(demo_net, white_noise(64, 64, 3), sample, kwargs["layers"])
    assert noise_distance > 1000 * distance(demo_net, last.image, sample, kwargs["layers"])
    assert np.abs(last.image - sample).mean() > 0.05, "it is a different image"


def test_texture_converges_with_deep_layers(demo_net: Network) -> None:
    for label in ("star", "boat"):
        sample = demo.images(1, label=label)[0].image
        last = Run(texture(demo_net, sample, scales=2, iterations=60)).run()
        assert distance(demo_net, white_noise(64, 64, 3), sample) > 50 * distance(demo_net, last.image, sample)


def test_texture_converges_with_pixels_at_range_limits(demo_net: Network) -> None:
    """A house with a white wall and a black roof, on which torch's L-BFGS sometimes diverges."""
    sample = demo.images(1, label="house")[0].image
    losses = [frame.scalars["style"] for frame in texture(demo_net, sample, scales=1, size=96, iterations=80, tv_weight=0.0)]
    assert max(losses[20:]) < losses[0] / 2
    assert losses[-1] < 3 * min(losses)


@pytest.mark.parametrize("size", [(48, 80), (80, 48), 100, 24, 30])
@pytest.mark.parametrize("statistic", ["gram", "covariance"])
def test_texture_accepts_any_size(size: int | tuple[int, int], statistic: str, demo_net: Network) -> None:
    sample = demo.images(1, label="tree")[0].image
    kwargs = {"size": size, "statistic": statistic, "scales": 1, "iterations": 25, "layers": ("relu1", "relu2")}
    last = Run(texture(demo_net, sample, **kwargs)).run()
    height, width = (size, size) if isinstance(size, int) else size
    assert last.image.shape == (height, width, 3)
    settings = kwargs["layers"], (), statistic
    assert distance(demo_net, white_noise(height, width, 3), sample, *settings) > 4 * distance(
        demo_net, last.image, sample, *settings
    )


def test_texture_sample_size_resizes_sample(tiny: Network) -> None:
    sample = white_noise(40, 20, 3)
    first = noise(tiny, 0.05, 0)[0].permute(1, 2, 0).numpy()
    frame = next(texture(tiny, sample, sample_size=30, scales=1))
    assert frame.scalars["style"] == pytest.approx(distance(tiny, first, resize(sample, (30, 15))), rel=1e-3)
    other = next(texture(tiny, sample, scales=1))
    assert other.scalars["style"] == pytest.approx(distance(tiny, first, sample), rel=1e-3)


def test_texture_pooling_replaces_max_pooling(tiny: Network, image: np.ndarray) -> None:
    kwargs = {"layers": ("pool",), "scales": 1, "iterations": 6}
    average, maximum = (list(texture(tiny, image, pooling=pooling, **kwargs)) for pooling in ("average", "max"))
    first = noise(tiny, 0.05, 0)[0].permute(1, 2, 0).numpy()
    assert average[0].scalars["style"] == pytest.approx(distance(tiny, first, image, ("pool",)), rel=1e-3)
    assert maximum[0].scalars["style"] != pytest.approx(average[0].scalars["style"], rel=0.01)
    assert not np.allclose(average[-1].image, maximum[-1].image, atol=0.01)


def test_texture_start_image_is_used_at_full_size(tiny: Network, image: np.ndarray) -> None:
    start = white_noise(64, 64, 3)
    frames = list(texture(tiny, image, size=64, scales=3, iterations=2, init_image=start, optimizer="adam", lr=0.001))
    assert len(frames) == 2
    assert np.abs(frames[0].image - start).max() < 0.0011
    assert frames[0].scalars["style"] == pytest.approx(distance(tiny, start, image), rel=1e-3)


def test_texture_depends_only_on_seed(tiny: Network, image: np.ndarray) -> None:
    one, again, other = (Run(texture(tiny, image, scales=1, iterations=3, seed=seed)).run().image for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_texture_tv_weight_smooths_and_is_live(tiny: Network, image: np.ndarray) -> None:
    streams = [texture(tiny, image, scales=1, iterations=40, optimizer="adam", tv_weight=0.0) for _ in range(2)]
    for stream in streams:
        for _ in range(20):
            assert set(next(stream).scalars) == {"style"}
    streams[0].send({"tv_weight": 1.0})
    results = [list(stream)[-1] for stream in streams]
    assert set(results[0].scalars) == {"style", "tv"}
    assert np.abs(np.diff(results[0].image, axis=0)).mean() < 0.75 * np.abs(np.diff(results[1].image, axis=0)).mean()


def test_texture_rejects_mismatched_weights_and_unknown_layers(tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"(?=.*\b3\b)(?=.*\b2\b)"):
        next(texture(tiny, image, layers=("conv1", "conv2"), weights=(1, 1, 1)))
    with pytest.raises(ValueError, match="conv9"):
        next(texture(tiny, image, layers=("conv9",)))


def test_texture_with_given_layers_needs_no_default_layers() -> None:
    from torch import nn

    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(3, 5, 6, stride=6), nn.Tanh(), nn.Flatten(), nn.Linear(45, 2)), size=18)
    with pytest.raises(ValueError, match="(?i)layer"):
        next(texture(net, white_noise(18, 18, 3)))
    losses = [
        frame.scalars["style"] for frame in texture(net, white_noise(18, 18, 3), layers=("1",), scales=1, iterations=10)
    ]
    assert losses[-1] < losses[0] / 10


def test_texture_with_gray_network(tiny_gray: Network) -> None:
    frames = list(texture(tiny_gray, white_noise(16, 16, 1), scales=1, iterations=20))
    assert frames[-1].image.shape == (16, 16, 1)
    assert frames[-1].scalars["style"] < frames[0].scalars["style"] / 10


@pytest.mark.parametrize("name", ["brick_grey", "red_peppers", "gravel_grey"])
def test_texture_with_real_weights_is_1000_times_closer_than_noise(name: str, real: Path, squeezenet: Network) -> None:
    sample = squeezenet.uncropped_batch(real / "textures" / f"{name}.jpg")[0].permute(1, 2, 0).numpy()
    last = Run(texture(squeezenet, sample, size=128, scales=2, iterations=100)).run()
    assert distance(squeezenet, white_noise(128, 128, 3), sample) > 1000 * distance(squeezenet, last.image, sample)


def test_texture_covariance_rejects_constant_sample() -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3)), size=16)
    purple = np.full((16, 16, 3), (0.5, 0.1, 0.5), np.float32)
    with pytest.raises(ValueError, match="sample.*gram"):
        next(texture(net, purple, statistic="covariance", layers=["0"], size=16))
    assert next(texture(net, purple, layers=["0"], size=16)).scalars["style"] > 0


def test_texture_rejects_sample_without_activations() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3))
    nn.init.constant_(module[0].bias, -1e3)
    with pytest.raises(ValueError, match="sample"):
        next(texture(Network(module, size=16), white_noise(16, 16, 3), layers=["1"]))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weights": [1.0, -1.0]}, r"-1\.0"),
        ({"weights": [1.0, float("nan")]}, r"\bnan\b"),
        ({"layers": []}, "layer"),
        ({"size": (8,)}, "2 of them"),
    ],
)
def test_texture_rejects_invalid_weights_layers_and_size(
    kwargs: dict[str, Any], message: str, tiny: Network, image: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        next(texture(tiny, image, **({"layers": ["conv1", "conv2"]} | kwargs)))
