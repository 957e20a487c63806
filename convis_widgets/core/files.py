"""Writing files."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from .text import one_line


def expand_user(path: str | os.PathLike[str]) -> Path:
    """Replace ``~`` and ``~user`` at the beginning of a path; FileNotFoundError if there is no such home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise FileNotFoundError(f"the home folder in {one_line(path)} is unknown; give the full path") from None


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
    raise FileNotFoundError(f"{one_line(path)} {why}; give {expected}")


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
    made = expand_user(made)
    try:
        folder_exists, exists = made.parent.is_dir(), made.exists()
    except OSError as error:
        raise write_error(made, error) from None
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


def write_error(path: Path, error: OSError) -> OSError:
    """An error of the same type whose message names the file that cannot be written and says what to do.

    Parameters
    ----------
    path : Path
    error : OSError
        Raised when it was written.
    """
    remedies = {
        errno.ENOSPC: "free disk space, or save in another folder",
        getattr(errno, "EDQUOT", -1): "free disk space, or save in another folder",
        errno.ENAMETOOLONG: "give a shorter name",
    }
    if error.errno is None:  # it has a sentence of its own
        return error
    reason = (error.strerror or str(error)).lower()
    remedy = remedies.get(error.errno, "save in another folder")
    explained = type(error)(f"{one_line(str(path))} cannot be written, {reason}; {remedy}")
    explained.errno = error.errno
    return explained


def write_atomic(
    path: Path,
    data: bytes | Callable[[BinaryIO], object],
    *,
    sync: bool = False,
    explain: Callable[[Path, OSError], OSError] = write_error,
) -> Path:
    """Write a file completely or not at all; an existing file is replaced only when the new one is complete.

    Parameters
    ----------
    path : Path
    data : bytes or callable(file)
        The content, or a function that writes it.
    sync : bool
        Whether to flush the file to the disk before it takes its name.
    explain : callable(path, error) -> OSError
        Makes the error that is raised.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    OSError
        The file cannot be written; the message names it and says what to do.
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
        raise explain(path, error) from error
    return path
