"""Modes of the caller, and gradient checkpointing, do not change any number."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from test_techniques import ALL, digest, start
from torch import nn
from torch.utils.checkpoint import CheckpointFunction, checkpoint, checkpoint_sequential

from convis_widgets.core.attribution.gradient import input_gradient
from convis_widgets.core.network.modes import full_precision, plain_mode
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.unit import Unit
from convis_widgets.core.registry import TECHNIQUES
from convis_widgets.techniques import grad_cam, saliency


@contextmanager
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def autocast_without_gradients() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        yield


MODES: dict[str, Callable[[], Any]] = {
    "autocast and no_grad": autocast_without_gradients,
    "default dtype": double_precision,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ALL)
def test_technique_does_not_depend_on_mode_of_caller(name: str, mode: str, tiny: Network, image: np.ndarray) -> None:
    outside = [digest(frame) for frame in start(name, tiny, image)]
    with MODES[mode]():
        assert [digest(frame) for frame in start(name, tiny, image)] == outside


@pytest.mark.parametrize("mode", [*MODES, "inference mode"])
def test_network_made_and_called_in_a_mode(mode: str, tiny_module: nn.Module, image: np.ndarray) -> None:
    expected = Network(tiny_module, size=16).predict(image)
    with MODES.get(mode, torch.inference_mode)():
        net = Network(tiny_module, size=16)
        assert net.predict(torch.from_numpy(image).permute(2, 0, 1).clone()) == expected
    assert net.predict(image) == expected
    assert next(saliency(net, image)).heat.any()


def test_module_that_uses_autocast_itself(tiny_module: nn.Module, image: np.ndarray) -> None:
    class Autocast(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.inner(x)

    frame = next(grad_cam(Network(Autocast(), size=16), image, target=1, layer="inner.conv2"))
    plain = next(grad_cam(Network(tiny_module, size=16), image, target=1, layer="conv2"))
    assert frame.arrays["weights"].dtype == np.float32
    assert np.abs(frame.heat - plain.heat).max() <= 0.1 * plain.heat.max()


class Body(nn.Module):
    def __init__(self, run: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.fc, self.run = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4), run

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.run(lambda y: self.a(y).relu(), x)
        return 9 * self.fc(self.run(lambda y: self.b(y).relu(), x).mean((2, 3)))


CHECKPOINTS = {
    "reentrant": lambda f, x: checkpoint(f, x, use_reentrant=True),
    "not reentrant": lambda f, x: checkpoint(f, x, use_reentrant=False),
    "nested": lambda f, x: checkpoint(lambda y: checkpoint(f, y, use_reentrant=True), x, use_reentrant=True),
    "sequential": lambda f, x: checkpoint_sequential([f, nn.Identity()], 2, x, use_reentrant=True),
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("saliency", {}),
        ("guided_backprop", {}),
        ("deconvnet", {}),
        ("grad_cam", {}),
        ("grad_cam", {"layer": "a"}),
        ("integrated_gradients", {"steps": 4}),
        ("smooth_grad", {"samples": 2}),
        ("gradient_ascent", {"iterations": 3}),
    ],
)
def test_gradients_with_checkpoints_are_those_without(
    name: str, kwargs: dict[str, Any], kind: str, image: np.ndarray
) -> None:
    arguments = () if name == "gradient_ascent" else (image,)
    nets = [Network(Body(run), size=16) for run in (CHECKPOINTS[kind], lambda f, x: f(x))]
    ours, plain = (list(TECHNIQUES[name](net, *arguments, target=1, **kwargs))[-1] for net in nets)
    key = "image" if name == "gradient_ascent" else "heat"
    assert getattr(plain, key).any()
    assert np.allclose(getattr(ours, key), getattr(plain, key), rtol=1e-5, atol=1e-7)


def test_checkpoints_of_other_threads_and_after_a_pass_are_unchanged() -> None:
    """During a pass of a Network, a training step in another thread still checkpoints."""
    module = Body(CHECKPOINTS["reentrant"])
    kinds: list[str] = []

    def train() -> None:
        output = module(torch.rand(1, 3, 16, 16, requires_grad=True))
        kinds.append(str(type(output.grad_fn.next_functions)))
        nodes = [output.grad_fn]
        for node in nodes:
            nodes.extend(following for following, _ in node.next_functions if following is not None)
        kinds.append(" ".join(node.name() for node in nodes))

    with plain_mode():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert "Checkpoint" not in str(module(torch.rand(1, 3, 16, 16)).grad_fn)
        thread = threading.Thread(target=train)
        thread.start()
        thread.join(60)
    assert "CheckpointFunctionBackward" in kinds[1]
    assert "apply" not in vars(CheckpointFunction)


PAINTING_AND_SCANS = {
    "deep_dream", "feature_inversion", "fooling", "gradient_ascent", "style_transfer", "template_match", "texture",
    "embedding", "max_patches", "neighbors", "scan",
}  # fmt: skip


def precisions() -> list[str]:
    backends = torch.backends
    return [part.fp32_precision for part in (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv)]


@pytest.fixture
def low_precision() -> Iterator[list[str]]:
    """The user has allowed TF32 and bfloat16."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield precisions()
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("name", ALL)
def test_technique_that_explains_computes_in_full_float32(
    name: str, tiny: Network, image: np.ndarray, low_precision: list[str]
) -> None:
    assert low_precision != ["ieee"] * 3
    seen = []
    tiny.module.register_forward_pre_hook(lambda *_: seen.append(precisions()))
    for _ in start(name, tiny, image, **({"pooling": "max"} if name in ("style_transfer", "texture") else {})):
        assert precisions() == low_precision, "between frames, the settings are those of the user"
    if name == "max_patches":  # it scans and explains
        assert low_precision in seen
        assert seen[-1] == ["ieee"] * 3
    else:
        expected = low_precision if name in PAINTING_AND_SCANS else ["ieee"] * 3
        assert seen or name == "template_match"
        assert all(settings == expected for settings in seen)


def test_full_precision_of_gradients_without_a_technique(tiny: Network, image: np.ndarray, low_precision: list[str]) -> None:
    seen = []
    tiny.module.register_forward_pre_hook(lambda *_: seen.append(precisions()))
    input_gradient(tiny, tiny.batch(image), Unit("", 0))
    assert seen == [["ieee"] * 3]
    assert precisions() == low_precision


def test_full_precision_is_restored_after_an_error_and_nested_blocks(low_precision: list[str]) -> None:
    with full_precision():
        with pytest.raises(ZeroDivisionError), full_precision():
            _ = 1 / 0
        assert precisions() == ["ieee"] * 3
    assert precisions() == low_precision
    assert torch.get_float32_matmul_precision() == "medium", "also as older functions read it"


def test_full_precision_ends_with_the_last_of_several_threads(low_precision: list[str]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with full_precision():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with full_precision():
        thread.start()
        assert inside.wait(10)
    assert precisions() == ["ieee"] * 3
    leave.set()
    thread.join()
    assert precisions() == low_precision
