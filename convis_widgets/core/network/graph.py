"""The graph of a network: one forward pass, recorded operator by operator.

The order, receptive fields and costs of layers are computed from it. It is recorded below PyTorch's modules, at the level
of operators, so it includes functional pooling, reused modules and reshapes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .modes import plain_mode
from .trace import first_tensor, watch_modules


@dataclass(frozen=True)
class Value:
    """A tensor computed in the forward pass.

    Attributes
    ----------
    index : int
    shape : tuple of int
    constant : tensor or None
        Its elements where an operator reads indices or a mask that were not computed from the image by operators.
    """

    index: int
    shape: tuple[int, ...]
    constant: torch.Tensor | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Op:
    """An operator call.

    An in-place operator gives its tensor a new Value, and an Op "written_through_alias" gives one to each other view of the
    same memory.

    Attributes
    ----------
    name : str
        Name of the aten operator.
    args, kwargs
        Arguments, with a Value instead of each computed tensor; parameters and buffers are tensors. ``out=`` is omitted.
    outputs : tuple of Value or None
        None stands for a Python number.
    layer : str
        Name of the innermost module call around it.
    pointwise : bool
        Whether it works element by element.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value | None, ...]
    layer: str
    pointwise: bool


@dataclass(frozen=True)
class Call:
    """A call of a submodule and its output (None if it is not a tensor)."""

    name: str
    module: nn.Module
    output: Value | None


@dataclass(frozen=True)
class Graph:
    """A recorded forward pass: operators and module calls, in the order in which they returned."""

    ops: tuple[Op, ...]
    calls: tuple[Call, ...]
    input: Value
    output: Value

    @functools.cached_property
    def has_batch_norm(self) -> bool:
        """Whether there is batch or instance normalization."""
        return any("batch_norm" in op.name for op in self.ops)


# pointwise, but not tagged as such in every torch version
POINTWISE = {
    "hardswish", "hardswish_", "hardtanh", "hardtanh_", "relu6", "clone", "native_dropout", "alias", "_to_copy", "detach",
    "_prelu_kernel", "log_sigmoid_forward", "rrelu_with_noise", "lift_fresh",
}  # fmt: skip


INDEX_DTYPES = (torch.int64, torch.int32, torch.bool)


def is_pointwise(func: Any) -> bool:
    """Whether an operator works element by element."""
    return torch.Tag.pointwise in func.tags or func._schema.name.removeprefix("aten::") in POINTWISE


@dataclass
class _Recorder(TorchDispatchMode):
    ops: list[Op] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    values: dict[int, Value] = field(default_factory=dict)  # by id of the tensor
    # tensors by their memory, kept alive so that no id is used twice
    storages: dict[int, dict[int, torch.Tensor]] = field(default_factory=dict)
    image_storages: set[int] = field(default_factory=set)  # memory that depends on the image
    call_stack: list[str] = field(default_factory=list)
    count: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def add_value(self, tensor: torch.Tensor) -> Value:
        value = Value(self.count, tuple(tensor.shape))
        self.count += 1
        self.values[id(tensor)] = value
        self.storages.setdefault(address(tensor), {})[id(tensor)] = tensor
        return value

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        depends_on_image = any(address(t) in self.image_storages for t in _tensors((args, kwargs)))
        read = {arg.name: kwargs[arg.name] for arg in func._schema.arguments if arg.name in kwargs and not arg.is_out}
        op_args, op_kwargs = tree_map_only(torch.Tensor, self.value_of, (args, read))
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        outputs = result if isinstance(result, (tuple, list)) else () if result is None else (result,)
        values = tuple(self.add_value(out) if isinstance(out, torch.Tensor) else None for out in outputs)
        pointwise = is_pointwise(func)
        layer = self.call_stack[-1] if self.call_stack else ""
        self.ops.append(Op(name, op_args, op_kwargs, values, layer, pointwise))
        written = _tensors(written_args(func._schema, args, kwargs))
        not_returned = [t for t in written if not any(t is out for out in outputs)]
        if not_returned:
            values = tuple(self.add_value(t) for t in not_returned)
            self.ops.append(Op(name + " into", (op_args, op_kwargs), {}, values, layer, False))
        if depends_on_image:
            self.image_storages.update(address(t) for t in (*_tensors(outputs), *written))
            for tensor in written:
                self._update_aliases(tensor)
        return result

    def value_of(self, tensor: torch.Tensor) -> Any:
        """The Value of a tensor; the tensor itself if it is a parameter or a buffer."""
        if id(tensor) not in self.values and address(tensor) in self.image_storages:
            self._update_from(tensor, list(self.storages[address(tensor)].values()))
        value = self.values.get(id(tensor), tensor)
        if isinstance(value, Value) and tensor.dtype in INDEX_DTYPES and address(tensor) not in self.image_storages:
            return replace(value, constant=tensor.clone())
        return value

    def _update_aliases(self, written: torch.Tensor) -> None:
        """Update the Values of other tensors in the memory of one that was written in place."""
        for other in list(self.storages[address(written)].values()):
            if other is not written:
                self._update_from(other, [written])

    def _update_from(self, tensor: torch.Tensor, others: list[torch.Tensor]) -> None:
        """Give a tensor the Value of another one with the same view of its memory, or else a Value that depends on all."""
        same_view = [other for other in others if _memory_key(other) == _memory_key(tensor)]
        if same_view:
            self.values[id(tensor)] = self.values[id(same_view[0])]
            self.storages[address(tensor)][id(tensor)] = tensor
        else:
            sources = tuple(self.values[id(t)] for t in (tensor, *others) if id(t) in self.values)
            value = self.add_value(tensor)
            self.ops.append(Op("written_through_alias", sources, {}, (value,), "", False))

    def on_enter(self, name: str, _args: Any) -> None:
        self.call_stack.append(name)

    def on_exit(self, name: str, module: nn.Module, output: Any) -> None:
        self.call_stack.pop()
        tensor = first_tensor(output)
        self.calls.append(Call(name, module, None if tensor is None else self.values.get(id(tensor))))


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def written_args(schema: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that an operator writes to.

    Parameters
    ----------
    schema : FunctionSchema
        Of the operator.
    args, kwargs
        Its arguments.
    """
    writes = [arg.alias_info is not None and arg.alias_info.is_write for arg in schema.arguments]
    return [args[i] if i < len(args) else kwargs.get(arg.name) for i, arg in enumerate(schema.arguments) if writes[i]]


def _memory_key(tensor: torch.Tensor) -> tuple[Any, ...]:
    """The view that a tensor has of its memory."""
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def address(tensor: torch.Tensor) -> int:
    """Where the memory of a tensor begins."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # sparse tensors, for example
        return id(tensor)


def record_graph(module: nn.Module, batch: torch.Tensor, select: Callable[[Any], torch.Tensor]) -> tuple[Graph, Any]:
    """Record the forward pass of a module.

    Parameters
    ----------
    module : torch.nn.Module
        With hooks, see `trace.add_hooks`.
    batch : (N, C, H, W) tensor
    select : callable
        Returns the tensor with the scores in the module's output.

    Returns
    -------
    graph : Graph
    output : object
        The module's output.
    """
    recorder = _Recorder()
    start = recorder.add_value(batch)
    recorder.image_storages.add(address(batch))
    with plain_mode(), torch.no_grad(), watch_modules(module, recorder.on_exit, recorder.on_enter), recorder:
        output = module(batch)
        scores = select(output)
    if id(scores) not in recorder.values:
        raise TypeError(f"the output of {type(module).__name__} is not computed by PyTorch; return a tensor that is")
    return Graph(tuple(recorder.ops), tuple(recorder.calls), start, recorder.values[id(scores)]), output


# operators that move numbers without changing them
_MOVES = {
    "view", "_unsafe_view", "_reshape_alias", "squeeze", "unsqueeze", "clone", "alias", "_to_copy", "detach", "permute",
    "transpose", "t", "expand", "slice", "select", "index", "index_select",
}  # fmt: skip


def infer_output_activation(graph: Graph) -> str:
    """Activation at the end of a forward pass: "softmax", "log_softmax", "sigmoid" or "none".

    Only one whose numbers are returned unchanged; they may be reshaped, selected or reordered.
    """
    producer = {value: op for op in graph.ops for value in op.outputs if value is not None}
    op = producer.get(graph.output)
    while op is not None and op.name in _MOVES:
        op = producer.get(op.args[0])
    names = {"_softmax": "softmax", "_log_softmax": "log_softmax", "sigmoid": "sigmoid", "sigmoid_": "sigmoid"}
    return names.get(op.name if op else "", "none")


def count_macs(graph: Graph) -> int:
    """Number of multiply-adds in the convolutions and matrix products of a forward pass."""
    return sum(_macs(op) for op in graph.ops)


def _macs(op: Op) -> int:
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
