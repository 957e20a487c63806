"""texture: more of the same, in any size, from what a sample's channels have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from ..core import (
    RATES,
    SMALLEST,
    Ascent,
    Frame,
    Knob,
    Network,
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

NOISE = 0.05
FLAT = 1e-8  # the largest product of features that is but rounding


@technique
def texture(
    net: Network,
    sample: Any,
    *,
    size: Annotated[int | tuple[int, int] | None, Knob(8, 4096)] = None,
    statistic: Annotated[str, Knob(choices=("gram", "covariance"))] = "gram",
    layers: Sequence[str] | None = None,
    weights: Sequence[float] | None = None,
    sample_size: Annotated[int | None, Knob(8, 4096)] = None,
    sizes: Annotated[int, Knob(1, 6, label="coarse to fine")] = 3,
    iterations: Annotated[int, Knob(1, 5000, label="steps per size")] = 100,
    tv_weight: Annotated[float, Knob(0, 1, live=True)] = 0.01,
    pooling: Annotated[str, Knob(choices=("average", "max"))] = "average",
    parameterization: Annotated[str | None, Knob(choices=("pixels", "fourier"))] = None,
    optimizer: Annotated[str, Knob(choices=("lbfgs", "adam"))] = "lbfgs",
    rate: Annotated[float | None, Knob(1e-3, 2, log=True, live=True)] = None,
    start: Any = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """A texture of any size that has the Gram matrices of a sample: what goes with what, but not where.

    Parameters
    ----------
    net : Network, module or name
    sample : picture
        Taken in whole; see `sample_size`.
    size : int or (height, width), optional
        Of the new picture in pixels; the network's own otherwise.
    statistic : str
        "gram", the mean outer product of the vectors at all positions, or "covariance", the same of what is left when the
        mean vector is taken off.
    layers, weights : sequences, optional
        The layers that are compared and the weights of their distances; see `palette` for those of published networks.
    sample_size : int, optional
        The longer side of the sample, in pixels, as the network is to see it. An array is otherwise used as it is, and a
        photo in the network's own size.
    sizes : int
        Begin at a size 2, 4, 8 times smaller and double it: large structures are found where they are small.
    iterations : int
        Steps at each of these sizes.
    tv_weight : float
        Weight of the total variation, per pixel.
    pooling : str
        "average" puts average pooling in the place of the network's max-pooling layers, if it has any.
    parameterization : str, optional
        "pixels" or "fourier", see `unwoven`, which chooses by the network.
    optimizer, rate
        L-BFGS with steps of 1, or Adam with steps of 0.02.
    start : picture, optional
        To begin with, in the full size and there only.
    seed : int
        Of the noise.

    Yields
    ------
    Frame
        After every step. ``image`` is the texture, in the full size also while it is made in a smaller one. Before the step,
        ``scalars["style"]`` was the weighted sum over the layers of the squared distance from the sample's matrix, over the
        squared norm of that, and ``["tv"]`` the total variation.

    Raises
    ------
    ValueError
        No such layers; the picture is too small for them.

    References
    ----------
    L. Gatys, A. Ecker, M. Bethge, "Texture synthesis using convolutional neural networks", 2015, arXiv:1505.07376. There the
    distances are not relative, and the weights of the network are scaled until each channel's mean is 1 instead.
    """
    net = net if pooling == "max" else net.with_average_pooling()
    layers, weights = weighed(layers, weights, palette(net) if layers is None else None)
    given = net.whole(sample, sample_size)
    full = (size, size) if isinstance(size, int) else tuple(size) if size else net.transform.size
    if len(full) != 2:
        raise ValueError(f"size={size!r} should be a number of pixels, or (height, width)")
    stages = pyramid(full, sizes if start is None else 1, 2, SMALLEST)
    words = {"tv_weight": tv_weight, "rate": rate}
    batch = None if start is None else net.whole(start)
    parameterization = parameterization or unwoven(net, optimizer)
    step, total = 0, len(stages) * iterations
    for here in stages:
        wanted = style_of(net, scaled(given, here[0] / full[0]), layers, statistic)
        if any(float(matrix.abs().max()) < FLAT for matrix in wanted):
            if statistic == "covariance":
                raise ValueError('the sample is the same everywhere: its covariances are zero; choose statistic="gram"')
            raise ValueError("a layer answers to nothing in the sample; choose another sample, or other layers")
        batch = noise(net, NOISE, seed, size=here) if batch is None else resized_batch(batch, here)
        ascent = Ascent(net, batch, parameterization=parameterization, optimizer=optimizer, seed=seed)
        alike = style(layers, wanted, weights, statistic)
        for _ in range(iterations):
            objective = -1.0 * alike
            if words["tv_weight"]:
                objective = objective - words["tv_weight"] / (here[0] * here[1]) * tv()
            values = ascent.step(objective, rate=words["rate"] or RATES[optimizer])
            step += 1
            batch = ascent.picture()
            told = {name: value[0] for name, value in values.items() if name != "objective"}
            picture = resized_batch(batch, full)[0].permute(1, 2, 0)
            sent = (yield Frame(step, total, done=step == total, image=picture, scalars=told)) or {}
            words |= sent
            if {*sent} - {"rate"}:
                ascent.forget()
