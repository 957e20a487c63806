"""template_match: the patch that maximizes a filter of the first layer is the filter itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import torch

from ...core.knob import Knob
from ...core.network.layers import Layer
from ...core.network.network import Network
from ...core.network.trace import trace
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.synthesis.image_optimizer import ImageOptimizer, mean_image, noise
from ...core.synthesis.objectives import ForwardPass, FunctionObjective

PATCH_NORM = 0.3  # L2 norm of a patch minus the mean pixel; small enough for pixels in [0, 1]


@technique(allow_tf32=True)
def template_match(
    net: Network,
    *,
    layer: str | None = None,
    iterations: Annotated[int, Knob(1, 1000)] = 60,
    lr: Annotated[float, Knob(1e-3, 1, log=True, live=True)] = 0.02,
    seed: Annotated[int, Knob(0)] = 0,
) -> Iterator[Frame]:
    """For each filter of the first layer, the patch of fixed norm that maximizes its activation, which is the filter itself.

    The activation is the dot product of patch and filter, and among all patches of one norm it is largest for the one in the
    direction of the filter. That is why a filter, shown as an image, shows what it detects.

    Parameters
    ----------
    net : Network, module or name
    layer : str, optional
        A layer with filters on pixels; the first layer with filters by default.
    iterations : int
        Number of steps.
    lr : float
        Root mean square change of a pixel per step; 1 is from black to white.
    seed : int
        Seed of the noise that patches start from.

    Yields
    ------
    Frame
        After every step, for n filters:

        - ``arrays["patches"]`` (n, h, w, C): patches minus the mean pixel
        - ``arrays["filters"]`` (n, h, w, C): weights of the filters divided by the transform's standard deviation
        - ``arrays["cosine"]`` (n,): cosine similarity of patch and filter, 0 for a filter of zeros
        - ``scalars["cosine"]``: smallest cosine similarity of the filters that are not zero
        - ``scalars["activation"]``: mean activation before the step

    Raises
    ------
    ValueError
        The filters of the layer are not on pixels.

    References
    ----------
    F.-F. Li, J. Johnson, S. Yeung, CS231n lecture 12, 2017, on first layer filters.

    Examples
    --------
    >>> from convis_widgets import Network, Run, template_match
    >>> last = Run(template_match(Network.demo())).run()
    >>> last.arrays["patches"].shape, last.scalars["cosine"] > 0.99
    ((32, 9, 9, 3), True)
    """
    first = net.layers[layer or net.filter_layers[0]]
    weights = net.weights(first.name)[0]
    count, channels, height, width = weights.shape
    (row, top), (column, left) = _inner_units(net, first, channels, (height, width))
    std = torch.tensor(net.transform.std, dtype=net.dtype).expand(channels)
    filters = torch.from_numpy(weights).float() / std.view(1, -1, 1, 1)
    patch = (..., slice(top, top + height), slice(left, left + width))
    size = (top + height, left + width)
    init_images = noise(net, 0.02, seed, count, size if _runs_at(net, first.name, size) else net.transform.size)
    mask = torch.zeros_like(init_images)
    mask[patch] = 1
    mean_pixel = net.transform.mean_pixel_tensor(init_images)
    opt = ImageOptimizer(net, init_images * mask + mean_pixel * (1 - mask), optimizer="gradient", seed=seed)

    def activation(forward: ForwardPass) -> torch.Tensor:
        """Activation of the i-th filter for the i-th image."""
        maps = forward.activations(first.name)
        return maps[torch.arange(count), torch.arange(count), row, column]

    objective, knobs = FunctionObjective("activation", frozenset([first.name]), activation), {"lr": lr}
    nonzero = filters.flatten(1).any(1)
    for step in range(1, iterations + 1):
        values = opt.step(objective, lr=knobs["lr"], normalize="l2", norm=PATCH_NORM)
        patches = (opt.image() - mean_pixel)[patch].float().cpu()
        cosine = torch.nn.functional.cosine_similarity(patches.flatten(1), filters.flatten(1), eps=1e-12)
        arrays = {"patches": patches.permute(0, 2, 3, 1), "filters": filters.permute(0, 2, 3, 1), "cosine": cosine}
        scalars = {"activation": values["activation"].mean(), "cosine": cosine[nonzero].min()}
        knobs |= (yield Frame(step, iterations, done=step == iterations, scalars=scalars, arrays=arrays)) or {}


def _inner_units(net: Network, layer: Layer, channels: int, kernel: tuple[int, int]) -> list[tuple[int, int]]:
    """Index and first pixel, along both axes, of the first unit whose receptive field is inside the image.

    Parameters
    ----------
    net : Network
    layer : Layer
    channels : int
        Input channels of its filters.
    kernel : (int, int)
        Height and width of its filters.

    Raises
    ------
    ValueError
        The filters are not on pixels.
    """
    if kernel == net.transform.size and not layer.is_spatial:  # a fully connected layer has one unit per filter
        return [(0, 0), (0, 0)]
    grids = [] if layer.field is None else [layer.field.rows.grid, layer.field.cols.grid]
    regular = [grid for grid in grids if grid is not None]
    if channels != net.transform.channels or len(regular) != 2 or layer.receptive_field != kernel:
        name = net.filter_layers[0]
        hint = (
            f"choose {name}" if layer.name != name else "each filter of this network's first layer takes only some channels"
        )
        raise ValueError(f"the filters of {layer.name} are not on pixels; {hint}")
    units = []
    for _size, stride, start in regular:
        index = -(-max(0, -int(start)) // int(stride))
        units.append((index, int(start) + index * int(stride)))
    return units


def _runs_at(net: Network, layer: str, size: tuple[int, int]) -> bool:
    """Whether the network runs on images of this size up to the layer."""
    try:
        with torch.no_grad(), trace(net, [layer], stop=True):
            net(mean_image(net, size=size))
    except Exception:  # noqa: BLE001 (a module may fail in any way on a size that it was not made for)
        return False
    return True
