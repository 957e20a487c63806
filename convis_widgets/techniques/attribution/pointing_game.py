"""pointing_game: how often the largest value of a map lies on the object."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import numpy as np
import torch

from ...core.attribution.attribution_map import attribution_map
from ...core.knob import Knob
from ...core.network.images import to_channels_last
from ...core.network.network import Network
from ...core.registry import technique
from ...core.runs.frame import Frame

_Z = 1.959964  # 97.5 % quantile of the standard normal distribution


@technique
def pointing_game(
    net: Network,
    scenes: Sequence[Any],
    *,
    method: str | Callable[..., Iterator[Frame]] = "saliency",
    margin: Annotated[int, Knob(0, 64)] = 0,
) -> Iterator[Frame]:
    """How often the largest value of a map lies on the object, compared with the center of the image.

    If several pixels have the largest value, the hit is the fraction of them on the object, so that no corner is favored; a
    constant map scores as a random pixel. The center of a side of even length is its two middle pixels.

    Parameters
    ----------
    net : Network, module or name
    scenes : sequence
        Scenes of Toyscape, or (image, label, mask): an image, its class as index or label, and a mask (H, W) of the object
        on the network's input. Each is read once and not kept.
    method : str or callable
        Attribution method for the scene's own label: name of a technique, or a function called as ``method(net, image,
        target=class)`` that yields Frames, of which the last ``heat`` counts. NaN is never the largest value.
    margin : int
        Pixels, along rows and columns, by which a hit may miss the object.

    Yields
    ------
    Frame
        After every scene:

        - ``image`` (H, W, C), ``heat`` (H, W): image and map of this scene
        - ``arrays["hit"]``, ``arrays["center hit"]`` (n,), in [0, 1]: hits of the map and of the center so far
        - ``scalars["hits"]``, ``scalars["accuracy"]``: sum and mean of the hits
        - ``scalars["low"]``, ``scalars["high"]``: 95 % interval of the accuracy
        - ``scalars["center"]``, ``scalars["center low"]``, ``scalars["center high"]``: the same for the center
        - ``scalars["gain"]``: accuracy minus that of the center
        - ``scalars["gain low"]``, ``scalars["gain high"]``: its 95 % interval, paired by scene

    Raises
    ------
    ValueError, TypeError
        There are no scenes; one is not a scene, or its mask does not have the size of its image (the message has its index).
        Errors of the method are propagated.

    References
    ----------
    J. Zhang, Z. Lin, J. Brandt, X. Shen, S. Sclaroff, "Top-down neural attention by excitation backprop", 2016,
    arXiv:1608.00507, section 4.1: there with boxes and a margin of 15 pixels. Intervals: E. Wilson, 1927, and R. Newcombe,
    "Improved confidence intervals for the difference between binomial proportions based on paired data", 1998, method 10.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, pointing_game
    >>> frame = Run(pointing_game(Network.demo(), demo.images(4, label="star"), method="grad_cam")).run()
    >>> frame.step, frame.arrays["hit"].shape
    (4, (4,))
    """
    if not hasattr(scenes, "__len__"):
        raise TypeError(f"{type(scenes).__name__} has no length; give a sequence of scenes, such as a list or a Toyscape")
    if len(scenes) == 0:
        raise ValueError("there are no scenes; give at least one")
    hits, center_hits = np.zeros((2, len(scenes)))
    for index, scene in enumerate(scenes):
        image, label, mask = _parse_scene(net, scene, index)
        heat = attribution_map(method, net, image, label)
        target_area = _dilate(mask, margin)
        ranked = np.where(np.isnan(heat), -np.inf, heat)
        hits[index] = target_area[ranked == ranked.max()].mean()
        center_hits[index] = _center_pixels(target_area).mean()
        count = index + 1
        yield Frame(
            count,
            len(scenes),
            done=count == len(scenes),
            image=image,
            heat=heat,
            scalars=_score(hits[:count], center_hits[:count]),
            arrays={"hit": hits[:count], "center hit": center_hits[:count]},
        )


def wilson(successes: float, count: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion.

    >>> [round(limit, 3) for limit in wilson(8, 10)]
    [0.49, 0.943]
    """
    proportion, square = successes / count, _Z**2 / count
    center = (proportion + square / 2) / (1 + square)
    half_width = math.sqrt(square * proportion * (1 - proportion) + square**2 / 4) / (1 + square)
    return max(0.0, min(proportion, center - half_width)), min(1.0, max(proportion, center + half_width))


def paired_difference(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of mean(a) - mean(b), for hits (n,) in [0, 1] on the same scenes."""
    count, p, q = len(a), a.mean(), b.mean()
    (p_low, p_high), (q_low, q_high) = wilson(a.sum(), count), wilson(b.sum(), count)
    covariance = count * (a @ b) - a.sum() * b.sum()
    if covariance > 0:
        covariance = max(covariance - count / 2, 0)  # Newcombe's continuity correction
    scale = count**2 * math.sqrt(p * (1 - p) * q * (1 - q))
    phi = covariance / scale if scale > 0 else 0.0

    def half_width(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x**2 - 2 * phi * x * y + y**2))

    return p - q - half_width(p - p_low, q_high - q), p - q + half_width(p_high - p, q - q_low)


def _score(hits: np.ndarray, center_hits: np.ndarray) -> dict[str, float]:
    low, high = wilson(hits.sum(), len(hits))
    center_low, center_high = wilson(center_hits.sum(), len(center_hits))
    gain_low, gain_high = paired_difference(hits, center_hits)
    return {
        "hits": hits.sum(),
        "accuracy": hits.mean(),
        "low": low,
        "high": high,
        "center": center_hits.mean(),
        "center low": center_low,
        "center high": center_high,
        "gain": hits.mean() - center_hits.mean(),
        "gain low": gain_low,
        "gain high": gain_high,
    }


def _parse_scene(net: Network, scene: Any, index: int) -> tuple[np.ndarray, int, np.ndarray]:
    """The image as the network's input (H, W, C), the class index and the mask (H, W) of a scene."""
    try:
        image, label, mask = (scene.image, scene.label, scene.mask) if hasattr(scene, "mask") else scene
    except (TypeError, ValueError):
        raise TypeError(f"scene {index} is a {type(scene).__name__}; give (image, label, mask) or a Scene") from None
    pixels = to_channels_last(net.single_batch(image)).cpu().float().numpy()
    mask = np.asarray(mask)
    if mask.shape != pixels.shape[:2]:
        actual, expected = ("x".join(map(str, shape)) for shape in (mask.shape, pixels.shape[:2]))
        raise ValueError(f"the mask of scene {index} is {actual} and its image {expected}; give a mask of the image's size")
    return pixels, net.class_index(label), mask.astype(bool)


def _dilate(mask: np.ndarray, margin: int) -> np.ndarray:
    pixels = torch.from_numpy(mask)[None, None].float()
    return torch.nn.functional.max_pool2d(pixels, 2 * margin + 1, 1, margin)[0, 0].numpy()


def _center_pixels(mask: np.ndarray) -> np.ndarray:
    rows, cols = (slice((side - 1) // 2, side // 2 + 1) for side in mask.shape)
    return mask[rows, cols]
