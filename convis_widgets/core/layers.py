"""Layers: the ordered index of what a network computes, with names, shapes and receptive fields."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import nn

from .errors import nearest
from .graph import Graph
from .receptive import Field, fields_of


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
    maps : (C, h, w) or None
        The shape in which `Network.as_maps` gives its output; None if that cannot be seen as maps.
    field : Field or None
        Receptive fields of its units; None if the output does not depend on the input.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    maps: tuple[int, int, int] | None
    module: nn.Module = field(repr=False)
    field: Field | None = field(repr=False)

    @property
    def channels(self) -> int:
        """How many maps, or units where there are no maps."""
        return self.maps[0] if self.maps else self.shape[-1]

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
            return f.rows.grid[0], f.cols.grid[0]
        sizes = [int((axis.high - axis.low).max()) + 1 for axis in (f.rows, f.cols)]
        return "whole image" if sizes == [f.height, f.width] else (sizes[0], sizes[1])

    @property
    def stride(self) -> tuple[int, int] | None:
        """Input pixels from one unit's field to the next one's, down and across; None where there is no such number."""
        f = self.field
        return (f.rows.grid[1], f.cols.grid[1]) if f is not None and f.rows.grid and f.cols.grid else None

    def box(self, position: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """(top, left, bottom, right) of the pixels that the unit at (row, column) can see, clipped to the image.

        Without a position, or where units have none, the whole that the layer sees.
        """
        f = self.field
        if f is None:
            return (0, 0, 0, 0)
        if position is None or not self.is_map:
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
            maps = maps_shape(shape, patches, spatial)
            if len(shape) == 3 and isinstance(call.module, nn.Conv2d) and call.module.stride != (1, 1):
                patches = (shape[1], shape[2])
            layer = Layer(
                call.name,
                type(call.module).__name__,
                shape,
                sum(p.numel() for p in call.module.parameters()),
                maps,
                call.module,
                fields.get(call.output),
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


def maps_shape(
    shape: tuple[int, ...], patches: tuple[int, int] | None, spatial: tuple[int, int]
) -> tuple[int, int, int] | None:
    """(C, h, w) of an output of this shape, seen as maps; None if it cannot be.

    Tokens (T, D) count as the grid of patches that the first strided convolution cut, after leading tokens such as
    the class token. (h, w, C) is told from (C, h, w) by the image's aspect.
    """
    if len(shape) == 3:
        _, h, _ = shape
        square = spatial[0] == spatial[1]
        if square and shape[0] == shape[1] != shape[2] and h > 1:
            return shape[2], shape[0], shape[1]
        return shape  # type: ignore[return-value]
    if len(shape) == 2 and patches:
        if shape[0] >= math.prod(patches):
            return (shape[1], *patches)
        return None
    return (shape[0], 1, 1) if len(shape) == 1 else None


def as_maps(output: torch.Tensor, maps: tuple[int, int, int]) -> torch.Tensor:
    """A layer's raw output as (N, C, h, w), given what `maps_shape` said."""
    channels, h, w = maps
    if output.ndim == 2:
        return output[:, :, None, None]
    if output.ndim == 3:  # tokens: the last h * w of them are the patches
        return output[:, output.shape[1] - h * w :].transpose(1, 2).reshape(len(output), channels, h, w)
    if tuple(output.shape[1:]) != maps and tuple(output.shape[1:]) == (h, w, channels):
        return output.permute(0, 3, 1, 2)
    return output
