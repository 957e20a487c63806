"""The style loss: distance of Gram matrices or covariances."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..network.network import Network
from ..network.trace import get_activations
from . import objectives
from .objectives import ForwardPass, FunctionObjective, Objective

STATISTICS = {"gram": objectives.gram_matrix, "covariance": objectives.covariance_matrix}


def style_statistics(
    net: Network, batch: torch.Tensor, layers: Sequence[str], statistic: str = "gram"
) -> list[torch.Tensor]:
    """Gram or covariance matrices of an image, (C, C), one per layer.

    Parameters
    ----------
    net : Network
    batch : (1, C, H, W) tensor in [0, 1]
    layers : sequence of str
    statistic : str
        "gram" or "covariance".
    """
    return [STATISTICS[statistic](maps)[0] for maps in get_activations(net, batch, layers)]


def style_loss(
    layers: Sequence[str], targets: Sequence[torch.Tensor], weights: Sequence[float], statistic: str = "gram"
) -> Objective:
    """Weighted sum over layers of ``|G - T|^2 / |T|^2``, with the statistics G of the image and the target T.

    Distances are relative, so that weights mean the same for every network and image. The matrices are means over
    positions, so that images of different sizes can be compared.

    Parameters
    ----------
    layers : sequence of str
    targets : sequence of (C, C) tensors
        See `style_statistics`.
    weights : sequence of float
        One per layer.
    statistic : str
        "gram" or "covariance".
    """
    # elements of a matrix are products of activations, whose squares would underflow where activations are very small
    largest = [float(target.abs().max()) or 1.0 for target in targets]
    targets = [target / scale for target, scale in zip(targets, largest, strict=True)]
    norms = [target.square().sum().clamp(min=1) for target in targets]

    def distance(forward: ForwardPass) -> torch.Tensor:
        total = forward.image.new_zeros(len(forward.image))
        for layer, target, scale, norm, weight in zip(layers, targets, largest, norms, weights, strict=True):
            matrix = STATISTICS[statistic](forward.activations(layer)) / scale
            total = total + weight * (matrix - target).square().sum((1, 2)) / norm
        return total

    return FunctionObjective("style", frozenset(layers), distance)
