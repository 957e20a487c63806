from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.frame import Frame
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.synthesis.template_match import template_match


def last_frame(net: Network, **kwargs: object) -> Frame:
    return Run(template_match(net, **kwargs)).run()


def cosines(patches: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """Cosine similarity of patches (n, h, w, C) and filters (n, C, h, w), by definition."""
    values = []
    for patch, weights in zip(patches.astype(np.float64), filters.astype(np.float64), strict=True):
        a, b = patch.transpose(2, 0, 1).ravel(), weights.ravel()
        values.append(a @ b / np.sqrt((a @ a) * (b @ b)))
    return np.array(values)


@pytest.mark.parametrize("robust", [True, False])
def test_template_match_recovers_filters_of_demo_networks(robust: bool) -> None:
    net = Network.demo(robust=robust)
    last = last_frame(net)
    weights = net.weights("conv1")[0]
    assert last.arrays["patches"].shape == (32, 9, 9, 3)
    expected = cosines(last.arrays["patches"], weights)  # one standard deviation for all channels: the weights themselves
    assert expected.min() > 0.999
    assert np.allclose(last.arrays["cosine"], expected, atol=1e-4)
    assert last.scalars["cosine"] == pytest.approx(expected.min(), abs=1e-4)
    assert np.allclose(last.arrays["filters"], weights.transpose(0, 2, 3, 1) / 0.25, atol=1e-5)


def test_template_match_starts_at_noise_and_converges(demo_net: Network) -> None:
    least = [frame.scalars["cosine"] for frame in template_match(demo_net, iterations=12, lr=0.002)]
    assert least[0] < 0.5
    assert least == sorted(least)
    assert least[-1] > least[0] + 0.2


@pytest.mark.parametrize("name", ["demo", "padded"])
def test_template_match_patches_have_fixed_norm_and_valid_range(name: str, demo_net: Network) -> None:
    for frame in template_match(demo_net if name == "demo" else padded(28), iterations=3):
        patches = frame.arrays["patches"].astype(np.float64)
        norms = np.sqrt((patches**2).sum((1, 2, 3)))
        assert norms == pytest.approx(np.full(len(patches), 0.3), rel=1e-4)
        assert np.abs(patches).max() < 0.5


def test_template_match_accounts_for_per_channel_std(tiny: Network) -> None:
    last = last_frame(tiny)
    weights = tiny.weights("conv1")[0]
    for_pixels = weights / np.array([0.2, 0.25, 0.3]).reshape(1, 3, 1, 1)
    assert cosines(last.arrays["patches"], for_pixels).min() > 0.999
    assert cosines(last.arrays["patches"], weights).min() < 0.999


def test_template_match_activation_matches_reference(tiny: Network) -> None:
    """It is measured before a step: the dot product of filters and the previous frame's patches."""
    frames = list(template_match(tiny, iterations=3))
    weights, biases = tiny.weights("conv1")
    std = np.array([0.2, 0.25, 0.3])  # patches have the mean subtracted
    for before, after in itertools.pairwise(frames):
        pixels = before.arrays["patches"] / std
        activations = (pixels * weights.transpose(0, 2, 3, 1)).sum((1, 2, 3)) + biases
        assert after.scalars["activation"] == pytest.approx(float(activations.mean()), rel=1e-4)


def padded(size: int) -> Network:
    torch.manual_seed(0)
    return Network(
        nn.Sequential(nn.Conv2d(1, 5, 7, stride=2, padding=3), nn.ReLU(), nn.Flatten(), nn.Linear(980, 3)), size=size
    )


def fully_connected() -> Network:
    torch.manual_seed(0)
    return Network(nn.Sequential(nn.Flatten(), nn.Linear(784, 6), nn.ReLU(), nn.Linear(6, 3)), size=28, channels=1)


def even_kernel() -> Network:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, (2, 4), padding=(1, 2)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return Network(module, size=12)


@pytest.mark.parametrize("make", [lambda: padded(28), fully_connected, even_kernel])
def test_template_match_supports_padded_dense_and_even_filters(make: object) -> None:
    net = make()
    name = net.filter_layers[0]
    last, weights = last_frame(net), net.weights(name)[0]
    assert last.arrays["patches"].shape == (len(weights), *weights.shape[2:], weights.shape[1])
    assert cosines(last.arrays["patches"], weights).min() > 0.999


def test_template_match_zero_filter_does_not_affect_others(tiny: Network) -> None:
    other = tiny.copy()
    with torch.no_grad():
        other.module.conv1.weight[2] = 0
    plain, zeroed = last_frame(tiny), last_frame(other)
    rest = [0, 1, 3, 4, 5]
    assert zeroed.arrays["cosine"][2] == 0
    assert np.allclose(zeroed.arrays["patches"][rest], plain.arrays["patches"][rest], atol=1e-5)
    assert zeroed.scalars["cosine"] == pytest.approx(zeroed.arrays["cosine"][rest].min())
    assert zeroed.scalars["cosine"] > 0.999


@pytest.mark.parametrize("layer", ["conv2", "side", "fc"])
def test_template_match_rejects_layers_not_on_pixels(layer: str, tiny: Network) -> None:
    with pytest.raises(ValueError, match=f"{layer}.*conv1" if layer != "fc" else "fc.*filters"):
        next(template_match(tiny, layer=layer))


def test_template_match_rejects_depthwise_first_layer() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 2))
    with pytest.raises(ValueError, match=r"\b0\b"):
        next(template_match(Network(module, size=8)))


def test_template_match_rate_is_live(demo_net: Network) -> None:
    slow, fast = (template_match(demo_net, iterations=5, lr=1e-3) for _ in range(2))
    next(slow)
    next(fast)
    assert fast.send({"lr": 0.05}).scalars["cosine"] > next(slow).scalars["cosine"] + 0.1


def test_template_match_with_real_weights_recovers_filters(real: object, squeezenet: Network) -> None:
    last, weights = last_frame(squeezenet), squeezenet.weights("features.0")[0]
    std = np.array([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    assert len(weights) == 64
    assert cosines(last.arrays["patches"], weights / std).min() > 0.999
    assert cosines(last.arrays["patches"], weights).min() > 0.999, "the deviations of ImageNet's colors are nearly equal"
