"""Shadow copies of modules: the structure is copied, parameters and buffers are shared."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves


def make_shadow(module: nn.Module, device: torch.device) -> nn.Module:
    """Copy the structure of a module, in evaluation mode and without hooks, and share its tensors.

    Parameters
    ----------
    module : torch.nn.Module
    device : torch.device
        Tensors on another device, and half-precision weights, are copied.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for name, value in vars(part).items():
            if name.startswith("_") and isinstance(value, dict):  # PyTorch's: parameters, buffers, submodules, hooks
                continue
            for tensor in tree_leaves(value):  # attributes set by weight_norm, pruning or the author
                if isinstance(tensor, torch.Tensor):
                    memo[id(tensor)] = tensor.data
    for parameter in module.parameters():
        if isinstance(parameter, nn.UninitializedParameter) or parameter.is_meta:
            raise ValueError(f"{type(module).__name__} has weights without values; run the module or load its weights first")
        memo[id(parameter)] = nn.Parameter(parameter.data, requires_grad=False)
    for buffer in module.buffers():
        memo[id(buffer)] = buffer
    shadow = copy_module(module, memo).eval()
    for part in shadow.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks, part._backward_pre_hooks):
            for key, hook in list(hooks.items()):
                if not type(hook).__module__.startswith(
                    "torch.nn.utils"
                ):  # those of weight_norm and pruning compute weights
                    del hooks[key]
    if any(p.dtype in (torch.float16, torch.bfloat16) for p in shadow.parameters()):
        # gradients of scores underflow in half precision
        shadow = copy_module(shadow).float()
    if any(t.device != device for t in (*shadow.parameters(), *shadow.buffers())):
        shadow = copy_module(shadow).to(device)
    return shadow


def copy_module(module: nn.Module, memo: Mapping[int, Any] = MappingProxyType({})) -> nn.Module:
    """Deep copy of a module; objects that cannot be copied are shared.

    Parameters
    ----------
    module : torch.nn.Module
    memo : mapping of int to object
        Replacements of objects, by id, instead of copies.
    """
    try:
        return copy.deepcopy(module, dict(memo))
    except TypeError:
        return copy.deepcopy(module, {**memo, **_uncopyable(module)})


def _uncopyable(module: nn.Module) -> dict[int, Any]:
    """Attributes that cannot be copied, such as locks, files and generators, by id."""
    shared = {}
    for part in module.modules():
        for name, value in vars(part).items():
            if not name.startswith("_"):
                try:
                    copy.deepcopy(value)
                except (TypeError, RuntimeError):
                    shared[id(value)] = value
    return shared


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
