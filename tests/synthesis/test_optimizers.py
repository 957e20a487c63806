from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

from convis_widgets.core.network.network import Network
from convis_widgets.core.runs.run import Run
from convis_widgets.core.synthesis.optimizers import (
    FIRST_STEP,
    HISTORY_SIZE,
    LBFGS,
    LINE_SEARCH_WINDOW,
    MAX_TRIALS,
    OPTIMIZERS,
)
from convis_widgets.techniques.synthesis.feature_inversion import feature_inversion
from convis_widgets.techniques.synthesis.gradient_ascent import gradient_ascent
from convis_widgets.techniques.synthesis.texture import texture

Function = Callable[[torch.Tensor], torch.Tensor]


class Minimizer:
    """Minimizes a function with an optimizer and counts its evaluations."""

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

    def step(self, lr: float = 1.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        with torch.no_grad():
            return self.optimizer.step(self.values, self.evaluate, lr, "none", 0.0)

    def current_value(self) -> float:
        return float(self.function(self.values[0]))

    def evaluations_until(self, threshold: float, most: int = 5000) -> int:
        """Number of evaluations until the function value is at most `small`."""
        while self.current_value() > threshold and self.count < most:
            self.step()
        return self.count


WEIGHTS = torch.logspace(0, 4, 50, dtype=torch.float64)


def quadratic(x: torch.Tensor) -> torch.Tensor:
    """Squares with weights from 1 to 10,000; zero at 0.3."""
    return (WEIGHTS * (x - 0.3).square()).sum() / 2


def rosenbrock(x: torch.Tensor) -> torch.Tensor:
    return (100 * (x[1:] - x[:-1].square()).square() + (1 - x[:-1]).square()).sum()


def scipy_evaluations(function: Function, start: Any, threshold: float) -> int:
    """Number of evaluations of SciPy's L-BFGS-B until the function value is at most `small`."""
    values: list[float] = []

    def value_and_gradient(x: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.tensor(x, requires_grad=True)
        value = function(at)
        value.backward()
        values.append(float(value.detach()))
        return values[-1], at.grad.numpy()

    options = {"maxcor": HISTORY_SIZE, "ftol": 0, "gtol": 0, "maxfun": 5000, "maxiter": 5000}
    scipy.optimize.minimize(value_and_gradient, start, jac=True, method="L-BFGS-B", options=options)
    return 1 + next(i for i, value in enumerate(values) if value <= threshold)


def test_lbfgs_converges_much_faster_than_gradient() -> None:
    quick = Minimizer(quadratic, np.zeros(50))
    assert quick.evaluations_until(1e-8) < 600
    assert torch.allclose(quick.values[0], torch.full((50,), 0.3, dtype=torch.float64), atol=2e-4)
    slow = Minimizer(quadratic, np.zeros(50), "gradient")
    for _ in range(2000):
        slow.step(1e-4)  # diverges at twice that rate
    assert slow.current_value() > 1e-3


@pytest.mark.parametrize(
    ("function", "start"),
    [
        (quadratic, np.zeros(50)),
        (rosenbrock, np.array([-1.2, 1.0])),
        (rosenbrock, np.full(20, -0.5)),
        (rosenbrock, np.random.default_rng(0).normal(size=10)),
    ],
)
def test_lbfgs_needs_about_as_many_evaluations_as_scipy(function: Function, start: np.ndarray) -> None:
    assert Minimizer(function, start).evaluations_until(1e-6) <= 2 * scipy_evaluations(function, start, 1e-6) + 5


def rugged(x: torch.Tensor) -> torch.Tensor:
    return (x.square() / 20 + 1 - torch.cos(4 * x)).sum() + rosenbrock(x) / 50


@pytest.mark.parametrize("lr", [0.1, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("function", [rosenbrock, rugged, quadratic])
def test_lbfgs_rejects_steps_that_worsen_the_value(function: Function, lr: float) -> None:
    minimizer = Minimizer(
        function, np.random.default_rng(1).normal(size=50) if function is quadratic else [2.0, -1.5, 0.7, 1.9]
    )
    values = [minimizer.current_value()]
    for _ in range(120):
        before, count = minimizer.values.clone(), minimizer.count
        minimizer.step(lr)
        assert minimizer.count - count <= MAX_TRIALS + 1
        assert minimizer.current_value() <= max(values[-LINE_SEARCH_WINDOW:]) * (1 + 1e-12)
        if not torch.equal(minimizer.values, before):
            values.append(minimizer.current_value())
    assert min(values) < values[0]


def test_lbfgs_stays_where_no_step_improves() -> None:
    minimizer = Minimizer(lambda x: x.abs().sum(), [0.0, 0.0])
    evaluate = minimizer.evaluate

    def evaluate_with_wrong_gradient() -> Any:
        value, gradient, terms = evaluate()
        return value, torch.ones_like(gradient), terms

    minimizer.evaluate = evaluate_with_wrong_gradient  # type: ignore[method-assign]
    for _ in range(3):
        minimizer.step()
        assert minimizer.values.tolist() == [[0.0, 0.0]]


def test_lbfgs_rejects_steps_to_non_finite_values() -> None:
    minimizer = Minimizer(lambda x: (x - torch.log(x)).sum(), [0.02, 3.0])  # not defined below 0
    for _ in range(40):
        minimizer.step(3.0)
        assert bool(minimizer.values.isfinite().all())
        assert np.isfinite(minimizer.current_value())
    assert minimizer.current_value() == pytest.approx(2.0, abs=1e-3)


def test_lbfgs_usually_needs_one_evaluation_per_step() -> None:
    minimizer = Minimizer(quadratic, np.zeros(50))
    for _ in range(40):
        minimizer.step()
    assert 41 <= minimizer.count <= 60


def test_step_result_describes_state_before_step() -> None:
    minimizer = Minimizer(rosenbrock, [-1.2, 1.0])
    for _ in range(10):
        x, value = minimizer.values.clone().requires_grad_(), minimizer.current_value()
        (expected,) = torch.autograd.grad(-rosenbrock(x[0]), x)
        gradient, terms = minimizer.step()
        assert float(terms["value"]) == pytest.approx(-value)
        assert torch.allclose(gradient, expected)


def test_lbfgs_notices_values_changed_externally() -> None:
    minimizer = Minimizer(quadratic, np.zeros(50))
    for _ in range(10):
        minimizer.step()
    minimizer.values.add_(1.0)
    changed_value = minimizer.current_value()
    _, terms = minimizer.step()
    assert float(terms["value"]) == pytest.approx(-changed_value), "not of the previous position"
    assert minimizer.current_value() <= changed_value
    assert minimizer.evaluations_until(1e-8) < 700


def test_lbfgs_first_step_is_short_and_along_gradient() -> None:
    minimizer = Minimizer(lambda x: quadratic(x) / 1e4, np.zeros(50))
    for _ in range(2):
        before = minimizer.values.clone()
        gradient, _ = minimizer.step(1.0)
        change = minimizer.values - before
        assert any(float(change.abs().mean()) == pytest.approx(FIRST_STEP / 4**i) for i in range(MAX_TRIALS))
        assert torch.allclose(change / change.norm(), gradient / gradient.norm())
        for _ in range(30):
            minimizer.step()
        minimizer.optimizer = LBFGS()


def test_lbfgs_memory_is_bounded_by_history_size() -> None:
    minimizer = Minimizer(rosenbrock, np.full(30, -0.5))
    for _ in range(3 * HISTORY_SIZE):
        minimizer.step()
    tensors = [tensor for tensor in vars(minimizer.optimizer).values() if isinstance(tensor, torch.Tensor)]
    assert sum(tensor.numel() for tensor in tensors) <= (2 * HISTORY_SIZE + 2) * 30
    assert len(minimizer.optimizer._pairs) <= HISTORY_SIZE


@pytest.mark.parametrize(
    ("technique", "kwargs", "name", "value", "term"),
    [
        (texture, {"size": 16, "scales": 1}, "tv_weight", 1.0, "tv"),
        (feature_inversion, {"layers": "relu@2"}, "tv_weight", 100.0, "tv"),
        (gradient_ascent, {"target": 1, "jitter": 0.0, "lr": 1.0}, "l2", 1.0, "l2"),
    ],
)
def test_lbfgs_resets_when_a_weight_changes(
    technique: Any, kwargs: dict[str, Any], name: str, value: float, term: str, tiny: Network, image: np.ndarray
) -> None:
    """Values of the old objective say nothing about those of the new one, which may all be lower."""
    images = () if technique is gradient_ascent else (image,)
    kwargs = {**kwargs, "optimizer": "lbfgs", "iterations": 30}
    frames = technique(tiny, *images, **kwargs)
    for _ in range(10):
        frame = next(frames)
    before = frame.image
    after = [frames.send({name: value}), *frames]
    assert np.abs(after[-1].image - before).max() > 0.01, "it is not stuck"
    assert after[-1].scalars[term] < Run(technique(tiny, *images, **kwargs)).run().scalars.get(term, np.inf)
