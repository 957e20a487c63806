from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from convis_widgets.core import SCORES, Ascent, Cost, Effort, Network, afford, cost, memory_left, noise
from convis_widgets.core.cost import VECTORS, in_bytes, in_time
from convis_widgets.core.objectives import layer
from convis_widgets.core.optimizers import PAIRS


def autograd_memory(net: Network, of: str, size: tuple[int, int]) -> int:
    """Bytes of images and activations that autograd saves for the backward pass of a step."""
    storages: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in net.module.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ascent = Ascent(net, noise(net, 0.2, 0, size=size))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ascent.step(layer(of), rate=0.0)
    return sum(storages.values())


@pytest.mark.parametrize("size", [(16, 16), (40, 24), (64, 64)])
@pytest.mark.parametrize("of", ["conv1", "relu@2"])
def test_estimate_step_memory_covers_what_autograd_saves(of: str, size: tuple[int, int], tiny: Network) -> None:
    told = cost(tiny, [of], size).bytes
    assert autograd_memory(tiny, of, size) < told < 8 * autograd_memory(tiny, of, size)


def test_estimate_step_memory_is_proportional_to_pixels(tiny: Network) -> None:
    small, large, wide = (cost(tiny, ["relu@2"], size).bytes for size in ((16, 16), (160, 160), (16, 64)))
    assert large == pytest.approx(100 * small, rel=0.001)
    assert wide == pytest.approx(4 * small, rel=0.001)


def test_estimate_step_memory_grows_with_depth(tiny: Network) -> None:
    found = [cost(tiny, layers, (16, 16)).bytes for layers in (["conv1"], ["relu@2"], ["conv1", "pool"], [SCORES])]
    assert found == sorted(found)
    assert found[0] < found[1] < found[2]


def test_estimate_step_includes_optimizer_state(tiny: Network) -> None:
    picture = 4 * 3 * 32 * 48
    found = {name: cost(tiny, ["relu"], (32, 48), name).bytes for name in VECTORS}
    assert found["lbfgs"] - found["gradient"] == (VECTORS["lbfgs"] - VECTORS["gradient"]) * picture
    assert found["gradient"] < found["adam"] < found["lbfgs"]
    ascent = Ascent(tiny, noise(tiny, 0.1, 0), optimizer="lbfgs")
    for _ in range(PAIRS + 3):
        ascent.step(layer("relu"), rate=0.2)
    made = vars(ascent._optimizer)
    held = sum(one.numel() for one in made.values() if isinstance(one, torch.Tensor))
    assert held <= VECTORS["lbfgs"] * 3 * 16 * 16


def test_estimate_step_measures_time_once_per_layer_set(tiny: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    steps, module = [], sys.modules["convis_widgets.core.cost"]
    measure = module.measure
    monkeypatch.setattr(module, "measure", lambda *args: steps.append(1) or measure(*args))
    first = cost(tiny, ["relu", "conv1"], (16, 16))
    made = len(steps)
    assert made > 0
    assert first.seconds > 0
    assert cost(tiny, ("conv1", "relu"), (32, 64), "lbfgs").seconds == pytest.approx(8 * first.seconds)
    assert len(steps) == made
    cost(tiny, ["conv1"], (16, 16))
    assert len(steps) == 2 * made


def test_estimate_step_works_with_inactive_channels(tiny_module: nn.Module) -> None:
    with torch.no_grad():
        for name in ("conv1", "conv2"):
            getattr(tiny_module, name).bias.fill_(-1e3)
    assert cost(Network(tiny_module, size=16), ["relu", "relu@2"], (16, 16)).seconds > 0


@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (96, 37)])
def test_check_budget_suggests_size_that_fits(
    shape: tuple[int, int], tiny: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cost(tiny, ["relu"], shape)
    found = afford(tiny, [Effort(["relu"], shape, 3, "adam"), Effort(["relu"], shape, 4, "adam")])
    assert (found.seconds, found.bytes) == (pytest.approx(7 * one.seconds), one.bytes)
    left = one.bytes * 0.6
    monkeypatch.setattr(sys.modules["convis_widgets.core.cost"], "memory_left", lambda _device: left)
    with pytest.raises(ValueError, match=rf"\b{max(shape)}\b.*MB") as error:
        afford(tiny, [Effort(["relu"], shape, 1, "adam"), Effort(["relu"], (16, 16), 1, "adam")])
    fits = int(re.findall(r"\d+(?!\.?\d| ?[MG]B)", str(error.value))[-1])  # not an amount of memory
    for side, enough in ((fits, True), (fits + 1, False)):
        smaller = tuple(round(length * side / max(shape)) for length in shape)
        assert (cost(tiny, ["relu"], smaller).bytes <= 0.8 * left) == enough
        if enough:
            afford(tiny, [Effort(["relu"], smaller, 1, "adam")])


def test_format_duration_and_format_bytes() -> None:
    times, amounts = (0.2, 59.4, 60, 599, 3599), (4e6, 9.99e8, 1e9)
    assert [in_time(one) for one in times] == ["1 s", "59 s", "1 min 0 s", "9 min 59 s", "59 min"]
    assert [in_bytes(one) for one in amounts] == ["4 MB", "999 MB", "1.0 GB"]
    assert "1 min 15 s" in str(Cost(75, 4_000_000))
    assert "4 MB" in str(Cost(75, 4_000_000))


def test_estimate_step_preserves_rng_state_and_weights(tiny: Network) -> None:
    before = torch.random.get_rng_state()
    weights = [parameter.clone() for parameter in tiny.module.parameters()]
    cost(tiny, [SCORES], (16, 16))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(*pair) for pair in zip(weights, tiny.module.parameters(), strict=True))


@pytest.mark.parametrize(
    ("files", "left"),
    [
        ({}, math.inf),
        ({"memory.max": "5000\n", "memory.current": "1200\n"}, 3800),
        ({"memory.max": "max\n", "memory.current": "1200\n"}, math.inf),
        ({"memory/memory.limit_in_bytes": "900", "memory/memory.usage_in_bytes": "100"}, 800),
        ({"memory.max": "5000", "memory.current": "0", "memory/memory.limit_in_bytes": "9223372036854771712"}, 5000),
    ],
)
def test_available_memory_respects_container_limits(files: dict[str, str], left: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = memory_left(torch.device("cpu"), tmp_path)
    if left == math.inf:
        assert found == pytest.approx(psutil.virtual_memory().available, rel=0.5)
    else:
        assert found == left
