"""activations: the activation maps of all channels of a layer."""

from __future__ import annotations

from collections.abc import Iterator

from ...core.network.network import Network
from ...core.network.trace import get_activations
from ...core.registry import technique
from ...core.runs.frame import Frame
from ...core.types import ImageLike


@technique
def activations(net: Network, image: ImageLike, *, layer: str | None = None) -> Iterator[Frame]:
    """The activation maps of a layer, one for each channel.

    Parameters
    ----------
    net : Network, module or name
    image : path, PIL image, array or tensor
    layer : str, optional
        The first layer by default.

    Yields
    ------
    Frame
        One:

        - ``image`` (H, W, C): the network's input
        - ``arrays["maps"]`` (C, h, w): activations; vectors are 1x1 maps, tokens the grid of their patches
        - ``arrays["nonzero"]`` (C,), in [0, 1]: fraction of activations other than zero

    Raises
    ------
    ValueError
        The layer does not exist, or its output is not a set of maps; the network has no layers.

    References
    ----------
    J. Yosinski et al., "Understanding neural networks through deep visualization", 2015, arXiv:1506.06579.

    Examples
    --------
    >>> from convis_widgets import Network, Run, demo
    >>> frame = Run(activations(Network.demo(), demo.images(1)[0], layer="conv1")).run()
    >>> frame.arrays["maps"].shape, frame.arrays["nonzero"].shape
    ((32, 32, 32), (32,))
    """
    if layer is None and not len(net.layers):
        raise ValueError(f"{net.name} has no layers: it calls no modules; wrap its operations in modules")
    name = (net.layers[layer] if layer is not None else net.layers[0]).name
    batch = net.single_batch(image)
    maps = get_activations(net, batch, [name])[0][0].float()
    nonzero = (maps != 0).flatten(1).float().mean(1)
    yield Frame(1, 1, done=True, image=batch, arrays={"maps": maps, "nonzero": nonzero})
