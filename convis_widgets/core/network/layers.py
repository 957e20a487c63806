"""Layers: the ordered index of a network's layers, with names, shapes and receptive fields."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
import torch
from torch import nn

from ..errors import did_you_mean, format_shape
from .graph import Graph, Value
from .positions import grid_of, unit_positions
from .receptive_field.compute import receptive_fields
from .receptive_field.field import Field


@dataclass(frozen=True)
class Layout:
    """How the output of a layer is arranged in maps (C, h, w).

    Attributes
    ----------
    map_shape : (int, int, int)
        (C, h, w).
    order : tuple of int
        Dimensions of the output, without the batch: channels, rows, columns; or channels, tokens; or channels.
    aligned : bool
        Whether positions in the maps are those of the receptive fields.
    tokens : tuple of int, optional
        Indices of the tokens on the grid, row by row, along the dimensions after the channels; all tokens by default.
    """

    map_shape: tuple[int, int, int]
    order: tuple[int, ...]
    aligned: bool = True
    tokens: tuple[int, ...] | None = None

    def apply(self, output: torch.Tensor) -> torch.Tensor:
        """Convert a raw output to maps (N, C, h, w)."""
        maps = output.permute(0, *(dim + 1 for dim in self.order))
        if len(self.order) == 3 and self.tokens is None:
            return maps
        if self.tokens is not None:
            maps = maps.flatten(2)[:, :, list(self.tokens)]
        return maps.reshape(len(output), *self.map_shape)


@dataclass(frozen=True)
class Layer:
    """A call of a module in the forward pass.

    Attributes
    ----------
    name : str
        Dotted name of the module; ``@2`` is appended for its second call.
    kind : str
        Class of the module, such as ``Conv2d``.
    shape : tuple of int
        Shape of the output without the batch: (C, h, w) for maps, (D,) for vectors, (T, D) for tokens.
    parameters : int
        Number of parameters.
    layout : Layout or None
        How the output is arranged in maps; None if it is not a set of maps.
    module : torch.nn.Module
    value : Value
        The output in the recorded graph.
    field : Field or None
        Receptive fields of the units; None if the output does not depend on the input.
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
    def map_shape(self) -> tuple[int, int, int] | None:
        """Shape (C, h, w) of the activation maps, see `Network.as_maps`; None if the output is not a set of maps."""
        return self.layout.map_shape if self.layout else None

    @property
    def channels(self) -> int:
        """Number of maps, or size of the last dimension if the output is not a set of maps."""
        return self.map_shape[0] if self.map_shape else self.shape[-1] if self.shape else 1

    @property
    def is_spatial(self) -> bool:
        """Whether the maps have more than one position."""
        return self.map_shape is not None and self.map_shape[1] * self.map_shape[2] > 1

    @property
    def receptive_field(self) -> tuple[int, int] | str:
        """Height and width in input pixels, not clipped at the borders; or ``"whole image"`` or ``"nothing"``."""
        field = self.field
        if field is None:
            return "nothing"
        if field.rows.grid and field.cols.grid:
            return int(field.rows.grid[0]), int(field.cols.grid[0])
        sizes = [int((axis.high - axis.low)[axis.high >= 0].max(initial=-1)) + 1 for axis in (field.rows, field.cols)]
        return "whole image" if sizes == [field.height, field.width] else (sizes[0], sizes[1])

    @property
    def receptive_field_text(self) -> str:
        """The receptive field as text: "11x11 pixels", "at most 5x5 pixels", "the whole image"."""
        size = self.receptive_field
        text = size.replace("whole", "the whole") if isinstance(size, str) else f"{size[0]}x{size[1]} pixels"
        return text if self.field is None or self.field.exact else f"at most {text}"

    @property
    def stride(self) -> tuple[int, int] | None:
        """Input pixels between the receptive fields of neighboring units, (down, across); None if it is not constant."""
        field = self.field
        if field is None or not field.rows.grid or not field.cols.grid:
            return None
        return int(field.rows.grid[1]), int(field.cols.grid[1])

    def filters(self, input_shape: tuple[int, ...]) -> torch.Tensor | None:
        """The weight as filters (out, in, height, width); None if it is not a set of filters.

        Parameters
        ----------
        input_shape : (int, int, int)
            Channels, height and width of the network's input, the size of the filters of a linear layer on pixels.
        """
        module, weight = self.module, getattr(self.module, "weight", None)
        if not isinstance(weight, torch.Tensor):
            return None
        if isinstance(module, nn.Linear) and weight.shape[1] == math.prod(input_shape):
            weight = weight.reshape(-1, *input_shape)
        if isinstance(module, nn.modules.conv._ConvTransposeNd):  # (in, out per group, height, width)
            weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
        return weight if weight.ndim == 4 else None

    def as_maps(self, output: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """Convert a raw output of the layer to activation maps (N, C, h, w).

        Vectors become 1x1 maps, tokens the grid of their patches.

        Parameters
        ----------
        output : (N, ...) tensor
            See `trace`.
        image_size : (int, int)
            Height and width of the network's input, for the error message.

        Raises
        ------
        ValueError
            The output is not a set of maps, or its number of tokens is not that of an image of the network's size.
        """
        if self.layout is None:
            shape = format_shape(self.shape)
            raise ValueError(f"{self.name} ({self.kind}) returns {shape}, which is not a set of maps; choose another layer")
        is_grid = len(self.layout.order) == 2 or self.layout.tokens is not None
        if is_grid and tuple(output.shape[1:]) != self.shape:
            shape, expected = format_shape(output.shape[1:]), format_shape(self.shape)
            raise ValueError(f"{self.name} returned {shape} tokens, not {expected}; give images of {image_size}")
        return self.layout.apply(output)

    def box(self, position: tuple[int, int] | None = None) -> tuple[int, int, int, int]:
        """Receptive field of the unit at (row, column): (top, left, bottom, right), clipped to the image.

        Without a position, or if positions are unknown, the union of the receptive fields of the layer.
        """
        if self.field is None:
            return (0, 0, 0, 0)
        if position is None or not self.is_spatial or self.layout is None or not self.layout.aligned:
            return self.field.collapsed(()).box()
        return self.field.box(*position)


class Layers(Sequence[Layer]):
    """The layers of a network in the order of the forward pass; ``layers[0]``, ``layers["conv1"]``, ``for layer in layers``.

    Containers and layers that return their input (dropout) are available by name but not listed.

    Parameters
    ----------
    graph : Graph
    input_size : (int, int)
        Height and width of the network's input.
    """

    def __init__(self, graph: Graph, input_size: tuple[int, int]) -> None:
        fields = receptive_fields(graph)
        self._listed: list[Layer] = []
        self._by_name: dict[str, Layer] = {}
        listed_values = {graph.input}
        positions = functools.cache(lambda: unit_positions(graph))
        for call in graph.calls:
            if call.output is None:
                continue
            shape = call.output.shape[1:]
            field = fields.get(call.output)
            layout = _infer_layout(call.output, field, positions)
            if field is not None and layout is not None:
                # positions that the field does not distinguish may have smaller receptive fields than others
                untagged = any(shape[d] > 1 and not any(tag for _, tag in field.dims[d + 1]) for d in layout.order[1:])
                exact = field.exact and layout.aligned and (field.uniform or not untagged)
                field = replace(field, exact=exact)
            layer = Layer(
                call.name,
                type(call.module).__name__,
                shape,
                sum(p.numel() for p in call.module.parameters()),
                layout,
                call.module,
                call.output,
                field,
            )
            self._by_name[call.name] = layer
            composite = any(call.module.children()) and not isinstance(call.module, nn.Sequential)
            if call.output not in listed_values or composite:
                self._listed.append(layer)
            listed_values.add(call.output)

    @overload
    def __getitem__(self, key: int | str) -> Layer: ...
    @overload
    def __getitem__(self, key: slice) -> list[Layer]: ...
    def __getitem__(self, key: int | str | slice) -> Layer | list[Layer]:
        if not isinstance(key, str):
            return self._listed[key]
        if key not in self._by_name:
            raise ValueError(f"there is no layer {key!r}; {did_you_mean(key, self._by_name)}")
        return self._by_name[key]

    def spatial_layers(self, before: str = "") -> list[Layer]:
        """The layers with more than one position.

        Parameters
        ----------
        before : str, optional
            Only layers before this one.
        """
        end = self[before].value if before else None
        preceding = itertools.takewhile(lambda layer: not before or layer.value is not end, self._listed)
        return [layer for layer in preceding if layer.is_spatial]

    def last_spatial_layer(self) -> Layer | None:
        """The last layer with more than one position, other than pooling; None if there is none."""
        return next((layer for layer in reversed(self.spatial_layers()) if "Pool" not in layer.kind), None)

    def __len__(self) -> int:
        return len(self._listed)

    def __contains__(self, key: object) -> bool:
        return key in self._by_name or key in self._listed

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


def _infer_layout(
    value: Value, field: Field | None, positions: Callable[[], Mapping[Value, tuple[torch.Tensor, torch.Tensor]]]
) -> Layout | None:
    """How an output is arranged in maps; None if it is not a set of maps.

    The field knows which dimensions are rows and columns, except after attention; then the positions of the units do. If
    these are unknown, three dimensions are assumed to be (C, h, w).

    Parameters
    ----------
    value : Value
        The output.
    field : Field or None
        Its receptive fields.
    positions : callable
        Returns the positions of units, see `unit_positions`.
    """
    shape = value.shape[1:]
    if len(shape) == 1:  # after flattening, channels stand for several positions
        return Layout((shape[0], 1, 1), (0,), field is None or not any(tag for _, tag in field.dims[1]))
    tags = ["" if field is None else field.tag(d + 1) for d in range(len(shape))]
    rows, cols = ([d for d, tag in enumerate(tags) if tag == axis] for axis in "rc")
    if len(shape) == 3 and len(rows) == len(cols) == 1:
        order = (*({0, 1, 2} - {*rows, *cols}), *rows, *cols)
        return Layout((shape[order[0]], shape[order[1]], shape[order[2]]), order, "?" not in tags)
    for tokens in (0, 1) if len(shape) == 2 else ():  # (T, D) or (D, T)
        factors = [] if field is None else [factor for factor in field.dims[tokens + 1] if factor[0] != 1]
        if [tag for _, tag in factors] == ["r", "c"]:
            return Layout((shape[1 - tokens], factors[0][0], factors[1][0]), (1 - tokens, tokens))
    if len(shape) in (2, 3, 4) and sum(size > 1 for size in shape) > 1 and value in positions():
        grid = grid_of(*(axis[0] for axis in positions()[value])) if value.shape[0] == 1 else None
        if grid is None:
            return None
        order, (h, w), indices = grid
        tokens_in_order = len(shape) == 3 and [shape[d] for d in order[1:]] == [h, w] and bool((np.diff(indices) == 1).all())
        if len(shape) > 2 and order[0] == 0 and not tokens_in_order:  # attention of each head to each token
            return None
        dims = {"r": order[1:2], "c": order[2:]} if tokens_in_order else {}
        aligned = all(not tag or dims.get(tag) == (d,) for d, tag in enumerate(tags))
        return Layout((shape[order[0]], h, w), order, aligned, None if tokens_in_order else tuple(indices.tolist()))
    aligned = "?" not in tags and rows in ([], [1]) and cols in ([], [2])
    return Layout((shape[0], shape[1], shape[2]), (0, 1, 2), aligned) if len(shape) == 3 else None
