"""smooth_grad: the mean gradient over noisy copies of an image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch

from ...core.attribution.gradient import REDUCTIONS, input_gradient, reduce_channels
from ...core.attribution.method import attribution_method
from ...core.knob import Knob
from ...core.network.batch_size import auto_batch_size
from ...core.network.images import to_channels_last
from ...core.network.network import Network
from ...core.network.unit import resolve_inputs
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.types import ImageLike, UnitLike


@attribution_method(
    "smooth grad",
    "|mean gradient| of {score} over noisy copies of the image",
    streams=True,
    knobs=("samples", "noise_level"),
    outlier_fraction=0.005,
)
@technique
def smooth_grad(
    net: Network,
    image: ImageLike,
    *,
    target: int | str | None = None,
    unit: UnitLike | None = None,
    samples: Annotated[int, Knob(1, 512)] = 32,
    noise_level: Annotated[float, Knob(0, 1)] = 0.15,
    reduction: Annotated[str, Knob(choices=REDUCTIONS)] = "magnitude",
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """The mean gradient over noisy copies of the image; the map becomes sharper as samples are added.

    Parameters
    ----------
    net : Network, module or name
    image : file, PIL image, array or tensor
    target : int or str, optional
        Class index or label; the most probable class by default.
    unit : Unit or (layer, channel[, (row, column)]), optional
        Unit to explain instead of a class; the position defaults to that of the largest activation.
    samples : int
        Number of noisy copies.
    noise_level : float
        Standard deviation of the noise, as a fraction of the range of the pixels.
    reduction : str
        Reduction of the color channels for ``heat``: "magnitude", "signed" or "times input", see `saliency`.
    seed : int
        Seed of the noise.

    Yields
    ------
    Frame
        After every batch:

        - ``heat`` (H, W): map of the mean gradient so far
        - ``arrays["gradient"]`` (H, W, C): mean gradient so far, with respect to the image in [0, 1], signed

    Raises
    ------
    ValueError
        The network has no such class or unit, or it does not depend on the image by a differentiable path.

    References
    ----------
    D. Smilkov, N. Thorat, B. Kim, F. Viégas, M. Wattenberg, "SmoothGrad: removing noise by adding noise", 2017,
    arXiv:1706.03825.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, smooth_grad
    >>> image = demo.images(1, label="star")[0].image
    >>> frame = Run(smooth_grad(Network.demo(), image, samples=8)).run()
    >>> frame.step, frame.heat.shape
    (8, (64, 64))
    """
    batch, explained = resolve_inputs(net, image, target=target, unit=unit)
    generator = torch.Generator().manual_seed(seed)
    deviation = noise_level * float(batch.max() - batch.min())
    pixels, total, step = to_channels_last(batch), torch.zeros_like(batch[0]), 0
    batch_size = auto_batch_size(net, batch, backward=True)
    while step < samples:
        count = min(batch_size, samples - step)
        noise = torch.randn((count, *batch.shape[1:]), generator=generator, dtype=torch.float32).to(batch)
        _, gradients = input_gradient(net, batch + deviation * noise, explained)
        total, step = total + gradients.sum(0), step + count
        gradient = to_channels_last(total / step)
        yield Frame(
            step,
            samples,
            done=step == samples,
            image=batch,
            heat=reduce_channels(gradient, pixels, reduction),
            arrays={"gradient": gradient},
        )
