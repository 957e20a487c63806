"""ImageBatch: consecutive images of a set as a network sees them, with their labels and thumbnails."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..network.images import to_float, to_uint8
from ..network.transform import Transform
from ..runs.run import raise_if_stopped

THUMBNAIL_SIDE = 48  # pixels of the longer side


@dataclass(frozen=True)
class ImageBatch:
    """Images that could be read, and why others could not.

    Attributes
    ----------
    indices : list of int
        The m images that could be read.
    pixels : (m, H, W, C) uint8 array, or float32 in [0, 1]
    labels : (m,) int array
        -1 where unknown.
    thumbnails : (m, h, w, 3) uint8 array
    errors : dict of int to str
        The other images.
    """

    indices: list[int]
    pixels: np.ndarray
    labels: np.ndarray
    thumbnails: np.ndarray
    errors: dict[int, str]

    def without(self, indices: Container[int]) -> ImageBatch:
        """The images but those with these indices; all errors."""
        rows = [row for row, i in enumerate(self.indices) if i not in indices]
        kept = [self.indices[row] for row in rows]
        return ImageBatch(kept, self.pixels[rows], self.labels[rows], self.thumbnails[rows], self.errors)


def read_batch(read: Callable[[int], tuple[Any, int]], indices: Iterable[int], transform: Transform) -> ImageBatch:
    """Read, decode and resize images.

    Parameters
    ----------
    read : function
        From an index to the image as it is stored and its label, see `ImageSet.read`. If it raises, the image is one of
        `errors`.
    indices : iterable of int
    transform : Transform
    """
    images, labels, errors = dict[int, np.ndarray](), list[int](), dict[int, str]()
    for i in indices:
        raise_if_stopped()
        try:
            source, label = read(i)
            images[i] = transform.resized_pixels(source)
            labels.append(label)
        except Exception as error:  # noqa: BLE001 (one bad file or item of a user's Dataset does not end the scan)
            errors[i] = str(error)
    arrays = list(images.values())
    if any(array.dtype != np.uint8 for array in arrays):
        arrays = list(map(to_float, arrays))
    size = thumbnail_size(transform)
    thumbnails = [_thumbnail(array, size) for array in arrays]
    empty = np.empty((0, *transform.size, transform.channels), np.uint8)
    return ImageBatch(
        list(images),
        np.stack(arrays) if arrays else empty,
        np.array(labels, np.int64),
        np.stack(thumbnails) if arrays else np.empty((0, *size, 3), np.uint8),
        errors,
    )


def join_batches(batches: Sequence[ImageBatch]) -> ImageBatch:
    """One batch of the images of several, which are all from files.

    Parameters
    ----------
    batches : sequence of ImageBatch
    """
    if len(batches) == 1:
        return batches[0]
    return ImageBatch(
        [i for batch in batches for i in batch.indices],
        np.concatenate([batch.pixels for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
        np.concatenate([batch.thumbnails for batch in batches]),
        {i: error for batch in batches for i, error in batch.errors.items()},
    )


def thumbnail_size(transform: Transform) -> tuple[int, int]:
    """Height and width of the thumbnails of a network's images."""
    height, width = transform.size
    scale = min(1.0, THUMBNAIL_SIDE / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _thumbnail(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    pixels = array if array.dtype == np.uint8 else to_uint8(array)
    image = Image.fromarray(pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]).convert("RGB")
    return np.asarray(image if size == pixels.shape[:2] else image.resize(size[::-1], Image.Resampling.BOX))
