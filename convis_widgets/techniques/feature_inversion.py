"""feature_inversion: what a layer still knows of a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch

from ..core import RATES, Ascent, Frame, Knob, Network, features, lp, maps_of, measure, noise, technique, tv

NOISE = 0.2  # less leaves units silent that the picture excites, and nothing leads to it then


@technique
def feature_inversion(
    net: Network,
    image: Any,
    *,
    layer: str | Sequence[str] | None = None,
    iterations: Annotated[int, Knob(1, 5000, label="steps per layer")] = 200,
    alpha_weight: Annotated[float, Knob(0, 100, live=True)] = 1.0,
    tv_weight: Annotated[float, Knob(0, 100, live=True)] = 8.0,
    beta: Annotated[float, Knob(1, 3)] = 2.0,
    optimizer: Annotated[str, Knob(choices=("adam", "lbfgs", "gradient"))] = "adam",
    rate: Annotated[float | None, Knob(1e-4, 2, log=True, live=True)] = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """A picture, found from noise, of which a layer puts out what it puts out of the given one; for several layers one after
    the other, since deeper ones know less of where and how.

    Parameters
    ----------
    net : Network, module or name
    image : picture
    layer : str or sequence of str, optional
        Whose output is matched; several of growing depth otherwise.
    iterations : int
        Steps for each layer.
    alpha_weight, tv_weight : float
        Weights of the pixels' magnitudes, less the mean pixel, to the 6th power, and of the total variation, both per pixel:
        what a natural picture has little of. That of the total variation is for layers of stride 16, and is less where units
        are closer together, by the square.
    beta : float
        Exponent of the total variation; 2 prefers no edges at all, 1 sharp ones.
    optimizer, rate
        Adam with steps of 0.02, L-BFGS with steps of 1, or the gradient, its mean square one, times 0.01 with momentum 0.9.
    seed : int
        Of the noise.

    Yields
    ------
    Frame
        After every step. ``image`` is the picture of the present layer, ``arrays["ladder"]`` (layers, H, W, C) those of all
        begun so far. What they were before the step: ``scalars["features"]``, the squared distance over the squared norm of
        what is wanted, ``["pixels"]``, the same of the pixels less the mean pixel; ``arrays["errors"]`` (layers, 2) both of
        all, in the end after the last step.

    Raises
    ------
    ValueError
        No such layer, or no maps.

    References
    ----------
    A. Mahendran, A. Vedaldi, "Understanding deep image representations by inverting them", 2015, arXiv:1412.0035. Their
    weights are for other pixels and differ from layer to layer.
    """
    batch = net.single(image)
    names = [layer] if isinstance(layer, str) else list(ladder(net) if layer is None else layer)
    if not names:
        raise ValueError("there is no layer; name some, or leave them out")
    names = [net.layers[name].name for name in names]
    origin = net.transform.origin(batch)
    norm = (batch - origin).square().sum().clamp(min=batch.numel() / 255**2)  # of a picture of one color: a level each
    words = {"alpha_weight": alpha_weight, "tv_weight": tv_weight, "rate": rate}
    pixels, step, total = batch.shape[2] * batch.shape[3], 0, len(names) * iterations
    done: list[torch.Tensor] = []
    errors = torch.zeros(0, 2)
    for name, wanted in zip(names, maps_of(net, batch, names), strict=True):
        smooth = _smoothness(net.layers[name].stride)
        distance = features(name, wanted).checked(net)
        ascent = Ascent(net, noise(net, NOISE, seed, size=(batch.shape[2], batch.shape[3])), optimizer=optimizer, seed=seed)
        picture = ascent.picture()
        for left in range(iterations - 1, -1, -1):
            plain = words["alpha_weight"] * lp(6) + smooth * words["tv_weight"] * tv(beta)
            values = ascent.step(
                -distance - plain / pixels,
                rate=words["rate"] or RATES[optimizer],
                normalize="l2" if optimizer == "gradient" else "none",
                momentum=0.9 if optimizer == "gradient" else 0.0,
            )
            step += 1
            told = {"features": values["features"][0], "pixels": (picture - batch).square().sum() / norm}
            told |= {part: value[0] for part, value in values.items() if part in ("l6", "tv")}
            picture = ascent.picture()
            now = torch.stack([told["features"], told["pixels"]]).cpu()
            if not left:
                with torch.no_grad():
                    reached = measure(net, distance, picture)[0][0]
                now = torch.stack([reached, (picture - batch).square().sum() / norm]).cpu()
            arrays = {"ladder": torch.cat([*done, picture]).permute(0, 2, 3, 1), "errors": torch.cat([errors, now[None]])}
            shown = picture[0].permute(1, 2, 0)
            sent = (yield Frame(step, total, done=step == total, image=shown, scalars=told, arrays=arrays)) or {}
            words |= sent
            if {*sent} - {"rate"}:
                ascent.forget()
        done.append(picture)
        errors = torch.cat([errors, now[None]])


def ladder(net: Network) -> list[str]:
    """Layers of growing depth: the last one of each size of maps, without pooling, and the last one of vectors before the
    scores.
    """
    last: dict[tuple[int, ...], str] = {}
    for found in net.layers:
        if found.maps is not None and "Pool" not in found.kind and found.kind != "Flatten" and found is not net.layers[-1]:
            last[found.maps[1:]] = found.name
    return list(last.values())[-6:]


def _smoothness(stride: tuple[int, int] | None) -> float:
    """What the total variation is weighed with: the further apart a layer's units look, the less it tells of pixels."""
    return 1.0 if stride is None else min(1.0, (max(stride) / 16) ** 2)
