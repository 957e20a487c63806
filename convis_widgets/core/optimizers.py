"""Optimizers: where a picture goes from here, given what an objective and its gradient are at any point.

All of them maximize. `evaluate` brings the values into their valid range, and gives the objective there, its gradient, and
what it consists of. An optimizer changes the values in place, and returns the gradient and the parts at which it was before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Evaluation = tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]
Evaluate = Callable[[], Evaluation]
Told = tuple[torch.Tensor, dict[str, torch.Tensor]]

PAIRS = 20  # steps that L-BFGS remembers
FIRST = 0.01  # mean change of a value in a first step of L-BFGS
RECENT = 5  # of the last values a new one may not be worse than all
TRIALS = 4  # of one direction, each a quarter as far


class Gradient:
    """Along the gradient, with momentum."""

    _velocity: torch.Tensor | float = 0.0

    def step(self, values: torch.Tensor, evaluate: Evaluate, rate: float, normalize: str, momentum: float) -> Told:
        """One step."""
        _, gradient, told = evaluate()
        each = gradient.flatten(1)
        length = {
            "none": lambda: 1.0,
            "l1": lambda: each.abs().mean(1),
            "l2": lambda: each.square().mean(1).sqrt(),
            "sign": lambda: each.abs().mean(1),
            "progress": lambda: each.square().sum(1),
        }[normalize]()
        if normalize != "none":
            length = length.clamp(min=1e-12).view(-1, *(1,) * (gradient.ndim - 1))
        self._velocity = momentum * self._velocity + gradient / length
        values.add_(self._velocity.sign() if normalize == "sign" else self._velocity, alpha=rate)
        return gradient, told


class Adam:
    """D. Kingma, J. Ba, "Adam", 2015, algorithm 1. To make torch's takes two seconds: it imports a compiler."""

    steps = 0

    def step(self, values: torch.Tensor, evaluate: Evaluate, rate: float, normalize: str, momentum: float) -> Told:
        """One step."""
        _, gradient, told = evaluate()
        if not self.steps:
            self._first, self._second = torch.zeros_like(gradient), torch.zeros_like(gradient)
        self.steps += 1
        self._first.lerp_(gradient, 0.1)
        self._second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        # ibid., section 2: the corrections of both moments as one factor, so that fewer passes over the picture are made
        correction = (1 - 0.999**self.steps) ** 0.5
        root = self._second.sqrt().add_(1e-8 * correction)
        values.addcdiv_(self._first, root, value=rate * correction / (1 - 0.9**self.steps))
        return gradient, told


class LBFGS:
    """J. Nocedal, S. Wright, "Numerical optimization", 2006, algorithm 7.5, within the valid range of the values.

    torch's has no line search that ends within an evaluation or two, and without one it sometimes leaps to where it never
    comes back from. Here a step that makes things worse than they were lately is taken back and tried a quarter as far (a
    nonmonotone line search: L. Grippo, F. Lampariello, S. Lucidi, 1986), at a cost only when that happens.
    """

    def __init__(self) -> None:
        self._steps: torch.Tensor | None = None  # (PAIRS, values), one block of memory, and what the gradient did in them
        self._changes: torch.Tensor | None = None
        self._pairs: list[tuple[int, torch.Tensor]] = []  # their rows from the oldest to the newest, and 1 / s.y
        self._recent: list[float] = []
        self._at: torch.Tensor | None = None  # where `_here` was found
        self._here: Evaluation | None = None

    def step(self, values: torch.Tensor, evaluate: Evaluate, rate: float, normalize: str, momentum: float) -> Told:
        """One step, which usually takes one evaluation; a second one where the last step left off elsewhere."""
        if self._at is None or not torch.equal(values, self._at):
            self._here = evaluate()
            self._recent.append(float(self._here[0]))
        start = values.clone()
        _, gradient, told = self._here
        direction = self._direction(gradient)
        # of the curvature nothing is known: then a value changes by so much on average, however the objective is weighed
        length = rate if self._pairs else rate * FIRST / max(float(gradient.abs().mean()), 1e-30)
        for _ in range(TRIALS):
            values.copy_(start).add_(direction, alpha=length)
            found = evaluate()
            value = float(found[0])
            if value >= min(self._recent) and bool(found[1].sum().isfinite()):
                self._remember(values - start, gradient - found[1])
                self._here, self._at = found, values.clone()
                self._recent = [*self._recent[1 - RECENT :], value]
                return gradient, told
            length /= 4
        values.copy_(start)  # not uphill: what is remembered is of another place
        self._at, self._pairs = start, []
        return gradient, told

    def _direction(self, gradient: torch.Tensor) -> torch.Tensor:
        """Uphill, by what the gradient did in the last steps."""
        q, shares = gradient.clone(), []
        for row, rho in reversed(self._pairs):
            shares.append(rho * torch.vdot(self._steps[row], q.view(-1)))
            q.view(-1).sub_(shares[-1] * self._changes[row])
        if self._pairs:
            row, rho = self._pairs[-1]
            q.div_(rho * self._changes[row].square().sum())
        for (row, rho), share in zip(self._pairs, reversed(shares), strict=True):
            q.view(-1).add_((share - rho * torch.vdot(self._changes[row], q.view(-1))) * self._steps[row])
        return q

    def _remember(self, s: torch.Tensor, y: torch.Tensor) -> None:
        curvature = (s * y).sum()
        if bool(curvature > 1e-10 * y.norm() * s.norm()):
            if self._steps is None:
                self._steps, self._changes = s.new_empty(PAIRS, s.numel()), s.new_empty(PAIRS, s.numel())
            row = self._pairs.pop(0)[0] if len(self._pairs) == PAIRS else len(self._pairs)
            self._steps[row], self._changes[row] = s.reshape(-1), y.reshape(-1)
            self._pairs.append((row, 1 / curvature))


OPTIMIZERS: dict[str, Any] = {"adam": Adam, "gradient": Gradient, "lbfgs": LBFGS}

RATES = {"adam": 0.02, "gradient": 0.01, "lbfgs": 1.0}
"""Steps that suit pixels and distances of features; those of "gradient" are for one of mean square 1, with momentum."""
