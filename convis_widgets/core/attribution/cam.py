"""Class activation maps: their layer and their Frame."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from ..network.layers import Layer
from ..network.network import Network
from ..network.unit import Unit
from ..runs.frame import Frame


def resolve_cam_layer(net: Network, unit: Unit, layer: str | None = None) -> Layer:
    """The layer whose activation maps explain a unit.

    Parameters
    ----------
    net : Network
    unit : Unit
        The unit or class to explain.
    layer : str, optional
        Name of the layer; by default the last one with positions that is not a pooling layer, for a unit the last such layer
        before it.

    Raises
    ------
    ValueError
        There is no such layer.
    """
    cam_layer = net.layers[layer] if layer is not None else net.layers.last_spatial_layer(before=unit.layer)
    if cam_layer is None:
        raise ValueError(f"no layer of {net.name} before {unit.layer or 'the score'} has positions; use saliency instead")
    return cam_layer


def cam_frame(
    batch: torch.Tensor,
    coarse: torch.Tensor,
    *,
    step: int = 1,
    total: int | None = 1,
    done: bool = True,
    scalars: Mapping[str, Any] = MappingProxyType({}),
    arrays: Mapping[str, Any] = MappingProxyType({}),
) -> Frame:
    """The Frame of a class activation map, upsampled to the size of the image.

    Parameters
    ----------
    batch : (1, C, H, W) tensor in [0, 1]
        The image.
    coarse : (h, w) tensor
        The map on the layer's grid.
    step, total, done, scalars, arrays
        See `Frame`.

    Returns
    -------
    Frame
        ``heat`` is the map (H, W), interpolated bilinearly; ``arrays["coarse"]`` the map (h, w).
    """
    heat = torch.nn.functional.interpolate(coarse[None, None], batch.shape[2:], mode="bilinear", align_corners=False)[0, 0]
    return Frame(step, total, done=done, image=batch, heat=heat, scalars=scalars, arrays={"coarse": coarse, **arrays})
