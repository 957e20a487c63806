"""Reader: the pictures of a set as a network sees them, batch after batch, decoded ahead by worker processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from .image_set import ImageSet
from .images import to_bytes
from .run import checkpoint
from .transform import Transform

MANY = 500  # pictures from which processes are worth their start of some seconds


class Reader:
    """Reads batches of pictures in order.

    Parameters
    ----------
    images : ImageSet
    transform : Transform
    workers : int
        Processes that decode; 0 for none. Only files are worth it.
    batch : int
        Pictures in each batch but the first and the last.
    """

    def __init__(self, images: ImageSet, transform: Transform, workers: int, batch: int) -> None:
        self._views, self._workers, self._batch = _Views(images, transform), workers, batch
        self._coming: Iterator[list[Any]] | None = None
        self._next = -1  # where the batch begins that comes

    def read(self, start: int, stop: int) -> list[tuple[np.ndarray, int] | str]:
        """For each picture itself, (H, W, C) float32, and its label, or what is wrong with it."""
        if not self._workers:
            found = []
            for i in range(start, stop):
                checkpoint()
                found.append(self._views[i])
            return found
        if self._coming is None or self._next != start:
            self._coming = iter(self._loader(start, stop))
        self._next = stop
        items = [
            (item[0].astype(np.float32) / 255, item[1]) if isinstance(item, tuple) else item for item in next(self._coming)
        ]
        checkpoint()
        return items

    def close(self) -> None:
        """End the processes."""
        self._coming = None

    def _loader(self, start: int, stop: int) -> DataLoader:
        count = len(self._views)
        ranges = [range(start, stop), *(range(i, min(i + self._batch, count)) for i in range(stop, count, self._batch))]
        # a fork would take along the locks that other threads of a notebook's kernel hold
        context = "spawn" if sys.platform == "win32" else "forkserver"
        return DataLoader(
            _Small(self._views),
            batch_sampler=ranges,
            num_workers=self._workers,
            collate_fn=list,
            multiprocessing_context=context,
        )


class _Views:
    def __init__(self, images: ImageSet, transform: Transform) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int] | str:
        try:
            return self.images.view(i, self.transform)
        except Exception as error:  # noqa: BLE001 (one bad file, or item of a user's Dataset, is no reason to end)
            return f"{self.images.names[i]}: {error}"


class _Small(_Views):
    """Photos have 8 bits: so they go from one process to the other, without loss."""

    def __init__(self, views: _Views) -> None:
        super().__init__(views.images, views.transform)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int] | str:
        found = super().__getitem__(i)
        return found if isinstance(found, str) else (to_bytes(found[0]), found[1])
