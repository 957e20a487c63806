"""fooling: adversarial examples, small changes of an image that change its class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

import torch

from ...core.errors import check_finite
from ...core.knob import Knob
from ...core.network.images import to_channels_last
from ...core.network.network import Network
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.synthesis import objectives
from ...core.synthesis.image_optimizer import ImageOptimizer
from ...core.types import ImageLike


@technique(allow_tf32=True)
def fooling(
    net: Network,
    image: ImageLike,
    *,
    target: int | str | None = None,
    method: Annotated[str, Knob(choices=("normalized", "pgd", "fgsm"))] = "normalized",
    lr: Annotated[float, Knob(1e-4, 0.1, log=True, live=True)] = 0.002,
    epsilon: Annotated[float, Knob(1 / 255, 64 / 255)] = 2 / 255,
    iterations: Annotated[int, Knob(1, 500)] = 30,
) -> Iterator[Frame]:
    """The image with a small change that makes the network predict another class, by steps along the gradient.

    Probabilities are those of the image rounded to 8 bits per channel, as it would be saved.

    Parameters
    ----------
    net : Network, module or name
    image : image
    target : int or str, optional
        The class to predict; by default the least probable one whose score is finite.
    method : str
        "normalized": steps of length `lr` along the gradient of the target's log probability. "pgd": steps along the sign
        of that gradient, with momentum, and no pixel changes by more than `epsilon`. "fgsm": one step of `epsilon` along
        the sign.
    lr : float
        Root mean square change of a pixel per step, for "normalized"; 1 is from black to white.
    epsilon : float
        Largest change of a pixel, for "pgd" and "fgsm"; 1/255 is one level of 8 bits.
    iterations : int
        Maximum number of steps, for "normalized" and "pgd".

    Yields
    ------
    Frame
        After every step, until the network predicts the target:

        - ``image`` (H, W, C): the changed image, in levels of 1/255
        - ``arrays["difference"]`` (H, W, C), signed: its difference from the original
        - ``scalars["target"]``, ``["original"]``: probabilities of the target and of the original class
        - ``scalars["fooled"]``: 1 if the target is the most probable class, else 0
        - ``scalars["l2"]``, ``["linf"]``: L2 norm and largest magnitude of the difference

    Raises
    ------
    ValueError
        The network already predicts the target, or has no classes; its scores are not finite.

    References
    ----------
    C. Szegedy et al., "Intriguing properties of neural networks", 2014, arXiv:1312.6199. "normalized" is the rule of CS231n,
    assignment 3, except that it measures a step by its root mean square instead of its L2 norm, and maximizes the log
    probability instead of the logit: the logit needs up to five times as many steps and, for 3 of 100 images, another class
    becomes even more probable. I. Goodfellow, J. Shlens, C. Szegedy, 2015, arXiv:1412.6572 (FGSM). A. Madry et al., 2018,
    arXiv:1706.06083 (PGD; here without a random start), with the momentum of Y. Dong et al., 2018, arXiv:1710.06081.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, fooling
    >>> net, scene = Network.demo(), demo.images(1, label="fish")[0]
    >>> last = Run(fooling(net, scene.image, target="cup", lr=0.01, iterations=100)).run()
    >>> net.predict(last.image, k=1)[0][0]
    'cup'
    """
    batch = net.single_batch(image)
    if not net.output.has_probabilities:
        raise ValueError(f"{net.name} returns values, not class probabilities, so there is no class to fool it into")
    with torch.no_grad():
        scores = net(batch)
    p, scores = net.output.predictions(scores.float())[0], scores[0]
    check_finite(p, f"the scores of {net.name}")
    original = int(p.argmax())
    c = _least_probable(net, p, scores) if target is None else net.class_index(target)
    if c == original and target is None and len(p) > 1:  # all classes are equally probable
        c = (original + 1) % len(p)
    if c == original:
        hint = "choose another class" if len(p) > 1 else "it has only one class"
        raise ValueError(f"{net.name} already predicts {net.labels[c]} for this image; {hint}")
    opt = ImageOptimizer(net, batch, optimizer="gradient", max_change=None if method == "normalized" else epsilon)
    objective, knobs = objectives.log_prob(c), {"lr": lr}
    steps = 1 if method == "fgsm" else iterations
    for step in range(1, steps + 1):
        if method == "normalized":
            opt.step(objective, lr=knobs["lr"], normalize="l2")
        elif method == "pgd":
            opt.step(objective, lr=0.5 * epsilon, normalize="sign", momentum=0.7)
        else:
            opt.step(objective, lr=epsilon, normalize="sign")
        rounded = (opt.image() * 255).round() / 255
        difference = to_channels_last(rounded - batch)
        p = net.predictions(rounded)[0].detach()
        fooled = int(p.argmax()) == c
        done = fooled or step == steps
        scalars: dict[str, Any] = {"target": p[c], "original": p[original], "fooled": float(fooled)}
        scalars |= {"l2": difference.norm(), "linf": difference.abs().max()}
        frame = Frame(step, done=done, image=rounded, scalars=scalars, arrays={"difference": difference})
        knobs |= (yield frame) or {}
        if done:
            return


def _least_probable(net: Network, p: torch.Tensor, scores: torch.Tensor) -> int:
    """The least probable class that is not masked out, by a score of -inf or a probability of exactly 0."""
    possible = scores.isfinite() if net.output_activation == "none" else scores.isfinite() & (p > 0)
    return int(p.masked_fill(~possible, torch.inf).argmin())
