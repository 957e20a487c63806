from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_texture import distance, resize, white_noise
from torch import nn

from convis_widgets import demo
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis.image_optimizer import noise
from convis_widgets.techniques.synthesis.style_transfer import NOISE_STD, style_transfer

LUMINANCE = np.array([0.299, 0.587, 0.114])


def content_distance(net: Network, image: np.ndarray, content: np.ndarray, layer: str) -> float:
    net, activations = net.with_average_pooling(), []
    for x in (image, content):
        with torch.no_grad(), trace(net, [layer], stop=True) as acts:
            net(torch.from_numpy(np.array(x)).permute(2, 0, 1)[None])
        activations.append(acts[layer][0].double().numpy())
    return ((activations[0] - activations[1]) ** 2).sum() / (activations[1] ** 2).sum()


def variation(image: np.ndarray) -> float:
    x = image.astype(np.float64)
    across, down = x[:-1, 1:] - x[:-1, :-1], x[1:, :-1] - x[:-1, :-1]
    return (across**2 + down**2).sum()


@pytest.fixture(scope="module")
def star() -> np.ndarray:
    return demo.images(1, label="star")[0].image


@pytest.fixture(scope="module")
def house() -> np.ndarray:
    return demo.images(1, label="house")[0].image


TINY = {"content_layer": "conv2", "style_layers": ("conv1", "conv2"), "scales": 1, "parameterization": "pixels"}


@pytest.mark.parametrize("kwargs", [{}, {"init": "random"}, {"optimizer": "adam"}, {"layer_weights": (0.2, 2.0)}])
def test_style_transfer_losses_match_reference(kwargs: dict[str, Any], tiny: Network) -> None:
    content, style = white_noise(20, 26, 3), np.random.default_rng(4).random((30, 18, 3)).astype(np.float32) ** 2
    weights = {"content_weight": 2.0, "style_weights": 7.0, "tv_weight": 0.5}
    frames = list(style_transfer(tiny, content, style, iterations=5, **TINY, **weights, **kwargs))
    before = content
    if "init" in kwargs:
        before = noise(tiny, NOISE_STD, 0, size=(20, 26))[0].permute(1, 2, 0).numpy()
    resized_style = resize(style, (26, 16))  # its longer side resized to the content's
    for frame in frames:
        scalars = frame.scalars
        assert scalars["content"] == pytest.approx(content_distance(tiny, before, content, "conv2"), rel=2e-3, abs=1e-6)
        style_distance = distance(tiny, before, resized_style, TINY["style_layers"], kwargs.get("layer_weights", ()))
        assert scalars["style"] == pytest.approx(style_distance, rel=2e-3)
        assert scalars["tv"] == pytest.approx(variation(before), rel=1e-3)
        loss = 2 * scalars["content"] + 7 * scalars["style"] + 0.5 * scalars["tv"] / (20 * 26)
        assert scalars["loss"] == pytest.approx(loss, rel=1e-4)
        before = frame.image
    assert set(scalars) == {"content", "style", "tv", "loss"}
    assert scalars["loss"] < frames[0].scalars["loss"]


def test_style_transfer_scales_resize_all_images(tiny: Network) -> None:
    content, style = white_noise(64, 48, 3), white_noise(64, 64, 3) ** 2
    kwargs = TINY | {"scales": 3}
    frames = list(style_transfer(tiny, content, style, iterations=3, init="random", **kwargs))
    assert [(frame.step, frame.total, frame.done) for frame in frames] == [(i, 6, i == 6) for i in range(1, 7)]
    assert {frame.image.shape for frame in frames} == {(64, 48, 3)}
    first = noise(tiny, NOISE_STD, 0, size=(32, 24))[0].permute(1, 2, 0).numpy()
    half = resize(content, (32, 24)), resize(style, (32, 32))
    assert frames[0].scalars["content"] == pytest.approx(content_distance(tiny, first, half[0], "conv2"), rel=1e-3)
    assert frames[0].scalars["style"] == pytest.approx(distance(tiny, first, half[1], ("conv1", "conv2")), rel=1e-3)
    last = frames[2].image
    assert frames[3].scalars["content"] == pytest.approx(content_distance(tiny, last, content, "conv2"), rel=1e-3)


def test_style_transfer_starts_from_content_noise_or_given_image(tiny: Network, image: np.ndarray) -> None:
    still = {"optimizer": "adam", "lr": 0.001, **TINY}
    style, start = white_noise(16, 16, 3), white_noise(16, 16, 3) ** 3
    seeded = noise(tiny, NOISE_STD, 3)[0].permute(1, 2, 0).numpy()
    for kwargs, expected in (({}, image), ({"init": "random", "seed": 3}, seeded), ({"init_image": start}, start)):
        first = next(style_transfer(tiny, image, style, **still, **kwargs))
        assert np.abs(first.image - expected).max() < 0.0011
    assert len(list(style_transfer(tiny, image, style, init_image=start, iterations=2, **TINY | {"scales": 3}))) == 2


def test_style_transfer_ignores_style_of_weight_zero(demo_net: Network, star: np.ndarray, house: np.ndarray) -> None:
    other, kwargs = demo.images(1, label="boat")[0].image, {"scales": 2, "iterations": 8}
    one = Run(style_transfer(demo_net, star, house, style_weights=5.0, **kwargs)).run()
    for weights, styles in (((5.0, 0.0), [house, other]), ((0.0, 5.0), [other, house])):
        two = Run(style_transfer(demo_net, star, styles, style_weights=weights, **kwargs)).run()
        assert np.abs(one.image - two.image).max() < 1e-3
    both = Run(style_transfer(demo_net, star, [house, other], style_weights=(5.0, 5.0), **kwargs)).run()
    assert np.abs(one.image - both.image).max() > 0.05


def test_style_transfer_is_closer_to_style_of_larger_weight(demo_net: Network, star: np.ndarray, house: np.ndarray) -> None:
    other = demo.images(1, label="boat")[0].image
    distances = []
    for weights in ((9.0, 1.0), (1.0, 9.0)):
        last = Run(style_transfer(demo_net, star, [house, other], style_weights=weights, iterations=30)).run()
        distances.append([distance(demo_net, last.image, one) for one in (house, other)])
    assert distances[0][0] < distances[1][0]
    assert distances[1][1] < distances[0][1]


def test_style_transfer_applies_single_weight_to_all_styles(tiny: Network, image: np.ndarray) -> None:
    styles = [white_noise(16, 16, 3), white_noise(16, 16, 3) ** 2]
    shared, per_style = (
        Run(style_transfer(tiny, image, styles, style_weights=weights, iterations=4, **TINY)).run()
        for weights in (3.0, (3.0, 3.0))
    )
    assert np.array_equal(shared.image, per_style.image)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"style_weights": (1.0, 2.0, 3.0)}, r"(?=.*\b3\b)(?=.*\b2\b)"),
        ({"layer_weights": (1.0,), "style_layers": ("conv1", "conv2")}, r"(?=.*\b1\b)(?=.*\b2\b)"),
        ({"content_layer": "conv9"}, "conv9"),
        ({"style_layers": ("conv1", "conv9")}, "conv9"),
    ],
)
def test_style_transfer_rejects_mismatched_weights_and_unknown_layers(
    kwargs: dict[str, Any], message: str, tiny: Network, image: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=message):
        next(style_transfer(tiny, image, [image, image], **kwargs))


def test_style_transfer_without_style_raises(tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="style"):
        next(style_transfer(tiny, image, []))


def test_style_transfer_original_colors_changes_only_luminance(
    demo_net: Network, star: np.ndarray, house: np.ndarray
) -> None:
    content = 0.3 + 0.4 * star
    plain, colored = (
        Run(style_transfer(demo_net, content, house, iterations=15, original_colors=keep)).run().image
        for keep in (False, True)
    )
    inside = ((colored > 0.001) & (colored < 0.999)).all(2)
    assert inside.mean() > 0.5
    for a, b in ((0, 1), (1, 2)):
        difference, expected = (one[..., a] - one[..., b] for one in (colored, content))
        assert np.abs(difference - expected)[inside].max() < 1e-4
    assert np.abs((colored - plain) @ LUMINANCE)[inside].max() < 1e-4
    assert np.abs((plain - content) @ LUMINANCE).mean() > 0.03
    assert np.abs(plain - colored).max() > 0.05


def test_style_transfer_original_colors_is_live_and_ignored_in_gray(
    tiny: Network, tiny_gray: Network, image: np.ndarray
) -> None:
    style = white_noise(16, 16, 3)
    frames = style_transfer(tiny, image, style, iterations=3, optimizer="adam", lr=0.05, **TINY)
    next(frames)
    kept, back = frames.send({"original_colors": True}).image, frames.send({"original_colors": False}).image
    inside = ((kept > 0.001) & (kept < 0.999)).all(2)
    differences = [one[..., 0] - one[..., 1] - (image[..., 0] - image[..., 1]) for one in (kept, back)]
    assert np.abs(differences[0])[inside].max() < 1e-4
    assert np.abs(differences[1])[inside].max() > 0.05
    grays = [
        Run(style_transfer(tiny_gray, image, style, iterations=3, original_colors=keep, **TINY)).run().image
        for keep in (True, False)
    ]
    assert grays[0].shape == (16, 16, 1)
    assert np.array_equal(*grays)


@pytest.mark.parametrize(("scale", "size"), [(0.5, (15, 10)), (1.0, (30, 20)), (2.0, (60, 40))])
def test_style_transfer_style_scale_resizes_only_style(scale: float, size: tuple[int, int], tiny: Network) -> None:
    content, style = white_noise(24, 30, 3), white_noise(45, 30, 3) ** 2
    first = next(style_transfer(tiny, content, style, style_scale=scale, **TINY))
    assert first.image.shape == (24, 30, 3)
    assert first.scalars["style"] == pytest.approx(
        distance(tiny, content, resize(style, size), ("conv1", "conv2")), rel=1e-3
    )
    assert first.scalars["content"] < 1e-9


@pytest.mark.parametrize("init", ["content", "random"])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_style_transfer_loss_decreases(optimizer: str, init: str, demo_net: Network) -> None:
    content, style = (demo.images(1, label=label)[0].image for label in ("fish", "tree"))
    kwargs = {"scales": 1, "iterations": 60, "optimizer": optimizer, "init": init, "style_weights": 3.0}
    frames = [frame.scalars for frame in style_transfer(demo_net, content, style, **kwargs)]
    assert frames[-1]["loss"] < frames[0]["loss"] / 4
    assert frames[-1]["style"] < frames[0]["style"] / 10
    if init == "random":
        assert frames[-1]["content"] < frames[0]["content"] / 2


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_style_transfer_weights_are_live(optimizer: str, demo_net: Network, star: np.ndarray, house: np.ndarray) -> None:
    other = demo.images(1, label="boat")[0].image
    kwargs = {"scales": 1, "iterations": 90, "optimizer": optimizer, "style_weights": (10.0, 0.0)}
    frames, history = style_transfer(demo_net, star, [house, other], **kwargs), []
    for _ in range(30):
        first = next(frames)
        history.append(first.scalars)
    second = frames.send({"style_weights": (0.0, 10.0), "content_weight": 0.5})
    for _ in range(29):
        history.append(second.scalars)
        second = next(frames)
    frames.send({"style_weights": 0.0, "content_weight": 20.0, "tv_weight": 0.0})
    last = list(frames)[-1]
    history.append(last.scalars)
    assert all(np.isfinite(value) for values in history for value in values.values())
    assert "style" not in last.scalars
    near = [[distance(demo_net, one.image, style) for style in (house, other)] for one in (first, second)]
    assert near[0][0] < near[0][1]
    assert near[1][1] < near[1][0]
    contents = [content_distance(demo_net, one.image, star, "relu3") for one in (second, last)]
    assert contents[1] < contents[0] / 2


def test_style_transfer_weight_change_is_equivalent_to_restart(tiny: Network, image: np.ndarray) -> None:
    kwargs = TINY | {"optimizer": "lbfgs"}
    frames = style_transfer(tiny, image, white_noise(16, 16, 3), **kwargs)
    for _ in range(6):
        before = next(frames).image
    changed = [frames.send({"style_weights": 1.0, "tv_weight": 5.0}), next(frames), next(frames)]
    restarted = style_transfer(
        tiny, image, white_noise(16, 16, 3), init_image=before, style_weights=1.0, tv_weight=5.0, **kwargs
    )
    for one, other in zip(changed, restarted, strict=False):
        assert np.abs(one.image - other.image).max() < 1e-4
        assert one.scalars["loss"] == pytest.approx(other.scalars["loss"], rel=1e-3)


def test_style_transfer_with_all_weights_zero_raises(tiny: Network, image: np.ndarray) -> None:
    kwargs = {"content_weight": 0, "tv_weight": 0, **TINY}
    with pytest.raises(ValueError, match="weights"):
        next(style_transfer(tiny, image, [image, image], style_weights=(0, 0), **kwargs))
    next(style_transfer(tiny, image, [image, image], style_weights=(0, 0.1), **kwargs))


def checkerboard_fraction(image: np.ndarray) -> float:
    """Fraction of an image's variance that alternates from pixel to pixel along rows or columns."""
    spectrum = np.abs(np.fft.fft2(np.asarray(image, np.float64).mean(2))) ** 2
    spectrum[0, 0] = 0
    return (spectrum[len(spectrum) // 2].sum() + spectrum[:, spectrum.shape[1] // 2].sum()) / spectrum.sum()


def test_style_transfer_avoids_checkerboard_artifacts() -> None:
    torch.manual_seed(2)
    module = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten())
    net = Network(nn.Sequential(*module, nn.Linear(16 * 21 * 21, 3)), size=48)
    rows, columns = np.mgrid[:48, :48].astype(np.float32)
    smooth = np.repeat((0.3 + rows / 100)[..., None], 3, 2)
    waves = np.repeat((0.5 + 0.4 * np.sin((rows + 2 * columns) / 4))[..., None], 3, 2)
    kwargs = {"content_layer": "3", "style_layers": ("1", "3"), "scales": 1, "iterations": 60, "tv_weight": 0.0}
    results = {
        parameterization: Run(style_transfer(net, smooth, waves, parameterization=parameterization, **kwargs)).run().image
        for parameterization in ("pixels", "fourier", None)
    }
    assert np.array_equal(results[None], results["fourier"])
    assert checkerboard_fraction(results[None]) < checkerboard_fraction(results["pixels"]) / 3


def test_style_transfer_with_real_weights_approaches_style_and_content(real: Path, squeezenet: Network) -> None:
    """Compared with noise, the style ends up 100 times closer and the content 5 times closer."""
    content, style = real / "photos" / "content_tubingen.jpg", real / "styles" / "starry_night.jpg"
    last = Run(style_transfer(squeezenet, content, style, size=160, init="random")).run()
    height, width, _ = last.image.shape
    assert max(height, width) == 160
    content_image, style_image = (
        squeezenet.uncropped_batch(image, 160)[0].permute(1, 2, 0).numpy() for image in (content, style)
    )
    initial = noise(squeezenet, NOISE_STD, 0, size=(height, width))[0].permute(1, 2, 0).numpy()
    styles = [distance(squeezenet, image, style_image) for image in (initial, last.image)]
    contents = [content_distance(squeezenet, image, content_image, "features.3") for image in (initial, last.image)]
    assert styles[0] > 100 * styles[1]
    assert contents[0] > 5 * contents[1]


@pytest.mark.parametrize("count", [1, 2])
def test_style_transfer_names_the_image_that_is_too_thin(count: int, image: np.ndarray) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 7), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3))
    net = Network(module, size=16)
    strip, plain = np.zeros((2, 16, 3), np.float32), np.zeros((16, 16, 3), np.float32)
    kwargs = {"style_layers": ["1"], "content_layer": "1", "iterations": 1, "scales": 1}
    which = "style image 2: " if count == 2 else "the style image: "
    with pytest.raises(ValueError, match=which + ".*2x16"):
        next(style_transfer(net, image, [plain, strip][-count:], **kwargs))
    with pytest.raises(ValueError, match="the content image: .*2x16"):
        next(style_transfer(net, strip, plain, **kwargs))
