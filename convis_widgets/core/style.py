"""Style: which layers tell how a picture is painted and which what is in it, and the distance of two styles.

A style is the Gram matrices of some layers; no position is left in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .network import Network
from .objectives import Measured, Objective, Seen, covariance_matrix, gram_matrix
from .trace import maps_of


@dataclass(frozen=True)
class Palette:
    """Layers of a network that tell style and content.

    Attributes
    ----------
    style : tuple of str
    weights : tuple of float
        Of the style's layers.
    content : str
    things : str
        A deep one, that answers to parts of things.
    """

    style: tuple[str, ...]
    weights: tuple[float, ...]
    content: str
    things: str


def _features(style: tuple[int, ...], content: int, things: int) -> Palette:
    names = tuple(f"features.{i}" for i in style)
    return Palette(names, (1 / len(names),) * len(names), f"features.{content}", f"features.{things}")


PALETTES = {
    # L. Gatys, A. Ecker, M. Bethge, "Image style transfer using convolutional neural networks", 2016, section 2: style of
    # conv1_1 to conv5_1, a fifth each, content of conv4_2, all of them after the ReLU
    "vgg19": _features((1, 6, 11, 20, 29), 22, 31),
    "vgg16": _features((1, 6, 11, 18, 25), 20, 27),
    # CS231n, assignment 3. Its weights are for distances that are not relative to the style's own size
    "squeezenet1_1": _features((1, 4, 6, 7), 3, 11),
    "squeezenet1_0": _features((1, 4, 7, 9), 3, 10),
}
_CONVOLUTIONS = {("VGG", 16): "vgg19", ("VGG", 13): "vgg16"}


def palette(net: Network) -> Palette:
    """The layers of a published network, or a guess for any other.

    The guess: the first ReLU, or else convolution, at each size of map down to 4x4, five at most, is style, all of one
    weight; the second one of the last size but one is content. For VGG that is what Gatys et al. chose.
    """
    kind = type(net.module).__name__
    convolutions = sum(layer.kind == "Conv2d" for layer in net.layers)
    first = net.layers[0]
    if kind == "SqueezeNet":
        return PALETTES["squeezenet1_1" if first.receptive_field == (3, 3) else "squeezenet1_0"]
    if (kind, convolutions) in _CONVOLUTIONS and net.layers[1].kind == "ReLU":
        return PALETTES[_CONVOLUTIONS[kind, convolutions]]
    large = [layer for layer in net.layers if layer.is_map and len(layer.shape) == 3 and min(layer.maps[1:]) >= 4]
    for wanted in ("ReLU", "Conv2d"):
        sizes: dict[tuple[int, int], list[str]] = {}
        for layer in large:
            if layer.kind.startswith(wanted):
                sizes.setdefault(layer.maps[1:], []).append(layer.name)
        if sizes:
            stages = list(sizes.values())[:5]
            style = tuple(stage[0] for stage in stages)
            deep = stages[max(0, len(stages) - 2)]
            return Palette(style, (1 / len(style),) * len(style), deep[min(1, len(deep) - 1)], style[-1])
    raise ValueError(f"{net.name} has no ReLU and no convolution with maps of 4x4 or more; name the layers yourself")


def weighed(
    layers: Sequence[str] | str | None, weights: Sequence[float] | None, usual: Palette | None
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The layers named, or the usual ones, and their weights, by default equal ones; ValueError if they do not fit."""
    names = (layers,) if isinstance(layers, str) else tuple(usual.style if layers is None else layers)
    if not names:
        raise ValueError("there is no layer; name some, or leave them out")
    if weights is None:
        weights = usual.weights if usual is not None and names == usual.style else (1 / len(names),) * len(names)
    if len(weights) != len(names):
        raise ValueError(f"there are {len(weights)} weights for {len(names)} layers; give one for each")
    if not all(0 <= weight < float("inf") for weight in weights):
        raise ValueError(f"weights of layers are numbers from 0 on, not {', '.join(map(str, weights))}")
    return names, tuple(weights)


def unwoven(net: Network, optimizer: str) -> str:
    """The parameterization in which no pattern is woven into smooth places.

    Where the fields of the first layer overlap unevenly, as those of 3x3 pixels in steps of 2 do, some pixels are pulled at
    twice as much as others (A. Odena, V. Dumoulin, C. Olah, "Deconvolution and checkerboard artifacts", 2016), and show it
    if they are changed one by one. The coefficients of a Fourier transform do not, but come less near in as many steps, and
    with Adam they go astray in what has one color.
    """
    first = net.layers[0]
    fields = zip(first.receptive_field, first.stride, strict=True) if first.stride else ()
    uneven = any(stride < field < 2 * stride for field, stride in fields)
    return "fourier" if uneven and optimizer == "lbfgs" else "pixels"


SMALLEST = 24  # pixels of a side, below which there is nothing to be found

STATISTICS = {"gram": gram_matrix, "covariance": covariance_matrix}


def style_of(net: Network, batch: torch.Tensor, layers: Sequence[str], statistic: str = "gram") -> list[torch.Tensor]:
    """Gram matrices, or covariances, (C, C) of some layers for one picture (1, C, H, W)."""
    return [STATISTICS[statistic](maps)[0] for maps in maps_of(net, batch, layers)]


def style(
    layers: Sequence[str], wanted: Sequence[torch.Tensor], weights: Sequence[float], statistic: str = "gram"
) -> Objective:
    """The squared distance of the layers' statistics from those wanted, (C, C) each, over the squared norm of these: a
    weighted sum over layers.

    Relative to the norm, the weights mean the same in every network and for every picture. The matrices are means over
    positions, so that pictures of different sizes can be compared.
    """
    norms = [matrix.square().sum().clamp(min=1e-12) for matrix in wanted]

    def measure(seen: Seen) -> torch.Tensor:
        total = 0
        for name, matrix, norm, weight in zip(layers, wanted, norms, weights, strict=True):
            total = total + weight * (STATISTICS[statistic](seen.maps(name)) - matrix).square().sum((1, 2)) / norm
        return total

    return Measured("style", frozenset(layers), measure)
