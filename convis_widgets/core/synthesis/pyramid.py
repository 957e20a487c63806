"""Image pyramids: optimization of an image from coarse to fine sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..network.images import resize_batch
from ..network.network import Network
from .image_optimizer import ImageOptimizer, noise
from .parameterization import choose_parameterization

MIN_SIDE = 24  # pixels; smaller images have no structure to optimize


def pyramid_sizes(size: tuple[int, int], count: int, ratio: float, min_side: int = 1) -> list[tuple[int, int]]:
    """Sizes (height, width) of an image pyramid, from coarse to fine.

    Parameters
    ----------
    size : (int, int)
        Height and width of the last one.
    count : int
        Maximum number of sizes.
    ratio : float
        Ratio of each size to the previous one.
    min_side : int
        Smallest side in pixels; smaller sizes are omitted, except `size` itself.

    Examples
    --------
    >>> pyramid_sizes((64, 96), 3, 2)
    [(16, 24), (32, 48), (64, 96)]
    """
    smaller = [(round(size[0] / ratio**i), round(size[1] / ratio**i)) for i in range(count - 1, 0, -1)]
    return [*((height, width) for height, width in smaller if min(height, width) >= min_side), (size[0], size[1])]


def coarse_to_fine(
    net: Network,
    sizes: Sequence[tuple[int, int]],
    init_image: torch.Tensor | None = None,
    *,
    noise_std: float,
    optimizer: str,
    parameterization: str | None = None,
    seed: int = 0,
) -> Iterator[tuple[tuple[int, int], ImageOptimizer]]:
    """One ImageOptimizer for each size; each starts from the resized image of the previous one.

    Parameters
    ----------
    net : Network
    sizes : sequence of (int, int)
        Heights and widths, see `pyramid_sizes`.
    init_image : (1, C, H, W) tensor in [0, 1], optional
        Initial image, resized to the first size; noise of standard deviation `noise_std` otherwise.
    noise_std : float
    optimizer : str
        See `ImageOptimizer`.
    parameterization : str, optional
        "pixels" or "fourier"; that of `choose_parameterization` otherwise.
    seed : int

    Yields
    ------
    size : (int, int)
    opt : ImageOptimizer
    """
    parameterization = parameterization or choose_parameterization(net, optimizer)
    image = init_image
    for size in sizes:
        image = noise(net, noise_std, seed, size=size) if image is None else resize_batch(image, size)
        opt = ImageOptimizer(net, image, parameterization=parameterization, optimizer=optimizer, seed=seed)
        yield size, opt
        image = opt.image()
