"""occlusion: which part of the picture the prediction hangs on, by hiding one part after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch

from ..core import FILLS, Frame, Knob, Network, Patches, Unit, asked, filled, input_gradient, passes, technique, trace

TOP = 5  # classes kept for each position
_COARSEST = 8  # grid steps between the positions that are tried first
_FIRST = 16  # positions in a batch, at least: fewer make convolutions slow
_WORK = {"cpu": 4.5e10, "cuda": 1e12, "mps": 2e11}  # multiply-adds in a batch of positions: some 0.4 s
_BYTES = 1 << 29  # in the largest tensor of a batch


@technique
def occlusion(
    net: Network,
    image: Any,
    *,
    target: int | str | None = None,
    of: Any = None,
    patch: Annotated[int | None, Knob(1, 512, label="patch size")] = None,
    stride: Annotated[int | None, Knob(1, 512)] = None,
    fill: Annotated[str | float | tuple[float, ...], Knob(0, 1, choices=FILLS)] = "mean",
    average: Annotated[bool, Knob()] = False,
    layer: str | None = None,
    channel: int | None = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """How the class probability falls when a patch hides each part of the picture in turn.

    Positions are tried coarse to fine, so that a rough map is there at once and sharpens while one looks. The result is
    exact, and yet for a convnet only what a patch can change is computed (`core.incremental`).

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL picture, array or tensor
    target : int or str, optional
        Class index or label; the most probable class otherwise.
    of : Unit or (layer, channel[, (row, column)]), optional
        Any other unit, instead of a class; its value then stands for the probability.
    patch : int, optional
        Side of the square that hides, in pixels; a fifth of the picture otherwise.
    stride : int, optional
        Pixels between two positions; a sixth of the patch otherwise.
    fill : str, float or tuple of float
        What the patch shows: "mean" (the mean pixel of the training set), "gray", "black", "white", "blur" (the picture
        itself, blurred), "noise", or a color: one value, or one per channel, in [0, 1].
    average : bool
        Let `heat` be, at each pixel, the mean over all patches that cover it, instead of the value of the patch that is
        centered there.
    layer, channel : str and int, optional
        Also watch a map of this layer; without a channel the one that is strongest in the whole picture.
    seed : int
        Of the noise.

    Yields
    ------
    Frame
        ``heat`` (H, W) is the fall of the probability: positive where hiding hurts, NaN where nothing is known yet.
        ``arrays["probability"]`` (n, m) is the grid of probabilities, NaN where not computed; ``arrays["rows"]`` (n,)
        and ``["cols"]`` (m,) are the top and left edges of the patches. ``arrays["top"]`` (n, m, k) are the most probable
        classes at each position, at most five, -1 where not computed, and ``arrays["top probability"]`` (n, m, k) their
        probabilities; ``arrays["hiding"]`` (H, W, C) is the picture that patches are cut from. ``scalars["probability"]``
        is the probability without a patch. With `of` the unit's values are ``arrays["value"]`` and ``scalars["value"]``
        instead.
        With `layer` also ``arrays["activation"]`` (n, m), the sum over the watched map, ``scalars["activation"]``
        without a patch, ``scalars["channel"]``, and ``arrays["projection"]`` (H, W, C), the deconvnet projection of the
        map's strongest unit in the whole picture, where the network has one.

    References
    ----------
    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", 2013, arXiv:1311.2901, section 4.2 and
    Fig. 6 (there with a gray square). The last row and column of patches stand flush with the border.
    """
    batch, unit = asked(net, image, target=target, of=of)
    height, width = batch.shape[2:]
    patch = min(patch or max(1, round(min(height, width) / 5)), height, width)
    stride = stride or max(1, round(patch / 6))
    hiding = filled(net, batch, fill, seed)
    rows, cols = _edges(height, patch, stride), _edges(width, patch, stride)

    if layer is None and channel is not None:
        raise ValueError(f"channel={channel} is that of a layer; give layer=, too")
    watched = None if layer is None else _watched(net, batch, layer, channel)
    forward = _forward(net, unit, watched)
    with torch.no_grad():
        values, activations, *_ = forward(batch)
    unit.refuse_unless_finite(net, values)
    before, activation = values.item(), activations.item()
    name = "value" if unit.layer else "probability"
    scalars, extras = {name: before}, {"hiding": hiding[0].permute(1, 2, 0)}
    if watched is not None:
        scalars |= {"activation": activation, "channel": watched.channel}
        extras |= _projection(net, batch, watched)

    grid, k = (len(rows), len(cols)), min(TOP, len(net.labels))
    values, activations = np.full(grid, np.nan, np.float32), np.full(grid, np.nan, np.float32)
    top, top_probability = np.full((*grid, k), -1, np.int64), np.full((*grid, k), np.nan, np.float32)
    shown = values.copy()  # with coarse answers standing in for their neighborhood
    picture = batch[0].permute(1, 2, 0)
    spread = _covering if average else _between
    down, across = spread(rows, patch, height), spread(cols, patch, width).T
    total, step = values.size, 0

    def frame() -> Frame:
        known = np.isfinite(shown)
        near = down @ known.astype(np.float32) @ across
        fall = down @ np.where(known, before - shown, 0) @ across
        arrays = {name: values, "top": top, "top probability": top_probability, "rows": rows, "cols": cols, **extras}
        if watched is not None:
            arrays["activation"] = activations
        return Frame(
            step,
            total,
            done=step == total,
            image=picture,
            heat=np.where(near > 0, fall / np.maximum(near, 1e-9), np.nan),
            scalars=scalars,
            arrays=arrays,
        )

    yield frame()
    hide = _Hider(net, batch, hiding, patch, forward)
    for reach, places in _coarse_to_fine(len(rows), len(cols)):
        while places:
            some, places = places[: hide.size], places[hide.size :]
            i, j = np.array(some).T
            found = (value.cpu().numpy() for value in hide(rows[i], cols[j]))
            values[i, j], activations[i, j], top_probability[i, j], top[i, j] = found
            for a, b in some:
                shown[a : a + reach, b : b + reach] = values[a, b]
            step += len(some)
            yield frame()


class _Hider:
    """Runs `forward` on the picture with patches laid in; incrementally, or in plain batches where that does not work."""

    def __init__(self, net: Network, batch: torch.Tensor, hiding: torch.Tensor, patch: int, forward: Any) -> None:
        self.net, self.batch, self.hiding, self.patch, self.forward = net, batch, hiding, patch, forward
        self.patches: Patches | None = Patches(forward, batch)
        self.size = _FIRST

    def __call__(self, rows: np.ndarray, cols: np.ndarray) -> tuple[torch.Tensor, ...]:
        side = self.patch
        boxes = torch.cat([self.hiding[:, :, r : r + side, c : c + side] for r, c in zip(rows, cols, strict=True)])
        if self.patches is not None:
            try:
                values = self.patches.run(boxes, rows, cols)
            except (RuntimeError, TypeError, NotImplementedError):
                # code that looks into the memory of its tensors, or a compiled part
                self.patches, self.size = None, passes(self.net, self.batch)
            else:
                work = _WORK.get(self.net.device.type, 4.5e10) / max(self.patches.work, 1)
                memory = _BYTES / (4 * max(self.patches.largest, 1))
                self.size = int(min(max(work, _FIRST), memory, 256)) or 1
                return values
        parts = []
        with torch.no_grad():
            for first in range(0, len(rows), self.size):
                hidden = self.batch.repeat(len(rows[first : first + self.size]), 1, 1, 1)
                for k, picture in enumerate(hidden, first):
                    picture[:, rows[k] : rows[k] + side, cols[k] : cols[k] + side] = boxes[k]
                parts.append(self.forward(hidden))
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _forward(net: Network, unit: Unit, watched: Unit | None) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """For a batch the unit's value, the sum over the watched map, and the highest probabilities with their classes."""
    layers = [of.layer for of in (unit, watched) if of is not None and of.layer]

    def forward(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with trace(net, layers) as acts:
            p = net.probabilities(batch)
        values = unit.values(net.as_maps(unit.layer, acts[unit.layer]) if unit.layer else p)
        total = p.new_full((len(p),), torch.nan)
        if watched is not None:
            total = net.as_maps(watched.layer, acts[watched.layer]).narrow(1, watched.channel, 1).sum((1, 2, 3))
        return values, total, *p.topk(min(TOP, p.shape[1]), dim=1)

    return forward


def _watched(net: Network, batch: torch.Tensor, layer: str, channel: int | None) -> Unit:
    name = net.layers[layer].name
    if channel is None:
        with torch.no_grad(), trace(net, [name], stop=True) as acts:
            net(batch)
        channel = int(net.as_maps(name, acts[name])[0].sum((1, 2)).argmax())
    return Unit(name, channel).checked(net)


def _projection(net: Network, batch: torch.Tensor, watched: Unit) -> dict[str, torch.Tensor]:
    try:
        _, gradient = input_gradient(net, batch, watched.strongest(net, batch), "deconvnet")
    except ValueError:  # no deconvnet of this network
        return {}
    return {"projection": gradient[0].permute(1, 2, 0)}


def _edges(length: int, patch: int, stride: int) -> np.ndarray:
    edges = list(range(0, length - patch + 1, stride))
    return np.array(edges if edges[-1] == length - patch else [*edges, length - patch])


def _coarse_to_fine(n: int, m: int) -> Iterator[tuple[int, list[tuple[int, int]]]]:
    """(reach, grid positions) per level; a position stands in for `reach` by `reach` cells until they are known."""
    done: set[tuple[int, int]] = set()
    reach = _COARSEST
    while reach >= 1:
        places = [(i, j) for i in range(0, n, reach) for j in range(0, m, reach) if (i, j) not in done]
        done.update(places)
        yield reach, places
        reach //= 2


def _between(edges: np.ndarray, patch: int, length: int) -> np.ndarray:
    """(length, positions) weights that interpolate linearly between patch centers, constant beyond the outer ones."""
    centers = edges + (patch - 1) / 2
    at = np.arange(length)
    weights = (
        np.stack([np.interp(at, centers, row) for row in np.eye(len(edges))], 1) if len(edges) > 1 else np.ones((length, 1))
    )
    return weights.astype(np.float32)


def _covering(edges: np.ndarray, patch: int, length: int) -> np.ndarray:
    """(length, positions): 1 where a patch covers a pixel."""
    at = np.arange(length)[:, None]
    return ((edges <= at) & (at < edges + patch)).astype(np.float32)
