"""template_match: what a filter of the first layer answers to most is the filter itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch

from ..core import Ascent, Frame, Knob, Measured, Network, Seen, gray, noise, technique, trace

NORM = 0.3  # of a patch, from black to white: so small that no pixel leaves the valid range


@technique
def template_match(
    net: Network,
    *,
    layer: str | None = None,
    iterations: Annotated[int, Knob(1, 1000)] = 60,
    rate: Annotated[float, Knob(1e-3, 1, log=True, live=True)] = 0.02,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """For every filter of the first layer a patch, noise to begin with, changed to raise the filter's answer while its norm
    stays what it is: it becomes the filter.

    An answer is a dot product of patch and filter; of all patches of one norm it is largest for the one in the filter's
    direction. That is why one may look at filters as pictures of what they look for.

    Parameters
    ----------
    net : Network, module or name
    layer : str, optional
        A layer of filters on pixels; the first one that has filters, otherwise.
    iterations : int
    rate : float
        By how much a pixel changes in a step, root mean square, from black to white.
    seed : int
        Of the noise.

    Yields
    ------
    Frame
        After every step. ``arrays["patches"]`` (filters, height, width, C) are less the mean pixel, and ``["filters"]``, of
        that shape, what the filters are for pixels: their weights over the transform's standard deviation.
        ``arrays["cosine"]`` (filters,) is that of the angle between the two, 0 for a filter of zeros; ``scalars["cosine"]``
        the least of a filter that has any weights, ``["activation"]`` the mean answer before the step.

    Raises
    ------
    ValueError
        The layer does not look at pixels.

    References
    ----------
    F.-F. Li, J. Johnson, S. Yeung, CS231n lecture 12, 2017, on first layer filters.
    """
    found = net.layers[layer or net.with_filters()[0]]
    weights = net.weights(found.name)[0]
    count, channels, height, width = weights.shape
    whole = (height, width) == net.transform.size  # a fully connected layer has one unit for each filter
    axes = () if found.field is None else (found.field.rows.grid, found.field.cols.grid)
    if whole and not found.is_map:
        axes = (height, 1, 0), (width, 1, 0)
    elif channels != net.transform.channels or not all(axes) or found.receptive_field != (height, width):
        first = net.with_filters()[0]
        other = f"choose {first}" if found.name != first else "those of this network's first layer each see a part of them"
        raise ValueError(f"the filters of {found.name} do not lie on pixels; {other}")
    std = torch.tensor(net.transform.std).expand(channels)
    filters = torch.from_numpy(weights).float() / std.view(1, -1, 1, 1)
    # the first unit that sees nothing of the border, and a picture just large enough for it, if the network takes such
    units = [-(-max(0, -int(axis[2])) // int(axis[1])) for axis in axes]
    top, left = (int(axis[2]) + unit * int(axis[1]) for axis, unit in zip(axes, units, strict=True))
    inside = (..., slice(top, top + height), slice(left, left + width))
    size = (top + height, left + width)
    start = noise(net, 0.02, seed, count, size if _runs(net, found.name, size) else net.transform.size)
    field = torch.zeros_like(start)
    field[inside] = 1
    origin = net.transform.origin(start)
    ascent = Ascent(net, start * field + origin * (1 - field), optimizer="gradient", seed=seed)

    def answers(seen: Seen) -> torch.Tensor:
        maps = seen.maps(found.name)
        return maps[torch.arange(count), torch.arange(count), units[0], units[1]]

    objective, words = Measured("activation", frozenset([found.name]), answers), {"rate": rate}
    for step in range(1, iterations + 1):
        values = ascent.step(objective, rate=words["rate"], normalize="l2", norm=NORM)
        patches = (ascent.picture() - origin)[inside].float().cpu()
        cosine = torch.nn.functional.cosine_similarity(patches.flatten(1), filters.flatten(1), eps=1e-12)
        some = filters.flatten(1).any(1)
        arrays = {"patches": patches.permute(0, 2, 3, 1), "filters": filters.permute(0, 2, 3, 1), "cosine": cosine}
        told = {"activation": values["activation"].mean(), "cosine": cosine[some].min()}
        words |= (yield Frame(step, iterations, done=step == iterations, scalars=told, arrays=arrays)) or {}


def _runs(net: Network, layer: str, size: tuple[int, int]) -> bool:
    try:
        with torch.no_grad(), trace(net, [layer], stop=True):
            net(gray(net, size=size))
    except Exception:  # noqa: BLE001 (a module may fail in any way on a size that it was not made for)
        return False
    return True
