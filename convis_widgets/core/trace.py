"""trace: read what layers put out during a forward pass. The only file that puts hooks on modules.

A Network's module is hooked once, when the Network is made. The hooks look at a context variable and do nothing
unless the block that is open *here*, in this thread, asks for something. So tracing changes no module, two threads
may run and trace one network at once, and nothing can be left behind.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from .run import checkpoint

_watchers: ContextVar[tuple[_Watcher, ...]] = ContextVar("convis_watchers", default=())


class _LastLayerReached(BaseException):
    """Not an Exception, so that no `except Exception` in a model catches it."""


class _Watcher:
    def __init__(
        self,
        root: nn.Module,
        left: Callable[..., Any],
        entered: Callable[[str, tuple[Any, ...]], None] | None,
        begun: Callable[[], None] | None,
    ) -> None:
        self.root, self.left, self.entered, self.begun = _roots[root], left, entered, begun
        self.calls: Counter[str] = Counter()

    def name(self, name: str) -> str:
        return name if self.calls[name] == 1 else f"{name}@{self.calls[name]}"


# What stands for an instrumented module in its hooks, which must not hold the module itself: it would never be freed.
_roots: weakref.WeakKeyDictionary[nn.Module, object] = weakref.WeakKeyDictionary()


def instrument(root: nn.Module) -> None:
    """Hook every submodule of `root`, once, for `watch`, `trace` and `run.checkpoint`."""
    _roots[root] = key = object()

    def watchers() -> list[_Watcher]:
        return [watcher for watcher in _watchers.get() if watcher.root is key]

    def begin(_root: nn.Module, _args: Any) -> None:
        for watcher in watchers():
            watcher.calls.clear()
            if watcher.begun is not None:
                watcher.begun()

    def hook_up(name: str, module: nn.Module) -> None:
        def before(_module: nn.Module, args: tuple[Any, ...]) -> None:
            checkpoint()
            for watcher in watchers():
                watcher.calls[name] += 1
                if watcher.entered is not None:
                    watcher.entered(watcher.name(name), args)

        def after(module: nn.Module, _args: Any, output: Any) -> Any:
            for watcher in watchers():
                replaced = watcher.left(watcher.name(name), module, output)
                output = output if replaced is None else replaced
            return output

        module.register_forward_pre_hook(before)
        module.register_forward_hook(after)

    root.register_forward_pre_hook(begin)
    for name, module in root.named_modules():
        if name:
            hook_up(name, module)


@contextlib.contextmanager
def watch(
    root: nn.Module,
    left: Callable[[str, nn.Module, Any], Any],
    entered: Callable[[str, tuple[Any, ...]], None] | None = None,
    begun: Callable[[], None] | None = None,
) -> Iterator[None]:
    """Within the block, call ``left(name, submodule, output)`` whenever a submodule of `root` has run.

    A submodule that runs a second time in a forward pass is named ``name@2``. What `left` returns, unless None,
    replaces the output. `entered(name, args)` is called before a submodule runs, `begun()` before `root` does.
    """
    before = _watchers.set((*_watchers.get(), _Watcher(root, left, entered, begun)))
    try:
        yield
    finally:
        _watchers.reset(before)


@contextlib.contextmanager
def trace(net: Any, layers: Sequence[str], *, stop: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Within the block, collect the outputs of named layers.

    Each output is the layer's own, also when an in-place operation follows: the rest of the network gets a copy.
    It is part of the autograd graph if gradients are on, so the score can be differentiated with respect to it. Of
    several forward passes in one block the last one counts.

    Parameters
    ----------
    net : Network
    layers : names of layers
        Dotted; ``name@2`` for the second time that a module runs.
    stop : bool
        End the forward pass, and the block, when the last of `layers` has run: a look at early layers is cheap.

    Yields
    ------
    dict
        Layer name -> (N, C, h, w) tensor, filled while the block runs.

    Examples
    --------
    >>> from convis_widgets.core import Network
    >>> net = Network.demo()
    >>> with trace(net, ["conv1"], stop=True) as acts:
    ...     _ = net(torch.zeros(1, 3, 64, 64))
    >>> acts["conv1"].ndim
    4
    """
    wanted = {net.layers[name].name for name in layers}
    acts: dict[str, torch.Tensor] = {}
    mine = object()

    def left(name: str, _module: nn.Module, output: Any) -> Any:
        tensor = first_tensor(output) if name in wanted else None
        if tensor is None:
            return None
        acts[name] = tensor if output is tensor else tensor.clone()
        if stop and len(acts) == len(wanted):
            # made here, since one that this function knew would hold, by its traceback, all that the pass has computed
            raise _LastLayerReached(mine)
        return tensor.clone() if output is tensor else None

    try:
        with watch(net.module, left, begun=acts.clear):
            yield acts
    except _LastLayerReached as reached:
        if reached.args[0] is not mine:  # of a block around this one
            raise


def maps_of(net: Any, batch: torch.Tensor, layers: Sequence[str]) -> list[torch.Tensor]:
    """What some layers put out for pictures (N, C, H, W), as maps (N, C, h, w), without gradients; see `Network.as_maps`."""
    with torch.no_grad(), trace(net, layers, stop=True) as acts:
        net(batch)
    return [net.as_maps(name, acts[net.layers[name].name]) for name in layers]


def first_tensor(output: Any) -> torch.Tensor | None:
    """The tensor that counts in whatever a module returned: itself, a ``logits`` field, or the first one inside."""
    if isinstance(output, torch.Tensor):
        return output
    if isinstance(getattr(output, "logits", None), torch.Tensor):
        return output.logits
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)
