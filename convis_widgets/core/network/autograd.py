"""Hooks on the autograd graph: backward rules for rectifiers, gradients with respect to logits, redirected gradients."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch

RULES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    # functions of the gradients with respect to the input and the output of a ReLU
    "guided": lambda grad_input, grad_output: grad_input.clamp(min=0),  # Springenberg et al., 2014, arXiv:1412.6806, eq. 3
    "deconvnet": lambda grad_input, grad_output: grad_output.clamp(min=0),  # Zeiler and Fergus, 2013, arXiv:1311.2901, 2.1
}
"""Backward rules of rectifiers by name."""

Node = torch.autograd.graph.Node


def apply_rule(root: Node | None, rule: str) -> None:
    """Apply a rule to the rectifiers, and bypass response normalization, in the next backward pass from `root`.

    Parameters
    ----------
    root : Node or None
        ``grad_fn`` of the output.
    rule : str
        A key of `RULES`.
    """
    function = RULES[rule]
    for node in graph_nodes(root):
        name = node.name()
        if name.startswith(("ReluBackward", "HardtanhBackward", "ClampBackward", "ClampMinBackward")):
            node.register_hook(lambda inputs, outputs: (function(inputs[0], outputs[0]), *inputs[1:]))
        elif name.startswith("DivBackward") and _divides_by_power(node):
            node.register_hook(lambda inputs, outputs: (outputs[0], torch.zeros_like(inputs[1]), *inputs[2:]))


def _divides_by_power(node: Node) -> bool:
    divisor = node.next_functions[1][0] if len(node.next_functions) > 1 else None
    return divisor is not None and divisor.name().startswith("PowBackward")


def bypass_output_activation(root: Node | None) -> None:
    """Bypass the softmax or sigmoid at the end in the next backward pass, so that gradients are those of the logits."""
    for node in graph_nodes(root):
        if "SoftmaxBackward" in node.name() or "SigmoidBackward" in node.name():
            node.register_hook(lambda inputs, outputs: outputs[:1])
            return


def redirect_gradient(root: Node | None, count: int, *, at_center: bool = False) -> None:
    """Let the next backward pass through a rectifier that would block all of it, where it moves the input to the open side.

    So a unit that is not active anywhere in an image has a gradient. Clipped ranges such as that of ReLU6 are rectifiers.

    Parameters
    ----------
    root : Node or None
        ``grad_fn`` of the output.
    count : int
        Number of images of the batch; each one is treated by itself.
    at_center : bool
        Let it pass at one position of an activation map (N, C, h, w) only, the one nearest the center. A channel opens much
        sooner then: positions that are moved all at once work against each other.

    References
    ----------
    The redirected ReLU of C. Olah, A. Mordvintsev, L. Schubert, "Feature visualization", 2017, https://github.com/tensorflow/lucid.
    """
    for node in graph_nodes(root):
        if node.name().startswith(_RECTIFIERS):
            node.register_hook(functools.partial(_redirect, _above_range(node), count, at_center))


_RECTIFIERS = (
    "ReluBackward",
    "ThresholdBackward",
    "HardtanhBackward",
    "ClampBackward",
    "HardswishBackward",
    "HardsigmoidBackward",
)


def _above_range(node: Any) -> torch.Tensor | None:
    """Where the input of a rectifier is nearer to its upper limit than to the lower one; None if it has no upper limit."""
    name = node.name()
    if name.startswith("HardtanhBackward"):
        low, high = node._saved_min_val, node._saved_max_val
    elif name.startswith("ClampBackward"):
        low, high = node._saved_min, node._saved_max
    elif name.startswith("HardsigmoidBackward"):
        low, high = -3, 3
    else:
        return None
    if high is None:
        return None
    return node._saved_self > (high if low is None else (low + high) / 2)


def _redirect(above: torch.Tensor | None, count: int, at_center: bool, inputs: Any, outputs: Any) -> Any:
    """Gradients of a rectifier's inputs, see `redirect_gradient`."""
    if inputs[0] is None:
        return None
    up = outputs[0].clamp(min=0)
    open_side = up if above is None else torch.where(above, outputs[0].clamp(max=0), up)
    by_image = (count, -1) if len(inputs[0]) == count else (1, -1)
    if at_center and len(inputs[0]) == count and inputs[0].ndim == 4:
        open_side = _nearest_center(open_side)
    blocked = ~inputs[0].reshape(by_image).any(1, keepdim=True)
    redirected = torch.where(blocked, open_side.reshape(by_image), inputs[0].reshape(by_image))
    return redirected.view_as(inputs[0]), *inputs[1:]


def _nearest_center(gradient: torch.Tensor) -> torch.Tensor:
    """A gradient (N, C, h, w) at the position of each image nearest the center where it is not zero; zero at all others."""
    rows, columns = (torch.arange(size, device=gradient.device) - size // 2 for size in gradient.shape[2:])
    distance = (rows[:, None].square() + columns.square()).to(torch.float32)
    nearest = torch.where(gradient.any(1), distance, torch.inf).flatten(1).argmin(1, keepdim=True)
    keep = torch.zeros_like(gradient[:, 0], dtype=torch.bool).flatten(1).scatter_(1, nearest, True)
    return torch.where(keep.view_as(gradient[:, :1]), gradient, 0)


def graph_nodes(root: Node | None) -> Iterator[Node]:
    """The nodes of an autograd graph, from the output to the inputs."""
    queue: list[Any] = [root]
    queued = {root}
    for node in queue:
        if node is None:
            continue
        yield node
        for next_node, _ in node.next_functions:
            if next_node not in queued:
                queued.add(next_node)
                queue.append(next_node)
