"""Memory: what is available, and limits for images and archives, checked before the memory is taken."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

MAX_IMAGE_BYTES = 768 << 20
"""Images that take more while they are decoded and converted are rejected before."""

MAX_ARCHIVE_BYTES = 2 << 30
"""Archives (.npz) whose arrays take more are rejected before they are decompressed."""


def check_memory(name: str, needed: int, limit: int, advice: str) -> None:
    """Raise ValueError if something takes more memory than the limit.

    Parameters
    ----------
    name : str
        What takes it, with its size: the beginning of the message.
    needed : int
        Bytes.
    limit : int
        Bytes.
    advice : str
        What to do, the end of the message.
    """
    if needed > limit:
        raise ValueError(f"{name} takes {format_bytes(needed)} of memory, more than {format_bytes(limit)}; {advice}")


def format_bytes(count: float) -> str:
    """Format an amount of memory.

    >>> format_bytes(1.5e9), format_bytes(3e6)
    ('1.5 GB', '3 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(1, count / 1e6):.0f} MB"


def available_memory(device: torch.device, root: str | Path = "/sys/fs/cgroup") -> int:
    """Available memory in bytes: of a GPU; otherwise of the machine, or of its container's limit.

    Parameters
    ----------
    device : torch.device
    root : path
        Folder of the control groups.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # kept by PyTorch for reuse
        return torch.cuda.mem_get_info(device)[0] + cached
    free, root = psutil.virtual_memory().available, Path(root)
    for limit, usage in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            free = min(free, int((root / limit).read_text()) - int((root / usage).read_text()))
        except (OSError, ValueError):
            continue  # no such cgroup, or "max"
    return free
