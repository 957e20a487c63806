"""Backward rules: what guided backpropagation and the deconvnet do otherwise than the gradient, at every rectifier.

The forward pass is untouched. Its autograd graph is then walked, and every ReLU found there, be it a module, in place,
reused or functional, gets a hook. From the recorded graph is known beforehand what lies between a unit and the pixels;
where a rule would be undefined (a gate, a smooth or leaky nonlinearity) it is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch

from .graph import Op, Value

if TYPE_CHECKING:
    from .network import Network
    from .selectors import Unit

RULES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    # from the gradient that a ReLU's backward pass put out and the one it was given
    "guided": lambda out, given: out.clamp(min=0),  # Springenberg et al., 2014, arXiv:1412.6806, eq. 3
    "deconvnet": lambda out, given: given.clamp(min=0),  # Zeiler and Fergus, 2013, arXiv:1311.2901, section 2.1
}

Node = torch.autograd.graph.Node

_RECTIFIERS = {"relu", "relu_"}
_CLIPPED = {"hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_min_"}  # rectifiers if they begin at 0
_PASSED = {
    "convolution", "_convolution", "addmm", "add", "add_", "sub", "sub_", "rsub", "neg", "cat",
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "clone", "alias",
    "detach", "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "stack", "flip", "roll", "mean", "sum",
    "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training",
    "native_dropout", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "upsample_nearest2d",
    "upsample_bilinear2d", "pixel_shuffle", "channel_shuffle", "native_channel_shuffle", "_to_copy",
}  # fmt: skip
_SCALED = {"mul", "mul_", "div", "div_", "mm", "bmm", "matmul"}  # passed when one factor is a constant
_LAST = {"_softmax", "_log_softmax", "sigmoid", "sigmoid_"}  # the one at the end is never differentiated


def refuse_unless_rectified(net: Network, of: Unit, rule: str) -> None:
    """ValueError unless all between a unit and the pixels is linear, a maximum, a ReLU, or response normalization."""
    ops: dict[Value, Op | None] = {net.graph.input: None}  # what depends on the picture
    for op in net.graph.ops:
        if any(value in ops for value in _inputs(op, {})):
            ops.update((value, op) for value in op.outputs if value is not None)
    start = net.graph.output if not of.layer else net.layers[of.layer].value
    at_the_end = not of.layer and net.final != "scores"
    queue, seen = [start], {start}
    while queue:
        value = queue.pop()
        op = ops.get(value)
        if op is None:
            continue
        if at_the_end and op.name in _LAST:
            at_the_end = False
        elif not _is_passed(op, ops):
            where = (
                f"{op.layer} ({type(net.module.get_submodule(op.layer.split('@')[0])).__name__})" if op.layer else op.name
            )
            raise ValueError(
                f"the {rule} rule is defined for ReLU only, and {where} computes {op.name.rstrip('_')} between the unit "
                "and the pixels; use saliency, integrated_gradients or occlusion instead"
            )
        for before in _inputs(op, ops):
            if before not in seen:
                seen.add(before)
                queue.append(before)


def _is_passed(op: Op, ops: dict[Value, Op | None]) -> bool:
    if op.name in ("native_batch_norm", "cudnn_batch_norm"):
        return not op.args[5]  # with the statistics of the picture it is not linear
    if op.name in _PASSED or op.name in _RECTIFIERS:
        return True
    if op.name in _CLIPPED:
        low = op.args[1] if len(op.args) > 1 else op.kwargs.get("min", -1)
        return low == 0
    if op.name in _SCALED:
        return not all(arg in ops for arg in op.args[:2]) or _is_response_normalization(op, ops)
    return False


def _is_response_normalization(op: Op, ops: dict[Value, Op | None]) -> bool:
    """Whether it is ``x / (k + alpha * mean of x ** 2) ** beta``."""
    if op.name not in ("div", "div_") or not isinstance(op.args[1], Value):
        return False
    power = ops.get(op.args[1])
    return power is not None and power.name in ("pow", "pow_")


def _inputs(op: Op, ops: dict[Value, Op | None]) -> Iterator[Value]:
    args = op.args[:1] if _is_response_normalization(op, ops) else (op.args, op.kwargs)
    stack = [args]
    while stack:
        part = stack.pop()
        if isinstance(part, Value):
            yield part
        elif isinstance(part, dict):
            stack.extend(part.values())
        elif isinstance(part, (tuple, list)):
            stack.extend(part)


def apply_rule(root: Node | None, rule: str) -> None:
    """Let the next backward pass from `root` treat rectifiers by a rule and pass response normalization by."""
    change = RULES[rule]
    for node in nodes(root):
        kind = node.name()
        if kind.startswith(("ReluBackward", "HardtanhBackward", "ClampBackward", "ClampMinBackward")):
            node.register_hook(lambda out, given: (change(out[0], given[0]), *out[1:]))
        elif kind.startswith("DivBackward") and _divides_by_a_power(node):
            node.register_hook(lambda out, given: (given[0], torch.zeros_like(out[1]), *out[2:]))


def _divides_by_a_power(node: Node) -> bool:
    divisor = node.next_functions[1][0] if len(node.next_functions) > 1 else None
    return divisor is not None and divisor.name().startswith("PowBackward")


def pass_the_end(root: Node | None) -> None:
    """Let the next backward pass go through the softmax or sigmoid at the end unchanged: from there, of the scores."""
    for node in nodes(root):
        if "SoftmaxBackward" in node.name() or "SigmoidBackward" in node.name():
            node.register_hook(lambda out, given: given[:1])
            return


def nodes(root: Node | None) -> Iterator[Node]:
    """The nodes of an autograd graph, nearest to the output first."""
    queue: list[Any] = [root]
    seen = {root}
    for node in queue:
        if node is None:
            continue
        yield node
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                queue.append(following)
