"""The cores that this process may use, and what torch must know about them before it is loaded."""

import os
import sys
from pathlib import Path

# How often a thread of GNU OpenMP looks for work before it sleeps. By default it looks for milliseconds, which two
# programs on the same cores take from each other; see docs/benchmarks.md.
SPINS = "3000"
_QUOTA_FILES = (  # of control groups, version 2 and 1
    ("/sys/fs/cgroup/cpu.max",),
    ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu/cpu.cfs_period_us"),
)


def available_cores() -> int:
    """Return how many cores this process may use, by its affinity and by the CPU quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, _quota() or cores)


def set_up_threads() -> None:
    """Make torch's waiting threads yield their cores to other programs, and use no more threads than the CPU quota.

    Environment variables that are already set are kept. Once torch is loaded, nothing can be changed.
    """
    if "torch" in sys.modules:
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    if _quota():  # torch itself knows the affinity, and how many of the cores share their arithmetic units
        os.environ.setdefault("OMP_NUM_THREADS", str(available_cores()))


def _quota() -> int | None:
    """Return the CPU quota in whole cores; None without one."""
    for files in _QUOTA_FILES:
        try:
            quota, period = map(float, " ".join(Path(file).read_text() for file in files).split())
        except (OSError, ValueError):  # no such file, or no quota: "max 100000"
            continue
        if quota > 0:
            return max(1, round(quota / period))
    return None
