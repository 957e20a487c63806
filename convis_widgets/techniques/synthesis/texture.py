"""texture: texture synthesis from the Gram matrices of a sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from ...core.errors import name_in_errors
from ...core.knob import Knob
from ...core.network.images import resize_batch, scale_batch
from ...core.network.network import Network
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.synthesis import objectives
from ...core.synthesis.default_layers import default_style_layers, resolve_layer_weights
from ...core.synthesis.optimizers import DEFAULT_LR
from ...core.synthesis.pyramid import MIN_SIDE, coarse_to_fine, pyramid_sizes
from ...core.synthesis.style_loss import style_loss, style_statistics
from ...core.types import ImageLike

NOISE_STD = 0.05
MIN_COVARIANCE = 1e-8  # relative to the mean products of activations; smaller ones are rounding errors


@technique(allow_tf32=True)
def texture(
    net: Network,
    sample: ImageLike,
    *,
    size: Annotated[int | tuple[int, int] | None, Knob(8, 4096)] = None,
    statistic: Annotated[str, Knob(choices=("gram", "covariance"))] = "gram",
    layers: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    sample_size: Annotated[int | None, Knob(8, 4096)] = None,
    scales: Annotated[int, Knob(1, 6)] = 3,
    iterations: Annotated[int, Knob(1, 5000, label="steps per scale")] = 100,
    tv_weight: Annotated[float, Knob(0, 1, live=True)] = 0.01,
    pooling: Annotated[str, Knob(choices=("average", "max"))] = "average",
    parameterization: Annotated[str | None, Knob(choices=("pixels", "fourier"))] = None,
    optimizer: Annotated[str, Knob(choices=("lbfgs", "adam"))] = "lbfgs",
    lr: Annotated[float | None, Knob(1e-3, 2, log=True, live=True)] = None,
    init_image: ImageLike | None = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """A texture of any size with the Gram matrices of a sample: the same features in another arrangement.

    Parameters
    ----------
    net : Network, module or name
    sample : image
        It is not cropped; see `sample_size`.
    size : int or (height, width), optional
        Size of the texture in pixels; the network's input size by default.
    statistic : str
        "gram", the mean outer product of the activation vectors, or "covariance", the same after the mean vector is
        subtracted.
    layers : sequence of str, optional
    weights : sequence of float, optional
        Layers that are compared, and the weights of their distances; those of `default_style_layers` by default.
    sample_size : int, optional
        Longer side of the sample in pixels. By default, that of an array, or the network's input size for an image file.
    scales : int
        Number of sizes, from coarse to fine by factors of 2, since large structures are easier to find at a small size;
        those with a side of less than 24 pixels are omitted.
    iterations : int
        Steps per size.
    tv_weight : float
        Weight of the total variation per pixel.
    pooling : str
        "average" replaces the network's max pooling by average pooling; "max" does not.
    parameterization : str, optional
        "pixels" or "fourier"; that of `choose_parameterization` by default.
    optimizer : str
        "lbfgs" or "adam".
    lr : float, optional
        Learning rate; 1 for "lbfgs" and 0.02 for "adam" by default.
    init_image : image, optional
        Initial image, optimized in full size only; noise otherwise.
    seed : int
        Seed of the noise.

    Yields
    ------
    Frame
        After every step. Scalars are those before the step:

        - ``image`` (H, W, C): the texture so far, in full size
        - ``scalars["style"]``: style loss, see `style_loss`
        - ``scalars["tv"]``: total variation, if `tv_weight` is not 0

    Raises
    ------
    ValueError
        There is no such layer; the number of weights is not that of the layers; the sample is too small for the network, or
        all statistics of a layer are zero.

    References
    ----------
    L. Gatys, A. Ecker, M. Bethge, "Texture synthesis using convolutional neural networks", 2015, arXiv:1505.07376. Their
    distances are not relative; instead they rescale the network so that the mean activation of each channel is 1.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, texture
    >>> sample = demo.images(1, label="tree")[0].image
    >>> Run(texture(Network.demo(), sample, size=(48, 80), scales=1, iterations=3)).run().image.shape
    (48, 80, 3)
    """
    net = net.with_average_pooling() if pooling == "average" else net
    layers, weights = resolve_layer_weights(layers, weights, default_style_layers(net) if layers is None else None)
    with name_in_errors("the sample"):
        sample_batch = net.uncropped_batch(sample, sample_size)
    full = (size, size) if isinstance(size, int) else tuple(size) if size else net.transform.size
    if len(full) != 2:
        raise ValueError(f"size={size!r} should be a number of pixels, or (height, width)")
    initial = None
    if init_image is not None:
        initial, scales = net.uncropped_batch(init_image), 1
    sizes = pyramid_sizes(full, scales, 2, MIN_SIDE)
    knobs: dict[str, Any] = {"tv_weight": tv_weight, "lr": lr}
    step, total = 0, len(sizes) * iterations
    for (height, width), opt in coarse_to_fine(
        net, sizes, initial, noise_std=NOISE_STD, optimizer=optimizer, parameterization=parameterization, seed=seed
    ):
        with name_in_errors("the sample"):
            scaled = scale_batch(sample_batch, height / full[0])
            targets = style_statistics(net, scaled, layers, statistic)
            grams = targets if statistic == "gram" else style_statistics(net, scaled, layers)
        for target, gram in zip(targets, grams, strict=True):
            if not bool(gram.any()):
                raise ValueError("all activations of a layer are zero for the sample; choose another sample or other layers")
            if statistic == "covariance" and bool(target.abs().max() < MIN_COVARIANCE * gram.abs().max()):
                raise ValueError('the sample is uniform, so its covariances are zero; choose statistic="gram"')
        loss = style_loss(layers, targets, weights, statistic)
        for _ in range(iterations):
            objective = -1.0 * loss
            if knobs["tv_weight"]:
                objective = objective - knobs["tv_weight"] / (height * width) * objectives.total_variation()
            values = opt.step(objective, lr=knobs["lr"] or DEFAULT_LR[optimizer])
            step += 1
            result = resize_batch(opt.image(), full)
            scalars = {name: value[0] for name, value in values.items() if name != "objective"}
            changes: dict[str, Any] = (yield Frame(step, total, done=step == total, image=result, scalars=scalars)) or {}
            knobs |= changes
            if {*changes} - {"lr"}:
                opt.reset_state()
