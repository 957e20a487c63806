"""Ascent: the one optimization loop. Techniques that make pictures are recipes on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .images import resized_batch
from .jitter import displaced, turned
from .network import Network
from .objectives import SCORES, Objective, measure
from .optimizers import LBFGS, OPTIMIZERS, Evaluation
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
        seen_at: tuple[int, int] | None = None,
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
        seen_at : (int, int), optional
            Height and width in which the network is shown it, if not in its own.

        Returns
        -------
        values : mapping of str to (N,) tensors
            What the parts of the objective were before the step, and "objective", all together.

        Raises
        ------
        ValueError
            The objective or its gradient is not finite, or does not depend on the picture. The picture is as it was.
        """
        what = "the score" if SCORES in objective.layers else f"the {objective.name}"

        def evaluate() -> Evaluation:
            """The objective, all pictures together, its gradient, and its parts."""
            self.canvas.settle()
            with torch.enable_grad():
                x = self.canvas.picture()
                shown = turned(displaced(x, jitter, self._generator), rotate, scale, self._generator)
                shown = shown if seen_at is None else resized_batch(shown, seen_at)
                total, seen = measure(self.net, objective, shown + self.canvas.origin, x)
                given = (self.canvas.values,) if total.requires_grad else ()
                (gradient,) = torch.autograd.grad(total.sum(), given, allow_unused=True) if given else (None,)
                if gradient is None:
                    raise ValueError(f"{what} does not depend on the picture by a differentiable path")
            if self.steps % 10 == 0 and not bool((gradient.sum() + total.sum()).isfinite()):  # each time a GPU would wait
                why = "choose a smaller rate" if self.steps else "its weights may have diverged"
                raise ValueError(f"{what} of {self.net.name} or its gradient is not finite; {why}")
            if self.steps == 0 and not bool(gradient.any()):
                raise ValueError(
                    f"{what} of {self.net.name} does not change with this picture: its gradient is zero; "
                    "begin with another picture, or with noise"
                )
            return total.detach().sum(), gradient, seen.values

        clipped = decay or blur or small_norm or small_contribution or norm
        if clipped and not isinstance(self.canvas, Pixels):
            raise ValueError('decay, blur and clipping are for pixels; choose parameterization="pixels"')
        with torch.no_grad():
            gradient, values = self._optimizer.step(self.canvas.values, evaluate, rate, normalize, momentum)
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
        """Let go of what only holds for one Objective, the curvature that L-BFGS has found, since another one follows."""
        if isinstance(self._optimizer, LBFGS):
            self._optimizer = LBFGS()

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
