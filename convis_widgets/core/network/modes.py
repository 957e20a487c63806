"""plain_mode and full_precision: what is computed does not depend on modes and settings of the caller."""

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
_full_precision_blocks = 0
_user_precision: list[Any] = []


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


@contextlib.contextmanager
def full_precision(needed: bool = True) -> Iterator[None]:
    """Compute in full float32, and restore the user's settings at the end of the block.

    By default, PyTorch computes convolutions on a GPU in TF32, with 10 bits of the fraction instead of 23: maps of gradients
    differ by some percent of their range. The settings are those of the process, so other threads compute in full float32
    during the block, too.

    Nothing is done if `needed` is false.
    """
    global _full_precision_blocks
    if not needed:
        yield
        return
    with _lock:
        if _full_precision_blocks == 0:
            _user_precision[:] = [getattr(setting, name) for setting, name, _ in _precision_settings()]
            for setting, name, full in _precision_settings():
                setattr(setting, name, full)
        _full_precision_blocks += 1
    try:
        yield
    finally:
        with _lock:
            _full_precision_blocks -= 1
            if _full_precision_blocks == 0:
                for (setting, name, _), value in zip(_precision_settings(), _user_precision, strict=True):
                    setattr(setting, name, value)


def _precision_settings() -> list[tuple[Any, str, Any]]:
    """Settings of float32 operators: object, attribute, and its value for full precision."""
    backends = torch.backends
    if hasattr(backends.cudnn, "conv"):
        parts = [getattr(backend, kind) for backend in (backends.cudnn, backends.mkldnn) for kind in ("conv", "rnn")]
        return [(part, "fp32_precision", "ieee") for part in (*parts, backends.cuda.matmul, backends.mkldnn.matmul)]  # type: ignore[attr-defined]
    return [(part, "allow_tf32", False) for part in (backends.cudnn, backends.cuda.matmul)]  # before torch 2.9
