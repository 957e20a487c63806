"""Tape: the operators of a computation, recorded so that they can be called again without the code that called them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ...runs.run import raise_if_stopped
from .span import Tables

MAX_CONSTANT = 1 << 12  # values of a constant that code may make in every pass


@dataclass(frozen=True)
class Slot:
    """Stands for a value of a recorded computation: an input by its name, a result by its number."""

    name: str


@dataclass(frozen=True)
class PerImage:
    """Stands for a number that is proportional to the number of images."""

    factor: int


@dataclass(frozen=True)
class Step:
    """A recorded call: arguments and result consist of Slots, numbers and tensors that exist outside of the computation."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any


class _NotTheSame(Exception):
    """Two recordings do not agree."""


class Tape:
    """Records calls of functions of tensors.

    Attributes
    ----------
    steps : list of Step
    replayable : bool
        False once something was computed that depends on more than the recorded steps: random numbers, or values that the
        code has read from a tensor.
    """

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.replayable = True
        self._slots: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._count = 0

    def define(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        """Give a name to an input of the computation; return it.

        Parameters
        ----------
        tensor : tensor
        name : str
        """
        self._slots[tensor] = Slot(name)
        return tensor

    def is_batch(self, slot: Slot, count: int) -> bool:
        """Whether the first dimension of a result is the number of images.

        Parameters
        ----------
        slot : Slot
        count : int
        """
        return self._shapes.get(slot.name, ())[:1] == (count,)

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function, record the call and return its result.

        Parameters
        ----------
        function : callable
        *args, **kwargs
            Its arguments.
        """
        recorded = self.encode(args), self.encode(kwargs)
        result = function(*args, **kwargs)
        self.steps.append(Step(function, *recorded, self._define_all(result)))
        return result

    def knows(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is an input or a result of the recorded computation."""
        return tensor in self._slots

    def encode(self, value: Any) -> Any:
        """A value with Slots instead of the tensors of the computation."""
        if isinstance(value, torch.Tensor):
            return self._slots.get(value, value)
        if isinstance(value, Tables):
            return Slot(value.name)
        if isinstance(value, (list, tuple)):
            return type(value)(self.encode(part) for part in value)
        if isinstance(value, dict):
            return {name: self.encode(part) for name, part in value.items()}
        return value

    def _define_all(self, result: Any) -> Any:
        if isinstance(result, torch.Tensor):
            if result not in self._slots:  # in place, it is an argument
                self._count += 1
                self._slots[result] = slot = Slot(str(self._count))
                self._shapes[slot.name] = tuple(result.shape)
            return self._slots[result]
        if isinstance(result, (list, tuple)):
            return tuple(self._define_all(part) for part in result)
        return None


class Program:
    """A recorded computation for any number of images.

    Parameters
    ----------
    steps : sequence of Step
    result
        What is returned, with Slots for tensors.
    is_batch : callable
        Whether the first dimension of what a Slot stands for is the number of images.
    """

    def __init__(self, steps: list[Step], result: Any, is_batch: Callable[[Slot], bool] = lambda _slot: False) -> None:
        self._result = result
        uses = [_slots_in((step.args, step.kwargs)) for step in steps]
        # up to the last one that reads inputs of one group, the steps are run for each group; the others for all at once
        end = max((k + 1 for k, slots in enumerate(uses) if any(is_group_input(slot) for slot in slots)), default=0)
        made = {slot.name for step in steps[:end] for slot in _slots_in(step.result)}
        later = [slot for slots in (*uses[end:], _slots_in(result)) for slot in slots]
        passed = {slot.name: slot for slot in later if slot.name in made}
        self.can_join = all(is_batch(slot) for slot in passed.values())
        self._passed = tuple(passed.values())
        self._group_steps = _with_releases(steps[:end], self._passed)
        self._steps = _with_releases(steps[end:], result)

    @classmethod
    def of_two(cls, first: tuple[Tape, Any, int], second: tuple[Tape, Any, int]) -> Program | None:
        """What two recordings with different numbers of images have in common; None if they do not agree.

        Numbers in the arguments are constant or proportional to the number of images. Tensors that exist outside of the
        computation have to be the same objects, or newly made with equal values.

        Parameters
        ----------
        first, second : (Tape, result with Slots, number of images)
        """
        (a, result_a, n), (b, result_b, m) = first, second
        if n == m or not (a.replayable and b.replayable) or len(a.steps) != len(b.steps):
            return None
        try:
            steps = [
                Step(s.function, *_common((s.args, s.kwargs, s.result), (t.args, t.kwargs, t.result), n, m))
                for s, t in zip(a.steps, b.steps, strict=True)
                if s.function == t.function or _fail()
            ]
            result = _common(result_a, result_b, n, m)
        except _NotTheSame:
            return None
        return cls(steps, result, lambda slot: a.is_batch(slot, n) and b.is_batch(slot, m))

    def run(self, groups: Sequence[tuple[int, Mapping[str, Any]]], inputs: Mapping[str, Any]) -> Any:
        """Compute the results for groups of images, joined.

        Parameters
        ----------
        groups : sequence of (int, mapping)
            Number of images, and values of the inputs of the group, see `is_group_input`.
        inputs : mapping
            Values of the other inputs.
        """
        if len(groups) > 1 and not self.can_join:
            return torch.cat([self.run([group], inputs) for group in groups])
        passed = []
        for count, group_inputs in groups:
            values = {**inputs, **group_inputs}
            _run(self._group_steps, values, count)
            passed.append(_fill(self._passed, values, count))
        joined = passed[0] if len(passed) == 1 else [torch.cat(part) for part in zip(*passed, strict=True)]
        values = {**inputs, **{slot.name: value for slot, value in zip(self._passed, joined, strict=True)}}
        count = sum(count for count, _ in groups)
        _run(self._steps, values, count)
        return _fill(self._result, values, count)


def is_group_input(slot: Slot) -> bool:
    """Whether a Slot stands for an input that is different for each group of images."""
    return slot.name.startswith("group ")


def _with_releases(steps: list[Step], result: Any) -> list[tuple[Step, list[str]]]:
    """Steps, each with the values that are not used later."""
    used = {slot.name for slot in _slots_in(result)}
    found = []
    for step in reversed(steps):
        names = {slot.name for slot in _slots_in((step.args, step.kwargs, step.result))}
        found.append((step, [name for name in names - used if name.isdigit()]))  # inputs stay
        used |= names
    return found[::-1]


def _run(steps: list[tuple[Step, list[str]]], values: dict[str, Any], count: int) -> None:
    for step, released in steps:
        raise_if_stopped()
        kwargs = _fill(step.kwargs, values, count) if step.kwargs else {}
        _store(step.result, step.function(*_fill(step.args, values, count), **kwargs), values)
        for name in released:
            values.pop(name, None)


def _fail() -> bool:
    raise _NotTheSame


def _common(a: Any, b: Any, n: int, m: int) -> Any:
    if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
        return type(a)(_common(x, y, n, m) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {name: _common(a[name], b[name], n, m) for name in a}
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a is b or (a.numel() <= MAX_CONSTANT and a.dtype == b.dtype and torch.equal(a, b)):
            return a
        raise _NotTheSame
    if type(a) is int and type(b) is int and a != b and a % n == 0 and a * m == b * n:
        return PerImage(a // n)
    if type(a) is type(b) and (a == b or (a != a and b != b)):
        return a
    raise _NotTheSame


def _slots_in(value: Any) -> list[Slot]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Slot)]


def _fill(value: Any, values: dict[str, Any], count: int) -> Any:
    kind = type(value)
    if kind is Slot:
        return values[value.name]
    if kind is PerImage:
        return value.factor * count
    if kind is tuple or kind is list:
        return kind([_fill(part, values, count) for part in value])
    if kind is dict:
        return {name: _fill(part, values, count) for name, part in value.items()} if value else value
    return value


def _store(result: Any, value: Any, values: dict[str, Any]) -> None:
    if type(result) is Slot:
        values[result.name] = value
    elif type(result) is tuple:
        for part, item in zip(result, value, strict=True):
            _store(part, item, values)


class HostReads(TorchFunctionMode):
    """Notices when code reads the values of a tensor without an operator, as ``tensor.numpy()`` does."""

    _READS = ("numpy", "tolist", "__array__", "__dlpack__")

    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in self._READS:
            self.tape.replayable = False
        return func(*args, **(kwargs or {}))


def depends_on_more(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator reads values for the code that calls it, or draws random numbers.

    Parameters
    ----------
    func : OpOverload
    args, kwargs
        Its arguments.
    """
    if not _READS_VALUES.isdisjoint(func.tags):
        return True
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = {argument.name: argument.default_value for argument in func._schema.arguments}
    given |= dict(zip(names, args, strict=False)) | kwargs
    return given.get("dropout_p") != 0 and given.get("train") is not False


_READS_VALUES = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
