"""Frame: an immutable partial result of a long computation.

Techniques yield Frames; scripts, tests and widgets read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeGuard

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike


class Frame:
    """An immutable partial result of a computation, and its progress.

    Arrays and tensors are copied when the Frame is created and converted to read-only numpy arrays when they are first
    read. So a Frame never changes, and a Frame that is not read does not synchronize a GPU.

    Parameters
    ----------
    step : int
        Number of completed steps.
    total : int, optional
        Total number of steps; None if unknown.
    done : bool
        Whether this is the last Frame of a completed computation.
    image : (C, H, W) or (1, C, H, W) tensor, or (H, W, C) array, optional
        An image in [0, 1]. A tensor of 1 or 3 channels may also be (H, W, C).
    heat : (H, W) array or tensor, optional
        A map on the input grid of the network, unscaled and signed.
    scalars : mapping of str to float or tensor, optional
        Named numbers.
    arrays : mapping of str to array or tensor, optional
        Named arrays of any shape and type.

    Examples
    --------
    >>> frame = Frame(3, 10, image=torch.zeros(3, 4, 5), heat=np.ones((4, 5)), scalars={"loss": 0.5})
    >>> frame.image.shape, frame.heat.dtype, frame.heat.flags.writeable, frame.scalars["loss"]
    ((4, 5, 3), dtype('float32'), False, 0.5)
    """

    __slots__ = ("_arrays", "_heat", "_image", "_scalars", "done", "step", "total")

    def __init__(
        self,
        step: int,
        total: int | None = None,
        *,
        done: bool = False,
        image: np.ndarray | torch.Tensor | None = None,
        heat: np.ndarray | torch.Tensor | None = None,
        scalars: Mapping[str, float | np.ndarray | torch.Tensor] = MappingProxyType({}),
        arrays: Mapping[str, ArrayLike | torch.Tensor] = MappingProxyType({}),
    ) -> None:
        self.step, self.total, self.done = step, total, done
        self._image = _detach_copy(image.reshape(image.shape[-3:]).movedim(0, -1) if _is_channels_first(image) else image)
        self._heat = _detach_copy(heat)
        self._scalars = {name: _detach_copy(value) for name, value in scalars.items()}
        self._arrays = {name: _detach_copy(value) for name, value in arrays.items()}

    @property
    def image(self) -> np.ndarray:
        """The image, (H, W, C) float32 in [0, 1]; AttributeError if the Frame has none."""
        self._image = image = _freeze(self._require("image"), np.float32)
        return image

    @property
    def heat(self) -> np.ndarray:
        """The map, (H, W) float32, unscaled and signed; AttributeError if the Frame has none."""
        self._heat = heat = _freeze(self._require("heat"), np.float32)
        return heat

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
            self._arrays[name] = _freeze(value)
        return MappingProxyType(self._arrays)

    def _require(self, name: str) -> np.ndarray | torch.Tensor:
        value = getattr(self, f"_{name}")
        if value is None:
            raise AttributeError(f"this Frame has no {name}: {self!r}")
        return value

    def __repr__(self) -> str:
        contents = [name for name in ("image", "heat") if getattr(self, f"_{name}") is not None]
        parts = [f"{self.step}/{self.total or '?'}", *contents, *self._scalars, *self._arrays]
        return f"Frame({', '.join(parts)}{', done' if self.done else ''})"


def _is_channels_first(image: Any) -> TypeGuard[torch.Tensor]:
    if not isinstance(image, torch.Tensor):
        return False
    return image.ndim == 4 or image.shape[0] in (1, 3) or image.shape[-1] not in (1, 3)


def _detach_copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (np.ndarray, list, tuple)):
        return np.array(value)
    return value


def _freeze(value: np.ndarray | torch.Tensor, dtype: DTypeLike | None = None) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()  # numpy has no bfloat16
    array = value
    if array.flags.writeable or (dtype is not None and array.dtype != dtype):
        array = np.ascontiguousarray(array, dtype)
        array.flags.writeable = False
    return array
