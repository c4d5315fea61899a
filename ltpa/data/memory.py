"""How much memory images may take."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))  # control groups 2, 1


def memory_for_images(memory_gb: float | None) -> int:
    """Return how many bytes a data set's images may take; None means half of what is free.

    The processes that torchrun starts on one machine share them.
    """
    whole = int(memory_gb * 1e9) if memory_gb is not None else free_memory() // 2
    return whole // int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


def free_memory() -> int:
    """Return the bytes left in the system or in this process's container, whichever is less."""
    free = [psutil.virtual_memory().available]
    for folder in _control_groups():
        for limit, used in _LIMITS:
            with suppress(OSError, ValueError):  # "max" means no limit
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                free.append(max(0, left + _file_cache(folder)))
    return min(free)


def _control_groups() -> Iterator[Path]:
    """Yield the folders of the control groups that limit this process; containers show theirs as the root."""
    yield from (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory"))
    with suppress(OSError, ValueError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0" or "memory" in kinds.split(","):
                root = Path("/sys/fs/cgroup" if number == "0" else "/sys/fs/cgroup/memory")
                own = root / path.lstrip("/")
                yield from (folder for folder in (own, *own.parents) if folder != root and folder.is_relative_to(root))


def _file_cache(folder: Path) -> int:
    """Return the bytes of a control group that only cache files: the system frees them on demand."""
    try:
        values = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 0
    prefix = "total_" if "total_inactive_file" in values else ""
    return sum(int(values.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
