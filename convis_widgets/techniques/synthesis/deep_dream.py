"""deep_dream: amplify what a layer detects in an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch

from ...core.errors import name_in_errors
from ...core.knob import Knob
from ...core.network.images import resize_batch
from ...core.network.network import Network
from ...core.network.trace import get_activations
from ...core.network.unit import resolve_unit
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.synthesis import objectives
from ...core.synthesis.default_layers import default_style_layers
from ...core.synthesis.image_optimizer import ImageOptimizer
from ...core.synthesis.objectives import LOGITS, Objective
from ...core.synthesis.pyramid import MIN_SIDE, pyramid_sizes
from ...core.types import ImageLike, ObjectiveLike


@technique(allow_tf32=True)
def deep_dream(
    net: Network,
    image: ImageLike,
    *,
    objective: ObjectiveLike | None = None,
    target: int | str | None = None,
    guide: ImageLike | None = None,
    size: Annotated[int | None, Knob(16, 4096)] = None,
    octaves: Annotated[int, Knob(1, 10)] = 4,
    octave_scale: Annotated[float, Knob(1.1, 2)] = 1.4,
    iterations: Annotated[int, Knob(1, 500, label="steps per octave")] = 10,
    lr: Annotated[float, Knob(1e-4, 0.1, log=True, live=True)] = 1.5 / 255,
    jitter: Annotated[float, Knob(0, 0.5, live=True)] = 32 / 224,
    init_image: ImageLike | None = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """The image with the patterns that a layer detects in it amplified, from a small copy to the full size.

    Parameters
    ----------
    net : Network, module or name
    image : image
        It is not cropped.
    objective : str, Unit, (layer, channel) or Objective, optional
        What to maximize: the name of a layer stands for all its activations, see `objectives.deepdream`. A deep layer by
        default. Several layers: ``objectives.deepdream("conv3") + 0.5 * objectives.deepdream("conv4")``.
    target : int or str, optional
        A class to maximize instead. A network that only takes its own input size gets the image resized to it.
    guide : image, optional
        With the name of a layer: amplify the patterns of the guide image, see `objectives.guided_deepdream`.
    size : int, optional
        Longer side of the result in pixels. By default, that of an array, or the network's input size for an image file.
    octaves : int
        Number of sizes; those with a side of less than 24 pixels are omitted.
    octave_scale : float
        Ratio of each size to the previous one.
    iterations : int
        Steps per octave.
    lr : float
        Mean change of a pixel per step; 1 is from black to white.
    jitter : float
        Largest random shift of the network's input, as a fraction of its side.
    init_image : image, optional
        An earlier result for `image`, to continue from.
    seed : int
        Seed of the jitter.

    Yields
    ------
    Frame
        After every step:

        - ``image`` (H, W, C): the image in full size, with all detail so far
        - ``scalars["objective"]``: the objective in the current octave, before the step
        - ``scalars["responded"]``, for a channel or unit after the last step, see `gradient_ascent`

    Raises
    ------
    ValueError
        There is no such layer or class; a guide is given, but not the name of a layer; the objective is not finite.

    References
    ----------
    A. Mordvintsev, C. Olah, M. Tyka, "Inceptionism: going deeper into neural networks", 2015. The constants are those of
    their notebook: a step of 1.5 of 255 divided by the gradient's mean magnitude, jitter of 32 of 224 pixels, four octaves
    of ratio 1.4, 10 steps per octave, and clipping to the valid range after each step.

    Examples
    --------
    >>> from convis_widgets import Network, Run, deep_dream, demo
    >>> net, scene = Network.demo(), demo.images(1, label="fish")[0]
    >>> Run(deep_dream(net, scene.image, objective="conv3", octaves=2, iterations=2)).run().image.shape
    (64, 64, 3)
    """
    if objective is None and target is None:
        objective = default_style_layers(net).deep_layer
    if guide is None:
        maximized = objectives.as_objective(net, target=target, objective=objective)
    else:
        maximized = _guided_objective(net, objective if target is None else None, guide)
    unit = None  # what may fail to respond
    if target is None and not isinstance(objective, (str, Objective)):
        unit = resolve_unit(net, unit=objective)
    base = net.uncropped_batch(image, size)
    full = (base.shape[2], base.shape[3])
    initial = base if init_image is None else resize_batch(net.uncropped_batch(init_image, max(full)), full)
    added, detail, previous = initial - base, torch.zeros_like(base), torch.zeros_like(base)
    knobs: dict[str, Any] = {"lr": lr, "jitter": jitter}
    sizes = pyramid_sizes(full, octaves, octave_scale, MIN_SIDE)
    step, total = 0, len(sizes) * iterations
    for octave in sizes:
        # detail of the initial image is added octave by octave: what this size shows and the previous one did not
        small, coarser, previous = resize_batch(base, octave), resize_batch(previous, octave), resize_batch(added, octave)
        detail = resize_batch(detail, octave) + previous - coarser
        finer = added - resize_batch(previous, full)
        opt = ImageOptimizer(net, (small + detail).clamp(0, 1), optimizer="gradient", seed=seed + step)
        input_size = net.transform.size if LOGITS in maximized.layers and not net.accepts(octave) else None
        for _ in range(iterations):
            shift = round(knobs["jitter"] * min(net.transform.size))
            values = opt.step(maximized, lr=knobs["lr"], normalize="l1", jitter=shift, input_size=input_size)
            step += 1
            detail = opt.image() - small
            result = (base + resize_batch(detail, full) + finer).clamp(0, 1)
            scalars = {"objective": values["objective"][0]}
            if step == total and unit is not None and unit.layer:
                scalars["responded"] = unit.responds(net, result)[0].float()
            knobs |= (yield Frame(step, total, done=step == total, image=result, scalars=scalars)) or {}


def _guided_objective(net: Network, layer: ObjectiveLike | None, guide: ImageLike) -> Objective:
    if not isinstance(layer, str):
        raise ValueError("guide= needs the name of a layer as objective, as in objective='conv4'")
    name = net.layers[layer].name
    with name_in_errors("the guide"):
        (activations,) = get_activations(net, net.uncropped_batch(guide), [name])
    return objectives.guided_deepdream(name, activations).validate(net)
