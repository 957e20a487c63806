"""Layers for style and content, and the style loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis import objectives
from convis_widgets.core.synthesis.default_layers import default_style_layers
from convis_widgets.core.synthesis.parameterization import choose_parameterization
from convis_widgets.core.synthesis.style_loss import style_loss, style_statistics
from convis_widgets.techniques.synthesis.feature_inversion import feature_inversion
from convis_widgets.techniques.synthesis.style_transfer import style_transfer
from convis_widgets.techniques.synthesis.texture import texture


def untrained(name: str) -> Network:
    return Network(getattr(torchvision.models, name)(weights=None), size=64)


def vgg(name: str) -> Network:
    """A VGG without its large classifier, all weights zero."""
    with torch.device("meta"):
        module = getattr(torchvision.models, name)(weights=None, init_weights=False)
    module.classifier = nn.Linear(512 * 7 * 7, 2)
    module.features.to_empty(device="cpu")
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return Network(module, size=64)


def relu_names(net: Network) -> dict[str, str]:
    """VGG's ReLUs by their names in the papers: 1_2 follows the second convolution of the first block."""
    names, block, place = {}, 1, 0
    for i, module in enumerate(net.module.features):
        place += isinstance(module, nn.Conv2d)
        if isinstance(module, nn.ReLU):
            names[f"{block}_{place}"] = f"features.{i}"
        if isinstance(module, nn.MaxPool2d):
            block, place = block + 1, 0
    return names


@pytest.mark.parametrize("name", ["vgg19", "vgg16"])
def test_default_style_layers_of_vgg_match_gatys(name: str) -> None:
    net = vgg(name)
    relu, layers = relu_names(net), default_style_layers(net)
    assert layers.style == tuple(relu[name] for name in ("1_1", "2_1", "3_1", "4_1", "5_1"))
    assert layers.content == relu["4_2"]
    assert layers.weights == pytest.approx([0.2] * 5)
    assert layers.deep_layer == relu["5_2"]
    hidden = Network(type("Unknown", (nn.Sequential,), {})(net.module), size=64)  # an unknown architecture
    guessed = default_style_layers(hidden)
    assert guessed.style == tuple(f"0.{name}" for name in layers.style)
    assert guessed.content == f"0.{layers.content}"
    assert guessed.weights == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("name", ["squeezenet1_1", "squeezenet1_0"])
def test_default_style_layers_of_squeezenet_are_relu_and_fires(name: str) -> None:
    net = untrained(name)
    layers = default_style_layers(net)
    kinds = [net.layers[layer].kind for layer in (*layers.style, layers.content, layers.deep_layer)]
    assert kinds == ["ReLU", "Fire", "Fire", "Fire", "Fire", "Fire"]
    if name == "squeezenet1_1":  # CS231n, assignment 3
        assert layers.style == ("features.1", "features.4", "features.6", "features.7")
        assert layers.content == "features.3"
    assert [net.layers[layer].channels for layer in layers.style][:2] == [64 if name == "squeezenet1_1" else 96, 128]
    assert net.layers[layers.content].channels == 128
    assert net.layers[layers.deep_layer].channels == 512
    assert sum(layers.weights) == pytest.approx(1)


def untrained_mobilenet() -> Network:
    return Network(torchvision.models.mobilenet_v2(weights=None), size=96)


@pytest.mark.parametrize(
    "make", [Network.demo, lambda: untrained("resnet18"), untrained_mobilenet, lambda: untrained("alexnet")]
)
def test_default_style_layers_of_other_networks_grow_in_depth(make: Callable[[], Network]) -> None:
    net = make()
    check_guessed_layers(net)


def test_default_style_layers_of_gray_network(tiny_gray: Network) -> None:
    check_guessed_layers(tiny_gray)


def check_guessed_layers(net: Network) -> None:
    layers, names = default_style_layers(net), [layer.name for layer in net.layers]
    for name in (*layers.style, layers.content, layers.deep_layer):
        assert names.count(name) == 1
        assert min(net.layers[name].map_shape[1:]) >= 4
        assert net.layers[name].kind.startswith("ReLU")
    sizes = [net.layers[name].map_shape[1:] for name in layers.style]
    assert sizes == sorted(set(sizes), reverse=True), "one layer per spatial size"
    for name in layers.style:
        before = [one for one in net.layers if names.index(one.name) < names.index(name)]
        assert not [
            one for one in before if one.kind.startswith("ReLU") and one.map_shape[1:] == net.layers[name].map_shape[1:]
        ]
    assert 1 <= len(layers.style) <= 5
    assert len(layers.weights) == len(layers.style)
    assert sum(layers.weights) == pytest.approx(1)
    if len(sizes) > 1:
        assert net.layers[layers.content].map_shape[1:] == sizes[-2]


def test_default_style_layers_without_relu_are_convolutions() -> None:
    net = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(720, 2)), size=16)
    assert default_style_layers(net).style == ("0", "2")


def test_default_style_layers_without_spatial_layers_raises() -> None:
    vectors = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(ValueError, match="ReLU.*4"):
        default_style_layers(Network(vectors, size=8, channels=3))


def reference_statistic(maps: np.ndarray, statistic: str) -> np.ndarray:
    count, height, width = maps.shape
    maps = maps.astype(np.float64)
    if statistic == "covariance":
        maps = maps - np.array([maps[c].mean() for c in range(count)])[:, None, None]
    matrix = np.zeros((count, count))
    for a, b, y, x in itertools.product(range(count), range(count), range(height), range(width)):
        matrix[a, b] += maps[a, y, x] * maps[b, y, x] / (height * width)
    return matrix


def activations_of(net: Network, name: str, batch: torch.Tensor) -> np.ndarray:
    with torch.no_grad(), trace(net, [name]) as acts:
        net(batch)
    return acts[name][0].numpy()


LAYERS = ("conv1", "conv2")


@pytest.mark.parametrize(
    ("kernel", "stride", "expected"),
    [(3, 1, "pixels"), (3, 2, "fourier"), (2, 2, "pixels"), (4, 2, "pixels"), (7, 2, "pixels"), (4, 3, "fourier")],
)
def test_choose_parameterization_avoids_checkerboard_artifacts(kernel: int, stride: int, expected: str) -> None:
    side = (32 - kernel) // stride + 1
    coverage = np.zeros(32, int)
    for first in range(side):
        coverage[first * stride : first * stride + kernel] += 1
    inner = coverage[8:24]
    assert (inner.max() >= 2 * inner.min() and inner.max() > inner.min()) == (expected == "fourier")
    net = Network(nn.Sequential(nn.Conv2d(3, 2, kernel, stride), nn.Flatten(), nn.Linear(2 * side**2, 3)), size=32)
    assert choose_parameterization(net, "lbfgs") == expected
    assert choose_parameterization(net, "adam") == "pixels"


def test_choose_parameterization_without_receptive_fields_is_pixels() -> None:
    assert choose_parameterization(Network(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), size=8), "lbfgs") == "pixels"


@pytest.mark.parametrize("statistic", ["gram", "covariance"])
def test_style_statistics_match_reference(statistic: str, tiny: Network, image: np.ndarray) -> None:
    batch = tiny.batch(image)
    matrices = style_statistics(tiny, batch, LAYERS, statistic)
    for name, matrix in zip(LAYERS, matrices, strict=True):
        expected = reference_statistic(activations_of(tiny, name, batch), statistic)
        assert matrix.shape == expected.shape
        assert np.abs(matrix.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("statistic", ["gram", "covariance"])
def test_style_loss_matches_reference(statistic: str, tiny: Network, image: np.ndarray) -> None:
    array, other = tiny.batch(image), tiny.batch(image[:12, ::-1] ** 2)  # of another size
    weights, expected = (0.7, 2.0), 0.0
    for name, weight in zip(LAYERS, weights, strict=True):
        a, b = (reference_statistic(activations_of(tiny, name, batch), statistic) for batch in (array, other))
        expected += weight * sum((a[i, j] - b[i, j]) ** 2 for i, j in np.ndindex(*b.shape)) / (b**2).sum()
    objective = style_loss(LAYERS, style_statistics(tiny, other, LAYERS, statistic), weights, statistic)
    value, forward = objectives.evaluate(tiny, objective, array)
    assert expected > 0.05
    assert float(value) == pytest.approx(expected, rel=1e-4)
    assert float(forward.terms["style"]) == pytest.approx(expected, rel=1e-4)
    of_its_own = style_loss(LAYERS, style_statistics(tiny, array, LAYERS, statistic), weights, statistic)
    assert float(objectives.evaluate(tiny, of_its_own, array)[0]) < 1e-9


def test_style_loss_is_evaluated_per_image(tiny: Network, image: np.ndarray) -> None:
    objective = style_loss(LAYERS, style_statistics(tiny, tiny.batch(image), LAYERS), (1, 1))
    both = objectives.evaluate(tiny, objective, torch.cat([tiny.batch(image), tiny.batch(image * 0.5)]))[0]
    assert both.shape == (2,)
    assert float(both[0]) < 1e-9
    assert float(both[1]) == pytest.approx(float(objectives.evaluate(tiny, objective, tiny.batch(image * 0.5))[0]), rel=1e-4)


def test_sum_of_style_losses_has_gradient_of_mean_style(tiny: Network, image: np.ndarray) -> None:
    """For unnormalized squared distances, sum of w |G - A|^2 and (sum of w) |G - M|^2 differ by a constant."""
    batches = [tiny.batch(array) for array in (image, image[::-1] ** 2, 1 - image / 2)]
    matrices = [style_statistics(tiny, batch, ("conv2",))[0] for batch in batches]
    weights = (1.0, 3.0, 0.5)
    mean = sum(w * matrix for w, matrix in zip(weights, matrices, strict=True)) / sum(weights)
    x = tiny.batch(image * 0.7).requires_grad_()
    (ours,) = torch.autograd.grad(
        sum(weights) * objectives.evaluate(tiny, style_loss(("conv2",), [mean], (1,)), x)[0].sum(), x
    )
    separate = sum(
        w * matrix.square().sum() * objectives.evaluate(tiny, style_loss(("conv2",), [matrix], (1,)), x)[0].sum()
        for w, matrix in zip(weights, matrices, strict=True)
    )
    (each,) = torch.autograd.grad(separate, x)
    assert each.abs().max() > 0
    assert float((ours * mean.square().sum() - each).norm() / each.norm()) < 1e-4


# -- the scale of the activations --------------------------------------------------------------------------------------


def with_activations(factor: float) -> Network:
    """A network whose activations are multiplied by a factor."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(864, 3))
    with torch.no_grad():
        for tensor in (module[0].weight, module[0].bias, module[2].bias):
            tensor.mul_(factor)
    return Network(module, size=16)


@pytest.mark.parametrize(
    "make_frames",
    [
        lambda net, image: feature_inversion(net, image, layers=["1", "3"], iterations=4),
        lambda net, image: texture(net, image, scales=1, iterations=4),
        lambda net, image: texture(net, image, scales=1, iterations=4, statistic="covariance", optimizer="adam"),
        lambda net, image: style_transfer(net, image, image[::-1].copy(), scales=1, iterations=4),
    ],
)
def test_relative_distances_do_not_depend_on_scale_of_activations(make_frames: Any, image: np.ndarray) -> None:
    expected = Run(make_frames(with_activations(1.0), image)).run().image
    for exponent in (-20, -33):
        assert np.abs(Run(make_frames(with_activations(2.0**exponent), image)).run().image - expected).max() < 1e-6
