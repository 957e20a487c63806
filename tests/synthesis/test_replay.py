"""Steps that are recorded and replayed give the images of steps that are not; a CUDA graph is imitated on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from operators import CpuGraph, Operators
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis import image_optimizer, objectives, replay
from convis_widgets.core.synthesis.image_optimizer import ImageOptimizer, noise
from convis_widgets.core.synthesis.replay import Replay
from convis_widgets.techniques import deep_dream, gradient_ascent, style_transfer, texture


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[CpuGraph]:
    """The graphs that were recorded."""
    found: list[CpuGraph] = []

    def record(function: Any) -> tuple[CpuGraph, Any]:
        graph, outputs = CpuGraph.record(function)
        found.append(graph)
        return graph, outputs

    monkeypatch.setattr(replay, "record", record)
    monkeypatch.setattr(image_optimizer, "REPLAYING_DEVICES", ("cpu",))
    monkeypatch.setattr(image_optimizer, "REDIRECTED_STEPS", 0)
    return found


CALLS = {
    "ascent, pixels": lambda net, _image: gradient_ascent(
        net, objective=("conv2", 3), iterations=14, jitter=0.2, rotate=20, scale=0.2, parameterization="pixels", seed=1
    ),
    "ascent, fourier": lambda net, _image: gradient_ascent(
        net, target=1, iterations=14, jitter=0.2, parameterization="fourier", seed=1
    ),
    "ascent, regularized": lambda net, _image: gradient_ascent(net, target=1, iterations=14, preset="yosinski 1", seed=1),
    "deep dream": lambda net, image: deep_dream(net, image, objective="conv1", octaves=2, octave_scale=1.2, iterations=12),
    "style": lambda net, image: style_transfer(net, image, image[::-1].copy(), scales=1, iterations=12, optimizer="adam"),
    "style, lbfgs": lambda net, image: style_transfer(net, image, image[::-1].copy(), scales=1, iterations=12),
    "texture": lambda net, image: texture(net, image, scales=1, iterations=12, tv_weight=0.1),
}


@pytest.mark.parametrize("name", CALLS)
def test_replayed_steps_give_the_same_images(
    name: str, tiny: Network, image: np.ndarray, graphs: list[CpuGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    replayed = [frame.image for frame in CALLS[name](tiny, image)]
    assert graphs, "nothing was recorded"
    monkeypatch.setattr(image_optimizer, "REPLAYING_DEVICES", ())
    expected = [frame.image for frame in CALLS[name](tiny, image)]
    assert len(replayed) == len(expected)
    assert np.abs(expected[-1] - expected[0]).max() > 1e-3
    for a, b in zip(replayed, expected, strict=True):
        assert np.abs(a - b).max() < 1e-4


def test_live_knobs_and_exchanged_weights_take_effect(
    tiny_module: nn.Module, image: np.ndarray, graphs: list[CpuGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    def images() -> list[np.ndarray]:
        module = type(tiny_module)()
        module.load_state_dict(tiny_module.state_dict())
        net = Network(module, size=16)
        frames = style_transfer(net, image, image[::-1].copy(), scales=1, iterations=30, optimizer="adam")
        found = [next(frames).image for _ in range(8)]
        found += [frames.send({"style_weights": (50.0,), "lr": 0.05}).image, *(next(frames).image for _ in range(6))]
        with torch.no_grad():
            module.conv1.weight.mul_(1.5)
        found += [next(frames).image for _ in range(3)]
        module.conv2.weight = nn.Parameter(module.conv2.weight.detach() * 0.5)
        return [*found, *(next(frames).image for _ in range(6))]

    replayed = images()
    count = len(graphs)
    monkeypatch.setattr(image_optimizer, "REPLAYING_DEVICES", ())
    for a, b in zip(replayed, images(), strict=True):
        assert np.abs(a - b).max() < 1e-4
    assert count >= 2


def test_what_cannot_be_recorded_runs_as_before(
    tiny: Network, graphs: list[CpuGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An objective that reads a value."""

    def value(maps: torch.Tensor) -> torch.Tensor:
        return maps.mean((1, 2, 3)) * (2 if float(maps.detach().max()) > 0.5 else 1)

    objective = objectives.layer_objective("conv2", "own", value)
    frames = gradient_ascent(tiny, objective=objective, iterations=8, jitter=0)
    replayed = Run(frames).run().image
    assert not graphs
    monkeypatch.setattr(image_optimizer, "REPLAYING_DEVICES", ())
    assert np.array_equal(Run(gradient_ascent(tiny, objective=objective, iterations=8, jitter=0)).run().image, replayed)


def test_an_objective_on_the_image_alone_is_recorded(tiny: Network, graphs: list[CpuGraph]) -> None:
    """No layer sees the image, so there is no gradient with respect to the network's input."""
    opt = ImageOptimizer(tiny, noise(tiny, 0.1, 0))
    values = [float(opt.step(-objectives.total_variation(), lr=0.01)["objective"]) for _ in range(8)]
    assert graphs
    assert values == sorted(values)


def test_a_replay_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    x, count = torch.ones(3), [0]

    def changing() -> torch.Tensor:
        count[0] += 1
        return x * count[0]

    monkeypatch.setattr(replay, "record", CpuGraph.record)
    function = Replay(changing)
    results = [float(function()[0]) for _ in range(6)]
    assert results[-1] == count[0], "the function is still called"


def test_lbfgs_reads_its_numbers_together(tiny: Network) -> None:
    """Beside them, it only reads whether the values were changed and, in every tenth step, whether all is finite."""
    opt = ImageOptimizer(tiny, noise(tiny, 0.1, 0), optimizer="lbfgs")
    reads = []
    for _ in range(40):
        with Operators() as operators:
            opt.step(objectives.channel("conv2", 3), lr=1.0)
        reads.append(operators.reads)
    assert all(kinds["equal"] == 1 for kinds in reads[20:])
    assert sum(kinds["_local_scalar_dense"] for kinds in reads[20:]) == 2


def test_steps_read_nothing_but_every_tenth(tiny: Network) -> None:
    opt = ImageOptimizer(tiny, noise(tiny, 0.1, 0))
    reads = []
    for _ in range(60):
        with Operators() as operators:
            opt.step(objectives.channel("conv2", 3), lr=0.01, jitter=2, rotate=5, decay=0.01, blur=0.5, norm=3.0)
        reads.append(sum(operators.reads.values()))
    later = reads[20:]
    assert sum(count > 0 for count in later) == 4
    assert max(later) == 1
