"""What a GPU would do, without one: operators are counted, and a fake GPU refuses to be read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

VIEWS = {
    "view", "_unsafe_view", "permute", "slice", "select", "expand", "t", "transpose", "as_strided", "as_strided_", "detach",
    "alias", "squeeze", "unsqueeze", "split", "split_with_sizes", "unbind", "lift_fresh", "empty", "new_empty", "empty_like",
    "_reshape_alias", "device", "view_as_real", "view_as_complex", "movedim", "unfold", "empty_strided", "new_empty_strided",
}  # fmt: skip
# they wait for a GPU: the code reads a value, or the shape of the result depends on values
READS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "allclose"}


class Operators(TorchDispatchMode):
    """Counts operators within the block.

    Attributes
    ----------
    kernels : Counter
        Operators that compute, by name.
    reads : Counter
        Those that a GPU would have to be waited for.
    transfers : list of (str, str)
        Devices of copies from one to another.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.reads: Counter[str] = Counter()
        self.transfers: list[tuple[str, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if name in READS:
            self.reads[name] += 1
        elif name not in VIEWS:
            self.kernels[name] += 1
        before, after = (
            {leaf.device.type for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)}
            for tree in ((args, kwargs), result)
        )
        if before and after and before != after:
            self.transfers.append((*before, *after))
        return result


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tensors have shapes and devices but no values; operators refuse tensors of two devices, and nothing can be read.

    Backward passes are not possible.
    """
    with monkeypatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        yield


class CpuGraph(TorchDispatchMode):
    """Records operators and calls them again on the same memory, as a CUDA graph does with kernels.

    Numbers and decisions of the code are frozen, and random numbers and values that are read cannot be recorded.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.partition("::")[2]
        if name in READS or torch.Tag.nondeterministic_seeded in func.tags:
            raise RuntimeError(f"{name} cannot be recorded")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Compute again, into the tensors of the first time."""
        for func, args, kwargs, result in self.calls:
            fresh = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(fresh), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    @classmethod
    def record(cls, function: Any) -> tuple[CpuGraph, Any]:
        """Record a function; return the graph and the result, which `replay` writes to."""
        graph = cls()
        with graph:
            outputs = function()
        return graph, outputs
