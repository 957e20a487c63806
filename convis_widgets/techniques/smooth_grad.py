"""smooth_grad: the gradient, averaged over noisy copies of the picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch

from ..core import SHOWN, Frame, Knob, Network, asked, heat_of, input_gradient, passes, technique


@technique
def smooth_grad(
    net: Network,
    image: Any,
    *,
    target: int | str | None = None,
    of: Any = None,
    samples: Annotated[int, Knob(1, 512)] = 32,
    noise: Annotated[float, Knob(0, 1)] = 0.15,
    show: Annotated[str, Knob(choices=SHOWN)] = "magnitude",
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """The mean gradient over copies of the picture with noise added; sharpens while one looks.

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL picture, array or tensor
    target, of
        A class or any other unit, as of `saliency`.
    samples : int
        How many noisy copies.
    noise : float
        Standard deviation of the noise, as a share of the picture's range of values.
    show : str
        What `heat` is: "magnitude", "signed" or "times input", see `saliency`.
    seed : int
        Of the noise.

    Yields
    ------
    Frame
        After every batch: ``heat`` and ``arrays["gradient"]`` (H, W, C) of the mean so far, as of `saliency`.

    References
    ----------
    D. Smilkov, N. Thorat, B. Kim, F. Viégas, M. Wattenberg, "SmoothGrad: removing noise by adding noise", 2017,
    arXiv:1706.03825.
    """
    batch, unit = asked(net, image, target=target, of=of)
    generator = torch.Generator().manual_seed(seed)
    deviation = noise * float(batch.max() - batch.min())
    picture, total, step = batch[0].permute(1, 2, 0), torch.zeros_like(batch[0]), 0
    size = passes(net, batch, backward=True)
    while step < samples:
        count = min(size, samples - step)
        random = torch.randn((count, *batch.shape[1:]), generator=generator).to(batch)
        _, gradients = input_gradient(net, batch + deviation * random, unit)
        total, step = total + gradients.sum(0), step + count
        gradient = (total / step).permute(1, 2, 0)
        yield Frame(
            step,
            samples,
            done=step == samples,
            image=picture,
            heat=heat_of(gradient, picture, show),
            arrays={"gradient": gradient},
        )
