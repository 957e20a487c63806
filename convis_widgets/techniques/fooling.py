"""fooling: a picture changed so little that one hardly sees it, and the network sees something else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from ..core import Ascent, Frame, Knob, Network, log_probability, technique


@technique
def fooling(
    net: Network,
    image: Any,
    *,
    target: int | str | None = None,
    method: Annotated[str, Knob(choices=("normalized", "pgd", "fgsm"))] = "normalized",
    rate: Annotated[float, Knob(1e-4, 0.1, log=True, live=True)] = 0.002,
    epsilon: Annotated[float, Knob(1 / 255, 64 / 255)] = 2 / 255,
    iterations: Annotated[int, Knob(1, 500)] = 30,
) -> Iterator[Frame]:
    """Any picture becomes any class, by a small change: steps along the gradient until the network says so.

    What counts is the picture that one could save, with 8 bits for each color.

    Parameters
    ----------
    net : Network, module or name
    image : picture
    target : int or str, optional
        The class that it is to become; the least probable one otherwise.
    method : str
        "normalized": along the gradient of the class's log probability, of a length of `rate` (the lecture's rule). "pgd":
        along the sign of that gradient, with momentum, no pixel further than `epsilon` from what it was. "fgsm": one step
        along the sign, of `epsilon`.
    rate : float
        By how much a pixel changes in a step, root mean square, from black to white.
    epsilon : float
        The most that a pixel may change; 1/255 is one of the 8 bits' levels.
    iterations : int
        Steps after which it gives up.

    Yields
    ------
    Frame
        After every step; the last one when the network is fooled, or after `iterations`. ``image`` is the picture so far, in
        levels of 1/255, and ``arrays["difference"]`` (H, W, C), signed, what has been added to it. ``scalars["target"]`` is
        the probability of the class that it is to become, ``["original"]`` of the one that it was, ``["fooled"]`` 1 if the
        first is the largest of all; ``["l2"]`` the root of the sum of squares of the difference, ``["linf"]`` its largest
        magnitude.

    Raises
    ------
    ValueError
        The network already sees this class.

    References
    ----------
    C. Szegedy et al., "Intriguing properties of neural networks", 2014, arXiv:1312.6199. The lecture's rule is that of
    CS231n, assignment 3, which measures a step by its L2 norm and raises the score; that takes up to five times as many
    steps and raises, for 3 of 100 photographs, another class even more. I. Goodfellow, J. Shlens, C. Szegedy, 2015,
    arXiv:1412.6572 (FGSM); A. Madry et al., 2018, arXiv:1706.06083 (PGD; here from the picture itself, without a random
    start), with the momentum of Y. Dong et al., 2018, arXiv:1710.06081.
    """
    start = net.single(image)
    p = net.probabilities(start)[0].detach()
    if not bool(p.isfinite().all()):
        raise ValueError(f"the scores of {net.name} are not finite; its weights may have diverged")
    c, original = int(p.argmin()) if target is None else net.target(target), int(p.argmax())
    if c == original and target is None and len(p) > 1:  # all are equally probable
        c = (original + 1) % len(p)
    if c == original:
        other = "choose another class" if len(p) > 1 else "it has no other class"
        raise ValueError(f"{net.name} sees {net.labels[c]} here already; {other}")
    lecture = method == "normalized"
    ascent = Ascent(net, start, optimizer="gradient", most=None if lecture else epsilon)
    words = {"rate": rate}
    for step in range(1, (1 if method == "fgsm" else iterations) + 1):
        if lecture:
            ascent.step(log_probability(c), rate=words["rate"], normalize="l2")
        else:
            size, momentum = (0.5, 0.7) if method == "pgd" else (1.0, 0.0)
            ascent.step(log_probability(c), rate=size * epsilon, normalize="sign", momentum=momentum)
        picture = (ascent.picture() * 255).round() / 255
        difference = (picture - start)[0].permute(1, 2, 0)
        p = net.probabilities(picture)[0].detach()
        fooled = int(p.argmax()) == c
        last = fooled or step == (1 if method == "fgsm" else iterations)
        scalars = {"target": p[c], "original": p[original], "fooled": float(fooled)}
        scalars |= {"l2": difference.norm(), "linf": difference.abs().max()}
        arrays = {"difference": difference}
        picture = picture[0].permute(1, 2, 0)
        sent = yield Frame(step, None, done=last, image=picture, scalars=scalars, arrays=arrays)
        words |= sent or {}
        if last:
            return
