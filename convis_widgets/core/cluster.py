"""cluster: a set of pictures looked at on many machines, by a Dask client that the user brings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from .cpu import cores
from .examine import Examiner, Part

SHARDS = 4  # for each worker: so that none waits long for the others, and little is lost with one

Found = tuple[list[Part], dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]


def examined(client: Any, examiner: Examiner, start: int) -> Iterator[Found]:
    """What the workers of a cluster find in the pictures from `start` on: shard after shard, in the order of the pictures.

    The batches are those of one process. A shard whose worker dies is given to another one. Ended early, what has not begun
    is called off.

    Parameters
    ----------
    client : dask.distributed.Client
    examiner : Examiner
    start : int
        First of a batch.
    """
    count, batch = len(examiner.images), examiner.batch
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise ValueError("the Dask cluster has no workers; start some, or leave client= out")
    # computing threads on the fullest machine, that share its cores
    hosts = Counter[str]()
    for worker in workers.values():
        hosts[worker["host"]] += worker["nthreads"]
    batches = math.ceil((count - start) / batch)
    size = batch * max(1, math.ceil(batches / (SHARDS * len(workers))))
    there = client.scatter(examiner, broadcast=True, hash=False)
    shards = [
        client.submit(_shard, there, first, min(first + size, count), batch, max(hosts.values()), pure=False)
        for first in range(start, count, size)
    ]
    try:
        for shard in shards:
            yield shard.result()
            shard.release()
    finally:
        client.cancel(shards)


def _shard(examiner: Examiner, start: int, stop: int, batch: int, sharing: int) -> Found:
    """Look at a shard, on a worker that shares its machine's cores with others."""
    torch.set_num_threads(max(1, cores() // sharing))
    mine = Examiner(*examiner.__reduce__()[1])  # nothing that another shard has found
    parts = [mine.examine(first, min(first + batch, stop)) for first in range(start, stop, batch)]
    return parts, {name: strongest.arrays() for name, strongest in mine.tops.items()}
