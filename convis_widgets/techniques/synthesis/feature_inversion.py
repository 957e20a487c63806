"""feature_inversion: reconstruct an image from the activations of a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import torch

from ...core.knob import Knob
from ...core.network.network import Network
from ...core.network.trace import get_activations
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.synthesis import objectives
from ...core.synthesis.default_layers import default_inversion_layers
from ...core.synthesis.image_optimizer import ImageOptimizer, noise
from ...core.synthesis.optimizers import DEFAULT_LR
from ...core.types import ImageLike

NOISE_STD = 0.2  # with fainter noise, units that are active for the image can have a gradient of zero


@technique(allow_tf32=True)
def feature_inversion(
    net: Network,
    image: ImageLike,
    *,
    layers: str | Sequence[str] | None = None,
    iterations: Annotated[int, Knob(1, 5000, label="steps per layer")] = 200,
    alpha_weight: Annotated[float, Knob(0, 100, live=True)] = 1.0,
    tv_weight: Annotated[float, Knob(0, 100, live=True)] = 8.0,
    beta: Annotated[float, Knob(1, 3)] = 2.0,
    optimizer: Annotated[str, Knob(choices=("adam", "lbfgs", "gradient"))] = "adam",
    lr: Annotated[float | None, Knob(1e-4, 2, log=True, live=True)] = None,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """An image with the same activations as the given one, found from noise, for one layer after the other.

    The deeper the layer, the less it determines positions and colors.

    Parameters
    ----------
    net : Network, module or name
    image : image
    layers : str or sequence of str, optional
        Layers to invert; up to six of increasing depth by default.
    iterations : int
        Steps per layer.
    alpha_weight : float
        Weight of the pixels minus the mean pixel, to the 6th power, per pixel.
    tv_weight : float
        Weight of the total variation per pixel, for layers of stride 16 and more; multiplied by (stride / 16)^2 for others.
    beta : float
        Exponent of the total variation; 2 penalizes all edges, 1 allows sharp ones.
    optimizer : str
        "adam", "lbfgs", or "gradient" with momentum 0.9 and the gradient divided by its root mean square.
    lr : float, optional
        Learning rate; 0.02 for "adam", 1 for "lbfgs" and 0.01 for "gradient" by default.
    seed : int
        Seed of the noise.

    Yields
    ------
    Frame
        After every step. Errors and scalars are those before the step:

        - ``image`` (H, W, C): reconstruction from the current layer
        - ``arrays["inversions"]`` (n, H, W, C): reconstructions from all n layers so far
        - ``arrays["errors"]`` (n, 2): relative errors of activations and pixels for all n layers so far; after the last step
          of a layer, those of its final image
        - ``scalars["features"]``: squared distance of the activations, relative to their squared norm
        - ``scalars["pixels"]``: squared distance of the pixels, relative to their squared norm minus the mean pixel
        - ``scalars["l6"]``, ``["tv"]``: sum of 6th powers and total variation, without weights

    Raises
    ------
    ValueError
        There is no such layer, or its output is not a set of maps.

    References
    ----------
    A. Mahendran, A. Vedaldi, "Understanding deep image representations by inverting them", 2015, arXiv:1412.0035. Their
    weights are for other pixel ranges and differ from layer to layer. They descend with momentum 0.9, as "gradient" does
    here; the default is Adam. For `beta` other than 2, 1e-8 is added below the root, see `regularizers.total_variation`.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo, feature_inversion
    >>> net, scene = Network.demo(), demo.images(1, label="fish")[0]
    >>> Run(feature_inversion(net, scene.image, layers=["relu1", "relu3"], iterations=3)).run().arrays["inversions"].shape
    (2, 64, 64, 3)
    """
    batch = net.single_batch(image)
    names = [layers] if isinstance(layers, str) else list(default_inversion_layers(net) if layers is None else layers)
    if not names:
        raise ValueError("the list of layers is empty; name at least one layer, or omit the argument")
    names = [net.layers[name].name for name in names]
    mean_pixel = net.transform.mean_pixel_tensor(batch)
    norm = (batch - mean_pixel).square().sum().clamp(min=batch.numel() / 255**2)  # at least one level of 1/255 per value
    knobs: dict[str, Any] = {"alpha_weight": alpha_weight, "tv_weight": tv_weight, "lr": lr}
    size = (batch.shape[2], batch.shape[3])
    step, total = 0, len(names) * iterations
    finished: list[torch.Tensor] = []
    errors = torch.zeros(0, 2, dtype=torch.float32)
    for name, activations in zip(names, get_activations(net, batch, names), strict=True):
        tv_scale = _tv_scale(net.layers[name].stride)
        distance = objectives.features(name, activations).validate(net)
        opt = ImageOptimizer(net, noise(net, NOISE_STD, seed, size=size), optimizer=optimizer, seed=seed)
        inversion = opt.image()
        for remaining in range(iterations - 1, -1, -1):
            penalty = knobs["alpha_weight"] * objectives.lp_norm(6)
            penalty = penalty + tv_scale * knobs["tv_weight"] * objectives.total_variation(beta)
            values = opt.step(
                -distance - penalty / (size[0] * size[1]),
                lr=knobs["lr"] or DEFAULT_LR[optimizer],
                normalize="l2" if optimizer == "gradient" else "none",
                momentum=0.9 if optimizer == "gradient" else 0.0,
            )
            step += 1
            scalars = {"features": values["features"][0], "pixels": (inversion - batch).square().sum() / norm}
            scalars |= {term: value[0] for term, value in values.items() if term in ("l6", "tv")}
            inversion = opt.image()
            current = torch.stack([scalars["features"], scalars["pixels"]]).cpu()
            if not remaining:
                with torch.no_grad():
                    final = objectives.evaluate(net, distance, inversion)[0][0]
                current = torch.stack([final, (inversion - batch).square().sum() / norm]).cpu()
            arrays = {
                "inversions": torch.cat([*finished, inversion]).permute(0, 2, 3, 1),
                "errors": torch.cat([errors, current[None]]),
            }
            frame = Frame(step, total, done=step == total, image=inversion, scalars=scalars, arrays=arrays)
            changes: dict[str, Any] = (yield frame) or {}
            knobs |= changes
            if {*changes} - {"lr"}:
                opt.reset_state()
        finished.append(inversion)
        errors = torch.cat([errors, current[None]])


def _tv_scale(stride: tuple[int, int] | None) -> float:
    """Relative weight of the total variation: a layer of small stride determines the pixels better."""
    return 1.0 if stride is None else min(1.0, (max(stride) / 16) ** 2)
