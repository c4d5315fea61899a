"""How much memory is free: for data, which are kept there if they fit."""

import os
from contextlib import suppress
from pathlib import Path

_UNKNOWN = 4 * 2**30  # where the system does not tell


def free_memory() -> int:
    """Bytes that this process may still use: what the system has available, or its container, whichever is less."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # "max" is no number: no limit
            folder = Path("/sys/fs/cgroup")
            found.append(max(0, int((folder / limit).read_text()) - int((folder / used).read_text())))
    if not found and hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=_UNKNOWN)


def memory_for_images(memory_gb: float | None) -> int:
    """Bytes that the images of a data set may take: what was asked for, or half of what is free.

    The processes of torchrun on one machine share it.
    """
    if memory_gb is not None:
        return int(memory_gb * 1e9)
    return free_memory() // 2 // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
