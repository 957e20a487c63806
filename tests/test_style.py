"""Layers for style and content, and the style loss."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from convis_widgets.core import Network, measure, palette, style, style_of, trace, unwoven


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
    relu, chosen = relu_names(net), palette(net)
    assert chosen.style == tuple(relu[one] for one in ("1_1", "2_1", "3_1", "4_1", "5_1"))
    assert chosen.content == relu["4_2"]
    assert chosen.weights == pytest.approx([0.2] * 5)
    assert chosen.things == relu["5_2"]
    hidden = Network(type("Unknown", (nn.Sequential,), {})(net.module), size=64)  # an unknown architecture
    guessed = palette(hidden)
    assert guessed.style == tuple(f"0.{one}" for one in chosen.style)
    assert guessed.content == f"0.{chosen.content}"
    assert guessed.weights == pytest.approx([0.2] * 5)


@pytest.mark.parametrize("name", ["squeezenet1_1", "squeezenet1_0"])
def test_default_style_layers_of_squeezenet_are_relu_and_fires(name: str) -> None:
    net = untrained(name)
    chosen = palette(net)
    kinds = [net.layers[one].kind for one in (*chosen.style, chosen.content, chosen.things)]
    assert kinds == ["ReLU", "Fire", "Fire", "Fire", "Fire", "Fire"]
    if name == "squeezenet1_1":  # CS231n, assignment 3
        assert chosen.style == ("features.1", "features.4", "features.6", "features.7")
        assert chosen.content == "features.3"
    assert [net.layers[one].channels for one in chosen.style][:2] == [64 if name == "squeezenet1_1" else 96, 128]
    assert net.layers[chosen.content].channels == 128
    assert net.layers[chosen.things].channels == 512
    assert sum(chosen.weights) == pytest.approx(1)


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
    chosen, names = palette(net), [layer.name for layer in net.layers]
    for name in (*chosen.style, chosen.content, chosen.things):
        assert names.count(name) == 1
        assert min(net.layers[name].maps[1:]) >= 4
        assert net.layers[name].kind.startswith("ReLU")
    sizes = [net.layers[name].maps[1:] for name in chosen.style]
    assert sizes == sorted(set(sizes), reverse=True), "one layer per spatial size"
    for name in chosen.style:
        before = [one for one in net.layers if names.index(one.name) < names.index(name)]
        assert not [one for one in before if one.kind.startswith("ReLU") and one.maps[1:] == net.layers[name].maps[1:]]
    assert 1 <= len(chosen.style) <= 5
    assert len(chosen.weights) == len(chosen.style)
    assert sum(chosen.weights) == pytest.approx(1)
    if len(sizes) > 1:
        assert net.layers[chosen.content].maps[1:] == sizes[-2]


def test_default_style_layers_without_relu_are_convolutions() -> None:
    net = Network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(720, 2)), size=16)
    assert palette(net).style == ("0", "2")


def test_default_style_layers_without_spatial_layers_raises() -> None:
    vectors = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU(), nn.Linear(5, 2))
    with pytest.raises(ValueError, match="ReLU.*4"):
        palette(Network(vectors, size=8, channels=3))


def reference_statistic(maps: np.ndarray, statistic: str) -> np.ndarray:
    count, height, width = maps.shape
    maps = maps.astype(np.float64)
    if statistic == "covariance":
        maps = maps - np.array([maps[c].mean() for c in range(count)])[:, None, None]
    found = np.zeros((count, count))
    for a, b, y, x in itertools.product(range(count), range(count), range(height), range(width)):
        found[a, b] += maps[a, y, x] * maps[b, y, x] / (height * width)
    return found


def activations_of(net: Network, name: str, batch: torch.Tensor) -> np.ndarray:
    with torch.no_grad(), trace(net, [name]) as acts:
        net(batch)
    return acts[name][0].numpy()


LAYERS = ("conv1", "conv2")


@pytest.mark.parametrize(
    ("kernel", "stride", "suits"),
    [(3, 1, "pixels"), (3, 2, "fourier"), (2, 2, "pixels"), (4, 2, "pixels"), (7, 2, "pixels"), (4, 3, "fourier")],
)
def test_choose_parameterization_avoids_checkerboard_artifacts(kernel: int, stride: int, suits: str) -> None:
    side = (32 - kernel) // stride + 1
    seen = np.zeros(32, int)
    for first in range(side):
        seen[first * stride : first * stride + kernel] += 1
    inner = seen[8:24]
    assert (inner.max() >= 2 * inner.min() and inner.max() > inner.min()) == (suits == "fourier")
    net = Network(nn.Sequential(nn.Conv2d(3, 2, kernel, stride), nn.Flatten(), nn.Linear(2 * side**2, 3)), size=32)
    assert unwoven(net, "lbfgs") == suits
    assert unwoven(net, "adam") == "pixels"


def test_choose_parameterization_without_receptive_fields_is_pixels() -> None:
    assert unwoven(Network(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), size=8), "lbfgs") == "pixels"


@pytest.mark.parametrize("statistic", ["gram", "covariance"])
def test_style_statistics_match_reference(statistic: str, tiny: Network, picture: np.ndarray) -> None:
    batch = tiny.batch(picture)
    found = style_of(tiny, batch, LAYERS, statistic)
    for name, matrix in zip(LAYERS, found, strict=True):
        expected = reference_statistic(activations_of(tiny, name, batch), statistic)
        assert matrix.shape == expected.shape
        assert np.abs(matrix.numpy() - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("statistic", ["gram", "covariance"])
def test_style_loss_matches_reference(statistic: str, tiny: Network, picture: np.ndarray) -> None:
    ours, other = tiny.batch(picture), tiny.batch(picture[:12, ::-1] ** 2)  # of another size
    weights, expected = (0.7, 2.0), 0.0
    for name, weight in zip(LAYERS, weights, strict=True):
        a, b = (reference_statistic(activations_of(tiny, name, one), statistic) for one in (ours, other))
        expected += weight * sum((a[i, j] - b[i, j]) ** 2 for i, j in np.ndindex(*b.shape)) / (b**2).sum()
    objective = style(LAYERS, style_of(tiny, other, LAYERS, statistic), weights, statistic)
    value, seen = measure(tiny, objective, ours)
    assert expected > 0.05
    assert float(value) == pytest.approx(expected, rel=1e-4)
    assert float(seen.values["style"]) == pytest.approx(expected, rel=1e-4)
    of_its_own = style(LAYERS, style_of(tiny, ours, LAYERS, statistic), weights, statistic)
    assert float(measure(tiny, of_its_own, ours)[0]) < 1e-9


def test_style_loss_is_evaluated_per_image(tiny: Network, picture: np.ndarray) -> None:
    objective = style(LAYERS, style_of(tiny, tiny.batch(picture), LAYERS), (1, 1))
    both = measure(tiny, objective, torch.cat([tiny.batch(picture), tiny.batch(picture * 0.5)]))[0]
    assert both.shape == (2,)
    assert float(both[0]) < 1e-9
    assert float(both[1]) == pytest.approx(float(measure(tiny, objective, tiny.batch(picture * 0.5))[0]), rel=1e-4)


def test_sum_of_style_losses_has_gradient_of_mean_style(tiny: Network, picture: np.ndarray) -> None:
    """For unnormalized squared distances, sum of w |G - A|^2 and (sum of w) |G - M|^2 differ by a constant."""
    pictures = [tiny.batch(one) for one in (picture, picture[::-1] ** 2, 1 - picture / 2)]
    found = [style_of(tiny, one, ("conv2",))[0] for one in pictures]
    weights = (1.0, 3.0, 0.5)
    mean = sum(w * one for w, one in zip(weights, found, strict=True)) / sum(weights)
    x = tiny.batch(picture * 0.7).requires_grad_()
    (ours,) = torch.autograd.grad(sum(weights) * measure(tiny, style(("conv2",), [mean], (1,)), x)[0].sum(), x)
    apart = sum(
        w * one.square().sum() * measure(tiny, style(("conv2",), [one], (1,)), x)[0].sum()
        for w, one in zip(weights, found, strict=True)
    )
    (each,) = torch.autograd.grad(apart, x)
    assert each.abs().max() > 0
    assert float((ours * mean.square().sum() - each).norm() / each.norm()) < 1e-4
