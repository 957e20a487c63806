"""RowFiles: features and thumbnails of images on disk, a row for each image, with checksums."""

from __future__ import annotations

import math
import os
import stat
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from .result_store import open_file, result_error

MAX_CHECKED = 64 << 20  # bytes of a file that are checked when it is opened; all others are checked when they are read
NAMES = ("features", "thumbnails")


class RowFiles:
    """Features (float32) and thumbnails (uint8) of images.

    Parameters
    ----------
    folder : Path
    count : int
        Number of images.
    thumbnail_size : (int, int)

    Attributes
    ----------
    width : int
        Length of a feature vector; 0 before the first image that could be read.
    checksums : dict of str to (count,) uint32 array
        By name of the file.
    """

    def __init__(self, folder: Path, count: int, thumbnail_size: tuple[int, int]) -> None:
        self.folder, self.width, self._thumbnail_shape = folder, 0, (*thumbnail_size, 3)
        self.checksums = {name: np.zeros(count, np.uint32) for name in NAMES}
        self._files: dict[str, _RowFile] = {}

    def open(self, width: int) -> None:
        """Open the files of features of this length."""
        self.width = width
        for name in NAMES:
            blank = self._blank(name, 0)
            self._files[name] = _RowFile(self.folder / name, blank.dtype, blank.shape[1:], self.checksums[name])

    def restore(self, width: int, checksums: dict[str, np.ndarray], count: int, *, check_all: bool) -> bool:
        """Open files that were written before; return whether their rows are intact.

        Parameters
        ----------
        width : int
            Length of a feature vector; 0 if there are no files.
        checksums : dict of str to uint32 array
        count : int
            Number of images that have been written.
        check_all : bool
            Whether all rows are checked, not just the first.
        """
        self.checksums = checksums
        if width:
            self.open(width)
        return all(file.is_intact(count, check_all=check_all) for file in self._files.values())

    def write(self, start: int, stop: int, indices: list[int], features: np.ndarray, thumbnails: np.ndarray) -> None:
        """Write the rows from `start` to `stop`; NaN and 0 for images that could not be read.

        Parameters
        ----------
        start, stop : int
        indices : list of int
            Images that could be read.
        features, thumbnails : arrays
            Theirs.
        """
        if not self.width:
            if not indices:
                return
            self.open(features.shape[1])
            self.write(0, start, [], features, thumbnails)  # no image before these could be read
        for name, values in zip(NAMES, (features, thumbnails), strict=True):
            rows = self._blank(name, stop - start)
            if indices:
                rows[np.array(indices) - start] = values
            self._files[name].write(start, rows)

    def read(self, name: str, indices: np.ndarray, count: int) -> np.ndarray:
        """Read rows; NaN or 0 for images that have not been written.

        Parameters
        ----------
        name : str
            "features" or "thumbnails".
        indices : (n,) int array
            From 0.
        count : int
            Number of images that have been written.

        Raises
        ------
        FileNotFoundError
            The files were deleted, or changed by anyone else.
        """
        if not self.covers(count):
            raise FileNotFoundError(f"the results in {self.folder} were deleted or changed; scan again")
        written = indices < (count if self.width else 0)
        if written.all() and len(indices):
            return self._files[name].read(indices)
        rows = self._blank(name, len(indices))
        if written.any():
            rows[written] = self._files[name].read(indices[written])
        return rows

    def covers(self, count: int) -> bool:
        """Whether the files have this many rows, and none that was read differed from what was written."""
        return all(file.covers(count) for file in self._files.values())

    def _blank(self, name: str, count: int) -> np.ndarray:
        if name == "features":
            return np.full((count, self.width), np.nan, np.float32)
        return np.zeros((count, *self._thumbnail_shape), np.uint8)


class _RowFile:
    """A growing file of rows, each with a checksum.

    Parameters
    ----------
    path : Path
    dtype : dtype
    shape : tuple of int
        Shape of a row.
    checksums : (n,) uint32 array
        Those of the rows in the file; updated by `write`.
    """

    def __init__(self, path: Path, dtype: DTypeLike, shape: tuple[int, ...], checksums: np.ndarray) -> None:
        self.path, self.checksums, self._empty = path, checksums, np.empty((0, *shape), dtype)
        self._row_bytes = max(1, self._empty.dtype.itemsize * math.prod(shape))
        self._checked, self._version = np.zeros(len(checksums), bool), (0, 0, 0)  # rows of this version of the file
        self._is_damaged = False

    def write(self, start: int, rows: np.ndarray) -> None:
        """Write rows `start` to ``start + n`` (idempotent).

        Parameters
        ----------
        start : int
            Index of the first row to write, from 0.
        rows : (n, ...) array

        Raises
        ------
        OSError
            The folder cannot be written, or the disk is full.
        """
        rows = np.ascontiguousarray(rows, self._empty.dtype)
        stop = start + len(rows)
        try:
            _remove_foreign(self.path)
            with os.fdopen(open_file(self.path, os.O_WRONLY | os.O_CREAT), "wb") as file:
                is_own = _version(file.fileno()) == self._version
                file.seek(start * self._row_bytes)
                file.write(rows.tobytes())
                file.flush()
                if is_own or not start:
                    self._version = _version(file.fileno())
        except OSError as error:
            raise result_error(self.path, error) from error
        self.checksums[start:stop] = _row_checksums(rows)
        self._checked[start:stop] = True

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Read rows, (n, ...); FileNotFoundError if some are missing or differ from those that were written."""
        rows = np.empty((len(indices), *self._empty.shape[1:]), self._empty.dtype)
        ends = [*np.flatnonzero(np.diff(indices) != 1) + 1, len(indices)]
        try:
            with os.fdopen(open_file(self.path, os.O_RDONLY), "rb") as file:
                version = _version(file.fileno())
                for start, stop in zip([0, *ends], ends, strict=False):
                    file.seek(int(indices[start]) * self._row_bytes)
                    if file.readinto(rows[start:stop].data.cast("B")) < (stop - start) * self._row_bytes:
                        raise EOFError
            if version != self._version:  # another process, or somebody, has written to the file
                self._checked[:], self._version = False, version
            unknown = ~self._checked[indices]
            if not np.array_equal(_row_checksums(rows[unknown]), self.checksums[indices[unknown]]):
                raise ValueError
        except (OSError, EOFError, ValueError) as error:
            self._is_damaged = True
            raise FileNotFoundError(f"the results in {self.path} were deleted or changed; scan again") from error
        self._checked[indices] = True
        return rows

    def covers(self, count: int) -> bool:
        """Whether the file has this many rows and none that was read differed from what was written."""
        try:
            info = self.path.lstat()
        except OSError:
            return False
        return stat.S_ISREG(info.st_mode) and info.st_size >= count * self._row_bytes and not self._is_damaged

    def is_intact(self, count: int, *, check_all: bool) -> bool:
        """Whether the first rows are those that were written.

        Parameters
        ----------
        count : int
        check_all : bool
            Otherwise `MAX_CHECKED` bytes are read.
        """
        step = max(1, MAX_CHECKED // self._row_bytes)
        try:
            for start in range(0, count if check_all else min(count, step), step):
                self.read(np.arange(start, min(start + step, count)))
        except FileNotFoundError:
            return False
        return self.covers(count)


def _remove_foreign(path: Path) -> None:
    """Remove what is in the place of a file of results: a link, a pipe, a file that has two names or is not writable."""
    try:
        info = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(info.st_mode) or info.st_nlink > 1 or not os.access(path, os.W_OK):
        path.unlink()


def _version(descriptor: int) -> tuple[int, int, int]:
    """What changes when anybody writes to an open file."""
    info = os.fstat(descriptor)
    return info.st_ino, info.st_size, info.st_mtime_ns


def _row_checksums(rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row, (n,) uint32."""
    return np.fromiter(map(zlib.crc32, rows), np.uint32, len(rows))
