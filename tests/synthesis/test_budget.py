from __future__ import annotations

import math
import re
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.synthesis import budget, objectives
from convis_widgets.core.synthesis.budget import (
    VECTORS,
    Cost,
    Workload,
    available_memory,
    check_budget,
    estimate_step,
    format_bytes,
    format_duration,
)
from convis_widgets.core.synthesis.image_optimizer import ImageOptimizer, noise
from convis_widgets.core.synthesis.objectives import LOGITS
from convis_widgets.core.synthesis.optimizers import HISTORY_SIZE


def autograd_memory(net: Network, layer: str, size: tuple[int, int]) -> int:
    """Bytes of images and activations that autograd saves for the backward pass of a step."""
    storages: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in net.module.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    opt = ImageOptimizer(net, noise(net, 0.2, 0, size=size))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        opt.step(objectives.deepdream(layer), lr=0.0)
    return sum(storages.values())


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (64, 64)])
@pytest.mark.parametrize("layer", ["conv1", "relu@2"])
def test_estimate_step_memory_covers_what_autograd_saves(layer: str, size: tuple[int, int], tiny: Network) -> None:
    estimate = estimate_step(tiny, [layer], size).bytes
    assert autograd_memory(tiny, layer, size) < estimate < 8 * autograd_memory(tiny, layer, size)


def test_estimate_step_memory_is_proportional_to_pixels(tiny: Network) -> None:
    small, large, wide = (estimate_step(tiny, ["relu@2"], size).bytes for size in ((16, 16), (160, 160), (16, 64)))
    assert large == pytest.approx(100 * small, rel=0.001)
    assert wide == pytest.approx(4 * small, rel=0.001)


def test_estimate_step_memory_grows_with_depth(tiny: Network) -> None:
    estimates = [
        estimate_step(tiny, layers, (16, 16)).bytes for layers in (["conv1"], ["relu@2"], ["conv1", "pool"], [LOGITS])
    ]
    assert estimates == sorted(estimates)
    assert estimates[0] < estimates[1] < estimates[2]


def test_estimate_step_includes_optimizer_state(tiny: Network) -> None:
    image_bytes = 4 * 3 * 32 * 48
    estimates = {name: estimate_step(tiny, ["relu"], (32, 48), name).bytes for name in VECTORS}
    assert estimates["lbfgs"] - estimates["gradient"] == (VECTORS["lbfgs"] - VECTORS["gradient"]) * image_bytes
    assert estimates["gradient"] < estimates["adam"] < estimates["lbfgs"]
    opt = ImageOptimizer(tiny, noise(tiny, 0.1, 0), optimizer="lbfgs")
    for _ in range(HISTORY_SIZE + 3):
        opt.step(objectives.deepdream("relu"), lr=0.2)
    state = vars(opt._optimizer)
    count = sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor))
    assert count <= VECTORS["lbfgs"] * 3 * 16 * 16


def test_estimate_step_measures_time_once_per_layer_set(tiny: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, evaluate = [], objectives.evaluate
    monkeypatch.setattr(objectives, "evaluate", lambda *args: steps.append(1) or evaluate(*args))
    first = estimate_step(tiny, ["relu", "conv1"], (16, 16))
    evaluations = len(steps)
    assert evaluations > 0
    assert first.seconds > 0
    assert estimate_step(tiny, ("conv1", "relu"), (32, 64), "lbfgs").seconds == pytest.approx(8 * first.seconds)
    assert len(steps) == evaluations
    estimate_step(tiny, ["conv1"], (16, 16))
    assert len(steps) == 2 * evaluations


def test_estimate_step_works_with_inactive_channels(tiny_module: nn.Module) -> None:
    with torch.no_grad():
        for name in ("conv1", "conv2"):
            getattr(tiny_module, name).bias.fill_(-1e3)
    assert estimate_step(Network(tiny_module, size=16), ["relu", "relu@2"], (16, 16)).seconds > 0


@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (96, 37)])
def test_check_budget_suggests_size_that_fits(
    shape: tuple[int, int], tiny: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = estimate_step(tiny, ["relu"], shape)
    total = check_budget(tiny, [Workload(["relu"], shape, 3, "adam"), Workload(["relu"], shape, 4, "adam")])
    assert (total.seconds, total.bytes) == (pytest.approx(7 * single.seconds), single.bytes)
    available = single.bytes * 0.6
    monkeypatch.setattr(budget, "available_memory", lambda _device: available)
    with pytest.raises(ValueError, match=rf"\b{max(shape)}\b.*MB") as error:
        check_budget(tiny, [Workload(["relu"], shape, 1, "adam"), Workload(["relu"], (16, 16), 1, "adam")])
    fits = int(re.findall(r"\d+(?!\.?\d| ?[MG]B)", str(error.value))[-1])  # not an amount of memory
    for side, enough in ((fits, True), (fits + 1, False)):
        smaller = tuple(round(length * side / max(shape)) for length in shape)
        assert (estimate_step(tiny, ["relu"], smaller).bytes <= 0.8 * available) == enough
        if enough:
            check_budget(tiny, [Workload(["relu"], smaller, 1, "adam")])


def test_format_duration_and_format_bytes() -> None:
    times, amounts = (0.2, 59.4, 60, 599, 3599), (4e6, 9.99e8, 1e9)
    assert [format_duration(value) for value in times] == ["1 s", "59 s", "1 min 0 s", "9 min 59 s", "59 min"]
    assert [format_bytes(value) for value in amounts] == ["4 MB", "999 MB", "1.0 GB"]
    assert "1 min 15 s" in str(Cost(75, 4_000_000))
    assert "4 MB" in str(Cost(75, 4_000_000))


def test_estimate_step_preserves_rng_state_and_weights(tiny: Network) -> None:
    before = torch.random.get_rng_state()
    weights = [parameter.clone() for parameter in tiny.module.parameters()]
    estimate_step(tiny, [LOGITS], (16, 16))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(*pair) for pair in zip(weights, tiny.module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"memory.max": "5000\n", "memory.current": "1200\n"}, 3800),
        ({"memory.max": "max\n", "memory.current": "1200\n"}, math.inf),
        ({"memory/memory.limit_in_bytes": "900", "memory/memory.usage_in_bytes": "100"}, 800),
        ({"memory.max": "5000", "memory.current": "0", "memory/memory.limit_in_bytes": "9223372036854771712"}, 5000),
    ],
)
def test_available_memory_respects_container_limits(files: dict[str, str], expected: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    available = available_memory(torch.device("cpu"), tmp_path)
    if expected == math.inf:
        assert available == pytest.approx(psutil.virtual_memory().available, rel=0.5)
    else:
        assert available == expected
