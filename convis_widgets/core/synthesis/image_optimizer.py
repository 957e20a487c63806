"""ImageOptimizer: the optimization loop of all synthesis techniques.

On a GPU, launching the kernels of a small image takes longer than computing them. So the forward and backward pass of a step
is recorded as a CUDA graph, see `replay`, and launched at once in later steps. What differs from step to step is in tensors
that the recorded kernels read: the pixels, which the optimizer changes in place, and the random numbers of the transforms.
Another objective, weight, size or kind of transform makes a new record.

The optimizer and the operations on the pixels after a step are not recorded, so their knobs are plain numbers. Nothing is
recorded while a unit is not active, since such steps are decided by values, nor on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ..network.autograd import redirect_gradient
from ..network.images import gaussian_blur, resize_batch
from ..network.network import Network
from ..network.shadow import update_shadow
from . import objectives, transforms
from .objectives import LOGITS, Objective
from .optimizers import LBFGS, OPTIMIZERS, Evaluation
from .parameterization import PARAMETERIZATIONS, Pixels
from .regularizers import clip_small_contribution, clip_small_norm, rescale_norm
from .replay import REPLAYING_DEVICES, Replay
from .transforms import Transform

REDIRECTED_STEPS = 16
"""Steps in which gradients pass through a closed ReLU, as in lucid; more if it stays closed or closes again."""


class Attempt(NamedTuple):
    """The objective, its gradients with respect to the values and to the network's input, and the terms of the objective."""

    total: torch.Tensor
    gradient: torch.Tensor
    input_gradient: torch.Tensor | None
    terms: dict[str, torch.Tensor]


class ImageOptimizer:
    """Images that maximize an Objective, step by step.

    Parameters
    ----------
    net : Network
    init_images : (N, C, H, W) tensor in [0, 1]
        Initial images.
    parameterization : str
        "pixels" or "fourier", see `parameterization`.
    optimizer : str
        "adam" (D. Kingma, J. Ba, 2015), "gradient" (with momentum) or "lbfgs".
    seed : int
        Seed of the random transforms.
    **param_kwargs
        Passed to the parameterization.

    Attributes
    ----------
    steps : int
        Number of steps completed.
    param : Pixels or Fourier
        The parameterization with the current values.

    Examples
    --------
    >>> from convis_widgets import ImageOptimizer, Network, noise, objectives
    >>> net = Network.demo()
    >>> opt = ImageOptimizer(net, noise(net, 0.02, seed=0), optimizer="gradient")
    >>> objective = objectives.class_logit(3)
    >>> values = [float(opt.step(objective, lr=0.01, normalize="l2")["logit"]) for _ in range(20)]
    >>> values[-1] > values[0]
    True
    """

    def __init__(
        self,
        net: Network,
        init_images: torch.Tensor,
        *,
        parameterization: str = "pixels",
        optimizer: str = "adam",
        seed: int = 0,
        **param_kwargs: Any,
    ) -> None:
        self.net, self.steps = net, 0
        self._blocked_step = -REDIRECTED_STEPS  # the last step in which the gradient of the network was zero
        mean_pixel = net.transform.mean_pixel_tensor(init_images)
        self.param = PARAMETERIZATIONS[parameterization](init_images, mean_pixel, **param_kwargs)
        self._generator = torch.Generator().manual_seed(seed)
        self._replay: tuple[Any, Replay, Transform, Objective] | None = None
        self._optimizer = OPTIMIZERS[optimizer]()

    def step(
        self,
        objective: Objective,
        *,
        lr: float,
        normalize: str = "none",
        momentum: float = 0.0,
        jitter: int = 0,
        rotate: float = 0.0,
        scale: float = 0.0,
        decay: float = 0.0,
        blur: float = 0.0,
        blur_every: int = 1,
        clip_norm_fraction: float = 0.0,
        clip_contribution_fraction: float = 0.0,
        norm: float = 0.0,
        input_size: tuple[int, int] | None = None,
    ) -> Mapping[str, torch.Tensor]:
        """Make one step. All arguments may differ from step to step.

        Parameters
        ----------
        objective : Objective
        lr : float
            Length of the step: Adam's learning rate; the factor of the normalized gradient for "gradient"; the factor of the
            search direction for "lbfgs".
        normalize : str
            Divisor of the gradient for "gradient": "l1", mean magnitude of its elements; "l2", their root mean square, so
            that `lr` is the change of a pixel; "progress", its squared norm, so that `lr` is the gain of a linear
            objective; "none". With "sign" each element changes by `lr` in the direction of its sign.
        momentum : float in [0, 1)
            Fraction of the previous step that is added, for "gradient".
        jitter : int
            Largest random shift in pixels, see `transforms.draw`.
        rotate, scale : float
            Largest random rotation in degrees and relative change of size.
        decay : float in [0, 1)
            Fraction that is subtracted from the pixels after the step. This and the following ones need
            ``parameterization="pixels"``.
        blur : float
            Standard deviation of a Gaussian blur in pixels, after every `blur_every` steps.
        blur_every : int
        clip_norm_fraction, clip_contribution_fraction : float in [0, 1)
            Fractions of the pixels that are set to the mean pixel, see `regularizers`.
        norm : float
            L2 norm to which each image minus the mean pixel is scaled; 0 for no scaling.
        input_size : (int, int), optional
            Height and width to which the network's input is resized.

        Returns
        -------
        mapping of str to (N,) tensors
            Terms of the objective before the step, and their weighted sum, "objective".

        Raises
        ------
        ValueError
            The objective or its gradient is not finite, or the objective does not depend on the image. The image is
            unchanged then.
        """
        is_class = LOGITS in objective.layers
        quantity = "the class logit" if is_class else f"the {objective.name}"
        watched = 1 if is_class else REDIRECTED_STEPS  # steps after one in which the gradient was zero

        def attempt(transform: Transform, redirect: bool = False) -> Attempt:
            with torch.enable_grad():
                x = self.param.image()
                # the gradient of a unit is redirected at one position, always the same one
                transformed = x if redirect and not is_class else transform(x)
                transformed = transformed if input_size is None else resize_batch(transformed, input_size)
                network_input = transformed + self.param.mean_pixel
                total, forward = objectives.evaluate(self.net, objective, network_input, x)
                if not total.requires_grad:
                    raise ValueError(f"{quantity} does not depend on the image by a differentiable path; choose another one")
                if redirect:
                    redirect_gradient(total.grad_fn, len(x), at_center=not is_class)
                gradients = torch.autograd.grad(total.sum(), (self.param.values, network_input), allow_unused=True)
            if gradients[0] is None:
                raise ValueError(f"{quantity} does not depend on the image by a differentiable path; choose another one")
            return Attempt(total.detach(), gradients[0], gradients[1], forward.terms)

        def evaluate() -> Evaluation:
            self.param.project_()
            transform = transforms.draw(self.param.size, jitter, rotate, scale, self._generator)
            check = self.steps < REDIRECTED_STEPS or self.steps <= self._blocked_step + watched  # it synchronizes a GPU
            if check:
                total, gradient, input_gradient, terms = attempt(transform)
            else:
                total, gradient, input_gradient, terms = self._replayed(attempt, transform, objective, input_size)
            if input_gradient is not None and check:
                blocked = ~input_gradient.flatten(1).any(1)
                if bool(blocked.any()):  # a unit that is not active: its ReLU is closed at all positions
                    self._blocked_step = self.steps
                    redirected = attempt(transform, redirect=True).gradient
                    gradient = torch.where(blocked.view(-1, *(1,) * (gradient.ndim - 1)), redirected, gradient)
            if self.steps % 10 == 0 and not bool((gradient.sum() + total.sum()).isfinite()):  # each check synchronizes a GPU
                if not self.steps and bool((total == -torch.inf).any()):
                    raise ValueError(f"{quantity} of {self.net.name} is -inf for this image; choose another target")
                hint = "choose a smaller lr" if self.steps else "its weights may have diverged"
                raise ValueError(f"{quantity} of {self.net.name} or its gradient is not finite; {hint}")
            if self.steps == 0 and not bool(gradient.any()):
                raise ValueError(
                    f"{quantity} of {self.net.name} has a gradient of zero for this image; "
                    "start from another image or from noise"
                )
            return total.sum(), gradient, terms

        regularized = decay or blur or clip_norm_fraction or clip_contribution_fraction or norm
        if regularized and not isinstance(self.param, Pixels):
            raise ValueError('decay, blur and clipping need pixels; choose parameterization="pixels"')
        with torch.no_grad():
            gradient, values = self._optimizer.step(self.param.values, evaluate, lr, normalize, momentum)
            self.steps += 1
            if regularized:
                x = self.param.values
                x.mul_(1 - decay)
                if self.steps % blur_every == 0:
                    x.copy_(gaussian_blur(x, blur))
                x.copy_(clip_small_norm(x, clip_norm_fraction))
                x.copy_(clip_small_contribution(x, gradient, clip_contribution_fraction))
                x.copy_(rescale_norm(x, norm) if norm else x)
            self.param.project_()
        return values

    def _replayed(
        self,
        attempt: Callable[[Transform], Attempt],
        transform: Transform,
        objective: Objective,
        input_size: tuple[int, int] | None,
    ) -> Attempt:
        """What `attempt` returns; on a GPU by a `Replay`, as long as nothing but pixels and random numbers changes."""
        net = self.net
        if net.device.type not in REPLAYING_DEVICES or net.is_random or net.one_image_at_a_time:
            return attempt(transform)
        update_shadow(net.module)  # exchanged weights are in another place
        places = [tensor.data_ptr() for tensor in (*net.module.parameters(), *net.module.buffers())]
        terms = [(weight, id(term)) for weight, term in objective.terms()]
        key = (terms, transform.shift is None, transform.matrix is None, input_size, places)
        if self._replay is None or self._replay[0] != key:
            numbers = transform.on(net.device)
            replay = Replay(lambda: attempt(numbers))
            self._replay = key, replay, numbers, objective  # the objective is kept, so that no id is used twice
        _, replay, numbers, _ = self._replay
        numbers.copy_(transform)
        return replay()

    def reset_state(self) -> None:
        """Drop what holds for one Objective only, the curvature estimate of L-BFGS, before another one follows."""
        if isinstance(self._optimizer, LBFGS):
            self._optimizer = LBFGS()

    def image(self) -> torch.Tensor:
        """The current images, (N, C, H, W) in [0, 1]."""
        with torch.no_grad():
            return (self.param.image() + self.param.mean_pixel).clamp(0, 1)


def mean_image(net: Network, count: int = 1, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Images of the mean pixel, (N, C, H, W), of the network's size or another.

    Parameters
    ----------
    net : Network
    count : int
        Number of images N.
    size : (int, int), optional
        Height and width in pixels; those of the network otherwise.
    """
    height, width = size or net.transform.size
    blank = torch.zeros(count, net.transform.channels, height, width, device=net.device, dtype=net.dtype)
    return blank + net.transform.mean_pixel_tensor(blank)


def noise(net: Network, std: float, seed: int, count: int = 1, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Gaussian noise around the mean pixel, clipped to [0, 1].

    Parameters
    ----------
    net : Network
    std : float
        Standard deviation.
    seed : int
    count : int
        Number of images N.
    size : (int, int), optional
        Height and width in pixels; those of the network otherwise.

    Returns
    -------
    (N, C, H, W) tensor
    """
    blank = mean_image(net, count, size)
    generator = torch.Generator().manual_seed(seed)
    return (blank + std * torch.randn(blank.shape, generator=generator, dtype=torch.float32).to(blank)).clamp(0, 1)
