"""Layers: the ordered index of a network's layers, with names, shapes and receptive fields."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
import torch
from torch import nn

from ..errors import did_you_mean, format_shape
from ..text import one_line
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
    tokens : tuple of int, optional
        Indices of the tokens on the grid, row by row, along the dimensions after the channels; all tokens by default.
    token_shape : tuple of int
        Lengths of these dimensions.
    """

    map_shape: tuple[int, int, int]
    order: tuple[int, ...]
    tokens: tuple[int, ...] | None = None
    token_shape: tuple[int, ...] = ()

    def apply(self, output: torch.Tensor) -> torch.Tensor:
        """Convert a raw output to maps (N, C, h, w)."""
        maps = output.permute(0, *(dim + 1 for dim in self.order))
        if len(self.order) == 3 and self.tokens is None:
            return maps
        if self.tokens is not None:
            maps = maps.flatten(2)[:, :, list(self.tokens)]
        return maps.reshape(len(output), *self.map_shape)

    def index(self, position: tuple[int, int] | None, channel: int | None) -> list[int | None]:
        """Index of a unit in each dimension of the output, without the batch; None for all.

        Parameters
        ----------
        position : (int, int) or None
            Row and column in the maps; larger ones stand for the last one.
        channel : int or None
        """
        index: list[int | None] = [None] * len(self.order)
        index[self.order[0]] = channel
        if position is not None and len(index) > 1:
            _, h, w = self.map_shape
            row, col = min(position[0], h - 1), min(position[1], w - 1)
            places: Sequence[int] = (row, col) if len(index) == 3 else (row * w + col,)
            if self.tokens is not None:
                places = [int(place) for place in np.unravel_index(self.tokens[row * w + col], self.token_shape)]
            for dim, place in zip(self.order[1:], places, strict=True):
                index[dim] = place
        return index


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
        """Height and width in input pixels, not clipped at the borders; or ``"whole image"`` or ``"nothing"``.

        That of the layer: the union of its channels, which differ after concatenated branches; see `box`.
        """
        field = self.field
        if field is None:
            return "nothing"
        if field.rows.grid and field.cols.grid:
            return int(field.rows.grid[0]), int(field.cols.grid[0])
        sizes = [int((axis.high - axis.low)[axis.high >= 0].max(initial=-1)) + 1 for axis in (field.rows, field.cols)]
        return "whole image" if sizes == [field.height, field.width] else (sizes[0], sizes[1])

    @property
    def receptive_field_text(self) -> str:
        """The receptive field as text: "11x11 pixels", "at most 5x5 pixels" (if channels differ), "the whole image"."""
        size = self.receptive_field
        text = size.replace("whole", "the whole") if isinstance(size, str) else f"{size[0]}x{size[1]} pixels"
        return f"at most {text}" if self._field_is_bound else text

    @property
    def _field_is_bound(self) -> bool:
        """Whether some units may have a smaller receptive field than the layer."""
        return self.field is not None and not (self.field.exact and self.field.uniform)

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

    def box(self, position: tuple[int, int] | None = None, channel: int | None = None) -> tuple[int, int, int, int]:
        """Receptive field in input pixels: (top, left, bottom, right), bottom and right excluded, clipped to the image.

        All zero if there is nothing but padding, or no pixel, in it. It is an upper bound if ``field.exact`` is false.

        Parameters
        ----------
        position : (int, int), optional
            Row and column in the activation maps; larger ones stand for the last one. Without it, the union of all
            positions.
        channel : int, optional
            Index of the channel. Without it, the union of all channels: those of concatenated branches differ.

        Raises
        ------
        ValueError
            There is no such channel.
        """
        if channel is not None and not 0 <= channel < self.channels:
            raise ValueError(f"{self.name} has channels 0 to {self.channels - 1}, not {channel}")
        if self.field is None:
            return (0, 0, 0, 0)
        if self.layout is None:
            return self.field.box()
        return self.field.box((None, *self.layout.index(position, channel)))

    def box_text(self, position: tuple[int, int], channel: int) -> str:
        """The receptive field of a unit in words: ``rows 26 to 34, columns 54 to 62``.

        Parameters
        ----------
        position : (int, int)
        channel : int
            See `box`.
        """
        top, left, bottom, right = self.box(position, channel)
        if top >= bottom or left >= right:
            return "only padding" if self.field is not None else "no pixel of the image"
        bound = "" if self.field is None or self.field.exact else "at most "
        return f"{bound}rows {top} to {bottom - 1}, columns {left} to {right - 1}"

    def edges(self, channel: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Top and bottom (h, 2) of the receptive fields of all rows, and left and right (w, 2) of those of all columns.

        Parameters
        ----------
        channel : int, optional
            Index of the channel, see `box`.

        Raises
        ------
        ValueError
            The layer has no activation maps.
        """
        if self.map_shape is None:
            raise ValueError(f"{self.name} has no activation maps; choose another layer")
        _, h, w = self.map_shape
        rows = [self.box((row, w // 2), channel)[::2] for row in range(h)]
        return np.array(rows), np.array([self.box((h // 2, column), channel)[1::2] for column in range(w)])


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
                    one_line(layer.name),
                    one_line(layer.kind),
                    "x".join(map(str, layer.shape)),
                    ("at most " if layer._field_is_bound else "")
                    + (size if isinstance(size, str) else "x".join(map(str, size))),
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
    if len(shape) == 1:
        return Layout((shape[0], 1, 1), (0,))
    tags = ["" if field is None else field.tag(d + 1) for d in range(len(shape))]
    rows, cols = ([d for d, tag in enumerate(tags) if tag == axis] for axis in "rc")
    if len(shape) == 3 and len(rows) == len(cols) == 1:
        order = (*({0, 1, 2} - {*rows, *cols}), *rows, *cols)
        return Layout((shape[order[0]], shape[order[1]], shape[order[2]]), order)
    for tokens in (0, 1) if len(shape) == 2 else ():  # (T, D) or (D, T)
        factors = [] if field is None else [factor for factor in field.dims[tokens + 1] if factor[0] != 1]
        if [tag for _, tag in factors] == ["r", "c"]:
            return Layout((shape[1 - tokens], factors[0][0], factors[1][0]), (1 - tokens, tokens))
    if len(shape) in (2, 3, 4) and sum(size > 1 for size in shape) > 1 and value in positions():
        grid = grid_of(*(axis[0] for axis in positions()[value])) if value.shape[0] == 1 else None
        if grid is None:
            return None
        order, (h, w), indices = grid
        token_shape = tuple(shape[d] for d in order[1:])
        in_order = token_shape == (h, w) and bool((np.diff(indices) == 1).all())
        if len(shape) > 2 and order[0] == 0 and not in_order:  # attention of each head to each token
            return None
        return Layout((shape[order[0]], h, w), order, None if in_order else tuple(indices.tolist()), token_shape)
    return Layout((shape[0], shape[1], shape[2]), (0, 1, 2)) if len(shape) == 3 else None
