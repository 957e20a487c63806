"""ImageLoader: batches of an image set in order, decoded in this process or ahead of time in worker processes.

The worker processes are loky's, which do not import the main module: a script needs no ``if __name__ == "__main__":``.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from concurrent.futures import Future, wait
from typing import TYPE_CHECKING

import psutil

from ..network.transform import Transform
from ..runs.run import raise_if_stopped
from ..threads import cpu_count
from .image_batch import ImageBatch, join_batches, read_batch
from .image_set import ImageSet

if TYPE_CHECKING:
    from loky import ProcessPoolExecutor

MIN_SAVED_SECONDS = 10.0  # that workers must save, since their start takes some seconds of all cores
MAX_WORKERS = 8  # that are started by themselves
TASK_IMAGES = 16  # decoded by a worker at a time
IDLE_SECONDS = 60  # after which workers end, as those of a paused Run
PARENT_PERIOD = 1.0  # seconds between two looks of a worker at whether its parent has ended


class ImageLoader:
    """Loads batches of images in order.

    Parameters
    ----------
    images : ImageSet
    transform : Transform
    batch_size : int
        Size of the batches that follow the first; the last may be smaller.
    workers : int, optional
        Number of processes that decode image files, 0 for none. Default: as many as keep up with what is done between
        two calls of `load`, once it is known that they save `MIN_SAVED_SECONDS`.

    Examples
    --------
    >>> from convis_widgets import demo
    >>> loader = ImageLoader(ImageSet(demo.Toyscape(20)), Transform((64, 64)), 8)
    >>> loader.load(8, 16).pixels.shape
    (8, 64, 64, 3)
    """

    def __init__(self, images: ImageSet, transform: Transform, batch_size: int, workers: int | None = None) -> None:
        self._images, self._transform, self._batch_size = images, transform, batch_size
        self._workers = workers if images.from_files else 0
        self._executor: ProcessPoolExecutor | None = None
        self._pending: dict[int, list[Future[ImageBatch]]] = {}  # by the first image of the batch
        self._pending_stop = -1  # first image after those that are pending
        self._workers_ready = False  # whether they have decoded something
        self._decode_seconds = self._other_seconds = math.inf  # per image: smallest so far
        self._returned = (-1, 0, 0.0)  # end and size of the last batch, and when it was returned

    def load(self, start: int, stop: int) -> ImageBatch:
        """Load the images from `start` to `stop`, as the network sees them.

        Parameters
        ----------
        start : int
            Index of the first image.
        stop : int
            Index after the last image, at most the number of images.
        """
        self._choose_workers(start)
        batch = self._load_by_workers(start, stop, self._workers) if self._workers else None
        batch = batch or self._load_here(start, stop)
        self._returned = stop, stop - start, time.perf_counter()
        return batch

    def is_ready(self, start: int) -> bool:
        """Whether workers have decoded the batch that starts with this image."""
        return start in self._pending and all(future.done() for future in self._pending[start])

    def close(self) -> None:
        """End the worker processes."""
        executor, self._executor = self._executor, None
        self._drop()
        if executor is not None:
            executor.shutdown(wait=False)

    def _load_here(self, start: int, stop: int) -> ImageBatch:
        begin = time.perf_counter()
        batch = read_batch(self._images.read, range(start, stop), self._transform)
        self._decode_seconds = min(self._decode_seconds, (time.perf_counter() - begin) / (stop - start))
        return batch

    def _choose_workers(self, start: int) -> None:
        """Set the number of workers as soon as it is known that they pay off, unless it is given."""
        last_stop, size, time_returned = self._returned
        if last_stop == start:
            self._other_seconds = min(self._other_seconds, (time.perf_counter() - time_returned) / size)
        saved = (len(self._images) - start) * min(self._decode_seconds, self._other_seconds)
        if self._workers is None and MIN_SAVED_SECONDS < saved < math.inf:
            needed = math.ceil(self._decode_seconds / self._other_seconds)
            self._workers = min(needed, MAX_WORKERS, cpu_count() - 1)

    def _load_by_workers(self, start: int, stop: int, workers: int) -> ImageBatch | None:
        """The batch from the workers; None while they start, or if they fail."""
        try:
            self._submit(start, stop, workers)
            return self._receive(start)
        except Exception:  # noqa: BLE001 (a worker was killed or cannot start: this process decodes the images itself)
            self._workers = 0
            self.close()
            return None

    def _submit(self, start: int, stop: int, workers: int) -> None:
        """Keep the workers busy with the images from `start` on; the batch that is needed now ends with `stop`."""
        if self._executor is None:
            from loky import ProcessPoolExecutor

            self._workers_ready = False
            self._executor = ProcessPoolExecutor(
                workers, timeout=IDLE_SECONDS, initializer=_start_worker, initargs=(os.getpid(),)
            )
        if start not in self._pending and start != self._pending_stop:
            self._drop()
            self._pending_stop = start
        ahead = start + 2 * self._batch_size + workers * TASK_IMAGES
        while self._pending_stop < min(ahead, len(self._images)):
            first = self._pending_stop
            self._pending_stop = stop if first == start else min(first + self._batch_size, len(self._images))
            self._pending[first] = [
                self._submit_task(self._executor, range(i, min(i + TASK_IMAGES, self._pending_stop)))
                for i in range(first, self._pending_stop, TASK_IMAGES)
            ]

    def _submit_task(self, executor: ProcessPoolExecutor, indices: range) -> Future[ImageBatch]:
        files = {i: self._images.read(i) for i in indices}  # the paths, not the whole set
        return executor.submit(read_batch, files.__getitem__, indices, self._transform)

    def _receive(self, start: int) -> ImageBatch | None:
        """The batch from the workers; None while they start."""
        tasks = self._pending.pop(start, [])
        done, running = wait(tasks, timeout=0)
        self._workers_ready |= bool(done) or any(task.done() for batch in self._pending.values() for task in batch)
        if not tasks or not self._workers_ready:
            for task in tasks:
                task.cancel()
            return None
        while running:
            raise_if_stopped()
            _, running = wait(running, timeout=0.1)
        return join_batches([task.result() for task in tasks])

    def _drop(self) -> None:
        for tasks in self._pending.values():
            for task in tasks:
                task.cancel()
        self._pending = {}
        self._pending_stop = -1


def _start_worker(parent: int) -> None:
    """Let a worker process leave Ctrl-C to its parent, and end when the parent has ended in any way."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_after, args=(parent,), daemon=True).start()


def _exit_after(parent: int) -> None:
    while os.getppid() == parent and psutil.pid_exists(parent):  # the second for Windows
        time.sleep(PARENT_PERIOD)
    os._exit(0)
