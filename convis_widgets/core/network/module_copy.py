"""copy_module: copies of modules, whatever they refer to."""

from __future__ import annotations

import contextlib
import copy
import gc
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from .modes import plain_mode

CopyTensor = Callable[[torch.Tensor], torch.Tensor]


def clone_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor, without its gradient."""
    clone = tensor.detach().clone()
    return nn.Parameter(clone, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else clone


@plain_mode()  # tensors created in inference mode never have gradients
def copy_module(module: nn.Module, copy_tensor: CopyTensor = clone_tensor) -> nn.Module:
    """Copy a module and all that it refers to, without the hooks of its user.

    Other than `copy.deepcopy` it copies bound methods and closures, modules that refer to each other or are nested deeply,
    and tensors with a graph. The methods of a class for copying and pickling are not called for modules. What cannot be
    copied, such as a lock or an open file, is shared. Submodules are taken out of torch.compile and DataParallel.

    Parameters
    ----------
    module : torch.nn.Module
    copy_tensor : callable(tensor) -> tensor, optional
        Makes the copy of each tensor.

    Raises
    ------
    TypeError
        The `forward` of a submodule was replaced by a function that refers to the module and cannot be copied.
    """
    copier, parts = _Copier(copy_tensor), list(reachable(module))
    for part in parts:
        copier.add(part)
    for fill in copier.fills:
        fill()
    result = copier.memo[id(module)]
    originals = {id(part) for part in parts if _is_module(part)}
    for part in result.modules():
        if "forward" in vars(part) and any(id(other) in originals for other in reachable(vars(part)["forward"])):
            raise TypeError(
                f"the forward of a {type(part).__name__} in {type(module).__name__} was replaced by a function that cannot "
                "be copied with the module; define a subclass with this forward"
            )
    return result


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel and the like."""
    while True:
        if "_orig_mod" in vars(module).get("_modules", ()):  # torch.compile
            module = module._modules["_orig_mod"]  # type: ignore[assignment]
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


_ATOMS = (type, types.ModuleType, types.CodeType, types.NoneType, str, bytes, int, float, complex)
_IMMUTABLE = (types.NoneType, bool, int, float, complex, str, bytes)
_PLAIN = (
    dict,
    OrderedDict,
    list,
    tuple,
    set,
    types.MethodType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.CellType,
    weakref.ReferenceType,
)
_HOOKS = {name for name in vars(nn.Module()) if "_hooks" in name}


def _is_module(part: Any) -> bool:
    return issubclass(type(part), nn.Module)  # isinstance is true for a proxy, too


def reachable(root: Any, *, all_functions: bool = False) -> Iterator[Any]:
    """`root` and all objects that it refers to, except classes, numbers and strings.

    Parameters
    ----------
    root : object
    all_functions : bool
        Whether what a function refers to is included, also if there is no module or tensor among it.
    """
    stack, seen = [root], dict[int, Any]()
    while stack:
        part = stack.pop()
        if not isinstance(part, _ATOMS) and id(part) not in seen:
            seen[id(part)] = part
            yield part
            if all_functions or not isinstance(part, types.FunctionType) or _is_copied(part):
                stack.extend(_references(part))


def _is_copied(function: types.FunctionType) -> bool:
    """Whether a function must be copied with a module; others are shared, as `copy.deepcopy` does."""
    return any(_is_module(part) or isinstance(part, torch.Tensor) for part in reachable(function, all_functions=True))


def _references(part: Any) -> list[Any]:
    if isinstance(part, types.FunctionType):  # without its globals
        original = vars(part).get("_torchdynamo_orig_callable")
        return list(_variables(part)) if original is None else [original]
    if type(part) in (weakref.ReferenceType, *weakref.ProxyTypes):
        return [_referent(part)]
    if isinstance(part, (torch.Tensor, torch.jit.ScriptModule)):
        return []
    if _is_module(part):
        return [value for _, value in _state(part) if value is not None] if unwrap(part) is part else [unwrap(part)]
    return gc.get_referents(part)


def _state(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes of a module, without the hooks of its user and its compiled call."""
    state: Any = object.__getstate__(module)
    attributes = []
    for part in state if isinstance(state, tuple) else (state,):  # __dict__ and __slots__
        for name, value in (part or {}).items():
            if name in _HOOKS and value:
                attributes.append((name, type(value)((key, hook) for key, hook in value.items() if _is_kept(hook))))
            elif name != "_compiled_call_impl":
                attributes.append((name, value))
    return attributes


def _is_kept(hook: Any) -> bool:
    """Whether a hook is a part of a module: those of weight_norm and pruning compute weights, others are methods."""
    return type(hook).__module__.startswith("torch.nn.utils") or _is_module(getattr(hook, "__self__", None))


def has_ignored_hooks(module: nn.Module) -> bool:
    """Whether a module has forward hooks of its user, which copies do not have."""
    parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]
    hooks = (hook for part in parts for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()))
    return not all(map(_is_kept, hooks))


def _variables(function: types.FunctionType) -> Iterator[Any]:
    """What a function refers to: its closure, defaults and attributes, without its globals."""
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # without a value
            yield cell.cell_contents
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *vars(function).values())


def _referent(reference: Any) -> Any:
    """What a weak reference refers to; of a proxy only if it is a module."""
    if isinstance(reference, weakref.ReferenceType):
        return reference()
    try:
        return reference.named_modules.__self__
    except (ReferenceError, AttributeError):
        return None


class _Copier:
    """Puts copies into the memo of `copy.deepcopy` where it would fail or return the original."""

    def __init__(self, copy_tensor: CopyTensor) -> None:
        self.copy_tensor = copy_tensor
        self.memo: dict[int, Any] = {}
        self.fills: list[Callable[[], None]] = []  # called when all copies are in the memo, since they refer to each other

    def add(self, part: Any) -> None:
        """Add the copy of an object, if necessary."""
        if id(part) in self.memo:
            return
        if isinstance(part, torch.jit.ScriptModule):
            self.memo[id(part)] = _copy_scripted(part, self.copy_tensor)
        elif _is_module(part):
            self._add_module(part)
        elif isinstance(part, torch.Tensor):
            self.memo[id(part)] = self.copy_tensor(part)
        elif isinstance(part, types.FunctionType):
            if _is_copied(part):
                self._add_function(part)
        elif type(part) in (weakref.ReferenceType, *weakref.ProxyTypes):
            self._add_reference(part)
        elif type(part) not in _PLAIN and not hasattr(type(part), "__deepcopy__"):
            try:
                part.__reduce_ex__(4)
            except Exception:  # noqa: BLE001 (a class can fail in any way)
                self.memo[id(part)] = part

    def copy(self, value: Any) -> Any:
        """The copy of any object; the object if it cannot be copied."""
        if isinstance(value, _IMMUTABLE):
            return value
        if type(value) in (dict, OrderedDict) and not value:
            return type(value)()
        try:
            return copy.deepcopy(value, self.memo)
        except Exception:  # noqa: BLE001 (a class can fail in any way)
            return value

    def _add_module(self, module: nn.Module) -> None:
        inner = unwrap(module)
        if inner is not module:
            self.add(inner)
            self.memo[id(module)] = self.memo[id(inner)]
            return
        self.memo[id(module)] = result = object.__new__(type(module))

        def fill() -> None:
            for name, value in _state(module):
                if name in vars(module):
                    vars(result)[name] = self.copy(value)
                else:
                    object.__setattr__(result, name, self.copy(value))

        self.fills.append(fill)

    def _add_function(self, function: types.FunctionType) -> None:
        original = vars(function).get("_torchdynamo_orig_callable")
        if original is not None:  # of torch.compile
            self.add(original)
            self.fills.insert(0, lambda: self.memo.update({id(function): self.copy(original)}))
        elif not all(isinstance(value, _IMMUTABLE) for value in _variables(function)):
            cells = tuple(types.CellType() for _ in function.__closure__ or ())
            result = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
            self.memo[id(function)] = result

            def fill() -> None:
                vars(result).update({name: self.copy(value) for name, value in vars(function).items()})
                result.__defaults__, result.__kwdefaults__ = (
                    self.copy(function.__defaults__),
                    self.copy(function.__kwdefaults__),
                )
                for cell, original in zip(cells, function.__closure__ or (), strict=True):
                    with contextlib.suppress(ValueError):
                        cell.cell_contents = self.copy(original.cell_contents)

            self.fills.append(fill)

    def _add_reference(self, reference: Any) -> None:
        target = _referent(reference)
        if _is_module(target) or isinstance(target, torch.Tensor):
            self.add(target)
            kind = weakref.ref if isinstance(reference, weakref.ReferenceType) else weakref.proxy
            self.memo[id(reference)] = kind(self.memo[id(target)])


def _copy_scripted(module: torch.jit.ScriptModule, copy_tensor: CopyTensor) -> nn.Module:
    """The copy of a part in TorchScript."""
    with torch.no_grad():  # they are cloned in C++
        result = copy.deepcopy(module)
    pairs = (
        *zip(result.parameters(), module.parameters(), strict=True),
        *zip(result.buffers(), module.buffers(), strict=True),
    )
    for copied, original in pairs:
        copied.requires_grad_(False).data = copy_tensor(original).data
    if not hasattr(result, "training"):  # frozen
        vars(result)["train"] = lambda mode=True: None
    return result
