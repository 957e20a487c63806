"""gradient_ascent: a picture that a class or a unit answers to, painted from nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from ..core import Ascent, Frame, Knob, Network, Objective, Unit, log_probability, noise, squares, technique, wanted

# What a preset does not say.
USUAL: dict[str, Any] = {
    "parameterization": "pixels",
    "optimizer": "gradient",
    "normalize": "none",
    "noise": 10 / 255,
    "l2": 0.0,
    "apart": 10.0,
    "jitter": 0.0,
    "rotate": 0.0,
    "scale": 0.0,
    "decay": 0.0,
    "blur": 0.0,
    "blur_every": 1,
    "small_norm": 0.0,
    "small_contribution": 0.0,
}

# Constants of papers are for other pixels: from 0 to 255, or divided by a standard deviation of about 0.225. Here pixels
# go from 0 to 1, less the mean pixel.
PRESETS: dict[str, dict[str, Any]] = {
    # C. Olah, A. Mordvintsev, L. Schubert, "Feature visualization", 2017, https://distill.pub/2017/feature-visualization:
    # Fourier coefficients, decorrelated colors, jitter, rotation, scaling, Adam with 0.05
    "modern": {
        "parameterization": "fourier",
        "optimizer": "adam",
        "iterations": 256,
        "rate": 0.05,
        "jitter": 0.04,
        "rotate": 5.0,
        "scale": 0.1,
    },
    # K. Simonyan, A. Vedaldi, A. Zisserman, 2013, arXiv:1312.6034, section 2: from the zero image, with L2; no rate is
    # named. The faintest noise is added: where all pixels are equal some networks have no slope at all
    "simonyan": {"noise": 0.5 / 255, "iterations": 200, "rate": 0.005, "normalize": "l2", "l2": 0.02},
    # CS231n, assignment 3: 100 steps of length 25, which is 25 x 0.225 / sqrt(3 x 224 x 224) = 0.0145 for each pixel; L2 of
    # 1e-3, which is 1e-3 / 0.225^2 = 0.02; jitter of 16 of 224 pixels; blur of 0.5 every 10 steps; noise of deviation 1,
    # which is 0.225
    "cs231n": {
        "noise": 0.225,
        "iterations": 100,
        "rate": 0.0145,
        "normalize": "l2",
        "l2": 0.02,
        "jitter": 16 / 224,
        "blur": 0.5,
        "blur_every": 10,
    },
    # J. Yosinski et al., 2015, arXiv:1506.06579, Table 1, and their code. Its rates, a fixed one of 100 or steps that are to
    # gain 2, fit the gradients of CaffeNet: here they say by how much a pixel changes. The second and the fourth forget: the
    # second is made of its last three steps or so, the fourth keeps a tenth of the pixels, now these, now those. There plain
    # steps wander, or leave the picture faint; Adam's, along the mean gradient of ten or so, do neither
    "yosinski 1": {"iterations": 500, "rate": 0.03, "normalize": "l2", "blur": 0.5, "blur_every": 4, "small_norm": 0.5},
    "yosinski 2": {"optimizer": "adam", "iterations": 200, "rate": 0.3, "decay": 0.3, "small_norm": 0.2},
    "yosinski 3": {"iterations": 1000, "rate": 0.01, "normalize": "l2", "decay": 1e-4, "blur": 1.0, "blur_every": 4},
    "yosinski 4": {"optimizer": "adam", "iterations": 300, "rate": 0.1, "blur": 0.5, "blur_every": 4}
    | {"small_contribution": 0.9},
}


@technique
def gradient_ascent(
    net: Network,
    *,
    target: int | str | None = None,
    of: Unit | Objective | tuple[Any, ...] | None = None,
    preset: Annotated[str, Knob(choices=tuple(PRESETS))] = "modern",
    start: Any = None,
    iterations: Annotated[int | None, Knob(1, 5000)] = None,
    rate: Annotated[float | None, Knob(1e-4, 200, log=True, live=True)] = None,
    l2: Annotated[float | None, Knob(0, 1, live=True)] = None,
    apart: Annotated[float | None, Knob(0, 100, live=True)] = None,
    jitter: Annotated[float | None, Knob(0, 0.5, live=True)] = None,
    rotate: Annotated[float | None, Knob(0, 45, live=True)] = None,
    scale: Annotated[float | None, Knob(0, 0.5, live=True)] = None,
    decay: Annotated[float | None, Knob(0, 0.9, live=True)] = None,
    blur: Annotated[float | None, Knob(0, 5, live=True)] = None,
    blur_every: Annotated[int | None, Knob(1, 100, live=True)] = None,
    small_norm: Annotated[float | None, Knob(0, 0.99, live=True)] = None,
    small_contribution: Annotated[float | None, Knob(0, 0.99, live=True)] = None,
    parameterization: Annotated[str | None, Knob(choices=("pixels", "fourier"))] = None,
    optimizer: Annotated[str | None, Knob(choices=("gradient", "adam", "lbfgs"))] = None,
    normalize: Annotated[str | None, Knob(choices=("none", "l1", "l2", "sign", "progress"))] = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """A picture that a class, a channel or anything else answers to as strongly as can be, step by step from noise.

    Parameters
    ----------
    net : Network, module or name
    target : int or str, optional
        A class; its score before softmax is raised.
    of : Unit, (layer, channel), (layer, channel, (row, column)) or Objective, optional
        Anything else: a channel is raised everywhere, a unit at its position.
    preset : str
        "modern" (Olah et al., 2017), "simonyan" (2013), "cs231n" (assignment 3), "yosinski 1" to "yosinski 4" (2015, Table
        1). What follows is as the preset has it unless it is given.
    start : picture, optional
        To begin with.
    iterations : int
    rate : float
        Of a step; see `Ascent.step`, also for `normalize`.
    l2 : float
        Weight of the sum of squares of all pixels, less the mean pixel.
    apart : float
        Of a class, the weight of its log probability, which lowers all others as long as one is nearly as probable. A score
        alone is sometimes raised by a picture that raises another one even more.
    jitter, rotate, scale : float
        Most displacement, as a share of the picture's side, degrees, and share by which the network is shown it larger or
        smaller, in each step anew.
    decay, blur, blur_every, small_norm, small_contribution
        For pixels, after a step: the share that all lose; the deviation in pixels of a Gaussian, every so many steps; the
        shares of pixels of least norm, and of least contribution, that become the mean pixel.
    parameterization, optimizer, normalize : str
        See `Ascent`.
    seed : int
        Of noise and jitter.

    Yields
    ------
    Frame
        After every step. ``image`` is the picture, ``scalars["objective"]`` and the values of its parts, by name ("logit",
        "activation", "l2"), are those before the step.

    Raises
    ------
    ValueError
        No such class, layer or channel; values are not finite; regularizing steps are asked for that only pixels have.

    References
    ----------
    See `PRESETS` in this file, with all constants and where they differ from the papers'. None of them has `apart`.
    """
    given = {name: value for name, value in locals().items() if name in {*USUAL, "iterations", "rate"} and value is not None}
    words = USUAL | PRESETS[preset] | given
    objective = wanted(net, target=target, of=of)
    c = objective.channel if isinstance(objective, Unit) and not objective.layer else None
    first = noise(net, words["noise"], seed) if start is None else net.single(start)
    ascent = Ascent(net, first, parameterization=words["parameterization"], optimizer=words["optimizer"], seed=seed)
    total, side = words["iterations"], min(net.transform.size)
    for step in range(1, total + 1):
        raised = objective - words["l2"] * squares() if words["l2"] else objective
        if c is not None and words["apart"]:
            raised = raised + words["apart"] * log_probability(c)
        values = ascent.step(
            raised,
            rate=words["rate"],
            normalize=words["normalize"],
            jitter=round(words["jitter"] * side),
            **{name: words[name] for name in ("rotate", "scale", "decay", "blur", "blur_every")},
            **{name: words[name] for name in ("small_norm", "small_contribution")},
        )
        told = {name: value[0] for name, value in values.items()}
        picture = ascent.picture()[0].permute(1, 2, 0)
        sent = (yield Frame(step, total, done=step == total, image=picture, scalars=told)) or {}
        words |= sent
        if {"l2", "apart"} & {*sent}:
            ascent.forget()
