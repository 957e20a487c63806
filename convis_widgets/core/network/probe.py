"""probe: a few forward passes when a Network is made, to find out what its output means and how to run it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .graph import Graph, Value, record_graph
from .output import OUTPUT_KINDS, Output, OutputSelector, find_output
from .receptive_field.compute import receptive_fields
from .seed import fixed_seed
from .trial import Trial

_WEIGHTED = {"convolution", "_convolution", "addmm", "mm", "bmm", "baddbmm", "matmul"}
_TOLERANCE = 1e-3  # of a comparison of answers, relative to how much two different images differ
_ROUNDING = 2e-5  # of answers, relative to their magnitude
_LARGE = 30.0  # saturates softmax and sigmoid; the exponential is still finite


@dataclass(frozen=True)
class Probe:
    """What the forward passes of two images have shown.

    Attributes
    ----------
    output : Output
    graph : Graph
    is_random : bool
        Whether the module draws random numbers in evaluation mode.
    one_image_at_a_time : bool
        Whether the answer for an image depends on the others in the batch, or may do so since Python reads values of the
        images, or the module takes one image only.
    note : str
        A sentence about these two for the user; "" if both are false.
    """

    output: Output
    graph: Graph
    is_random: bool
    one_image_at_a_time: bool
    note: str


def run_probe(name: str, trial: Trial, *, selector: OutputSelector | None = None, kind: str | None = None) -> Probe:
    """Run a module on two images, separately and together.

    Parameters
    ----------
    name : str
        Name of the network, for messages.
    trial : Trial
        That has succeeded.
    selector, kind
        ``output=`` and ``output_kind=`` of `Network`.

    Raises
    ------
    TypeError, ValueError
        The output has no scores of an image, see `find_output`; there is no such kind.
    """
    if kind is not None and kind not in OUTPUT_KINDS:
        raise ValueError(f"output_kind={kind!r} is unknown; choose one of {', '.join(OUTPUT_KINDS)}")
    module, images, first = trial.module, trial.batch, trial.output
    with torch.no_grad():
        second = module(images[1:].clone())
        pair = _try(module, images)
    try:
        select, shape = find_output(name, first, pair, selector)
    except ValueError:
        if selector is None and not isinstance(first, torch.Tensor):
            raise
        select, shape = find_output(name, first, None, selector)
        pair = None
    with fixed_seed():
        graph, again = record_graph(module, images[:1].clone(), select)
    output = Output(kind or "values", shape, select, len(shape) == 3 and _has_channels_last(graph))
    scores = torch.cat([output.scores(first, 1), output.scores(second, 1)]).float()
    tolerance = _TOLERANCE * float((scores[0] - scores[1]).abs().max()) + _ROUNDING * float(scores.abs().max())

    def differs(other: torch.Tensor) -> bool:
        return bool(((other.float() - scores[: len(other)]).abs() > tolerance).any())

    is_random = differs(output.scores(again, 1))
    reads = _reads_values(graph)
    one_by_one = pair is None or is_random or reads or differs(output.scores(pair, 2)) or _uses_batch_statistics(module)
    if kind is not None:
        _check_kind(name, kind, scores)
    else:
        saturated = _saturated_scores(module, images, output, graph, one_by_one=pair is None)
        output = replace(output, kind=infer_kind(scores, saturated), inferred=True)
    note = "images are computed one by one, since its answers depend on the other images in a batch" if one_by_one else ""
    if reads:
        note = "images are computed one by one, since the module reads values of the images in Python (if, float, item)"
    if pair is None:
        note = "it takes one image at a time"
    if is_random:
        note = "it draws random numbers in evaluation mode, the same for every image here"
        with torch.no_grad(), fixed_seed():
            twice = module(images[:1].clone())
        if bool(((output.scores(again, 1) - output.scores(twice, 1)).abs() > tolerance).any()):
            note = "its answers for one image differ from pass to pass, and so do all results: it keeps a state"
    return Probe(output, graph, is_random, one_by_one, note)


def _reads_values(graph: Graph) -> bool:
    """Whether Python reads a number that depends on the images, as in ``if x.mean() > 0.5``."""
    reads = (op for op in graph.ops if op.name in ("_local_scalar_dense", "equal"))
    return any(isinstance(leaf, Value) for op in reads for leaf in tree_leaves((op.args, op.kwargs)))


def _has_channels_last(graph: Graph) -> bool:
    """Whether the maps in the output are (N, h, w, classes)."""
    field = receptive_fields(graph).get(graph.output)
    return field is not None and len(field.dims) == 4 and (field.tag(1), field.tag(2)) == ("r", "c")


def _check_kind(name: str, kind: str, scores: torch.Tensor) -> None:
    """Raise ValueError if the scores of two images cannot be what the user has stated."""
    low, high, total = float(scores.min()), float(scores.max()), scores.sum(1)
    is_possible = True
    if kind in ("probabilities", "independent probabilities"):
        is_possible = low >= -1e-3 and high <= 1 + 1e-2
        if kind == "probabilities" and scores.shape[1] > 1:
            is_possible = is_possible and bool(((total - 1).abs() <= 1e-2).all())
    elif kind == "log-probabilities":
        is_possible = high <= 1e-3
    if not is_possible:
        sums = f", which sum to {float(total[0]):.3g}" if kind == "probabilities" else ""
        raise ValueError(
            f"output_kind={kind!r}, but {name} returns numbers from {low:.3g} to {high:.3g}{sums}; leave it out, or state "
            "what they are"
        )


def infer_kind(scores: torch.Tensor, saturated: torch.Tensor | None) -> str:
    """One of `OUTPUT_KINDS`, inferred from numbers only, whatever operators have computed them.

    Parameters
    ----------
    scores : (N, classes) tensor
        Scores of a few images.
    saturated : (M, classes) tensor, optional
        Scores for large positive and negative outputs of the last layer with weights. Logits are large then, too.
    """
    classes = scores.shape[1]
    every = scores if saturated is None else torch.cat([scores, saturated])
    # without saturated scores only those that sum to 1 exactly; some networks add or clamp at a small epsilon
    tolerance = 1e-5 if saturated is None else 1e-3 + 2e-6 * classes
    in_range = bool(((every >= -1e-6) & (every <= 1 + tolerance)).all())
    if classes > 1 and in_range and bool(((every.sum(1) - 1).abs() <= tolerance).all()):
        return "probabilities"
    if classes > 1 and bool((every <= 1e-6).all()) and bool((every.logsumexp(1).abs() <= tolerance).all()):
        return "log-probabilities"
    if saturated is not None:
        return "independent probabilities" if in_range else infer_kind(scores, None)
    return "logits" if classes > 1 else "values"


def _saturated_scores(
    module: nn.Module, images: torch.Tensor, output: Output, graph: Graph, *, one_by_one: bool
) -> torch.Tensor | None:
    """Scores for large outputs of the last layers with weights, and for their negatives; None if this is not possible."""
    layers = _last_weighted_ops(graph)
    rows = []
    # several classes get numbers of both signs from one image
    batches = [images[:1]] if output.classes > 1 else images.split(1) if one_by_one else [images]
    for sign, batch in zip((1, -1), batches, strict=False):
        with torch.no_grad(), _Saturate(layers, sign) as mode:
            result = _try(module, batch)
        if result is None or not mode.replaced:
            return None
        rows.append(output.scores(result, len(batch)).float())
    return torch.cat(rows)


def _last_weighted_ops(graph: Graph) -> set[int]:
    """The last operators with weights on each path to the output, by their position among all operators with weights."""
    producers = {value: op for op in graph.ops for value in op.outputs if value is not None}
    index = {id(op): i for i, op in enumerate(op for op in graph.ops if op.name in _WEIGHTED)}
    stack, visited, found = [graph.output], {graph.output}, set[int]()
    while stack:
        op = producers.get(stack.pop())
        if op is None or id(op) in index:
            found |= {index[id(op)]} if op is not None else set()
            continue
        for value in tree_leaves((op.args, op.kwargs)):
            if isinstance(value, Value) and value not in visited:
                visited.add(value)
                stack.append(value)
    return found


class _Saturate(TorchDispatchMode):
    """Replaces the outputs of some operators by large random numbers: `sign` times these in the first half of a batch, and
    their negatives in the second half.
    """

    def __init__(self, layers: set[int], sign: int) -> None:
        super().__init__()
        self.layers, self.sign, self.replaced, self._count = layers, sign, False, 0
        self._generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.name.removeprefix("aten::") not in _WEIGHTED:
            return result
        self._count += 1
        if self._count - 1 not in self.layers:
            return result
        self.replaced = True
        half = (max(1, len(result) // 2), *result.shape[1:])
        numbers = (torch.rand(half, generator=self._generator, dtype=torch.float32) - 0.5) * 2 * _LARGE * self.sign
        return torch.cat([numbers, -numbers])[: len(result)].to(result)


def _try(module: nn.Module, batch: torch.Tensor) -> Any:
    """The output of a module; None if it fails."""
    try:
        return module(batch.clone())
    except Exception:  # noqa: BLE001 (a module may fail in any way on a batch or on numbers that it does not expect)
        return None


def _uses_batch_statistics(module: nn.Module) -> bool:
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is None for part in module.modules())
