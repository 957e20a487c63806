"""randomization_check: does a method's map hang on what the network has learned?"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..core import Frame, Knob, Network, asked, heat_by, technique

DRAWS = 8  # where scores end in a ReLU about every second draw leaves the class without any


@technique
def randomization_check(
    net: Network,
    image: Any,
    *,
    target: int | str | None = None,
    method: str | Callable[..., Iterator[Frame]] = "saliency",
    stages: Annotated[int, Knob(1, 512)] = 8,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """How a method's map changes as the network's layers lose what they have learned, from the last one to the first.

    A map that stays as it was says nothing of what was learned: it shows the picture, not the network. All is done to a
    copy. The class is that of the first map at every stage.

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL picture, array or tensor
    target : int or str, optional
        Class index or label; the most probable class of the untouched network otherwise.
    method : str or callable
        What makes the maps: a technique's name, or anything called as ``method(net, image, target=class)`` that yields
        Frames, of which the last one's ``heat`` counts.
    stages : int
        The layers with parameters are randomized in that many groups, about equal in number; at most one each.
    seed : int
        Of the random parameters.

    Yields
    ------
    Frame
        After each stage, the first before anything is random. ``heat`` is this stage's map. ``arrays["maps"]`` (n, H, W)
        are the maps so far, ``arrays["stages"]`` (n,) the names of the layers randomized at each, "" for the first.
        ``arrays["rank correlation"]`` and ``["ssim"]`` (n,) compare their magnitudes with the first map's, -1 to 1 each;
        ``scalars`` has this stage's two. NaN in a map counts as 0. A map that is the same everywhere compares with none,
        and its two numbers are NaN.

    Raises
    ------
    ValueError
        The network has no parameters, there is no such technique, or it gives no map. What the method itself raises
        is passed on.

    References
    ----------
    J. Adebayo, J. Gilmer, M. Muelly, I. Goodfellow, M. Hardt, B. Kim, "Sanity checks for saliency maps", 2018,
    arXiv:1810.03292: the cascading randomization. Layers are set back to PyTorch's own initialization, running
    statistics included; parameters that it does not reach are drawn from a normal distribution of their own mean and
    deviation. A draw that leaves the same value everywhere in the map, as where scores end in a ReLU that is never open
    any more, would flatter any method; up to seven more are made, of all layers down to there. SSIM is Z. Wang et al.,
    2004, with a uniform window of 7 pixels, of maps scaled to [0, 1] each.
    """
    batch, unit = asked(net, image, target=target)
    picture = batch[0].permute(1, 2, 0)
    copy = net.copy()
    layers = _from_the_output(copy)
    groups = [layers[part[0] : part[-1] + 1] for part in np.array_split(range(len(layers)), min(stages, len(layers)))]
    generator = torch.Generator(net.device).manual_seed(seed)
    maps, correlations, similarities, names, done = [], [], [], [], set()
    for step, group in enumerate([[], *groups]):
        for draw in range(DRAWS if group else 1):
            drawn = set(done) if draw == 0 else set()
            for _, module in group if draw == 0 else itertools.chain(*groups[:step]):
                _randomize(module, generator, drawn)
            heat = heat_by(method, copy, picture.cpu().float().numpy().copy(), unit.channel)
            if np.ptp(_magnitudes(heat)) > 0:
                break
        done = drawn
        maps.append(heat)
        first, now = _magnitudes(maps[0]), _magnitudes(heat)
        comparable = np.ptp(first) > 0 and np.ptp(now) > 0
        correlations.append(rank_correlation(first, now) if comparable else np.nan)
        similarities.append(structural_similarity(first, now) if comparable else np.nan)
        names.append(", ".join(name for name, _ in group))
        yield Frame(
            step,
            len(groups),
            done=step == len(groups),
            image=picture,
            heat=maps[-1],
            scalars={"rank correlation": correlations[-1], "ssim": similarities[-1]},
            arrays={"maps": maps, "stages": names, "rank correlation": correlations, "ssim": similarities},
        )


def _magnitudes(heat: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.abs(heat), posinf=0)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's: the correlation of the values' ranks, equal values sharing their mean rank; 0 if all are equal.

    >>> rank_correlation(np.array([1, 2, 3, 4]), np.array([1, 4, 9, 20]))
    1.0
    """
    a, b = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, which, counts = np.unique(values.ravel(), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[which]


def structural_similarity(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two maps (H, W), scaled to [0, 1] each: the mean over all windows of 7 pixels that lie within."""
    a, b = (torch.from_numpy((x - x.min()) / (np.ptp(x) or 1)).double() for x in (a, b))
    side = min(7, *a.shape)
    moments = torch.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, aa, bb, ab = nn.functional.avg_pool2d(moments[:, None], side, 1)[:, 0]
    unbiased = side**2 / max(side**2 - 1, 1)
    var_a, var_b, cov = (unbiased * x for x in (aa - mean_a**2, bb - mean_b**2, ab - mean_a * mean_b))
    small, smaller = 0.03**2, 0.01**2  # K2 and K1 of Wang et al., for values up to 1
    luminance = (2 * mean_a * mean_b + smaller) / (mean_a**2 + mean_b**2 + smaller)
    return float((luminance * (2 * cov + small) / (var_a + var_b + small)).mean())


def _from_the_output(net: Network) -> list[tuple[str, nn.Module]]:
    """Modules that hold parameters themselves, by the last operator that reads one of them, the last of all first.

    What the picture's forward pass does not read, such as a classifier for training only, is left out.
    """
    last = {
        leaf.untyped_storage().data_ptr(): at
        for at, op in enumerate(net.graph.ops)
        for leaf in tree_leaves((op.args, op.kwargs))
        if isinstance(leaf, torch.Tensor)
    }
    found = []
    for name, module in net.module.named_modules():
        reads = [last.get(p.untyped_storage().data_ptr(), -1) for p in module.parameters(recurse=False)]
        if max(reads, default=-1) >= 0:
            found.append((max(reads), name or net.name, module))
    if not found:
        raise ValueError(f"{net.name} has no parameters that could be randomized; choose a network with learned layers")
    return [(name, module) for _, name, module in sorted(found, key=lambda item: -item[0])]


def _randomize(module: nn.Module, generator: torch.Generator, done: set[int]) -> None:
    """Set a module's own parameters to random values, except those in `done`, which another module shares."""
    own = list(module.parameters(recurse=False))
    with torch.no_grad():
        before = [parameter.clone() for parameter in own]
        if callable(getattr(module, "reset_parameters", None)):
            with _Seeded(generator):
                module.reset_parameters()
        for parameter, was in zip(own, before, strict=True):
            if id(parameter) in done:
                parameter.copy_(was)
            elif torch.equal(parameter, was):  # not reached: a bare parameter, or one that a weight is computed from
                parameter.normal_(generator=generator).mul_(was.std(correction=0)).add_(was.mean())
    done.update(map(id, own))


class _Seeded(TorchDispatchMode):
    """Within it random numbers come from a generator of its own, also where the code that draws them takes none.

    The global generator belongs to the user; `torch.random.fork_rng` would set back what other threads draw meanwhile.
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
