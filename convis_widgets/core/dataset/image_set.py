"""ImageSet: a sequence of images with names and labels, read one at a time when needed."""

from __future__ import annotations

import hashlib
import os.path
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import did_you_mean
from ..network.labels import LabelsLike, read_labels
from ..network.transform import Transform
from ..text import one_line
from ..types import ImagesLike
from .image_source import Files, ImageSource, class_index, describe_label, open_source, split_item, to_label


class ImageSet(Sequence[Any]):
    """Images with names and, if known, labels. Images are read when needed.

    Parameters
    ----------
    source : path, sequence, array, torch Dataset or ImageSet
        A folder: all images in it and its subfolders, sorted by name; the label is the name of the first subfolder. A
        ``.npz`` file, or an array (N, H, W, C) or (N, H, W). A list of image files, PIL images and arrays, or a column of
        pandas, or a list of tuples (image, label, ...) or dicts with "image" and "label". A Toyscape or any
        ``torch.utils.data.Dataset`` of such items, or a Subset of one. A one-hot vector is the label of its class; images
        with other labels, such as boxes and masks, are unlabeled.
    labels : sequence of int or str, optional
        One for each image, instead of those of the source.
    classes : sequence of str, or dict, optional
        Class names of integer labels, in their order; or ``{index: name}`` or ``{name: index}``.
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
    note : str
        A sentence if labels of the source, as far as they were read, are not those of classes; "" otherwise.

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
        classes: LabelsLike | None = None,
        array: str | None = None,
    ) -> None:
        self.name, self._items, source_labels, source_classes = open_source(source, array)
        self.note = ""
        if not len(self._items):
            raise ValueError(f"there are no images in {self.name}")
        self.names: list[str] = self._items.names or [f"image {i}" for i in range(len(self))]
        if isinstance(classes, Mapping):
            classes = read_labels(classes, len(classes), keyword="classes")
        for name, value in (("labels", labels), ("classes", classes)):
            if value is not None and (not isinstance(value, Iterable) or isinstance(value, (str, dict, set, frozenset))):
                raise TypeError(f"{name}= takes a list, in the order of the {'images' if name == 'labels' else 'labels'}")
        self.classes = tuple(map(str, classes if classes is not None else source_classes))
        if labels is not None:
            source_labels = self._class_indices(list(labels))
        elif source_labels is not None:
            source_labels = self._source_indices(source_labels)
        self._labels: list[int] | None = source_labels

    def _class_indices(self, labels: Sequence[Any]) -> list[int]:
        """Labels as integers, -1 for None; class names become the classes of the set unless it has some."""
        if len(labels) != len(self):
            raise ValueError(f"{len(labels)} labels for {len(self)} images; give one for each")
        if not any(isinstance(label, str) for label in labels):
            return [to_label(label) for label in labels]
        names = [None if label is None else str(label) for label in labels]
        self.classes = self.classes or tuple(sorted({name for name in names if name is not None}))
        index = {name: i for i, name in enumerate(self.classes)}
        for name in set(names) if len(index) < len(self.classes) else ():
            same = [i for i, other in enumerate(self.classes) if other == name]
            if len(same) > 1:
                raise ValueError(
                    f"the label {one_line(name, 60)!r} is the name of classes {' and '.join(map(str, same))}; give their "
                    "numbers as labels"
                )
        for name in names:
            if name is not None and name not in index:
                given = one_line(name, 60)
                raise ValueError(
                    f"the label {given!r} is not one of the classes; {did_you_mean(given, self.classes[:1000])}"
                )
        return [-1 if name is None else index[name] for name in names]

    def _source_indices(self, labels: Sequence[Any]) -> list[int]:
        """Labels of the source as integers; -1, and a note, for those that are not of classes."""
        first = next((label for label in labels if isinstance(label, str)), None)
        if first is not None and not os.path.isfile(first):  # noqa: PTH113 (which never raises) files of masks are not names
            return self._class_indices(labels)
        return [self._item_label(label) for label in labels]

    def _item_label(self, label: Any) -> int:
        index = class_index(label, self.classes)
        if index is None and not self.note:
            self.note = (
                f"{self.name} has labels that are not classes (the first: {describe_label(label)}); its images are used "
                "without them, unless labels= is given"
            )
        return -1 if index is None else index

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
        return split_item(self._items[range(len(self))[index]])[0]

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    def label(self, index: int) -> int:
        """Label of an image, an index into `classes` if there are any; -1 if unknown."""
        if self._labels is not None:
            return self._labels[index]
        return -1 if self.from_files else self.read(index)[1]

    def read(self, index: int) -> tuple[Any, int]:
        """Read an image as it is stored, and its label."""
        image, label = split_item(self._items[index])
        return image, self._item_label(label) if self._labels is None else self._labels[index]

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
        return isinstance(self._items, Files)

    @property
    def source(self) -> ImageSource:
        """What the set consists of."""
        return ImageSource(self.name, self._items, self._labels, self.classes)

    @property
    def pixels(self) -> np.ndarray | None:
        """All images (N, H, W[, C]) as stored, if the source is one array."""
        items, indices = getattr(self._items, "items", None), getattr(self._items, "indices", None)
        if not isinstance(items, np.ndarray):
            return None
        return items if indices is None else items[indices]

    def label_name(self, label: int) -> str:
        """Class name of a label, or its number; "" for -1."""
        if label < 0:
            return ""
        return one_line(self.classes[label]) if label < len(self.classes) else str(label)

    def file_stamp(self, index: int) -> bytes:
        """Name, size and modification time of an image file; empty for other images."""
        return self._items.file_stamp(index) if isinstance(self._items, Files) else b""

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
        classes = f", {len(self.classes)} classes" if self.classes else ""
        return f"<ImageSet {self.name}: {len(self)} images{classes}{f'; {self.note}' if self.note else ''}>"
