"""Class activation maps: their layer and their Frame."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from ..network.autograd import bypass_output_activation
from ..network.graph import Graph, Value
from ..network.layers import Layer
from ..network.network import Network
from ..network.receptive_field.rules import values_in
from ..network.trace import trace
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
        Name of the layer; by default the last one with positions that is not a pooling layer and has a gradient at its
        positions, for a unit the last such layer before it. After the last attention of a vision transformer, for example,
        the score depends on the class token only.

    Raises
    ------
    ValueError
        There is no such layer.
    """
    if layer is not None:
        return net.layers[layer]
    defaults = _default_layers.setdefault(net, {})
    if unit.layer not in defaults:
        candidates = [made for made in net.layers.spatial_layers(before=unit.layer) if "Pool" not in made.kind]
        relevant = _ancestors(net.graph, net.layers[unit.layer].value if unit.layer else net.graph.output)
        candidates = [made for made in candidates if made.value in relevant] or candidates
        if not candidates:
            raise ValueError(
                f"no layer of {net.name} before {unit.layer or 'the score'} has positions; use saliency instead"
            )
        field = candidates[-1].field
        tags = set() if field is None else {tag for dim in field.dims for _, tag in dim}
        # without attention before it, the score depends on all positions
        defaults[unit.layer] = candidates[-1] if {"r", "c"} <= tags else _last_with_gradient(net, unit, candidates)
    return defaults[unit.layer]


_default_layers: weakref.WeakKeyDictionary[Network, dict[str, Layer]] = weakref.WeakKeyDictionary()


def _ancestors(graph: Graph, value: Value) -> set[Value]:
    """All Values that a Value is computed from by differentiable operators, and itself."""
    producers = {output: op for op in graph.ops if op.name != "detach" for output in op.outputs if output is not None}
    found, queue = {value}, [value]
    while queue:
        producer = producers.get(queue.pop())
        new = set(values_in((producer.args, producer.kwargs))) - found if producer is not None else set()
        found |= new
        queue.extend(new)
    return found


def _last_with_gradient(net: Network, unit: Unit, candidates: Sequence[Layer]) -> Layer:
    """The last of several layers with a gradient at any of its positions for an image of noise; the last one if none has."""
    generator = torch.Generator().manual_seed(0)
    shape = 1, net.transform.channels, *net.transform.size
    image = torch.rand(shape, generator=generator, dtype=torch.float32).to(net.device, net.dtype).requires_grad_()
    names = [made.name for made in candidates]
    with torch.enable_grad():
        with trace(net, [*names, *([unit.layer] if unit.layer else [])], stop=bool(unit.layer)) as outputs:
            scores = net(image)
        if unit.layer:
            scores = outputs[unit.layer]
        elif net.output_activation != "none" and scores.grad_fn is not None:
            bypass_output_activation(scores.grad_fn)
        differentiable = [made for made in candidates if scores.requires_grad and outputs[made.name].requires_grad]
        weights = torch.randn(scores.shape, generator=generator, dtype=torch.float32).to(scores)
        total, inputs = (weights * scores).sum(), [outputs[made.name] for made in differentiable]
        gradients = torch.autograd.grad(total, inputs, allow_unused=True) if inputs else ()
    for made, gradient in zip(reversed(differentiable), reversed(gradients), strict=True):
        if gradient is not None and bool(net.as_maps(made.name, gradient).any()):
            return made
    return candidates[-1]


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
