from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convis_widgets.core.network.images import gaussian_blur
from convis_widgets.core.network.network import Network
from convis_widgets.core.synthesis import image_optimizer, objectives
from convis_widgets.core.synthesis.image_optimizer import ImageOptimizer, mean_image, noise
from convis_widgets.core.synthesis.objectives import FunctionObjective
from convis_widgets.core.synthesis.regularizers import clip_small_contribution, clip_small_norm

Activation = Callable[[torch.Tensor], torch.Tensor]
RATES = {"gradient": 0.02, "adam": 0.02, "lbfgs": 0.5}


def class_score_gradient(net: Network, x: torch.Tensor, c: int) -> torch.Tensor:
    """Gradient of a class score with respect to the image minus the mean pixel."""
    x = x.clone().requires_grad_()
    net(x + net.transform.mean_pixel_tensor(x))[:, c].sum().backward()
    return x.grad


@pytest.mark.parametrize("parameterization", ["pixels", "fourier"])
@pytest.mark.parametrize(("optimizer", "jitter"), [("gradient", 0), ("gradient", 2), ("adam", 0), ("adam", 2), ("lbfgs", 0)])
def test_image_optimizer_increases_objective(parameterization: str, optimizer: str, jitter: int, tiny: Network) -> None:
    opt = ImageOptimizer(tiny, noise(tiny, 0.1, 0), parameterization=parameterization, optimizer=optimizer)
    lr = RATES[optimizer] * (10 if parameterization == "fourier" and optimizer != "lbfgs" else 1)
    kwargs = {"lr": lr, "normalize": "l2", "jitter": jitter}
    values = [float(opt.step(objectives.class_logit(2), **kwargs)["logit"]) for _ in range(40)]
    assert np.mean(values[-5:]) > np.mean(values[:5]) + 0.5
    assert opt.steps == 40
    assert 0 <= opt.image().min() < opt.image().max() <= 1


@pytest.mark.parametrize("normalize", ["none", "l1", "l2", "progress", "sign"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradient_step_matches_reference(normalize: str, momentum: float, tiny: Network) -> None:
    opt, start = ImageOptimizer(tiny, noise(tiny, 0.1, 0, count=2), optimizer="gradient"), noise(tiny, 0.1, 0, count=2)
    origin = tiny.transform.mean_pixel_tensor(start)
    x, velocity = start - origin, torch.zeros_like(start)
    for _ in range(4):
        opt.step(objectives.class_logit(1), lr=0.003, normalize=normalize, momentum=momentum)
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
            direction = velocity[n].sign() if normalize == "sign" else velocity[n]
            x[n] = torch.minimum(torch.maximum(x[n] + 0.003 * direction, -origin[0]), 1 - origin[0])
    assert torch.allclose(opt.image(), x + origin, atol=1e-5)
    assert (opt.image() - start).abs().max() > 1e-3


def test_adam_matches_torch(tiny: Network) -> None:
    opt, start = ImageOptimizer(tiny, noise(tiny, 0.1, 0), optimizer="adam"), noise(tiny, 0.1, 0)
    origin = tiny.transform.mean_pixel_tensor(start)
    x = (start - origin).requires_grad_()
    reference = torch.optim.Adam([x], lr=0.02, maximize=True)
    for _ in range(12):
        opt.step(objectives.class_logit(1), lr=0.02)
        reference.zero_grad()
        tiny(x + origin)[:, 1].sum().backward()
        reference.step()
        with torch.no_grad():
            x.copy_(x.maximum(-origin).minimum(1 - origin))
    assert torch.allclose(opt.image(), (x + origin).detach(), atol=1e-4)


def test_lbfgs_beats_gradient_on_ill_conditioned_objective(tiny: Network) -> None:
    """Ill-conditioned quadratic: squares with weights from 1 to 10,000."""
    weights = torch.logspace(0, 4, 16 * 16 * 3).view(1, 3, 16, 16)
    valley = FunctionObjective(
        "valley", frozenset(), lambda forward: (weights * (forward.image - 0.1).square()).sum((1, 2, 3))
    )
    values = {}
    for optimizer, lr in (("gradient", 4e-5), ("lbfgs", 1.0)):
        opt = ImageOptimizer(tiny, mean_image(tiny), optimizer=optimizer)
        for _ in range(60):
            values[optimizer] = float(opt.step(-valley, lr=lr)["valley"])
    assert values["lbfgs"] < values["gradient"] / 20


@pytest.mark.parametrize("parameterization", ["pixels", "fourier"])
def test_lbfgs_is_invariant_to_objective_scale(parameterization: str, tiny: Network) -> None:
    images = []
    for weight in (1e-7, 1, 1e4):
        opt = ImageOptimizer(tiny, noise(tiny, 0.1, 0), optimizer="lbfgs", parameterization=parameterization)
        for _ in range(8):
            opt.step(weight * objectives.class_logit(1), lr=1)
        images.append(opt.image())
    assert (images[1] - noise(tiny, 0.1, 0)).abs().max() > 0.05
    assert torch.allclose(images[0], images[1], atol=1e-2)
    assert torch.allclose(images[2], images[1], atol=1e-2)


def test_lbfgs_converges_with_pixels_at_range_limits(demo_net: Network) -> None:
    """The optimum of half of the pixels is outside the valid range, and curvatures differ by orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.logspace(0, 3, 3 * 64 * 64).view(1, 3, 64, 64)
    far = 0.8 * torch.randn(1, 3, 64, 64, generator=generator)
    valley = FunctionObjective(
        "valley", frozenset(), lambda forward: (weights * (forward.image - far).square()).sum((1, 2, 3))
    )
    opt = ImageOptimizer(demo_net, noise(demo_net, 0.1, 0), optimizer="lbfgs")
    values = [float(opt.step(-valley, lr=1.0)["valley"]) for _ in range(80)]
    best = float((weights * (far.clamp(-0.5, 0.5) - far).square()).sum())
    assert (values[0] - best) > 1000 * (values[-1] - best)


def test_lbfgs_escapes_region_of_negative_curvature(tiny: Network) -> None:
    """No step gives a curvature estimate there, as for Gram matrices near gray."""
    length = FunctionObjective(
        "length", frozenset(), lambda forward: (1 - forward.image.square().mean((1, 2, 3)) / 0.01).square()
    )
    opt = ImageOptimizer(tiny, noise(tiny, 1e-3, 0), optimizer="lbfgs")
    values = [float(opt.step(-length, lr=1.0)["length"]) for _ in range(30)]
    assert values[0] > 0.99
    assert values[-1] < 1e-6


def test_step_regularizers_match_reference(tiny: Network) -> None:
    """J. Yosinski's loop: step, decay, blur every few steps, clip small norms, clip small contributions, clamp."""
    opt, start = ImageOptimizer(tiny, noise(tiny, 0.1, 0), optimizer="gradient"), noise(tiny, 0.1, 0)
    origin = tiny.transform.mean_pixel_tensor(start)
    x = start - origin
    kwargs = {"decay": 0.1, "blur": 0.6, "blur_every": 2, "clip_norm_fraction": 0.2, "clip_contribution_fraction": 0.3}
    for step in range(1, 6):
        opt.step(objectives.class_logit(1), lr=0.02, normalize="l2", **kwargs)
        g = class_score_gradient(tiny, x, 1)
        x = (x + 0.02 * g / (g**2).mean() ** 0.5) * 0.9
        x = gaussian_blur(x, 0.6) if step % 2 == 0 else x
        x = clip_small_contribution(clip_small_norm(x, 0.2), g, 0.3)
        x = x.maximum(-origin).minimum(1 - origin)
    assert torch.allclose(opt.image(), x + origin, atol=1e-5)
    assert ((opt.image() - origin).abs().amax(1) < 1e-7).float().mean() > 0.25


def test_decay_converges_to_mean_pixel_not_black(tiny: Network) -> None:
    opt = ImageOptimizer(tiny, noise(tiny, 0.2, 0), optimizer="gradient")
    for _ in range(60):
        opt.step(objectives.l2(), lr=0.0, decay=0.2)
    assert torch.allclose(opt.image(), mean_image(tiny), atol=1e-4)
    assert mean_image(tiny)[0, :, 0, 0].tolist() == pytest.approx([0.5, 0.4, 0.3])


def test_mean_image_without_known_mean_is_half(tiny_module: nn.Module) -> None:
    assert (mean_image(Network(tiny_module, size=16)) == 0.5).all()


def test_jitter_does_not_shift_image_itself(tiny: Network) -> None:
    opt = ImageOptimizer(tiny, mean_image(tiny), optimizer="gradient")
    mark = torch.zeros(1, 3, 16, 16)
    mark[0, :, 3, 5] = 0.4
    with torch.no_grad():
        opt.param.values.add_(mark)
    for _ in range(5):
        opt.step(objectives.class_logit(0), lr=0.0, jitter=4, rotate=20, scale=0.2)
    assert torch.allclose(opt.image(), mean_image(tiny) + mark, atol=1e-6)


@pytest.mark.parametrize("kwargs", [{"jitter": 3}, {"rotate": 10.0}, {"scale": 0.2}])
def test_image_optimizer_depends_only_on_seed(kwargs: dict[str, float], tiny: Network) -> None:
    def optimized_image(seed: int) -> torch.Tensor:
        opt = ImageOptimizer(tiny, mean_image(tiny), optimizer="gradient", seed=seed)
        for _ in range(4):
            opt.step(objectives.class_logit(0), lr=0.02, normalize="l2", **kwargs)
        return opt.image()

    assert torch.equal(optimized_image(3), optimized_image(3))
    assert not torch.equal(optimized_image(3), optimized_image(4))


def test_image_optimizer_preserves_global_rng_state(tiny: Network) -> None:
    before = torch.random.get_rng_state()
    opt = ImageOptimizer(tiny, noise(tiny, 0.1, 0))
    opt.step(objectives.class_logit(0), lr=0.1, jitter=2, rotate=4)
    assert torch.equal(before, torch.random.get_rng_state())


def test_step_leaves_no_grads_and_restores_grad_mode(tiny: Network) -> None:
    opt = ImageOptimizer(tiny, mean_image(tiny), optimizer="lbfgs")
    with torch.no_grad():
        opt.step(objectives.channel("conv2", 1), lr=0.1)
        assert not torch.is_grad_enabled()
    assert opt.param.values.grad is None
    assert all(p.grad is None for p in tiny.module.parameters())


def test_step_with_non_finite_gradient_raises_and_keeps_image(tiny: Network) -> None:
    opt = ImageOptimizer(tiny, mean_image(tiny), optimizer="gradient")
    with torch.no_grad():
        tiny.module.conv1.weight[0] = torch.nan
    with pytest.raises(ValueError, match="tiny.*finite"):
        opt.step(objectives.class_logit(0), lr=1)
    assert torch.equal(opt.image(), mean_image(tiny))


def test_step_decay_requires_pixels_parameterization(tiny: Network) -> None:
    opt = ImageOptimizer(tiny, mean_image(tiny), parameterization="fourier")
    with pytest.raises(ValueError, match="parameterization.*pixels"):
        opt.step(objectives.class_logit(0), lr=1, decay=0.1)


def test_deepdream_objective_increases_at_any_size(tiny: Network) -> None:
    opt = ImageOptimizer(
        tiny, mean_image(tiny, size=(20, 30)) + 0.05 * torch.rand(1, 3, 20, 30, device=tiny.device), optimizer="gradient"
    )
    values = [float(opt.step(objectives.deepdream("conv2"), lr=0.02, normalize="l1")["activity"]) for _ in range(10)]
    assert values[-1] > 1.5 * values[0]
    assert np.shape(opt.image()) == (1, 3, 20, 30)


def test_step_limits_pixel_change(tiny: Network) -> None:
    start = noise(tiny, 0.3, 0)
    opt = ImageOptimizer(tiny, start, optimizer="gradient", max_change=0.02)
    for _ in range(5):
        opt.step(objectives.class_logit(1), lr=0.01, normalize="sign")
    change = (opt.image() - start).abs()
    assert float(change.max()) == pytest.approx(0.02, abs=1e-6)
    assert 0 <= opt.image().min() <= opt.image().max() <= 1


def test_step_with_fixed_norm_matches_reference(tiny: Network) -> None:
    start = noise(tiny, 0.05, 0, count=2)
    opt, origin = ImageOptimizer(tiny, start, optimizer="gradient"), tiny.transform.mean_pixel_tensor(start)
    x = start - origin
    for _ in range(5):
        opt.step(objectives.class_logit(1), lr=0.01, normalize="l2", norm=1.3)
        g = class_score_gradient(tiny, x, 1)
        for n in range(2):
            x[n] = x[n] + 0.01 * g[n] / (g[n] ** 2).mean() ** 0.5
            x[n] = x[n] * 1.3 / (x[n] ** 2).sum() ** 0.5
        assert (opt.image() - origin).flatten(1).norm(dim=1).tolist() == pytest.approx([1.3, 1.3], rel=1e-5)
    assert torch.allclose(opt.image(), x + origin, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["gradient", "adam", "lbfgs"])
def test_image_optimizer_reset_drops_curvature_but_keeps_momentum(optimizer: str, tiny: Network) -> None:
    kwargs = {"lr": RATES[optimizer], "normalize": "l2", "momentum": 0.9}
    reset, unchanged = (ImageOptimizer(tiny, noise(tiny, 0.1, 0), optimizer=optimizer) for _ in range(2))
    for opt in (reset, unchanged):
        for _ in range(4):
            opt.step(objectives.class_logit(1), **kwargs)
    fresh = ImageOptimizer(tiny, reset.image(), optimizer=optimizer)
    reset.reset_state()
    for _ in range(3):
        for opt in (reset, unchanged, fresh):
            opt.step(objectives.class_logit(2), **kwargs)
    same = fresh if optimizer == "lbfgs" else unchanged  # momentum is kept
    other = unchanged if optimizer == "lbfgs" else fresh
    assert torch.allclose(reset.image(), same.image(), atol=1e-5)
    assert (reset.image() - other.image()).abs().max() > 1e-3
    assert reset.steps == 7


# -- gradients through closed rectifiers -------------------------------------------------------------------------------


class Closed(nn.Module):
    """Two convolutions whose outputs are moved out of the range of a rectifier."""

    def __init__(self, activation: Activation, offsets: tuple[float, float]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Linear(5, 2)
        self.offsets, self.activation = offsets, activation
        self.first, self.second = nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.activation(self.conv1(x) + self.offsets[0]))
        x = self.second(self.activation(self.conv2(x) + self.offsets[1]))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("activation", "first", "sign"),
    [
        (F.relu, -9, 1),
        (lambda x: torch.relu_(x * 1), -9, 1),
        (lambda x: F.threshold(x, 0, 0), -9, 1),
        (lambda x: x.clamp(min=0), -9, 1),
        (F.relu6, -9, 1),
        (F.relu6, 15, -1),
        (F.hardtanh, -9, 1),
        (lambda x: x.clamp(0, 6), 15, -1),
        (F.hardsigmoid, -9, 1),
        (F.hardsigmoid, 15, -1),
    ],
)
def test_first_step_passes_closed_rectifiers(activation: Activation, first: float, sign: int) -> None:
    """Reference: at the center of the map, the gradient at the first rectifier that moves its input to the open side."""
    module = Closed(activation, (first, -60.0))
    net, c = Network(module, size=12), 3
    start = noise(net, 0.1, 0)
    with torch.no_grad():
        inner = activation(module.conv1(start) + first)
    inner.requires_grad_()
    (gradient,) = torch.autograd.grad(module.conv2(inner)[0, c, 4, 4], inner)  # of 8x8
    passed = torch.zeros_like(gradient)
    passed[..., 5, 5] = (sign * gradient[..., 5, 5]).clamp(min=0) * sign  # of 10x10
    assert passed.any()
    x = start.clone().requires_grad_()
    (expected,) = torch.autograd.grad((module.conv1(x) * passed).sum(), x)
    opt = ImageOptimizer(net, start, optimizer="gradient")
    opt.step(objectives.channel("second", c).validate(net), lr=1e-3, normalize="l2")
    change = (opt.image() - start)[0]
    assert torch.allclose(change / change.norm(), expected[0] / expected.norm(), atol=1e-3)


def test_images_of_a_batch_are_redirected_one_by_one() -> None:
    """The image in which the unit is active has its true gradient, the other one the redirected gradient."""
    net = Network(Closed(F.relu, (0.0, 0.0)), size=12)
    conv, active = net.module.conv1, torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        conv.bias[1] = -0.9 * conv(active)[0, 1].max() + conv.bias[1]
    batch = torch.cat([active, mean_image(net)])
    with torch.no_grad():
        assert [bool((conv(image[None])[0, 1] > 0).any()) for image in batch] == [True, False]
    opt = ImageOptimizer(net, batch, optimizer="gradient")
    opt.step(objectives.channel("first", 1).validate(net), lr=1e-3, normalize="l2")
    change = opt.image() - batch
    for i, rectify in ((0, True), (1, False)):
        x = batch[i : i + 1].clone().requires_grad_()
        y = conv(x)[0, 1]
        (expected,) = torch.autograd.grad(y.relu().mean() if rectify else y[y.shape[0] // 2, y.shape[1] // 2], x)
        assert torch.allclose(change[i] / change[i].norm(), expected[0] / expected.norm(), atol=1e-3)


def test_true_gradient_is_used_once_the_unit_is_active(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Network(Closed(F.relu, (0.0, -0.2)), size=12)
    calls: list[bool] = []
    original = image_optimizer.redirect_gradient

    def redirect(*args: Any, **kwargs: Any) -> None:
        calls.append(True)
        original(*args, **kwargs)

    monkeypatch.setattr(image_optimizer, "redirect_gradient", redirect)
    opt = ImageOptimizer(net, mean_image(net), optimizer="gradient")
    objective = objectives.channel("second", 2).validate(net)
    redirected = []
    for _ in range(40):
        calls.clear()
        value = float(opt.step(objective, lr=0.02, normalize="l2")["activation"])
        assert bool(calls) == (value == 0), "redirected where the unit is not active, and only there"
        redirected.append(bool(calls))
    assert redirected[0]
    assert not redirected[-1]


def test_unit_that_closes_again_is_opened_again() -> None:
    """The image is reset more than 16 steps after the start, two steps after the unit opened."""
    net = Network(Closed(F.relu, (0.0, -0.4)), size=12)
    opt = ImageOptimizer(net, mean_image(net), optimizer="gradient")
    objective = objectives.channel("second", 2).validate(net)

    def steps_until_active() -> int:
        return next(i for i in range(100) if opt.step(objective, lr=0.005, normalize="l2")["activation"] > 0)

    first = steps_until_active()
    opt.step(objective, lr=0.005, normalize="l2")
    assert opt.steps > 16
    with torch.no_grad():
        opt.param.values.zero_()
    assert steps_until_active() == first


def test_random_transforms_begin_when_the_unit_is_active() -> None:
    """The position that is moved stays the same; the gradient of a class is that of the transformed image."""
    net = Network(Closed(F.relu, (0.0, -0.4)), size=12)
    for objective, same in ((objectives.channel("second", 2).validate(net), True), (objectives.class_logit(1), False)):
        images = []
        for kwargs in ({}, {"jitter": 3, "rotate": 20.0, "scale": 0.2}):
            opt = ImageOptimizer(net, noise(net, 0.02, 0), optimizer="gradient")
            value = opt.step(objective, lr=0.02, normalize="l2", **kwargs)["objective"]
            assert float(value) == 0 or not same
            images.append(opt.image())
        assert torch.equal(*images) == same


def test_noise_does_not_depend_on_default_dtype(tiny: Network) -> None:
    expected = noise(tiny, 0.1, 0)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(noise(tiny, 0.1, 0), expected)
    finally:
        torch.set_default_dtype(torch.float32)
