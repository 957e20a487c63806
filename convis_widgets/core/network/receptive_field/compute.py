"""Exact receptive fields, propagated through a recorded forward pass.

A field is the bounding box of the pixels that *can* change a unit; the gradient shows which ones do for a given image. After
an operator without a rule (see `rules`), or if the image passes through Python numbers, it is an upper bound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..graph import Graph, Op, Value
from .field import Axis, Field
from .rules import SHAPE_ONLY, propagate, values_in


def receptive_fields(graph: Graph) -> dict[Value, Field]:
    """The receptive fields of all Values in a recorded forward pass that depend on the input."""
    shape = graph.input.shape

    def input_axis(n: int) -> Axis:
        return Axis(np.arange(n), np.arange(n), (1, 1, 0))

    dims = tuple(((size, tag),) for size, tag in zip(shape, ("", "", "r", "c"), strict=True))
    image = Field(input_axis(shape[2]), input_axis(shape[3]), dims, height=shape[2], width=shape[3])
    fields = {graph.input: image}
    used = {graph.output, *(value for op in graph.ops for value in values_in((op.args, op.kwargs)))}
    read_by_python = False  # whether a Python number was computed from the image
    has_unused_result = False  # whether a result that depends on the image is used by no operator
    for op in graph.ops:
        inputs = [] if op.name in SHAPE_ONLY else [fields[v] for v in values_in((op.args, op.kwargs)) if v in fields]
        read_by_python = read_by_python or bool(inputs and op.outputs and not any(op.outputs))
        results: Sequence[Field | None]
        # a tensor created by Python may depend on the image
        if read_by_python or (has_unused_result and not inputs and op.name == "lift_fresh"):
            results = [image.collapsed(shape, exact=False) for shape in _shapes(op)]
        else:
            results = _apply(op, inputs, fields) if inputs else [None] * len(op.outputs)
        fields |= {v: f for v, f in zip(op.outputs, results, strict=True) if v is not None and f is not None}
        has_unused_result = has_unused_result or (bool(inputs) and used.isdisjoint(op.outputs))
    if graph.output not in fields:  # the path from the image to the output was not recorded
        for value in (value for op in graph.ops for value in op.outputs if value is not None):
            fields.setdefault(value, image.collapsed(value.shape, exact=False))
    return fields


def _shapes(op: Op) -> list[tuple[int, ...]]:
    return [value.shape if value is not None else () for value in op.outputs]


def _apply(op: Op, inputs: list[Field], fields: dict[Value, Field]) -> list[Field]:
    shapes = _shapes(op)
    try:
        results = propagate(op, inputs, fields, shapes)
    except Exception:  # noqa: BLE001 (an operator that its rule does not cover must not fail)
        return [_upper_bound(inputs, shape) for shape in shapes]
    pairs = zip(results, shapes, strict=True)
    return [field if _is_consistent(field, shape) else _upper_bound(inputs, shape) for field, shape in pairs]


def _is_consistent(field: Field, shape: tuple[int, ...]) -> bool:
    """Whether the dimensions have this shape, and each axis with more than one index occurs in them once."""
    factors = [factor for dim in field.dims for factor in dim]
    sizes = {axis: [size for size, tag in factors if tag == axis] for axis in "rc"}
    once = all(sizes[axis] == [len(field.axis(axis))] or (not sizes[axis] and len(field.axis(axis)) == 1) for axis in "rc")
    return once and tuple(field.dim_size(dim) for dim in range(len(field.dims))) == shape


def _upper_bound(inputs: list[Field], shape: tuple[int, ...]) -> Field:
    """The Field of an output whose units depend on everything that the inputs depend on."""
    joined = inputs[0]
    for other in inputs[1:]:
        rows, cols = joined.rows.all().union(other.rows.all()), joined.cols.all().union(other.cols.all())
        joined = replace(joined, rows=rows, cols=cols)
    return joined.collapsed(shape, exact=False)
