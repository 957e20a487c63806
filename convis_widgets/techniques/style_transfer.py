"""style_transfer: what is in one picture, painted as others are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch

from ..core import (
    RATES,
    SMALLEST,
    Ascent,
    Frame,
    Knob,
    Network,
    features,
    maps_of,
    noise,
    palette,
    pyramid,
    resized_batch,
    scaled,
    style,
    style_of,
    technique,
    tv,
    unwoven,
    weighed,
)

NOISE = 0.25  # white noise, as Gatys et al. begin with
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R 601


@technique
def style_transfer(
    net: Network,
    content: Any,
    styles: Any,
    *,
    size: Annotated[int | None, Knob(16, 4096)] = None,
    content_weight: Annotated[float, Knob(0, 100, live=True)] = 1.0,
    style_weights: Annotated[float | tuple[float, ...], Knob(0, 10_000, live=True)] = 5.0,
    tv_weight: Annotated[float, Knob(0, 10, live=True)] = 1.0,
    style_scale: Annotated[float, Knob(0.1, 4, log=True)] = 1.0,
    original_colors: Annotated[bool, Knob(live=True)] = False,
    begin: Annotated[str, Knob(choices=("content", "random"))] = "content",
    sizes: Annotated[int, Knob(1, 6, label="coarse to fine")] = 3,
    iterations: Annotated[int, Knob(1, 5000, label="steps per size")] = 100,
    pooling: Annotated[str, Knob(choices=("average", "max"))] = "average",
    parameterization: Annotated[str | None, Knob(choices=("pixels", "fourier"))] = None,
    optimizer: Annotated[str, Knob(choices=("lbfgs", "adam"))] = "lbfgs",
    rate: Annotated[float | None, Knob(1e-3, 2, log=True, live=True)] = None,
    content_layer: str | None = None,
    style_layers: Sequence[str] | None = None,
    layer_weights: Sequence[float] | None = None,
    start: Any = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """A picture with the content of one and the style of another, or of several: the features of the one at each place,
    the Gram matrices of the others.

    Parameters
    ----------
    net : Network, module or name
    content : picture
        Taken in whole.
    styles : picture, or list of pictures
        Taken in whole, too.
    size : int, optional
        The longer side of the new picture, in pixels. Without it an array stays as large as it is, and a photo gets the
        network's own size.
    content_weight : float
        Weight of the squared distance of the features from the content's, over the squared norm of these.
    style_weights : float or tuple of float
        Weight of the distance from each style, or the same for all.
    tv_weight : float
        Weight of the total variation, per pixel.
    style_scale : float
        How large the styles are shown to the network, their longer side in relation to the content's: the size of strokes.
    original_colors : bool
        Keep the content's colors; only the brightness is painted.
    begin : str
        With the content, or at "random", with noise.
    sizes : int
        Begin at a size 2, 4, 8 times smaller and double it.
    iterations : int
        Steps at each of these sizes.
    pooling : str
        "average" puts average pooling in the place of the network's max-pooling layers, if it has any.
    parameterization : str, optional
        "pixels" or "fourier", see `unwoven`, which chooses by the network.
    optimizer, rate
        L-BFGS with steps of 1, or Adam with steps of 0.02.
    content_layer, style_layers, layer_weights : str and sequences, optional
        See `palette` for those of published networks, and what is guessed for others.
    start : picture, optional
        Another one to begin with, in the full size and there only.
    seed : int
        Of the noise.

    Yields
    ------
    Frame
        After every step. ``image`` is the picture, in the full size also while it is made in a smaller one. What it was
        before the step: ``scalars["content"]`` and ``["style"]``, the distances, without their weights, and ``["tv"]``; all
        together, with them, ``["loss"]``.

    Raises
    ------
    ValueError
        No such layers; as many weights as styles are needed; a picture is too small for the network.

    References
    ----------
    L. Gatys, A. Ecker, M. Bethge, "Image style transfer using convolutional neural networks", 2016. There the distances are
    not relative, so that weights fit one network only. Of several styles the weighted mean of the Gram matrices is matched:
    the sum of the weighted distances from each differs from that distance by a constant. Colors: L. Gatys et al.,
    "Preserving color in neural artistic style transfer", 2016, arXiv:1606.05897, section 3.2.
    """
    chosen = palette(net) if content_layer is None or style_layers is None else None
    content_layer = net.layers[content_layer or chosen.content].name
    layers, weights = weighed(style_layers, layer_weights, chosen)
    layers = tuple(net.layers[name].name for name in layers)
    several = isinstance(styles, (list, tuple)) or getattr(styles, "ndim", 0) == 4
    pictures = list(styles) if several else [styles]
    if not pictures:
        raise ValueError("there is no style; give one picture or several")
    words = {"content_weight": content_weight, "tv_weight": tv_weight, "rate": rate, "original_colors": original_colors}
    words["style_weights"] = _each(style_weights, len(pictures))
    if not (content_weight or tv_weight or any(words["style_weights"])):
        raise ValueError("all weights are 0, so that there is nothing to paint; raise one")
    net = net.with_average_pooling() if pooling == "average" else net
    original = net.whole(content, size)
    full = tuple(original.shape[2:])
    side = max(1, round(style_scale * max(full)))
    given = [net.whole(picture, side) for picture in pictures]
    batch = None if start is None else net.whole(start, max(full))
    stages = pyramid(full, sizes if start is None else 1, 2, SMALLEST)
    parameterization = parameterization or unwoven(net, optimizer)
    step, total = 0, len(stages) * iterations
    for here in stages:
        small = resized_batch(original, here)
        alike = features(content_layer, *maps_of(net, small, [content_layer])).called("content")
        found = [style_of(net, scaled(one, here[0] / full[0]), layers) for one in given]
        if batch is None:
            batch = small if begin == "content" else noise(net, NOISE, seed, size=here)
        ascent = Ascent(net, resized_batch(batch, here), parameterization=parameterization, optimizer=optimizer, seed=seed)
        loss = None
        for _ in range(iterations):
            if loss is None:
                shares = words["style_weights"]
                loss = words["content_weight"] * alike + words["tv_weight"] / (here[0] * here[1]) * tv()
                if sum(shares):
                    blend = [
                        sum(w * m for w, m in zip(shares, ms, strict=True)) / sum(shares) for ms in zip(*found, strict=True)
                    ]
                    loss = loss + sum(shares) * style(layers, blend, weights)
            values = ascent.step(-loss, rate=words["rate"] or RATES[optimizer])
            step += 1
            batch = ascent.picture()
            picture = resized_batch(batch, full)
            if words["original_colors"]:
                picture = _colored(picture, original)
            told = {name: value[0] for name, value in values.items() if name != "objective"}
            told["loss"] = -values["objective"][0]
            picture = picture[0].permute(1, 2, 0)
            sent = yield Frame(step, total, done=step == total, image=picture, scalars=told)
            if sent:
                words |= sent
                words["style_weights"] = _each(words["style_weights"], len(pictures))
                loss = None
                ascent.forget()


def _each(weights: Any, count: int) -> tuple[float, ...]:
    given = tuple(weights) if np.ndim(weights) else (weights,) * count
    if len(given) != count:
        raise ValueError(f"there are {len(given)} style weights for {count} styles; give one for each, or one for all")
    return given


def _colored(painted: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """The brightness of one and the colors of the other; gray pictures have none."""
    if painted.shape[1] != 3:
        return painted
    luminance = painted.new_tensor(_LUMINANCE).view(1, 3, 1, 1)
    return (original + ((painted - original) * luminance).sum(1, keepdim=True)).clamp(0, 1)
