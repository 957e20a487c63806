"""input_gradient: how a unit changes with every pixel. The one function behind all attribution by gradients."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from .network import Network
from .selectors import Unit
from .trace import trace


def input_gradient(net: Network, batch: torch.Tensor, of: Unit) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of a unit with respect to the pixels.

    A class score is taken before softmax, also when the network ends in one: the probability of a class is flat where
    the network is sure, and its gradient says what would raise *other* classes (Simonyan et al., 2013, section 3.1).

    Parameters
    ----------
    net : Network
    batch : (N, C, H, W) tensor in [0, 1]
    of : Unit

    Returns
    -------
    values : (N,) tensor
        The unit's value for each picture; for a class what the network puts out, be it score or probability.
    gradient : (N, C, H, W) tensor
        With respect to the picture in [0, 1].
    """
    with torch.enable_grad():
        pixels = batch.detach().clone().requires_grad_()
        if of.layer:
            with trace(net, [of.layer], stop=True) as acts:
                net(pixels)
            values = of.values(net.as_maps(of.layer, acts[net.layers[of.layer].name]))
        else:
            scores = net(pixels)
            if net.final != "scores":
                _pass_softmax(scores)
            values = of.values(scores)
        if values.grad_fn is None:
            raise ValueError(f"{of.layer or 'the score'} does not depend on the picture by a differentiable path")
        (gradient,) = torch.autograd.grad(values.sum(), pixels)
    return values.detach(), gradient


def _pass_softmax(scores: torch.Tensor) -> None:
    """Let gradients pass the final softmax or sigmoid unchanged, so that they are those of the scores before it."""
    for node in _nodes(scores.grad_fn):
        if "SoftmaxBackward" in node.name() or "SigmoidBackward" in node.name():
            node.register_hook(lambda grad_inputs, grad_outputs: grad_outputs[:1])
            return


def _nodes(root: torch.autograd.graph.Node | None) -> Iterator[torch.autograd.graph.Node]:
    """The nodes of an autograd graph, nearest to the output first."""
    queue, seen = [root], {root}
    while queue:
        node = queue.pop(0)
        if node is None:
            continue
        yield node
        for following, _ in node.next_functions:
            if following not in seen:
                seen.add(following)
                queue.append(following)
