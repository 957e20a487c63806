"""Texts from elsewhere, such as labels and file names, made safe to show on one line."""

from __future__ import annotations

import re
import unicodedata

_BREAKS = re.compile(r"[\t\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")  # also overrides of the direction
MAX_NAME = 60  # characters of a name in a sentence or caption
_MAX_MARKS = 4  # combining marks on one character; more of them would cover the lines above and below


def one_line(text: object, length: int = 300) -> str:
    r"""Text on one line, without control characters, cut in the middle if it is too long.

    Line breaks become spaces; other control characters, such as the escape character of terminals, become U+FFFD.

    Parameters
    ----------
    text : object
        Converted by `str`.
    length : int
        Largest number of characters. In place of what is cut out there is an ellipsis.

    Examples
    --------
    >>> one_line("a cat\nor a dog"), one_line("a very long name.png", 14)
    ('a cat or a dog', 'a very lo….png')
    """
    text = _CONTROLS.sub("\ufffd", _BREAKS.sub(" ", str(text)))
    if not text.isascii():
        text = _limit_marks(text)
    if len(text) <= length:
        return text
    tail = length // 3
    return f"{text[: length - tail - 1]}…{text[len(text) - tail :]}"


def _limit_marks(text: str) -> str:
    kept, marks = [], 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= _MAX_MARKS:
            kept.append(character)
    return "".join(kept)
