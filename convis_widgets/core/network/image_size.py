"""Images of another size than the network's: large ones are checked before the forward pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.func import functional_call

from ..errors import format_shape
from ..memory import available_memory, check_memory
from ..types import ImageLike
from .image_file import is_image_file
from .images import arrange_axes
from .shadow import make_shadow
from .trace import first_tensor

if TYPE_CHECKING:
    from .network import Network

MIN_PIXELS = 1 << 20  # smaller images are simply tried
RESIZE = "resize it, or give a file or PIL image, which is resized"
MAX_MEMORY_FRACTION = 0.8  # of the available memory


def check_image_size(net: Network, image: ImageLike) -> None:
    """Raise ValueError if an array or tensor is too large for a network or for the memory; nothing is computed.

    Parameters
    ----------
    net : Network
    image : image
        Files and PIL images, which are resized, always pass.
    """
    shape = getattr(getattr(image, "image", image), "shape", ())
    if is_image_file(image) or math.prod(shape) < MIN_PIXELS:
        return
    size = arrange_axes(image, net.transform.channels).shape[:2]
    scale = math.prod(size) / math.prod(net.transform.size)
    if math.prod(size) < MIN_PIXELS or scale <= 1:
        return
    if not _runs_on(net, size) and _runs_on(net, net.transform.size):
        raise size_mismatch(net, size)
    shapes = (value.shape for op in net.graph.ops for value in op.outputs if value is not None)
    largest = max((math.prod(shape) for shape in shapes if len(shape) > 2 and shape[0] == 1), default=0)  # not weights
    check_memory(
        f"an image of {format_shape(size)} is too large: {net.name}",
        round(4 * 4 * largest * scale),  # about four such tensors of 4 bytes at a time, as in `auto_batch_size`
        round(MAX_MEMORY_FRACTION * available_memory(net.device)),
        RESIZE,
    )


def size_mismatch(net: Network, size: Sequence[int]) -> ValueError:
    """The error for an image on which the network cannot run.

    Parameters
    ----------
    net : Network
    size : (int, int)
        Height and width of the image.
    """
    expected = net.transform.size
    is_smaller = any(given < side for given, side in zip(size, expected, strict=True))
    what, advice = "too large", RESIZE
    if is_smaller:
        what, advice = "too small or too thin", f"give an image of {format_shape(expected)}, or a larger one"
    return ValueError(
        f"{net.name} takes {format_shape(expected)} images and cannot run on {format_shape(size)}, which may be {what}; "
        f"{advice}"
    )


def _runs_on(net: Network, size: tuple[int, ...]) -> bool:
    """Whether the module runs on tensors of this height and width, tried with tensors that have no values.

    Also False for modules that depend on values.
    """
    module = make_shadow(net.module, net.device)
    tensors = {name: tensor.to("meta") for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    batch = torch.empty(1, net.transform.channels, *size, dtype=net.dtype, device="meta")
    try:
        with torch.no_grad():
            return first_tensor(functional_call(module, tensors, (batch,))) is not None
    except Exception:  # noqa: BLE001 (a module may fail in any way)
        return False
