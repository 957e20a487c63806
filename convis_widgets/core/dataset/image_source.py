"""Where the images of an ImageSet come from: folders, files, archives, arrays, lists and Datasets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset

from ..files import expand_user
from ..network.image_file import image_suffixes
from ..network.images import as_numpy
from ..text import one_line
from .image_archive import read_archive

MIN_SAMPLED = 16  # items of a Dataset without a list of files that enter its fingerprint
IMAGE_KEYS, LABEL_KEYS = ("image", "img", "pixel_values"), ("label", "labels")  # of items that are dicts


class Files:
    """Image files.

    Parameters
    ----------
    paths : list of Path
    names : list of str
        Display names.
    """

    def __init__(self, paths: list[Path], names: list[str]) -> None:
        self.paths, self.names = paths, list(map(_full_name, names))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Path:
        return self.paths[i]

    def select(self, indices: Sequence[int]) -> Files:
        """Some of the files."""
        return Files([self.paths[i] for i in indices], [self.names[i] for i in indices])

    def file_stamp(self, i: int) -> bytes:
        """Name, size and modification time of a file."""
        return _file_stamp(self.paths[i], self.names[i])

    def fingerprint(self) -> Iterator[bytes]:
        """The stamps of all files."""
        return map(self.file_stamp, range(len(self)))


class Items:
    """A sequence of images, of pairs (image, label), or of scenes.

    Parameters
    ----------
    items : sequence or Dataset
    names : list of str, optional
        Display names.
    indices : list of int, optional
        Those of `items` that belong to the set; all by default.
    """

    def __init__(self, items: Any, names: list[str] | None = None, indices: list[int] | None = None) -> None:
        self.items, self.indices = items, indices
        self.names = None if names is None else list(map(_full_name, names))

    def __len__(self) -> int:
        return len(self.items if self.indices is None else self.indices)

    def __getitem__(self, i: int) -> Any:
        return self.items[i if self.indices is None else self.indices[i]]

    def select(self, indices: Sequence[int]) -> Items:
        """Some of the items."""
        names = None if self.names is None else [self.names[i] for i in indices]
        return Items(self.items, names, [i if self.indices is None else self.indices[i] for i in indices])

    def fingerprint(self) -> Iterator[bytes]:
        """The content of all items in memory, the stamps of all files, or the content of a sample."""
        in_memory = isinstance(self.items, (list, tuple, np.ndarray, torch.Tensor))
        attributes = [getattr(self.items, name, None) for name in ("seed", "split")]
        attributes = [value if isinstance(value, (int, str)) else None for value in attributes]  # not a tensor's method
        yield repr((type(self.items).__qualname__, attributes)).encode()
        yield b"" if self.indices is None else repr(self.indices).encode()
        files = _listed_files(self.items)
        if files:
            for i in range(len(self)) if self.indices is None else self.indices:
                yield _file_stamp(Path(files[i]), str(files[i]))
            return
        step = 1 if in_memory else max(1, len(self) // MIN_SAMPLED)
        for i in range(0, len(self), step):
            try:
                image, label = split_item(self[i])
                yield _content_hash(image) + repr(class_index(label)).encode()
            except Exception as error:  # noqa: BLE001 (reported when the item is loaded)
                yield type(error).__qualname__.encode()


class ImageSource(NamedTuple):
    """Images with a display name; labels, as far as they are known without reading images; class names."""

    name: str
    items: Files | Items
    labels: Sequence[Any] | None = None
    classes: Sequence[str] = ()


def open_source(source: Any, array: str | None = None) -> ImageSource:
    """Open whatever `ImageSet` accepts, except an ImageSet.

    Parameters
    ----------
    source : path, sequence, array or Dataset
    array : str, optional
        Name of the array of a ``.npz`` file.
    """
    if isinstance(source, (str, os.PathLike)):
        return _open_path(source, array)
    if isinstance(getattr(source, "source", None), ImageSource):  # an ImageSet
        return source.source
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__") or isinstance(source, (Mapping, bytes)):
        hint = "list(...) of it" if isinstance(source, Iterator) else "a folder, a list, an array or a Dataset"
        hint = "its dataset" if hasattr(source, "dataset") else hint  # of a DataLoader
        raise TypeError(f"{type(source).__name__} is not a set of images; give {hint}")
    if hasattr(source, "dtype"):
        source = _check_array(source)
    elif hasattr(source, "iloc"):
        raise TypeError(f"{type(source).__name__} is not a set of images; give one of its columns")
    if isinstance(source, (list, tuple)) and source and all(isinstance(item, (str, os.PathLike)) for item in source):
        return ImageSource("the files", Files(list(map(_expand_if_possible, source)), list(map(os.fspath, source))))
    kind = "list" if isinstance(source, (list, tuple)) else "array" if hasattr(source, "dtype") else ""
    name = f"the {kind}" if kind else one_line(type(source).__name__)
    if isinstance(source, Subset) and hasattr(source.dataset, "__len__"):
        whole, indices = open_source(source.dataset), list(map(int, source.indices))
        items, labels = whole.items.select(indices), whole.labels and [whole.labels[i] for i in indices]
        if type(source) is not Subset:  # which may change images and labels
            items, labels = Items(source, items.names), None
        return ImageSource(whole.name, items, labels, whole.classes)
    if type(source) is ConcatDataset:
        return _open_parts(source)
    files = _listed_files(source)
    names = None
    if files and len(files) == len(source):
        root = getattr(source, "root", None)
        names = [_relative_name(file, root) for file in files]
    return ImageSource(name, Items(source, names), _known_labels(source), _known_classes(source))


def split_item(item: Any) -> tuple[Any, Any]:
    """(image, label) of an item of a list or Dataset; label None if it has none."""
    if isinstance(item, Mapping):
        image = next((item[key] for key in IMAGE_KEYS if key in item), item)
        if isinstance(image, Mapping) and image is not item:  # of a Hugging Face dataset that does not decode
            image = image.get("bytes") or image.get("path")
        return image, next((item[key] for key in LABEL_KEYS if key in item), None)
    if hasattr(item, "image") and hasattr(item, "label"):
        return item.image, item.label
    if isinstance(item, (tuple, list)) and item:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def to_label(label: Any) -> int:
    """A label as an integer, -1 for None; ValueError if it is not an integer."""
    if label is None:
        return -1
    value = np.asarray(label)
    is_number = value.size == 1 and value.dtype.kind in "iubf"
    if is_number and value.item() % 1 == 0 and abs(value.item()) < 2**31:
        return int(value.item())
    raise ValueError(f"the label {describe_label(label)} is not an integer; give one for each image, or a name")


def class_index(label: Any, classes: Sequence[str] = ()) -> int | None:
    """Class index of an item's label, -1 for None; None if the label is not that of one class.

    Parameters
    ----------
    label : object
        A number, a class name, or a one-hot vector; anything else is not the label of a class.
    classes : sequence of str
    """
    if isinstance(label, str):
        return classes.index(label) if classes.count(label) == 1 else None
    try:
        values = np.asarray(label)
        if values.ndim == 1 and values.size > 1 and values.dtype.kind in "iubf":
            is_one_hot = np.count_nonzero(values) == 1 and values.max() == 1
            return int(values.argmax()) if is_one_hot else None
        return to_label(label)
    except Exception:  # noqa: BLE001 (labels can be anything)
        return None


def describe_label(label: Any) -> str:
    """A label that is not a class, for messages: its value or shape."""
    if isinstance(label, str):
        return repr(one_line(label, 60))
    try:
        value = np.asarray(label)
        if value.size == 1 and value.dtype.kind in "iubf":
            return str(value.item())
        if value.ndim:
            return f"of shape {value.shape}"
    except Exception:  # noqa: BLE001
        pass
    return f"of type {type(label).__name__}"


def _open_path(source: str | os.PathLike[str], array: str | None) -> ImageSource:
    path, name = expand_user(source), one_line(source, 300)
    try:
        exists, is_file, is_folder = path.exists(), path.is_file(), path.is_dir()
    except (OSError, ValueError):  # the name is too long
        exists = is_file = is_folder = False
    if path.suffix.lower() == ".npz" and is_file:
        images, labels, classes = read_archive(path, array)
        return ImageSource(one_line(path.stem), Items(images), labels, classes)
    if not is_folder:
        what = "is a file" if is_file else "is not a regular file" if exists else "does not exist"
        hint = ", or a list of paths" if exists or {"*", "?"} & set(path.name) else ""
        raise FileNotFoundError(f"{name} {what}; give a folder of images, or a .npz file{hint}")
    return _open_folder(path)


def _open_folder(folder: Path) -> ImageSource:
    suffixes = image_suffixes()
    paths: list[Path] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        current = Path(root).resolve()
        ancestors = {current, *current.parents}  # a link to one of them is a cycle
        folders[:] = sorted(n for n in folders if not n.startswith(".") and (Path(root) / n).resolve() not in ancestors)
        paths += [Path(root) / name for name in files if not name.startswith(".") and Path(name).suffix.lower() in suffixes]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    if not names:
        raise ValueError(f"there are no images in {one_line(folder)}; image files end in .jpg, .png or the like")
    folder_names = [name.partition("/")[0] if "/" in name else None for name in names]
    classes = sorted({name for name in folder_names if name is not None})
    index = {name: i for i, name in enumerate(classes)}
    labels = [-1 if name is None else index[name] for name in folder_names] if classes else None
    files_in_order = Files([folder / name for name in names], names)
    return ImageSource(one_line(folder.resolve().name), files_in_order, labels, list(map(_full_name, classes)))


def _open_parts(source: ConcatDataset[Any]) -> ImageSource:
    """Open a ConcatDataset: names, labels and classes are those of its parts, where they agree."""
    parts = [open_source(part) for part in source.datasets]
    names = [part.items.names or [f"image {i}" for i in range(len(part.items))] for part in parts]
    same_classes = len({tuple(part.classes) for part in parts}) == 1
    labels = None
    if same_classes and all(part.labels is not None for part in parts):
        labels = [label for part in parts for label in part.labels or ()]
    names_of_all = [name for part in names for name in part] if any(part.items.names for part in parts) else None
    return ImageSource("ConcatDataset", Items(source, names_of_all), labels, parts[0].classes if same_classes else ())


def _check_array(source: Any) -> Any:
    """The array, or a list for a column of paths or images; ValueError if it is not a set of images."""
    shape = tuple(source.shape)
    is_column = len(shape) == 1 and not isinstance(source, torch.Tensor) and getattr(source.dtype, "kind", "O") in "OUT"
    if is_column:  # of pandas, too
        return list(source)
    if len(shape) not in (3, 4):
        raise ValueError(f"an array of shape {shape} is not a set of images; it should be (N, H, W, C)")
    is_image = len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > 4
    if is_image or (isinstance(source, torch.Tensor) and len(shape) == 3 and shape[0] == 3 and min(shape[1:]) > 4):
        raise ValueError(f"an array of shape {shape} is a single image; put it into a list for a set of one")
    return source


def _known_labels(source: Any) -> list[Any] | None:
    """Labels of a list or Dataset, as far as they are known without reading images."""
    if getattr(source, "target_transform", None) is not None:  # the items have other labels
        return None
    get_label = getattr(source, "label", None)
    if callable(get_label):  # of a Toyscape, without rendering the scene
        return [get_label(i) for i in range(len(source))]
    targets = getattr(source, "targets", None)
    try:
        if targets is not None and len(targets) == len(source):
            return list(targets)
    except TypeError:
        return None
    if isinstance(source, (list, tuple)):
        labels = [split_item(item)[1] for item in source]
        return labels if any(isinstance(label, str) for label in labels) else None
    return None


def _known_classes(source: Any) -> Sequence[str]:
    """Class names of a Dataset: `classes` as in torchvision, or those of the label of a Hugging Face dataset."""
    classes = getattr(source, "classes", None)
    if not classes:
        features = getattr(source, "features", None)
        features = features if isinstance(features, Mapping) else {}
        classes = next((getattr(features[key], "names", None) for key in LABEL_KEYS if key in features), None)
    is_list = isinstance(classes, (Sequence, np.ndarray)) and not isinstance(classes, str)
    return [str(name) for name in classes] if is_list and classes is not None else ()


def _listed_files(source: Any) -> list[str]:
    """Files of torchvision's folders; empty for other Datasets."""
    listed = getattr(source, "samples", None) or getattr(source, "imgs", None)
    try:
        return [os.fspath(file) for file, *_ in listed] if isinstance(listed, (list, tuple)) else []
    except (TypeError, ValueError):
        return []


def _relative_name(file: str, root: Any) -> str:
    try:
        return Path(file).relative_to(root).as_posix()
    except (TypeError, ValueError):
        return file


def _full_name(name: str) -> str:
    return one_line(name, 10_000)


def _expand_if_possible(path: str | os.PathLike[str]) -> Path:
    try:
        return expand_user(path)
    except FileNotFoundError:  # reported when the image is loaded
        return Path(path)


def _file_stamp(path: Path, name: str) -> bytes:
    try:
        state = path.stat()
        return f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="surrogateescape")
    except (OSError, ValueError):
        return f"{name}\0missing\n".encode(errors="surrogateescape")


def _content_hash(image: Any) -> bytes:
    if isinstance(image, (str, os.PathLike)):
        return _file_stamp(_expand_if_possible(image), str(image))
    if isinstance(image, Image.Image):
        parts = (image.mode, image.size, image.getpalette())
        return repr(parts).encode() + hashlib.blake2b(image.tobytes()).digest()
    if isinstance(image, (bytes, bytearray, memoryview)):
        return hashlib.blake2b(image).digest()
    values = np.ascontiguousarray(as_numpy(image))
    return repr((values.shape, values.dtype.str)).encode() + hashlib.blake2b(values.reshape(-1).view(np.uint8).data).digest()
