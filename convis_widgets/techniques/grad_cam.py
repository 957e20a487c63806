"""grad_cam: a layer's maps, weighted by how much each one raises the score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..core import Frame, Network, asked, layer_gradient, technique


@technique
def grad_cam(
    net: Network, image: Any, *, target: int | str | None = None, of: Any = None, layer: str | None = None
) -> Iterator[Frame]:
    """Where in the picture the maps that speak for a class are active; coarse, but well localized.

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL picture, array or tensor
    target, of
        A class or any other unit, as of `saliency`.
    layer : str, optional
        Whose maps; otherwise the last layer with positions that is no pooling, for a unit the last one before it.

    Yields
    ------
    Frame
        One. ``heat`` (H, W) is the weighted sum of the maps, its negative part set to zero, enlarged bilinearly;
        ``arrays["coarse"]`` (h, w) the same before it is enlarged, ``arrays["weights"]`` (C,) the mean gradient of each
        map, ``scalars["value"]`` as of `saliency`.

    Raises
    ------
    ValueError
        No layer has positions, or the unit does not depend on this one.

    References
    ----------
    R. Selvaraju et al., "Grad-CAM: visual explanations from deep networks via gradient-based localization", 2017,
    arXiv:1610.02391.
    """
    batch, unit = asked(net, image, target=target, of=of)
    found = net.layers[layer] if layer is not None else net.layers.last_maps(before=unit.layer)
    if found is None:
        raise ValueError(f"no layer of {net.name} before {unit.layer or 'the score'} has positions; use saliency instead")
    values, maps, gradients = layer_gradient(net, batch, unit, found.name)
    weights = gradients[0].mean((1, 2))
    coarse = (weights[:, None, None] * maps[0]).sum(0).clamp(min=0)
    size = batch.shape[2:]
    fine = torch.nn.functional.interpolate(coarse[None, None], size=size, mode="bilinear", align_corners=False)[0, 0]
    yield Frame(
        1,
        1,
        done=True,
        image=batch[0].permute(1, 2, 0),
        heat=fine,
        scalars={"value": values[0]},
        arrays={"coarse": coarse, "weights": weights},
    )
