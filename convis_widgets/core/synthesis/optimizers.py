"""Optimizers: gradient ascent with momentum, Adam and L-BFGS. All of them maximize.

An optimizer changes the values of a parameterization in place. It gets a function that projects the values to their valid
range and evaluates the objective. Steps do not depend on the scale of the objective, except those along a gradient that is
not normalized.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch

Evaluation = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]
"""Objective, gradient, and terms of the objective by name."""

Evaluate = Callable[[], Evaluation]

StepResult = tuple[torch.Tensor, dict[str, torch.Tensor]]
"""Gradient and terms of the objective before the step."""

HISTORY_SIZE = 20  # steps that L-BFGS remembers
FIRST_STEP = 0.01  # mean change of a value in the first step of L-BFGS
LINE_SEARCH_WINDOW = 5  # a step is accepted if its value is not worse than all of that many last values
MAX_TRIALS = 4  # of one direction, each a quarter of the previous length
_TINY = torch.finfo(torch.float32).tiny


class Optimizer(Protocol):
    """An optimizer with its state."""

    def step(self, values: torch.Tensor, evaluate: Evaluate, lr: float, normalize: str, momentum: float) -> StepResult:
        """Change the values in place by one step.

        Parameters
        ----------
        values : tensor
        evaluate : callable() -> Evaluation
            Projects `values` in place and evaluates the objective there.
        lr : float
            Length of the step.
        normalize : str
            Normalization of the gradient, see `ImageOptimizer.step`; for "gradient" only.
        momentum : float in [0, 1)
            For "gradient" only.
        """
        ...


_NORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "l1": lambda rows: rows.abs().mean(1),
    "l2": lambda rows: rows.square().mean(1).sqrt(),
    "sign": lambda rows: rows.abs().mean(1),
    "progress": lambda rows: rows.square().sum(1),
}


def _normalize_gradient(gradient: torch.Tensor, kind: str) -> torch.Tensor:
    """Divide the gradient of each image by a norm, see `ImageOptimizer.step`."""
    if kind == "none":
        return gradient
    largest = largest_magnitude(gradient)
    scaled = gradient / largest
    scaled = scaled / _NORMS[kind](scaled.flatten(1)).clamp(min=_TINY).view_as(largest)
    return scaled / largest if kind == "progress" else scaled


def largest_magnitude(gradient: torch.Tensor) -> torch.Tensor:
    """Largest magnitude of the gradient of each image, with as many dimensions; 1 where the gradient is zero.

    Squares and sums of a gradient that is divided by it neither underflow nor overflow.
    """
    largest = gradient.flatten(1).abs().amax(1)
    return largest.masked_fill(largest == 0, 1).view(-1, *(1,) * (gradient.ndim - 1))


class Gradient:
    """Gradient ascent with momentum."""

    _velocity: torch.Tensor | float = 0.0

    def step(self, values: torch.Tensor, evaluate: Evaluate, lr: float, normalize: str, momentum: float) -> StepResult:
        """Make one step, see `Optimizer`."""
        _, gradient, terms = evaluate()
        velocity = momentum * self._velocity + _normalize_gradient(gradient, normalize)
        values.add_(velocity.sign() if normalize == "sign" else velocity, alpha=lr)
        self._velocity = velocity
        return gradient, terms


class Adam:
    """D. Kingma, J. Ba, "Adam", 2015, algorithm 1, with an epsilon relative to the largest magnitude of the first gradient.

    The first use of torch's takes two seconds: it imports a compiler.
    """

    steps = 0

    def step(self, values: torch.Tensor, evaluate: Evaluate, lr: float, normalize: str, momentum: float) -> StepResult:
        """Make one step, see `Optimizer`."""
        _, gradient, terms = evaluate()
        if not self.steps:
            self._mean, self._square = torch.zeros_like(gradient), torch.zeros_like(gradient)
            self._scale = largest_magnitude(gradient)
        self.steps += 1
        scaled = gradient / self._scale
        self._mean.lerp_(scaled, 0.1)
        self._square.mul_(0.999).addcmul_(scaled, scaled, value=0.001)
        # ibid., section 2: both bias corrections as one factor, which saves passes over the image
        correction = (1 - 0.999**self.steps) ** 0.5
        root = self._square.sqrt().add_(1e-8 * correction)
        values.addcdiv_(self._mean, root, value=lr * correction / (1 - 0.9**self.steps))
        return gradient, terms


class LBFGS:
    """J. Nocedal, S. Wright, "Numerical optimization", 2006, algorithm 7.5, within the valid range of the values.

    torch's line search takes many evaluations per step; without it, torch's L-BFGS sometimes diverges. Here a step that is
    worse than all recent ones is retried at a quarter of its length (a nonmonotone line search: L. Grippo, F. Lampariello,
    S. Lucidi, 1986), so that a step usually takes one evaluation.
    """

    def __init__(self) -> None:
        self._steps = self._changes = torch.empty(0)  # (HISTORY_SIZE, values): steps, and changes of the gradient in them
        self._pairs: list[tuple[int, torch.Tensor]] = []  # rows of the history from old to new, and 1 / (step . change)
        self._recent: list[float] = []  # objectives
        self._position: torch.Tensor | None = None  # values after the last step
        self._evaluation: Evaluation | None = None  # at `_position`
        self._scale = 0.0  # largest magnitude of the first gradient, the unit of all gradients below

    def step(self, values: torch.Tensor, evaluate: Evaluate, lr: float, normalize: str, momentum: float) -> StepResult:
        """Make one step, see `Optimizer`: usually one evaluation, one more if the values were changed in between."""
        if self._evaluation is None or self._position is None or not torch.equal(values, self._position):
            self._evaluation = evaluate()
            self._recent.append(float(self._evaluation[0]))
        start = values.clone()
        _, gradient, terms = self._evaluation
        self._scale = self._scale or float(largest_magnitude(gradient).max())
        direction = self._direction(gradient / self._scale)
        # without a curvature estimate, the step has a fixed mean length
        length = lr if self._pairs else lr * FIRST_STEP / max(float(direction.abs().mean()), _TINY)
        for _ in range(MAX_TRIALS):
            values.copy_(start).add_(direction, alpha=length)
            trial = evaluate()
            s, y = values - start, (gradient - trial[1]) / self._scale
            curvature = (s * y).sum()
            # all that is decided by values, so that a GPU is waited for once
            numbers = torch.stack([trial[0], trial[1].sum(), curvature, y.norm() * s.norm()]).tolist()
            value, gradient_sum, inner_product, product_of_norms = numbers
            if value >= min(self._recent) and math.isfinite(gradient_sum):
                if inner_product > 1e-10 * product_of_norms:
                    self._remember(s, y, curvature)
                self._evaluation, self._position = trial, values.clone()
                self._recent = [*self._recent[1 - LINE_SEARCH_WINDOW :], value]
                return gradient, terms
            length /= 4
        values.copy_(start)  # not an ascent direction: the curvature estimate does not hold here
        self._position, self._pairs = start, []
        return gradient, terms

    def _direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """Ascent direction, from the gradient and the curvature in the last steps."""
        q, alphas = gradient.clone(), []
        for row, rho in reversed(self._pairs):
            alphas.append(rho * torch.vdot(self._steps[row], q.view(-1)))
            q.view(-1).sub_(alphas[-1] * self._changes[row])
        if self._pairs:
            row, rho = self._pairs[-1]
            q.div_(rho * self._changes[row].square().sum())
        for (row, rho), alpha in zip(self._pairs, reversed(alphas), strict=True):
            q.view(-1).add_((alpha - rho * torch.vdot(self._changes[row], q.view(-1))) * self._steps[row])
        return q

    def _remember(self, s: torch.Tensor, y: torch.Tensor, curvature: torch.Tensor) -> None:
        """Add a step s, the change y of the gradient in it, and their product to the history."""
        if not len(self._steps):
            self._steps, self._changes = s.new_empty(HISTORY_SIZE, s.numel()), s.new_empty(HISTORY_SIZE, s.numel())
        row = self._pairs.pop(0)[0] if len(self._pairs) == HISTORY_SIZE else len(self._pairs)
        self._steps[row], self._changes[row] = s.reshape(-1), y.reshape(-1)
        self._pairs.append((row, 1 / curvature))


OPTIMIZERS: dict[str, Callable[[], Optimizer]] = {"adam": Adam, "gradient": Gradient, "lbfgs": LBFGS}

DEFAULT_LR = {"adam": 0.02, "gradient": 0.01, "lbfgs": 1.0}
"""For pixels and relative distances of activations; that of "gradient" is for ``normalize="l2"`` with momentum."""
