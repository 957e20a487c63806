"""graph: the forward pass of a network, recorded once from a real run, operation by operation.

The layer order, receptive fields and what a layer costs are all read from here. It is recorded below PyTorch's
modules, at the level of its operators, so functional pools, reused modules and reshapes are all seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .trace import first_tensor, watch


@dataclass(frozen=True)
class Value:
    """A tensor that one forward pass made: its number and its shape."""

    index: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Op:
    """One operator call: `args` and `kwargs` as called, with a `Value` in place of each tensor computed on the way.

    Parameters and buffers stand in `args` as tensors; what is only written into, ``out=``, is left out. A number for
    Python is a None among `outputs`. `layer` is the innermost module call it happened in. An operation in place gives its
    tensor a new Value, and "written_through_alias" gives one to each that lies otherwise in the same memory.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value | None, ...]
    layer: str
    pointwise: bool


@dataclass(frozen=True)
class Call:
    """One call of a submodule and the Value it returned (None if that was no tensor)."""

    name: str
    module: nn.Module
    output: Value | None


@dataclass(frozen=True)
class Graph:
    """A recorded forward pass: operators and module calls, each in the order in which they ended."""

    ops: tuple[Op, ...]
    calls: tuple[Call, ...]
    input: Value
    output: Value


# Pointwise, but not tagged so in every torch version.
POINTWISE = {
    "hardswish", "hardswish_", "hardtanh", "hardtanh_", "relu6", "clone", "native_dropout", "alias", "_to_copy", "detach",
    "_prelu_kernel", "log_sigmoid_forward", "rrelu_with_noise", "lift_fresh",
}  # fmt: skip


def is_pointwise(func: Any) -> bool:
    """Whether an operator works element by element."""
    return torch.Tag.pointwise in func.tags or func._schema.name.removeprefix("aten::") in POINTWISE


@dataclass
class _Recorder(TorchDispatchMode):
    ops: list[Op] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    known: dict[int, Value] = field(default_factory=dict)
    # tensors by the memory they lie in, kept alive so that no id is used twice
    storages: dict[int, dict[int, torch.Tensor]] = field(default_factory=dict)
    reached: set[int] = field(default_factory=set)  # the memory that holds something of the picture
    inside: list[str] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def learn(self, tensor: torch.Tensor) -> Value:
        value = Value(self.count, tuple(tensor.shape))
        self.count += 1
        self.known[id(tensor)] = value
        self.storages.setdefault(_storage(tensor), {})[id(tensor)] = tensor
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reached = any(_storage(t) in self.reached for t in _tensors((args, kwargs)))
        read = {arg.name: kwargs[arg.name] for arg in func._schema.arguments if arg.name in kwargs and not arg.is_out}
        seen_args, seen_kwargs = tree_map_only(torch.Tensor, self.value_of, (args, read))
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        outputs = result if isinstance(result, (tuple, list)) else () if result is None else (result,)
        values = tuple(self.learn(out) if isinstance(out, torch.Tensor) else None for out in outputs)
        pointwise = is_pointwise(func)
        layer = self.inside[-1] if self.inside else ""
        self.ops.append(Op(name, seen_args, seen_kwargs, values, layer, pointwise))
        written = _tensors(_written(func._schema, args, kwargs))
        silently = [t for t in written if not any(t is out for out in outputs)]
        if silently:
            values = tuple(self.learn(t) for t in silently)
            self.ops.append(Op(name + " into", (seen_args, seen_kwargs), {}, values, layer, False))
        if reached:
            self.reached.update(_storage(t) for t in (*_tensors(outputs), *written))
            for tensor in written:
                self._touch_aliases(tensor)
        return result

    def value_of(self, tensor: torch.Tensor) -> Any:
        """The Value of a tensor; itself if it is a constant."""
        if id(tensor) not in self.known and _storage(tensor) in self.reached:
            self._relate(tensor, list(self.storages[_storage(tensor)].values()))
        return self.known.get(id(tensor), tensor)

    def _touch_aliases(self, written: torch.Tensor) -> None:
        """Tensors that share memory with one written in place now hold something else, too."""
        for other in list(self.storages[_storage(written)].values()):
            if other is not written:
                self._relate(other, [written])

    def _relate(self, tensor: torch.Tensor, others: list[torch.Tensor]) -> None:
        """Let a tensor hold what others in its memory hold: one that lies in it alike, or else some mixture."""
        alike = [other for other in others if _place(other) == _place(tensor)]
        if alike:
            self.known[id(tensor)] = self.known[id(alike[0])]
            self.storages[_storage(tensor)][id(tensor)] = tensor
        else:
            sources = tuple(self.known[id(t)] for t in (tensor, *others) if id(t) in self.known)
            value = self.learn(tensor)
            self.ops.append(Op("written_through_alias", sources, {}, (value,), "", False))

    def entered(self, name: str, _args: Any) -> None:
        self.inside.append(name)

    def left(self, name: str, module: nn.Module, output: Any) -> None:
        self.inside.pop()
        tensor = first_tensor(output)
        self.calls.append(Call(name, module, None if tensor is None else self.known.get(id(tensor))))


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _written(schema: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an operator writes into."""
    writes = [arg.alias_info is not None and arg.alias_info.is_write for arg in schema.arguments]
    return [args[at] if at < len(args) else kwargs.get(arg.name) for at, arg in enumerate(schema.arguments) if writes[at]]


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Which numbers in its memory a tensor reads, and as what."""
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _storage(tensor: torch.Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse and the like have none
        return id(tensor)


def record(module: nn.Module, batch: torch.Tensor) -> Graph:
    """Run `module` (instrumented, see `trace`) on `batch` and write down what happens."""
    recorder = _Recorder()
    start = recorder.learn(batch)
    recorder.reached.add(_storage(batch))
    with torch.inference_mode(False), torch.no_grad(), watch(module, recorder.left, recorder.entered), recorder:
        output = first_tensor(module(batch))
    if output is None or id(output) not in recorder.known:
        raise TypeError(f"{type(module).__name__} returned no tensor of scores")
    return Graph(tuple(recorder.ops), tuple(recorder.calls), start, recorder.known[id(output)])


def multiply_adds(graph: Graph) -> int:
    """Multiply-adds of one forward pass in convolutions and matrix products: what nearly all its time goes into."""
    return sum(_cost(op) for op in graph.ops)


def _cost(op: Op) -> int:
    if not op.outputs or op.outputs[0] is None:
        return 0
    out = math.prod(op.outputs[0].shape)
    if op.name in ("convolution", "_convolution"):
        transposed = op.args[6]
        weight = tuple(op.args[1].shape)
        return (math.prod(op.args[0].shape) if transposed else out) * math.prod(weight[1:])
    if op.name in ("addmm", "mm", "bmm", "baddbmm"):
        return out * op.args[-1].shape[-2]
    return 0
