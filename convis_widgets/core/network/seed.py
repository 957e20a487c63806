"""fixed_seed: the same random numbers in every forward pass of a module that draws them in evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def fixed_seed(device: torch.device, is_random: bool) -> Iterator[None]:
    """Seed PyTorch's global generators within the block, and restore their states at its end.

    Functions such as ``F.dropout(x)`` accept no generator of their own. Another thread that draws from the global generators
    during the block gets these numbers, too.

    Parameters
    ----------
    device : torch.device
        Whose generator is seeded, beside that of the CPU.
    is_random : bool
        Nothing is done if false.
    """
    if not is_random:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        yield
