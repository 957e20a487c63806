"""How many threads torch should use: what this process may use, not what the host has.

In a container with a quota of two cores on a 64-core host, torch starts 64 threads that wait for each other.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch


def cores(root: str | Path = "/sys/fs/cgroup") -> int:
    """Cores this process may use: the affinity mask, capped by the cgroup's CPU quota (v2 or v1)."""
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


def settle_threads() -> None:
    """Lower torch's thread count to `cores()`, unless the user chose one with OMP_NUM_THREADS."""
    if "OMP_NUM_THREADS" not in os.environ and cores() < torch.get_num_threads():
        torch.set_num_threads(cores())
