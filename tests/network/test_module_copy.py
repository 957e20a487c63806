"""Networks of unusual modules: the numbers are the module's own, and the module is unchanged."""

from __future__ import annotations

import collections
import copy
import gc
import random
import types
import warnings
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from odd_modules import ODD_MODULES, Plain
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.registry import TECHNIQUES
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


def test_refused_module_is_unchanged() -> None:
    for module in (Plain(nn.Conv2d(5, 6, 1)), nn.Sequential(nn.Linear(5, 3), Plain())):
        before = contents(module)
        with pytest.raises((ValueError, TypeError)):
            Network(module, size=16)
        assert changes(before, contents(module)) == []


def test_forward_that_acts_on_the_original_is_refused() -> None:
    """A generator can neither be copied nor shared: it would run the module itself."""
    module = Plain()

    def passes() -> Any:
        x = yield
        while True:
            x = yield Plain.forward(module, x)

    generator = passes()
    next(generator)
    module.forward = generator.send
    before = contents(dict(module.state_dict(keep_vars=True)))
    with pytest.raises(TypeError, match="forward.*Plain.*subclass"):
        Network(module, size=16)
    assert changes(before, contents(dict(module.state_dict(keep_vars=True)))) == []


def test_module_is_not_kept_alive_by_its_network(image: np.ndarray) -> None:
    module = Plain()
    net, parts = Network(module, size=16), [weakref.ref(part) for part in module.modules()]
    expected = net.predict(image)
    del module
    gc.collect()
    assert [part() for part in parts] == [None] * len(parts)
    assert net.predict(image) == expected


@pytest.mark.parametrize("depth", [180])
def test_deeply_nested_module(depth: int, image: np.ndarray) -> None:
    module: nn.Module = Plain()
    for _ in range(depth):
        module = nn.Sequential(module)
    net = Network(module, size=16)
    with torch.no_grad():
        assert torch.allclose(net(net.batch(image)), module.eval()(net.batch(image)), atol=1e-6)


# -- changes after the Network was made ------------------------------------------------------------------------------------


def new_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: 0.2 * torch.randn(tensor.shape, generator=generator) + 0.5 if tensor.is_floating_point() else tensor
        for name, tensor in module.state_dict().items()
    }


def exchange_parameters(module: nn.Module) -> None:
    module.a.weight = nn.Parameter(new_weights(module)["a.weight"])
    module.fc.bias = nn.Parameter(new_weights(module)["fc.bias"])


def exchange_buffer(module: nn.Module) -> None:
    module.norm.running_mean = module.norm.running_mean + 1


def exchange_data(module: nn.Module) -> None:
    module.b.weight.data = new_weights(module)["b.weight"]


def train_in_place(module: nn.Module) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()(torch.rand(4, 3, 16, 16, dtype=module.a.weight.dtype)).pow(2).sum().backward()
    optimizer.step()


CHANGES = {
    "new parameters": exchange_parameters,
    "a new buffer": exchange_buffer,
    "new data": exchange_data,
    "load_state_dict": lambda module: module.load_state_dict(new_weights(module)),
    "load_state_dict that assigns": lambda module: module.load_state_dict(new_weights(module), assign=True),
    "double precision": lambda module: module.double(),
    "half precision, then new weights": lambda module: module.bfloat16().load_state_dict(new_weights(module)),
    "a training step": train_in_place,
    "a training step after another data type": lambda module: train_in_place(module.double()),
}


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("derived", [False, True])
def test_network_follows_exchanged_tensors(how: str, derived: bool, image: np.ndarray) -> None:
    torch.manual_seed(0)
    module = Plain()
    base = Network(module, size=16)
    net, copied = base.with_average_pooling() if derived else base, base.copy()
    before = net.predict(image)
    CHANGES[how](module)
    with torch.no_grad():
        batch = net.batch(image)
        expected = copy.deepcopy(module).float().eval()(batch)
        assert torch.allclose(net(batch), expected, rtol=1e-4, atol=1e-5)
        assert torch.allclose(net(batch), expected, rtol=1e-4, atol=1e-5)
    if "precision" not in how or "new" in how:
        assert net.predict(image) != before
    assert copied.predict(image) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_network_follows_changes_in_place_of_copied_weights(dtype: torch.dtype, image: np.ndarray) -> None:
    module = Plain().to(dtype)
    net = Network(module, size=16)
    with torch.no_grad():
        module.fc.weight.mul_(2)
        expected = copy.deepcopy(module).float().eval()(net.batch(image))
        assert torch.allclose(net(net.batch(image)), expected, atol=1e-6)


def wider(module: nn.Module) -> None:
    module.fc = nn.Linear(6, 5)


def same_size(module: nn.Module) -> None:
    module.fc = nn.Linear(6, 4)


def other_activation(module: nn.Module) -> None:
    module.middle = nn.Tanh()


def grown(module: nn.Module) -> None:
    module.fc.weight, module.fc.bias = nn.Parameter(torch.rand(5, 6)), nn.Parameter(torch.rand(5))


@pytest.mark.parametrize("change", [wider, same_size, other_activation, grown, torch.nn.utils.fuse_conv_bn_eval])
def test_network_refuses_when_layers_were_exchanged(change: Any, image: np.ndarray) -> None:
    module = Plain()
    net = Network(module, size=16)
    if change is torch.nn.utils.fuse_conv_bn_eval:
        module.eval()
        module.a, module.norm = change(module.a, module.norm), nn.Identity()
    else:
        change(module)
    for _ in range(2):
        with pytest.raises(ValueError, match="Plain has other layers.*make a new Network"):
            net.predict(image)
    Network(module, size=16).predict(image)


def test_recurrent_layers_of_a_shadow_can_be_differentiated_with_cudnn() -> None:
    """cuDNN computes gradients of recurrent layers in training mode only; without dropout both modes are equal."""
    net = Network(ODD_MODULES["recurrent"](), size=16)
    recurrent = [part for part in net.module.modules() if isinstance(part, nn.RNNBase)]
    assert [(part.training, part.dropout) for part in recurrent] == [(True, 0.0)] * 2
    assert not any(part.training for part in net.module.modules() if not isinstance(part, nn.RNNBase))


def test_scripted_part_is_one_layer(image: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = Network(ODD_MODULES["scripted part"](), size=16)
    assert [layer.name for layer in net.layers if layer.name.startswith("middle")] == ["middle"]
    for name in ("occlusion", "smooth_grad", "integrated_gradients"):
        assert list(TECHNIQUES[name](net, image))[-1].heat.any()
