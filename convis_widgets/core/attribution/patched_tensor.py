"""PatchedTensor: a batch of tensors that equal a reference except for one box each. See `incremental_forward`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class Span:
    """Intervals along one axis of a map, one for each image of a batch.

    The intervals that are stored have one common `size` and begin at `start`, such that they lie inside the map.

    Parameters
    ----------
    low, high : (N,) tensors
        First and last index that may differ from the reference.
    length : int
        Length of the axis.
    """

    def __init__(self, low: torch.Tensor, high: torch.Tensor, length: int) -> None:
        self.low, self.high, self.length = low, high, length
        self.size = int((high - low).max()) + 1
        self.start = low.clamp(max=length - self.size)

    def window(self, kernel: int, stride: int, padding: int, dilation: int, length: int) -> Span:
        """The outputs that may differ after a convolution or pooling.

        Parameters
        ----------
        kernel, stride, padding, dilation : int
            Of the operator along this axis, as in `torch.nn.Conv2d`.
        length : int
            Number of outputs along this axis.
        """
        reach = (kernel - 1) * dilation
        low = -((reach - padding - self.low) // stride)  # rounded up
        high = (self.high + padding) // stride
        low, high = low.clamp(0, length - 1), high.clamp(0, length - 1)
        return Span(torch.minimum(low, high), high, length)

    def union(self, other: Span) -> Span:
        """The smallest intervals that contain both."""
        return Span(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high), self.length)


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

    def complete(self) -> torch.Tensor:
        """The batch as an ordinary tensor (N, ..., H, W)."""
        if self.completed is None:
            count, (height, width) = len(self.box), self.reference.shape[-2:]
            pixels = channels_to_rows(self.reference).expand(count, height, width, -1).contiguous()
            index = flat_index(self.rows.start, self.rows.size, self.cols.start, self.cols.size, width)
            index = index + torch.arange(count, device=index.device)[:, None, None] * (height * width)
            pixels.view(count * height * width, -1).index_copy_(
                0, index.flatten().to(pixels.device), channels_to_rows(self.box).flatten(0, 2)
            )
            self.completed = rows_to_channels(pixels, self.shape)
        return self.completed

    def read(self, top: torch.Tensor, height: int, left: torch.Tensor, width: int, outside: float = 0.0) -> torch.Tensor:
        """A window of every image.

        Parameters
        ----------
        top, left : (N,) tensors of int
            First row and column; may lie outside the map.
        height, width : int
        outside : float
            Value outside the map.

        Returns
        -------
        (N, ..., height, width) tensor
        """
        count, rows, cols = len(self.box), self.rows, self.cols
        same_size = height == rows.size and width == cols.size
        if same_size and torch.equal(top, rows.start) and torch.equal(left, cols.start):
            return self.box
        h, w = self.reference.shape[-2:]
        device = self.box.device
        y, x = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
        inside = ((y >= 0) & (y < h))[:, :, None] & ((x >= 0) & (x < w))[:, None, :]
        index = y.clamp(0, h - 1)[:, :, None] * w + x.clamp(0, w - 1)[:, None, :]
        window = channels_to_rows(self.reference).flatten(0, 2).index_select(0, index.flatten().to(device))
        if not bool(inside.all()):
            window.index_fill_(0, (~inside).flatten().nonzero()[:, 0].to(device), outside)
        # insert the box into the window
        down, right = rows.start - top, cols.start - left
        if (
            bool((down == down[0]).all() & (right == right[0]).all())
            and 0 <= down[0] <= height - rows.size
            and 0 <= right[0] <= width - cols.size
        ):
            i, j = int(down[0]), int(right[0])
            window.view(count, height, width, -1)[:, i : i + rows.size, j : j + cols.size] = channels_to_rows(self.box)
        else:
            y, x = down[:, None] + torch.arange(rows.size), right[:, None] + torch.arange(cols.size)
            kept = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
            index = (torch.arange(count)[:, None, None] * height + y[:, :, None]) * width + x[:, None, :]
            pixels = channels_to_rows(self.box).flatten(0, 2)
            window.index_copy_(0, index[kept].to(device), pixels if bool(kept.all()) else pixels[kept.flatten().to(device)])
        return rows_to_channels(window.view(count, height, width, -1), (count, *self.shape[1:-2], height, width))


def channels_to_rows(x: torch.Tensor) -> torch.Tensor:
    """(N, ..., h, w) as (N, h, w, values); the values of a position are contiguous if `x` is channels-last."""
    return x.flatten(1, -3).permute(0, 2, 3, 1) if x.ndim > 4 else x.permute(0, 2, 3, 1)


def rows_to_channels(pixels: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Undo `channels_to_rows`.

    Parameters
    ----------
    pixels : (N, H, W, values) tensor
    shape : sequence of int
        Shape of the result, (N, ..., H, W).
    """
    x = pixels.permute(0, 3, 1, 2)
    return x if len(shape) == 4 else x.reshape(shape)


def flat_index(top: torch.Tensor, height: int, left: torch.Tensor, width: int, row_length: int) -> torch.Tensor:
    """Row-major indices of the positions of a window, for each image of a batch.

    Parameters
    ----------
    top, left : (N,) tensors of int
        First row and column of the windows.
    height, width : int
        Size of the windows.
    row_length : int
        Width of the map.

    Returns
    -------
    (N, height, width) tensor of int
    """
    y, x = top[:, None] + torch.arange(height), left[:, None] + torch.arange(width)
    return y[:, :, None] * row_length + x[:, None, :]
