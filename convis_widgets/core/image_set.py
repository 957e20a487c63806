"""ImageSet: many pictures, read one at a time when they are needed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .transform import Transform

NO_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG", "PDF"}  # Pillow knows their endings and cannot decode them by itself
SAMPLED = 16  # items of a data set that are looked at to tell whether it has changed, where it has no list of files


class ImageSet(Sequence[Any]):
    """Pictures with their names and, where they are known, their labels. Nothing is read before it is asked for.

    Parameters
    ----------
    source : path, sequence, array, torch Dataset or ImageSet
        A folder: all pictures in it and below, in the order of their names; those in subfolders have the first one's name
        for a label. A ``.npz`` file, or an array (N, H, W, C) or (N, H, W). A list of files, PIL pictures and arrays, or of
        pairs (picture, label). A Toyscape or any ``torch.utils.data.Dataset`` of pictures or such pairs.
    labels : sequence of int or str, optional
        One for each picture, instead of those that the source has.
    classes : sequence of str, optional
        The names of whole-number labels.
    array : str, optional
        Which array of a ``.npz`` file, if it has several that hold pictures.

    Attributes
    ----------
    name : str
        What to call the set on screen.
    names : list of str
        What to call each picture.
    classes : tuple of str
        Names of the labels; empty without labels.

    Raises
    ------
    FileNotFoundError, ValueError, TypeError
        There is no such folder or file, no picture in it, or it is no set of pictures.

    Examples
    --------
    >>> from convis_widgets import demo
    >>> images = ImageSet(demo.Toyscape(20))
    >>> len(images), images.label(3), images.classes[3]
    (20, 3, 'tree')
    """

    def __init__(
        self,
        source: Any,
        *,
        labels: Iterable[int | str] | None = None,
        classes: Iterable[str] | None = None,
        array: str | None = None,
    ) -> None:
        self.name, self._items, found, known = _opened(source, array)
        if not len(self._items):
            raise ValueError(f"there is no picture in {self.name}")
        self.names = getattr(self._items, "names", None) or [f"picture {i}" for i in range(len(self))]
        for name, value in (("labels", labels), ("classes", classes)):
            if value is not None and (not isinstance(value, Iterable) or isinstance(value, (str, dict))):
                raise TypeError(f"{name}= takes a list, in the order of the {'pictures' if name == 'labels' else 'labels'}")
        given = found if labels is None else list(labels)
        if given is not None and len(given) != len(self):
            raise ValueError(f"{len(given)} labels for {len(self)} pictures; give one for each")
        self.classes = tuple(map(str, classes if classes is not None else known))
        self._labels: list[int] | None = None
        if given is not None:
            if any(isinstance(label, str) for label in given):
                self.classes = self.classes or tuple(sorted({str(label) for label in given if label is not None}))
                index = {label: i for i, label in enumerate(self.classes)}
                strange = next((label for label in given if label is not None and str(label) not in index), None)
                if strange is not None:
                    raise ValueError(f"the label {strange!r} is none of the classes {', '.join(self.classes)}")
                self._labels = [-1 if label is None else index[str(label)] for label in given]
            else:
                self._labels = [_label(label) for label in given]

    @classmethod
    def ensure(cls, source: Any) -> ImageSet:
        """An ImageSet as it is, anything else as an ImageSet."""
        return source if isinstance(source, cls) else cls(source)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        """Picture `index`, as it is stored: a path, a PIL picture or an array; a slice gives a list."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return _parts(self._items[range(len(self))[index]])[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def label(self, index: int) -> int:
        """The label of a picture, an index into `classes` where there are names; -1 if it has none."""
        if self._labels is not None:
            return self._labels[index]
        return -1 if self.of_files else self.read(index)[1]

    def read(self, index: int) -> tuple[Any, int]:
        """A picture as it is stored, and its label."""
        picture, label = _parts(self._items[index])
        return picture, label if self._labels is None else self._labels[index]

    def view(self, index: int, transform: Transform) -> tuple[np.ndarray, int]:
        """A picture as a network sees it, (H, W, C) float32 in [0, 1], and its label.

        Other than for a single picture, an array of another size than the network's is resized as a photo would be.

        Raises
        ------
        ValueError, OSError, TypeError
            It cannot be read, or is no picture.
        """
        source, label = self.read(index)
        return transform.fit(source), label

    @property
    def of_files(self) -> bool:
        """Whether the pictures are files."""
        return isinstance(self._items, _Files)

    @property
    def pixels(self) -> np.ndarray | None:
        """All pictures (N, H, W[, C]) as they are stored, if that is one array."""
        items = getattr(self._items, "items", None)
        return items if isinstance(items, np.ndarray) else None

    def label_name(self, label: int) -> str:
        """What a label is called; "" for none."""
        if label < 0:
            return ""
        return self.classes[label] if label < len(self.classes) else str(label)

    def stamp(self, index: int) -> bytes:
        """Changes when a file does; empty for a picture that is no file."""
        return self._items.stamp(index) if self.of_files else b""

    def signature(self) -> str:
        """Changes when a picture, its name or its place does: files are told by size and time, arrays by content."""
        digest = hashlib.blake2b(digest_size=16)
        for part in self._items.signature():
            digest.update(part)
        digest.update(repr((len(self), self._labels, self.classes)).encode())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"<ImageSet {self.name}: {len(self)} pictures{f', {len(self.classes)} classes' if self.classes else ''}>"


class _Files:
    """Picture files, known by size and time of change."""

    def __init__(self, paths: list[Path], names: list[str]) -> None:
        self.paths, self.names = paths, names

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Path:
        return self.paths[i]

    def stamp(self, i: int) -> bytes:
        return _stamp(self.paths[i], self.names[i])

    def signature(self) -> Iterator[bytes]:
        return map(self.stamp, range(len(self)))


class _Items:
    """A sequence of pictures, or of pairs of a picture and its label, or of scenes."""

    def __init__(self, items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]

    def signature(self) -> Iterator[bytes]:
        listed = isinstance(self.items, (list, tuple, np.ndarray, torch.Tensor))
        words = [getattr(self.items, name, None) for name in ("seed", "split")]
        words = [word if isinstance(word, (int, str)) else None for word in words]  # not a method, as a tensor's
        yield repr((type(self.items).__qualname__, words)).encode()
        files = getattr(self.items, "samples", None) or getattr(self.items, "imgs", None)  # torchvision's folders
        if files:
            yield from (_stamp(Path(file), str(file)) for file, *_ in files)
            return
        step = 1 if listed else max(1, len(self) // SAMPLED)
        for i in range(0, len(self), step):
            try:
                picture, label = _parts(self.items[i])
                yield _content(picture) + str(label).encode()
            except Exception as error:  # noqa: BLE001 (it will be told when it is looked at)
                yield type(error).__qualname__.encode()


def _opened(source: Any, array: str | None) -> tuple[str, Any, list[Any] | None, Sequence[Any]]:
    """(name, items, labels or None, classes) of whatever a user means by a set of pictures."""
    if isinstance(source, ImageSet):
        return source.name, source._items, source._labels, source.classes
    if isinstance(source, (str, os.PathLike)):
        path = Path(source).expanduser()
        if path.suffix.lower() == ".npz" and path.is_file():
            return _npz(path, array)
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            hint = ", or a list of paths" if path.exists() or {"*", "?"} & set(path.name) else ""
            raise FileNotFoundError(f"{path} {what}; give a folder with pictures, or a .npz file{hint}")
        return _folder(path)
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__") or isinstance(source, (dict, bytes)):
        hint = "list(...) of it" if isinstance(source, Iterator) else "a folder, a list, an array or a Dataset"
        raise TypeError(f"{type(source).__name__} is no set of pictures; give {hint}")
    shape = tuple(getattr(source, "shape", ()))
    if shape and len(shape) not in (3, 4):
        raise ValueError(f"an array of shape {shape} is no set of pictures; it should be (N, H, W, C)")
    photo = len(shape) == 3 and shape[2] in (3, 4) and min(shape[:2]) > 4
    if photo or (isinstance(source, torch.Tensor) and len(shape) == 3 and shape[0] == 3 and min(shape[1:]) > 4):
        raise ValueError(f"an array of shape {shape} is one picture; put it into a list for a set of one")
    if isinstance(source, (list, tuple)) and source and all(isinstance(item, (str, os.PathLike)) for item in source):
        paths = [Path(item).expanduser() for item in source]
        return "the files", _Files(paths, [str(path) for path in paths]), None, ()
    labels = getattr(source, "targets", None)
    label = getattr(source, "label", None)
    if callable(label):  # of a Toyscape, which draws no scene for it
        labels = [label(i) for i in range(len(source))]
    if labels is None and isinstance(source, (list, tuple)) and any(_named(item) for item in source):
        labels = [item[1] if isinstance(item, (list, tuple)) and len(item) == 2 else None for item in source]
    elif labels is not None:
        labels = [_label(item) for item in labels]
    kind = "list" if isinstance(source, (list, tuple)) else "array" if shape else ""
    return f"the {kind}" if kind else type(source).__name__, _Items(source), labels, getattr(source, "classes", ())


def _folder(folder: Path) -> tuple[str, _Files, list[Any] | None, Sequence[str]]:
    Image.init()
    suffixes = {end for end, kind in Image.registered_extensions().items() if kind in Image.OPEN and kind not in NO_PICTURES}
    found: list[Path] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        here = Path(root).resolve()
        above = {here, *here.parents}  # a link to one of them is a circle
        folders[:] = sorted(n for n in folders if not n.startswith(".") and (Path(root) / n).resolve() not in above)
        found += [Path(root) / name for name in files if not name.startswith(".") and Path(name).suffix.lower() in suffixes]
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    if not names:
        raise ValueError(f"there is no picture in {folder}; its files should end in .jpg, .png or the like")
    groups = [name.partition("/")[0] if "/" in name else None for name in names]
    classes = sorted({group for group in groups if group is not None})
    return folder.resolve().name, _Files([folder / name for name in names], names), groups if classes else None, classes


def _npz(path: Path, array: str | None) -> tuple[str, _Items, list[int] | None, Sequence[str]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:
        raise ValueError(f"{path.name} cannot be read; it should be a .npz file of plain arrays") from error
    pictures = [name for name, value in arrays.items() if value.ndim in (3, 4) and value.dtype.kind in "uf"]
    if array is None and len(pictures) != 1:
        what = (
            f'several arrays of pictures: {", ".join(pictures)}; name one: ImageSet("{path.name}", array="{pictures[0]}")'
            if pictures
            else "no array of pictures"
        )
        raise ValueError(f"{path.name} has {what}")
    if array is not None and array not in pictures:
        raise ValueError(f"{path.name} has no array of pictures called {array!r}; there are: {', '.join(pictures)}")
    chosen = array or pictures[0]
    count = len(arrays[chosen])
    whole = [name for name, value in arrays.items() if value.dtype.kind in "iufU" and value.shape in ((count,), (count, 1))]
    labels = next((name for part in ("label", "target", "y") for name in whole if _pair(part, chosen, name)), None)
    classes = arrays["classes"].tolist() if "classes" in arrays else ()
    return path.stem, _Items(arrays[chosen]), arrays[labels].ravel().tolist() if labels else None, classes


def _pair(part: str, pictures: str, labels: str) -> bool:
    """Whether an array called `labels` belongs to one called `pictures`: y_test to x_test, train_labels to train_images."""
    said = [set(name.lower().split("_")) - {"x", "images", "image", "data", "pictures"} for name in (pictures, labels)]
    words = said[1] - said[0]
    return said[0] <= said[1] and len(words) == 1 and words.pop().startswith(part)


def _named(item: Any) -> bool:
    """Whether it is a pair of a picture and a label's name."""
    return isinstance(item, (list, tuple)) and len(item) == 2 and isinstance(item[1], str)


def _parts(item: Any) -> tuple[Any, int]:
    """(picture, label or -1) of an item of a data set."""
    if hasattr(item, "image") and hasattr(item, "label"):
        return item.image, _label(item.label)
    if isinstance(item, (tuple, list)) and len(item) == 2:
        return item[0], -1 if isinstance(item[1], str) else _label(item[1])
    if isinstance(item, (tuple, list)) and len(item) == 1:  # of a TensorDataset without labels
        return item[0], -1
    return item, -1


def _label(label: Any) -> int:
    """A label as a whole number, -1 for none; ValueError if it is neither."""
    if label is None:
        return -1
    value = np.asarray(label)
    number = value.size == 1 and value.dtype.kind in "iubf"
    if number and value.item() % 1 == 0 and abs(value.item()) < 2**31:
        return int(value.item())
    what = value.item() if number else f"of shape {value.shape}" if value.ndim else f"of type {type(label).__name__}"
    raise ValueError(f"the label {what} is no whole number; give one for each picture, or a name")


def _stamp(path: Path, name: str) -> bytes:
    try:
        state = path.stat()
        return f"{name}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="surrogateescape")
    except OSError:
        return f"{name}\0missing\n".encode(errors="surrogateescape")


def _content(picture: Any) -> bytes:
    if isinstance(picture, (str, os.PathLike)):
        return _stamp(Path(picture), str(picture))
    if isinstance(picture, Image.Image):
        return repr((picture.mode, picture.size)).encode() + hashlib.blake2b(picture.tobytes()).digest()
    values = np.ascontiguousarray(picture)
    return repr((values.shape, values.dtype.str)).encode() + hashlib.blake2b(values.view(np.uint8).data).digest()
