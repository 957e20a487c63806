"""Store: a folder of results that outlasts the process: files of rows, and a state that is written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np


class Store:
    """The folder for a key, in a cache folder; one that lasts as long as the Store where nothing can be written there.

    Parameters
    ----------
    cache : path or None
        ``CONVIS_CACHE`` or the user's cache folder otherwise.
    key : str

    Attributes
    ----------
    folder : Path
    kept : bool
        Whether it outlasts the Store.
    """

    def __init__(self, cache: str | os.PathLike[str] | None, key: str) -> None:
        home = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
        root = Path(cache or os.environ.get("CONVIS_CACHE") or Path(home) / "convis_widgets").expanduser()
        self.folder, self.kept = root / "scans" / key, True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError:
            self.folder, self.kept = Path(tempfile.mkdtemp(prefix="convis-")), False
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)

    def holds(self, sizes: Mapping[str, int]) -> bool:
        """Whether the folder is there, with files of these names of at least so many bytes."""
        files = [(self.folder / name, size) for name, size in sizes.items()]
        return self.folder.exists() and all(file.exists() and file.stat().st_size >= size for file, size in files)

    def write(self, name: str, start: int, rows: np.ndarray) -> None:
        """Put rows into a file, at their place; who writes the same rows twice changes nothing."""
        try:
            file = os.open(self.folder / name, os.O_WRONLY | os.O_CREAT, 0o666)
            with os.fdopen(file, "wb") as opened:
                opened.seek(start * rows[0].nbytes)
                opened.write(rows.tobytes())
        except OSError as error:
            raise OSError(
                f"results cannot be written to {self.folder} ({error.strerror}); make room there, or let CONVIS_CACHE name "
                "another folder, and go on"
            ) from error

    def rows(self, name: str, dtype: Any, shape: tuple[int, ...], chosen: np.ndarray) -> np.ndarray:
        """Chosen rows of a file, which has them."""
        stored = np.memmap(self.folder / name, dtype, "r", shape=(int(chosen.max()) + 1, *shape))
        return np.asarray(stored[chosen])

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state."""
        part = self.folder / f"{uuid.uuid4().hex}.part"
        try:
            with part.open("wb") as file:
                np.savez(file, **state)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.folder / "state.npz")
        finally:
            part.unlink(missing_ok=True)

    def load(self, *names: str) -> dict[str, np.ndarray]:
        """The state, or these parts of it; empty if there is none, or a damaged one."""
        try:
            # opened here, since numpy leaves a damaged file open
            with (self.folder / "state.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return {name: stored[name] for name in names or stored.files}
        except Exception:  # noqa: BLE001 (a damaged archive fails in many ways)
            return {}
