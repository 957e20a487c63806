"""trace: collect the outputs of layers during a forward pass. The only file that registers hooks on modules.

The module of a Network is hooked once, when the Network is created. The hooks read a context variable and do nothing
outside of a ``with trace(...)`` block of the same thread. So tracing changes no module, several threads can trace one
network at the same time, and no hooks are left behind.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..runs.run import raise_if_stopped

if TYPE_CHECKING:
    from .network import Network

_watchers: ContextVar[tuple[_Watcher, ...]] = ContextVar("convis_watchers", default=())


class _LastLayerReached(BaseException):
    """It is not an Exception, so ``except Exception`` in a model does not catch it."""


class _Watcher:
    def __init__(
        self,
        root: nn.Module,
        on_exit: Callable[..., Any],
        on_enter: Callable[[str, tuple[Any, ...]], None] | None,
        on_start: Callable[[], None] | None,
    ) -> None:
        self.root, self.on_exit, self.on_enter, self.on_start = _roots[root], on_exit, on_enter, on_start
        self.calls: Counter[str] = Counter()

    def call_name(self, name: str) -> str:
        return name if self.calls[name] == 1 else f"{name}@{self.calls[name]}"


# The hooks refer to a module by a key. A reference to the module itself would keep it alive.
_roots: weakref.WeakKeyDictionary[nn.Module, object] = weakref.WeakKeyDictionary()


def add_hooks(root: nn.Module) -> None:
    """Register the hooks of `watch_modules`, `trace` and `raise_if_stopped` on all submodules of `root`, once."""
    _roots[root] = key = object()

    def watchers() -> list[_Watcher]:
        return [watcher for watcher in _watchers.get() if watcher.root is key]

    def before_root(_root: nn.Module, _args: Any) -> None:
        for watcher in watchers():
            watcher.calls.clear()
            if watcher.on_start is not None:
                watcher.on_start()

    def add_module_hooks(name: str, module: nn.Module) -> None:
        def before(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise_if_stopped()
            for watcher in watchers():
                watcher.calls[name] += 1
                if watcher.on_enter is not None:
                    watcher.on_enter(watcher.call_name(name), (*args, *kwargs.values()))

        def after(module: nn.Module, _args: Any, output: Any) -> Any:
            for watcher in watchers():
                replacement = watcher.on_exit(watcher.call_name(name), module, output)
                output = output if replacement is None else replacement
            return output

        # the methods of nn.Module, since those of TorchScript modules refuse
        nn.Module.register_forward_pre_hook(module, before, with_kwargs=True)
        nn.Module.register_forward_hook(module, after)

    root.register_forward_pre_hook(before_root)
    for name, module in root.named_modules():
        if name and not _is_in_torchscript(root, name):
            add_module_hooks(name, module)


def _is_in_torchscript(root: nn.Module, name: str) -> bool:
    """Whether a submodule is a part of one in TorchScript, which calls its parts without hooks."""
    parent = name.rpartition(".")[0]
    return bool(parent) and isinstance(root.get_submodule(parent), torch.jit.ScriptModule)


@contextlib.contextmanager
def watch_modules(
    root: nn.Module,
    on_exit: Callable[[str, nn.Module, Any], Any],
    on_enter: Callable[[str, tuple[Any, ...]], None] | None = None,
    on_start: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Call functions before and after each submodule of `root` runs, within the block and thread.

    The second call of a submodule in a forward pass has the name ``name@2``.

    Parameters
    ----------
    root : torch.nn.Module
        A module with hooks, see `add_hooks`.
    on_exit : callable(name, submodule, output)
        Called after a submodule. Its result, unless None, replaces the output.
    on_enter : callable(name, args), optional
        Called before a submodule, with its positional and then its keyword arguments.
    on_start : callable(), optional
        Called before `root`.
    """
    token = _watchers.set((*_watchers.get(), _Watcher(root, on_exit, on_enter, on_start)))
    try:
        yield
    finally:
        _watchers.reset(token)


@contextlib.contextmanager
def trace(net: Network, layers: Sequence[str], *, stop: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the outputs of layers, within the block.

    In-place operations do not change the collected outputs: the rest of the network gets copies. The outputs are part of
    the autograd graph if gradients are enabled, so the scores can be differentiated with respect to them. They are those of
    the last forward pass in the block.

    Parameters
    ----------
    net : Network
    layers : sequence of str
        Dotted layer names; ``name@2`` for the second call of a module.
    stop : bool
        Whether to end the forward pass, and the block, after the last of `layers`; this saves time for early layers.

    Yields
    ------
    dict of str to tensor
        Raw output by layer name, (N, C, h, w) for convolutions. Filled while the block runs.

    Examples
    --------
    >>> from convis_widgets.core import Network
    >>> net = Network.demo()
    >>> with trace(net, ["conv1"], stop=True) as acts:
    ...     _ = net(torch.zeros(1, 3, 64, 64))
    >>> acts["conv1"].ndim
    4
    """
    names = {net.layers[name].name for name in layers}
    acts: dict[str, torch.Tensor] = {}
    key = object()

    def on_exit(name: str, _module: nn.Module, output: Any) -> Any:
        tensor = first_tensor(output) if name in names else None
        if tensor is None:
            return None
        acts[name] = tensor
        if stop and len(acts) == len(names):
            # created here: the traceback of a stored exception would keep all tensors of the forward pass alive
            raise _LastLayerReached(key)
        return _replace(output, tensor, tensor.clone())

    try:
        with watch_modules(net.module, on_exit, on_start=acts.clear):
            yield acts
    except _LastLayerReached as reached:
        if reached.args[0] is not key:  # raised for an enclosing block
            raise


def get_activations(net: Network, batch: torch.Tensor, layers: Sequence[str]) -> list[torch.Tensor]:
    """Activations of layers, without gradients.

    Parameters
    ----------
    net : Network
    batch : (N, C, H, W) tensor in [0, 1]
    layers : sequence of str

    Returns
    -------
    list of (N, C, h, w) tensors
        One for each layer, see `Network.as_maps`.
    """
    if net.one_image_at_a_time and len(batch) > 1:
        parts = [get_activations(net, image, layers) for image in batch.split(1)]
        return [torch.cat(maps) for maps in zip(*parts, strict=True)]
    with torch.no_grad(), trace(net, layers, stop=True) as acts:
        net(batch)
    return [net.as_maps(name, acts[net.layers[name].name]) for name in layers]


def first_tensor(output: Any) -> torch.Tensor | None:
    """The tensor in the output of a module: the output itself, its ``logits``, or the first tensor in it."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(getattr(output, "logits", None), torch.Tensor):
        return output.logits
    if isinstance(output, Mapping):
        parts: Iterable[Any] = output.values()
    elif isinstance(output, (tuple, list)):
        parts = output
    else:
        parts = _fields(output).values()
    return next((tensor for part in parts if (tensor := first_tensor(part)) is not None), None)


def _fields(output: Any) -> dict[str, Any]:
    """The fields of a dataclass; empty for other objects."""
    return {f.name: getattr(output, f.name, None) for f in dataclasses.fields(output)} if is_dataclass(output) else {}


def _replace(output: Any, old: torch.Tensor, new: torch.Tensor) -> Any:
    """The output of a module with another tensor in place of one; other parts of it are the same objects.

    Parameters
    ----------
    output : object
    old, new : tensor
    """
    if output is None or isinstance(output, torch.Tensor):
        return new if output is old else output
    if isinstance(output, (tuple, list)):
        parts = [_replace(part, old, new) for part in output]
        if all(part is before for part, before in zip(parts, output, strict=True)):
            return output
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)
    result = output
    items = dict(output) if isinstance(output, MutableMapping) else {}
    for key, part in items.items():
        if (replaced := _replace(part, old, new)) is not part:
            result = copy.copy(output) if result is output else result
            result[key] = replaced
    for name, part in {"logits": getattr(output, "logits", None), **_fields(output)}.items():
        if name not in items and (replaced := _replace(part, old, new)) is not part:
            result = copy.copy(output) if result is output else result
            object.__setattr__(result, name, replaced)
    return result
