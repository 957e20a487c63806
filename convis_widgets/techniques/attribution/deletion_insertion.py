"""deletion_insertion: how well a map ranks the pixels by their effect on the class probability."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch

from ...core.attribution.baseline import BASELINES, make_baseline
from ...core.knob import Knob
from ...core.network.batch_size import auto_batch_size, halve_if_needed
from ...core.network.images import to_channels_last
from ...core.network.network import Network
from ...core.network.unit import resolve_unit
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.types import ImageLike


@technique
def deletion_insertion(
    net: Network,
    image: ImageLike,
    heat: Any,
    *,
    target: int | str | None = None,
    steps: Annotated[int, Knob(1, 1024)] = 32,
    baseline: Annotated[str | float | tuple[float, ...], Knob(0, 1, choices=BASELINES)] = "mean",
    insertion_baseline: Annotated[str | float | tuple[float, ...], Knob(0, 1, choices=BASELINES)] = "blur",
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """How the class probability drops as pixels are deleted, and rises as they are inserted, in the order of a map.

    With a good map, the deletion curve drops at once and the insertion curve rises at once: the area under the first is
    small, that under the second large. Both depend on the baselines, so compare maps, not networks.

    Parameters
    ----------
    net : Network, module or name
    image : file, PIL image, array or tensor
    heat : (H, W) array or tensor
        The map, of the size of the network's input. Ties are broken in row-major order; NaN comes last.
    target : int or str, optional
        Class index or label; the most probable class by default.
    steps : int
        Number of parts, of equal size up to rounding, that the pixels are divided into.
    baseline, insertion_baseline : str, float or tuple of float
        What replaces deleted pixels, and pixels that are not yet inserted: "mean" (the mean pixel of the training set),
        "gray", "black", "white", "blur", "noise" or a color in [0, 1].
    seed : int
        Seed of the noise.

    Yields
    ------
    Frame
        After every batch of points on the curves; a step is one point on both:

        - ``heat`` (H, W): the map
        - ``image`` (H, W, C): the image with pixels deleted, at the last of these points
        - ``arrays["inserted"]`` (H, W, C): the baseline with pixels inserted, at the same point
        - ``arrays["fraction"]`` (steps + 1,), in [0, 1]: fraction of the pixels that are deleted or inserted
        - ``arrays["deletion"]``, ``arrays["insertion"]`` (steps + 1,): probabilities, NaN where not computed; the values of
          a network that returns "values"
        - ``scalars["deletion area"]``, ``scalars["insertion area"]``: areas under the curves by the trapezoid rule, in
          [0, 1] for probabilities; last Frame only

    Raises
    ------
    TypeError, ValueError
        The map is not an array of numbers, or does not have the size of the image; a probability is not finite.

    References
    ----------
    V. Petsiuk, A. Das, K. Saenko, "RISE: randomized input sampling for explanation of black-box models", 2018,
    arXiv:1806.07421. The authors' code deletes to zero after normalization, which is our "mean", and inserts into an image
    that is blurred less, with a standard deviation of 5 pixels of 224.

    Examples
    --------
    >>> from convis_widgets import Network, Run, deletion_insertion, demo, saliency
    >>> net, image = Network.demo(), demo.images(1, label="star")[0].image
    >>> heat = Run(saliency(net, image)).run().heat
    >>> frame = Run(deletion_insertion(net, image, heat, steps=8)).run()
    >>> frame.arrays["fraction"].tolist()
    [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]
    """
    batch = net.single_batch(image)
    values = _check_map(heat, batch.shape[2:])
    unit = resolve_unit(net, target=target, batch=batch)
    deletion_image = make_baseline(net, batch, baseline, seed)
    insertion_image = make_baseline(net, batch, insertion_baseline, seed)
    order = np.argsort(-values.double().numpy(), axis=None, kind="stable")
    rank = torch.empty(values.numel(), dtype=torch.long, device=net.device)
    rank[torch.from_numpy(order).to(net.device)] = torch.arange(values.numel(), device=net.device)
    rank = rank.view(1, 1, *values.shape)
    counts = torch.linspace(0, values.numel(), steps + 1, dtype=torch.float64).round().long()
    fraction = counts.to(torch.float32) / values.numel()
    curves = torch.full((2, steps + 1), torch.nan, dtype=torch.float32)
    step, scalars = 0, {}
    for chunk in counts.split(max(1, auto_batch_size(net, batch) // 2)):
        selected = rank < chunk.to(net.device).view(-1, 1, 1, 1)
        deleted, inserted = torch.where(selected, deletion_image, batch), torch.where(selected, batch, insertion_image)
        with torch.no_grad():
            images = torch.cat([deleted, inserted])
            (p,) = halve_if_needed(lambda part: (net.predictions(part)[:, unit.channel],), images)
        unit.check_finite(net, p)
        curves[:, step : step + len(chunk)] = p.view(2, -1).cpu()
        step += len(chunk)
        if step == len(counts):
            areas = torch.trapezoid(curves, fraction).tolist()
            scalars = {"deletion area": areas[0], "insertion area": areas[1]}
        yield Frame(
            step,
            len(counts),
            done=step == len(counts),
            image=deleted[-1:],
            heat=values,
            scalars=scalars,
            arrays={
                "fraction": fraction,
                "deletion": curves[0],
                "insertion": curves[1],
                "inserted": to_channels_last(inserted[-1]),
            },
        )


def _check_map(heat: Any, shape: torch.Size) -> torch.Tensor:
    """A map as a tensor (H, W) on the CPU."""
    if not isinstance(heat, torch.Tensor) and np.asarray(heat).dtype.kind not in "fiub":
        raise TypeError(f"{type(heat).__name__} is not a map; give an array of numbers, such as the heat of a Frame")
    values = heat.detach().cpu() if isinstance(heat, torch.Tensor) else torch.from_numpy(np.array(heat))
    if values.shape != shape:
        actual, expected = ("x".join(map(str, size)) for size in (values.shape, shape))
        raise ValueError(f"the map is {actual} and the image {expected}; give a map with a value for every pixel")
    return values
