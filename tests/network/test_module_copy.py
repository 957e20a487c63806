"""Networks of unusual modules: the numbers are the module's own, and the module is unchanged."""

from __future__ import annotations

import collections
import random
import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from odd_modules import ODD_MODULES
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.techniques import grad_cam, saliency

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning"),
]


def contents(root: Any) -> dict[str, Any]:
    """Everything that an object refers to, by its path, as plain values and identities."""
    found: dict[str, Any] = {}
    stack: list[tuple[str, Any]] = [("", root)]
    seen: dict[int, Any] = {}
    while stack:
        path, value = stack.pop()
        if value is None or isinstance(value, (str, bytes, int, float, type)):
            found[path] = value
        elif isinstance(value, np.ndarray):
            found[path] = value.tobytes()
        elif isinstance(value, torch.Tensor):
            flags = value.requires_grad, value.is_leaf, type(value), value.grad_fn, value._backward_hooks
            found[path] = id(value), value.detach().cpu().numpy().tobytes(), flags
            if value.is_leaf:
                stack.append((f"{path}.grad", value.grad))
        elif id(value) in seen:
            found[path] = id(value)
        else:
            seen[id(value)] = value
            parts: dict[Any, Any] = {}
            if isinstance(value, torch.jit.ScriptModule):
                parts = {
                    **dict(value.named_parameters()),
                    **dict(value.named_buffers()),
                    "training": getattr(value, "training", None),
                }
            elif isinstance(value, dict):
                parts = {key if isinstance(key, str) else repr(key): item for key, item in value.items()}
            elif isinstance(value, (list, tuple, collections.deque)):
                parts = dict(enumerate(value))
            elif isinstance(value, types.MethodType):
                parts = {"self": value.__self__, "function": value.__func__}
            else:
                found[path] = id(value)
                parts = {**getattr(value, "__dict__", {})}
                parts |= {name: getattr(value, name, None) for name in getattr(type(value), "__slots__", ())}
                parts |= {
                    f"cell {i}": cell.cell_contents for i, cell in enumerate(getattr(value, "__closure__", None) or ())
                }
            found[f"{path} has"] = list(parts)
            stack.extend((f"{path}.{key}", part) for key, part in parts.items())
    return found


def state(module: nn.Module) -> dict[str, Any]:
    """Everything that a Network could change."""
    return {
        **contents(module),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype()),
        "seeds": (torch.get_rng_state().tolist(), random.getstate(), repr(np.random.get_state())),
    }


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [path for path in {**before, **after} if before.get(path) != after.get(path)]


@pytest.mark.parametrize("name", ODD_MODULES)
def test_network_of_unusual_module_computes_what_it_does_and_leaves_it_unchanged(name: str, image: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, reference = ODD_MODULES[name](), ODD_MODULES[name]()
    for part in reference.modules():
        if hasattr(part, "training"):  # a frozen part in TorchScript has no mode
            part.training = False
    before = state(module)
    net = Network(module, size=16)
    batch = net.batch(image)
    with torch.no_grad():
        scores = net(batch)
    frame = next(saliency(net, image, target=1))
    next(grad_cam(net, image, target=1))
    assert changes(before, state(module)) == []
    pixels = batch.clone().requires_grad_()
    with torch.inference_mode(False):
        if name == "weights made in inference mode":
            reference.load_state_dict({key: value.clone() for key, value in reference.state_dict().items()}, assign=True)
        expected = reference(pixels)
        (gradient,) = torch.autograd.grad(expected[0, 1], pixels)
    assert torch.allclose(scores, expected, rtol=1e-4, atol=1e-5)
    assert gradient.any()
    assert np.allclose(frame.arrays["gradient"].transpose(2, 0, 1), gradient[0], atol=1e-5 * float(gradient.abs().max()))
