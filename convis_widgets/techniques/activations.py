"""activations: what every channel of a layer does on a picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..core import Frame, Network, maps_of, technique


@technique
def activations(net: Network, image: Any, *, layer: str | None = None) -> Iterator[Frame]:
    """The activation volume of a layer: one map per channel.

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL picture, array or tensor
    layer : str, optional
        The first layer otherwise.

    Yields
    ------
    Frame
        One. ``arrays["maps"]`` is (C, h, w), raw; a vector is given as 1x1 maps, tokens as their grid of patches.
        ``arrays["nonzero"]`` is the share of units other than zero, per channel (C,). ``image`` is the picture as the
        network sees it.

    References
    ----------
    J. Yosinski et al., "Understanding neural networks through deep visualization", 2015, arXiv:1506.06579.
    """
    if layer is None and not len(net.layers):
        raise ValueError(f"{net.name} has no layers that could be looked into: it calls no modules")
    name = (net.layers[layer] if layer is not None else net.layers[0]).name
    batch = net.single(image)
    maps = maps_of(net, batch, [name])[0][0].float()
    nonzero = (maps != 0).flatten(1).float().mean(1)
    picture = batch[0].permute(1, 2, 0)
    yield Frame(1, 1, done=True, image=picture, arrays={"maps": maps, "nonzero": nonzero})
