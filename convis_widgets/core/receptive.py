"""Receptive fields, exactly: which pixels can reach a unit, followed through a recorded forward pass.

A field is the bounding box of the pixels that *can* matter; which ones do for a given picture is what the gradient
tells. Where an operator cannot be followed (see `receptive_rules`), and where the picture leaves torch for Python and
comes back, the field is all that could be seen, and says that it is only an upper bound.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from .field import Axis, Field
from .graph import Graph, Op, Value
from .receptive_rules import SHAPE_ONLY, follow, values_in


def fields_of(graph: Graph) -> dict[Value, Field]:
    """The receptive fields of every Value of a recorded forward pass that depends on the input."""
    shape = graph.input.shape

    def start(n: int) -> Axis:
        return Axis(np.arange(n), np.arange(n), (1, 1, 0))

    dims = tuple(((size, tag),) for size, tag in zip(shape, ("", "", "r", "c"), strict=True))
    everything = Field(start(shape[2]), start(shape[3]), dims, height=shape[2], width=shape[3])
    fields = {graph.input: everything}
    read = {graph.output, *(value for op in graph.ops for value in values_in((op.args, op.kwargs)))}
    numbers = ends = False  # whether Python has read numbers of the picture; whether a result was used by no operator
    for op in graph.ops:
        inputs = [] if op.name in SHAPE_ONLY else [fields[v] for v in values_in((op.args, op.kwargs)) if v in fields]
        numbers = numbers or bool(inputs and op.outputs and not any(op.outputs))
        if numbers or (ends and not inputs and op.name == "lift_fresh"):  # from outside, and perhaps from the picture
            results = [everything.collapsed(shape, exact=False) for shape in _shapes(op)]
        else:
            results = _apply(op, inputs, fields) if inputs else [None] * len(op.outputs)
        fields |= {v: f for v, f in zip(op.outputs, results, strict=True) if v is not None and f is not None}
        ends = ends or (bool(inputs) and read.isdisjoint(op.outputs))
    if graph.output not in fields:  # the picture went where it cannot be followed, and came back
        for value in (value for op in graph.ops for value in op.outputs if value is not None):
            fields.setdefault(value, everything.collapsed(value.shape, exact=False))
    return fields


def _shapes(op: Op) -> list[tuple[int, ...]]:
    return [value.shape if value is not None else () for value in op.outputs]


def _apply(op: Op, inputs: list[Field], fields: dict[Value, Field]) -> list[Field]:
    shapes = _shapes(op)
    try:
        results = follow(op, inputs, fields, shapes)
    except Exception:  # noqa: BLE001 (a form of the operator that its rule was not written for is no reason to fail)
        results = [None] * len(shapes)
    return [f if f and _sound(f, shape) else _bound(inputs, shape) for f, shape in zip(results, shapes, strict=True)]


def _sound(field: Field, shape: tuple[int, ...]) -> bool:
    """Whether the dimensions are those of the shape, and each axis runs along one place in them unless it has one index."""
    factors = [factor for dim in field.dims for factor in dim]
    sizes = {which: [size for size, tag in factors if tag == which] for which in "rc"}
    along = all(sizes[w] == [len(field.axis(w))] or (not sizes[w] and len(field.axis(w)) == 1) for w in "rc")
    return along and tuple(math.prod(size for size, _ in dim) for dim in field.dims) == shape


def _bound(inputs: list[Field], shape: tuple[int, ...]) -> Field:
    """Every unit sees at most all that any unit of any input saw."""
    joined = inputs[0]
    for other in inputs[1:]:
        rows, cols = joined.rows.all().union(other.rows.all()), joined.cols.all().union(other.cols.all())
        joined = replace(joined, rows=rows, cols=cols)
    return joined.collapsed(shape, exact=False)
