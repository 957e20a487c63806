from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis import objectives
from convis_widgets.core.synthesis.image_optimizer import ImageOptimizer, noise
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
    assert np.abs(zero - 0.5).max() < 0.01
    noisy = next(gradient_ascent(demo_net, target=0, preset="simonyan", lr=1e-4, init="noise")).image
    assert (noisy - 0.5).std() == pytest.approx(10 / 255, rel=0.05)
    mean = next(gradient_ascent(demo_net, target=0, preset="cs231n", lr=1e-4, init="mean")).image
    assert np.abs(mean - 0.5).max() < 0.01


def test_gradient_ascent_keywords_override_preset(demo_net: Network) -> None:
    frames = list(gradient_ascent(demo_net, target=0, preset="yosinski 3", iterations=3, l2=0.1, log_prob_weight=10.0))
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


def test_gradient_ascent_with_zero_gradient_raises(tiny_module: nn.Module) -> None:
    with torch.no_grad():
        tiny_module.fc.weight[1] = 0
    with pytest.raises(ValueError, match="gradient of zero"):
        next(gradient_ascent(Network(tiny_module, size=16), target=1, preset="yosinski 3"))


def test_presets_named_after_papers_maximize_the_logit_alone(tiny: Network) -> None:
    for preset in {*PRESETS} - {"modern"}:
        last = Run(gradient_ascent(tiny, target=1, preset=preset, iterations=2)).run()
        scalars = dict(last.scalars)
        assert scalars["objective"] == pytest.approx(scalars["logit"] - PRESETS[preset].get("l2", 0) * scalars.get("l2", 0))
        assert {*scalars} <= {"logit", "l2", "objective"}
    last = Run(gradient_ascent(tiny, target=1, preset="modern", iterations=1)).run()
    assert last.scalars["objective"] == pytest.approx(last.scalars["logit"] + 10 * last.scalars["log probability"])


def test_l2_of_presets_is_for_classes(tiny: Network) -> None:
    for kwargs, penalized in (({"target": 1}, True), ({"objective": ("conv2", 1)}, False), ({"objective": "conv2"}, False)):
        scalars = Run(gradient_ascent(tiny, preset="cs231n", iterations=1, **kwargs)).run().scalars
        assert ("l2" in scalars) == penalized
        assert "l2" in Run(gradient_ascent(tiny, preset="cs231n", iterations=1, l2=0.1, **kwargs)).run().scalars


# -- the scale of the gradient -----------------------------------------------------------------------------------------


def with_scaled_scores(net: Network, factor: float) -> Network:
    """The network with all scores multiplied by a factor."""
    copy = net.copy()
    last = [module for module in copy.module.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        last.weight.mul_(factor)
        last.bias.mul_(factor)
    return copy


STEPS = [
    *({"preset": preset} for preset in PRESETS),
    *({"preset": "simonyan", "normalize": kind} for kind in ("l1", "sign")),
    *({"preset": "simonyan", "optimizer": kind, "lr": lr, "parameterization": p}
      for kind, lr in (("adam", 0.02), ("lbfgs", 1.0)) for p in ("pixels", "fourier")),
]  # fmt: skip


@pytest.mark.parametrize("kwargs", STEPS, ids=str)
def test_image_does_not_depend_on_scale_of_scores(kwargs: dict[str, Any], tiny: Network) -> None:
    """Powers of two, since other factors change the rounding. 2^-20 is about 1e-6, 2^-33 about 1e-10."""
    kwargs = {"target": 1, "iterations": 6, "l2": 0.0, "log_prob_weight": 0.0, **kwargs}
    expected = optimized_image(tiny, **kwargs)
    assert np.abs(expected - expected.mean()).max() > 0.01
    for exponent in (-20, -33, -60, 20):
        image = optimized_image(with_scaled_scores(tiny, 2.0**exponent), **kwargs)
        assert np.abs(image - expected).max() < 1e-6
    if kwargs.get("normalize") != "sign":
        for factor in (1e-6, 1e-10):
            assert np.abs(optimized_image(with_scaled_scores(tiny, factor), **kwargs) - expected).max() < 1e-3


def test_progress_is_the_gain_of_the_objective_at_any_scale(tiny: Network) -> None:
    """The first-order gain of a step is lr, whatever the scale of the scores."""
    for factor in (1.0, 1e-6, 1e-10):
        opt = ImageOptimizer(with_scaled_scores(tiny, factor), noise(tiny, 0.1, 0), optimizer="gradient")
        values = [
            float(opt.step(objectives.class_logit(1), lr=1e-2 * factor, normalize="progress")["logit"]) for _ in range(2)
        ]
        assert values[1] - values[0] == pytest.approx(1e-2 * factor, rel=0.05)


# -- units that are not active -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_units_grow_from_noise_through_closed_relus(preset: str, demo_net: Network) -> None:
    """Most channels of relu5 are not active anywhere in faint noise; these of relu3 in none of 300 images of Toyscape."""
    closed = 0
    for layer, c in (("relu5", 0), ("relu5", 22), ("relu3", 36), ("relu3", 40), ("relu3", 53), ("relu3", 74)):
        frames = list(gradient_ascent(demo_net, objective=(layer, c), preset=preset, iterations=40))
        closed += frames[0].scalars["activation"] == 0
        assert frames[-1].scalars["responded"] == 1
        with trace(demo_net, [layer], stop=True) as acts:
            demo_net(demo_net.batch(frames[-1].image))
        assert float(acts[layer][0, c].max()) > 0
    assert closed >= 2


def test_unit_that_cannot_respond_is_reported(tiny_module: nn.Module) -> None:
    """A unit whose bias is too negative for any image."""
    with torch.no_grad():
        tiny_module.conv1.bias[2] = -1000
    net = Network(tiny_module, size=16)
    frames = list(gradient_ascent(net, objective=("relu", 2), preset="yosinski 3", iterations=3))
    assert [frame.scalars.get("responded") for frame in frames] == [None, None, 0]
    other = Run(gradient_ascent(net, objective=("relu", 5), preset="yosinski 3", iterations=40)).run()
    assert other.scalars["responded"] == 1
    assert "responded" not in Run(gradient_ascent(net, target=1, iterations=1)).run().scalars


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
    for c in (130, 292) if preset == "yosinski 4" else (130, 292, 963):  # its pizza is also a goldfish
        image = as_uint8(optimized_image(squeezenet, target=c, preset=preset, iterations=PRESETS[preset]["iterations"] // 4))
        assert squeezenet.predict_proba(image).argmax() == c
