from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.techniques.attribution.integrated_gradients import bit_reversed, integrated_gradients
from convis_widgets.techniques.attribution.saliency import saliency


def test_integrated_gradients_matches_captum(tiny: Network, image: np.ndarray) -> None:
    from captum.attr import IntegratedGradients

    batch = tiny.batch(image)
    theirs = IntegratedGradients(tiny).attribute(
        batch, baselines=0.25, target=1, n_steps=24, method="riemann_middle", internal_batch_size=24
    )
    frame = Run(integrated_gradients(tiny, image, target=1, steps=24, baseline=0.25)).run()
    theirs = theirs[0].permute(1, 2, 0).detach().numpy()
    assert np.abs(theirs).max() > 1e-3
    assert np.abs(frame.arrays["attribution"] - theirs).max() <= 1e-4 * np.abs(theirs).max()
    assert np.allclose(frame.heat, frame.arrays["attribution"].sum(2))


def test_integrated_gradients_sums_to_score_difference(tiny: Network, image: np.ndarray) -> None:
    errors = []
    for steps in (4, 256):
        frame = Run(integrated_gradients(tiny, image, target=2, steps=steps, baseline="black")).run()
        with torch.no_grad():
            rise = float(tiny(tiny.batch(image))[0, 2] - tiny(torch.zeros(1, 3, 16, 16, device=tiny.device))[0, 2])
        assert frame.scalars["rise"] == pytest.approx(rise, abs=1e-5)
        error = frame.arrays["attribution"].sum() - rise
        assert frame.scalars["completeness error"] == pytest.approx(error, abs=1e-4)
        errors.append(abs(error) / abs(rise))
    assert errors[1] < 0.02
    assert errors[1] < errors[0]


def test_integrated_gradients_has_no_scalars_if_network_ends_in_softmax(
    tiny: Network, tiny_module: nn.Module, image: np.ndarray
) -> None:
    softmax_net = Network(nn.Sequential(tiny_module, nn.Softmax(1)), transform=tiny.transform)
    plain, frame = (Run(integrated_gradients(net, image, target=1)).run() for net in (tiny, softmax_net))
    assert np.allclose(frame.heat, plain.heat, atol=1e-6)
    assert not frame.scalars, "the difference of the probabilities is not that of the scores"


def test_integrated_gradients_is_exact_in_one_step_for_linear_network() -> None:
    torch.manual_seed(0)
    net = Network(nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2)), size=8, channels=3)
    image = np.random.default_rng(1).random((8, 8, 3)).astype(np.float32)
    frame = next(integrated_gradients(net, image, target=0, steps=1, baseline="white"))
    weight = net.weights("1")[0][0].transpose(1, 2, 0)
    assert np.allclose(frame.arrays["attribution"], weight * (image - 1), atol=1e-6)
    assert abs(frame.scalars["completeness error"]) < 1e-5


def test_bit_reversed_spreads_first_midpoints_evenly() -> None:
    for count in (1, 2, 6, 64, 100):
        order = bit_reversed(count)
        assert sorted(order) == list(range(count))
    firsts = np.sort(bit_reversed(64)[:8])
    assert (np.diff(firsts) == 8).all()


def test_integrated_gradients_converges_while_streaming(
    image: np.ndarray, tiny: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "convis_widgets.techniques.attribution.integrated_gradients"
    monkeypatch.setattr(f"{module}.auto_batch_size", lambda *_, **__: 8)
    frames = list(integrated_gradients(tiny, image, target=1, steps=64))
    assert [frame.step for frame in frames] == list(range(8, 65, 8))
    far = [np.abs(frame.heat - frames[-1].heat).sum() for frame in frames]
    assert far[1] < far[0]
    assert far[-2] < 0.3 * far[0] + 1e-9


def test_integrated_gradients_baselines_match_their_names(tiny: Network, image: np.ndarray) -> None:
    def baseline(name: object, **kwargs: int) -> np.ndarray:
        return next(integrated_gradients(tiny, image, steps=1, baseline=name, **kwargs)).arrays["baseline"]

    assert np.allclose(baseline("mean"), np.float32([0.5, 0.4, 0.3]))
    assert (baseline("white") == 1).all()
    assert np.allclose(baseline((0.1, 0.2, 0.3)), np.float32([0.1, 0.2, 0.3]))
    blurred = baseline("blur")
    assert blurred.std() < 0.5 * image.std()
    assert np.allclose(blurred.mean((0, 1)), image.mean((0, 1)), atol=0.08)
    assert np.array_equal(baseline("noise", seed=3), baseline("noise", seed=3))
    assert not np.array_equal(baseline("noise", seed=3), baseline("noise", seed=4))


def test_integrated_gradients_single_step_is_midpoint_gradient_times_input(tiny: Network, image: np.ndarray) -> None:
    frame = next(integrated_gradients(tiny, image, target=0, steps=1, baseline="black"))
    middle = next(saliency(tiny, image * 0.5, target=0))
    assert np.allclose(frame.arrays["attribution"], middle.arrays["gradient"] * image, atol=1e-5)
