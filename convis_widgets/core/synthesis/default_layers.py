"""Default layers: which layers of a network represent style and content, and which are inverted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..network.network import Network


@dataclass(frozen=True)
class StyleLayers:
    """Layers of a network that represent style and content.

    Attributes
    ----------
    style : tuple of str
    weights : tuple of float
        Weights of the style layers.
    content : str
    deep_layer : str
        A deep layer that responds to parts of objects, the default of `deep_dream`.
    """

    style: tuple[str, ...]
    weights: tuple[float, ...]
    content: str
    deep_layer: str


def _feature_layers(style: tuple[int, ...], content: int, deep_layer: int) -> StyleLayers:
    names = tuple(f"features.{i}" for i in style)
    return StyleLayers(names, (1 / len(names),) * len(names), f"features.{content}", f"features.{deep_layer}")


STYLE_LAYERS = {
    # L. Gatys, A. Ecker, M. Bethge, "Image style transfer using convolutional neural networks", 2016, section 2: conv1_1 to
    # conv5_1 for style, equally weighted, and conv4_2 for content, all of them after the ReLU
    "vgg19": _feature_layers((1, 6, 11, 20, 29), 22, 31),
    "vgg16": _feature_layers((1, 6, 11, 18, 25), 20, 27),
    # CS231n, assignment 3. Its weights are for absolute distances, so they are not used here
    "squeezenet1_1": _feature_layers((1, 4, 6, 7), 3, 11),
    "squeezenet1_0": _feature_layers((1, 4, 7, 9), 3, 10),
}
_CONVOLUTIONS = {("VGG", 16): "vgg19", ("VGG", 13): "vgg16"}


def default_style_layers(net: Network) -> StyleLayers:
    """Return the published style layers of a network, or a guess for other networks.

    The guess: style is the first ReLU (convolution if there is no ReLU) at each map size down to 4x4, at most five, equally
    weighted; content is the second one at the last size but one. For VGG, this is the choice of Gatys et al.

    Raises
    ------
    ValueError
        The network has no such layers.
    """
    architecture = type(net.module).__name__
    convolutions = sum(layer.kind == "Conv2d" for layer in net.layers)
    if architecture == "SqueezeNet":
        return STYLE_LAYERS["squeezenet1_1" if net.layers[0].receptive_field == (3, 3) else "squeezenet1_0"]
    if (architecture, convolutions) in _CONVOLUTIONS and net.layers[1].kind == "ReLU":
        return STYLE_LAYERS[_CONVOLUTIONS[architecture, convolutions]]
    for kind in ("ReLU", "Conv2d"):
        stages: dict[tuple[int, int], list[str]] = {}  # layers by map size
        for layer in net.layers:
            if layer.map_shape is None or not layer.is_spatial or len(layer.shape) != 3:
                continue
            if layer.kind.startswith(kind) and min(layer.map_shape[1:]) >= 4:
                stages.setdefault(layer.map_shape[1:], []).append(layer.name)
        if stages:
            names = list(stages.values())[:5]
            style = tuple(stage[0] for stage in names)
            content_stage = names[max(0, len(names) - 2)]
            content = content_stage[min(1, len(content_stage) - 1)]
            return StyleLayers(style, (1 / len(style),) * len(style), content, style[-1])
    raise ValueError(f"{net.name} has no ReLU or convolution with maps of at least 4x4; give the names of layers")


def resolve_layer_weights(
    layers: Sequence[str] | str | None, weights: Sequence[float] | None, default: StyleLayers | None
) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Resolve the layers of a style loss and their weights.

    Parameters
    ----------
    layers : str or sequence of str, optional
        Names; the style layers of `default` otherwise.
    weights : sequence of float, optional
        One per layer; those of `default`, or equal ones, otherwise.
    default : StyleLayers, optional
        Not needed if `layers` is given.

    Raises
    ------
    ValueError
        There are no layers; the number of weights is not that of the layers; a weight is negative or not finite.
    """
    default_names = () if default is None else default.style
    names = (layers,) if isinstance(layers, str) else default_names if layers is None else tuple(layers)
    if not names:
        raise ValueError("the list of layers is empty; name at least one layer, or omit the argument")
    if weights is None:
        weights = default.weights if default is not None and names == default.style else (1 / len(names),) * len(names)
    if len(weights) != len(names):
        raise ValueError(f"there are {len(weights)} weights for {len(names)} layers; give one per layer")
    if not all(0 <= weight < float("inf") for weight in weights):
        raise ValueError(f"weights of layers should be finite and at least 0, not {', '.join(map(str, weights))}")
    return names, tuple(weights)


def default_inversion_layers(net: Network) -> list[str]:
    """Names of up to six layers of increasing depth: the last one at each map size, without pooling and the logits."""
    last: dict[tuple[int, int], str] = {}
    for layer in net.layers[:-1]:
        if layer.map_shape is not None and "Pool" not in layer.kind and layer.kind != "Flatten":
            last[layer.map_shape[1:]] = layer.name
    return list(last.values())[-6:]
