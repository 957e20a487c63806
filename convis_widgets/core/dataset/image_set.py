"""ImageSet: a sequence of images with names and labels, read one at a time when needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from ..network.transform import Transform
from ..types import ImagesLike

NOT_IMAGES = {"BUFR", "GRIB", "HDF5", "MPEG", "PDF"}  # formats registered with Pillow that it cannot decode by itself
MIN_SAMPLED = 16  # items of a Dataset without a list of files that enter its fingerprint


class ImageSet(Sequence[Any]):
    """Images with names and, if known, labels. Images are read when needed.

    Parameters
    ----------
    source : path, sequence, array, torch Dataset or ImageSet
        A folder: all images in it and its subfolders, sorted by name; the label is the name of the first subfolder. A
        ``.npz`` file, or an array (N, H, W, C) or (N, H, W). A list of image files, PIL images and arrays, or of pairs
        (image, label). A Toyscape or any ``torch.utils.data.Dataset`` of images or such pairs.
    labels : sequence of int or str, optional
        One for each image, instead of those of the source.
    classes : sequence of str, optional
        Class names of integer labels.
    array : str, optional
        Name of the array of a ``.npz`` file, if it has several arrays of images.

    Attributes
    ----------
    name : str
        Display name of the set.
    names : list of str
        Display name of each image.
    classes : tuple of str
        Class names; empty if there are none.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        The folder or file does not exist, it contains no images, or the source is not a set of images.

    Examples
    --------
    >>> from convis_widgets import demo
    >>> images = ImageSet(demo.Toyscape(20))
    >>> len(images), images.label(3), images.classes[3]
    (20, 3, 'tree')
    """

    def __init__(
        self,
        source: ImagesLike,
        *,
        labels: Iterable[int | str] | None = None,
        classes: Iterable[str] | None = None,
        array: str | None = None,
    ) -> None:
        self.name, self._items, source_labels, source_classes = _open_source(source, array)
        if not len(self._items):
            raise ValueError(f"there are no images in {self.name}")
        self.names: list[str] = getattr(self._items, "names", None) or [f"image {i}" for i in range(len(self))]
        for name, value in (("labels", labels), ("classes", classes)):
            if value is not None and (not isinstance(value, Iterable) or isinstance(value, (str, dict))):
                raise TypeError(f"{name}= takes a list, in the order of the {'images' if name == 'labels' else 'labels'}")
        self.classes = tuple(map(str, classes if classes is not None else source_classes))
        self._labels = self._class_indices(source_labels if labels is None else list(labels))

    def _class_indices(self, labels: Sequence[Any] | None) -> list[int] | None:
        """Labels as integers, -1 for None; class names become the classes of the set unless it has some."""
        if labels is None:
            return None
        if len(labels) != len(self):
            raise ValueError(f"{len(labels)} labels for {len(self)} images; give one for each")
        if not any(isinstance(label, str) for label in labels):
            return [_to_label(label) for label in labels]
        names = [None if label is None else str(label) for label in labels]
        self.classes = self.classes or tuple(sorted({name for name in names if name is not None}))
        index = {name: i for i, name in enumerate(self.classes)}
        for label, name in zip(labels, names, strict=True):
            if name is not None and name not in index:
                raise ValueError(f"the label {label!r} is not one of the classes {', '.join(self.classes)}")
        return [-1 if name is None else index[name] for name in names]

    @classmethod
    def ensure(cls, source: ImagesLike) -> ImageSet:
        """Return an ImageSet as it is, and convert anything else to an ImageSet."""
        return source if isinstance(source, cls) else cls(source)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        """Return an image as it is stored: a path, a PIL image or an array; a list of images for a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return _split_item(self._items[range(len(self))[index]])[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def label(self, index: int) -> int:
        """Label of an image, an index into `classes` if there are any; -1 if unknown."""
        if self._labels is not None:
            return self._labels[index]
        return -1 if self.from_files else self.read(index)[1]

    def read(self, index: int) -> tuple[Any, int]:
        """Read an image as it is stored, and its label."""
        image, label = _split_item(self._items[index])
        return image, label if self._labels is None else self._labels[index]

    def load(self, index: int, transform: Transform) -> tuple[np.ndarray, int]:
        """Load an image as a network sees it, (H, W, C) float32 in [0, 1], and its label.

        Unlike `Transform.image`, this resizes arrays of another size, as it does image files.

        Parameters
        ----------
        index : int
            Index of the image, from 0.
        transform : Transform
            The network's transform.

        Raises
        ------
        ValueError, OSError, TypeError
            The item cannot be read or is not an image.
        """
        source, label = self.read(index)
        return transform.resized_image(source), label

    @property
    def from_files(self) -> bool:
        """Whether the images are files."""
        return isinstance(self._items, _Files)

    @property
    def pixels(self) -> np.ndarray | None:
        """All images (N, H, W[, C]) as stored, if the source is one array."""
        items = getattr(self._items, "items", None)
        return items if isinstance(items, np.ndarray) else None

    def label_name(self, label: int) -> str:
        """Class name of a label, or its number; "" for -1."""
        if label < 0:
            return ""
        return self.classes[label] if label < len(self.classes) else str(label)

    def file_stamp(self, index: int) -> bytes:
        """Name, size and modification time of an image file; empty for other images."""
        return self._items.file_stamp(index) if isinstance(self._items, _Files) else b""

    def file_stamps(self) -> list[bytes]:
        """`file_stamp` of every image; an empty list for images that are not files."""
        return [self.file_stamp(i) for i in range(len(self))] if self.from_files else []

    def fingerprint(self) -> str:
        """Hash that changes with the images, their order, names and labels: of the size and time of files, or of pixels."""
        digest = hashlib.blake2b(digest_size=16)
        for part in self._items.fingerprint():
            digest.update(part)
        digest.update(repr((len(self), self._labels, self.classes)).encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"<ImageSet {self.name}: {len(self)} images{f', {len(self.classes)} classes' if self.classes else ''}>"


class _Files:
    """Image files."""

    def __init__(self, paths: list[Path], names: list[str]) -> None:
        self.paths, self.names = paths, names

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Path:
        return self.paths[i]

    def file_stamp(self, i: int) -> bytes:
        return _file_stamp(self.paths[i], self.names[i])

    def fingerprint(self) -> Iterator[bytes]:
        return map(self.file_stamp, range(len(self)))


class _Items:
    """A sequence of images, of pairs (image, label), or of scenes."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]

    def fingerprint(self) -> Iterator[bytes]:
        in_memory = isinstance(self.items, (list, tuple, np.ndarray, torch.Tensor))
        attributes = [getattr(self.items, name, None) for name in ("seed", "split")]
        attributes = [value if isinstance(value, (int, str)) else None for value in attributes]  # not a tensor's method
        yield repr((type(self.items).__qualname__, attributes)).encode()
        files = getattr(self.items, "samples", None) or getattr(self.items, "imgs", None)  # of torchvision's folders
        if files:
            yield from (_file_stamp(Path(file), str(file)) for file, *_ in files)
            return
        step = 1 if in_memory else max(1, len(self) // MIN_SAMPLED)
        for i in range(0, len(self), step):
            try:
                image, label = _split_item(self.items[i])
                yield _content_hash(image) + str(label).encode()
            except Exception as error:  # noqa: BLE001 (reported when the item is loaded)
                yield type(error).__qualname__.encode()


class _Source(NamedTuple):
    name: str
    items: _Files | _Items
    labels: Sequence[Any] | None = None
    classes: Sequence[str] = ()


def _open_source(source: Any, array: str | None) -> _Source:
    if isinstance(source, ImageSet):
        return _Source(source.name, source._items, source._labels, source.classes)
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        if path.suffix.lower() == ".npz" and path.is_file():
            return _open_npz(path, array)
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            hint = ", or a list of paths" if path.exists() or {"*", "?"} & set(path.name) else ""
            raise FileNotFoundError(f"{path} {what}; give a folder of images, or a .npz file{hint}")
        return _open_folder(path)
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__") or isinstance(source, (dict, bytes)):
        hint = "list(...) of it" if isinstance(source, Iterator) else "a folder, a list, an array or a Dataset"
        raise TypeError(f"{type(source).__name__} is not a set of images; give {hint}")
    shape = tuple(getattr(source, "shape", ()))
    if shape and len(shape) not in (3, 4):
        raise ValueError(f"an array of shape {shape} is not a set of images; it should be (N, H, W, C)")
    is_image = len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > 4
    if is_image or (isinstance(source, torch.Tensor) and len(shape) == 3 and shape[0] == 3 and min(shape[1:]) > 4):
        raise ValueError(f"an array of shape {shape} is a single image; put it into a list for a set of one")
    if isinstance(source, (list, tuple)) and source and all(isinstance(item, (str, os.PathLike)) for item in source):
        paths = [Path(item).expanduser() for item in source]
        return _Source("the files", _Files(paths, [str(path) for path in paths]))
    kind = "list" if isinstance(source, (list, tuple)) else "array" if shape else ""
    name = f"the {kind}" if kind else type(source).__name__
    return _Source(name, _Items(source), _source_labels(source), getattr(source, "classes", ()))


def _source_labels(source: Any) -> list[Any] | None:
    """Labels of a list or Dataset, as far as they are known without reading images."""
    get_label = getattr(source, "label", None)
    if callable(get_label):  # of a Toyscape, without rendering the scene
        return [_to_label(get_label(i)) for i in range(len(source))]
    targets = getattr(source, "targets", None)
    if targets is not None:
        return [_to_label(target) for target in targets]
    if isinstance(source, (list, tuple)) and any(_has_label_name(item) for item in source):
        return [item[1] if isinstance(item, (list, tuple)) and len(item) == 2 else None for item in source]
    return None


def _open_folder(folder: Path) -> _Source:
    Image.init()
    extensions = Image.registered_extensions().items()
    suffixes = {suffix for suffix, kind in extensions if kind in Image.OPEN and kind not in NOT_IMAGES}
    paths: list[Path] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        current = Path(root).resolve()
        ancestors = {current, *current.parents}  # a link to one of them is a cycle
        folders[:] = sorted(n for n in folders if not n.startswith(".") and (Path(root) / n).resolve() not in ancestors)
        paths += [Path(root) / name for name in files if not name.startswith(".") and Path(name).suffix.lower() in suffixes]
    names = sorted(path.relative_to(folder).as_posix() for path in paths)
    if not names:
        raise ValueError(f"there are no images in {folder}; image files end in .jpg, .png or the like")
    labels = [name.partition("/")[0] if "/" in name else None for name in names]
    classes = sorted({label for label in labels if label is not None})
    files_in_order = _Files([folder / name for name in names], names)
    return _Source(folder.resolve().name, files_in_order, labels if classes else None, classes)


def _open_npz(path: Path, array: str | None) -> _Source:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:
        raise ValueError(f"{path.name} cannot be read; it should be a .npz file of plain arrays") from error
    image_arrays = [name for name, value in arrays.items() if value.ndim in (3, 4) and value.dtype.kind in "uf"]
    if array is None and not image_arrays:
        raise ValueError(f"{path.name} has no array of images")
    if array is None and len(image_arrays) > 1:
        example = f'ImageSet("{path.name}", array="{image_arrays[0]}")'
        raise ValueError(f"{path.name} has several arrays of images: {', '.join(image_arrays)}; name one: {example}")
    if array is not None and array not in image_arrays:
        raise ValueError(f"{path.name} has no array of images called {array!r}; it has {', '.join(image_arrays)}")
    images = array or image_arrays[0]
    count = len(arrays[images])
    one_per_image = [n for n, a in arrays.items() if a.dtype.kind in "iufU" and a.shape in ((count,), (count, 1))]
    candidates = [n for word in ("label", "target", "y") for n in one_per_image if _is_label_array(n, images, word)]
    labels = arrays[candidates[0]].ravel().tolist() if candidates else None
    classes = arrays["classes"].tolist() if "classes" in arrays else ()
    return _Source(path.stem, _Items(arrays[images]), labels, classes)


def _is_label_array(labels: str, images: str, word: str) -> bool:
    """Whether the names of two arrays match: y_test those of x_test, train_labels those of train_images.

    The part of `labels` that `images` does not have must start with `word`.
    """
    image_parts, label_parts = (
        set(name.lower().split("_")) - {"x", "images", "image", "data", "pictures"} for name in (images, labels)
    )
    extra = label_parts - image_parts
    return image_parts <= label_parts and len(extra) == 1 and extra.pop().startswith(word)


def _has_label_name(item: Any) -> bool:
    """Whether an item is a pair of an image and a class name."""
    return isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[1], str)


def _split_item(item: Any) -> tuple[Any, int]:
    """(image, label) of an item of a Dataset; label -1 if unknown or a class name."""
    if hasattr(item, "image") and hasattr(item, "label"):
        return item.image, _to_label(item.label)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], -1 if isinstance(item[1], str) else _to_label(item[1])
    if isinstance(item, (tuple, list)) and len(item) == 1:  # of a TensorDataset without labels
        return item[0], -1
    return item, -1


def _to_label(label: Any) -> int:
    """A label as an integer, -1 for None; ValueError if it is not an integer."""
    if label is None:
        return -1
    value = np.asarray(label)
    is_number = value.size == 1 and value.dtype.kind in "iubf"
    if is_number and value.item() % 1 == 0 and abs(value.item()) < 2**31:
        return int(value.item())
    what = value.item() if is_number else f"of shape {value.shape}" if value.ndim else f"of type {type(label).__name__}"
    raise ValueError(f"the label {what} is not an integer; give one for each image, or a name")


def _file_stamp(path: Path, name: str) -> bytes:
    try:
        state = path.stat()
        return f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="surrogateescape")
    except OSError:
        return f"{name}\0missing\n".encode(errors="surrogateescape")


def _content_hash(image: Any) -> bytes:
    if isinstance(image, (str, os.PathLike)):
        return _file_stamp(Path(image), str(image))
    if isinstance(image, Image.Image):
        return repr((image.mode, image.size)).encode() + hashlib.blake2b(image.tobytes()).digest()
    values = np.ascontiguousarray(image)
    return repr((values.shape, values.dtype.str)).encode() + hashlib.blake2b(values.view(np.uint8).data).digest()
