"""pointing_game: is the hottest point of a map on the thing that it is about?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch

from ..core import Frame, Knob, Network, heat_by, technique

_Z = 1.959964  # 97.5 % of a normal distribution lie below


@technique
def pointing_game(
    net: Network,
    scenes: Sequence[Any],
    *,
    method: str | Callable[..., Iterator[Frame]] = "saliency",
    margin: Annotated[int, Knob(0, 64)] = 0,
) -> Iterator[Frame]:
    """How often the hottest pixel of a method's map lies on the object, beside how often the center does.

    Where several pixels are equally hot the hit is the share of them that lies on the object, so that no corner is
    favored; a constant map scores what a random pixel would. The center of an even side is its two middle pixels.

    Parameters
    ----------
    net : Network, module or name
    scenes : sequence
        Scenes of Toyscape, or triples (image, label, mask): a picture of the size that the network takes, its class as
        index or label, and (H, W) what is True on the object. Each is looked at once and not kept.
    method : str or callable
        What makes the map of the scene's own label: a technique's name, or anything called as ``method(net, image,
        target=class)`` that yields Frames, of which the last one's ``heat`` counts. NaN in it is never hottest.
    margin : int
        Pixels, along rows and columns, by which a hit may miss the object.

    Yields
    ------
    Frame
        After every scene: ``image`` and ``heat`` are its picture and map. Of all scenes so far ``arrays["hit"]`` and
        ``["center hit"]`` (n,), 0 to 1 each; ``scalars["hits"]`` is their sum and ``["accuracy"]`` their mean,
        ``["low"]`` to ``["high"]`` its 95 % interval; ``["center"]``, ``["center low"]`` and ``["center high"]`` the same
        of the center; ``["gain"]`` the accuracy less the center's, ``["gain low"]`` to ``["gain high"]`` the 95 % interval
        of this difference, given that both had the same scenes.

    Raises
    ------
    ValueError, TypeError
        What is no scene, or one with a mask of another size than its picture, by its number; no scene at all. What the
        method raises is passed on.

    References
    ----------
    J. Zhang, Z. Lin, J. Brandt, X. Shen, S. Sclaroff, "Top-down neural attention by excitation backprop", 2016,
    arXiv:1608.00507, section 4.1: there with boxes and a margin of 15 pixels. Intervals: E. Wilson, 1927, and R. Newcombe,
    "Improved confidence intervals for the difference between binomial proportions based on paired data", 1998, method 10.
    """
    if not hasattr(scenes, "__len__"):
        raise TypeError(f"{type(scenes).__name__} has no length; give a sequence of scenes, such as a list or a Toyscape")
    if len(scenes) == 0:
        raise ValueError("there is no scene; give one or more")
    hits, centers = np.zeros((2, len(scenes)))
    for index, scene in enumerate(scenes):
        picture, label, mask = _checked(net, scene, index)
        heat = heat_by(method, net, picture, label)
        near = _widened(mask, margin)
        known = np.where(np.isnan(heat), -np.inf, heat)
        hits[index] = near[known == known.max()].mean()
        centers[index] = _middle(near).mean()
        count = index + 1
        yield Frame(
            count,
            len(scenes),
            done=count == len(scenes),
            image=picture,
            heat=heat,
            scalars=_score(hits[:count], centers[:count]),
            arrays={"hit": hits[:count], "center hit": centers[:count]},
        )


def wilson(successes: float, count: int) -> tuple[float, float]:
    """The 95 % score interval of a proportion.

    >>> [round(limit, 3) for limit in wilson(8, 10)]
    [0.49, 0.943]
    """
    share, square = successes / count, _Z**2 / count
    middle = (share + square / 2) / (1 + square)
    half = math.sqrt(square * share * (1 - share) + square**2 / 4) / (1 + square)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of mean(a) - mean(b), for two players of the same scenes, each with hits (n,) in [0, 1]."""
    count, p, q = len(a), a.mean(), b.mean()
    (p_low, p_high), (q_low, q_high) = wilson(a.sum(), count), wilson(b.sum(), count)
    together = count * (a @ b) - a.sum() * b.sum()
    if together > 0:
        together = max(together - count / 2, 0)  # Newcombe's continuity correction
    spread = count**2 * math.sqrt(p * (1 - p) * q * (1 - q))
    likeness = together / spread if spread > 0 else 0.0

    def reach(one: float, other: float) -> float:
        return math.sqrt(max(0.0, one**2 - 2 * likeness * one * other + other**2))

    return p - q - reach(p - p_low, q_high - q), p - q + reach(p_high - p, q - q_low)


def _score(hits: np.ndarray, centers: np.ndarray) -> dict[str, float]:
    low, high = wilson(hits.sum(), len(hits))
    center_low, center_high = wilson(centers.sum(), len(centers))
    gain_low, gain_high = paired_difference(hits, centers)
    return {
        "hits": hits.sum(),
        "accuracy": hits.mean(),
        "low": low,
        "high": high,
        "center": centers.mean(),
        "center low": center_low,
        "center high": center_high,
        "gain": hits.mean() - centers.mean(),
        "gain low": gain_low,
        "gain high": gain_high,
    }


def _checked(net: Network, scene: Any, index: int) -> tuple[np.ndarray, int, np.ndarray]:
    """The picture as the network sees it, the class index and the mask of a scene."""
    try:
        image, label, mask = (scene.image, scene.label, scene.mask) if hasattr(scene, "mask") else scene
    except (TypeError, ValueError):
        raise TypeError(f"scene {index} is a {type(scene).__name__}; give (image, label, mask) or a Scene") from None
    picture = net.single(image)[0].permute(1, 2, 0).cpu().float().numpy()
    mask = np.asarray(mask)
    if mask.shape != picture.shape[:2]:
        given, wanted = ("x".join(map(str, shape)) for shape in (mask.shape, picture.shape[:2]))
        raise ValueError(f"the mask of scene {index} is {given} and its picture {wanted}; give masks of the picture's size")
    return picture, net.target(label), mask.astype(bool)


def _widened(mask: np.ndarray, margin: int) -> np.ndarray:
    pixels = torch.from_numpy(mask)[None, None].float()
    return torch.nn.functional.max_pool2d(pixels, 2 * margin + 1, 1, margin)[0, 0].numpy()


def _middle(mask: np.ndarray) -> np.ndarray:
    rows, cols = (slice((side - 1) // 2, side // 2 + 1) for side in mask.shape)
    return mask[rows, cols]
