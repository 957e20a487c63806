from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core import Ascent, Measured, Network, channel, gray, layer, logit, noise, squares
from convis_widgets.core.regularize import blurred, without_small_contribution, without_small_norm

RATES = {"gradient": 0.02, "adam": 0.02, "lbfgs": 0.5}


def class_score_gradient(net: Network, x: torch.Tensor, c: int) -> torch.Tensor:
    """Gradient of a class score with respect to the image minus the mean pixel."""
    x = x.clone().requires_grad_()
    net(x + net.transform.origin(x))[:, c].sum().backward()
    return x.grad


@pytest.mark.parametrize("parameterization", ["pixels", "fourier"])
@pytest.mark.parametrize(("optimizer", "jitter"), [("gradient", 0), ("gradient", 2), ("adam", 0), ("adam", 2), ("lbfgs", 0)])
def test_image_optimizer_increases_objective(parameterization: str, optimizer: str, jitter: int, tiny: Network) -> None:
    ascent = Ascent(tiny, noise(tiny, 0.1, 0), parameterization=parameterization, optimizer=optimizer)
    rate = RATES[optimizer] * (10 if parameterization == "fourier" and optimizer != "lbfgs" else 1)
    words = {"rate": rate, "normalize": "l2", "jitter": jitter}
    values = [float(ascent.step(logit(2), **words)["logit"]) for _ in range(40)]
    assert np.mean(values[-5:]) > np.mean(values[:5]) + 0.5
    assert ascent.steps == 40
    assert 0 <= ascent.picture().min() < ascent.picture().max() <= 1


@pytest.mark.parametrize("normalize", ["none", "l1", "l2", "progress", "sign"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_step_matches_reference(normalize: str, momentum: float, tiny: Network) -> None:
    ascent, start = Ascent(tiny, noise(tiny, 0.1, 0, count=2), optimizer="gradient"), noise(tiny, 0.1, 0, count=2)
    origin = tiny.transform.origin(start)
    x, velocity = start - origin, torch.zeros_like(start)
    for _ in range(4):
        ascent.step(logit(1), rate=0.003, normalize=normalize, momentum=momentum)
        g = class_score_gradient(tiny, x, 1)
        for n in range(2):
            size = {
                "none": 1.0,
                "l1": g[n].abs().mean(),
                "l2": (g[n] ** 2).mean() ** 0.5,
                "progress": (g[n] ** 2).sum(),
                "sign": g[n].abs().mean(),
            }[normalize]
            velocity[n] = momentum * velocity[n] + g[n] / size
            way = velocity[n].sign() if normalize == "sign" else velocity[n]
            x[n] = torch.minimum(torch.maximum(x[n] + 0.003 * way, -origin[0]), 1 - origin[0])
    assert torch.allclose(ascent.picture(), x + origin, atol=1e-5)
    assert (ascent.picture() - start).abs().max() > 1e-3


def test_adam_matches_torch(tiny: Network) -> None:
    ascent, start = Ascent(tiny, noise(tiny, 0.1, 0), optimizer="adam"), noise(tiny, 0.1, 0)
    origin = tiny.transform.origin(start)
    x = (start - origin).requires_grad_()
    torchs = torch.optim.Adam([x], lr=0.02, maximize=True)
    for _ in range(12):
        ascent.step(logit(1), rate=0.02)
        torchs.zero_grad()
        tiny(x + origin)[:, 1].sum().backward()
        torchs.step()
        with torch.no_grad():
            x.copy_(x.maximum(-origin).minimum(1 - origin))
    assert torch.allclose(ascent.picture(), (x + origin).detach(), atol=1e-4)


def test_lbfgs_beats_gradient_on_ill_conditioned_objective(tiny: Network) -> None:
    """Ill-conditioned quadratic: squares with weights from 1 to 10,000."""
    weights = torch.logspace(0, 4, 16 * 16 * 3).view(1, 3, 16, 16)
    weighted = squares().called("valley")
    object.__setattr__(weighted, "measure", lambda seen: (weights * (seen.picture - 0.1).square()).sum((1, 2, 3)))
    left = {}
    for optimizer, rate in (("gradient", 4e-5), ("lbfgs", 1.0)):
        ascent = Ascent(tiny, gray(tiny), optimizer=optimizer)
        for _ in range(60):
            left[optimizer] = float(ascent.step(-weighted, rate=rate)["valley"])
    assert left["lbfgs"] < left["gradient"] / 20


@pytest.mark.parametrize("parameterization", ["pixels", "fourier"])
def test_lbfgs_is_invariant_to_objective_scale(parameterization: str, tiny: Network) -> None:
    pictures = []
    for weight in (1e-7, 1, 1e4):
        ascent = Ascent(tiny, noise(tiny, 0.1, 0), optimizer="lbfgs", parameterization=parameterization)
        for _ in range(8):
            ascent.step(weight * logit(1), rate=1)
        pictures.append(ascent.picture())
    assert (pictures[1] - noise(tiny, 0.1, 0)).abs().max() > 0.05
    assert torch.allclose(pictures[0], pictures[1], atol=1e-2)
    assert torch.allclose(pictures[2], pictures[1], atol=1e-2)


def test_lbfgs_converges_with_pixels_at_range_limits(demo_net: Network) -> None:
    """The optimum of half of the pixels is outside the valid range, and curvatures differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.logspace(0, 3, 3 * 64 * 64).view(1, 3, 64, 64)
    far = 0.8 * torch.randn(1, 3, 64, 64, generator=generator)
    valley = Measured("valley", frozenset(), lambda seen: (weights * (seen.picture - far).square()).sum((1, 2, 3)))
    ascent = Ascent(demo_net, noise(demo_net, 0.1, 0), optimizer="lbfgs")
    values = [float(ascent.step(-valley, rate=1.0)["valley"]) for _ in range(80)]
    best = float((weights * (far.clamp(-0.5, 0.5) - far).square()).sum())
    assert (values[0] - best) > 1000 * (values[-1] - best)


def test_lbfgs_escapes_region_of_negative_curvature(tiny: Network) -> None:
    """No step gives a curvature estimate there, as for Gram matrices near gray."""
    length = squares().called("length")
    object.__setattr__(length, "measure", lambda seen: (1 - seen.picture.square().mean((1, 2, 3)) / 0.01).square())
    ascent = Ascent(tiny, noise(tiny, 1e-3, 0), optimizer="lbfgs")
    left = [float(ascent.step(-length, rate=1.0)["length"]) for _ in range(30)]
    assert left[0] > 0.99
    assert left[-1] < 1e-6


def test_step_regularizers_match_reference(tiny: Network) -> None:
    """J. Yosinski's loop: step, decay, blur every few steps, clip small norms, clip small contributions, clamp."""
    ascent, start = Ascent(tiny, noise(tiny, 0.1, 0), optimizer="gradient"), noise(tiny, 0.1, 0)
    origin = tiny.transform.origin(start)
    x = start - origin
    words = {"decay": 0.1, "blur": 0.6, "blur_every": 2, "small_norm": 0.2, "small_contribution": 0.3}
    for step in range(1, 6):
        ascent.step(logit(1), rate=0.02, normalize="l2", **words)
        g = class_score_gradient(tiny, x, 1)
        x = (x + 0.02 * g / (g**2).mean() ** 0.5) * 0.9
        x = blurred(x, 0.6) if step % 2 == 0 else x
        x = without_small_contribution(without_small_norm(x, 0.2), g, 0.3)
        x = x.maximum(-origin).minimum(1 - origin)
    assert torch.allclose(ascent.picture(), x + origin, atol=1e-5)
    assert ((ascent.picture() - origin).abs().amax(1) < 1e-7).float().mean() > 0.25


def test_decay_converges_to_mean_pixel_not_black(tiny: Network) -> None:
    ascent = Ascent(tiny, noise(tiny, 0.2, 0), optimizer="gradient")
    for _ in range(60):
        ascent.step(squares(), rate=0.0, decay=0.2)
    assert torch.allclose(ascent.picture(), gray(tiny), atol=1e-4)
    assert gray(tiny)[0, :, 0, 0].tolist() == pytest.approx([0.5, 0.4, 0.3])


def test_mean_image_without_known_mean_is_half(tiny_module: nn.Module) -> None:
    assert (gray(Network(tiny_module, size=16)) == 0.5).all()


def test_jitter_does_not_shift_image_itself(tiny: Network) -> None:
    ascent = Ascent(tiny, gray(tiny), optimizer="gradient")
    mark = torch.zeros(1, 3, 16, 16)
    mark[0, :, 3, 5] = 0.4
    with torch.no_grad():
        ascent.canvas.values.add_(mark)
    for _ in range(5):
        ascent.step(logit(0), rate=0.0, jitter=4, rotate=20, scale=0.2)
    assert torch.allclose(ascent.picture(), gray(tiny) + mark, atol=1e-6)


@pytest.mark.parametrize("words", [{"jitter": 3}, {"rotate": 10.0}, {"scale": 0.2}])
def test_image_optimizer_depends_only_on_seed(words: dict[str, float], tiny: Network) -> None:
    def painted(seed: int) -> torch.Tensor:
        ascent = Ascent(tiny, gray(tiny), optimizer="gradient", seed=seed)
        for _ in range(4):
            ascent.step(logit(0), rate=0.02, normalize="l2", **words)
        return ascent.picture()

    assert torch.equal(painted(3), painted(3))
    assert not torch.equal(painted(3), painted(4))


def test_image_optimizer_preserves_global_rng_state(tiny: Network) -> None:
    before = torch.random.get_rng_state()
    ascent = Ascent(tiny, noise(tiny, 0.1, 0))
    ascent.step(logit(0), rate=0.1, jitter=2, rotate=4)
    assert torch.equal(before, torch.random.get_rng_state())


def test_step_leaves_no_grads_and_restores_grad_mode(tiny: Network) -> None:
    ascent = Ascent(tiny, gray(tiny), optimizer="lbfgs")
    with torch.no_grad():
        ascent.step(channel("conv2", 1), rate=0.1)
        assert not torch.is_grad_enabled()
    assert ascent.canvas.values.grad is None
    assert all(p.grad is None for p in tiny.module.parameters())


def test_step_with_non_finite_gradient_raises_and_keeps_image(tiny: Network) -> None:
    ascent = Ascent(tiny, gray(tiny), optimizer="gradient")
    with torch.no_grad():
        tiny.module.conv1.weight[0] = torch.nan
    with pytest.raises(ValueError, match="tiny.*finite"):
        ascent.step(logit(0), rate=1)
    assert torch.equal(ascent.picture(), gray(tiny))


def test_step_decay_requires_pixels_parameterization(tiny: Network) -> None:
    ascent = Ascent(tiny, gray(tiny), parameterization="fourier")
    with pytest.raises(ValueError, match="parameterization.*pixels"):
        ascent.step(logit(0), rate=1, decay=0.1)


def test_deepdream_objective_increases_at_any_size(tiny: Network) -> None:
    ascent = Ascent(tiny, gray(tiny, size=(20, 30)) + 0.05 * torch.rand(1, 3, 20, 30), optimizer="gradient")
    values = [float(ascent.step(layer("conv2"), rate=0.02, normalize="l1")["activity"]) for _ in range(10)]
    assert values[-1] > 1.5 * values[0]
    assert np.shape(ascent.picture()) == (1, 3, 20, 30)


def test_step_limits_pixel_change(tiny: Network) -> None:
    start = noise(tiny, 0.3, 0)
    ascent = Ascent(tiny, start, optimizer="gradient", most=0.02)
    for _ in range(5):
        ascent.step(logit(1), rate=0.01, normalize="sign")
    moved = (ascent.picture() - start).abs()
    assert float(moved.max()) == pytest.approx(0.02, abs=1e-6)
    assert 0 <= ascent.picture().min() <= ascent.picture().max() <= 1


def test_step_with_fixed_norm_matches_reference(tiny: Network) -> None:
    start = noise(tiny, 0.05, 0, count=2)
    ascent, origin = Ascent(tiny, start, optimizer="gradient"), tiny.transform.origin(start)
    x = start - origin
    for _ in range(5):
        ascent.step(logit(1), rate=0.01, normalize="l2", norm=1.3)
        g = class_score_gradient(tiny, x, 1)
        for n in range(2):
            x[n] = x[n] + 0.01 * g[n] / (g[n] ** 2).mean() ** 0.5
            x[n] = x[n] * 1.3 / (x[n] ** 2).sum() ** 0.5
        assert (ascent.picture() - origin).flatten(1).norm(dim=1).tolist() == pytest.approx([1.3, 1.3], rel=1e-5)
    assert torch.allclose(ascent.picture(), x + origin, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["gradient", "adam", "lbfgs"])
def test_image_optimizer_reset_drops_curvature_but_keeps_momentum(optimizer: str, tiny: Network) -> None:
    words = {"rate": RATES[optimizer], "normalize": "l2", "momentum": 0.9}
    forgetful, usual = (Ascent(tiny, noise(tiny, 0.1, 0), optimizer=optimizer) for _ in range(2))
    for ascent in (forgetful, usual):
        for _ in range(4):
            ascent.step(logit(1), **words)
    fresh = Ascent(tiny, forgetful.picture(), optimizer=optimizer)
    forgetful.forget()
    for _ in range(3):
        for ascent in (forgetful, usual, fresh):
            ascent.step(logit(2), **words)
    same = fresh if optimizer == "lbfgs" else usual  # momentum is kept
    other = usual if optimizer == "lbfgs" else fresh
    assert torch.allclose(forgetful.picture(), same.picture(), atol=1e-5)
    assert (forgetful.picture() - other.picture()).abs().max() > 1e-3
    assert forgetful.steps == 7
