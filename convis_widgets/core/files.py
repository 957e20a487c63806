"""Paths, and writing files."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from .errors import display_name


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Replace ``~`` and ``~user`` at the beginning of a path; FileNotFoundError if there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise FileNotFoundError(f"the home folder in {display_name(path)} is unknown; give the full path") from None


def check_regular_file(path: Path, expected: str) -> None:
    """Raise FileNotFoundError, with the reason, unless a path is that of a regular file.

    Parameters
    ----------
    path : Path
    expected : str
        What to give instead, the end of the message: "the path of an image file".
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        why = "does not exist"
        if isinstance(error, OSError) and error.errno not in (errno.ENOENT, errno.ENOTDIR):
            why = f"cannot be opened ({error.strerror})"
    else:
        if stat.S_ISREG(mode):
            return
        why = "is a folder" if stat.S_ISDIR(mode) else "is not a regular file"
    raise FileNotFoundError(f"{display_name(path)} {why}; give {expected}")


def check_folder(path: Path) -> None:
    """Raise FileNotFoundError if the folder of a file to be written does not exist, or the file itself is a folder."""
    try:
        has_folder, is_folder = path.parent.is_dir(), path.is_dir()
    except OSError as error:  # the name is too long
        raise _named(error, path) from error
    if not has_folder:
        raise FileNotFoundError(f"the folder {display_name(path.parent)} does not exist; create it first")
    if is_folder:
        raise FileNotFoundError(f"{display_name(path)} is a folder; choose another name")


def write_atomic(path: Path, data: bytes | Callable[[BinaryIO], object], *, sync: bool = False) -> Path:
    """Write a file completely or not at all; an existing file is replaced only when the new one is complete.

    Parameters
    ----------
    path : Path
    data : bytes or callable(file)
        The content, or a function that writes it.
    sync : bool
        Whether to flush the file to the disk before it takes its name.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    OSError
        The file cannot be written; the message names it.
    """
    part = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        try:
            with part.open("wb") as file:
                if callable(data):
                    data(file)
                else:
                    file.write(data)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise _named(error, path) from error
    return path


def _named(error: OSError, path: Path) -> OSError:
    """The error with a sentence that names the file."""
    if error.errno is None:  # it has a sentence of its own
        return error
    named = type(error)(f"{display_name(path)} cannot be written: {error.strerror}; choose another place or make room there")
    named.errno = error.errno
    return named
