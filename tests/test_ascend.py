from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core import Ascent, Measured, Network, channel, gray, layer, logit, noise, squares
from convis_widgets.core.regularize import blurred, without_small_contribution, without_small_norm

RATES = {"gradient": 0.02, "adam": 0.02, "lbfgs": 0.5}


def gradient_of(net: Network, x: torch.Tensor, c: int) -> torch.Tensor:
    """Of a class's score, with respect to pixels less the mean pixel."""
    x = x.clone().requires_grad_()
    net(x + net.transform.origin(x))[:, c].sum().backward()
    return x.grad


@pytest.mark.parametrize("parameterization", ["pixels", "fourier"])
@pytest.mark.parametrize(("optimizer", "jitter"), [("gradient", 0), ("gradient", 2), ("adam", 0), ("adam", 2), ("lbfgs", 0)])
def test_an_objective_rises(parameterization: str, optimizer: str, jitter: int, tiny: Network) -> None:
    ascent = Ascent(tiny, noise(tiny, 0.1, 0), parameterization=parameterization, optimizer=optimizer)
    rate = RATES[optimizer] * (10 if parameterization == "fourier" and optimizer != "lbfgs" else 1)
    words = {"rate": rate, "normalize": "l2", "jitter": jitter}
    values = [float(ascent.step(logit(2), **words)["logit"]) for _ in range(40)]
    assert np.mean(values[-5:]) > np.mean(values[:5]) + 0.5
    assert ascent.steps == 40
    assert 0 <= ascent.picture().min() < ascent.picture().max() <= 1


@pytest.mark.parametrize("normalize", ["none", "l1", "l2", "progress", "sign"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_slow_twin_of_steps_along_the_gradient(normalize: str, momentum: float, tiny: Network) -> None:
    ascent, start = Ascent(tiny, noise(tiny, 0.1, 0, count=2), optimizer="gradient"), noise(tiny, 0.1, 0, count=2)
    origin = tiny.transform.origin(start)
    x, velocity = start - origin, torch.zeros_like(start)
    for _ in range(4):
        ascent.step(logit(1), rate=0.003, normalize=normalize, momentum=momentum)
        g = gradient_of(tiny, x, 1)
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


def test_adam_is_torchs(tiny: Network) -> None:
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


def test_lbfgs_goes_far_where_the_gradient_goes_slowly(tiny: Network) -> None:
    """A long valley: squares of very different weight."""
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
def test_lbfgs_does_not_mind_by_how_much_an_objective_is_weighed(parameterization: str, tiny: Network) -> None:
    pictures = []
    for weight in (1e-7, 1, 1e4):
        ascent = Ascent(tiny, noise(tiny, 0.1, 0), optimizer="lbfgs", parameterization=parameterization)
        for _ in range(8):
            ascent.step(weight * logit(1), rate=1)
        pictures.append(ascent.picture())
    assert (pictures[1] - noise(tiny, 0.1, 0)).abs().max() > 0.05
    assert torch.allclose(pictures[0], pictures[1], atol=1e-2)
    assert torch.allclose(pictures[2], pictures[1], atol=1e-2)


def test_lbfgs_is_not_led_astray_by_pixels_at_the_ends(demo_net: Network) -> None:
    """What is wanted of half of the pixels lies outside of the valid range, and curvatures are very different."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.logspace(0, 3, 3 * 64 * 64).view(1, 3, 64, 64)
    far = 0.8 * torch.randn(1, 3, 64, 64, generator=generator)
    valley = Measured("valley", frozenset(), lambda seen: (weights * (seen.picture - far).square()).sum((1, 2, 3)))
    ascent = Ascent(demo_net, noise(demo_net, 0.1, 0), optimizer="lbfgs")
    values = [float(ascent.step(-valley, rate=1.0)["valley"]) for _ in range(80)]
    best = float((weights * (far.clamp(-0.5, 0.5) - far).square()).sum())
    assert (values[0] - best) > 1000 * (values[-1] - best)


def test_lbfgs_leaves_a_place_where_the_gradient_grows_uphill(tiny: Network) -> None:
    """There no step tells how far to go, as for Gram matrices near gray."""
    length = squares().called("length")
    object.__setattr__(length, "measure", lambda seen: (1 - seen.picture.square().mean((1, 2, 3)) / 0.01).square())
    ascent = Ascent(tiny, noise(tiny, 1e-3, 0), optimizer="lbfgs")
    left = [float(ascent.step(-length, rate=1.0)["length"]) for _ in range(30)]
    assert left[0] > 0.99
    assert left[-1] < 1e-6


def test_slow_twin_of_the_regularizing_steps(tiny: Network) -> None:
    """J. Yosinski's loop: step, decay, blur every so many, clip the small norms, clip the small contributions, cut off."""
    ascent, start = Ascent(tiny, noise(tiny, 0.1, 0), optimizer="gradient"), noise(tiny, 0.1, 0)
    origin = tiny.transform.origin(start)
    x = start - origin
    words = {"decay": 0.1, "blur": 0.6, "blur_every": 2, "small_norm": 0.2, "small_contribution": 0.3}
    for step in range(1, 6):
        ascent.step(logit(1), rate=0.02, normalize="l2", **words)
        g = gradient_of(tiny, x, 1)
        x = (x + 0.02 * g / (g**2).mean() ** 0.5) * 0.9
        x = blurred(x, 0.6) if step % 2 == 0 else x
        x = without_small_contribution(without_small_norm(x, 0.2), g, 0.3)
        x = x.maximum(-origin).minimum(1 - origin)
    assert torch.allclose(ascent.picture(), x + origin, atol=1e-5)
    assert ((ascent.picture() - origin).abs().amax(1) < 1e-7).float().mean() > 0.25


def test_decay_pulls_to_the_mean_pixel_and_not_to_black(tiny: Network) -> None:
    ascent = Ascent(tiny, noise(tiny, 0.2, 0), optimizer="gradient")
    for _ in range(60):
        ascent.step(squares(), rate=0.0, decay=0.2)
    assert torch.allclose(ascent.picture(), gray(tiny), atol=1e-4)
    assert gray(tiny)[0, :, 0, 0].tolist() == pytest.approx([0.5, 0.4, 0.3])


def test_without_a_known_mean_nothing_is_gray(tiny_module: nn.Module) -> None:
    assert (gray(Network(tiny_module, size=16)) == 0.5).all()


def test_what_was_jittered_is_not_displaced_itself(tiny: Network) -> None:
    ascent = Ascent(tiny, gray(tiny), optimizer="gradient")
    mark = torch.zeros(1, 3, 16, 16)
    mark[0, :, 3, 5] = 0.4
    with torch.no_grad():
        ascent.canvas.values.add_(mark)
    for _ in range(5):
        ascent.step(logit(0), rate=0.0, jitter=4, rotate=20, scale=0.2)
    assert torch.allclose(ascent.picture(), gray(tiny) + mark, atol=1e-6)


@pytest.mark.parametrize("words", [{"jitter": 3}, {"rotate": 10.0}, {"scale": 0.2}])
def test_the_seed_decides(words: dict[str, float], tiny: Network) -> None:
    def painted(seed: int) -> torch.Tensor:
        ascent = Ascent(tiny, gray(tiny), optimizer="gradient", seed=seed)
        for _ in range(4):
            ascent.step(logit(0), rate=0.02, normalize="l2", **words)
        return ascent.picture()

    assert torch.equal(painted(3), painted(3))
    assert not torch.equal(painted(3), painted(4))


def test_global_random_state_is_left_alone(tiny: Network) -> None:
    before = torch.random.get_rng_state()
    ascent = Ascent(tiny, noise(tiny, 0.1, 0))
    ascent.step(logit(0), rate=0.1, jitter=2, rotate=4)
    assert torch.equal(before, torch.random.get_rng_state())


def test_nothing_is_left_on_weights_or_grad_mode(tiny: Network) -> None:
    ascent = Ascent(tiny, gray(tiny), optimizer="lbfgs")
    with torch.no_grad():
        ascent.step(channel("conv2", 1), rate=0.1)
        assert not torch.is_grad_enabled()
    assert ascent.canvas.values.grad is None
    assert all(p.grad is None for p in tiny.module.parameters())


def test_a_gradient_that_is_not_finite_is_told_and_the_picture_kept(tiny: Network) -> None:
    ascent = Ascent(tiny, gray(tiny), optimizer="gradient")
    with torch.no_grad():
        tiny.module.conv1.weight[0] = torch.nan
    with pytest.raises(ValueError, match="the score of tiny or its gradient is not finite; its weights may have diverged"):
        ascent.step(logit(0), rate=1)
    assert torch.equal(ascent.picture(), gray(tiny))


def test_clipping_is_for_pixels(tiny: Network) -> None:
    ascent = Ascent(tiny, gray(tiny), parameterization="fourier")
    with pytest.raises(ValueError, match='are for pixels; choose parameterization="pixels"'):
        ascent.step(logit(0), rate=1, decay=0.1)


def test_a_layer_can_be_raised_at_any_size(tiny: Network) -> None:
    ascent = Ascent(tiny, gray(tiny, size=(20, 30)) + 0.05 * torch.rand(1, 3, 20, 30), optimizer="gradient")
    values = [float(ascent.step(layer("conv2"), rate=0.02, normalize="l1")["activity"]) for _ in range(10)]
    assert values[-1] > 1.5 * values[0]
    assert np.shape(ascent.picture()) == (1, 3, 20, 30)


def test_no_pixel_goes_further_than_it_may(tiny: Network) -> None:
    start = noise(tiny, 0.3, 0)
    ascent = Ascent(tiny, start, optimizer="gradient", most=0.02)
    for _ in range(5):
        ascent.step(logit(1), rate=0.01, normalize="sign")
    moved = (ascent.picture() - start).abs()
    assert float(moved.max()) == pytest.approx(0.02, abs=1e-6)
    assert 0 <= ascent.picture().min() <= ascent.picture().max() <= 1


def test_slow_twin_of_steps_on_a_sphere(tiny: Network) -> None:
    start = noise(tiny, 0.05, 0, count=2)
    ascent, origin = Ascent(tiny, start, optimizer="gradient"), tiny.transform.origin(start)
    x = start - origin
    for _ in range(5):
        ascent.step(logit(1), rate=0.01, normalize="l2", norm=1.3)
        g = gradient_of(tiny, x, 1)
        for n in range(2):
            x[n] = x[n] + 0.01 * g[n] / (g[n] ** 2).mean() ** 0.5
            x[n] = x[n] * 1.3 / (x[n] ** 2).sum() ** 0.5
        assert (ascent.picture() - origin).flatten(1).norm(dim=1).tolist() == pytest.approx([1.3, 1.3], rel=1e-5)
    assert torch.allclose(ascent.picture(), x + origin, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["gradient", "adam", "lbfgs"])
def test_what_only_holds_for_one_objective_is_forgotten(optimizer: str, tiny: Network) -> None:
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
    same = fresh if optimizer == "lbfgs" else usual  # a velocity is kept
    other = usual if optimizer == "lbfgs" else fresh
    assert torch.allclose(forgetful.picture(), same.picture(), atol=1e-5)
    assert (forgetful.picture() - other.picture()).abs().max() > 1e-3
    assert forgetful.steps == 7
