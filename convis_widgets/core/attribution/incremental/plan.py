"""Plan: what is read where, and in which order, for one network and one grid of patch positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .span import Positions, Read, Span, Tables
from .tape import Program, Tape
from .workload import Workload

_MAX_CACHED_BYTES = 64 << 20  # of index tables that are kept for the next image


class Plan:
    """What an `IncrementalForward` has found out about a network; it holds for all images of one size.

    Parameters
    ----------
    size : (height, width)
        Of the images.
    patch_size : int
        Side of the patches.
    rows, cols : (n,) and (m,) arrays of int
        Top and left edges of the patches.
    device : torch.device

    Attributes
    ----------
    reads : list of Read
        In the order of the forward pass.
    workload : Workload
    references : Program or None
        Computes, from the unchanged image, the maps that boxes are completed with.
    batches : Program or None
        Computes a batch of positions.
    recordable : bool
        False if the network's own code has to run for every batch.
    is_slower : bool or None
        Whether complete forward passes were faster; None if that was not measured.
    """

    def __init__(
        self, size: tuple[int, int], patch_size: int, rows: np.ndarray, cols: np.ndarray, device: torch.device
    ) -> None:
        rows, cols = np.asarray(rows), np.asarray(cols)
        self.size, self.device = size, device
        self.rows, self.cols = Span(rows, rows + patch_size - 1, size[0]), Span(cols, cols + patch_size - 1, size[1])
        self.reads: list[Read] = []
        self.workload = Workload()
        self.references: Program | None = None
        self.batches: Program | None = None
        self.recordable = True
        self.is_slower: bool | None = None
        self._first: tuple[Tape, Any, int] | None = None
        self._inputs: dict[tuple[bytes, bytes], dict[str, Tables[torch.Tensor]]] = {}
        self._cached_bytes = 0

    def add_recording(self, tape: Tape, result: Any, count: int) -> None:
        """Add the recording of a batch; two of them, with different numbers of images, make a program.

        Parameters
        ----------
        tape : Tape
        result
            What the computation returned.
        count : int
            Number of images.
        """
        if not tape.replayable:
            self.recordable = False
        elif self._first is None:
            self._first = tape, tape.encode(result), count
        elif self._first[2] != count:
            self.batches = Program.of_two(self._first, (tape, tape.encode(result), count))
            self._first = None
            self.recordable = self.batches is not None

    def inputs(self, group: Positions, reads: range | None = None) -> dict[str, Tables[torch.Tensor]]:
        """The tables of a group, on the device, by name; uploaded in one copy and kept for the next image.

        Parameters
        ----------
        group : Positions
        reads : range, optional
            Indices of the reads; all by default.
        """
        key = (group.rows.tobytes(), group.cols.tobytes())
        if reads is None and key in self._inputs:
            return self._inputs[key]
        tables = [self.reads[k].tables(group) for k in (range(len(self.reads)) if reads is None else reads)]
        arrays = [array for table in tables for array in table.arrays]
        flat = torch.from_numpy(np.concatenate([array.ravel() for array in arrays]))
        if self.device.type == "cuda":
            flat = flat.pin_memory()
        parts = flat.to(self.device, non_blocking=True).split([array.size for array in arrays])
        tensors = (part.view(array.shape) for part, array in zip(parts, arrays, strict=True))
        inputs = {}
        for k, table in enumerate(tables, reads.start if reads else 0):
            name = f"group tables {k}"
            at_map = (next(tensors), next(tensors))
            at_box = None if table.box is None else (next(tensors), next(tensors))
            inputs[name] = Tables(at_map, at_box, name)
        if reads is None and self._cached_bytes + 8 * len(flat) <= _MAX_CACHED_BYTES:
            self._inputs[key] = inputs
            self._cached_bytes += 8 * len(flat)
        return inputs
