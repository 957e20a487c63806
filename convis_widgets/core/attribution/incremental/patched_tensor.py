"""PatchedTensor: a batch of tensors that equal a reference except for one box each. See `incremental_forward`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .span import Span, Tables


class PatchedTensor(torch.Tensor):
    """A batch (N, ..., H, W) of images that equal a reference outside of a box.

    Attributes
    ----------
    reference : (1, ..., H, W) tensor
    box : (N, ..., h, w) tensor
    rows, cols : Span
        Position of the boxes.
    completed : (N, ..., H, W) tensor or None
        The whole batch, once an operator needed it.
    shared : bool
        Whether other tensors are views of it, so that writing in place is not allowed.
    """

    reference: torch.Tensor
    box: torch.Tensor
    rows: Span
    cols: Span

    @staticmethod
    def __new__(cls, reference: torch.Tensor, box: torch.Tensor, rows: Span, cols: Span) -> PatchedTensor:
        shape = (len(box), *reference.shape[1:])
        tensor = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=reference.dtype, device=reference.device)
        return tensor.assign(reference, box, rows, cols)

    def assign(self, reference: torch.Tensor, box: torch.Tensor, rows: Span, cols: Span) -> PatchedTensor:
        """Replace the contents, as an operator in place does; return the tensor itself.

        Parameters
        ----------
        reference : (1, ..., H, W) tensor
        box : (N, ..., h, w) tensor
        rows, cols : Span
            Position of the boxes.
        """
        self.reference, self.box, self.rows, self.cols = reference, box, rows, cols
        self.completed: torch.Tensor | None = None
        self.shared = False
        return self

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise RuntimeError(f"{func} was called on a PatchedTensor outside of an IncrementalForward")


def map_lines(reference: torch.Tensor, outside: float | None) -> torch.Tensor:
    """The lines of a map (1, ..., H, W): its positions, each with the values of all channels.

    Parameters
    ----------
    reference : (1, ..., H, W) tensor
    outside : float or None
        Values of one more line, which is read outside of the map.

    Returns
    -------
    (H * W, channels) or (H * W + 1, channels) tensor
    """
    lines = _channels_to_rows(reference).flatten(0, 2)
    return lines.contiguous() if outside is None else torch.cat([lines, lines.new_full((1, lines.shape[1]), outside)])


def read_map(lines: torch.Tensor, tables: Tables[torch.Tensor], shape: Sequence[int]) -> torch.Tensor:
    """Windows of a map, for each image of a group.

    Parameters
    ----------
    lines : (H * W, channels) tensor
        See `map_lines`.
    tables : Tables
    shape : (...)
        Of the channels.

    Returns
    -------
    (N, ..., height, width) tensor
    """
    index = tables.map[0] + tables.map[1]
    return _to_images(lines.index_select(0, index.flatten()), index.shape, shape)


def read_windows(box: torch.Tensor, lines: torch.Tensor, tables: Tables[torch.Tensor], padded: bool) -> torch.Tensor:
    """Windows of the images of a group, from their boxes and the lines of the reference.

    Parameters
    ----------
    box : (N, ..., h, w) tensor
    lines : tensor
        See `map_lines`.
    tables : Tables
    padded : bool
        Whether the windows can reach beyond the map, where the last of the lines is read.

    Returns
    -------
    (N, ..., height, width) tensor
    """
    index = tables.map[0] + tables.map[1]
    if padded:
        index.clamp_(max=len(lines) - 1)
    assert tables.box is not None
    count = index.numel()
    pixels = lines.new_empty(count + 1, lines.shape[1])  # the last line takes those of the boxes that are in no window
    torch.index_select(lines, 0, index.flatten(), out=pixels[:count])
    target = (tables.box[0] + tables.box[1]).clamp_(max=count).flatten()
    pixels.index_copy_(0, target, _channels_to_rows(box).flatten(0, 2))
    return _to_images(pixels[:count], index.shape, box.shape[1:-2])


def _to_images(pixels: torch.Tensor, size: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """Lines as images (N, ..., height, width), channels-last."""
    images = pixels.view(*size, -1).permute(0, 3, 1, 2)
    return images if len(shape) == 1 else images.reshape(size[0], *shape, *size[1:])


def _channels_to_rows(x: torch.Tensor) -> torch.Tensor:
    """(N, ..., h, w) as (N, h, w, values); the values of a position are contiguous if `x` is channels-last."""
    return x.flatten(1, -3).permute(0, 2, 3, 1) if x.ndim > 4 else x.permute(0, 2, 3, 1)
