"""Names of files, labels and networks as text that fits on a line."""

from __future__ import annotations


def shorten(text: str, length: int = 60) -> str:
    """Text on one line of at most `length` characters, with "..." for its middle.

    Line breaks and other white space become spaces, characters that cannot be printed question marks.

    Parameters
    ----------
    text : str
    length : int

    Examples
    --------
    >>> shorten("a very long name of an image file.png", 20)
    'a very lo...file.png'
    """
    line = "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))
    if len(line) <= length:
        return line
    start = (length - 3 + 1) // 2
    return f"{line[:start]}...{line[len(line) - (length - 3 - start) :]}"
