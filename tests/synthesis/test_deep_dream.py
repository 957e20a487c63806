from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from convis_widgets import demo
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.network.unit import Unit
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis import objectives
from convis_widgets.core.synthesis.objectives import Objective
from convis_widgets.techniques.synthesis.deep_dream import deep_dream


def enlarge(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return interpolate(image, size=size, mode="bilinear", antialias=True)


def reference_deep_dream(
    net: Network, image: np.ndarray, name: str, sizes: list[tuple[int, int]], steps: int, lr: float
) -> list:
    """The notebook of A. Mordvintsev et al.: the detail found at one octave is enlarged and added to the next one."""
    base = torch.from_numpy(image).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (net.transform.mean, net.transform.std))
    detail, results = torch.zeros(1, 3, *sizes[0]), []
    for size in sizes:
        octave = enlarge(base, size)
        x = (octave + enlarge(detail, size)).clamp(0, 1)
        for _ in range(steps):
            x = x.detach().requires_grad_()
            with trace(net, [name]) as acts:
                net.module((x - mean) / std)
            acts[name].backward(gradient=acts[name].detach())  # the gradient at the layer is its activation
            x = (x.detach() + lr * x.grad / x.grad.abs().mean()).clamp(0, 1)
            detail = x - octave
            result = (base + enlarge(detail, tuple(base.shape[2:]))).clamp(0, 1)
            results.append((float((0.5 * acts[name].detach() ** 2).sum()), result[0].permute(1, 2, 0).numpy()))
    return results


@pytest.mark.parametrize("lr", [0.004, 0.08])
def test_deep_dream_matches_reference(lr: float, tiny: Network) -> None:
    image = np.random.default_rng(1).random((36, 52, 3)).astype(np.float32)
    kwargs = {"octaves": 5, "octave_scale": 1.3, "iterations": 3, "jitter": 0.0, "lr": lr}
    frames = list(deep_dream(tiny, image, objective="conv2", **kwargs))
    sizes = [(28, 40), (36, 52)]
    # 36 / 1.3 and 52 / 1.3; the next smaller ones have a side of less than 24 pixels
    expected = reference_deep_dream(tiny, image, "conv2", sizes, 3, lr)
    assert len(frames) == len(expected) == 6
    for frame, (value, array) in zip(frames, expected, strict=True):
        assert frame.scalars["objective"] == pytest.approx(value, rel=1e-3)
        assert frame.image.shape == (36, 52, 3)
        assert np.abs(frame.image - array).max() < 1e-3
    assert [(frame.step, frame.total, frame.done) for frame in frames[-2:]] == [(5, 6, False), (6, 6, True)]
    clipped = ((frames[-1].image == 0) | (frames[-1].image == 1)).mean()
    assert clipped > 0.1 if lr == 0.08 else clipped < 0.1


def all_objectives(net: Network, guide: np.ndarray) -> dict[str, tuple[dict[str, Any], Objective]]:
    """Keyword arguments of the technique, and the objective that they stand for."""
    with torch.no_grad(), trace(net, ["conv2"]) as acts:
        net(net.batch(guide))
    own = objectives.deepdream("conv1") + 20 * objectives.channel("conv2", 3) - 0.1 * objectives.total_variation()
    return {
        "a layer": ({"objective": "conv2"}, objectives.deepdream("conv2")),
        "the default layer": ({}, objectives.deepdream("relu@2")),
        "a channel": ({"objective": ("conv2", 3)}, objectives.channel("conv2", 3)),
        "a unit": ({"objective": ("conv2", 3, (2, 5))}, objectives.neuron("conv2", 3, (2, 5))),
        "a Unit": ({"objective": Unit("conv1", 1, (4, 4))}, objectives.neuron("conv1", 1, (4, 4))),
        "a class": ({"target": 2}, objectives.class_logit(2)),
        "a label": ({"target": "class 1"}, objectives.class_logit(1)),
        "a guide": ({"objective": "conv2", "guide": guide}, objectives.guided_deepdream("conv2", acts["conv2"])),
        "an objective": ({"objective": own}, own),
    }


CASES = ("a layer", "the default layer", "a channel", "a unit", "a Unit", "a class", "a label", "a guide", "an objective")


@pytest.mark.parametrize("jitter", [0.0, 0.1])
@pytest.mark.parametrize("case", CASES)
def test_deep_dream_increases_objective(case: str, jitter: float, tiny: Network, image: np.ndarray) -> None:
    guide = np.random.default_rng(7).random((16, 16, 3)).astype(np.float32) ** 3
    kwargs, objective = all_objectives(tiny, guide)[case]
    last = Run(deep_dream(tiny, image, lr=0.01, jitter=jitter, iterations=12, **kwargs)).run()
    before, after = (
        float(objectives.evaluate(tiny, objective, tiny.batch(array))[0].detach()) for array in (image, last.image)
    )
    assert after > before + 0.1 * abs(before)


def test_deep_dream_reports_objective_before_step(tiny: Network, image: np.ndarray) -> None:
    frames = list(deep_dream(tiny, image, objective="conv2", octaves=1, jitter=0.0, iterations=4))
    shown = [image, *(frame.image for frame in frames)]
    for frame, before in zip(frames, shown, strict=False):
        value = float(objectives.evaluate(tiny, objectives.deepdream("conv2"), tiny.batch(before))[0].detach())
        assert frame.scalars["objective"] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"target": 1},
        {"objective": ("conv2", 1)},
        {"objective": objectives.deepdream("conv2")},
        {"objective": "conv2", "target": 1},
    ],
)
def test_deep_dream_guide_requires_layer_name(kwargs: dict[str, Any], tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="guide"):
        next(deep_dream(tiny, image, guide=image, **kwargs))


def test_deep_dream_guided_objective_matches_reference(tiny: Network, image: np.ndarray) -> None:
    """Dot product at each position with the best-matching vector of the guide, which is not cropped."""
    guide = np.random.default_rng(3).random((20, 12, 3)).astype(np.float32)
    first = next(deep_dream(tiny, image, objective="conv2", guide=guide, octaves=1, jitter=0.0))
    image_vectors, guide_vectors = [], []
    for vectors, array in ((image_vectors, image), (guide_vectors, guide)):
        with torch.no_grad(), trace(tiny, ["conv2"]) as acts:
            tiny(tiny.batch(array))
        vectors += list(acts["conv2"][0].flatten(1).T.double().numpy())
    assert (len(image_vectors), len(guide_vectors)) == (64, 60)
    assert first.scalars["objective"] == pytest.approx(
        sum(max(a @ b for b in guide_vectors) for a in image_vectors), rel=1e-4
    )


def test_deep_dream_resumes_from_start_image(tiny: Network, image: np.ndarray) -> None:
    kwargs = {"objective": "conv2", "octaves": 1, "jitter": 0.0, "lr": 0.005}
    at_once = list(deep_dream(tiny, image, iterations=8, **kwargs))
    first = Run(deep_dream(tiny, image, iterations=4, **kwargs)).run()
    second = list(deep_dream(tiny, image, iterations=4, init_image=first.image, **kwargs))
    for expected, frame in zip(at_once[4:], second, strict=True):
        assert np.abs(expected.image - frame.image).max() < 1e-3


def test_deep_dream_octaves_keep_detail_of_start_image(tiny: Network) -> None:
    rng = np.random.default_rng(0)
    image, start = (0.2 + 0.6 * rng.random((60, 44, 3)).astype(np.float32) for _ in range(2))
    kwargs = {"objective": "conv2", "octaves": 3, "octave_scale": 1.3, "iterations": 2, "jitter": 0.0, "init_image": start}
    frames = list(deep_dream(tiny, image, lr=1e-4, **kwargs))
    assert len(frames) == 6
    for frame in frames:
        assert np.abs(frame.image - start).mean() < 2e-4 * frame.step


def test_deep_dream_start_image_may_have_another_size(tiny: Network, image: np.ndarray) -> None:
    for shape in ((8, 8, 3), (40, 30, 3)):
        start = np.random.default_rng(0).random(shape).astype(np.float32)
        assert next(deep_dream(tiny, image, objective="conv2", init_image=start)).image.shape == (16, 16, 3)


def test_deep_dream_rate_and_jitter_are_live(tiny: Network, image: np.ndarray) -> None:
    kwargs = {"objective": "conv2", "octaves": 1, "jitter": 0.0, "lr": 0.002}
    frames = deep_dream(tiny, image, **kwargs)
    first = next(frames).image
    second = frames.send({"lr": 0.02}).image
    third = frames.send({"lr": 1e-4}).image
    assert 0.0015 < np.abs(first - image).mean() < 0.0021, "the rate, except where clipped"
    assert 0.01 < np.abs(second - first).mean() < 0.021
    assert np.abs(third - second).mean() < 1.1e-4
    plain, jittered = deep_dream(tiny, image, **kwargs), deep_dream(tiny, image, **kwargs)
    next(plain)
    next(jittered)
    assert np.abs(next(plain).image - jittered.send({"jitter": 0.5}).image).max() > 1e-3


def test_deep_dream_jitter_is_seeded(tiny: Network, image: np.ndarray) -> None:
    one, again, other = (Run(deep_dream(tiny, image, objective="conv2", seed=seed)).run().image for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("kwargs", [{"objective": "conv3"}, {"objective": ("conv4", 5)}, {}])
def test_deep_dream_works_above_network_input_size(kwargs: dict[str, Any], demo_net: Network) -> None:
    scene = demo.images(1, label="fish")[0]
    frames = list(deep_dream(demo_net, scene, size=128, iterations=5, **kwargs))
    last = frames[-1]
    assert last.image.shape == (128, 128, 3)
    assert len(frames) == 20, "four octaves: 47, 65, 91 and 128"
    objective = (
        objectives.channel("conv4", 5)
        if "objective" in kwargs and kwargs["objective"] != "conv3"
        else objectives.deepdream(kwargs.get("objective", "relu4"))
    )
    before, after = (
        float(objectives.evaluate(demo_net, objective, demo_net.uncropped_batch(image, 128))[0].detach())
        for image in (scene.image, last.image)
    )
    assert after > 1.5 * before
    assert np.abs(last.image - demo_net.uncropped_batch(scene, 128)[0].permute(1, 2, 0).numpy()).mean() < 0.25, (
        "still the same image"
    )


def test_deep_dream_of_class_uses_network_input_size(demo_net: Network) -> None:
    scene = demo.images(1, label="fish")[0]
    star = demo_net.class_index("star")
    frames = list(deep_dream(demo_net, scene, target=star, size=100, iterations=15, jitter=0.0))
    last = frames[-1].image
    assert last.shape == (100, 100, 3)

    def score(image: np.ndarray) -> float:
        maps = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        return float(demo_net(interpolate(maps, (64, 64), mode="bilinear", antialias=True))[0, star])

    assert score(last) > score(scene.image) + 5
    assert frames[-1].scalars["objective"] == pytest.approx(score(frames[-2].image), abs=0.2)
    assert demo_net.predict(demo_net.transform.resized_image(last), 1)[0][0] == "star"


def test_deep_dream_with_real_weights_does_not_crop_image(real: Path, squeezenet: Network) -> None:
    path = real / "photos" / "content_tubingen.jpg"
    frames = list(deep_dream(squeezenet, path, size=160, octaves=3))
    height, width, _ = frames[-1].image.shape
    assert max(height, width) == 160
    assert height != width
    before, after = (
        float(
            objectives.evaluate(squeezenet, objectives.deepdream("features.11"), squeezenet.uncropped_batch(image, 160))[
                0
            ].detach()
        )
        for image in (path, frames[-1].image)
    )
    assert after > 2 * before


def test_deep_dream_of_a_list_of_layers_says_how_to_add_them(demo_net: Network) -> None:
    image = np.full((32, 32, 3), 0.4, np.float32)
    with pytest.raises(TypeError, match=r"not one layer.*deepdream\('conv1'\) \+ .*deepdream\('conv3'\)"):
        next(deep_dream(demo_net, image, objective=["conv1", "conv3"]))
    with pytest.raises(ValueError, match="the guide: 2 images were given"):
        next(deep_dream(demo_net, image, objective="conv1", guide=np.stack([image, image])))


def test_deep_dream_says_whether_a_unit_responded(tiny_module: torch.nn.Module) -> None:
    with torch.no_grad():
        tiny_module.conv1.bias[2] = -1000
    net, image = Network(tiny_module, size=16), np.random.default_rng(0).random((30, 24, 3), np.float32)
    for objective, expected in ((("relu", 2), 0), (("relu", 5), 1), (("relu", 5, (1, 1)), 1), ("relu", None)):
        frames = list(deep_dream(net, image, objective=objective, octaves=1, iterations=20))
        assert [frame.scalars.get("responded") for frame in frames] == [None] * 19 + [expected]
        if expected is not None:
            with trace(net, ["relu"], stop=True) as acts:
                net(torch.tensor(frames[-1].image).permute(2, 0, 1)[None])
            activation = acts["relu"][0, objective[1]]
            assert float(activation.max() if len(objective) == 2 else activation[objective[2]]) > 0 or not expected
    assert "responded" not in Run(deep_dream(net, image, target=1, octaves=1, iterations=1)).run().scalars
