"""randomization_check: whether the map of an attribution method depends on what the network has learned."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ...core.attribution.attribution_map import attribution_map
from ...core.knob import Knob
from ...core.network.images import to_channels_last
from ...core.network.network import Network
from ...core.network.unit import resolve_inputs
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.types import ImageLike

MAX_DRAWS = 8  # if the network ends in a ReLU, about every second draw makes the class score zero for all images


@technique
def randomization_check(
    net: Network,
    image: ImageLike,
    *,
    target: int | str | None = None,
    method: str | Callable[..., Iterator[Frame]] = "saliency",
    stages: Annotated[int, Knob(1, 512)] = 8,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """How a method's map changes as the layers of the network are randomized, from the last one to the first.

    A map that does not change is independent of what was learned: it shows the image, not the network. Only a copy of the
    network is randomized. All stages explain the same class.

    Parameters
    ----------
    net : Network, module or name
    image : file, PIL image, array or tensor
    target : int or str, optional
        Class index or label; the most probable class of the original network by default.
    method : str or callable
        Attribution method: name of a technique, or a function called as ``method(net, image, target=class)`` that yields
        Frames, of which the last ``heat`` counts.
    stages : int
        Number of groups, of about equal size, that the layers with parameters are divided into; at most one per layer.
    seed : int
        Seed of the random parameters.

    Yields
    ------
    Frame
        One before any layer is randomized, and one after each stage:

        - ``heat`` (H, W): map of this stage
        - ``arrays["maps"]`` (n, H, W): maps so far
        - ``arrays["stages"]`` (n,), str: names of the layers randomized in each stage, "" for the first
        - ``arrays["rank correlation"]``, ``arrays["ssim"]`` (n,), in [-1, 1]: similarity of the magnitudes of each map to
          those of the first, NaN if one of the two is constant; NaN in a map counts as 0
        - ``scalars["rank correlation"]``, ``scalars["ssim"]``: the same for this stage

    Raises
    ------
    ValueError
        The network has no parameters, or `method` is not a technique or yields no map. Errors of the method are propagated.

    References
    ----------
    J. Adebayo, J. Gilmer, M. Muelly, I. Goodfellow, M. Hardt, B. Kim, "Sanity checks for saliency maps", 2018,
    arXiv:1810.03292: the cascading randomization. Layers are reset to PyTorch's default initialization, with their running
    statistics; other parameters are drawn from a normal distribution with their own mean and standard deviation. A draw with
    a constant map, as where the network ends in a ReLU that is never active, would flatter any method; up to seven more are
    made, of all layers randomized so far. SSIM is that of Z. Wang et al., 2004, with a uniform window of 7 pixels, of maps
    scaled to [0, 1].

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, randomization_check
    >>> image = demo.images(1, label="star")[0].image
    >>> frame = Run(randomization_check(Network.demo(), image, method="grad_cam", stages=3)).run()
    >>> frame.arrays["maps"].shape, frame.arrays["ssim"].shape
    ((4, 64, 64), (4,))
    """
    batch, unit = resolve_inputs(net, image, target=target)
    pixels = to_channels_last(batch)
    copy = net.copy()
    layers = _layers_from_output(copy)
    groups = [layers[part[0] : part[-1] + 1] for part in np.array_split(range(len(layers)), min(stages, len(layers)))]
    generator = torch.Generator(net.device).manual_seed(seed)
    maps: list[np.ndarray] = []
    correlations, similarities, names = [], [], []
    randomized: set[int] = set()  # ids of parameters
    for step, group in enumerate([[], *groups]):
        for draw in range(MAX_DRAWS if group else 1):
            drawn = set(randomized) if draw == 0 else set()
            for _, module in group if draw == 0 else itertools.chain(*groups[:step]):
                _randomize(module, generator, drawn)
            heat = attribution_map(method, copy, pixels.cpu().float().numpy().copy(), unit.channel)
            if np.ptp(_magnitudes(heat)) > 0:
                break
        randomized = drawn
        maps.append(heat)
        first, current = _magnitudes(maps[0]), _magnitudes(heat)
        comparable = np.ptp(first) > 0 and np.ptp(current) > 0
        correlations.append(rank_correlation(first, current) if comparable else np.nan)
        similarities.append(structural_similarity(first, current) if comparable else np.nan)
        names.append(", ".join(name for name, _ in group))
        yield Frame(
            step,
            len(groups),
            done=step == len(groups),
            image=batch,
            heat=heat,
            scalars={"rank correlation": correlations[-1], "ssim": similarities[-1]},
            arrays={"maps": maps, "stages": names, "rank correlation": correlations, "ssim": similarities},
        )


def _magnitudes(heat: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.abs(heat), posinf=0)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation; equal values share their mean rank; 0 if all are equal.

    >>> rank_correlation(np.array([1, 2, 3, 4]), np.array([1, 4, 9, 20]))
    1.0
    """
    a, b = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def structural_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two maps (H, W), each scaled to [0, 1]: the mean over all windows of 7 pixels inside the map."""
    x, y = (torch.from_numpy((heat - heat.min()) / (np.ptp(heat) or 1)).double() for heat in (a, b))
    side = min(7, *x.shape)
    moments = torch.stack([x, y, x * x, y * y, x * y])
    mean_x, mean_y, xx, yy, xy = nn.functional.avg_pool2d(moments[:, None], side, 1)[:, 0]
    unbiased = side**2 / max(side**2 - 1, 1)
    var_x, var_y, cov = (unbiased * moment for moment in (xx - mean_x**2, yy - mean_y**2, xy - mean_x * mean_y))
    c1, c2 = 0.01**2, 0.03**2  # (K1 L)^2 and (K2 L)^2 of Wang et al., for values up to 1
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((luminance * (2 * cov + c2) / (var_x + var_y + c2)).mean())


def _layers_from_output(net: Network) -> list[tuple[str, nn.Module]]:
    """Modules with parameters of their own and their names, ordered by the last operator that reads one, last first.

    Modules that the forward pass does not use, such as an auxiliary classifier for training, are left out.
    """
    last_use = {
        leaf.untyped_storage().data_ptr(): index
        for index, op in enumerate(net.graph.ops)
        for leaf in tree_leaves((op.args, op.kwargs))
        if isinstance(leaf, torch.Tensor)
    }
    layers = []
    for name, module in net.module.named_modules():
        uses = [last_use.get(p.untyped_storage().data_ptr(), -1) for p in module.parameters(recurse=False)]
        if max(uses, default=-1) >= 0:
            layers.append((max(uses), name or net.name, module))
    if not layers:
        raise ValueError(f"{net.name} has no parameters to randomize; choose a network with learned layers")
    return [(name, module) for _, name, module in sorted(layers, key=lambda layer: -layer[0])]


def _randomize(module: nn.Module, generator: torch.Generator, randomized: set[int]) -> None:
    """Set a module's own parameters to random values, except those in `randomized`, and add their ids to it."""
    parameters = list(module.parameters(recurse=False))
    reset = getattr(module, "reset_parameters", None)
    with torch.no_grad():
        originals = [parameter.clone() for parameter in parameters]
        if callable(reset):
            with _Seeded(generator):
                reset()
        for parameter, original in zip(parameters, originals, strict=True):
            if id(parameter) in randomized:
                parameter.copy_(original)
            elif torch.equal(parameter, original):  # not reset: a bare parameter, or one that a weight is computed from
                parameter.normal_(generator=generator).mul_(original.std(correction=0)).add_(original.mean())
    randomized.update(map(id, parameters))


class _Seeded(TorchDispatchMode):
    """Random numbers come from this generator, even in code that does not accept one.

    The global generator belongs to the user; `torch.random.fork_rng` would also reset what other threads draw meanwhile.
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(argument.name == "generator" for argument in func._schema.arguments):
            kwargs = {**(kwargs or {}), "generator": self.generator}
        elif "generator" in func.overloadpacket.overloads():  # such as torch.randn
            func, kwargs = func.overloadpacket.generator, {**(kwargs or {}), "generator": self.generator}
        return func(*args, **(kwargs or {}))
