"""Ascent: the one optimization loop. Techniques that make pictures are recipes on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from .jitter import displaced, turned
from .network import Network
from .objectives import SCORES, Objective, measure
from .parameterization import PARAMETERIZATIONS, Pixels
from .regularize import blurred, of_norm, without_small_contribution, without_small_norm

NORMALIZED = ("none", "l1", "l2", "sign", "progress")


class Ascent:
    """Pictures on their way uphill: each step makes an Objective larger.

    Parameters
    ----------
    net : Network
    start : (N, C, H, W) tensor in [0, 1]
        The pictures to begin with.
    parameterization : str
        "pixels" or "fourier", see `parameterization`.
    optimizer : str
        "adam" (D. Kingma, J. Ba, 2015), "gradient" (with momentum) or "lbfgs".
    seed : int
        Of jitter.
    words
        For the parameterization.

    Attributes
    ----------
    steps : int
        Steps that were made.

    Examples
    --------
    >>> from convis_widgets.core import Network, logit, noise
    >>> net = Network.demo()
    >>> ascent = Ascent(net, noise(net, 0.02, seed=0), optimizer="gradient")
    >>> values = [float(ascent.step(logit(3), rate=0.01, normalize="l2")["logit"]) for _ in range(20)]
    >>> values[-1] > values[0]
    True
    """

    def __init__(
        self,
        net: Network,
        start: torch.Tensor,
        *,
        parameterization: str = "pixels",
        optimizer: str = "adam",
        seed: int = 0,
        **words: Any,
    ) -> None:
        self.net, self.steps = net, 0
        self.canvas = PARAMETERIZATIONS[parameterization](start, net.transform.origin(start), **words)
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = OPTIMIZERS[optimizer]()

    def step(
        self,
        objective: Objective,
        *,
        rate: float,
        normalize: str = "none",
        momentum: float = 0.0,
        jitter: int = 0,
        rotate: float = 0.0,
        scale: float = 0.0,
        decay: float = 0.0,
        blur: float = 0.0,
        blur_every: int = 1,
        small_norm: float = 0.0,
        small_contribution: float = 0.0,
        norm: float = 0.0,
    ) -> Mapping[str, torch.Tensor]:
        """One step uphill. All of it may differ from step to step.

        Parameters
        ----------
        objective : Objective
        rate : float
            Length of the step: of Adam's; otherwise what the gradient is multiplied with, after `normalize`.
        normalize : str
            What "gradient" divides the gradient by: "l1" the mean magnitude of its elements, "l2" their root mean square, so
            that `rate` is by how much a pixel changes; "progress" its squared norm, so that `rate` is what the objective
            would gain if it were linear; "none". With "sign" every element changes by `rate`, in its direction.
        momentum : float
            Of "gradient": what share of the last step is made again.
        jitter, rotate, scale
            Most pixels, degrees and share by which the network is shown a displaced, turned, scaled picture; see `jitter`.
        decay, blur, blur_every, small_norm, small_contribution, norm
            Done to pixels after the step, see `regularize`: the share that all of them lose, the deviation of a Gaussian
            every so many steps, shares of pixels that are clipped, the L2 norm that each picture is scaled to.

        Returns
        -------
        values : mapping of str to (N,) tensors
            What the parts of the objective were before the step, and "objective", all together.

        Raises
        ------
        ValueError
            The objective or its gradient is not finite, or does not depend on the picture. The picture is as it was.
        """
        values: dict[str, torch.Tensor] = {}
        what = "the score" if SCORES in objective.layers else f"the {objective.name}"

        def evaluate() -> tuple[torch.Tensor, torch.Tensor]:
            """The objective, all pictures together, and its gradient."""
            with torch.enable_grad():
                x = self.canvas.picture()
                shown = turned(displaced(x, jitter, self._generator), rotate, scale, self._generator)
                total, seen = measure(self.net, objective, shown + self.canvas.origin, x)
                given = (self.canvas.values,) if total.requires_grad else ()
                (gradient,) = torch.autograd.grad(total.sum(), given, allow_unused=True) if given else (None,)
                if gradient is None:
                    raise ValueError(f"{what} does not depend on the picture by a differentiable path")
            values.update(seen.values if not values else {})
            if self.steps % 10 == 0 and not bool((gradient.sum() + total.sum()).isfinite()):  # each time a GPU would wait
                why = "choose a smaller rate" if self.steps else "its weights may have diverged"
                raise ValueError(f"{what} of {self.net.name} or its gradient is not finite; {why}")
            if self.steps == 0 and not bool(gradient.any()):
                raise ValueError(
                    f"{what} of {self.net.name} does not change with this picture: its gradient is zero; "
                    "begin with another picture, or with noise"
                )
            return total.detach().sum(), gradient

        clipped = decay or blur or small_norm or small_contribution or norm
        if clipped and not isinstance(self.canvas, Pixels):
            raise ValueError('decay, blur and clipping are for pixels; choose parameterization="pixels"')
        with torch.no_grad():
            gradient = self._optimizer.step(self.canvas.values, evaluate, rate, normalize, momentum)
            self.steps += 1
            if clipped:
                x = self.canvas.values
                x.mul_(1 - decay)
                if self.steps % blur_every == 0:
                    x.copy_(blurred(x, blur))
                x.copy_(without_small_norm(x, small_norm))
                x.copy_(without_small_contribution(x, gradient, small_contribution))
                x.copy_(of_norm(x, norm) if norm else x)
            self.canvas.settle()
        return values

    def forget(self) -> None:
        """Let go of what was learned about the Objective, since another one follows."""
        self._optimizer = type(self._optimizer)()

    def picture(self) -> torch.Tensor:
        """The pictures as they are now, (N, C, H, W) in [0, 1]."""
        with torch.no_grad():
            return (self.canvas.picture() + self.canvas.origin).clamp(0, 1)


def gray(net: Network, count: int = 1, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Pictures (N, C, H, W) of nothing but the mean pixel, of the network's size or another."""
    height, width = size or net.transform.size
    blank = torch.zeros(count, net.transform.channels, height, width, device=net.device, dtype=net.dtype)
    return blank + net.transform.origin(blank)


def noise(net: Network, deviation: float, seed: int, count: int = 1, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Pictures (N, C, H, W) of normal noise around the mean pixel, cut off at 0 and 1."""
    blank = gray(net, count, size)
    generator = torch.Generator().manual_seed(seed)
    return (blank + deviation * torch.randn(blank.shape, generator=generator).to(blank)).clamp(0, 1)


Evaluate = Callable[[], tuple[torch.Tensor, torch.Tensor]]


class _Gradient:
    """Along the gradient, with momentum."""

    _velocity: torch.Tensor | float = 0.0

    def step(self, values: torch.Tensor, evaluate: Evaluate, rate: float, normalize: str, momentum: float) -> torch.Tensor:
        _, gradient = evaluate()
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
        return gradient


class _Adam:
    """D. Kingma, J. Ba, "Adam", 2015, algorithm 1. To make torch's takes two seconds: it imports a compiler."""

    first: torch.Tensor | float = 0.0
    second: torch.Tensor | float = 0.0
    steps = 0

    def step(self, values: torch.Tensor, evaluate: Evaluate, rate: float, normalize: str, momentum: float) -> torch.Tensor:
        _, gradient = evaluate()
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient.square()
        root = (self.second / (1 - 0.999**self.steps)).sqrt() + 1e-8
        values.addcdiv_(self.first / (1 - 0.9**self.steps), root, value=rate)
        return gradient


class _LBFGS:
    """J. Nocedal, S. Wright, "Numerical optimization", 2006, algorithm 7.4, without a line search.

    It learns from what a step became after pixels were brought back into the valid range. torch's learns from the step that
    it meant, and is led astray where many pixels lie at the ends; it also takes an objective of small weight for a finished
    one.
    """

    KEPT = 20
    FIRST = 0.01  # mean change of a value in the first step, of which nothing is known yet
    MOST = 0.05  # root mean square of a step

    def __init__(self) -> None:
        self._pairs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._last: tuple[torch.Tensor, torch.Tensor] | None = None

    def step(self, values: torch.Tensor, evaluate: Evaluate, rate: float, normalize: str, momentum: float) -> torch.Tensor:
        _, gradient = evaluate()
        x, uphill = values.detach().flatten().clone(), gradient.flatten()
        if self._last is not None:
            moved, lost = x - self._last[0], self._last[1] - uphill
            curvature = moved @ lost
            if curvature > 1e-8 * moved.norm() * lost.norm():
                self._pairs = [*self._pairs[1 - self.KEPT :], (moved, lost, 1 / curvature)]
        self._last = x, uphill
        way = self._newton(uphill) if self._pairs else uphill * (self.FIRST / uphill.abs().mean().clamp(min=1e-30))
        longest = self.MOST / way.square().mean().sqrt().clamp(min=1e-30)
        values.add_((way * longest.clamp(max=1)).view_as(values), alpha=rate)
        return gradient

    def _newton(self, uphill: torch.Tensor) -> torch.Tensor:
        """The gradient times an estimate of the inverse of the curvature."""
        shares = []
        for moved, lost, inverse in reversed(self._pairs):
            shares.append(inverse * (moved @ uphill))
            uphill = uphill - shares[-1] * lost
        moved, lost, inverse = self._pairs[-1]
        way = uphill / (inverse * (lost @ lost))
        for (moved, lost, inverse), share in zip(self._pairs, reversed(shares), strict=True):
            way = way + (share - inverse * (lost @ way)) * moved
        return way


OPTIMIZERS = {"adam": _Adam, "gradient": _Gradient, "lbfgs": _LBFGS}
