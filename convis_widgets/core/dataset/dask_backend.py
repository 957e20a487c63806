"""Dask backend: scan an image set on many machines, with a Dask client of the user."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch

from ..threads import cpu_count
from .batch_collector import BatchCollector, BatchResult

SHARDS_PER_WORKER = 4  # balances the load, and limits what is lost with a worker

ShardResult: TypeAlias = tuple[list[BatchResult], dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]
"""Results of the batches of a shard, and its largest activations by layer, see `TopK.arrays`."""


def scan_on_dask(client: Any, collector: BatchCollector, start: int) -> Iterator[ShardResult]:
    """Scan the images from `start` on by the workers of a Dask cluster, and yield one result per shard, in order.

    Batches are those of a scan in one process. The shard of a worker that dies goes to another worker. When the iterator is
    closed early, shards that have not started are canceled.

    Parameters
    ----------
    client : dask.distributed.Client
    collector : BatchCollector
    start : int
        First image; a multiple of the batch size.
    """
    count, batch_size = len(collector.images), collector.batch_size
    workers = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise ValueError("the Dask cluster has no workers; start some, or leave client= out")
    # computing threads that share the cores of a machine
    threads_per_host = Counter[str]()
    for worker in workers.values():
        threads_per_host[worker["host"]] += worker["nthreads"]
    threads = max(threads_per_host.values())
    batches = math.ceil((count - start) / batch_size)
    shard_size = batch_size * max(1, math.ceil(batches / (SHARDS_PER_WORKER * len(workers))))
    remote_collector = client.scatter(collector, broadcast=True, hash=False)
    shards = [
        client.submit(_scan_shard, remote_collector, first, min(first + shard_size, count), batch_size, threads, pure=False)
        for first in range(start, count, shard_size)
    ]
    try:
        for shard in shards:
            yield shard.result()
            shard.release()
    finally:
        client.cancel(shards)


def _scan_shard(collector: BatchCollector, start: int, stop: int, batch_size: int, threads: int) -> ShardResult:
    """Scan images `start` to `stop` in a worker, on a machine whose cores are shared by this many threads."""
    torch.set_num_threads(max(1, cpu_count() // threads))
    own = collector.empty_copy()  # without activations from other shards
    batches = range(start, stop, batch_size)
    results = [own.process_batch(first, min(first + batch_size, stop)) for first in batches]
    return results, {name: top_k.arrays() for name, top_k in own.top_k.items()}
