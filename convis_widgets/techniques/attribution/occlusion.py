"""occlusion: the drop of the class probability when a patch hides each part of the image in turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch

from ...core.attribution.baseline import BASELINES, make_baseline
from ...core.attribution.gradient import input_gradient
from ...core.attribution.incremental.patch_runner import PatchRunner
from ...core.attribution.method import attribution_method
from ...core.knob import Knob
from ...core.network.images import to_channels_last
from ...core.network.network import Network
from ...core.network.trace import get_activations, trace
from ...core.network.unit import Unit, resolve_inputs
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.types import ImageLike, UnitLike

NUM_CLASSES = 5  # most probable classes kept for each position


@attribution_method(
    "occlusion",
    "drop of {probability} = {value} when a patch hides this part",
    signed=True,
    streams=True,
    knobs=("patch_size", "stride", "baseline"),
    min_range=1e-3,  # smaller changes of the probability are not relevant
)
@technique
def occlusion(
    net: Network,
    image: ImageLike,
    *,
    target: int | str | None = None,
    unit: UnitLike | None = None,
    patch_size: Annotated[int | None, Knob(1, 512, label="patch size")] = None,
    stride: Annotated[int | None, Knob(1, 512)] = None,
    baseline: Annotated[str | float | tuple[float, ...], Knob(0, 1, choices=BASELINES)] = "mean",
    average: Annotated[bool, Knob()] = False,
    layer: str | None = None,
    channel: int | None = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """How much the class probability, or the value of a regression network, drops when a patch hides parts of the image.

    Positions are computed from coarse to fine, so that a rough map is there at once and is refined. Where the network
    allows it, only the part of each layer's output that the patch affects is computed, see `PatchRunner`. The
    result is exact.

    Parameters
    ----------
    net : Network, module or name
    image : file, PIL image, array or tensor
    target : int or str, optional
        Class index or label; the most probable class by default.
    unit : Unit or (layer, channel[, (row, column)]), optional
        Unit to explain instead of a class, by its activation instead of a probability; the position defaults to that of the
        largest activation.
    patch_size : int, optional
        Side of the square patch in pixels; a fifth of the shorter side by default.
    stride : int, optional
        Pixels between two positions; a sixth of the patch by default.
    baseline : str, float or tuple of float
        Content of the patch: "mean" (the mean pixel of the training set), "gray", "black", "white", "blur" (the image
        itself, blurred), "noise", or a color in [0, 1], one value or one per channel.
    average : bool
        Let ``heat`` be the mean drop over all patches that cover a pixel, instead of that of the patch centered on it.
    layer, channel : str and int, optional
        Layer whose activation map is also recorded, and its channel; by default the most active one on the unchanged
        image.
    seed : int
        Seed of the noise.

    Yields
    ------
    Frame
        One before the first batch of positions, and one after each batch:

        - ``heat`` (H, W): drop of the probability, positive where hiding lowers it, NaN where not computed
        - ``arrays["probability"]`` (n, m): probability at each position of the patch, NaN where not computed
        - ``arrays["rows"]`` (n,), ``arrays["cols"]`` (m,): top and left edges of the patches
        - ``arrays["top"]`` (n, m, k): the up to five most probable classes, -1 where not computed
        - ``arrays["top probability"]`` (n, m, k): their probabilities, NaN where not computed
        - ``arrays["baseline"]`` (H, W, C): image that the patches are cut from
        - ``scalars["probability"]``: probability without a patch
        - ``arrays["value"]``, ``scalars["value"]``: activations with `unit`, or the values of a network that returns
          "values", instead of the probabilities
        - ``arrays["activation"]`` (n, m): sum over the recorded activation map; with `layer`
        - ``scalars["activation"]``, ``scalars["channel"]``: that sum without a patch, and the channel; with `layer`
        - ``arrays["projection"]`` (H, W, C): deconvnet projection of the largest activation in the recorded map of the
          unchanged image; with `layer`, where the deconvnet is defined

    Raises
    ------
    ValueError
        The network has no such class, unit or layer; `channel` is given without `layer`; a value is not finite.

    References
    ----------
    M. Zeiler, R. Fergus, "Visualizing and understanding convolutional networks", 2013, arXiv:1311.2901, section 4.2 and
    Fig. 6 (there with a gray square). Our last row and column of patches are flush with the border.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, occlusion
    >>> image = demo.images(1, label="star")[0].image
    >>> frame = Run(occlusion(Network.demo(), image, patch_size=16, stride=8)).run()
    >>> frame.heat.shape, frame.arrays["probability"].shape
    ((64, 64), (7, 7))
    """
    batch, explained = resolve_inputs(net, image, target=target, unit=unit)
    height, width = batch.shape[2:]
    patch_size = min(patch_size or max(1, round(min(height, width) / 5)), height, width)
    stride = stride or max(1, round(patch_size / 6))
    baseline_image = make_baseline(net, batch, baseline, seed)
    rows, cols = _patch_edges(height, patch_size, stride), _patch_edges(width, patch_size, stride)

    if layer is None and channel is not None:
        raise ValueError(f"channel={channel} is given without layer=; give the layer of the channel, too")
    recorded = None if layer is None else _recorded_unit(net, batch, layer, channel)
    forward = _forward(net, explained, recorded)
    with torch.no_grad():
        unoccluded = forward(batch)[0].cpu()
    explained.check_finite(net, unoccluded[0])
    value, activation = unoccluded[:2].tolist()
    name = "probability" if net.output.has_probabilities and not explained.layer else "value"
    scalars: dict[str, Any] = {name: value}
    constant_arrays: dict[str, Any] = {"rows": rows, "cols": cols, "baseline": to_channels_last(baseline_image)}
    if recorded is not None:
        scalars |= {"activation": activation, "channel": recorded.channel}
        constant_arrays |= _projection(net, batch, recorded)

    grid, k = (len(rows), len(cols)), min(NUM_CLASSES, len(net.labels))
    values, activations = np.full(grid, np.nan, np.float32), np.full(grid, np.nan, np.float32)
    top, top_probability = np.full((*grid, k), -1, np.int64), np.full((*grid, k), np.nan, np.float32)
    estimates = values.copy()  # a computed value stands in for its neighborhood
    weights = _coverage_weights if average else _interpolation_weights
    row_weights, col_weights = weights(rows, patch_size, height), weights(cols, patch_size, width).T

    def frame(step: int) -> Frame:
        known = np.isfinite(estimates)
        weight = row_weights @ known.astype(np.float32) @ col_weights
        drop = row_weights @ np.where(known, value - estimates, 0) @ col_weights
        arrays = {name: values, "top": top, "top probability": top_probability, **constant_arrays}
        if recorded is not None:
            arrays["activation"] = activations
        return Frame(
            step,
            values.size,
            done=step == values.size,
            image=batch,
            heat=np.where(weight > 0, drop / np.maximum(weight, 1e-9), np.nan),
            scalars=scalars,
            arrays=arrays,
        )

    yield frame(step=0)
    step, key = 0, (explained, recorded)
    runner = PatchRunner(net, forward, batch, baseline_image, patch_size=patch_size, rows=rows, cols=cols, key=key)
    for positions, reach, results in runner.run():
        i, j = positions.rows, positions.cols
        values[i, j], activations[i, j], *_ = columns = results.cpu().numpy().T
        top_probability[i, j], top[i, j] = columns[2 : 2 + k].T, columns[2 + k :].T
        for a, b in zip(i, j, strict=True):
            estimates[a : a + reach, b : b + reach] = values[a, b]
        step += len(positions)
        yield frame(step)


def _forward(net: Network, explained: Unit, recorded: Unit | None) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function of N images: value of the unit, sum over the recorded map, k highest probabilities, their classes.

    All of them are in one tensor (N, 2 + 2 * k), so that a GPU is waited for once.
    """
    layers = [unit.layer for unit in (explained, recorded) if unit is not None and unit.layer]

    def forward(batch: torch.Tensor) -> torch.Tensor:
        with trace(net, layers) as acts:
            p = net.predictions(batch)
        values = explained.values(net.as_maps(explained.layer, acts[explained.layer]) if explained.layer else p)
        total = p.new_full((len(p),), torch.nan)
        if recorded is not None:
            total = net.as_maps(recorded.layer, acts[recorded.layer]).narrow(1, recorded.channel, 1).sum((1, 2, 3))
        columns = [values[:, None], total[:, None], *net.output.top(p, NUM_CLASSES)]
        return torch.cat([column.float() for column in columns], 1)

    return forward


def _recorded_unit(net: Network, batch: torch.Tensor, layer: str, channel: int | None) -> Unit:
    """The channel, or the one with the largest sum of activations."""
    name = net.layers[layer].name
    if channel is None:
        (activations,) = get_activations(net, batch, [name])
        channel = int(activations[0].sum((1, 2)).argmax())
    return Unit(name, channel).validate(net)


def _projection(net: Network, batch: torch.Tensor, recorded: Unit) -> dict[str, torch.Tensor]:
    try:
        _, gradient = input_gradient(net, batch, recorded.with_argmax_position(net, batch), "deconvnet")
    except ValueError:  # the deconvnet is not defined for this network
        return {}
    return {"projection": to_channels_last(gradient)}


def _patch_edges(length: int, patch_size: int, stride: int) -> np.ndarray:
    edges = list(range(0, length - patch_size + 1, stride))
    return np.array(edges if edges[-1] == length - patch_size else [*edges, length - patch_size])


def _interpolation_weights(edges: np.ndarray, patch_size: int, length: int) -> np.ndarray:
    """(length, positions): linear interpolation between the centers of the patches, constant beyond the outer ones."""
    if len(edges) == 1:
        return np.ones((length, 1), np.float32)
    centers, pixels = edges + (patch_size - 1) / 2, np.arange(length)
    return np.stack([np.interp(pixels, centers, row) for row in np.eye(len(edges))], 1).astype(np.float32)


def _coverage_weights(edges: np.ndarray, patch_size: int, length: int) -> np.ndarray:
    """(length, positions): 1 where a patch covers a pixel."""
    pixels = np.arange(length)[:, None]
    return ((edges <= pixels) & (pixels < edges + patch_size)).astype(np.float32)
