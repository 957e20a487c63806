"""Parts of error messages, and checks that raise them."""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

import torch

from .text import MAX_NAME, one_line

SIMILARITY = 0.6  # of names that are suggested, from 0 to 1, see difflib
MAX_MESSAGE = 200  # characters from which only the first sentence of another package's message is kept
PLAIN_ERRORS: tuple[type[BaseException], ...] = (ValueError, TypeError, OSError)  # their messages are written for users


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
    wanted, lower_case = name.lower(), [item.lower() for item in known]
    containing = [item for item, lower in zip(known, lower_case, strict=True) if len(name) > 1 and wanted in lower]
    close = difflib.get_close_matches(wanted, dict.fromkeys(lower_case), count, SIMILARITY)
    similar = [item for match in close for item, lower in zip(known, lower_case, strict=True) if lower == match]
    suggestions = list(dict.fromkeys([*containing, *similar]))[:count]
    names = [one_line(item, MAX_NAME) for item in suggestions or known[:8]]
    if suggestions:
        return f"did you mean: {', '.join(names)}"
    return f"available: {', '.join(names)}{', ...' if len(known) > 8 else ''}" if known else "none are available"


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


def describe_error(
    error: BaseException,
    *,
    modules: Mapping[int, str] = MappingProxyType({}),
    plain: tuple[type[BaseException], ...] = PLAIN_ERRORS,
) -> str:
    """One line for an error: where in the network, what type, and the first sentence of its message.

    Parameters
    ----------
    error : exception
    modules : mapping of int to str
        Names of the modules of a network by ``id``. The innermost one in the traceback is named, unless this package raised
        the error.
    plain : tuple of exception types
        Types whose message is enough.

    Examples
    --------
    >>> describe_error(ValueError("too small")), describe_error(KeyError("a")), describe_error(MemoryError())
    ('too small', "KeyError: 'a'", 'MemoryError: not enough memory')
    """
    is_plain = isinstance(error, plain)
    message = _message(error, whole_line=is_plain)
    layer = _failing_module(error, modules)
    where = f"in {layer}: " if layer else ""
    kind = type(error).__name__
    return f"{where}{message if is_plain or message.startswith(kind) else f'{kind}: {message}'}"


def _message(error: BaseException, *, whole_line: bool) -> str:
    if isinstance(error, OSError) and error.errno and error.strerror:
        reason = error.strerror[:1].lower() + error.strerror[1:]
        return f"{error.filename}: {reason}" if error.filename else reason
    if isinstance(error, torch.OutOfMemoryError):
        return "the memory of the GPU does not suffice; choose a smaller image, or restart the kernel to free what is in use"
    lines = [one_line(line.strip(), 4 * MAX_MESSAGE) for line in str(error).splitlines() if line.strip()]
    if not lines:
        return "not enough memory" if isinstance(error, MemoryError) else f"{type(error).__name__} without a message"
    line = f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return line if whole_line or len(line) <= MAX_MESSAGE else re.split(r"(?<=[.!?]) +(?=[A-Z])", line)[0]


def _failing_module(error: BaseException, modules: Mapping[int, str]) -> str:
    """Name of the innermost module in whose forward pass an error was raised; "" if it was raised elsewhere."""
    name, step, file = "", error.__traceback__, ""
    while step is not None:
        name = modules.get(id(step.tb_frame.f_locals.get("self")), name)
        file, step = step.tb_frame.f_globals.get("__name__", ""), step.tb_next
    return "" if file.startswith("convis_widgets.core") else name
