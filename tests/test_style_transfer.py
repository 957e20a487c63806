from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_texture import distance, resize, white_noise
from torch import nn

from convis_widgets import demo
from convis_widgets.core import Network, Run, noise, trace
from convis_widgets.techniques import style_transfer
from convis_widgets.techniques.style_transfer import NOISE

LUMINANCE = np.array([0.299, 0.587, 0.114])


def content_distance(net: Network, picture: np.ndarray, content: np.ndarray, layer: str) -> float:
    net, found = net.with_average_pooling(), []
    for one in (picture, content):
        with torch.no_grad(), trace(net, [layer], stop=True) as acts:
            net(torch.from_numpy(np.array(one)).permute(2, 0, 1)[None])
        found.append(acts[layer][0].double().numpy())
    return ((found[0] - found[1]) ** 2).sum() / (found[1] ** 2).sum()


def variation(picture: np.ndarray) -> float:
    x = picture.astype(np.float64)
    across, down = x[:-1, 1:] - x[:-1, :-1], x[1:, :-1] - x[:-1, :-1]
    return (across**2 + down**2).sum()


@pytest.fixture(scope="module")
def star() -> np.ndarray:
    return demo.images(1, label="star")[0].image


@pytest.fixture(scope="module")
def house() -> np.ndarray:
    return demo.images(1, label="house")[0].image


TINY = {"content_layer": "conv2", "style_layers": ("conv1", "conv2"), "sizes": 1, "parameterization": "pixels"}


@pytest.mark.parametrize("words", [{}, {"begin": "random"}, {"optimizer": "adam"}, {"layer_weights": (0.2, 2.0)}])
def test_style_transfer_losses_match_reference(words: dict[str, Any], tiny: Network) -> None:
    content, style = white_noise(20, 26, 3), np.random.default_rng(4).random((30, 18, 3)).astype(np.float32) ** 2
    weights = {"content_weight": 2.0, "style_weights": 7.0, "tv_weight": 0.5}
    frames = list(style_transfer(tiny, content, style, iterations=5, **TINY, **weights, **words))
    before = content
    if "begin" in words:
        before = noise(tiny, NOISE, 0, size=(20, 26))[0].permute(1, 2, 0).numpy()
    shown = resize(style, (26, 16))  # its longer side resized to the content's
    for frame in frames:
        told = frame.scalars
        assert told["content"] == pytest.approx(content_distance(tiny, before, content, "conv2"), rel=2e-3, abs=1e-6)
        far = distance(tiny, before, shown, TINY["style_layers"], words.get("layer_weights", ()))
        assert told["style"] == pytest.approx(far, rel=2e-3)
        assert told["tv"] == pytest.approx(variation(before), rel=1e-3)
        loss = 2 * told["content"] + 7 * told["style"] + 0.5 * told["tv"] / (20 * 26)
        assert told["loss"] == pytest.approx(loss, rel=1e-4)
        before = frame.image
    assert set(told) == {"content", "style", "tv", "loss"}
    assert told["loss"] < frames[0].scalars["loss"]


def test_style_transfer_scales_resize_all_images(tiny: Network) -> None:
    content, style = white_noise(64, 48, 3), white_noise(64, 64, 3) ** 2
    words = TINY | {"sizes": 3}
    frames = list(style_transfer(tiny, content, style, iterations=3, begin="random", **words))
    assert [(frame.step, frame.total, frame.done) for frame in frames] == [(i, 6, i == 6) for i in range(1, 7)]
    assert {frame.image.shape for frame in frames} == {(64, 48, 3)}
    first = noise(tiny, NOISE, 0, size=(32, 24))[0].permute(1, 2, 0).numpy()
    half = resize(content, (32, 24)), resize(style, (32, 32))
    assert frames[0].scalars["content"] == pytest.approx(content_distance(tiny, first, half[0], "conv2"), rel=1e-3)
    assert frames[0].scalars["style"] == pytest.approx(distance(tiny, first, half[1], ("conv1", "conv2")), rel=1e-3)
    last = frames[2].image
    assert frames[3].scalars["content"] == pytest.approx(content_distance(tiny, last, content, "conv2"), rel=1e-3)


def test_style_transfer_starts_from_content_noise_or_given_image(tiny: Network, picture: np.ndarray) -> None:
    still = {"optimizer": "adam", "rate": 0.001, **TINY}
    style, start = white_noise(16, 16, 3), white_noise(16, 16, 3) ** 3
    seeded = noise(tiny, NOISE, 3)[0].permute(1, 2, 0).numpy()
    for words, expected in (({}, picture), ({"begin": "random", "seed": 3}, seeded), ({"start": start}, start)):
        first = next(style_transfer(tiny, picture, style, **still, **words))
        assert np.abs(first.image - expected).max() < 0.0011
    assert len(list(style_transfer(tiny, picture, style, start=start, iterations=2, **TINY | {"sizes": 3}))) == 2


def test_style_transfer_ignores_style_of_weight_zero(demo_net: Network, star: np.ndarray, house: np.ndarray) -> None:
    other, words = demo.images(1, label="boat")[0].image, {"sizes": 2, "iterations": 8}
    one = Run(style_transfer(demo_net, star, house, style_weights=5.0, **words)).run()
    for weights, styles in (((5.0, 0.0), [house, other]), ((0.0, 5.0), [other, house])):
        two = Run(style_transfer(demo_net, star, styles, style_weights=weights, **words)).run()
        assert np.abs(one.image - two.image).max() < 1e-3
    both = Run(style_transfer(demo_net, star, [house, other], style_weights=(5.0, 5.0), **words)).run()
    assert np.abs(one.image - both.image).max() > 0.05


def test_style_transfer_is_closer_to_style_of_larger_weight(demo_net: Network, star: np.ndarray, house: np.ndarray) -> None:
    other = demo.images(1, label="boat")[0].image
    found = []
    for weights in ((9.0, 1.0), (1.0, 9.0)):
        last = Run(style_transfer(demo_net, star, [house, other], style_weights=weights, iterations=30)).run()
        found.append([distance(demo_net, last.image, one) for one in (house, other)])
    assert found[0][0] < found[1][0]
    assert found[1][1] < found[0][1]


def test_style_transfer_applies_single_weight_to_all_styles(tiny: Network, picture: np.ndarray) -> None:
    styles = [white_noise(16, 16, 3), white_noise(16, 16, 3) ** 2]
    once, each = (
        Run(style_transfer(tiny, picture, styles, style_weights=weights, iterations=4, **TINY)).run()
        for weights in (3.0, (3.0, 3.0))
    )
    assert np.array_equal(once.image, each.image)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"style_weights": (1.0, 2.0, 3.0)}, r"(?=.*\b3\b)(?=.*\b2\b)"),
        ({"layer_weights": (1.0,), "style_layers": ("conv1", "conv2")}, r"(?=.*\b1\b)(?=.*\b2\b)"),
        ({"content_layer": "conv9"}, "conv9"),
        ({"style_layers": ("conv1", "conv9")}, "conv9"),
    ],
)
def test_style_transfer_rejects_mismatched_weights_and_unknown_layers(
    words: dict[str, Any], message: str, tiny: Network, picture: np.ndarray
) -> None:
    with pytest.raises(ValueError, match=message):
        next(style_transfer(tiny, picture, [picture, picture], **words))


def test_style_transfer_without_style_raises(tiny: Network, picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="style"):
        next(style_transfer(tiny, picture, []))


def test_style_transfer_original_colors_changes_only_luminance(
    demo_net: Network, star: np.ndarray, house: np.ndarray
) -> None:
    content = 0.3 + 0.4 * star
    painted, colored = (
        Run(style_transfer(demo_net, content, house, iterations=15, original_colors=keep)).run().image
        for keep in (False, True)
    )
    inside = ((colored > 0.001) & (colored < 0.999)).all(2)
    assert inside.mean() > 0.5
    for a, b in ((0, 1), (1, 2)):
        apart, expected = (one[..., a] - one[..., b] for one in (colored, content))
        assert np.abs(apart - expected)[inside].max() < 1e-4
    assert np.abs((colored - painted) @ LUMINANCE)[inside].max() < 1e-4
    assert np.abs((painted - content) @ LUMINANCE).mean() > 0.03
    assert np.abs(painted - colored).max() > 0.05


def test_style_transfer_original_colors_is_live_and_ignored_in_gray(
    tiny: Network, tiny_gray: Network, picture: np.ndarray
) -> None:
    style = white_noise(16, 16, 3)
    frames = style_transfer(tiny, picture, style, iterations=3, optimizer="adam", rate=0.05, **TINY)
    next(frames)
    kept, back = frames.send({"original_colors": True}).image, frames.send({"original_colors": False}).image
    inside = ((kept > 0.001) & (kept < 0.999)).all(2)
    apart = [one[..., 0] - one[..., 1] - (picture[..., 0] - picture[..., 1]) for one in (kept, back)]
    assert np.abs(apart[0])[inside].max() < 1e-4
    assert np.abs(apart[1])[inside].max() > 0.05
    grays = [
        Run(style_transfer(tiny_gray, picture, style, iterations=3, original_colors=keep, **TINY)).run().image
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


@pytest.mark.parametrize("begin", ["content", "random"])
@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_style_transfer_loss_decreases(optimizer: str, begin: str, demo_net: Network) -> None:
    content, style = (demo.images(1, label=label)[0].image for label in ("fish", "tree"))
    words = {"sizes": 1, "iterations": 60, "optimizer": optimizer, "begin": begin, "style_weights": 3.0}
    frames = [frame.scalars for frame in style_transfer(demo_net, content, style, **words)]
    assert frames[-1]["loss"] < frames[0]["loss"] / 4
    assert frames[-1]["style"] < frames[0]["style"] / 10
    if begin == "random":
        assert frames[-1]["content"] < frames[0]["content"] / 2


@pytest.mark.parametrize("optimizer", ["lbfgs", "adam"])
def test_style_transfer_weights_are_live(optimizer: str, demo_net: Network, star: np.ndarray, house: np.ndarray) -> None:
    other = demo.images(1, label="boat")[0].image
    words = {"sizes": 1, "iterations": 90, "optimizer": optimizer, "style_weights": (10.0, 0.0)}
    frames, told = style_transfer(demo_net, star, [house, other], **words), []
    for _ in range(30):
        first = next(frames)
        told.append(first.scalars)
    second = frames.send({"style_weights": (0.0, 10.0), "content_weight": 0.5})
    for _ in range(29):
        told.append(second.scalars)
        second = next(frames)
    frames.send({"style_weights": 0.0, "content_weight": 20.0, "tv_weight": 0.0})
    last = list(frames)[-1]
    told.append(last.scalars)
    assert all(np.isfinite(value) for values in told for value in values.values())
    assert "style" not in last.scalars
    near = [[distance(demo_net, one.image, style) for style in (house, other)] for one in (first, second)]
    assert near[0][0] < near[0][1]
    assert near[1][1] < near[1][0]
    contents = [content_distance(demo_net, one.image, star, "relu3") for one in (second, last)]
    assert contents[1] < contents[0] / 2


def test_style_transfer_weight_change_is_equivalent_to_restart(tiny: Network, picture: np.ndarray) -> None:
    words = TINY | {"optimizer": "lbfgs"}
    frames = style_transfer(tiny, picture, white_noise(16, 16, 3), **words)
    for _ in range(6):
        before = next(frames).image
    changed = [frames.send({"style_weights": 1.0, "tv_weight": 5.0}), next(frames), next(frames)]
    anew = style_transfer(tiny, picture, white_noise(16, 16, 3), start=before, style_weights=1.0, tv_weight=5.0, **words)
    for one, other in zip(changed, anew, strict=False):
        assert np.abs(one.image - other.image).max() < 1e-4
        assert one.scalars["loss"] == pytest.approx(other.scalars["loss"], rel=1e-3)


def test_style_transfer_with_all_weights_zero_raises(tiny: Network, picture: np.ndarray) -> None:
    words = {"content_weight": 0, "tv_weight": 0, **TINY}
    with pytest.raises(ValueError, match="weights"):
        next(style_transfer(tiny, picture, [picture, picture], style_weights=(0, 0), **words))
    next(style_transfer(tiny, picture, [picture, picture], style_weights=(0, 0.1), **words))


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
    words = {"content_layer": "3", "style_layers": ("1", "3"), "sizes": 1, "iterations": 60, "tv_weight": 0.0}
    painted = {
        kind: Run(style_transfer(net, smooth, waves, parameterization=kind, **words)).run().image
        for kind in ("pixels", "fourier", None)
    }
    assert np.array_equal(painted[None], painted["fourier"])
    assert checkerboard_fraction(painted[None]) < checkerboard_fraction(painted["pixels"]) / 3


def test_style_transfer_with_real_weights_approaches_style_and_content(real: Path, squeezenet: Network) -> None:
    """Compared with noise, the style ends up 100 times closer and the content 5 times closer."""
    content, style = real / "photos" / "content_tubingen.jpg", real / "styles" / "starry_night.jpg"
    last = Run(style_transfer(squeezenet, content, style, size=160, begin="random")).run()
    height, width, _ = last.image.shape
    assert max(height, width) == 160
    wanted, painted = (squeezenet.whole(one, 160)[0].permute(1, 2, 0).numpy() for one in (content, style))
    begun = noise(squeezenet, NOISE, 0, size=(height, width))[0].permute(1, 2, 0).numpy()
    styles = [distance(squeezenet, one, painted) for one in (begun, last.image)]
    contents = [content_distance(squeezenet, one, wanted, "features.3") for one in (begun, last.image)]
    assert styles[0] > 100 * styles[1]
    assert contents[0] > 5 * contents[1]
