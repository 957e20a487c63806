"""Hooks on the autograd graph: backward rules for rectifiers, and gradients with respect to logits."""

from __future__ import annotations

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
