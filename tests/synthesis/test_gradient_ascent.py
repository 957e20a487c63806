from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis import objectives
from convis_widgets.core.synthesis.presets import PRESETS
from convis_widgets.techniques.synthesis.gradient_ascent import gradient_ascent


def optimized_image(net: Network, **kwargs: Any) -> np.ndarray:
    return Run(gradient_ascent(net, **kwargs)).run().image


def as_uint8(image: np.ndarray) -> np.ndarray:
    return np.round(image * 255).astype(np.uint8)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("label", ["face", "star"])
def test_gradient_ascent_image_is_classified_as_target(preset: str, label: str, demo_net: Network) -> None:
    image = as_uint8(
        optimized_image(demo_net, target=label, preset=preset, iterations=min(150, PRESETS[preset]["iterations"]))
    )
    (best, p), *_ = demo_net.predict(image, 1)
    assert best == label
    assert p > 0.9


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_gradient_ascent_image_is_centered_on_mean_pixel(preset: str, demo_net: Network) -> None:
    image = optimized_image(demo_net, target="fish", preset=preset, iterations=60)
    assert 0.3 < image.mean() < 0.7
    assert np.abs(image - 0.5).max() > 0.1
    if preset in ("yosinski 1", "yosinski 4"):
        fraction = PRESETS[preset].get("clip_norm_fraction", 0) + PRESETS[preset].get("clip_contribution_fraction", 0)
        assert (np.abs(image - 0.5).max(2) < 1e-6).mean() >= fraction - 0.01, "clipped pixels are the mean pixel"


def test_gradient_ascent_starts_at_given_image(demo_net: Network) -> None:
    start = np.random.default_rng(0).random((64, 64, 3)).astype(np.float32)
    first = next(gradient_ascent(demo_net, target=0, preset="simonyan", init_image=start, lr=1e-4)).image
    assert np.abs(first - start).max() < 0.01
    zero = next(gradient_ascent(demo_net, target=0, preset="simonyan", lr=1e-4)).image
    assert np.abs(zero - 0.5).max() < 0.015


def test_gradient_ascent_keywords_override_preset(demo_net: Network) -> None:
    frames = list(gradient_ascent(demo_net, target=0, preset="yosinski 3", iterations=3, l2=0.1))
    assert [frame.step for frame in frames] == [1, 2, 3]
    assert frames[-1].total == 3
    assert set(frames[-1].scalars) == {"logit", "l2", "log probability", "objective"}
    scalars = frames[-1].scalars
    assert scalars["objective"] == pytest.approx(
        scalars["logit"] - 0.1 * scalars["l2"] + 10 * scalars["log probability"], rel=1e-4
    )


def test_gradient_ascent_of_unit_changes_only_its_receptive_field(demo_net: Network) -> None:
    everywhere = optimized_image(demo_net, objective=("conv2", 9), preset="simonyan", iterations=40, l2=0.0)
    only = optimized_image(demo_net, objective=("conv2", 9, (8, 8)), preset="simonyan", iterations=40, l2=0.0)
    top, left, bottom, right = demo_net.layers["conv2"].box((8, 8))
    outside = np.ones((64, 64), bool)
    outside[top:bottom, left:right] = False
    assert np.abs(only - 0.5)[outside].max() < 0.015, "the initial noise"
    assert np.abs(only - 0.5)[~outside].max() > 0.1
    assert (np.abs(everywhere - 0.5).max(2) > 0.03).mean() > 0.9


def test_gradient_ascent_with_non_robust_network() -> None:
    ordinary = Network.demo(robust=False)
    for preset in ("simonyan", "modern"):
        image = as_uint8(optimized_image(ordinary, target="fish", preset=preset))
        assert ordinary.predict(image, 1)[0][0] == "fish"


def test_gradient_ascent_with_zero_gradient_raises(demo_net: Network) -> None:
    gray = np.full((64, 64, 3), 0.5, np.float32)
    with pytest.raises(ValueError, match="gradient"):
        next(gradient_ascent(Network.demo(robust=False), target="fish", preset="simonyan", init_image=gray))


def test_gradient_ascent_accepts_custom_objective(demo_net: Network) -> None:
    frames = list(
        gradient_ascent(
            demo_net,
            objective=objectives.channel("conv3", 5) - 0.01 * objectives.total_variation(),
            preset="simonyan",
            iterations=20,
        )
    )
    assert frames[-1].scalars["activation"] > frames[0].scalars["activation"]
    without_tv = optimized_image(demo_net, objective=objectives.channel("conv3", 5), preset="simonyan", iterations=20)
    differences = [np.abs(np.diff(image, axis=0)).mean() for image in (frames[-1].image, without_tv)]
    assert differences[0] < differences[1]


def test_gradient_ascent_with_gray_network(tiny_gray: Network) -> None:
    for preset in ("modern", "cs231n"):
        last = Run(gradient_ascent(tiny_gray, target=2, preset=preset, iterations=30)).run()
        assert last.image.shape == (16, 16, 1)
        assert tiny_gray.predict_proba(last.image)[2] > tiny_gray.predict_proba(np.full((16, 16), 0.5))[2]


def test_gradient_ascent_rejects_pixel_regularizers_for_fourier(demo_net: Network) -> None:
    with pytest.raises(ValueError, match="pixels"):
        next(gradient_ascent(demo_net, target=0, decay=0.1))


# -- on real weights -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["modern", "simonyan", "cs231n", "yosinski 1", "yosinski 2", "yosinski 4"])
def test_gradient_ascent_with_real_weights_is_classified_as_target(preset: str, real: object, squeezenet: Network) -> None:
    """A quarter of the steps is enough."""
    for c in (130, 292, 963):
        image = as_uint8(optimized_image(squeezenet, target=c, preset=preset, iterations=PRESETS[preset]["iterations"] // 4))
        assert squeezenet.predict_proba(image).argmax() == c
