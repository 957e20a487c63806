"""Exact receptive fields, propagated through a recorded forward pass.

A field is the bounding box of the pixels that *can* change a unit; the gradient shows which ones do for a given image. After
an operator without a rule (see `rules`), or if the image passes through Python numbers, it is an upper bound.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..graph import Graph, Op, Value
from .axis import Axis, Region, join
from .field import Field
from .rules import SHAPE_ONLY, propagate, values_in


def receptive_fields(graph: Graph) -> dict[Value, Field]:
    """The receptive fields of all Values in a recorded forward pass that depend on the input."""
    shape = graph.input.shape

    def input_axis(n: int) -> Axis:
        return Axis(np.arange(n), np.arange(n), (1, 1, 0))

    dims = tuple(((size, tag),) for size, tag in zip(shape, ("", "", "r", "c"), strict=True))
    rows = input_axis(shape[2])
    # one object for the rows and columns of a square image: what is computed of an Axis is shared
    region = Region(rows, rows if shape[2] == shape[3] else input_axis(shape[3]))
    image = Field((region,), np.zeros((1,) * len(shape), int), dims, height=shape[2], width=shape[3])
    fields = {graph.input: image}
    reads = [values_in((op.args, op.kwargs)) for op in graph.ops]
    used = {graph.output, *itertools.chain(*reads)}
    read_by_python = False  # whether a Python number was computed from the image
    has_unused_result = False  # whether a result that depends on the image is used by no operator
    for op, read in zip(graph.ops, reads, strict=True):
        inputs = [] if op.name in SHAPE_ONLY else [fields[v] for v in read if v in fields]
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
    return [f if f is inputs[0] or _is_consistent(f, shape) else _upper_bound(inputs, shape) for f, shape in pairs]


def _is_consistent(field: Field, shape: tuple[int, ...]) -> bool:
    """Whether the dimensions have this shape, and each axis with more than one index occurs in them once."""
    factors = [factor for dim in field.dims for factor in dim]
    region = field.regions[0]
    for tag, length in (("r", len(region.rows)), ("c", len(region.cols))):
        sizes = [size for size, factor_tag in factors if factor_tag == tag]
        if sizes != [length] and (sizes or length != 1):
            return False
    return field.shape == shape and len(factors) == field.groups.ndim


def _upper_bound(inputs: list[Field], shape: tuple[int, ...]) -> Field:
    """The Field of an output whose units depend on everything that the inputs depend on."""
    everything = [field.collapsed(shape, exact=False) for field in inputs]
    return replace(everything[0], regions=(join([field.regions[0] for field in everything])[0],))
