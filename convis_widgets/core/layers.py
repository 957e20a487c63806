"""Layers: the ordered index of what a network computes, with names, shapes and receptive fields."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import torch
from torch import nn

from .errors import nearest
from .field import Field
from .graph import Graph, Value
from .receptive import fields_of


@dataclass(frozen=True)
class Layout:
    """How a layer's output is seen as maps (C, h, w).

    `order` names the dimensions of the output, the batch not counted, that are channels, rows and columns; channels and
    tokens; or channels only. `placed` is False where a position in the maps is not one of the field's.
    """

    maps: tuple[int, int, int]
    order: tuple[int, ...]
    placed: bool = True

    def apply(self, output: torch.Tensor) -> torch.Tensor:
        """A raw output as (N, C, h, w)."""
        if len(self.order) == 1:
            return output[:, :, None, None]
        if len(self.order) == 3:
            return output.permute(0, *(dim + 1 for dim in self.order))
        count, h, w = self.maps
        tokens = output.permute(0, *(dim + 1 for dim in self.order))
        return tokens[:, :, tokens.shape[2] - h * w :].reshape(len(output), count, h, w)


@dataclass(frozen=True)
class Layer:
    """One layer, as it was called in the forward pass.

    Attributes
    ----------
    name : str
        Dotted name of the module, with ``@2`` when it is called a second time.
    kind : str
        The module's class, e.g. ``Conv2d``.
    shape : tuple of int
        Shape of what it puts out, without the batch: (C, h, w) for maps, (D,) for vectors, (T, D) for tokens.
    parameters : int
        Number of learned values.
    layout : Layout or None
        How its output is seen as maps; None if it cannot be.
    value : Value
        Its output in the recorded graph.
    field : Field or None
        Receptive fields of its units; None if the output does not depend on the input.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    layout: Layout | None
    module: nn.Module = field(repr=False)
    value: Value = field(repr=False)
    field: Field | None = field(repr=False)

    @property
    def maps(self) -> tuple[int, int, int] | None:
        """(C, h, w), the shape in which `Network.as_maps` gives its output; None if that cannot be seen as maps."""
        return self.layout.maps if self.layout else None

    @property
    def channels(self) -> int:
        """How many maps, or units where there are no maps."""
        return self.maps[0] if self.maps else self.shape[-1] if self.shape else 1

    @property
    def is_map(self) -> bool:
        """Whether there is more than one position to look at."""
        return self.maps is not None and self.maps[1] * self.maps[2] > 1

    @property
    def receptive_field(self) -> tuple[int, int] | str:
        """Height and width in input pixels, not clipped at the borders, or ``"whole image"``."""
        f = self.field
        if f is None:
            return "nothing"
        if f.rows.grid and f.cols.grid:
            return int(f.rows.grid[0]), int(f.cols.grid[0])
        sizes = [int((axis.high - axis.low)[axis.high >= 0].max(initial=-1)) + 1 for axis in (f.rows, f.cols)]
        return "whole image" if sizes == [f.height, f.width] else (sizes[0], sizes[1])

    @property
    def sees(self) -> str:
        """What a unit sees, in words: "11x11 pixels", "at most 5x5 pixels", "the whole image"."""
        size = self.receptive_field
        size = size.replace("whole", "the whole") if isinstance(size, str) else f"{size[0]}x{size[1]} pixels"
        return size if self.field is None or self.field.exact else f"at most {size}"

    @property
    def stride(self) -> tuple[int, int] | None:
        """Input pixels from one unit's field to the next one's, down and across; None where there is no such number."""
        f = self.field
        return (int(f.rows.grid[1]), int(f.cols.grid[1])) if f is not None and f.rows.grid and f.cols.grid else None

    def box(self, position: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the pixels that the unit at (row, column) can see, clipped to the image.

        Without a position, or where units have none or it is not known which is whose, the whole that the layer sees.
        """
        f = self.field
        if f is None:
            return (0, 0, 0, 0)
        if position is None or not self.is_map or not self.layout.placed:
            f = f.collapsed(())
            return f.box()
        return f.box(*position)


class Layers(Sequence[Layer]):
    """A network's layers in the order of its forward pass; ``layers[0]``, ``layers["conv1"]``, ``for layer in layers``.

    Containers and layers that only hand on their input (dropout outside of training) are found by name but are not
    listed.
    """

    def __init__(self, graph: Graph, spatial: tuple[int, int]) -> None:
        fields = fields_of(graph)
        self._listed: list[Layer] = []
        self._named: dict[str, Layer] = {}
        seen = {graph.input}
        patches: tuple[int, int] | None = None
        for call in graph.calls:
            if call.output is None:
                continue
            shape = call.output.shape[1:]
            seen_field = fields.get(call.output)
            layout = _layout(shape, seen_field, patches, spatial)
            if seen_field is not None and layout is not None:
                # whether places that the field does not tell apart are among those that see less than others
                blind = any(shape[d] > 1 and not any(tag for _, tag in seen_field.dims[d + 1]) for d in layout.order[1:])
                certain = layout.placed and (seen_field.even or not blind)
                seen_field = replace(seen_field, exact=seen_field.exact and certain)
            if len(shape) == 3 and isinstance(call.module, nn.Conv2d) and call.module.stride != (1, 1):
                patches = (shape[1], shape[2])
            layer = Layer(
                call.name,
                type(call.module).__name__,
                shape,
                sum(p.numel() for p in call.module.parameters()),
                layout,
                call.module,
                call.output,
                seen_field,
            )
            self._named[call.name] = layer
            composite = any(call.module.children()) and not isinstance(call.module, nn.Sequential)
            if call.output not in seen or composite:
                self._listed.append(layer)
            seen.add(call.output)

    @overload
    def __getitem__(self, key: slice) -> list[Layer]: ...
    @overload
    def __getitem__(self, key: int | str) -> Layer: ...
    def __getitem__(self, key: int | str | slice) -> Layer | list[Layer]:
        if not isinstance(key, str):
            return self._listed[key]
        if key not in self._named:
            raise ValueError(f"no layer {key!r}; {nearest(key, self._named)}")
        return self._named[key]

    def last_maps(self, before: str = "") -> Layer | None:
        """The last layer with positions, of all or of those before a layer; None if there is none.

        Poolings do not count: they only make coarser what the layer before them has found.
        """
        end = self[before].value if before else None
        until = itertools.takewhile(lambda layer: not before or layer.value is not end, self._listed)
        found = [layer for layer in until if layer.is_map and "Pool" not in layer.kind]
        return found[-1] if found else None

    def __len__(self) -> int:
        return len(self._listed)

    def __contains__(self, key: object) -> bool:
        return key in self._named or key in self._listed

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._listed)

    def __repr__(self) -> str:
        rows = [("name", "kind", "output", "field", "stride", "parameters")]
        for layer in self._listed:
            size = layer.receptive_field
            rows.append(
                (
                    layer.name,
                    layer.kind,
                    "x".join(map(str, layer.shape)),
                    size if isinstance(size, str) else "x".join(map(str, size)),
                    str(layer.stride[0]) if layer.stride else "",
                    f"{layer.parameters:,}" if layer.parameters else "",
                )
            )
        widths = [max(len(row[i]) for row in rows) for i in range(6)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )


def _layout(
    shape: tuple[int, ...], seen: Field | None, patches: tuple[int, int] | None, spatial: tuple[int, int]
) -> Layout | None:
    """How an output of this shape can be seen as maps; None if it cannot.

    Which dimension runs over rows and which over columns is known from the field. After attention it is not; then (h, w,
    C) is told from (C, h, w) on square pictures, and the last tokens of (T, D) are taken for the grid of patches that the
    first strided convolution cut.
    """
    if len(shape) == 1:  # after flattening, units of other places lie among the channels
        return Layout((shape[0], 1, 1), (0,), seen is None or not any(tag for _, tag in seen.dims[1]))
    rows = [d for d in range(len(shape)) if seen is not None and seen.tag(d + 1) == "r"]
    cols = [d for d in range(len(shape)) if seen is not None and seen.tag(d + 1) == "c"]
    mixed = seen is not None and any(seen.tag(d + 1) == "?" for d in range(len(shape)))
    if len(shape) == 3:
        order = [0, 1, 2]
        if len(rows) == len(cols) == 1:
            order = [*({0, 1, 2} - {*rows, *cols}), *rows, *cols]
        elif not (rows or cols or mixed) and spatial[0] == spatial[1] and shape[0] == shape[1] != shape[2] and shape[1] > 1:
            order = [2, 0, 1]
        placed = not mixed and rows in ([], [order[1]]) and cols in ([], [order[2]])
        c, h, w = (shape[d] for d in order)
        return Layout((c, h, w), tuple(order), placed)
    if len(shape) == 2:
        for tokens in (0, 1):  # (T, D) or (D, T)
            factors = [] if seen is None else [factor for factor in seen.dims[tokens + 1] if factor[0] != 1]
            if [tag for _, tag in factors] == ["r", "c"]:
                return Layout((shape[1 - tokens], factors[0][0], factors[1][0]), (1 - tokens, tokens))
        if patches and not (rows or cols or mixed) and shape[0] >= math.prod(patches):
            return Layout((shape[1], *patches), (1, 0))
    return None
