"""deletion_insertion: does a map point at what the network looks at?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch

from ..core import FILLS, Frame, Knob, Network, filled, passes, select, technique


@technique
def deletion_insertion(
    net: Network,
    image: Any,
    heat: Any,
    *,
    target: int | str | None = None,
    steps: Annotated[int, Knob(1, 1024)] = 32,
    fill: Annotated[str | float | tuple[float, ...], Knob(0, 1, choices=FILLS)] = "mean",
    insertion_fill: Annotated[str | float | tuple[float, ...], Knob(0, 1, choices=FILLS)] = "blur",
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """How the class probability falls as the hottest pixels are taken away first, and rises as they are put in first.

    A good map makes the first curve fall at once and the second one rise at once: a small area under deletion, a large
    one under insertion. Both depend on the fill, so compare maps, not networks.

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL picture, array or tensor
    heat : (H, W) array or tensor
        The map in question, of the size of the picture that the network sees. Equally hot pixels go row by row; NaN
        is coldest of all.
    target : int or str, optional
        Class index or label; the most probable class otherwise.
    steps : int
        Into how many parts, equal but for rounding, the pixels are divided.
    fill, insertion_fill : str, float or tuple of float
        What stands where pixels are taken away, and where they are not yet put in: "mean", "gray", "black", "white",
        "blur", "noise" or a color, see `occlusion`.
    seed : int
        Of the noise.

    Yields
    ------
    Frame
        After every batch; a step is one point on both curves. ``arrays["share"]`` (steps + 1,) is the share of the
        pixels that were taken away or put in, 0 to 1; ``arrays["deletion"]`` and ``["insertion"]`` (steps + 1,) the
        probabilities, NaN where not computed. ``image`` is the picture with pixels taken away at the last of these
        points, ``arrays["inserted"]`` (H, W, C) the one with pixels put in; ``heat`` the map that was given.
        ``scalars["deletion area"]`` and ``["insertion area"]``, under the curves by the trapezoid rule, 0 to 1, come with
        the last Frame only: half a curve has no area to compare.

    Raises
    ------
    ValueError
        The map has not the size of the picture, or a probability is not finite.

    References
    ----------
    V. Petsiuk, A. Das, K. Saenko, "RISE: randomized input sampling for explanation of black-box models", 2018,
    arXiv:1806.07421. The authors' code deletes to zero after normalization, which is our "mean", and inserts into a
    picture that is blurred less, by 5 pixels of 224.
    """
    batch = net.single(image)
    if not isinstance(heat, torch.Tensor) and np.asarray(heat).dtype.kind not in "fiub":
        raise TypeError(f"{type(heat).__name__} is no map; give an array of numbers, such as a Frame's heat")
    heat = heat.detach().cpu() if isinstance(heat, torch.Tensor) else torch.from_numpy(np.array(heat))
    if heat.shape != batch.shape[2:]:
        given, wanted = ("x".join(map(str, shape)) for shape in (heat.shape, batch.shape[2:]))
        raise ValueError(f"the map is {given} and the picture {wanted}; give a map with a value for every pixel")
    unit = select(net, target=target, batch=batch)
    empty, blank = filled(net, batch, fill, seed), filled(net, batch, insertion_fill, seed)
    order = np.argsort(-heat.double().numpy(), axis=None, kind="stable")
    place = torch.empty(heat.numel(), dtype=torch.long, device=net.device)
    place[torch.from_numpy(order).to(net.device)] = torch.arange(heat.numel(), device=net.device)
    place = place.view(1, 1, *heat.shape)
    counts = torch.linspace(0, heat.numel(), steps + 1, dtype=torch.float64).round().long()
    share = counts / heat.numel()
    curves = torch.full((2, steps + 1), torch.nan)
    step, scalars = 0, {}
    for some in counts.split(max(1, passes(net, batch) // 2)):
        hot = place < some.to(net.device).view(-1, 1, 1, 1)
        deleted, inserted = torch.where(hot, empty, batch), torch.where(hot, batch, blank)
        with torch.no_grad():
            p = net.probabilities(torch.cat([deleted, inserted]))[:, unit.channel]
        unit.refuse_unless_finite(net, p)
        curves[:, step : step + len(some)] = p.view(2, -1).cpu()
        step += len(some)
        if step == len(counts):
            areas = torch.trapezoid(curves, share).tolist()
            scalars = {"deletion area": areas[0], "insertion area": areas[1]}
        yield Frame(
            step,
            len(counts),
            done=step == len(counts),
            image=deleted[-1].permute(1, 2, 0),
            heat=heat,
            scalars=scalars,
            arrays={
                "share": share,
                "deletion": curves[0],
                "insertion": curves[1],
                "inserted": inserted[-1].permute(1, 2, 0),
            },
        )
