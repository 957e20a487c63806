"""Rules of receptive fields: the Fields of an operator's outputs, from those of its inputs.

A rule takes the operator, the Fields of its inputs, all Fields, and the shapes of the outputs. If it raises, or its result
does not fit the shapes, `compute.receptive_fields` uses an upper bound.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..graph import Op, Value
from . import rearrange, windows
from .axis import join
from .field import Factor, Field, NotSupported, Rule

# operators whose output depends only on the shape of their input
SHAPE_ONLY = {
    "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "new_empty", "new_zeros", "new_ones",
    "new_full", "new_empty_strided",
}  # fmt: skip


def propagate(op: Op, inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> list[Field]:
    """The Fields of an operator's outputs. Raises an exception if there is no exact rule.

    Parameters
    ----------
    op : Op
    inputs : list of Field
        Fields of the arguments that depend on the image.
    fields : dict of Value to Field
        All Fields so far.
    shapes : list of tuple
        Shapes of the outputs.
    """
    if op.pointwise:
        return [_pointwise(inputs, shapes[0])] * len(shapes)
    rule = _RULES[op.name]
    if op.name not in ("cat", "stack", "addmm") and (len(inputs) > 1 or op.args[0] not in fields):
        raise NotSupported  # another argument than the first depends on the image
    result = rule(op, inputs, fields, shapes)
    return result if isinstance(result, list) else [result] * len(shapes)


def values_in(tree: Any) -> list[Value]:
    """All Values in the arguments of an operator."""
    if isinstance(tree, Value):
        return [tree]
    found: list[Value] = []
    for part in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, (tuple, list)) else ():
        if isinstance(part, Value):
            found.append(part)
        elif isinstance(part, (tuple, list, dict)):
            found += values_in(part)
    return found


def _pointwise(inputs: list[Field], shape: tuple[int, ...]) -> Field:
    """Broadcast from the right, then take the union of the operands' fields, unit by unit."""
    if all(field is inputs[0] for field in inputs) and inputs[0].shape == shape:
        return inputs[0]
    dims, groups = rearrange.broadcast(inputs, shape)
    regions, numbers, exact = inputs[0].regions, groups[0], all(field.exact for field in inputs)
    for other, other_numbers in zip(inputs[1:], groups[1:], strict=True):
        codes = numbers * len(other.regions) + other_numbers
        pairs, inverse = np.unique(codes, return_inverse=True)
        joined = [join((regions[pair // len(other.regions)], other.regions[pair % len(other.regions)])) for pair in pairs]
        regions, numbers = tuple(region for region, _ in joined), inverse.reshape(codes.shape)
        exact = exact and all(is_exact for _, is_exact in joined)
    return replace(inputs[0], regions=regions, groups=numbers, dims=dims, exact=exact).simplified()


def _glu(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """One half of a dimension is multiplied by the sigmoid of the other."""
    dim = op.args[1] if len(op.args) > 1 else -1
    half = np.arange(shapes[0][dim])
    return inputs[0].gather(dim, np.stack([half, half + len(half)], 1))


def _reduce(op: Op, inputs: list[Field], _fields: Any, shapes: list[tuple[int, ...]]) -> Field:
    """mean, sum, amax over some dimensions."""
    field, count = inputs[0], len(inputs[0].dims)
    position = 2 if op.name == "linalg_vector_norm" else 1
    dims_arg = op.args[position] if len(op.args) > position else None
    if dims_arg is None or dims_arg == []:
        dims_arg = range(count)
    if not isinstance(dims_arg, (list, tuple, range)):
        dims_arg = [dims_arg]
    factors: tuple[Factor, ...] = ((1, ""),) if len(shapes[0]) == count else ()
    for dim in sorted({d % count for d in dims_arg}, reverse=True):
        field = field.contract(dim, ((1, ""),)).with_dim(dim, factors)
    return field


def _mixing(dims_of: Callable[[Op, Field], Sequence[int]]) -> Callable[..., Field]:
    """Rule of softmax, layer norm and the like: every index of some dimensions depends on all of them; same shape."""

    def rule(op: Op, inputs: list[Field], _fields: Any, _shapes: Any) -> Field:
        field = inputs[0]
        for dim in dims_of(op, field):
            field = field.contract(dim)
        return field

    return rule


def _normalization_dims(op: Op, field: Field) -> list[int]:
    # statistics of the image (instance norm)
    return list(range(2, len(field.dims))) if len(op.args) > 5 and op.args[5] is True else []


def _group_norm(op: Op, inputs: list[Field], _fields: Any, _shapes: Any) -> Field:
    field, groups = inputs[0], op.args[6]
    for dim in range(2, len(field.dims)):
        field = field.contract(dim)
    if groups == 1:
        return field.contract(1)
    return windows.mix_channels(field, field.dim_size(1), groups)


def _matrix(op: Op, inputs: list[Field], fields: dict[Value, Field], shapes: list[tuple[int, ...]]) -> Field:
    """Product x @ w with constant w: the last dimension of x is contracted."""
    x = op.args[1] if op.name == "addmm" else op.args[0]
    if len(inputs) != 1 or not isinstance(x, Value) or x not in fields:
        raise NotSupported
    return fields[x].contract(-1, ((shapes[0][-1], ""),))


_RULES: dict[str, Rule] = {
    **windows.RULES,
    **rearrange.RULES,
    **dict.fromkeys(["mean", "sum", "amax", "amin", "max", "var", "std", "linalg_vector_norm"], _reduce),
    **dict.fromkeys(["native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"], _mixing(_normalization_dims)),
    "_native_batch_norm_legit_no_training": _mixing(lambda op, field: []),
    "native_layer_norm": _mixing(lambda op, f: range(len(f.dims) - len(op.args[1]), len(f.dims))),
    "native_group_norm": _group_norm,
    **dict.fromkeys(["_softmax", "_log_softmax"], _mixing(lambda op, f: [op.args[1]])),
    **dict.fromkeys(["addmm", "mm", "matmul"], _matrix),
    "glu": _glu,
}
