"""Guided backpropagation and the deconvnet against reference implementations (and Captum, see test_attribution)."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import Tiny, calibrate
from torch import nn
from torch.nn import functional as F

from convis_widgets.core.attribution.gradient import input_gradient
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.unit import logit
from convis_widgets.techniques.attribution.deconvnet import deconvnet
from convis_widgets.techniques.attribution.guided_backprop import guided_backprop
from convis_widgets.techniques.attribution.saliency import saliency

METHODS = {"guided": guided_backprop, "deconvnet": deconvnet}


class ReferenceReLU(torch.autograd.Function):
    """A ReLU, clipped at `high`, with an explicit backward rule."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, rule: str, high: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.rule, ctx.high = rule, high
        return x.clamp(0, high)

    @staticmethod
    def backward(ctx: Any, grad_output: torch.Tensor) -> Any:
        (x,) = ctx.saved_tensors
        if ctx.rule == "deconvnet":
            return grad_output * (grad_output > 0), None, None
        return grad_output * (x > 0) * (x < ctx.high) * (grad_output > 0), None, None


class RuleReLU(nn.Module):
    def __init__(self, rule: str, high: float = float("inf")) -> None:
        super().__init__()
        self.rule, self.high = rule, high

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return ReferenceReLU.apply(x, self.rule, self.high)


def replace_relus(module: nn.Module, rule: str) -> nn.Module:
    module = copy.deepcopy(module)
    for part in module.modules():
        for name, child in part.named_children():
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                setattr(part, name, RuleReLU(rule, 6 if isinstance(child, nn.ReLU6) else float("inf")))
    return module


def plain_gradient(module: nn.Module, batch: torch.Tensor, target: int) -> np.ndarray:
    pixels = batch.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(module(pixels)[0, target], pixels)
    return gradient[0].permute(1, 2, 0).numpy()


def captum_attribution(rule: str, module: nn.Module, batch: torch.Tensor, target: int) -> np.ndarray:
    from captum.attr import Deconvolution, GuidedBackprop

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Captum warns that it sets hooks
        method = {"guided": GuidedBackprop, "deconvnet": Deconvolution}[rule](copy.deepcopy(module))
        return method.attribute(batch.clone().requires_grad_(), target=target).detach()[0].permute(1, 2, 0).numpy()


def allclose(ours: np.ndarray, theirs: np.ndarray, relative: float = 1e-4) -> bool:
    largest = np.abs(theirs).max()
    assert largest > 1e-4, "comparing zeros proves nothing"
    return bool(np.abs(ours - theirs).max() <= relative * largest)


def make_network(name: str, **options: Any) -> tuple[nn.Module, Network, torch.Tensor, int]:
    torch.manual_seed(0)
    module = calibrate(torchvision.models.get_model(name, weights=None, **options), 64)
    batch = torch.rand(1, 3, 64, 64)
    return module, Network(module, size=64, mean=0, std=1), batch, int(module(batch).argmax())


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("name", ["googlenet", "mobilenet_v2"])
def test_rules_apply_to_functional_relu_and_relu6(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    module, net, batch, target = make_network(name, **options)
    ours = next(METHODS[rule](net, batch, target=target)).arrays["gradient"]
    plain = next(saliency(net, batch, target=target)).arrays["gradient"]
    assert allclose(plain, plain_gradient(module, batch, target))
    assert allclose(captum_attribution(rule, module, batch, target), plain, 1e-6)
    if name == "googlenet":
        monkeypatch.setattr(F, "relu", lambda x, inplace=False: ReferenceReLU.apply(x, rule, torch.inf))
    assert allclose(ours, plain_gradient(replace_relus(module, rule), batch, target))
    assert not allclose(ours, plain, 0.1)


@pytest.mark.parametrize("rule", METHODS)
def test_rules_apply_to_in_place_reused_and_functional_relu(rule: str, tiny_module: nn.Module, image: np.ndarray) -> None:
    net = Network(tiny_module, size=16)

    class Reference(Tiny):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            relu = RuleReLU(rule)
            x = relu(self.conv1(x))
            x = relu(self.conv2(x) + self.side(x))
            return self.fc(relu(self.pool(x) - 0.1).mean((2, 3)))

    reference = Reference()
    reference.load_state_dict(tiny_module.state_dict())
    batch = net.batch(image)
    ours = next(METHODS[rule](net, image, target=1)).arrays["gradient"]
    assert allclose(ours, plain_gradient(reference, batch, 1))


@pytest.mark.parametrize("rule", METHODS)
def test_rules_apply_to_every_spelling_of_relu(rule: str, image: np.ndarray) -> None:
    torch.manual_seed(0)
    conv, fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 4)
    spellings = [F.relu, torch.relu, lambda x: x.relu_(), lambda x: x.clamp(min=0), lambda x: torch.clamp_min(x, 0), F.relu6]

    class Model(nn.Module):
        def __init__(self, relu: Any) -> None:
            super().__init__()
            self.conv, self.fc, self.relu = conv, fc, relu

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.relu(self.conv(x)).mean((2, 3)))

    expected = plain_gradient(Model(RuleReLU(rule)), Network(Model(spellings[0]), size=16).batch(image), 2)
    for relu in spellings:
        ours = next(METHODS[rule](Network(Model(relu), size=16), image, target=2)).arrays["gradient"]
        assert allclose(ours, expected)


@pytest.mark.parametrize("rule", METHODS)
def test_rules_block_clipped_relu_except_deconvnet(rule: str, image: np.ndarray) -> None:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 4)]
    with torch.no_grad():
        body[0].weight.mul_(20)
        body[1].weight.mul_(4)

    class Model(nn.Module):
        def __init__(self, relu: Any) -> None:
            super().__init__()
            self.first, self.second, self.fc = body
            self.relu = relu

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.relu(self.second(self.relu(self.first(x)))).mean((2, 3)))

    batch = Network(Model(F.relu6), size=16).batch(image)
    for part in (body[0](batch), body[1](F.relu6(body[0](batch)))):
        assert 0.01 < float((part > 6).float().mean()) < 0.5, "too few clipped values to test anything"
        assert float((part < 0).float().mean()) > 0.1
    expected = plain_gradient(Model(RuleReLU(rule, 6)), batch, 2)
    spellings = [F.relu6, nn.ReLU6(), nn.ReLU6(inplace=True), lambda x: x.clamp(0, 6), lambda x: x.clamp_(min=0, max=6)]
    for relu in [*spellings, nn.Hardtanh(0, 6), lambda x: F.hardtanh(x, min_val=0.0, max_val=6.0, inplace=True)]:
        ours = next(METHODS[rule](Network(Model(relu), size=16), image, target=2)).arrays["gradient"]
        assert allclose(ours, expected)
    unclipped = plain_gradient(Model(RuleReLU(rule)), batch, 2)
    assert allclose(unclipped, expected) == (rule == "deconvnet"), "the deconvnet ignores the forward activations"
    assert not allclose(plain_gradient(Model(F.relu6), batch, 2), expected, 0.1)


class NaiveBackward:
    """Forward and backward pass in plain loops: conv, ReLU, local response norm, max-pool and one linear layer."""

    def __init__(self, module: nn.Sequential, rule: str) -> None:
        self.module, self.rule = module, rule
        self.backward_steps: list[Any] = []

    def __call__(self, image: np.ndarray, target: int) -> np.ndarray:
        x = image.transpose(2, 0, 1).astype(np.float64)
        for layer in self.module[:-2]:
            x = getattr(self, type(layer).__name__)(layer, x)
        back = self.module[-1].weight.detach().numpy()[target].reshape(x.shape)
        for backward_step in reversed(self.backward_steps):
            back = backward_step(back)
        return back.transpose(1, 2, 0)

    def Conv2d(self, layer: nn.Conv2d, x: np.ndarray) -> np.ndarray:  # noqa: N802 (the class's name)
        weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
        out, _, k, _ = weight.shape
        result = np.zeros((out, x.shape[1] - k + 1, x.shape[2] - k + 1))
        for o, i, j in np.ndindex(result.shape):
            result[o, i, j] = (weight[o] * x[:, i : i + k, j : j + k]).sum() + bias[o]

        def back(grad_output: np.ndarray) -> np.ndarray:  # the transposed filter
            down = np.zeros_like(x)
            for o, i, j in np.ndindex(grad_output.shape):
                down[:, i : i + k, j : j + k] += grad_output[o, i, j] * weight[o]
            return down

        self.backward_steps.append(back)
        return result

    def ReLU(self, _layer: nn.ReLU, x: np.ndarray) -> np.ndarray:  # noqa: N802
        is_open = (x > 0) | (self.rule == "deconvnet")
        self.backward_steps.append(lambda grad_output: np.where((grad_output > 0) & is_open, grad_output, 0))
        return np.maximum(x, 0)

    def LocalResponseNorm(self, layer: nn.LocalResponseNorm, x: np.ndarray) -> np.ndarray:  # noqa: N802
        result = np.zeros_like(x)
        for o in range(len(x)):
            near = x[max(0, o - layer.size // 2) : o + (layer.size - 1) // 2 + 1]
            result[o] = x[o] / (layer.k + layer.alpha / layer.size * (near**2).sum(0)) ** layer.beta
        return result  # bypassed in the backward pass

    def MaxPool2d(self, layer: nn.MaxPool2d, x: np.ndarray) -> np.ndarray:  # noqa: N802
        k, stride = layer.kernel_size, layer.stride
        result = np.zeros((len(x), (x.shape[1] - k) // stride + 1, (x.shape[2] - k) // stride + 1))
        switches = {}
        for o, i, j in np.ndindex(result.shape):
            cell = x[o, stride * i : stride * i + k, stride * j : stride * j + k]
            down, across = np.unravel_index(cell.argmax(), cell.shape)
            switches[o, i, j] = (o, stride * i + down, stride * j + across)
            result[o, i, j] = cell[down, across]

        def back(grad_output: np.ndarray) -> np.ndarray:
            down = np.zeros_like(x)
            for position, switch in switches.items():
                down[switch] += grad_output[position]
            return down

        self.backward_steps.append(back)
        return result


def network_with_response_norm(stages: int) -> tuple[nn.Sequential, int]:
    """One stage with non-overlapping pooling, or two with overlapping pooling; and the image side."""
    torch.manual_seed(3)
    if stages == 1:
        parts = [nn.Conv2d(3, 5, 3), nn.ReLU(), nn.LocalResponseNorm(3, alpha=2.0), nn.MaxPool2d(2)]
        return nn.Sequential(*parts, nn.Flatten(), nn.Linear(5 * 9, 4)), 8
    first = [nn.Conv2d(3, 6, 3), nn.ReLU(), nn.LocalResponseNorm(5, alpha=9.0), nn.MaxPool2d(3, 2)]
    second = [nn.Conv2d(6, 8, 3), nn.ReLU(), nn.LocalResponseNorm(4, alpha=9.0, beta=0.5, k=2.0), nn.MaxPool2d(3, 1)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(8 * 9, 4)), 17


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("stages", [1, 2])
def test_rules_bypass_local_response_norm(stages: int, rule: str) -> None:
    module, side = network_with_response_norm(stages)
    image = np.random.default_rng(0).random((side, side, 3)).astype(np.float32)
    net = Network(module, size=side)
    ours = next(METHODS[rule](net, image, target=1)).arrays["gradient"]
    assert allclose(ours, NaiveBackward(module, rule)(image, 1))
    true = plain_gradient(module, net.batch(image), 1)
    assert allclose(next(saliency(net, image, target=1)).arrays["gradient"], true), (
        "the plain gradient differentiates the normalization"
    )
    without = nn.Sequential(*(part for part in module if not isinstance(part, nn.LocalResponseNorm)))
    assert not allclose(plain_gradient(without, net.batch(image), 1), true, 0.1)


@pytest.mark.parametrize("rule", METHODS)
def test_projection_of_unit_stays_inside_receptive_field(rule: str, tiny: Network, image: np.ndarray) -> None:
    frame = next(METHODS[rule](tiny, image, unit=("conv2", 3), crop=True))
    top, left, bottom, right = frame.arrays["box"]
    outside = np.ones((16, 16), bool)
    outside[top:bottom, left:right] = False
    assert np.abs(frame.arrays["gradient"][outside]).max() == 0
    assert np.array_equal(frame.arrays["crop"], frame.arrays["gradient"][top:bottom, left:right])
    maps = conv2_activations(tiny, image)
    row, column = np.unravel_index(maps[3].argmax(), maps[3].shape)
    at = next(METHODS[rule](tiny, image, unit=("conv2", 3, (row, column))))
    assert np.array_equal(at.arrays["gradient"], frame.arrays["gradient"]), (
        "the default position is that of the largest activation"
    )
    assert frame.scalars["value"] == pytest.approx(maps[3].max(), rel=1e-5)


def conv2_activations(tiny: Network, image: np.ndarray) -> np.ndarray:
    from convis_widgets.techniques.network.activations import activations

    return next(activations(tiny, image, layer="conv2")).arrays["maps"]


GATES = {
    "leaky": (nn.LeakyReLU(0.1), "leaky_relu"),
    "gelu": (nn.GELU(), "gelu"),
    "silu": (nn.SiLU(), "silu"),
    "sigmoid": (nn.Sigmoid(), "sigmoid"),
    "hardtanh": (nn.Hardtanh(-1, 1), "hardtanh"),
}


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("gate", GATES)
def test_rules_reject_other_nonlinearities_by_layer_name(gate: str, rule: str, image: np.ndarray) -> None:
    module, operator = GATES[gate]
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), module)
    net = Network(nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), size=16)
    with pytest.raises(ValueError, match=rf"0\.3\b.*{type(module).__name__}.*{operator}"):
        next(METHODS[rule](net, image, target=0))
    assert next(METHODS[rule](net, image, unit=("0.1", 0))).done, "layers before the nonlinearity are supported"
    assert next(saliency(net, image, target=0)).done


def test_guided_backprop_rejects_product_of_two_branches(image: np.ndarray) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (self.a(x) * F.relu(self.b(x))).mean((2, 3))

    with pytest.raises(ValueError, match=r"\bmul\b"):
        next(guided_backprop(Network(Gated(), size=16), image, target=0))


NOT_LINEAR = {
    "a product of two maps": (lambda x: torch.bmm(x.flatten(2), x.flatten(2).mT)[..., None], r"\bbmm\b"),
    "statistics of the image": (F.instance_norm, "native_batch_norm"),
    "statistics of the batch": (nn.BatchNorm2d(4, track_running_stats=False), "native_batch_norm"),
}


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("kind", NOT_LINEAR)
def test_rules_reject_nonlinear_operators(kind: str, rule: str, image: np.ndarray) -> None:
    function, message = NOT_LINEAR[kind]

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.function = nn.Conv2d(3, 4, 3), function

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.relu(self.function(self.conv(x))).mean((2, 3))

    net = Network(Model(), size=16)
    with pytest.raises(ValueError, match=message):
        next(METHODS[rule](net, image, target=0))
    assert next(saliency(net, image, target=0)).done


CONSTANTS = {
    "normalization": lambda x: (x - torch.tensor([0.4, 0.5, 0.3]).view(3, 1, 1)) / torch.tensor(0.25).sqrt(),
    "a window": lambda x: torch.hann_window(16)[:, None] * x,
    "a mixture of colors": lambda x: torch.einsum("nchw,cd->ndhw", x, torch.eye(3).roll(1, 0)),
    "a linear layer without biases": lambda x: F.linear(x.permute(0, 2, 3, 1), torch.eye(3)).permute(0, 3, 1, 2),
    "a matrix": lambda x: torch.ones(16, 16).cumsum(0) @ x,
}


@pytest.mark.parametrize("rule", METHODS)
@pytest.mark.parametrize("kind", CONSTANTS)
def test_rules_accept_constants_computed_in_forward(kind: str, rule: str, tiny_module: nn.Module, image: np.ndarray) -> None:
    class Prepared(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.module(CONSTANTS[kind](x))

    net = Network(Prepared(tiny_module), size=16)
    ours = next(METHODS[rule](net, image, target=1)).arrays["gradient"]
    pixels = net.batch(image).requires_grad_()
    prepared = CONSTANTS[kind](pixels)
    inner = Network(tiny_module, size=16, mean=0, std=1)
    _, grad_output = input_gradient(inner, prepared, logit(1), rule)
    (expected,) = torch.autograd.grad(prepared, pixels, grad_output)
    assert allclose(ours, expected[0].permute(1, 2, 0).numpy())


def test_guided_backprop_ignores_final_softmax(tiny_module: nn.Module, image: np.ndarray) -> None:
    plain, ending = Network(tiny_module, size=16), Network(nn.Sequential(tiny_module, nn.Softmax(1)), size=16)
    ours = [next(guided_backprop(net, image, target=1)).arrays["gradient"] for net in (plain, ending)]
    assert allclose(ours[1], ours[0], 1e-5)
