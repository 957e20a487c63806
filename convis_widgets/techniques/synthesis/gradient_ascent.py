"""gradient_ascent: feature visualization, an image that maximizes a class, a channel or a unit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, TypeGuard

from ...core.knob import Knob
from ...core.network.network import Network
from ...core.network.unit import resolve_unit
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.synthesis import objectives
from ...core.synthesis.image_optimizer import ImageOptimizer, mean_image, noise
from ...core.synthesis.objectives import Objective, UnitObjective
from ...core.synthesis.presets import PRESETS, preset_settings
from ...core.types import ImageLike, ObjectiveLike

STEP_SETTINGS = (
    "lr", "normalize", "rotate", "scale", "decay", "blur", "blur_every", "clip_norm_fraction", "clip_contribution_fraction",
)  # fmt: skip
"""Settings that `ImageOptimizer.step` takes as they are."""


@technique(allow_tf32=True)
def gradient_ascent(
    net: Network,
    *,
    target: int | str | None = None,
    objective: ObjectiveLike | None = None,
    preset: Annotated[str, Knob(choices=tuple(PRESETS))] = "modern",
    init: Annotated[str | None, Knob(choices=("noise", "mean"))] = None,
    init_image: ImageLike | None = None,
    iterations: Annotated[int | None, Knob(1, 5000)] = None,
    lr: Annotated[float | None, Knob(1e-4, 200, log=True, live=True)] = None,
    l2: Annotated[float | None, Knob(0, 1, live=True)] = None,
    log_prob_weight: Annotated[float | None, Knob(0, 100, live=True)] = None,
    jitter: Annotated[float | None, Knob(0, 0.5, live=True)] = None,
    rotate: Annotated[float | None, Knob(0, 45, live=True)] = None,
    scale: Annotated[float | None, Knob(0, 0.5, live=True)] = None,
    decay: Annotated[float | None, Knob(0, 0.9, live=True)] = None,
    blur: Annotated[float | None, Knob(0, 5, live=True)] = None,
    blur_every: Annotated[int | None, Knob(1, 100, live=True)] = None,
    clip_norm_fraction: Annotated[float | None, Knob(0, 0.99, live=True)] = None,
    clip_contribution_fraction: Annotated[float | None, Knob(0, 0.99, live=True)] = None,
    parameterization: Annotated[str | None, Knob(choices=("pixels", "fourier"))] = None,
    optimizer: Annotated[str | None, Knob(choices=("gradient", "adam", "lbfgs"))] = None,
    normalize: Annotated[str | None, Knob(choices=("none", "l1", "l2", "sign", "progress"))] = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """An image that maximizes a class, a channel, a unit or any Objective, step by step from noise.

    While a unit is not active at all, its gradient is passed through the closed ReLU, so that the image can grow from noise;
    that of a channel is the gradient at the center of its map then, without random transforms.

    Parameters
    ----------
    net : Network, module or name
    target : int or str, optional
        A class, whose logit is maximized.
    objective : Unit, (layer, channel), (layer, channel, (row, column)), str or Objective, optional
        What to maximize instead: the mean activation of a channel, the activation of a unit at its position, the
        activations of a layer, or an Objective.
    preset : str
        "modern", "simonyan", "cs231n", or "yosinski 1" to "yosinski 4", see References. A setting below that is None
        has the value of the preset. Class images of all presets but "modern" are often recognized by no other network.
    init : str, optional
        Initial image: "noise" around the mean pixel, or the "mean" pixel everywhere.
    init_image : image, optional
        Another initial image.
    iterations : int, optional
        Number of steps.
    lr : float, optional
        Length of a step, see `ImageOptimizer.step`.
    l2 : float, optional
        Weight of a penalty: the sum of squared differences from the mean pixel. That of a preset is for classes; for other
        objectives the default is 0.
    log_prob_weight : float, optional
        For a class, the weight of its log probability, which is added to the logit and also suppresses competing classes.
    jitter : float, optional
        Largest random shift, as a fraction of the image's side.
    rotate, scale : float, optional
        Largest random rotation in degrees, and largest random relative change of size.
    decay : float, optional
        Fraction that is subtracted from the pixels after each step. This and the next four need pixels as parameterization.
    blur : float, optional
        Standard deviation in pixels of a Gaussian blur after every `blur_every` steps.
    blur_every : int, optional
        Number of steps from one blur to the next.
    clip_norm_fraction, clip_contribution_fraction : float, optional
        Fraction of the pixels, those of the smallest norm or the smallest contribution to the objective, that is set to the
        mean pixel after each step.
    parameterization, optimizer : str, optional
        See `ImageOptimizer`.
    normalize : str, optional
        Normalization of the gradient, see `ImageOptimizer.step`.
    seed : int
        Seed of the noise and of the random transforms.

    Yields
    ------
    Frame
        After every step:

        - ``image`` (H, W, C): the image
        - ``scalars["objective"]``: the weighted sum that is maximized, before the step
        - ``scalars["logit"]``, ``["activation"]``, ``["log probability"]``, ``["l2"]``, ...: its terms, without weights
        - ``scalars["responded"]``, for a channel or unit after the last step: 1 if it is active in the final image, that is,
          its activation is above 0 at its position or anywhere; otherwise 0

    Raises
    ------
    ValueError
        There is no such class, layer or channel; values are not finite; regularizers of pixels are combined with the Fourier
        parameterization.

    References
    ----------
    - "modern": C. Olah, A. Mordvintsev, L. Schubert, "Feature visualization", 2017,
      https://distill.pub/2017/feature-visualization.
    - "simonyan": K. Simonyan, A. Vedaldi, A. Zisserman, "Deep inside convolutional networks: visualising image
      classification models and saliency maps", 2013, arXiv:1312.6034, section 2.
    - "cs231n": F.-F. Li, J. Johnson, S. Yeung, CS231n, 2017, assignment 3. It jitters by 0 to 16 pixels, we by -16 to 16;
      its first blur is after the first step, ours after the tenth.
    - "yosinski 1" to "yosinski 4": J. Yosinski, J. Clune, A. Nguyen, T. Fuchs, H. Lipson, "Understanding neural networks
      through deep visualization", 2015, arXiv:1506.06579, Table 1. Learning rates are ours, and the second and the fourth
      use Adam.

    All constants are converted to pixels in [0, 1]. "modern" adds the log probability of the class, its paper does not.
    Gradients that pass through a closed ReLU are those of the code of C. Olah et al., https://github.com/tensorflow/lucid.

    Examples
    --------
    >>> from convis_widgets import Network, Run, gradient_ascent
    >>> net = Network.demo()
    >>> last = Run(gradient_ascent(net, target="star", iterations=40)).run()
    >>> net.predict(last.image, k=1)[0][0]
    'star'
    """
    main_term = objectives.as_objective(net, target=target, objective=objective)
    settings = preset_settings(
        preset,
        is_class=_is_class(main_term),
        init=init,
        iterations=iterations,
        lr=lr,
        l2=l2,
        log_prob_weight=log_prob_weight,
        jitter=jitter,
        rotate=rotate,
        scale=scale,
        decay=decay,
        blur=blur,
        blur_every=blur_every,
        clip_norm_fraction=clip_norm_fraction,
        clip_contribution_fraction=clip_contribution_fraction,
        parameterization=parameterization,
        optimizer=optimizer,
        normalize=normalize,
    )
    if init_image is not None:
        initial = net.single_batch(init_image)
    else:
        initial = mean_image(net) if settings["init"] == "mean" else noise(net, settings["noise"], seed)
    opt = ImageOptimizer(
        net, initial, parameterization=settings["parameterization"], optimizer=settings["optimizer"], seed=seed
    )
    unit = None  # what may fail to respond
    if target is None and not isinstance(objective, (str, Objective)):
        unit = resolve_unit(net, unit=objective)
    total, side = settings["iterations"], min(net.transform.size)
    for step in range(1, total + 1):
        values = opt.step(
            _with_penalties(net, main_term, settings["l2"], settings["log_prob_weight"]),
            jitter=round(settings["jitter"] * side),
            **{name: settings[name] for name in STEP_SETTINGS},
        )
        scalars = {name: value[0] for name, value in values.items()}
        if step == total and unit is not None and unit.layer:
            scalars["responded"] = unit.responds(net, opt.image())[0].float()
        frame = Frame(step, total, done=step == total, image=opt.image(), scalars=scalars)
        changes: dict[str, Any] = (yield frame) or {}
        settings |= changes
        if {"l2", "log_prob_weight"} & {*changes}:
            opt.reset_state()


def _is_class(objective: Objective) -> TypeGuard[UnitObjective]:
    """Whether an Objective is a class logit."""
    return isinstance(objective, UnitObjective) and not objective.unit.layer


def _with_penalties(net: Network, objective: Objective, l2: float, log_prob_weight: float) -> Objective:
    """Subtract the weighted L2 norm and, for a class with a probability, add its weighted log probability."""
    total = objective - l2 * objectives.l2() if l2 else objective
    if log_prob_weight and _is_class(objective) and net.output.has_probabilities:
        total = total + log_prob_weight * objectives.log_prob(objective.unit.channel)
    return total
