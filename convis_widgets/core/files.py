"""Writing files."""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from .text import one_line


def check_output(path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """The path of a file to be written, with ``~`` expanded.

    Parameters
    ----------
    path : path
    suffixes : sequence of str
        Allowed extensions in lower case, such as ``".png"``.

    Raises
    ------
    ValueError
        Another extension, or not a path at all.
    OSError
        The folder does not exist or cannot be written to, or something that is not a file has this name.
    """
    endings = " or ".join(suffixes)
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(text, str) or "\0" in text:
        raise ValueError(f"{path!r} is not a path; give the name of a file that ends in {endings}")
    shown, made = one_line(text), Path(text)
    if made.suffix.lower() not in suffixes:
        raise ValueError(f"{shown!r} is not a name that ends in {endings}")
    try:
        made = made.expanduser()
        folder_exists, exists = made.parent.is_dir(), made.exists()
    except RuntimeError:
        raise FileNotFoundError(f"there is no home folder for {Path(text).parts[0]}; write out the path") from None
    except OSError as error:
        raise _explained(error, made) from None
    if not folder_exists:
        raise FileNotFoundError(f"the folder {one_line(str(made.parent))} does not exist; create it first")
    if made.is_dir():
        raise IsADirectoryError(f"{shown} is a folder; give the name of a file")
    if exists and not made.is_file():
        raise FileExistsError(f"{shown} is not a regular file; give another name")
    if exists and not os.access(made, os.W_OK):
        raise PermissionError(f"{shown} is write-protected; give another name")
    if not os.access(made.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"the folder {one_line(str(made.parent))} is write-protected; save {made.name} in another one")
    return made


def save_file(path: Path, data: bytes | Callable[[BinaryIO], object]) -> Path:
    """Write a file of the user completely or not at all; OSError with the path and what to do if that is not possible.

    Parameters
    ----------
    path : Path
        As `check_output` returns it.
    data : bytes or callable(file)
        The content, or a function that writes it.
    """
    try:
        return write_atomic(path, data)
    except OSError as error:
        raise _explained(error, path) from error


def _explained(error: OSError, path: Path) -> OSError:
    """An error of the same type whose message names the file and says what to do."""
    remedies = {
        errno.ENOSPC: "free disk space, or save in another folder",
        getattr(errno, "EDQUOT", -1): "free disk space, or save in another folder",
        errno.ENAMETOOLONG: "give a shorter name",
    }
    reason = (error.strerror or str(error)).lower()
    remedy = remedies.get(error.errno or 0, "save in another folder")
    explained = type(error)(f"{one_line(str(path))} cannot be written, {reason}; {remedy}")
    explained.errno = error.errno
    return explained


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
    """
    part = path.with_name(f"{uuid.uuid4().hex}.part")
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
    return path
