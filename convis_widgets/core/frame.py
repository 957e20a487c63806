"""Frame: one partial result of a long computation, frozen.

A technique yields Frames; a script, a test or a widget reads them. Nothing here knows who looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch


class Frame:
    """One partial result: a picture, a heat map, some numbers, and how far the computation is.

    Arrays and tensors are copied when the Frame is made and turned into read-only numpy arrays when they are
    first read. So a Frame never changes after it was yielded, and a Frame that nobody reads costs a GPU no
    synchronization.

    Parameters
    ----------
    step : int
        Steps completed when this Frame was made.
    total : int, optional
        Steps there will be; None when nobody can know.
    done : bool
        True for the last Frame of a computation that ran to its end.
    image : (H, W, C) array or tensor, optional
        A picture, float32 in [0, 1].
    heat : (H, W) array or tensor, optional
        A map on the network's input grid, float32, raw and signed.
    scalars, arrays : mappings, optional
        Named numbers; named arrays of any shape.

    Examples
    --------
    >>> frame = Frame(3, 10, heat=np.ones((2, 2)), scalars={"loss": 0.5})
    >>> frame.heat.dtype, frame.heat.flags.writeable, frame.scalars["loss"]
    (dtype('float32'), False, 0.5)
    """

    __slots__ = ("_arrays", "_heat", "_image", "_scalars", "done", "step", "total")

    def __init__(
        self,
        step: int,
        total: int | None = None,
        *,
        done: bool = False,
        image: Any = None,
        heat: Any = None,
        scalars: Mapping[str, Any] = MappingProxyType({}),
        arrays: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        self.step, self.total, self.done = step, total, done
        self._image, self._heat = _copy(image), _copy(heat)
        self._scalars = {name: _copy(value) for name, value in scalars.items()}
        self._arrays = {name: _copy(value) for name, value in arrays.items()}

    @property
    def image(self) -> np.ndarray | None:
        """The picture, (H, W, C) float32 in [0, 1], or None."""
        self._image = _frozen(self._image, np.float32)
        return self._image

    @property
    def heat(self) -> np.ndarray | None:
        """The map, (H, W) float32, raw and signed, or None."""
        self._heat = _frozen(self._heat, np.float32)
        return self._heat

    @property
    def scalars(self) -> Mapping[str, float]:
        """Named numbers."""
        for name, value in self._scalars.items():
            self._scalars[name] = value.item() if isinstance(value, (torch.Tensor, np.ndarray)) else value
        return MappingProxyType(self._scalars)

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """Named arrays."""
        for name, value in self._arrays.items():
            self._arrays[name] = _frozen(value)
        return MappingProxyType(self._arrays)

    def __repr__(self) -> str:
        has = [name for name in ("image", "heat") if getattr(self, f"_{name}") is not None]
        parts = [f"{self.step}/{self.total or '?'}", *has, *self._scalars, *self._arrays]
        return f"Frame({', '.join(parts)}{', done' if self.done else ''})"


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (np.ndarray, list, tuple)):
        return np.array(value)
    return value


def _frozen(value: Any, dtype: Any = None) -> np.ndarray | None:
    if value is None:
        return None
    if isinstance(value, torch.Tensor):
        value = value.cpu().numpy()
    if value.flags.writeable or (dtype is not None and value.dtype != dtype):
        value = np.ascontiguousarray(value, dtype)
        value.flags.writeable = False
    return value
