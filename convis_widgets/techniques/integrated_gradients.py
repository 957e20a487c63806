"""integrated_gradients: the score's rise from a picture without information, shared out among the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch

from ..core import FILLS, Frame, Knob, Network, asked, filled, input_gradient, passes, technique


@technique
def integrated_gradients(
    net: Network,
    image: Any,
    *,
    target: int | str | None = None,
    of: Any = None,
    steps: Annotated[int, Knob(1, 1024)] = 64,
    baseline: Annotated[str | float | tuple[float, ...], Knob(0, 1, choices=FILLS)] = "mean",
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """Gradient times difference, averaged along the straight path from a baseline to the picture.

    The attributions add up to the score's rise along the path; how far they fail to is given with every Frame. The
    path's midpoints are taken in bit-reversed order, so that they cover it evenly at any time.

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL picture, array or tensor
    target, of
        A class or any other unit, as of `saliency`.
    steps : int
        Points on the path.
    baseline : str, float or tuple of float
        Where the path begins: "mean" (the mean pixel of the training set), "gray", "black", "white", "blur", "noise" or
        a color. The map depends on it: what has the baseline's color gets nothing.
    seed : int
        Of the noise.

    Yields
    ------
    Frame
        After every batch. ``heat`` (H, W) is the attribution, signed, summed over the color channels;
        ``arrays["attribution"]`` (H, W, C), ``arrays["gradient"]`` the mean gradient (H, W, C),
        ``arrays["baseline"]`` (H, W, C). ``scalars["rise"]`` is the score of the picture less that of the baseline and
        ``scalars["completeness error"]`` the sum of the attributions less that; a network that ends in softmax or sigmoid
        does not tell its scores, and has neither.

    References
    ----------
    M. Sundararajan, A. Taly, Q. Yan, "Axiomatic attribution for deep networks", 2017, arXiv:1703.01365. Midpoint rule.
    """
    batch, unit = asked(net, image, target=target, of=of)
    start = filled(net, batch, baseline, seed)
    ends, _ = input_gradient(net, torch.cat([start, batch]), unit)
    rise, known = ends[1] - ends[0], bool(unit.layer) or net.final == "scores"
    picture = batch[0].permute(1, 2, 0)
    total, step = torch.zeros_like(batch[0]), 0
    at = torch.from_numpy((bit_reversed(steps) + 0.5) / steps).to(batch)
    size = passes(net, batch, backward=True)
    for some in at.split(size):
        along = start + some.view(-1, 1, 1, 1) * (batch - start)
        _, gradients = input_gradient(net, along, unit)
        total, step = total + gradients.sum(0), step + len(some)
        gradient = total / step
        attribution = (gradient * (batch - start)[0]).permute(1, 2, 0)
        yield Frame(
            step,
            steps,
            done=step == steps,
            image=picture,
            heat=attribution.sum(2),
            scalars={"rise": rise, "completeness error": attribution.sum() - rise} if known else {},
            arrays={
                "gradient": gradient.permute(1, 2, 0),
                "attribution": attribution,
                "baseline": start[0].permute(1, 2, 0),
            },
        )


def bit_reversed(count: int) -> np.ndarray:
    """0 to count - 1, in the order of their binary digits read backwards: any first few are spread evenly.

    >>> bit_reversed(6)
    array([0, 4, 2, 1, 5, 3])
    """
    bits = max(1, (count - 1).bit_length())
    numbers = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits)]
    return np.array([number for number in numbers if number < count])
