"""fixed_seed: the same random numbers in every forward pass of a module that draws them in evaluation mode."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def preserved_random_state() -> Iterator[None]:
    """Restore the states of the global generators of PyTorch, NumPy and Python at the end of the block."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


@contextlib.contextmanager
def fixed_seed(is_random: bool = True) -> Iterator[None]:
    """Seed the global generators of PyTorch, NumPy and Python within the block, and restore their states at its end.

    Functions such as ``F.dropout(x)`` accept no generator of their own. Another thread that draws from the global generators
    during the block gets these numbers, too.

    Nothing is done if `is_random` is false.
    """
    if not is_random:
        yield
        return
    with preserved_random_state():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        yield
