"""occlusion: which part of the picture the prediction hangs on, by hiding one part after another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import numpy as np
import torch

from ..core import Frame, Knob, Network, multiply_adds, select, technique

# Multiply-adds in a batch: about 0.2 s on two laptop cores; a GPU takes more to be busy.
_WORK = {"cpu": 4e9, "cuda": 2e11, "mps": 4e10}
_COARSEST = 8  # grid steps between the positions that are tried first


@technique
def occlusion(
    net: Network,
    image: Any,
    *,
    target: int | str | None = None,
    patch: Annotated[int | None, Knob(1, 512, label="patch size")] = None,
    stride: Annotated[int | None, Knob(1, 512)] = None,
    fill: Annotated[str | float | tuple[float, ...], Knob(0, 1, choices=("mean", "gray", "black", "white"))] = "mean",
) -> Iterator[Frame]:
    """How the class probability falls when a patch hides each part of the picture in turn.

    Positions are tried coarse to fine, so that a rough map is there at once and sharpens while one looks.

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL picture, array or tensor
    target : int or str, optional
        Class index or label; the most probable class otherwise.
    patch : int, optional
        Side of the square that hides, in pixels; a fifth of the picture otherwise.
    stride : int, optional
        Pixels between two positions; a sixth of the patch otherwise.
    fill : str or color
        What the patch shows: "mean" (the mean pixel of the training set), "gray", "black", "white" or one value per
        channel in [0, 1].

    Yields
    ------
    Frame
        ``heat`` (H, W) is the fall of the probability when the patch is centered on a pixel: positive where hiding
        hurts, NaN where nothing is known yet. ``arrays["probability"]`` is the grid of probabilities, NaN where not
        computed; ``arrays["rows"]`` and ``["cols"]`` are the top and left edges of the patches.
        ``scalars["probability"]`` is the probability without a patch.

    References
    ----------
    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", 2013, arXiv:1311.2901, section 4.2
    (there with a gray square). The last row and column of patches stand flush with the border.
    """
    batch = net.single(image)
    unit = select(net, target=target, batch=batch)
    height, width = batch.shape[2:]
    patch = min(patch or max(1, round(min(height, width) / 5)), height, width)
    stride = stride or max(1, round(patch / 6))
    color = _fill_color(net, fill)
    rows, cols = _edges(height, patch, stride), _edges(width, patch, stride)

    with torch.no_grad():
        before = float(net.probabilities(batch)[0, unit.channel])
    exact = np.full((len(rows), len(cols)), np.nan, np.float32)
    shown = exact.copy()  # with coarse answers standing in for their neighborhood
    picture = batch[0].permute(1, 2, 0)
    down, across = _between(rows, patch, height), _between(cols, patch, width).T
    total, step = exact.size, 0

    def frame() -> Frame:
        known = np.isfinite(shown)
        near = down @ known.astype(np.float32) @ across
        fall = down @ np.where(known, before - shown, 0) @ across
        return Frame(
            step,
            total,
            done=step == total,
            image=picture,
            heat=np.where(near > 0, fall / np.maximum(near, 1e-9), np.nan),
            scalars={"probability": before},
            arrays={"probability": exact, "rows": rows, "cols": cols},
        )

    yield frame()
    work = multiply_adds(net.graph) * (height * width) / (net.transform.size[0] * net.transform.size[1])
    size = max(1, min(256, int(_WORK.get(net.device.type, 4e9) / max(work, 1))))
    for reach, places in _coarse_to_fine(len(rows), len(cols)):
        for first in range(0, len(places), size):
            some = places[first : first + size]
            with torch.no_grad():
                hidden = batch.repeat(len(some), 1, 1, 1)
                for picture_hidden, (i, j) in zip(hidden, some, strict=True):
                    picture_hidden[:, rows[i] : rows[i] + patch, cols[j] : cols[j] + patch] = color
                p = net.probabilities(hidden)[:, unit.channel].cpu().numpy()
            for (i, j), value in zip(some, p, strict=True):
                exact[i, j] = value
                shown[i : i + reach, j : j + reach] = value
            step += len(some)
            yield frame()


def _fill_color(net: Network, fill: Any) -> torch.Tensor:
    transform = net.transform
    known = {"gray": 0.5, "black": 0.0, "white": 1.0}
    if isinstance(fill, str):
        # without a mean of its own the network's mean pixel is not known: mid-gray
        color = transform.mean if fill == "mean" and any(transform.mean) else known.get(fill, 0.5)
    else:
        color = fill
    if np.size(color) not in (1, transform.channels):
        raise ValueError(f"fill={fill!r} should be one value, or one for each of the {transform.channels} channels")
    values = np.broadcast_to(np.asarray(color, np.float32), (transform.channels,))
    return torch.tensor(values.copy(), device=net.device, dtype=net.dtype).view(-1, 1, 1)


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
