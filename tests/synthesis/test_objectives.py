from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from convis_widgets.core.network.network import Network
from convis_widgets.core.network.trace import trace
from convis_widgets.core.network.unit import Unit, logit
from convis_widgets.core.synthesis import objectives
from convis_widgets.core.synthesis.objectives import Objective, UnitObjective


@pytest.fixture
def smooth() -> Network:
    """A network in double precision and without kinks, so that finite differences are accurate."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 5, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(45, 3)
    )
    return Network(module.double(), size=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))


def noise(net: Network, seed: int = 0, count: int = 1) -> torch.Tensor:
    shape = count, net.transform.channels, *net.transform.size
    return 0.1 + 0.8 * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=net.dtype)


def activations(net: Network, name: str, batch: torch.Tensor) -> torch.Tensor:
    with torch.no_grad(), trace(net, [name]) as acts:
        net(batch)
    return acts[name]


NAMES = (
    "logit",
    "log probability",
    "unit",
    "unit without position",
    "channel",
    "deepdream",
    "guided deepdream",
    "features",
    "gram hw",
    "gram chw",
)
NAMES += ("gram sum", "covariance", "l2", "lp norm", "tv", "tv 1", "a sum")


def all_objectives(net: Network) -> dict[str, Objective]:
    other = activations(net, "2", noise(net, 5))
    return {
        "logit": objectives.class_logit(1),
        "log probability": objectives.log_prob(2),
        "unit": objectives.neuron("2", 3, (1, 2)),
        "unit without position": objectives.neuron("2", 3),
        "channel": objectives.channel("2", 4),
        "deepdream": objectives.deepdream("0"),
        "guided deepdream": objectives.guided_deepdream("2", other),
        "features": objectives.features("2", other),
        "gram hw": objectives.gram("2", other),
        "gram chw": objectives.gram("2", other, "chw"),
        "gram sum": objectives.gram("2", other, "sum"),
        "covariance": objectives.covariance("2", other),
        "l2": objectives.l2(),
        "lp norm": objectives.lp_norm(6),
        "tv": objectives.total_variation(),
        "tv 1": objectives.total_variation(1),
        "a sum": 2 * objectives.channel("0", 1) - 0.3 * objectives.total_variation(1.5) + objectives.class_logit(0) / 4,
    }


@pytest.mark.parametrize("name", NAMES)
def test_objective_gradient_matches_finite_differences(name: str, smooth: Network) -> None:
    objective, batch = all_objectives(smooth)[name], noise(smooth)
    x = batch.clone().requires_grad_()
    value, _ = objectives.evaluate(smooth, objective, x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    rng = np.random.default_rng(0)
    assert gradient.abs().max() > 1e-6
    for _ in range(6):
        direction = torch.from_numpy(rng.standard_normal(batch.shape))
        with torch.no_grad():
            up, down = (objectives.evaluate(smooth, objective, batch + sign * 1e-5 * direction)[0] for sign in (1, -1))
        assert float((up - down) / 2e-5) == pytest.approx(float((gradient * direction).sum()), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("name", ["logit", "channel", "gram hw", "tv", "a sum"])
def test_objective_is_evaluated_per_image(name: str, smooth: Network) -> None:
    objective, batch = all_objectives(smooth)[name], noise(smooth, count=3)
    together, _ = objectives.evaluate(smooth, objective, batch)
    alone = torch.cat([objectives.evaluate(smooth, objective, batch[i : i + 1])[0] for i in range(3)])
    assert together.shape == (3,)
    assert torch.allclose(together, alone)


def test_gram_and_covariance_match_reference(smooth: Network) -> None:
    a, b = (activations(smooth, "2", noise(smooth, seed))[0].numpy() for seed in (0, 5))

    def products(f: np.ndarray, mean: bool) -> np.ndarray:
        """Sum over positions of the outer products of the channel vectors."""
        count, height, width = f.shape
        middle = np.array([f[c].mean() for c in range(count)]) if mean else np.zeros(count)
        total = np.zeros((count, count))
        for y, x in itertools.product(range(height), range(width)):
            total += np.outer(f[:, y, x] - middle, f[:, y, x] - middle)
        return total

    n, m = a.shape[0], a[0].size
    cases = {
        "gram hw": (((products(a, False) - products(b, False)) / m) ** 2).sum(),
        "gram chw": (((products(a, False) - products(b, False)) / (n * m)) ** 2).sum(),
        "gram sum": ((products(a, False) - products(b, False)) ** 2).sum() / (4 * n**2 * m**2),
        "covariance": (((products(a, True) - products(b, True)) / m) ** 2).sum(),
    }
    for name, expected in cases.items():
        assert float(objectives.evaluate(smooth, all_objectives(smooth)[name], noise(smooth))[0]) == pytest.approx(
            expected, rel=1e-6
        )


def test_gram_accepts_target_of_another_size(smooth: Network) -> None:
    wide = torch.cat([noise(smooth, 5)] * 2, 3)
    target = activations(smooth, "2", noise(smooth, 5))
    assert (
        float(objectives.evaluate(smooth, objectives.gram("2", torch.cat([target, target], 3)), noise(smooth, 5))[0]) < 1e-12
    )
    with trace(smooth, ["2"], stop=True) as acts:
        smooth(wide)
    assert float(objectives.evaluate(smooth, objectives.gram("2", acts["2"]), noise(smooth, 5))[0]) < 1


@pytest.mark.parametrize("beta", [1, 2, 3])
def test_total_variation_matches_reference(beta: int, smooth: Network) -> None:
    batch = noise(smooth)
    x = batch[0].numpy()
    expected = 0.0
    for c, i, j in itertools.product(range(3), range(7), range(7)):
        expected += ((x[c, i, j + 1] - x[c, i, j]) ** 2 + (x[c, i + 1, j] - x[c, i, j]) ** 2) ** (beta / 2)
    assert float(objectives.evaluate(smooth, objectives.total_variation(beta), batch)[0]) == pytest.approx(
        expected, rel=1e-4
    )


def test_l2_and_lp_norm_are_relative_to_mean_pixel(smooth: Network) -> None:
    mean = torch.tensor([0.4, 0.5, 0.6], dtype=smooth.dtype).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    for objective in (objectives.l2(), objectives.lp_norm(6)):
        assert float(objectives.evaluate(smooth, objective, mean)[0]) == 0
    assert float(objectives.evaluate(smooth, objectives.l2(), mean + 0.1)[0]) == pytest.approx(0.01 * 192)
    assert float(objectives.evaluate(smooth, objectives.lp_norm(6), mean - 0.1)[0]) == pytest.approx(1e-6 * 192)


def test_deepdream_gradient_at_layer_is_activation(tiny: Network, image: np.ndarray) -> None:
    """Setting the gradient at the layer to its activation gives the gradient of half the squared norm."""
    x = tiny.batch(image).requires_grad_()
    (ours,) = torch.autograd.grad(objectives.evaluate(tiny, objectives.deepdream("conv2"), x)[0].sum(), x)
    y = tiny.batch(image).requires_grad_()
    with trace(tiny, ["conv2"], stop=True) as acts:
        tiny(y)
    acts["conv2"].backward(gradient=acts["conv2"].detach())
    assert ours.abs().max() > 1e-4
    assert torch.allclose(ours, y.grad, rtol=1e-5, atol=1e-7)


def test_guided_deepdream_matches_reference(smooth: Network) -> None:
    a, guide = (activations(smooth, "2", noise(smooth, seed))[0].numpy() for seed in (0, 5))
    expected = 0.0
    for y, x in itertools.product(range(3), range(3)):
        expected += max(float(a[:, y, x] @ guide[:, v, u]) for v, u in itertools.product(range(3), range(3)))
    assert float(
        objectives.evaluate(smooth, objectives.guided_deepdream("2", torch.from_numpy(guide)[None]), noise(smooth))[0]
    ) == pytest.approx(expected)


def test_evaluate_stops_at_last_needed_layer(tiny: Network, image: np.ndarray) -> None:
    called: list[str] = []
    for name, module in tiny.module.named_modules():
        if name:
            module.register_forward_hook(lambda *_args, name=name: called.append(name))
    x = tiny.batch(image)
    for objective, last in (
        (objectives.channel("conv1", 0), ["conv1"]),
        (objectives.l2(), []),
        (objectives.class_logit(0), None),
    ):
        called.clear()
        objectives.evaluate(tiny, objective, x)
        assert last is None or [name for name in called if name not in last] == []
        assert ("fc" in called) == (last is None)


def test_objective_arithmetic(smooth: Network) -> None:
    batch = noise(smooth)
    a, b, c = objectives.channel("0", 1), objectives.l2(), objectives.class_logit(2)

    def value(objective: Objective) -> float:
        return float(objectives.evaluate(smooth, objective, batch)[0])

    assert value(a + b - c) == pytest.approx(value(a) + value(b) - value(c))
    assert value(3 * (a - 2 * b) / 4) == pytest.approx(3 * (value(a) - 2 * value(b)) / 4)
    assert value(-(a * 0.5)) == pytest.approx(-0.5 * value(a))
    assert (a + c - b).layers == {"0", ""}
    for wrong in (lambda: a + 1, lambda: 1 - a, lambda: a - "b"):
        with pytest.raises(TypeError):
            wrong()


def test_evaluate_returns_unweighted_terms(smooth: Network) -> None:
    batch = noise(smooth)
    style = (objectives.channel("0", 0) + objectives.channel("2", 1)).rename("style")
    _, forward = objectives.evaluate(smooth, 5 * style - 0.1 * objectives.l2(), batch)
    alone = {
        name: float(objectives.evaluate(smooth, objective, batch)[0])
        for name, objective in (("style", style), ("l2", objectives.l2()))
    }
    assert {name: float(value) for name, value in forward.terms.items()} == pytest.approx(
        {**alone, "objective": 5 * alone["style"] - 0.1 * alone["l2"]}
    )


@pytest.mark.parametrize("objective", [objectives.class_logit(1), objectives.log_prob(1)])
@pytest.mark.parametrize("activation", [nn.Softmax(1), nn.LogSoftmax(1)])
def test_class_objective_gradient_ignores_final_softmax(objective: Objective, activation: nn.Module) -> None:
    torch.manual_seed(0)
    scores = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 3))
    plain, with_activation = Network(scores, size=8), Network(nn.Sequential(*scores, activation), size=8)
    gradients, values = [], []
    for net in (plain, with_activation):
        x = noise(net).requires_grad_()
        values.append(objectives.evaluate(net, objective, x)[0])
        gradients.append(torch.autograd.grad(values[-1].sum(), x)[0])
    assert gradients[0].abs().max() > 1e-4
    assert torch.allclose(*gradients, atol=1e-6)
    if objective.name == "log probability":
        assert torch.allclose(*values, atol=1e-5)


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"target": 2}, logit(2)),
        ({"objective": ("conv2", 3, (1, 0))}, Unit("conv2", 3, (1, 0))),
        ({"objective": ("", 1)}, logit(1)),
    ],
)
def test_as_objective_converts_target_and_unit(kwargs: dict[str, Any], expected: Unit, tiny: Network) -> None:
    objective = objectives.as_objective(tiny, **kwargs)
    assert isinstance(objective, UnitObjective)
    assert objective.unit == expected


def test_as_objective_without_position_is_channel_mean(tiny: Network, image: np.ndarray) -> None:
    x = tiny.batch(image)
    ours, _ = objectives.evaluate(tiny, objectives.as_objective(tiny, objective=("conv2", 3)), x)
    assert float(ours) == pytest.approx(float(activations(tiny, "conv2", x)[0, 3].mean()), rel=1e-5)
    own = objectives.channel("conv2", 3) - objectives.total_variation()
    assert float(objectives.evaluate(tiny, objectives.as_objective(tiny, objective=own), x)[0]) == pytest.approx(
        float(ours - objectives.evaluate(tiny, objectives.total_variation(), x)[0]), rel=1e-4
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"objective": objectives.channel("conv9", 1)}, "conv9"),
        ({"objective": ("conv1", 6)}, r"(?=.*conv1)(?=.*\b5\b)(?=.*\b6\b)"),
        ({}, "target"),
        ({"target": 1, "objective": objectives.channel("conv1", 1)}, "target"),
    ],
)
def test_as_objective_rejects_invalid_input(kwargs: dict[str, Any], message: str, tiny: Network) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        objectives.as_objective(tiny, **kwargs)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (objectives.channel("conv1", 6), r"(?=.*\b6\b)(?=.*conv1)(?=.*\b5\b)"),
        (objectives.log_prob(-1), r"(?=.*-1\b)(?=.*\b3\b)"),
    ],
)
def test_evaluate_rejects_channel_out_of_range(objective: Objective, message: str, tiny: Network, image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=message):
        objectives.evaluate(tiny, objective, tiny.batch(image))
