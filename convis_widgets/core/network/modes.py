"""plain_mode: what is computed does not depend on modes of the caller, nor on gradient checkpointing in the module."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

_plain: ContextVar[bool] = ContextVar("convis_plain_mode", default=False)
_lock = threading.Lock()
_blocks = 0  # in all threads


@contextlib.contextmanager
def plain_mode() -> Iterator[None]:
    """Compute without the caller's inference mode and autocast, and without reentrant gradient checkpointing.

    Whether gradients are recorded stays as it is. Reentrant checkpointing hides layers from the autograd graph and allows
    ``backward()`` only; without it the gradients are the same. Other threads keep their modes.
    """
    if _plain.get() and not torch.is_inference_mode_enabled() and not _autocast_devices():
        yield
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in _autocast_devices():
            stack.enter_context(torch.autocast(device, enabled=False))
        stack.enter_context(_without_reentrant_checkpoints())
        yield


def _autocast_devices() -> list[str]:
    return [device for device in ("cpu", "cuda", "mps") if torch.is_autocast_enabled(device)]


@contextlib.contextmanager
def _without_reentrant_checkpoints() -> Iterator[None]:
    global _blocks
    token = _plain.set(True)
    with _lock:
        if _blocks == 0:
            CheckpointFunction.apply = _checkpoint
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if _blocks == 0:
                del CheckpointFunction.apply
        _plain.reset(token)


def _checkpoint(function: Any, preserve_rng_state: bool, *args: Any) -> Any:
    if _plain.get():
        return function(*args)
    return super(CheckpointFunction, CheckpointFunction).apply(function, preserve_rng_state, *args)
