"""Labels: the names of the classes of a network, and the class that a label means."""

from __future__ import annotations

import itertools
import math
import numbers
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, TypeAlias, cast

from ..errors import did_you_mean

LabelsLike: TypeAlias = Iterable[Any] | Mapping[Any, Any]
"""Labels in the order of the scores, or ``{index: label}``, or ``{label: index}``."""


def read_labels(labels: LabelsLike | None, classes: int, *, keyword: str = "labels") -> tuple[str, ...]:
    """Labels of all classes, as strings without surrounding spaces.

    Parameters
    ----------
    labels : iterable of str, or mapping, or None
        In the order of the scores; or by index, ``{0: "cat"}``, also with the text keys of JSON, ``{"0": "cat"}``; or
        indices by label, ``{"cat": 0}``. A pandas Series is read by its index. "class 0", "class 1" and so on if None.
    classes : int
        Number of classes of the network.
    keyword : str
        Name of the argument, for messages.

    Raises
    ------
    TypeError
        A string, a set, which has no order, or something that is not a label.
    ValueError
        There is not exactly one label for each class.
    """
    if labels is None:
        return tuple(f"class {i}" for i in range(classes))
    if isinstance(labels, (str, bytes)) or not (isinstance(labels, Iterable) or hasattr(labels, "items")):
        raise TypeError(f"{keyword}={labels!r} should be a list with one label per class")
    if isinstance(labels, (set, frozenset)):
        raise TypeError(f"{keyword}= is a set, which has no order; give a list with one label per class")
    if hasattr(labels, "items"):
        labels = _in_order_of_indices(list(labels.items()), classes, keyword)
    count = len(labels) if isinstance(labels, Sized) else None
    values = list(itertools.islice(labels, classes + 1))  # of a generator, which may have no end
    if len(values) != classes:
        found = count if count is not None else len(values) if len(values) < classes else f"more than {classes}"
        raise ValueError(f"{found} labels for a network with {classes} classes; give one label per class")
    return tuple(_read_label(value, i) for i, value in enumerate(values))


def find_class(labels: Sequence[str], target: int | str, name: str) -> int:
    """Index of a class, from an index or a label. Case matters only where labels differ in nothing else.

    Parameters
    ----------
    labels : sequence of str
    target : int or str
        Index or label.
    name : str
        Name of the network, for messages.

    Raises
    ------
    ValueError
        There is no such class, or the label is that of several classes.
    """
    if isinstance(target, str):
        indices = match_labels(labels, target)
        if not indices:
            hint = "; without quotes it is the number of a class" if target.strip().isdigit() else ""
            raise ValueError(f"there is no class {target!r} in {name}{hint}; {did_you_mean(target, labels)}")
        if len(indices) > 1:
            listing = ", ".join(f"{i} ({labels[i]})" for i in indices[:8]) + (", ..." if len(indices) > 8 else "")
            raise ValueError(f"{target!r} is the label of several classes of {name}: {listing}; give the index of one")
        return indices[0]
    try:
        index = -1 if isinstance(target, bool) else operator.index(target)
    except TypeError:
        index = -1
    if not 0 <= index < len(labels):
        raise ValueError(f"{name} has classes 0 to {len(labels) - 1}, not {target!r}")
    return index


def match_labels(labels: Sequence[str], text: str) -> list[int]:
    """Indices of the classes with this label; regardless of case if there is none with exactly this label.

    Parameters
    ----------
    labels : sequence of str
    text : str
        Surrounding spaces do not matter.
    """
    text = text.strip()
    folded = text.casefold()
    return _first_matches(labels, [lambda label: label == text, lambda label: label.casefold() == folded])


def search_labels(labels: Sequence[str], text: str) -> list[int]:
    """Indices of the classes whose label a text is, or else those that contain it, preferably as a word.

    Parameters
    ----------
    labels : sequence of str
    text : str
        Surrounding spaces do not matter.
    """
    folded = text.strip().casefold()
    word = re.compile(rf"\b{re.escape(folded)}\b")
    return match_labels(labels, text) or _first_matches(
        labels,
        [
            lambda label: word.search(label.casefold()) is not None,
            lambda label: label.casefold().startswith(folded),
            lambda label: folded in label.casefold(),
        ],
    )


def _first_matches(labels: Sequence[str], rules: Sequence[Callable[[str], bool]]) -> list[int]:
    """Indices of the labels for which the first rule holds that holds for any."""
    matches = ([i for i, label in enumerate(labels) if rule(label)] for rule in rules)
    return next((indices for indices in matches if indices), [])


def _read_label(value: Any, index: int) -> str:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    elif hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # a number or a string of numpy or torch
        value = value.item()
    is_nan = isinstance(value, float) and math.isnan(value)
    if not isinstance(value, (str, numbers.Real)) or is_nan:
        raise TypeError(f"label {index} is {value!r}; give text")
    return str(value).strip()


def _in_order_of_indices(items: list[tuple[Any, Any]], classes: int, keyword: str) -> list[Any]:
    """Labels from the items of a mapping, in the order of the indices that are its keys or its values."""
    keys, values = [_read_index(key) for key, _ in items], [_read_index(value) for _, value in items]
    keys_are_indices = None not in keys
    if None not in keys and None not in values and keys != values:  # digits as labels: what is text is the label
        keys_are_text, values_are_text = (all(isinstance(item[i], str) for item in items) for i in (0, 1))
        if keys_are_text == values_are_text:
            raise ValueError(f"both the keys and the values of {keyword}= are numbers; give a list with one label per class")
        keys_are_indices = values_are_text
    elif None in keys and None in values:
        raise TypeError(f"{keyword}= should be a list with one label per class, {{index: label}} or {{label: index}}")
    indices, labels = (keys, [value for _, value in items]) if keys_are_indices else (values, [key for key, _ in items])
    found: dict[int, Any] = {}
    for index, label in zip(cast(list[int], indices), labels, strict=True):
        if index in found:
            raise ValueError(f"{keyword}= has several labels for class {index}: {found[index]!r} and {label!r}")
        found[index] = label
    missing, extra = sorted(set(range(classes)) - set(found)), sorted(set(found) - set(range(classes)))
    if missing or extra:
        parts = [f"{word} {_listing(numbers)}" for word, numbers in (("lack", missing), ("have also", extra)) if numbers]
        raise ValueError(f"{keyword}= should have the classes 0 to {classes - 1}, but {' and '.join(parts)}")
    return [found[i] for i in range(classes)]


def _read_index(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"\s*\d+\s*", value, re.ASCII) else None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _listing(indices: list[int]) -> str:
    return ", ".join(map(str, indices[:6])) + (", ..." if len(indices) > 6 else "")
