"""Writing files."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def check_folder(path: Path) -> None:
    """Raise FileNotFoundError if the folder of a file to be written does not exist."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; create it first")


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
