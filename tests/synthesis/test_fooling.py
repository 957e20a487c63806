from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets import demo
from convis_widgets.core.attribution.gradient import input_gradient
from convis_widgets.core.network.network import Network
from convis_widgets.core.network.unit import logit
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.synthesis.fooling import fooling


@pytest.fixture(scope="module")
def fish() -> np.ndarray:
    return demo.images(1, label="fish")[0].image


@pytest.mark.parametrize("method", ["normalized", "pgd"])
@pytest.mark.parametrize("robust", [True, False])
def test_fooling_reaches_target_class(method: str, robust: bool, fish: np.ndarray) -> None:
    net = Network.demo(robust=robust)
    kwargs = {"epsilon": 0.2, "iterations": 100, "lr": 0.005}
    last = Run(fooling(net, fish, target="cup", method=method, **kwargs)).run()
    assert last.scalars["fooled"] == 1
    assert net.predict(last.image, 1)[0][0] == "cup"
    assert net.predict(np.round(last.image * 255).astype(np.uint8), 1)[0][0] == "cup", "also when saved in 8 bits"


def test_fooling_needs_larger_change_for_robust_network(fish: np.ndarray) -> None:
    sizes = [Run(fooling(Network.demo(robust=robust), fish, target="cup")).run().scalars["l2"] for robust in (True, False)]
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("method", ["normalized", "pgd", "fgsm"])
def test_fooling_scalars_and_difference_match_reference(method: str, tiny: Network, image: np.ndarray) -> None:
    rounded = np.round(image * 255) / 255
    before = tiny.predict_proba(image)
    target = int(before.argsort()[1])
    for frame in fooling(tiny, image, target=target, method=method, iterations=5):
        p = tiny.predict_proba(frame.image)
        difference = frame.arrays["difference"]
        assert np.allclose(frame.image * 255, np.round(frame.image * 255), atol=1e-3), "in levels of 1/255"
        assert np.allclose(difference, frame.image - image, atol=1e-6)
        assert frame.scalars["target"] == pytest.approx(p[target], rel=1e-4)
        assert frame.scalars["original"] == pytest.approx(p[before.argmax()], rel=1e-4)
        assert frame.scalars["fooled"] == float(p.argmax() == target)
        assert frame.scalars["l2"] == pytest.approx(float(np.sqrt((difference**2).sum())), rel=1e-4)
        assert frame.scalars["linf"] == pytest.approx(float(np.abs(difference).max()), rel=1e-4)
        if method != "normalized":
            assert np.abs(frame.image - rounded).max() <= 3.01 / 255, "epsilon plus rounding"
    assert frame.done
    assert frame.step == (1 if method == "fgsm" else frame.step)


def test_fooling_stops_when_fooled_or_after_iterations(fish: np.ndarray) -> None:
    net = Network.demo()
    frames = list(fooling(net, fish, target="cup", lr=0.01, iterations=100))
    assert [frame.scalars["fooled"] for frame in frames] == [0.0] * (len(frames) - 1) + [1.0]
    given_up = list(fooling(net, fish, target="cup", lr=1e-4, iterations=3))
    assert (len(given_up), given_up[-1].done, given_up[-1].scalars["fooled"]) == (3, True, 0)


def log_prob_gradient(net: Network, image: np.ndarray, target: int) -> np.ndarray:
    """Gradient of the log probability, (H, W, C): the class logit's minus the probability-weighted mean of all logits'."""
    p, batch = net.predict_proba(image), net.batch(image)
    gradients = [input_gradient(net, batch, logit(c))[1][0].numpy() for c in range(len(p))]
    return sum((float(c == target) - p[c]) * gradients[c] for c in range(len(p))).transpose(1, 2, 0)


def test_fooling_fgsm_matches_reference(tiny: Network, image: np.ndarray) -> None:
    image = (np.round(image * 255) / 255).astype(np.float32)
    target = int(tiny.predict_proba(image).argsort()[1])
    expected = np.clip(image + 4 / 255 * np.sign(log_prob_gradient(tiny, image, target)), 0, 1)
    last = Run(fooling(tiny, image, target=target, method="fgsm", epsilon=4 / 255)).run()
    assert np.abs(last.image - expected).max() < 1e-4


def test_fooling_normalized_matches_reference(tiny: Network, image: np.ndarray) -> None:
    image = (np.round(image * 255) / 255).astype(np.float32)
    target = int(tiny.predict_proba(image).argmin())
    x = image.copy()
    for frame in fooling(tiny, image, lr=0.004, iterations=4):
        gradient = log_prob_gradient(tiny, x, target)
        x = np.clip(x + 0.004 * gradient / np.sqrt((gradient**2).mean()), 0, 1)
        assert np.abs(frame.image - np.round(x * 255) / 255).max() < 1.01 / 255
        assert np.abs(frame.image - np.round(x * 255) / 255).mean() < 0.01 / 255


def test_fooling_rejects_class_already_predicted(fish: np.ndarray) -> None:
    with pytest.raises(ValueError, match="demo.*fish"):
        next(fooling(Network.demo(), fish, target="fish"))


@pytest.mark.parametrize("kwargs", [{"method": "pgd", "epsilon": 2 / 255}, {"method": "normalized"}])
def test_fooling_with_real_weights_reaches_any_class(kwargs: dict[str, Any], real: Path, squeezenet: Network) -> None:
    rng = np.random.default_rng(0)
    names = sorted((real / "imagenet_sample").rglob("*.jpg"))
    for i, c in zip(rng.choice(len(names), 10, replace=False), rng.integers(0, 1000, 10), strict=True):
        last = Run(fooling(squeezenet, names[i], target=int(c), **kwargs)).run()
        assert last.scalars["fooled"] == 1
        assert last.step <= (10 if kwargs["method"] == "pgd" else 30)


class Masked(nn.Module):
    """A network that can never predict class 2, which has the lowest score otherwise."""

    def __init__(self, module: nn.Module, end: str) -> None:
        super().__init__()
        self.module, self.end = module, end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores = self.module(x) - torch.tensor([0.0, 0.0, 50.0, 0.0])
        scores = scores.masked_fill(torch.tensor([False, False, True, False]), -torch.inf)
        return {"logits": scores, "softmax": scores.softmax(1), "log_softmax": scores.log_softmax(1)}[self.end]


@pytest.mark.parametrize("end", ["logits", "softmax", "log_softmax"])
def test_fooling_default_target_is_not_a_masked_class(end: str, tiny_module: nn.Module, image: np.ndarray) -> None:
    net = Network(Masked(tiny_module, end), size=16)
    with torch.no_grad():
        scores = tiny_module(net.batch(image))[0]
    scores[2] = torch.inf
    first = next(fooling(net, image, lr=1e-4))
    assert first.scalars["target"] == pytest.approx(float(net.predict_proba(image)[int(scores.argmin())]), abs=0.01)
    if end != "softmax":
        with pytest.raises(ValueError, match="-inf for this image; choose another target"):
            next(fooling(net, image, target=2))
