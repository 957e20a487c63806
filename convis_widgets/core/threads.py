"""Number of CPU threads: what this process may use, not what the host has.

In a container with a quota of two cores on a host with 64, torch starts 64 threads that wait for each other.
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

import torch


def cpu_count(root: str | Path = "/sys/fs/cgroup") -> int:
    """Number of cores this process may use: its CPU affinity, capped by the CPU quota of its cgroup (v2 or v1).

    Parameters
    ----------
    root : path
        Where the cgroup file system is mounted.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    root = Path(root)
    try:
        if (root / "cpu.max").exists():
            quota, period = (root / "cpu.max").read_text().split()
        else:
            quota = (root / "cpu" / "cpu.cfs_quota_us").read_text()
            period = (root / "cpu" / "cpu.cfs_period_us").read_text()
        limit = int(quota) / int(period)
    except (OSError, ValueError):
        return allowed  # no cgroup, or "max"
    return max(1, min(allowed, math.ceil(limit))) if limit > 0 else allowed


def thread_count() -> int:
    """Number of threads for computations outside of torch: as many as torch uses, which reads OMP_NUM_THREADS, or fewer."""
    return min(torch.get_num_threads(), cpu_count())


@functools.cache
def limit_threads() -> None:
    """Lower torch's thread count to `cpu_count`, unless OMP_NUM_THREADS is set.

    Only the first call has an effect, so a later ``torch.set_num_threads`` is respected. Threads that start afterwards
    inherit the limit.
    """
    if "OMP_NUM_THREADS" not in os.environ and cpu_count() < torch.get_num_threads():
        torch.set_num_threads(cpu_count())
