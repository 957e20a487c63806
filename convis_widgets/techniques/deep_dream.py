"""deep_dream: a picture in which the network sees more of what it sees in it already."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch

from ..core import (
    SCORES,
    SMALLEST,
    Ascent,
    Frame,
    Knob,
    Network,
    Objective,
    Unit,
    alike,
    maps_of,
    palette,
    pyramid,
    resized_batch,
    technique,
    wanted,
)


@technique
def deep_dream(
    net: Network,
    image: Any,
    *,
    of: str | Unit | Objective | tuple[Any, ...] | None = None,
    target: int | str | None = None,
    guide: Any = None,
    size: Annotated[int | None, Knob(16, 4096)] = None,
    octaves: Annotated[int, Knob(1, 10)] = 4,
    octave_scale: Annotated[float, Knob(1.1, 2)] = 1.4,
    iterations: Annotated[int, Knob(1, 500, label="steps per octave")] = 10,
    rate: Annotated[float, Knob(1e-4, 0.1, log=True, live=True)] = 1.5 / 255,
    jitter: Annotated[float, Knob(0, 0.5, live=True)] = 32 / 224,
    start: Any = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """A picture changed so that a layer's activations grow, whatever they are: small structures first found in a small copy,
    carried over to larger ones.

    Parameters
    ----------
    net : Network, module or name
    image : picture
        Taken in whole.
    of : str, Unit, (layer, channel), or Objective, optional
        What is to grow: all that a layer puts out, by its name; one channel or unit; or anything else. A deep layer
        otherwise.
    target : int or str, optional
        Instead, a class. To a network that takes one size only the picture is shown in that.
    guide : picture, optional
        With a layer: what it puts out is to become like what it makes of this picture.
    size : int, optional
        The longer side of the new picture, in pixels. Without it an array stays as large as it is, and a photo gets the
        network's own size.
    octaves, octave_scale
        How many copies, each so many times smaller than the next; too small ones are left out.
    iterations : int
        Steps in each of them.
    rate : float
        By how much a pixel changes in a step, on average, from black to white.
    jitter : float
        Most displacement of what the network is shown, as a share of its own side.
    start : picture, optional
        What was made of `image` so far, to go on from.
    seed : int
        Of the jitter.

    Yields
    ------
    Frame
        After every step. ``image`` is the picture, in the full size: the given one and the detail so far.
        ``scalars["objective"]`` is what grows, in the present octave, before the step.

    Raises
    ------
    ValueError
        No such layer or class; both a guide and something else than a layer; the objective is not finite.

    References
    ----------
    A. Mordvintsev, C. Olah, M. Tyka, "Inceptionism: going deeper into neural networks", 2015, and their notebook, from which
    the numbers are: a step of 1.5 of 255 over the gradient's mean magnitude, jitter of 32 of 224 pixels, four octaves of
    1.4, 10 steps each, pixels clipped to the valid range after each step.
    """
    if of is None and target is None:
        of = palette(net).things
    guided = _guided(net, of if target is None else None, guide) if guide is not None else None
    objective = guided or wanted(net, target=target, of=of)
    base = net.whole(image, size)
    full = (base.shape[2], base.shape[3])
    begun = base if start is None else resized_batch(net.whole(start, max(full)), full)
    made, detail, seen = begun - base, torch.zeros_like(base), torch.zeros_like(base)
    words = {"rate": rate, "jitter": jitter}
    stages = pyramid(full, octaves, octave_scale, SMALLEST)
    step, total = 0, len(stages) * iterations
    for here in stages:
        small, before, seen = resized_batch(base, here), resized_batch(seen, here), resized_batch(made, here)
        detail = resized_batch(detail, here) + seen - before  # of what was made so far, what shows in this size only
        finer = made - resized_batch(seen, full)
        ascent = Ascent(net, (small + detail).clamp(0, 1), optimizer="gradient", seed=seed + step)
        seen_at = net.transform.size if SCORES in objective.layers and not net.accepts(here) else None
        for _ in range(iterations):
            pixels = round(words["jitter"] * min(net.transform.size))
            values = ascent.step(objective, rate=words["rate"], normalize="l1", jitter=pixels, seen_at=seen_at)
            step += 1
            detail = ascent.picture() - small
            picture = (base + resized_batch(detail, full) + finer).clamp(0, 1)[0].permute(1, 2, 0)
            told = {"objective": values["objective"][0]}
            words |= (yield Frame(step, total, done=step == total, image=picture, scalars=told)) or {}


def _guided(net: Network, of: Any, guide: Any) -> Objective:
    if not isinstance(of, str):
        raise ValueError("a guide goes with a layer; give its name, as in of='conv4'")
    name = net.layers[of].name
    return alike(name, *maps_of(net, net.whole(guide), [name])).checked(net)
