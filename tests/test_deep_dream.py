from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from convis_widgets import demo
from convis_widgets.core import Network, Objective, Run, alike, channel, layer, logit, measure, trace, tv, unit
from convis_widgets.techniques import deep_dream


def enlarge(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return interpolate(picture, size=size, mode="bilinear", antialias=True)


def reference_deep_dream(
    net: Network, picture: np.ndarray, name: str, sizes: list[tuple[int, int]], steps: int, rate: float
) -> list:
    """The notebook of A. Mordvintsev et al.: the detail found at one octave is enlarged and added to the next one."""
    base = torch.from_numpy(picture).permute(2, 0, 1)[None]
    mean, std = (torch.tensor(of).view(1, 3, 1, 1) for of in (net.transform.mean, net.transform.std))
    detail, found = torch.zeros(1, 3, *sizes[0]), []
    for size in sizes:
        octave = enlarge(base, size)
        x = (octave + enlarge(detail, size)).clamp(0, 1)
        for _ in range(steps):
            x = x.detach().requires_grad_()
            with trace(net, [name]) as acts:
                net.module((x - mean) / std)
            acts[name].backward(gradient=acts[name].detach())  # the gradient at the layer is its activation
            x = (x.detach() + rate * x.grad / x.grad.abs().mean()).clamp(0, 1)
            detail = x - octave
            whole = (base + enlarge(detail, tuple(base.shape[2:]))).clamp(0, 1)
            found.append((float((0.5 * acts[name].detach() ** 2).sum()), whole[0].permute(1, 2, 0).numpy()))
    return found


@pytest.mark.parametrize("rate", [0.004, 0.08])
def test_deep_dream_matches_reference(rate: float, tiny: Network) -> None:
    picture = np.random.default_rng(1).random((36, 52, 3)).astype(np.float32)
    words = {"octaves": 5, "octave_scale": 1.3, "iterations": 3, "jitter": 0.0, "rate": rate}
    frames = list(deep_dream(tiny, picture, of="conv2", **words))
    sizes = [(28, 40), (36, 52)]
    # 36 / 1.3 and 52 / 1.3; the next smaller ones have a side of less than 24 pixels
    expected = reference_deep_dream(tiny, picture, "conv2", sizes, 3, rate)
    assert len(frames) == len(expected) == 6
    for frame, (value, whole) in zip(frames, expected, strict=True):
        assert frame.scalars["objective"] == pytest.approx(value, rel=1e-3)
        assert frame.image.shape == (36, 52, 3)
        assert np.abs(frame.image - whole).max() < 1e-3
    assert [(frame.step, frame.total, frame.done) for frame in frames[-2:]] == [(5, 6, False), (6, 6, True)]
    clipped = ((frames[-1].image == 0) | (frames[-1].image == 1)).mean()
    assert clipped > 0.1 if rate == 0.08 else clipped < 0.1


def objectives(net: Network, guide: np.ndarray) -> dict[str, tuple[dict[str, Any], Objective]]:
    """Keyword arguments of the technique, and the objective that they stand for."""
    with torch.no_grad(), trace(net, ["conv2"]) as acts:
        net(net.batch(guide))
    own = layer("conv1") + 20 * channel("conv2", 3) - 0.1 * tv()
    return {
        "a layer": ({"of": "conv2"}, layer("conv2")),
        "the default layer": ({}, layer("relu@2")),
        "a channel": ({"of": ("conv2", 3)}, channel("conv2", 3)),
        "a unit": ({"of": ("conv2", 3, (2, 5))}, unit("conv2", 3, (2, 5))),
        "a Unit": ({"of": unit("conv1", 1, (4, 4))}, unit("conv1", 1, (4, 4))),
        "a class": ({"target": 2}, logit(2)),
        "a label": ({"target": "class 1"}, logit(1)),
        "a guide": ({"of": "conv2", "guide": guide}, alike("conv2", acts["conv2"])),
        "an objective": ({"of": own}, own),
    }


KINDS = ("a layer", "the default layer", "a channel", "a unit", "a Unit", "a class", "a label", "a guide", "an objective")


@pytest.mark.parametrize("jitter", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_deep_dream_increases_objective(kind: str, jitter: float, tiny: Network, picture: np.ndarray) -> None:
    guide = np.random.default_rng(7).random((16, 16, 3)).astype(np.float32) ** 3
    words, objective = objectives(tiny, guide)[kind]
    last = Run(deep_dream(tiny, picture, rate=0.01, jitter=jitter, iterations=12, **words)).run()
    before, after = (float(measure(tiny, objective, tiny.batch(one))[0].detach()) for one in (picture, last.image))
    assert after > before + 0.1 * abs(before)


def test_deep_dream_reports_objective_before_step(tiny: Network, picture: np.ndarray) -> None:
    frames = list(deep_dream(tiny, picture, of="conv2", octaves=1, jitter=0.0, iterations=4))
    shown = [picture, *(frame.image for frame in frames)]
    for frame, before in zip(frames, shown, strict=False):
        value = float(measure(tiny, layer("conv2"), tiny.batch(before))[0].detach())
        assert frame.scalars["objective"] == pytest.approx(value, rel=1e-4)


@pytest.mark.parametrize(
    "words", [{"target": 1}, {"of": ("conv2", 1)}, {"of": layer("conv2")}, {"of": "conv2", "target": 1}]
)
def test_deep_dream_guide_requires_layer_name(words: dict[str, Any], tiny: Network, picture: np.ndarray) -> None:
    with pytest.raises(ValueError, match="guide"):
        next(deep_dream(tiny, picture, guide=picture, **words))


def test_deep_dream_guided_objective_matches_reference(tiny: Network, picture: np.ndarray) -> None:
    """Dot product at each position with the best-matching vector of the guide, which is not cropped."""
    guide = np.random.default_rng(3).random((20, 12, 3)).astype(np.float32)
    first = next(deep_dream(tiny, picture, of="conv2", guide=guide, octaves=1, jitter=0.0))
    here, there = [], []
    for found, one in ((here, picture), (there, guide)):
        with torch.no_grad(), trace(tiny, ["conv2"]) as acts:
            tiny(torch.from_numpy(one).permute(2, 0, 1)[None])
        found += list(acts["conv2"][0].flatten(1).T.double().numpy())
    assert (len(here), len(there)) == (64, 60)
    assert first.scalars["objective"] == pytest.approx(sum(max(a @ b for b in there) for a in here), rel=1e-4)


def test_deep_dream_resumes_from_start_image(tiny: Network, picture: np.ndarray) -> None:
    words = {"of": "conv2", "octaves": 1, "jitter": 0.0, "rate": 0.005}
    at_once = list(deep_dream(tiny, picture, iterations=8, **words))
    first = Run(deep_dream(tiny, picture, iterations=4, **words)).run()
    second = list(deep_dream(tiny, picture, iterations=4, start=first.image, **words))
    for whole, part in zip(at_once[4:], second, strict=True):
        assert np.abs(whole.image - part.image).max() < 1e-3


def test_deep_dream_octaves_keep_detail_of_start_image(tiny: Network) -> None:
    rng = np.random.default_rng(0)
    picture, start = (0.2 + 0.6 * rng.random((60, 44, 3)).astype(np.float32) for _ in range(2))
    words = {"of": "conv2", "octaves": 3, "octave_scale": 1.3, "iterations": 2, "jitter": 0.0, "start": start}
    frames = list(deep_dream(tiny, picture, rate=1e-4, **words))
    assert len(frames) == 6
    for frame in frames:
        assert np.abs(frame.image - start).mean() < 2e-4 * frame.step


def test_deep_dream_start_image_may_have_another_size(tiny: Network, picture: np.ndarray) -> None:
    for shape in ((8, 8, 3), (40, 30, 3)):
        start = np.random.default_rng(0).random(shape).astype(np.float32)
        assert next(deep_dream(tiny, picture, of="conv2", start=start)).image.shape == (16, 16, 3)


def test_deep_dream_rate_and_jitter_are_live(tiny: Network, picture: np.ndarray) -> None:
    words = {"of": "conv2", "octaves": 1, "jitter": 0.0, "rate": 0.002}
    frames = deep_dream(tiny, picture, **words)
    first = next(frames).image
    second = frames.send({"rate": 0.02}).image
    third = frames.send({"rate": 1e-4}).image
    assert 0.0015 < np.abs(first - picture).mean() < 0.0021, "the rate, except where clipped"
    assert 0.01 < np.abs(second - first).mean() < 0.021
    assert np.abs(third - second).mean() < 1.1e-4
    plain, jittered = deep_dream(tiny, picture, **words), deep_dream(tiny, picture, **words)
    next(plain)
    next(jittered)
    assert np.abs(next(plain).image - jittered.send({"jitter": 0.5}).image).max() > 1e-3


def test_deep_dream_jitter_is_seeded(tiny: Network, picture: np.ndarray) -> None:
    one, again, other = (Run(deep_dream(tiny, picture, of="conv2", seed=seed)).run().image for seed in (1, 1, 2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("words", [{"of": "conv3"}, {"of": ("conv4", 5)}, {}])
def test_deep_dream_works_above_network_input_size(words: dict[str, Any], demo_net: Network) -> None:
    scene = demo.images(1, label="fish")[0]
    frames = list(deep_dream(demo_net, scene, size=128, iterations=5, **words))
    last = frames[-1]
    assert last.image.shape == (128, 128, 3)
    assert len(frames) == 20, "four octaves: 47, 65, 91 and 128"
    objective = channel("conv4", 5) if "of" in words and words["of"] != "conv3" else layer(words.get("of", "relu4"))
    before, after = (
        float(measure(demo_net, objective, demo_net.whole(one, 128))[0].detach()) for one in (scene.image, last.image)
    )
    assert after > 1.5 * before
    assert np.abs(last.image - demo_net.whole(scene, 128)[0].permute(1, 2, 0).numpy()).mean() < 0.25, "still the same image"


def test_deep_dream_of_class_uses_network_input_size(demo_net: Network) -> None:
    scene = demo.images(1, label="fish")[0]
    star = demo_net.target("star")
    frames = list(deep_dream(demo_net, scene, target=star, size=100, iterations=15, jitter=0.0))
    last = frames[-1].image
    assert last.shape == (100, 100, 3)

    def score(picture: np.ndarray) -> float:
        maps = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
        return float(demo_net(interpolate(maps, (64, 64), mode="bilinear", antialias=True))[0, star])

    assert score(last) > score(scene.image) + 5
    assert frames[-1].scalars["objective"] == pytest.approx(score(frames[-2].image), abs=0.2)
    assert demo_net.predict(demo_net.transform.fit(last), 1)[0][0] == "star"


def test_deep_dream_with_real_weights_does_not_crop_image(real: Path, squeezenet: Network) -> None:
    path = real / "photos" / "content_tubingen.jpg"
    frames = list(deep_dream(squeezenet, path, size=160, octaves=3))
    height, width, _ = frames[-1].image.shape
    assert max(height, width) == 160
    assert height != width
    before, after = (
        float(measure(squeezenet, layer("features.11"), squeezenet.whole(one, 160))[0].detach())
        for one in (path, frames[-1].image)
    )
    assert after > 2 * before
