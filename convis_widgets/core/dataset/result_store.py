"""ResultStore: a folder of results that outlasts the process, with growing array files and an atomically replaced state."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ..files import write_atomic


class ResultStore:
    """The result folder of a key inside a cache folder; a temporary folder where the cache is not writable.

    Parameters
    ----------
    cache : path or None
        Default: the environment variable ``CONVIS_CACHE``, or else the user's cache folder.
    key : str

    Attributes
    ----------
    folder : Path
    persistent : bool
        False for a temporary folder, which is deleted with the ResultStore.
    """

    def __init__(self, cache: str | os.PathLike[str] | None, key: str) -> None:
        user_cache = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
        root = Path(cache or os.environ.get("CONVIS_CACHE") or Path(user_cache) / "convis_widgets").expanduser()
        self.folder, self.persistent = root / "scans" / key, True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError:
            self.folder, self.persistent = Path(tempfile.mkdtemp(prefix="convis-")), False
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def is_valid(self, sizes: Mapping[str, int]) -> bool:
        """Whether the folder exists and holds files of these names and at least these sizes in bytes."""
        files = [(self.folder / name, size) for name, size in sizes.items()]
        return self.folder.exists() and all(file.exists() and file.stat().st_size >= size for file, size in files)

    def write(self, name: str, start: int, array: np.ndarray) -> None:
        """Write an array (n, ...) into an array file as its items `start` to ``start + n`` (idempotent).

        Parameters
        ----------
        name : str
            Name of the file in `folder`.
        start : int
            Index of the first item to write, from 0.
        array : (n, ...) array
            One or more items; of the same dtype and item shape in all writes to this file.

        Raises
        ------
        OSError
            The folder cannot be written, or the disk is full.
        """
        try:
            descriptor = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                file.seek(start * array[0].nbytes)
                file.write(array.tobytes())
        except OSError as error:
            raise OSError(
                f"results cannot be written to {self.folder} ({error.strerror}); free disk space, or set CONVIS_CACHE to "
                "another folder, and resume"
            ) from error

    def read(self, name: str, dtype: DTypeLike, shape: tuple[int, ...], indices: np.ndarray) -> np.ndarray:
        """Read items of an array file, (n, *shape).

        Parameters
        ----------
        name : str
        dtype : dtype
        shape : tuple of int
            Shape of one item.
        indices : (n,) int array
            Items that have been written.
        """
        stored = np.memmap(self.folder / name, dtype, "r", shape=(int(indices.max()) + 1, *shape))
        return np.asarray(stored[indices])

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state, completely or not at all."""
        write_atomic(self.folder / "state.npz", lambda file: np.savez(file, **state), sync=True)

    def load(self, *names: str) -> dict[str, np.ndarray]:
        """Load the state, or its named parts; empty if there is none or it is damaged."""
        try:
            # numpy leaves a damaged file open unless it is opened here
            with (self.folder / "state.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in names or stored.files}
        except Exception:  # noqa: BLE001 (a damaged archive raises many kinds of exceptions)
            return {}
