from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

from convis_widgets.core import Network, Run
from convis_widgets.core.optimizers import FIRST, LBFGS, OPTIMIZERS, PAIRS, RECENT, TRIALS
from convis_widgets.techniques import feature_inversion, gradient_ascent, texture

Function = Callable[[torch.Tensor], torch.Tensor]


class Climb:
    """An optimizer on a function that is to become small, with a count of how often that was asked for."""

    def __init__(self, function: Function, start: Any, optimizer: str = "lbfgs") -> None:
        self.function, self.count = function, 0
        self.values = torch.tensor(np.asarray(start), dtype=torch.float64)[None]
        self.optimizer = OPTIMIZERS[optimizer]()

    def evaluate(self) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        self.count += 1
        with torch.enable_grad():
            x = self.values.clone().requires_grad_()
            value = -self.function(x[0])
            (gradient,) = torch.autograd.grad(value, x)
        return value.detach(), gradient, {"value": value.detach()}

    def step(self, rate: float = 1.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            return self.optimizer.step(self.values, self.evaluate, rate, "none", 0.0)

    def now(self) -> float:
        return float(self.function(self.values[0]))

    def until(self, small: float, most: int = 5000) -> int:
        """Evaluations until the function is as small as that."""
        while self.now() > small and self.count < most:
            self.step()
        return self.count


WEIGHTS = torch.logspace(0, 4, 50, dtype=torch.float64)


def valley(x: torch.Tensor) -> torch.Tensor:
    """Squares of very different weight; zero at 0.3."""
    return (WEIGHTS * (x - 0.3).square()).sum() / 2


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


def scipys(function: Function, start: Any, small: float) -> int:
    """Evaluations of SciPy's L-BFGS-B until the function is as small."""
    values: list[float] = []

    def told(x: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(x, requires_grad=True)
        value = function(at)
        value.backward()
        values.append(float(value.detach()))
        return values[-1], at.grad.numpy()

    options = {"maxcor": PAIRS, "ftol": 0, "gtol": 0, "maxfun": 5000, "maxiter": 5000}
    scipy.optimize.minimize(told, start, jac=True, method="L-BFGS-B", options=options)
    return 1 + next(i for i, value in enumerate(values) if value <= small)


def test_the_end_of_a_long_valley_is_reached_far_sooner_than_along_the_gradient() -> None:
    quick = Climb(valley, np.zeros(50))
    assert quick.until(1e-8) < 600
    assert torch.allclose(quick.values[0], torch.full((50,), 0.3, dtype=torch.float64), atol=2e-4)
    slow = Climb(valley, np.zeros(50), "gradient")
    for _ in range(2000):
        slow.step(1e-4)  # at twice that it leaps
    assert slow.now() > 1e-3


@pytest.mark.parametrize(
    ("function", "start"),
    [
        (valley, np.zeros(50)),
        (rosenbrock, np.array([-1.2, 1.0])),
        (rosenbrock, np.full(20, -0.5)),
        (rosenbrock, np.random.default_rng(0).normal(size=10)),
    ],
)
def test_it_takes_about_as_many_evaluations_as_scipys(function: Function, start: np.ndarray) -> None:
    assert Climb(function, start).until(1e-6) <= 2 * scipys(function, start, 1e-6) + 5


def rugged(x: torch.Tensor) -> torch.Tensor:
    return (x.square() / 20 + 1 - torch.cos(4 * x)).sum() + rosenbrock(x) / 50


@pytest.mark.parametrize("rate", [0.1, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("function", [rosenbrock, rugged, valley])
def test_a_step_that_makes_things_worse_is_taken_back(function: Function, rate: float) -> None:
    climb = Climb(function, np.random.default_rng(1).normal(size=50) if function is valley else [2.0, -1.5, 0.7, 1.9])
    values = [climb.now()]
    for _ in range(120):
        before, count = climb.values.clone(), climb.count
        climb.step(rate)
        assert climb.count - count <= TRIALS + 1
        assert climb.now() <= max(values[-RECENT:]) * (1 + 1e-12)
        if not torch.equal(climb.values, before):
            values.append(climb.now())
    assert min(values) < values[0]


def test_where_everything_is_worse_it_stays() -> None:
    climb = Climb(lambda x: x.abs().sum(), [0.0, 0.0])
    true = climb.evaluate

    def misled() -> Any:
        value, gradient, told = true()
        return value, torch.ones_like(gradient), told

    climb.evaluate = misled  # type: ignore[method-assign]
    for _ in range(3):
        climb.step()
        assert climb.values.tolist() == [[0.0, 0.0]]


def test_a_leap_to_where_nothing_is_finite_is_taken_back() -> None:
    climb = Climb(lambda x: (x - torch.log(x)).sum(), [0.02, 3.0])  # no number below 0
    for _ in range(40):
        climb.step(3.0)
        assert bool(climb.values.isfinite().all())
        assert np.isfinite(climb.now())
    assert climb.now() == pytest.approx(2.0, abs=1e-3)


def test_usually_a_step_is_one_evaluation() -> None:
    climb = Climb(valley, np.zeros(50))
    for _ in range(40):
        climb.step()
    assert 41 <= climb.count <= 60


def test_what_is_told_was_there_before_the_step() -> None:
    climb = Climb(rosenbrock, [-1.2, 1.0])
    for _ in range(10):
        x, value = climb.values.clone().requires_grad_(), climb.now()
        (expected,) = torch.autograd.grad(-rosenbrock(x[0]), x)
        gradient, told = climb.step()
        assert float(told["value"]) == pytest.approx(-value)
        assert torch.allclose(gradient, expected)


def test_values_that_were_changed_from_outside_are_noticed() -> None:
    climb = Climb(valley, np.zeros(50))
    for _ in range(10):
        climb.step()
    climb.values.add_(1.0)
    there = climb.now()
    _, told = climb.step()
    assert float(told["value"]) == pytest.approx(-there), "not of where it was"
    assert climb.now() <= there
    assert climb.until(1e-8) < 700


def test_one_that_has_forgotten_begins_with_a_short_step_along_the_gradient() -> None:
    climb = Climb(lambda x: valley(x) / 1e4, np.zeros(50))
    for _ in range(2):
        before = climb.values.clone()
        gradient, _ = climb.step(1.0)
        moved = climb.values - before
        assert any(float(moved.abs().mean()) == pytest.approx(FIRST / 4**i) for i in range(TRIALS))
        assert torch.allclose(moved / moved.norm(), gradient / gradient.norm())
        for _ in range(30):
            climb.step()
        climb.optimizer = LBFGS()


def test_more_steps_than_are_remembered_take_no_more_memory() -> None:
    climb = Climb(rosenbrock, np.full(30, -0.5))
    for _ in range(3 * PAIRS):
        climb.step()
    held = [one for one in vars(climb.optimizer).values() if isinstance(one, torch.Tensor)]
    assert sum(one.numel() for one in held) <= (2 * PAIRS + 2) * 30
    assert len(climb.optimizer._pairs) <= PAIRS


@pytest.mark.parametrize(
    ("technique", "words", "name", "value", "told"),
    [
        (texture, {"size": 16, "sizes": 1}, "tv_weight", 1.0, "tv"),
        (feature_inversion, {"layer": "relu@2"}, "tv_weight", 100.0, "tv"),
        (gradient_ascent, {"target": 1, "jitter": 0.0, "rate": 1.0}, "l2", 1.0, "l2"),
    ],
)
def test_what_is_weighed_anew_is_another_objective(
    technique: Any, words: dict[str, Any], name: str, value: float, told: str, tiny: Network, picture: np.ndarray
) -> None:
    """The values of the one say nothing about those of the other, which may all be lower."""
    given = () if technique is gradient_ascent else (picture,)
    words = {**words, "optimizer": "lbfgs", "iterations": 30}
    frames = technique(tiny, *given, **words)
    for _ in range(10):
        frame = next(frames)
    before = frame.image
    after = [frames.send({name: value}), *frames]
    assert np.abs(after[-1].image - before).max() > 0.01, "it is not stuck"
    assert after[-1].scalars[told] < Run(technique(tiny, *given, **words)).run().scalars.get(told, np.inf)
