"""Output: which tensor of a module's output has the answer for an image, and what its numbers are."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch

from ..errors import did_you_mean, format_shape

OUTPUT_KINDS = (
    "logits",
    "probabilities",
    "log-probabilities",
    "independent logits",
    "independent probabilities",
    "values",
)
"""What the numbers of a network can be. They sum to 1 for "probabilities"; "independent" ones, of a multi-label or binary
network, do not. "values" are not converted to probabilities, as for regression."""

OutputSelector: TypeAlias = int | str | Hashable | Callable[[Any], torch.Tensor]
"""An index into a tuple, a key or attribute, or a function of the module's output that returns a tensor."""

_USUAL_KEYS = ("logits", "out")  # of Hugging Face models, and of torchvision's segmentation models


@dataclass(frozen=True)
class Output:
    """The answer for an image in the output of a module: one number per class.

    Attributes
    ----------
    kind : str
        One of `OUTPUT_KINDS`.
    shape : tuple of int
        Shape for one image: (classes,), or (classes, h, w) for a map of each class, of which the mean is taken.
    select : callable
        Returns the tensor in the module's output.
    channels_last : bool
        Whether maps are (h, w, classes).
    inferred : bool
        Whether the kind was inferred, not stated.
    """

    kind: str
    shape: tuple[int, ...]
    select: Callable[[Any], torch.Tensor]
    channels_last: bool = False
    inferred: bool = field(default=False, compare=False)

    def __str__(self) -> str:
        """Such as "10 logits" or "1 value"."""
        kind = self.kind if self.classes > 1 else self.kind.replace("probabilities", "probability").removesuffix("s")
        return f"{self.classes} {kind}"

    @property
    def classes(self) -> int:
        """Number of classes, or of values."""
        return self.shape[-1 if self.channels_last else 0]

    @property
    def guesses(self) -> dict[str, str]:
        """The kind, by the argument of `Network` that states it, if it was inferred from numbers of any size."""
        return {"output_kind": self.kind} if self.inferred and self.kind in ("logits", "values") else {}

    @property
    def has_probabilities(self) -> bool:
        """Whether there are class probabilities; False for "values"."""
        return self.kind != "values"

    def scores(self, output: Any, count: int) -> torch.Tensor:
        """The scores in the output of a module, (count, classes).

        Parameters
        ----------
        output : object
            Output of the module.
        count : int
            Number of images.
        """
        tensor = self.select(output)
        if tensor.shape == (count, self.classes):
            return tensor
        if self.channels_last:
            return tensor.reshape(count, -1, self.classes).mean(1)
        return tensor.reshape(count, self.classes, -1).mean(2)

    def predictions(self, scores: torch.Tensor) -> torch.Tensor:
        """Convert scores (N, classes) to probabilities; "values" are returned unchanged."""
        if self.kind == "logits":
            return scores.softmax(1)
        if self.kind == "log-probabilities":
            return scores.exp()
        return scores.sigmoid() if self.kind == "independent logits" else scores

    def log_probabilities(self, scores: torch.Tensor) -> torch.Tensor:
        """Convert scores (N, classes) to log probabilities; ValueError for "values"."""
        if self.kind == "values":
            raise ValueError("the network returns values, not class probabilities; use the value itself")
        if self.kind == "logits":
            return scores.log_softmax(1)
        if self.kind == "log-probabilities":
            return scores
        if self.kind == "independent logits":
            return torch.nn.functional.logsigmoid(scores)
        return scores.clamp(min=1e-30).log()

    def default_class(self, scores: torch.Tensor | np.ndarray) -> int:
        """The class with the highest of scores (classes,); the first one for "values", which cannot be compared."""
        return int(scores.argmax()) if self.has_probabilities else 0

    def top(self, predictions: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The `k` most probable classes of predictions (N, classes), in descending order; for "values" the first `k`.

        Parameters
        ----------
        predictions : (N, classes) tensor
            See `predictions`.
        k : int
            At most the number of classes is returned.

        Returns
        -------
        values, indices : (N, k) tensors
        """
        k = min(k, self.classes)
        if self.has_probabilities:
            values, indices = predictions.sort(dim=1, descending=True, stable=True)
            return values[:, :k], indices[:, :k]
        return predictions[:, :k], torch.arange(k, device=predictions.device).expand(len(predictions), k)

    def format(self, prediction: float) -> str:
        """A prediction as text: "93.1%", or "60.4" for a value."""
        return f"{prediction:.1%}" if self.has_probabilities else f"{prediction:.4g}"

    def describe(self, label: str, prediction: float) -> str:
        """A label and its prediction as text: "cat 93.1%", or "age 60.4" for a value.

        Parameters
        ----------
        label : str
        prediction : float
            A probability in [0, 1], or a value.
        """
        return f"{label} {self.format(prediction)}"

    def symbol(self, label: str) -> str:
        """The name of a prediction in captions: "p(cat)", or "age" for a value."""
        return f"p({label})" if self.has_probabilities else label

    def score_name(self, label: str) -> str:
        """The name of the score of a class in captions: "the score of cat", or "the value of age"."""
        return f"the {'score' if self.has_probabilities else 'value'} of {label}"


def make_selector(output: OutputSelector) -> Callable[[Any], torch.Tensor]:
    """Convert the argument ``output=`` of `Network` to a function of the module's output.

    Raises
    ------
    TypeError
        Not a selector. The function raises TypeError if the module's output does not have the index or key.
    """
    if callable(output):
        return _checked(output)
    if isinstance(output, (bool, float, complex)) or not isinstance(output, Hashable):
        raise TypeError(f"output={output!r} should be a key, an index, or a function of the module's output")

    def select(result: Any) -> torch.Tensor:
        part: Any = None
        if isinstance(result, Mapping):
            part = result.get(output)
        elif isinstance(output, str):
            part = getattr(result, output, None)
        elif isinstance(output, int) and isinstance(result, (tuple, list)) and -len(result) <= output < len(result):
            part = result[output]
        if not isinstance(part, torch.Tensor):
            known = [name for name, _ in tensors_in(result) if name]
            hint = did_you_mean(str(output), known) if known else f"it returns one {type(result).__name__}"
            raise TypeError(f"output={output!r} is not a tensor in the output of the module; {hint}")
        return part

    return select


def find_output(
    name: str, single: Any, pair: Any, selector: OutputSelector | None = None
) -> tuple[Callable[[Any], torch.Tensor], tuple[int, ...]]:
    """Find the tensor with one number per class in the output of a module.

    Parameters
    ----------
    name : str
        Name of the network, for messages.
    single, pair : object
        Output of the module for one image and for two; None for two if it takes one image at a time.
    selector : int, str or callable, optional
        Which tensor it is; by default the only one that can be meant.

    Returns
    -------
    select : callable
        Returns the tensor in an output of the module.
    shape : tuple of int
        Shape for one image.

    Raises
    ------
    TypeError, ValueError
        No tensor has one number per class, or several have and none was selected.
    """
    if selector is not None:
        select = make_selector(selector)
        shape = _image_shape(select(single), None if pair is None else select(pair))
        if shape is None:
            raise _not_scores(name, [("", select(single))])
        return select, shape
    found = tensors_in(single)
    others = dict(tensors_in(pair))
    candidates = {}
    for path, tensor in found:
        shape = _image_shape(tensor, others.get(path))
        if shape is not None:
            candidates[path] = shape
    usual = [path for key in _USUAL_KEYS for path in candidates if path in (f"[{key!r}]", f".{key}")]
    if not candidates:
        raise _not_scores(name, found)
    if len(candidates) > 1 and not usual:
        raise ValueError(f"{name} returns several tensors: {_listing(found)}; choose one with output=, {_OUTPUT_HINT}")
    path = usual[0] if usual else next(iter(candidates))
    return (lambda output: dict(tensors_in(output))[path]), candidates[path]


_OUTPUT_HINT = "a key, an index, or a function such as lambda output: output[0]"


def tensors_in(output: Any, path: str = "", depth: int = 4) -> list[tuple[str, torch.Tensor]]:
    """All tensors in the output of a module, with their paths: "['logits']", "[1]", ".scores".

    Parameters
    ----------
    output : object
        A tensor, or tuples, lists, mappings and objects with tensors.
    path : str
        Path of `output`.
    depth : int
        How deep to look.
    """
    if isinstance(output, torch.Tensor):
        return [(path, output)]
    if depth == 0:
        return []
    return [found for step, part in _parts(output) for found in tensors_in(part, path + step, depth - 1)]


def _parts(output: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(output, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in output.items())
    elif isinstance(output, tuple) and hasattr(output, "_fields"):  # a named tuple
        yield from ((f".{name}", part) for name, part in zip(output._fields, output, strict=True))
    elif isinstance(output, (tuple, list)):
        yield from ((f"[{i}]", part) for i, part in enumerate(output))
    elif hasattr(output, "__dict__"):  # a dataclass, for example
        yield from ((f".{name}", part) for name, part in vars(output).items())


def _image_shape(single: torch.Tensor, pair: torch.Tensor | None) -> tuple[int, ...] | None:
    """Shape of the scores of one image, (K,) or (K, h, w); None if a tensor has no scores of an image."""
    if not single.is_floating_point():
        return None
    squeezed = tuple(size for size in single.shape if size != 1)
    if pair is not None:
        has_batch = pair.ndim > 0 and pair.shape[0] == 2 and tuple(size for size in pair.shape[1:] if size != 1) == squeezed
        shape = tuple(pair.shape[1:])
    else:  # one image at a time
        has_batch = single.ndim < 2 or (single.ndim != 3 and single.shape[0] == 1)
        shape = tuple(single.shape[1:]) if single.ndim > 1 else tuple(single.shape)
    if not has_batch or 0 in shape:
        return None
    if len(squeezed) < 2:
        return squeezed or (1,)
    return shape if len(shape) == 3 else None


def _not_scores(name: str, tensors: list[tuple[str, torch.Tensor]]) -> Exception:
    if not tensors:
        return TypeError(f"{name} does not return a tensor; wrap it in a module that returns class scores (N, classes)")
    advice = "give output=, a function that makes (N, classes) of it, or wrap it in a module that returns class scores"
    if all(not tensor.is_floating_point() for _, tensor in tensors):
        advice = "return the scores from which they are computed, before argmax or a threshold"
    return ValueError(f"{name} does not return scores of an image, (N, classes), but {_listing(tensors)}; {advice}")


def _listing(tensors: list[tuple[str, torch.Tensor]]) -> str:
    texts = [f"{path} {_describe(tensor)}".strip() for path, tensor in tensors[:6]]
    return ", ".join(texts) + (", ..." if len(tensors) > 6 else "")


def _describe(tensor: torch.Tensor) -> str:
    kind = "" if tensor.is_floating_point() else f" of {str(tensor.dtype).removeprefix('torch.')}"
    return f"({format_shape(tensor.shape).replace('x', ', ')}{',' if tensor.ndim == 1 else ''}){kind}"


def _checked(function: Callable[[Any], Any]) -> Callable[[Any], torch.Tensor]:
    def select(result: Any) -> torch.Tensor:
        part = function(result)
        if not isinstance(part, torch.Tensor):
            raise TypeError(f"output= returned {type(part).__name__}; it should return a tensor (N, classes)")
        return part

    return select
