"""How much memory is free: for data, which are kept there if they fit."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_UNKNOWN = 4 * 2**30  # where the system does not tell
_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # of both versions


def free_memory() -> int:
    """Bytes that this process may still use: what the system has available, or its container, whichever is less."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    for folder in _control_groups():
        for limit, used in _FILES:
            with suppress(OSError, ValueError):  # "max" is no number: no limit
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                found.append(max(0, left + _file_cache(folder)))
    if not found and hasattr(os, "sysconf"):
        with suppress(OSError, ValueError):
            found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return min(found, default=_UNKNOWN)


def _control_groups() -> Iterator[Path]:
    """The folders of the control groups that limit this process; containers show theirs as the root."""
    yield from (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0" or "memory" in kinds.split(","):
                root = Path("/sys/fs/cgroup" if number == "0" else "/sys/fs/cgroup/memory")
                own = root / path.lstrip("/")
                yield from (folder for folder in (own, *own.parents) if folder != root and folder.is_relative_to(root))


def _file_cache(folder: Path) -> int:
    """Bytes of a control group that only cache files, and are given back when they are needed."""
    try:
        values = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    prefix = "total_" if "total_inactive_file" in values else ""
    return sum(int(values.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))


def memory_for_images(memory_gb: float | None) -> int:
    """Bytes that the images of a data set may take: what was asked for, or half of what is free.

    The processes of torchrun on one machine share it.
    """
    whole = int(memory_gb * 1e9) if memory_gb is not None else free_memory() // 2
    return whole // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)
