"""integrated_gradients: the difference of a class score from a baseline, attributed to the pixels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch

from ...core.attribution.baseline import BASELINES, make_baseline
from ...core.attribution.gradient import input_gradient
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
    "integrated gradients",
    "contribution of each pixel to the rise of {score} from the baseline ({baseline})",
    signed=True,
    streams=True,
    knobs=("steps", "baseline"),
    outlier_fraction=0.005,
)
@technique
def integrated_gradients(
    net: Network,
    image: ImageLike,
    *,
    target: int | str | None = None,
    unit: UnitLike | None = None,
    steps: Annotated[int, Knob(1, 1024)] = 64,
    baseline: Annotated[str | float | tuple[float, ...], Knob(0, 1, choices=BASELINES)] = "mean",
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """Gradient times difference, averaged along the straight path from a baseline to the image.

    The attributions add up to the difference of the score between the image and the baseline; every Frame has the error of
    this sum. The midpoints of the path are used in bit-reversed order, so that they cover it evenly at any time.

    Parameters
    ----------
    net : Network, module or name
    image : file, PIL image, array or tensor
    target : int or str, optional
        Class index or label; the most probable class by default.
    unit : Unit or (layer, channel[, (row, column)]), optional
        Unit to explain instead of a class; the position defaults to that of the largest activation.
    steps : int
        Number of points on the path.
    baseline : str, float or tuple of float
        Start of the path: "mean" (the mean pixel of the training set), "gray", "black", "white", "blur", "noise" or a color.
        The map depends on it: pixels of the baseline's color get zero.
    seed : int
        Seed of the noise.

    Yields
    ------
    Frame
        After every batch:

        - ``heat`` (H, W): attribution, signed, summed over the color channels
        - ``arrays["attribution"]`` (H, W, C): attribution
        - ``arrays["gradient"]`` (H, W, C): mean gradient along the path
        - ``arrays["baseline"]`` (H, W, C): baseline image
        - ``scalars["rise"]``: score of the image minus that of the baseline
        - ``scalars["completeness error"]``: sum of the attributions minus the rise

        A network that ends in softmax or sigmoid does not give its logits; for its classes there are no scalars.

    Raises
    ------
    ValueError
        The network has no such class or unit, or it does not depend on the image by a differentiable path.

    References
    ----------
    M. Sundararajan, A. Taly, Q. Yan, "Axiomatic attribution for deep networks", 2017, arXiv:1703.01365. Midpoint rule.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, integrated_gradients
    >>> image = demo.images(1, label="star")[0].image
    >>> frame = Run(integrated_gradients(Network.demo(), image, steps=16, baseline="black")).run()
    >>> frame.heat.shape, sorted(frame.scalars)
    ((64, 64), ['completeness error', 'rise'])
    """
    batch, explained = resolve_inputs(net, image, target=target, unit=unit)
    start = make_baseline(net, batch, baseline, seed)
    values, _ = input_gradient(net, torch.cat([start, batch]), explained)
    rise, has_rise = values[1] - values[0], bool(explained.layer) or net.output_activation == "none"
    total, step = torch.zeros_like(batch[0]), 0
    midpoints = torch.from_numpy((bit_reversed(steps) + 0.5) / steps).to(batch)
    for chunk in midpoints.split(auto_batch_size(net, batch, backward=True)):
        points = start + chunk.view(-1, 1, 1, 1) * (batch - start)
        _, gradients = input_gradient(net, points, explained)
        total, step = total + gradients.sum(0), step + len(chunk)
        gradient = total / step
        attribution = to_channels_last(gradient * (batch - start)[0])
        yield Frame(
            step,
            steps,
            done=step == steps,
            image=batch,
            heat=attribution.sum(2),
            scalars={"rise": rise, "completeness error": attribution.sum() - rise} if has_rise else {},
            arrays={
                "gradient": to_channels_last(gradient),
                "attribution": attribution,
                "baseline": to_channels_last(start),
            },
        )


def bit_reversed(count: int) -> np.ndarray:
    """0 to count - 1, ordered by their reversed binary digits: every leading part is spread evenly.

    >>> bit_reversed(6)
    array([0, 4, 2, 1, 5, 3])
    """
    bits = max(1, (count - 1).bit_length())
    numbers = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits)]
    return np.array([number for number in numbers if number < count])
