"""style_transfer: the content of one image in the style of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch

from ...core.errors import name_in_errors
from ...core.knob import Knob
from ...core.network.images import LUMINANCE, resize_batch, scale_batch
from ...core.network.network import Network
from ...core.network.trace import get_activations
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.synthesis import objectives
from ...core.synthesis.default_layers import StyleLayers, default_style_layers, resolve_layer_weights
from ...core.synthesis.optimizers import DEFAULT_LR
from ...core.synthesis.pyramid import MIN_SIDE, coarse_to_fine, pyramid_sizes
from ...core.synthesis.style_loss import style_loss, style_statistics
from ...core.types import ImageLike

NOISE_STD = 0.25  # white noise as the initial image, as Gatys et al.


@technique(allow_tf32=True)
def style_transfer(
    net: Network,
    content: ImageLike,
    styles: ImageLike | Sequence[ImageLike],
    *,
    size: Annotated[int | None, Knob(16, 4096)] = None,
    content_weight: Annotated[float, Knob(0, 100, live=True)] = 1.0,
    style_weights: Annotated[float | tuple[float, ...], Knob(0, 10_000, live=True)] = 5.0,
    tv_weight: Annotated[float, Knob(0, 10, live=True)] = 1.0,
    style_scale: Annotated[float, Knob(0.1, 4, log=True)] = 1.0,
    original_colors: Annotated[bool, Knob(live=True)] = False,
    init: Annotated[str, Knob(choices=("content", "random"))] = "content",
    scales: Annotated[int, Knob(1, 6)] = 3,
    iterations: Annotated[int, Knob(1, 5000, label="steps per scale")] = 100,
    pooling: Annotated[str, Knob(choices=("average", "max"))] = "average",
    parameterization: Annotated[str | None, Knob(choices=("pixels", "fourier"))] = None,
    optimizer: Annotated[str, Knob(choices=("lbfgs", "adam"))] = "lbfgs",
    lr: Annotated[float | None, Knob(1e-3, 2, log=True, live=True)] = None,
    content_layer: str | None = None,
    style_layers: Sequence[str] | None = None,
    layer_weights: Sequence[float] | None = None,
    init_image: ImageLike | None = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """An image with the activations of the content image and the Gram matrices of the style images.

    Parameters
    ----------
    net : Network, module or name
    content : image
        It is not cropped.
    styles : image or list of images
        They are not cropped.
    size : int, optional
        Longer side of the result in pixels. By default, that of an array, or the network's input size for an image file.
    content_weight : float
        Weight of the squared distance from the content's activations, relative to their squared norm.
    style_weights : float or tuple of float
        Weight of the distance from each style, see `style_loss`; one for each, or one for all.
    tv_weight : float
        Weight of the total variation per pixel.
    style_scale : float
        Longer side of the style images relative to that of the content: the size of strokes.
    original_colors : bool
        Keep the colors of the content and change the luminance only.
    init : str
        Initial image: "content", or "random" for noise.
    scales : int
        Number of sizes, from coarse to fine by factors of 2; those with a side of less than 24 pixels are omitted.
    iterations : int
        Steps per size.
    pooling : str
        "average" replaces the network's max pooling by average pooling; "max" does not.
    parameterization : str, optional
        "pixels" or "fourier"; that of `choose_parameterization` by default.
    optimizer : str
        "lbfgs" or "adam".
    lr : float, optional
        Learning rate; 1 for "lbfgs" and 0.02 for "adam" by default.
    content_layer : str, optional
    style_layers : sequence of str, optional
    layer_weights : sequence of float, optional
        Layers, and the weights of the style layers; those of `default_style_layers` by default.
    init_image : image, optional
        Another initial image, optimized in full size only.
    seed : int
        Seed of the noise.

    Yields
    ------
    Frame
        After every step. Scalars are those before the step:

        - ``image`` (H, W, C): the result so far, in full size
        - ``scalars["content"]``, ``["style"]``, ``["tv"]``: distances and total variation, without weights
        - ``scalars["loss"]``: their weighted sum

    Raises
    ------
    ValueError
        There is no such layer; the number of weights is not that of the styles or layers; all weights are 0; an image is too
        small for the network.

    References
    ----------
    L. Gatys, A. Ecker, M. Bethge, "Image style transfer using convolutional neural networks", 2016. Their distances are not
    relative, so that weights fit one network only. Several styles are matched by the weighted mean of their Gram matrices,
    which is, up to a constant, the weighted sum of the distances. Colors: L. Gatys et
    al., "Preserving color in neural artistic style transfer", 2016, arXiv:1606.05897, section 3.2.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, style_transfer
    >>> content, style = (demo.images(1, label=label)[0].image for label in ("star", "house"))
    >>> Run(style_transfer(Network.demo(), content, style, scales=2, iterations=2)).run().image.shape
    (64, 64, 3)
    """
    default: StyleLayers | None = None
    if content_layer is None or style_layers is None:
        default = default_style_layers(net)
        content_layer = content_layer or default.content
    content_layer = net.layers[content_layer].name
    layers, weights = resolve_layer_weights(style_layers, layer_weights, default)
    layers = tuple(net.layers[name].name for name in layers)
    style_images = _to_list(styles)
    if not style_images:
        raise ValueError("the list of style images is empty; give at least one style image")
    style_names = [f"style image {i + 1}" if len(style_images) > 1 else "the style image" for i in range(len(style_images))]
    knobs: dict[str, Any] = {
        "content_weight": content_weight,
        "style_weights": _weight_per_style(style_weights, len(style_images)),
        "tv_weight": tv_weight,
        "lr": lr,
        "original_colors": original_colors,
    }
    if not (content_weight or tv_weight or any(knobs["style_weights"])):
        raise ValueError("all weights are 0, so there is nothing to optimize; increase at least one")
    net = net.with_average_pooling() if pooling == "average" else net
    with name_in_errors("the content image"):
        original = net.uncropped_batch(content, size)
    full = (original.shape[2], original.shape[3])
    style_side = max(1, round(style_scale * max(full)))
    style_batches = []
    for name, style in zip(style_names, style_images, strict=True):
        with name_in_errors(name):
            style_batches.append(net.uncropped_batch(style, style_side))
    initial = original if init == "content" else None
    if init_image is not None:
        initial, scales = net.uncropped_batch(init_image, max(full)), 1
    sizes = pyramid_sizes(full, scales, 2, MIN_SIDE)
    step, total = 0, len(sizes) * iterations
    for (height, width), opt in coarse_to_fine(
        net, sizes, initial, noise_std=NOISE_STD, optimizer=optimizer, parameterization=parameterization, seed=seed
    ):
        with name_in_errors("the content image"):
            activations = get_activations(net, resize_batch(original, (height, width)), [content_layer])
        content_loss = objectives.features(content_layer, *activations).rename("content")
        statistics = []
        for name, batch in zip(style_names, style_batches, strict=True):
            with name_in_errors(name):
                statistics.append(style_statistics(net, scale_batch(batch, height / full[0]), layers))
        loss = None
        for _ in range(iterations):
            if loss is None:
                loss = knobs["content_weight"] * content_loss
                loss = loss + knobs["tv_weight"] / (height * width) * objectives.total_variation()
                style_weight = sum(knobs["style_weights"])
                if style_weight:
                    targets = _weighted_mean(statistics, knobs["style_weights"])
                    loss = loss + style_weight * style_loss(layers, targets, weights)
            values = opt.step(-loss, lr=knobs["lr"] or DEFAULT_LR[optimizer])
            step += 1
            result = resize_batch(opt.image(), full)
            if knobs["original_colors"]:
                result = _with_original_colors(result, original)
            scalars = {name: value[0] for name, value in values.items() if name != "objective"}
            scalars["loss"] = -values["objective"][0]
            frame = Frame(step, total, done=step == total, image=result, scalars=scalars)
            changes: dict[str, Any] = (yield frame) or {}
            if changes:
                knobs |= changes
                knobs["style_weights"] = _weight_per_style(knobs["style_weights"], len(style_images))
                loss = None
                opt.reset_state()


def _to_list(images: Any) -> list[ImageLike]:
    """Convert an image, a list of images or a batch to a list of images."""
    several = isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4
    return list(images) if several else [images]


def _weight_per_style(weights: Any, count: int) -> tuple[float, ...]:
    """Expand one weight to one per style; ValueError if there are neither one nor `count` weights."""
    expanded = tuple(weights) if np.ndim(weights) else (weights,) * count
    if len(expanded) != count:
        raise ValueError(f"there are {len(expanded)} style weights for {count} styles; give one per style, or one for all")
    return expanded


def _weighted_mean(statistics: Sequence[Sequence[torch.Tensor]], weights: Sequence[float]) -> list[torch.Tensor]:
    """Weighted mean over styles of the matrices of each layer."""
    return [
        sum(weight * matrix for weight, matrix in zip(weights, matrices, strict=True)) / sum(weights)
        for matrices in zip(*statistics, strict=True)
    ]


def _with_original_colors(image: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Combine the luminance of one image with the colors of the original; gray images have no colors."""
    if image.shape[1] != 3:
        return image
    luminance = image.new_tensor(LUMINANCE).view(1, 3, 1, 1)
    return (original + ((image - original) * luminance).sum(1, keepdim=True)).clamp(0, 1)
