from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convis_widgets.core import Network, Run, channel, tv
from convis_widgets.techniques import gradient_ascent
from convis_widgets.techniques.gradient_ascent import PRESETS


def painted(net: Network, **words: Any) -> np.ndarray:
    return Run(gradient_ascent(net, **words)).run().image


def as_uint8(picture: np.ndarray) -> np.ndarray:
    return np.round(picture * 255).astype(np.uint8)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("label", ["face", "star"])
def test_gradient_ascent_image_is_classified_as_target(preset: str, label: str, demo_net: Network) -> None:
    picture = as_uint8(painted(demo_net, target=label, preset=preset, iterations=min(150, PRESETS[preset]["iterations"])))
    (best, p), *_ = demo_net.predict(picture, 1)
    assert best == label
    assert p > 0.9


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_gradient_ascent_image_is_centered_on_mean_pixel(preset: str, demo_net: Network) -> None:
    picture = painted(demo_net, target="fish", preset=preset, iterations=60)
    assert 0.3 < picture.mean() < 0.7
    assert np.abs(picture - 0.5).max() > 0.1
    if preset in ("yosinski 1", "yosinski 4"):
        share = PRESETS[preset].get("small_norm", 0) + PRESETS[preset].get("small_contribution", 0)
        assert (np.abs(picture - 0.5).max(2) < 1e-6).mean() >= share - 0.01, "clipped pixels are the mean pixel"


def test_gradient_ascent_starts_at_given_image(demo_net: Network) -> None:
    start = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    first = next(gradient_ascent(demo_net, target=0, preset="simonyan", start=start, rate=1e-4)).image
    assert np.abs(first - start).max() < 0.01
    zero = next(gradient_ascent(demo_net, target=0, preset="simonyan", rate=1e-4)).image
    assert np.abs(zero - 0.5).max() < 0.015


def test_gradient_ascent_keywords_override_preset(demo_net: Network) -> None:
    frames = list(gradient_ascent(demo_net, target=0, preset="yosinski 3", iterations=3, l2=0.1))
    assert [frame.step for frame in frames] == [1, 2, 3]
    assert frames[-1].total == 3
    assert set(frames[-1].scalars) == {"logit", "l2", "log probability", "objective"}
    told = frames[-1].scalars
    assert told["objective"] == pytest.approx(told["logit"] - 0.1 * told["l2"] + 10 * told["log probability"], rel=1e-4)


def test_gradient_ascent_of_unit_changes_only_its_receptive_field(demo_net: Network) -> None:
    everywhere = painted(demo_net, of=("conv2", 9), preset="simonyan", iterations=40, l2=0.0)
    only = painted(demo_net, of=("conv2", 9, (8, 8)), preset="simonyan", iterations=40, l2=0.0)
    top, left, bottom, right = demo_net.layers["conv2"].box((8, 8))
    outside = np.ones((64, 64), bool)
    outside[top:bottom, left:right] = False
    assert np.abs(only - 0.5)[outside].max() < 0.015, "the initial noise"
    assert np.abs(only - 0.5)[~outside].max() > 0.1
    assert (np.abs(everywhere - 0.5).max(2) > 0.03).mean() > 0.9


def test_gradient_ascent_with_non_robust_network() -> None:
    ordinary = Network.demo(robust=False)
    for preset in ("simonyan", "modern"):
        picture = as_uint8(painted(ordinary, target="fish", preset=preset))
        assert ordinary.predict(picture, 1)[0][0] == "fish"


def test_gradient_ascent_with_zero_gradient_raises(demo_net: Network) -> None:
    dead = np.full((64, 64, 3), 0.5, np.float32)
    with pytest.raises(ValueError, match="gradient"):
        next(gradient_ascent(Network.demo(robust=False), target="fish", preset="simonyan", start=dead))


def test_gradient_ascent_accepts_custom_objective(demo_net: Network) -> None:
    frames = list(gradient_ascent(demo_net, of=channel("conv3", 5) - 0.01 * tv(), preset="simonyan", iterations=20))
    assert frames[-1].scalars["activation"] > frames[0].scalars["activation"]
    rough = painted(demo_net, of=channel("conv3", 5), preset="simonyan", iterations=20)
    differences = [np.abs(np.diff(picture, axis=0)).mean() for picture in (frames[-1].image, rough)]
    assert differences[0] < differences[1]


def test_gradient_ascent_with_gray_network(tiny_gray: Network) -> None:
    for preset in ("modern", "cs231n"):
        last = Run(gradient_ascent(tiny_gray, target=2, preset=preset, iterations=30)).run()
        assert last.image.shape == (16, 16, 1)
        assert tiny_gray.probabilities_of(last.image)[2] > tiny_gray.probabilities_of(np.full((16, 16), 0.5))[2]


def test_gradient_ascent_rejects_pixel_regularizers_for_fourier(demo_net: Network) -> None:
    with pytest.raises(ValueError, match="pixels"):
        next(gradient_ascent(demo_net, target=0, decay=0.1))


# -- on real weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["modern", "simonyan", "cs231n", "yosinski 1", "yosinski 2", "yosinski 4"])
def test_gradient_ascent_with_real_weights_is_classified_as_target(preset: str, real: object, squeezenet: Network) -> None:
    """A quarter of the steps is enough."""
    for c in (130, 292, 963):
        picture = as_uint8(painted(squeezenet, target=c, preset=preset, iterations=PRESETS[preset]["iterations"] // 4))
        assert squeezenet.probabilities_of(picture).argmax() == c
