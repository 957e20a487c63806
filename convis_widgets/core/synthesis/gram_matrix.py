"""Gram and covariance matrices of the channels of a layer's activations."""

from __future__ import annotations

from typing import Any

import torch


def gram_matrix(maps: torch.Tensor, normalize: str = "hw") -> torch.Tensor:
    """Gram matrices of activations: products of channels, summed over positions.

    Parameters
    ----------
    maps : (N, C, h, w) tensor
    normalize : str
        Divisor: "hw", the number of positions; "chw", the number of values; "sum", 1.

    Returns
    -------
    (N, C, C) tensor
    """
    rows = maps.flatten(2)
    divisor = {"hw": rows.shape[2], "chw": rows.shape[1] * rows.shape[2], "sum": 1}[normalize]
    return _RowProducts.apply(rows) / divisor


def covariance_matrix(maps: torch.Tensor) -> torch.Tensor:
    """Covariance matrices (N, C, C) of the channels of activations (N, C, h, w) over positions."""
    rows = maps.flatten(2)
    rows = rows - rows.mean(2, keepdim=True)
    return _RowProducts.apply(rows) / rows.shape[2]


class _RowProducts(torch.autograd.Function):
    """Products of all pairs of rows, (N, C, C). By symmetry, the backward pass needs one product instead of two."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        return _matmul(rows, rows.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        (rows,) = ctx.saved_tensors
        return _matmul(gradient + gradient.transpose(1, 2), rows)


def _matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Batched product; for a batch of one, a plain product is nearly twice as fast."""
    return (a[0] @ b[0])[None] if len(a) == 1 else a @ b
