"""check_rule_supported: whether guided backpropagation and the deconvnet are defined for a network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..network.graph import Op, Value

if TYPE_CHECKING:
    from ..network.network import Network
    from ..network.unit import Unit


_RECTIFIERS = {"relu", "relu_"}
_CLAMPS = {"hardtanh", "hardtanh_", "clamp", "clamp_", "clamp_min", "clamp_min_"}  # rectifiers if the lower bound is 0
_LINEAR = {  # or a maximum
    "convolution", "_convolution", "addmm", "add", "add_", "sub", "sub_", "rsub", "neg", "cat",
    "view", "_unsafe_view", "reshape", "permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "clone", "alias",
    "detach", "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "stack", "flip", "roll", "mean", "sum",
    "max_pool2d_with_indices", "max_pool2d", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "adaptive_avg_pool2d",
    "adaptive_max_pool2d", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training",
    "native_dropout", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "upsample_nearest2d",
    "upsample_bilinear2d", "pixel_shuffle", "channel_shuffle", "native_channel_shuffle", "_to_copy",
}  # fmt: skip
_PRODUCTS = {"mul", "mul_", "div", "div_", "mm", "bmm", "matmul"}  # linear if one factor is a constant
_OUTPUT_ACTIVATIONS = {"_softmax", "_log_softmax", "sigmoid", "sigmoid_"}  # bypassed at the output of the network


def check_rule_supported(net: Network, unit: Unit, rule: str) -> None:
    """Raise ValueError unless a backward rule is defined for all operators between a unit and the pixels.

    These are linear operators, maxima, ReLU and response normalization.

    Parameters
    ----------
    net : Network
    unit : Unit
    rule : str
        Name of the rule, for the message.
    """
    producers: dict[Value, Op | None] = {net.graph.input: None}  # of all values that depend on the image
    for op in net.graph.ops:
        if any(value in producers for value in _inputs(op, {})):
            producers.update((value, op) for value in op.outputs if value is not None)
    start = net.graph.output if not unit.layer else net.layers[unit.layer].value
    bypass_output = not unit.layer and net.output_activation != "none"
    queue, visited = [start], {start}
    while queue:
        producer = producers.get(queue.pop())
        if producer is None:
            continue
        if bypass_output and producer.name in _OUTPUT_ACTIVATIONS:
            bypass_output = False
        elif not _is_supported(producer, producers):
            raise ValueError(
                f"the {rule} rule is defined for ReLU only, and {_location(net, producer)} computes "
                f"{producer.name.rstrip('_')} between the unit and the pixels; use saliency, integrated_gradients or "
                "occlusion instead"
            )
        for value in _inputs(producer, producers):
            if value not in visited:
                visited.add(value)
                queue.append(value)


def _location(net: Network, op: Op) -> str:
    """The layer that calls an operator, with its class; the operator if it is not in a layer."""
    return f"{op.layer} ({type(net.module.get_submodule(op.layer.split('@')[0])).__name__})" if op.layer else op.name


def _is_supported(op: Op, producers: dict[Value, Op | None]) -> bool:
    if op.name in ("native_batch_norm", "cudnn_batch_norm"):
        return not op.args[5]  # not linear with the statistics of the image
    if op.name in _LINEAR or op.name in _RECTIFIERS:
        return True
    if op.name in _CLAMPS:
        low = op.args[1] if len(op.args) > 1 else op.kwargs.get("min", -1)
        return low == 0
    if op.name in _PRODUCTS:
        return not all(arg in producers for arg in op.args[:2]) or _is_response_normalization(op, producers)
    return False


def _is_response_normalization(op: Op, producers: dict[Value, Op | None]) -> bool:
    """Whether an operator is the division in ``x / (k + alpha * mean of x ** 2) ** beta``."""
    if op.name not in ("div", "div_") or not isinstance(op.args[1], Value):
        return False
    power = producers.get(op.args[1])
    return power is not None and power.name in ("pow", "pow_")


def _inputs(op: Op, producers: dict[Value, Op | None]) -> Iterator[Value]:
    """The inputs of an operator; without the divisor of response normalization."""
    stack: list[Any] = [op.args[:1] if _is_response_normalization(op, producers) else (op.args, op.kwargs)]
    while stack:
        part = stack.pop()
        if isinstance(part, Value):
            yield part
        elif isinstance(part, dict):
            stack.extend(part.values())
        elif isinstance(part, (tuple, list)):
            stack.extend(part)
