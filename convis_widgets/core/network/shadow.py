"""Shadows of modules: copies in evaluation mode that share the tensors of a module and follow them."""

from __future__ import annotations

import contextlib
import functools
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .graph import address, written_args
from .modes import plain_mode
from .module_copy import copy_module, reachable, unwrap


@plain_mode()
def make_shadow(module: nn.Module, device: torch.device) -> nn.Module:
    """Copy the structure of a module, in evaluation mode and without hooks, and share its tensors.

    Parameters
    ----------
    module : torch.nn.Module
    device : torch.device
        Tensors on another device, half-precision weights, and tensors that were created in inference mode are copied.

    Raises
    ------
    ValueError, TypeError
        The module has weights without values, or a `forward` that cannot be copied, see `copy_module`.
    """
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise ValueError(f"{type(module).__name__} has weights without values; run the module or load its weights first")
    original = _followed[module].module() if module in _followed else module
    shadow = copy_module(module, _share)
    with private_writes(shadow):
        shadow.eval()
    for part in shadow.modules():
        if isinstance(part, nn.RNNBase):
            # cuDNN has no backward pass in evaluation mode; without dropout both modes compute the same
            part.training, part.dropout = True, 0.0
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in shadow.parameters()):
        # gradients of scores underflow in half precision
        shadow = copy_module(shadow).float()
    if any(t.device != device for t in (*shadow.parameters(), *shadow.buffers())):
        shadow = copy_module(shadow).to(device)
    if original is not None:
        _followed[shadow] = _Followed(original, shadow)
    return shadow


def _share(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without gradients in the same memory; a copy of one that was created in inference mode."""
    shared = tensor.detach().clone() if tensor.is_inference() else tensor.detach()
    return nn.Parameter(shared, requires_grad=False) if isinstance(tensor, nn.Parameter) else shared


@contextlib.contextmanager
def private_writes(shadow: nn.Module) -> Iterator[None]:
    """Undo what is written to the tensors of a shadow's module within the block; the shadow has its own copies afterwards.

    Modules that count their passes in a buffer, for example, do so in the shadow only, if the first pass is in such a block.
    """
    guard = _WriteGuard()
    try:
        with guard:
            yield
    finally:
        if guard.saved:
            with torch.no_grad():
                for tensor in [part for part in reachable(shadow) if isinstance(part, torch.Tensor)]:
                    if address(tensor) in guard.saved:
                        tensor.data = tensor.detach().clone()
                for storage, before in guard.saved.values():
                    storage.copy_(before)


class _WriteGuard(TorchDispatchMode):
    """Saves memory that existed before, when an operator is about to write to it."""

    def __init__(self) -> None:
        super().__init__()
        self.saved: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}
        self._created: set[int] = set()  # what existed before is alive, so its addresses are not used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for tensor in tree_leaves(written_args(func._schema, args, kwargs)):
                place = address(tensor) if isinstance(tensor, torch.Tensor) else 0
                if place and place not in self.saved and place not in self._created:
                    storage = tensor.untyped_storage()
                    self.saved[place] = storage, storage.clone()
        result = func(*args, **kwargs)
        if not func._schema.is_mutable and not func.is_view:
            outputs = result if isinstance(result, (tuple, list)) else (result,)
            self._created.update(address(t) for t in outputs if isinstance(t, torch.Tensor))
        return result


def update_shadow(shadow: nn.Module) -> None:
    """Take over the tensors of a shadow's module if they were exchanged; those that are changed in place are shared anyway.

    Raises
    ------
    ValueError
        The module has other layers, or tensors of other shapes, than when the shadow was made.
    """
    if shadow in _followed:
        _followed[shadow].update()


class _Followed:
    """The module of a shadow, as long as it exists, and what it consisted of when the shadow was last updated.

    It does not keep the module alive: of modules it holds the dicts of their tensors and submodules, until the module ends.
    """

    def __init__(self, module: nn.Module, shadow: nn.Module) -> None:
        self._dicts, self._tensors = _dicts(module), _tensors(_dicts(module))
        self._shadow_tensors = _tensors(_dicts(shadow))
        dicts, tensors = self._dicts, self._tensors

        def release(_reference: weakref.ref[nn.Module]) -> None:  # does not refer to self, which refers to it
            dicts.clear()
            tensors.clear()

        self.module = weakref.ref(module, release)
        # a new submodule can have the id of one that it replaces
        gone = self._gone = list[Any]()
        self._parts = [weakref.ref(part, gone.append) for part in module.modules()]
        self._names = [list(part) for part in self._dicts]
        self._remember()

    def _remember(self) -> None:
        pairs = zip(self._tensors, self._shadow_tensors, strict=True)
        # without shared memory, changes in place are found by the version
        self._copied = [a for a, b in pairs if a.data_ptr() != b.data_ptr() and not a.is_inference()]
        self._state = self._current()

    def _current(self) -> tuple[list[int], list[int], list[int], int]:
        ids = [*map(id, itertools.chain.from_iterable(map(dict.values, self._dicts)))]
        pointers, versions = [t.data_ptr() for t in self._tensors], [t._version for t in self._copied]
        return ids, pointers, versions, len(self._gone)

    def update(self) -> None:
        """See `update_shadow`."""
        module = self.module()
        if module is None or self._current() == self._state:
            return
        parts, dicts = list(module.modules()), _dicts(module)
        same_parts = [id(part) for part in parts] == [id(ref()) for ref in self._parts]
        tensors = _tensors(dicts)
        if (
            not same_parts
            or [list(part) for part in dicts] != self._names
            or [tensor.shape for tensor in tensors] != [tensor.shape for tensor in self._shadow_tensors]
        ):
            raise ValueError(
                f"the {type(module).__name__} has other layers or weights than when its Network was made; make a new Network"
            )
        with plain_mode(), torch.no_grad():
            for copied, tensor in zip(self._shadow_tensors, tensors, strict=True):
                copied.data = _share(tensor).to(copied.device, copied.dtype).data
        self._tensors[:] = tensors
        self._remember()


_followed: weakref.WeakKeyDictionary[nn.Module, _Followed] = weakref.WeakKeyDictionary()


def _dicts(module: nn.Module) -> list[dict[str, Any]]:
    """Where a module and its submodules keep submodules, parameters and buffers; without those in TorchScript."""
    parts = [part for part in module.modules() if unwrap(part) is part and not isinstance(part, torch.jit.ScriptModule)]
    return [getattr(part, kind) for part in parts for kind in ("_modules", "_parameters", "_buffers")]


def _tensors(dicts: list[dict[str, Any]]) -> list[torch.Tensor]:
    return [value for part in dicts for value in part.values() if isinstance(value, torch.Tensor)]


def replace_max_pooling(module: nn.Module) -> None:
    """Replace max pooling by average pooling in the forward pass of a module, whether it is a layer or a function call.

    Raises
    ------
    ValueError
        There is max pooling in a TorchScript part. In the forward pass: max pooling without an average equivalent.
    """
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule) and "max_pool" in str(part.inlined_graph):
            raise ValueError(f'the max pooling in {name}, which is TorchScript, cannot be replaced; choose pooling="max"')
    module.forward = _AveragePoolingForward(module)


class _AveragePoolingForward:
    """Forward pass of a module with average pooling. It can be copied and pickled with the module."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._own_forward = module, vars(module).get("forward")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        forward = self._own_forward or functools.partial(type(self._module).forward, self._module)
        with _AveragePooling():
            return forward(*args, **kwargs)


class _AveragePooling(TorchFunctionMode):
    """Computes averages where max pooling is called; indices of the maxima, for unpooling, stay what they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0]  # also of torch.ops.aten.max_pool2d.default
        kwargs = kwargs or {}
        if "max_pool" not in name:
            return func(*args, **kwargs)
        kwargs = {**kwargs}
        args = args or (kwargs.pop("input"),)
        if name.startswith("adaptive_max_pool"):
            maxima = func(*args, **kwargs)
            pooled = maxima[0] if isinstance(maxima, tuple) else maxima
            dimensions = int(name[len("adaptive_max_pool")])
            averages = getattr(F, f"adaptive_avg_pool{dimensions}d")(args[0], pooled.shape[-dimensions:])
            return (averages, maxima[1]) if isinstance(maxima, tuple) else averages
        if not name.startswith("max_pool"):
            raise ValueError(f'{name} has no average equivalent; choose pooling="max"')
        with_indices = "with_indices" in name or kwargs.get("return_indices")
        averages = _average_pool(int(name[len("max_pool")]), *args, **kwargs)
        return (averages, func(*args, **kwargs)[1]) if with_indices else averages


def _average_pool(
    dimensions: int,
    x: torch.Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> torch.Tensor:
    """Average pooling with the arguments of max pooling; positions outside the image are not counted."""
    if any(step != 1 for step in (dilation if isinstance(dilation, (tuple, list)) else [dilation])):
        raise ValueError('dilated max pooling has no average equivalent; choose pooling="max"')
    pool = getattr(F, f"avg_pool{dimensions}d")
    return pool(x, kernel_size, stride or kernel_size, padding, ceil_mode, count_include_pad=False)


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter or buffer of a module; the CPU if it has none."""
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def best_device() -> torch.device:
    """CUDA, MPS or the CPU, the first that is available."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def to_available(module: nn.Module, device: str) -> nn.Module:
    """Move a module to a device, or to the best one if that is not available.

    Parameters
    ----------
    module : torch.nn.Module
    device : str
    """
    try:
        return module.to(device)
    except (RuntimeError, AssertionError):
        return module.to(best_device())
