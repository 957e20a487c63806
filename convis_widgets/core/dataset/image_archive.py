"""Image sets in .npz archives. The sizes of the arrays are known before they are decompressed."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..memory import MAX_ARCHIVE_BYTES, check_memory
from ..text import one_line


class _Member(NamedTuple):
    """An array of an archive that has not been read."""

    info: zipfile.ZipInfo
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        return max(self.info.file_size, math.prod(self.shape) * self.dtype.itemsize)


def read_archive(path: Path, array: str | None) -> tuple[np.ndarray, list[Any] | None, Sequence[Any]]:
    """Read the images, the labels (None if there are none) and the class names of a .npz file.

    Parameters
    ----------
    path : Path
    array : str, optional
        Name of the array of images, if there are several.

    Raises
    ------
    ValueError
        The file is damaged, has no array of images or several, or takes too much memory.
    """
    file_name = one_line(path.name)
    damaged = f"{file_name} cannot be read; it should be a .npz file of plain arrays"
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = _list_arrays(archive)
    except Exception as error:  # a damaged archive raises many kinds of exceptions
        raise ValueError(damaged) from error
    image_arrays = [name for name, m in members.items() if len(m.shape) in (3, 4) and m.dtype.kind in "uf"]
    if not image_arrays:
        raise ValueError(f"{file_name} has no array of images")
    if array is None and len(image_arrays) > 1:
        example = f'ImageSet("{file_name}", array="{image_arrays[0]}")'
        raise ValueError(f"{file_name} has several arrays of images: {_join(image_arrays)}; name one: {example}")
    if array is not None and array not in image_arrays:
        raise ValueError(f"{file_name} has no array of images called {array!r}; it has {_join(image_arrays)}")
    images = array or image_arrays[0]
    count = members[images].shape[0]
    one_per_image = [n for n, m in members.items() if m.dtype.kind in "iufU" and m.shape in ((count,), (count, 1))]
    labels = [n for word in ("label", "target", "y") for n in one_per_image if _is_label_array(n, images, word)][:1]
    classes = ["classes"] if "classes" in members and members["classes"].dtype.kind in "iufUS" else []
    needed = sum(members[name].nbytes for name in (images, *labels, *classes))
    check_memory(f"{file_name}, decompressed,", needed, MAX_ARCHIVE_BYTES, "save a part of it, or give an array")
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            arrays = {name: _read_array(archive, members[name]) for name in (images, *labels, *classes)}
    except Exception as error:
        raise ValueError(damaged) from error
    class_names = [name for key in classes for name in arrays[key].ravel().tolist()]
    class_names = [name.decode(errors="replace") if isinstance(name, bytes) else name for name in class_names]
    return arrays[images], arrays[labels[0]].ravel().tolist() if labels else None, class_names


def _list_arrays(archive: zipfile.ZipFile) -> dict[str, _Member]:
    """The arrays of an archive by name; other files in it are passed over."""
    members = {}
    for info in archive.infolist():
        try:
            with archive.open(info) as file:
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
                shape, _fortran_order, dtype = read(file)
        except (ValueError, KeyError):
            continue
        members[info.filename.removesuffix(".npy")] = _Member(info, shape, dtype)
    return members


def _read_array(archive: zipfile.ZipFile, member: _Member) -> np.ndarray:
    with archive.open(member.info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _join(names: Sequence[str]) -> str:
    return one_line(", ".join(names[:8]) + (", ..." if len(names) > 8 else ""))


def _is_label_array(labels: str, images: str, word: str) -> bool:
    """Whether the names of two arrays match: y_test those of x_test, train_labels those of train_images.

    The part of `labels` that `images` does not have must start with `word`.
    """
    image_parts, label_parts = (
        set(name.lower().split("_")) - {"x", "images", "image", "data", "pictures"} for name in (images, labels)
    )
    extra = label_parts - image_parts
    return image_parts <= label_parts and len(extra) == 1 and extra.pop().startswith(word)
