"""Forward passes of one image with a small patch replaced, computing only what depends on the patch.

The activations for the unchanged image, the references, are computed once. For the other images of a batch, the output of
each operator is stored as its reference and a box: the part that may differ from it. An operator on neighborhoods reads a
slightly larger window, put together from the reference and the box, and returns a box again. So the result equals that of a
full forward pass, up to rounding. Where the boxes cover most of the map, and for operators without a rule, the maps are
completed and computed as usual: every network works, and the overhead is small where nothing can be saved.

What is read where depends on the network and on the positions of the patches, not on pixels. So a `Plan` is made: the
network's own code runs for two batches, on a subclass of torch.Tensor, and what the two have in common is recorded. Further
batches, of this image and of others, replay the record: read a window, convolve, read, convolve, with one upload of indices
per batch and without a decision that would have to wait for a GPU. Code that cannot be recorded, because it reads values or
draws random numbers, runs for every batch.

The idea is that of S. Nakandala, A. Kumar, Y. Papakonstantinou, "Incremental and approximate inference for faster
occlusion-based deep CNN explanations", SIGMOD 2019, who wrote it for three networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ...network.graph import is_pointwise
from .patched_tensor import PatchedTensor, map_lines, read_map, read_windows
from .plan import Plan
from .rules import RULES, pointwise
from .span import AxisRead, Positions, Read, Span, Tables
from .tape import MAX_CONSTANT, HostReads, Program, Tape, depends_on_more

aten = torch.ops.aten


class IncrementalForward(TorchDispatchMode):
    """Runs a network on one image with many different patches.

    Parameters
    ----------
    forward : callable
        Takes a batch (N, C, H, W), returns a tensor or a tuple of tensors.
    image : (1, C, H, W) tensor
        The unchanged image.
    replacement : (1, C, H, W) tensor
        The image that patches are cut from.
    plan : Plan
        For the positions of the patches. The plan of an earlier image can be used again with the same network.

    Examples
    --------
    >>> plan = Plan((16, 16), 4, rows=np.array([0, 6]), cols=np.array([0, 3, 12]), device=torch.device("cpu"))
    >>> passes = IncrementalForward(torch.nn.Conv2d(1, 1, 3), torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16), plan)
    >>> passes.run([Positions(np.array([0, 1]), np.array([1, 2]))]).shape  # patches at (0, 3) and (6, 12)
    torch.Size([2, 1, 14, 14])
    """

    def __init__(
        self, forward: Callable[[torch.Tensor], Any], image: torch.Tensor, replacement: torch.Tensor, plan: Plan
    ) -> None:
        super().__init__()
        self.forward, self.plan = forward, plan
        self.image, self.replacement = (x.contiguous(memory_format=torch.channels_last) for x in (image, replacement))
        self.tape = Tape()
        self._reference_tape = Tape()
        for name, tensor in self._images.items():
            self._reference_tape.define(tensor, name)
        self._references: dict[tuple[Any, ...], tuple[Any, Any]] = {}
        self._lines: dict[tuple[int, float | None], tuple[torch.Tensor, torch.Tensor]] = {}
        self._exported: list[torch.Tensor] = []  # what batches read of the references
        self._op_index = self._read_index = self._batch_size = 0
        self._batch = Positions(np.zeros(0, int), np.zeros(0, int))

    @property
    def _images(self) -> dict[str, torch.Tensor]:
        return {"image": self.image, "replacement": self.replacement}

    def run(self, groups: Sequence[Positions]) -> Any:
        """The output of `forward` for the image with patches at the positions of a batch, given in groups."""
        if self.plan.batches is None:
            return self._run_code(Positions.joined(groups))
        with torch.no_grad():
            if not self._exported:
                assert self.plan.references is not None
                self._exported = self.plan.references.run([(1, {})], self._images)
            references = {_reference_name(k): tensor for k, tensor in enumerate(self._exported)}
            return self.plan.batches.run([(len(group), self.plan.inputs(group)) for group in groups], references)

    def _run_code(self, batch: Positions) -> Any:
        """Run the code of `forward`, and record it if the plan can use that."""
        if len(batch) == 1:  # a batch of two tells tensors with a batch dimension from others
            result = self._run_code(Positions(np.repeat(batch.rows, 2), np.repeat(batch.cols, 2)))
            return tree_map_only(torch.Tensor, lambda x: x[:1], result)
        self._batch, self._batch_size = batch, len(batch)
        self._op_index = self._read_index = 0
        self.tape = Tape()
        for k, tensor in enumerate(self._exported):
            self.tape.define(tensor, _reference_name(k))
        rows, cols = self.plan.rows, self.plan.cols
        with torch.no_grad():
            patches = self.tape.call(read_map, *self.reference_reads(self.replacement, rows, cols), self.image.shape[1:2])
            patched = PatchedTensor(self.image, patches, rows, cols)
            with HostReads(self.tape), self:
                result = self.forward(patched)
            result = tree_map_only(PatchedTensor, self.complete, result)
        if self.plan.recordable:
            self.plan.add_recording(self.tape, result, len(batch))
            if self.plan.batches is not None:
                self.plan.references = Program(self._reference_tape.steps, self._reference_tape.encode(self._exported))
        return result

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._op_index += 1
        if depends_on_more(func, args, kwargs):
            self.tape.replayable = False
        result = None
        patched = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, PatchedTensor)]
        if func._schema.is_mutable and patched and patched[0] is args[0] and args[0].shared:
            raise RuntimeError(f"{func} writes into a view of a PatchedTensor")
        # a completed tensor stays complete: there may be views of it that were written into
        if patched and all(x.completed is None for x in patched):
            rule = RULES.get(func, pointwise if is_pointwise(func) else None)
            result = rule(self, func, args, kwargs) if rule is not None else None
        if result is None:
            result = self._run_completed(func, args, kwargs)
        self._count(func, args, result[0] if isinstance(result, (tuple, list)) else result)
        return result

    def _run_completed(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operator on completed maps."""
        complete_args, complete_kwargs = tree_map_only(PatchedTensor, self.complete, (args, kwargs))
        if func in (aten.view.default, aten._unsafe_view.default):  # the memory may not be in order
            func = aten.reshape.default
        if func._schema.is_mutable and not self.tape.knows(complete_args[0]):  # a state of the network
            self.tape.replayable = False
        result = self.tape.call(func, *complete_args, **complete_kwargs)
        if func._schema.is_mutable and isinstance(args[0], PatchedTensor):
            return args[0]  # its completed tensor was written into
        return result

    def _count(self, func: Any, args: Any, result: Any) -> None:
        """Add an operator to the workload of the plan, the first time."""
        if self._op_index <= self.plan.workload.ops:
            return
        self.plan.workload.ops = self._op_index
        computed, spans = result, None
        if isinstance(result, PatchedTensor):
            computed = result.box if result.completed is None else result.completed
            spans = (result.rows, result.cols) if result.completed is None else None
        if not isinstance(computed, torch.Tensor) or computed.shape[:1] != (self._batch_size,):
            return  # a transposed weight, for example
        macs, values = 0, computed.numel() // self._batch_size
        if func in (aten.convolution.default, aten.addmm.default, aten.mm.default, aten.bmm.default):
            weight = args[1] if func is aten.convolution.default else args[-1]
            macs = values * (weight[0].numel() if weight.ndim > 2 else len(weight))
            if func is aten.convolution.default:
                self.plan.workload.kernel_weights += weight.numel()
            else:
                self.plan.workload.linear_weights += weight.numel()
        positions = 1 if spans is None else computed.shape[-1] * computed.shape[-2]
        self.plan.workload.add(macs / positions, values / positions, spans)

    # -- for the rules -----------------------------------------------------------------------------------------------------

    def reference(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operator for the unchanged image; computed once.

        Parameters
        ----------
        func : OpOverload
        args, kwargs
            Its arguments, with PatchedTensors.
        """
        args, kwargs = tree_map_only(PatchedTensor, lambda x: x.reference, (args, kwargs))
        key = (func, *(self._identity(leaf) for leaf in tree_leaves((args, kwargs))))
        if key not in self._references:
            inputs = args  # kept, so that no id is used twice
            if func._schema.is_mutable:
                args = (self._reference_tape.call(torch.clone, args[0]), *args[1:])
            self._references[key] = inputs, self._reference_tape.call(func, *args, **kwargs)
        return self._references[key][1]

    def _identity(self, leaf: Any) -> Any:
        """What is the same in every pass: a tensor, or the values of a constant that the code makes anew."""
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if not self.tape.knows(leaf) or leaf.numel() > MAX_CONSTANT:
            return id(leaf)
        return leaf.dtype, tuple(leaf.shape), tuple(leaf.flatten().tolist())

    def complete(self, x: PatchedTensor) -> torch.Tensor:
        """A batch as an ordinary tensor (N, ..., H, W)."""
        if x.completed is None:
            x.completed = self.read(x, x.rows.whole(), x.cols.whole())
        return x.completed

    def read(self, x: PatchedTensor, rows: Span, cols: Span) -> torch.Tensor:
        """The part of a batch within spans, which contain its boxes.

        Parameters
        ----------
        x : PatchedTensor
        rows, cols : Span
        """
        if rows == x.rows and cols == x.cols:
            return x.box
        return self.read_windows(x, AxisRead(rows, x.rows), AxisRead(cols, x.cols))

    def read_windows(self, x: PatchedTensor, rows: AxisRead, cols: AxisRead, outside: float | None = None) -> torch.Tensor:
        """Windows of a batch, (N, ..., height, width).

        Parameters
        ----------
        x : PatchedTensor
        rows, cols : AxisRead
        outside : float, optional
            Value outside of the map; None if no window reaches beyond it.
        """
        lines = self._reference_lines(x.reference, outside)
        tables = self._tables(Read(rows, cols, (x.rows.length, x.cols.length)))
        return self.tape.call(read_windows, x.box, lines, tables, outside is not None)

    def reference_reads(self, reference: torch.Tensor, rows: Span, cols: Span) -> tuple[torch.Tensor, Tables[torch.Tensor]]:
        """What `read_map` needs to read a map of the unchanged image within spans.

        Parameters
        ----------
        reference : (1, ..., H, W) tensor
        rows, cols : Span

        Returns
        -------
        lines : tensor
        tables : Tables
        """
        read = Read(AxisRead(rows, None), AxisRead(cols, None), (rows.length, cols.length))
        return self._reference_lines(reference, None), self._tables(read)

    def export(self, reference: torch.Tensor) -> torch.Tensor:
        """Make a tensor that was computed from the unchanged image an input of the recorded batches; return it."""
        if not self.tape.knows(reference):
            self.tape.define(reference, _reference_name(len(self._exported)))
            self._exported.append(reference)
        return reference

    def channels_last(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight in the memory format of the windows, so that it is not converted again for every group."""
        if weight.is_contiguous(memory_format=torch.channels_last):
            return weight
        key = ("weight", id(weight))
        if key not in self._references:
            converted = self._reference_tape.call(torch.clone, weight, memory_format=torch.channels_last)
            self._references[key] = weight, converted
        return self.export(self._references[key][1])

    def _reference_lines(self, reference: torch.Tensor, outside: float | None) -> torch.Tensor:
        key = (id(reference), outside)
        if key not in self._lines:
            self._lines[key] = reference, self._reference_tape.call(map_lines, reference, outside)
        return self.export(self._lines[key][1])

    def _tables(self, read: Read) -> Tables[torch.Tensor]:
        k, self._read_index = self._read_index, self._read_index + 1
        if k == len(self.plan.reads):
            self.plan.reads.append(read)
        (tables,) = self.plan.inputs(self._batch, range(k, k + 1)).values()
        return tables


def _reference_name(index: int) -> str:
    return f"reference {index}"
