"""ImageLoader: batches of network inputs from an image set, decoded in this process or ahead of time in worker processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..network.images import to_uint8
from ..network.transform import Transform
from ..runs.run import raise_if_stopped
from ..threads import cpu_count
from .image_set import ImageSet

MIN_FOR_WORKERS = 500  # images from which the start of worker processes, some seconds, pays off


def auto_workers(images: ImageSet, device: torch.device) -> int:
    """Number of decoding processes by default: several for many files beside a GPU in a notebook, else 0.

    Parameters
    ----------
    images : ImageSet
    device : torch.device
        Device of the network.
    """
    # a new process imports the main module: a script without a main guard would start over in every worker
    in_notebook = not hasattr(sys.modules["__main__"], "__file__")
    many_files = images.from_files and len(images) >= MIN_FOR_WORKERS
    return min(8, cpu_count() - 1) if in_notebook and device.type == "cuda" and many_files else 0


class ImageLoader:
    """Loads batches of images in order.

    Parameters
    ----------
    images : ImageSet
    transform : Transform
    workers : int
        Number of processes that decode image files; 0 for none.
    batch_size : int
        Size of the batches that follow the first; the last may be smaller.
    """

    def __init__(self, images: ImageSet, transform: Transform, workers: int, batch_size: int) -> None:
        self._dataset, self._workers, self._batch_size = _Dataset(images, transform), workers, batch_size
        self._batches: Iterator[list[Any]] | None = None
        self._next_start = -1  # first image of the next batch from the workers

    def load(self, start: int, stop: int) -> list[tuple[np.ndarray, int] | str]:
        """Load images `start` to `stop`: for each (image, label), or an error message.

        Images are (H, W, C) float32 in [0, 1], as the network sees them.

        Parameters
        ----------
        start : int
            Index of the first image.
        stop : int
            Index after the last image, at most the number of images.
        """
        if not self._workers:
            loaded = []
            for i in range(start, stop):
                raise_if_stopped()
                loaded.append(self._dataset[i])
            return loaded
        if self._batches is None or self._next_start != start:
            self._batches = iter(self._data_loader(start, stop))
        self._next_start = stop
        batch = next(self._batches)
        items = [(item[0].astype(np.float32) / 255, item[1]) if isinstance(item, tuple) else item for item in batch]
        raise_if_stopped()
        return items

    def close(self) -> None:
        """End the worker processes."""
        self._batches = None

    def _data_loader(self, start: int, stop: int) -> DataLoader:
        count, size = len(self._dataset), self._batch_size
        batches: list[Any] = [range(start, stop), *(range(i, min(i + size, count)) for i in range(stop, count, size))]
        # a fork would copy locks held by other threads of a notebook kernel
        context = "spawn" if sys.platform == "win32" else "forkserver"
        return DataLoader(
            _UInt8Dataset(self._dataset.images, self._dataset.transform),
            batch_sampler=batches,
            num_workers=self._workers,
            collate_fn=list,
            multiprocessing_context=context,
        )


class _Dataset(Dataset[tuple[np.ndarray, int] | str]):
    """(image, label), or an error message, by index."""

    def __init__(self, images: ImageSet, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int] | str:
        try:
            return self.images.load(i, self.transform)
        except Exception as error:  # noqa: BLE001 (one bad file or item does not end the scan)
            return f"{self.images.names[i]}: {error}"


class _UInt8Dataset(_Dataset):
    """Passes images between processes as uint8, which is lossless for image files."""

    def __getitem__(self, i: int) -> tuple[np.ndarray, int] | str:
        item = super().__getitem__(i)
        return item if isinstance(item, str) else (to_uint8(item[0]), item[1])
