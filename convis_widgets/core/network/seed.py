"""fixed_seed: the same random numbers in every forward pass of a module that draws them in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def fixed_seed(device: torch.device) -> Iterator[None]:
    """Seed PyTorch's global generators within the block, and restore their states at its end.

    Modules such as ``F.dropout(x)`` accept no generator of their own. Another thread that draws from the global generators
    during the block gets these numbers, too.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
