"""Parts of error messages, and checks that raise them."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def did_you_mean(name: str, known: Iterable[str], count: int = 4) -> str:
    """End of an error message about an unknown name: ``did you mean: conv5, conv4``.

    Parameters
    ----------
    name : str
        The unknown name.
    known : iterable of str
        Names to choose from. The first eight are listed, ``available: conv1, conv2, ...``, if none is similar.
    count : int
        Largest number of similar names. Names that contain `name` come first.
    """
    known = list(known)
    by_lower_case = {item.lower(): item for item in known}
    containing = [item for item in known if name and name.lower() in item.lower()]
    close = [by_lower_case[item] for item in difflib.get_close_matches(name.lower(), by_lower_case, count, 0.4)]
    suggestions = list(dict.fromkeys([*containing, *close]))[:count]
    if suggestions:
        return f"did you mean: {', '.join(suggestions)}"
    return f"available: {', '.join(known[:8])}{', ...' if len(known) > 8 else ''}" if known else "none are available"


@contextlib.contextmanager
def name_in_errors(what: str) -> Iterator[None]:
    """Put the name of an input before the message of a ValueError that is raised in the block.

    Parameters
    ----------
    what : str
        "the style image", for example.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def format_shape(shape: Iterable[int]) -> str:
    """A shape as in ``3x224x224``."""
    return "x".join(map(str, shape))


def check_finite(values: torch.Tensor, what: str) -> None:
    """Raise ValueError if not all values are finite.

    Parameters
    ----------
    values : tensor
    what : str
        Name of the values in the message, a plural: "the scores of resnet18".
    """
    if not bool(values.isfinite().all()):
        raise ValueError(f"{what} are not finite; the weights may have diverged")
