"""Shadow copies of modules: the structure is copied, parameters and buffers are shared."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
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
    """Replace the max-pooling layers in a module by average pooling, except dilated ones."""
    for part in list(module.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.MaxPool2d) and child.dilation in (1, (1, 1)) and not child.return_indices:
                window = child.kernel_size, child.stride, child.padding, child.ceil_mode
                setattr(part, name, nn.AvgPool2d(*window, count_include_pad=False))


def device_of(module: nn.Module) -> torch.device:
    """Device of the first parameter or buffer of a module; the CPU if it has none."""
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return tensor.device if tensor is not None else torch.device("cpu")


def best_device() -> torch.device:
    """CUDA, MPS or the CPU, the first that is available."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
