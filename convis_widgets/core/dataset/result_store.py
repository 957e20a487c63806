"""ResultStore: a folder of results that outlasts the process, with a state that is replaced atomically.

A state that was not saved under the same key, or has changed since, is not used. No link and no pipe is opened.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import expand_user, write_atomic

STATE, DIGEST = "state.npz", "digest"
PART_AGE = 60.0  # seconds after which an unfinished file is that of a process that was killed
FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}


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
        self._key, self.persistent = key, True
        try:
            self.folder = _cache_folder(cache) / "scans" / key
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.folder.is_symlink():
                raise OSError(errno.ELOOP, "a link")
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except (OSError, ValueError):  # ValueError: not a path
            self.folder, self.persistent = _temporary_folder(), False
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self._remove_parts()

    def save(self, state: Mapping[str, Any]) -> None:
        """Replace the state, completely or not at all; OSError if the folder cannot be written, or the disk is full."""
        arrays = {**state, DIGEST: np.array(self._digest(state))}
        write_atomic(self.folder / STATE, lambda file: np.savez(file, **arrays), sync=True, explain=result_error)

    def load(self) -> dict[str, np.ndarray]:
        """Load the state; empty if there is none that was saved under this key and has not changed since."""
        try:
            descriptor = open_file(self.folder / STATE, os.O_RDONLY)
            # numpy leaves a damaged file open unless it is opened here
            with os.fdopen(descriptor, "rb") as file, np.load(file, allow_pickle=False) as stored:
                state = {name: stored[name] for name in stored.files}
            return state if state.pop(DIGEST) == self._digest(state) else {}
        except Exception:  # noqa: BLE001 (a damaged archive raises many kinds of exceptions)
            return {}

    def _digest(self, state: Mapping[str, np.ndarray]) -> str:
        digest = hashlib.blake2b(self._key.encode(), digest_size=16)
        for name in sorted(state):
            array = np.ascontiguousarray(state[name])
            digest.update(repr((name, array.dtype.str, array.shape)).encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def _remove_parts(self) -> None:
        """Remove what processes that were killed while they saved a state have left behind."""
        for part in self.folder.glob("*.part"):
            with contextlib.suppress(OSError):
                if abs(time.time() - part.lstat().st_mtime) > PART_AGE:
                    part.unlink()


def _cache_folder(cache: str | os.PathLike[str] | None) -> Path:
    """The cache folder, absolute; FileNotFoundError if it is in the home folder and there is none."""
    folder = cache or os.environ.get("CONVIS_CACHE")
    if not folder:
        user_cache = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
        folder = Path(user_cache) / "convis_widgets"
    return expand_user(folder).absolute()


def _temporary_folder() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="convis-"))
    except OSError as error:
        raise OSError("results cannot be written anywhere; set CONVIS_CACHE to a folder that is writable") from error


def open_file(path: Path, flags: int) -> int:
    """Open a file, and return its descriptor; OSError, without waiting, for a link, a pipe or anything else.

    Parameters
    ----------
    path : Path
    flags : int
        ``os.O_RDONLY``, or ``os.O_WRONLY | os.O_CREAT``.
    """
    others = [getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")]
    descriptor = os.open(path, flags | others[0] | others[1] | others[2], 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a file")
    return descriptor


def result_error(path: Path, error: OSError) -> OSError:
    """An error that names the file of results that cannot be written, and says what to do.

    Parameters
    ----------
    path : Path
    error : OSError
        Raised when it was written.
    """
    advice = "free disk space" if error.errno in FULL else "delete it or make its folder writable"
    reason = os.strerror(error.errno) if error.errno else error
    return OSError(f"{path} cannot be written ({reason}); {advice}, or set CONVIS_CACHE to another folder, and resume")
