from __future__ import annotations

import collections
import dataclasses
import gc
import threading
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace


def reference_activations(module: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Activations of `Tiny`, computed without in-place operations."""
    conv1 = module.conv1(x)
    relu = conv1.clamp(min=0)
    conv2, side = module.conv2(relu), module.side(relu)
    again = (conv2 + side).clamp(min=0)
    return {"conv1": conv1, "relu": relu, "conv2": conv2, "side": side, "relu@2": again, "pool": module.pool(again)}


def test_trace_records_outputs_before_in_place_changes(tiny: Network, image: np.ndarray) -> None:
    batch = tiny.batch(image)
    with torch.no_grad():
        expected = reference_activations(tiny.module, tiny.transform.normalize(batch))
        with trace(tiny, list(expected)) as acts:
            scores = tiny(batch)
        plain = tiny(batch)
    assert list(acts) == list(expected)
    for name, value in expected.items():
        assert torch.allclose(acts[name], value, atol=1e-6), name
    assert (acts["conv1"] < 0).any(), "an in-place ReLU modified the recorded activations"
    assert torch.equal(scores, plain)


def test_trace_stop_ends_forward_pass_after_last_layer(tiny: Network, image: np.ndarray) -> None:
    reached = []
    tiny.module.fc.register_forward_hook(lambda *_: reached.append("fc"))
    with trace(tiny, ["relu", "conv1"], stop=True) as acts:
        tiny(tiny.batch(image))
        reached.append("after the call")
    assert set(acts) == {"conv1", "relu"}
    assert not reached


def test_trace_propagates_error_and_removes_hooks(tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(KeyError, match="own"), trace(tiny, ["conv1"], stop=True) as acts:
        raise KeyError("own")
    tiny(tiny.batch(image))
    assert not acts


def test_trace_activations_are_differentiable(tiny: Network, image: np.ndarray) -> None:
    batch = tiny.batch(image).requires_grad_()
    with trace(tiny, ["conv2"]) as acts:
        score = tiny(batch)[0, 0]
    (gradient,) = torch.autograd.grad(score, acts["conv2"])
    step = torch.zeros_like(gradient)
    step[0, 2, 3, 3] = 1e-2
    with torch.no_grad():
        x = reference_activations(tiny.module, tiny.transform.normalize(batch))

        def head(conv2: torch.Tensor) -> torch.Tensor:
            pooled = tiny.module.pool((conv2 + x["side"]).clamp(min=0))
            return tiny.module.fc((pooled - 0.1).clamp(min=0).mean((2, 3)))[0, 0]

        numeric = torch.stack([(head(x["conv2"] + s) - head(x["conv2"] - s)) / 2e-2 for s in (step,)])[0]
    assert gradient.abs().max() > 1e-3
    assert torch.allclose(gradient[0, 2, 3, 3], numeric, atol=1e-3)


def test_trace_is_thread_safe(tiny: Network) -> None:
    batches = [torch.full((1, 3, 16, 16), value, device=tiny.device) for value in (0.2, 0.8)]
    with torch.no_grad():
        expected = []
        for batch in batches:
            with trace(tiny, ["conv1"]) as acts:
                tiny(batch)
            expected.append(acts["conv1"])
    wrong: list[str] = []
    barrier = threading.Barrier(2)

    def work(i: int) -> None:
        for _ in range(100):
            barrier.wait(20)
            with torch.no_grad(), trace(tiny, ["conv1"]) as own:
                tiny(batches[i])
            if not torch.equal(own["conv1"], expected[i]):
                wrong.append(f"thread {i}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_trace_nested_in_one_that_stops_earlier(tiny: Network, image: np.ndarray) -> None:
    with trace(tiny, ["conv1"], stop=True) as outer, trace(tiny, ["conv2"]) as inner:
        tiny(tiny.batch(image))
    assert (set(outer), set(inner)) == ({"conv1"}, set())


def test_trace_keeps_last_of_two_forward_passes(tiny: Network, image: np.ndarray) -> None:
    with torch.no_grad(), trace(tiny, ["relu", "relu@2"]) as acts:
        tiny(tiny.batch(1 - image))
        tiny(tiny.batch(image))
    with torch.no_grad(), trace(tiny, ["relu", "relu@2"]) as once:
        tiny(tiny.batch(image))
    assert all(torch.equal(acts[name], once[name]) for name in once)


def test_trace_of_layer_with_tuple_output() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
            return self.conv(x), None

    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.pair(x)[0].relu_().mean((2, 3))

    net = Network(Writes(), size=8)
    with torch.no_grad(), trace(net, ["pair"]) as acts:
        net(torch.rand(2, 3, 8, 8))
    assert (acts["pair"] < 0).any()


@pytest.mark.parametrize("gradients", [True, False])
def test_trace_stop_keeps_no_references(gradients: bool, tiny: Network, image: np.ndarray) -> None:
    """Neither a traceback nor anything else keeps the computed tensors alive."""
    passed: list[weakref.ref[torch.Tensor]] = []
    hook = tiny.module.conv2.register_forward_hook(lambda _module, _args, output: passed.append(weakref.ref(output)))
    batch = tiny.batch(image)
    gc.collect()
    gc.disable()
    try:
        with torch.set_grad_enabled(gradients), trace(tiny, ["conv1", "side"], stop=True) as acts:
            tiny(batch)
        references = [weakref.ref(value) for value in acts.values()]
        del acts
        assert len(passed) == 1
        assert passed[0]() is None, "an intermediate tensor is still alive"
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()
        hook.remove()


def test_network_is_freed_without_garbage_collection(tiny_module: nn.Module) -> None:
    net = Network(tiny_module, size=16)
    shadow = weakref.ref(net.module)
    gc.disable()
    try:
        del net
        assert shadow() is None
    finally:
        gc.enable()


def test_trace_rejects_unknown_layer(tiny: Network) -> None:
    with pytest.raises(ValueError, match="conv7"), trace(tiny, ["conv7"]):
        pass


class Named(NamedTuple):
    first: int
    maps: torch.Tensor


@dataclasses.dataclass(frozen=True)
class Record:
    shape: tuple[int, ...]
    maps: torch.Tensor


class ModelOutput(collections.OrderedDict[str, Any]):
    """Keys are attributes, too, as in transformers."""

    def __init__(self, **items: Any) -> None:
        super().__init__(items)
        vars(self).update(items)

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        vars(self)[key] = value


# what a layer returns around its maps, and how the network reads them
STRUCTURES: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[Any], torch.Tensor]]] = {
    "tuple": (lambda y: (y, y.mean()), lambda out: out[0]),
    "list in a tuple, twice": (lambda y: ([None, y], {"again": y}), lambda out: out[0][1] + 2 * out[1]["again"]),
    "dict": (lambda y: {"maps": y, "mean": y.mean()}, lambda out: out["maps"]),
    "ordered dict": (lambda y: collections.OrderedDict(a=1, maps=y), lambda out: out["maps"]),
    "named tuple": (lambda y: Named(3, y), lambda out: out.maps),
    "dataclass": (lambda y: Record((1, 2), y), lambda out: out.maps),
    "logits of an object": (lambda y: types.SimpleNamespace(logits=y, other=1), lambda out: out.logits),
    "model output, by attribute": (lambda y: ModelOutput(loss=None, logits=y), lambda out: out.logits),
    "model output, by key": (lambda y: ModelOutput(loss=None, logits=y), lambda out: out["logits"]),
    "torch's own": (lambda y: torch.stack([y, y - 1]).max(0), lambda out: out.values),
}


class Structured(nn.Module):
    def __init__(self, wrap: Callable[[torch.Tensor], Any], read: Callable[[Any], torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.block, self.fc, self.read = nn.Conv2d(3, 8, 3), Wrapped(wrap), nn.Linear(8, 4), read

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc((self.read(self.block(self.a(x))) ** 2).mean((2, 3)))


class Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.wrap = nn.Conv2d(8, 8, 3), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(self.conv(x).relu())


@pytest.mark.parametrize("kind", STRUCTURES)
def test_gradient_of_layer_that_returns_more_than_a_tensor(kind: str, image: np.ndarray) -> None:
    from convis_widgets.techniques import grad_cam

    module = Structured(*STRUCTURES[kind])
    net = Network(module, size=16)
    frame = next(grad_cam(net, image, target=2, layer="block"))
    batch = net.batch(image)
    maps = module.block.conv(module.a(batch)).relu().detach().requires_grad_()
    score = module.fc((module.read(module.block.wrap(maps)) ** 2).mean((2, 3)))[0, 2]
    (gradient,) = torch.autograd.grad(score, maps)
    assert gradient.any()
    assert np.allclose(frame.arrays["weights"], gradient[0].mean((1, 2)), rtol=1e-4, atol=1e-8)
    with torch.no_grad(), trace(net, ["block", "block.conv"]):
        assert torch.equal(net(batch), module(batch))


def test_gradient_of_attention_and_recurrent_layers(image: np.ndarray) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 4)
            self.attention, self.lstm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LSTM(8, 8, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            t = self.a(x).flatten(2).transpose(1, 2)
            t, _ = self.attention(t, t, t)
            t, _ = self.lstm(t)
            return self.fc(t.mean(1))

    from convis_widgets.techniques import grad_cam

    torch.manual_seed(0)
    module = Rows()
    net = Network(module, size=16)
    frame = next(grad_cam(net, image, target=2, layer="attention"))
    tokens = module.a(net.batch(image)).flatten(2).transpose(1, 2)
    attended = module.attention(tokens, tokens, tokens)[0].detach().requires_grad_()
    (gradient,) = torch.autograd.grad(module.fc(module.lstm(attended)[0].mean(1))[0, 2], attended)
    assert np.allclose(frame.arrays["weights"], gradient[0].mean(0), rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("behind", ["tokens", "tokens back to maps"])
def test_gradient_of_one_image_behind_batch_norm(behind: str, image: np.ndarray) -> None:
    """PyTorch 2.15 on the CPU computes it wrongly for strides like these; that of a batch of two is right."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.tokens, self.fc = (
                nn.Conv2d(3, 6, 4),
                nn.BatchNorm2d(6),
                nn.LayerNorm(6),
                nn.Linear(6, 4),
            )
            nn.init.uniform_(self.norm.weight, 0.5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            if behind == "tokens back to maps":
                y = y.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).unflatten(2, (13, 13))
            return self.fc(self.tokens(self.norm(y).flatten(2).transpose(1, 2)).relu().mean(1))

    from convis_widgets.techniques import saliency

    torch.manual_seed(0)
    module = Stem().eval()
    gradient = next(saliency(Network(module, size=16), image, target=1)).arrays["gradient"]
    pair = torch.from_numpy(np.stack([image, image[::-1]]).copy()).permute(0, 3, 1, 2).contiguous().requires_grad_()
    (expected,) = torch.autograd.grad(module(pair)[0, 1], pair)
    assert np.allclose(gradient.transpose(2, 0, 1), expected[0], atol=1e-4 * float(expected.abs().max()))
