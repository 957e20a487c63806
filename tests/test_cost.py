from __future__ import annotations

import math
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


def kept(net: Network, of: str, size: tuple[int, int]) -> int:
    """Bytes that the graph of a step holds for the way back, of pictures and activations; asked of autograd itself."""
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
def test_memory_is_enough_for_what_autograd_keeps_and_not_much_more(of: str, size: tuple[int, int], tiny: Network) -> None:
    told = cost(tiny, [of], size).bytes
    assert kept(tiny, of, size) < told < 8 * kept(tiny, of, size)


def test_memory_grows_with_the_pixels(tiny: Network) -> None:
    small, large, wide = (cost(tiny, ["relu@2"], size).bytes for size in ((16, 16), (160, 160), (16, 64)))
    assert large == pytest.approx(100 * small, rel=0.001)
    assert wide == pytest.approx(4 * small, rel=0.001)


def test_deeper_layers_take_more_and_the_scores_most(tiny: Network) -> None:
    found = [cost(tiny, layers, (16, 16)).bytes for layers in (["conv1"], ["relu@2"], ["conv1", "pool"], [SCORES])]
    assert found == sorted(found)
    assert found[0] < found[1] < found[2]


def test_an_optimizer_takes_memory_for_what_it_remembers(tiny: Network) -> None:
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


def test_time_is_measured_once_for_each_set_of_layers(tiny: Network, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_channel_that_is_always_silent_has_its_cost(tiny_module: nn.Module) -> None:
    with torch.no_grad():
        for name in ("conv1", "conv2"):
            getattr(tiny_module, name).bias.fill_(-1e3)
    assert cost(Network(tiny_module, size=16), ["relu", "relu@2"], (16, 16)).seconds > 0


@pytest.mark.parametrize("shape", [(64, 64), (48, 96), (96, 37)])
def test_what_does_not_fit_is_refused_with_a_size_that_does(
    shape: tuple[int, int], tiny: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = cost(tiny, ["relu"], shape)
    found = afford(tiny, [Effort(["relu"], shape, 3, "adam"), Effort(["relu"], shape, 4, "adam")])
    assert (found.seconds, found.bytes) == (pytest.approx(7 * one.seconds), one.bytes)
    left = one.bytes * 0.6
    monkeypatch.setattr(sys.modules["convis_widgets.core.cost"], "memory_left", lambda _device: left)
    with pytest.raises(ValueError, match=f"{max(shape)} pixels take .* are left; choose a size of at most") as told:
        afford(tiny, [Effort(["relu"], shape, 1, "adam"), Effort(["relu"], (16, 16), 1, "adam")])
    fits = int(str(told.value).split("at most ")[1])
    for side, enough in ((fits, True), (fits + 1, False)):
        smaller = tuple(round(length * side / max(shape)) for length in shape)
        assert (cost(tiny, ["relu"], smaller).bytes <= 0.8 * left) == enough
        if enough:
            afford(tiny, [Effort(["relu"], smaller, 1, "adam")])


def test_times_and_amounts_of_memory_are_in_words() -> None:
    times, amounts = (0.2, 59.4, 60, 599, 3599), (4e6, 9.99e8, 1e9)
    assert [in_time(one) for one in times] == ["1 s", "59 s", "1 min 0 s", "9 min 59 s", "59 min"]
    assert [in_bytes(one) for one in amounts] == ["4 MB", "999 MB", "1.0 GB"]
    assert str(Cost(75, 4_000_000)) == "1 min 15 s and 4 MB of memory"


def test_what_is_measured_changes_nothing(tiny: Network) -> None:
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
def test_a_container_may_use_less_than_the_machine_has(files: dict[str, str], left: float, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = memory_left(torch.device("cpu"), tmp_path)
    if left == math.inf:
        assert found == pytest.approx(psutil.virtual_memory().available, rel=0.5)
    else:
        assert found == left
