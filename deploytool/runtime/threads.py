"""How many threads this process may really use."""

import os
from pathlib import Path

from deploytool.errors import InputError

MAX_THREADS = 1024


def available_threads(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the smaller of the CPU affinity and the cgroup's quota, at least 1.

    onnxruntime's own default counts the machine's cores, which in a container is wrong and slow.

    Args:
        cgroup: root of the control groups, version 2 (`cpu.max`) or 1 (`cpu/cpu.cfs_quota_us`).
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota_v2(cgroup) or _quota_v1(cgroup)
    return max(1, min(affinity, int(quota)) if quota else affinity)


def check_threads(threads: int | None) -> int:
    """Return how many threads to use, `available_threads` where None; raise InputError outside 1..1024."""
    if threads is None:
        return available_threads()
    if not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads (={threads}) must be in 1..{MAX_THREADS}")
    return threads


def _quota_v2(cgroup: Path) -> float | None:
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()[:2]
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _quota_v1(cgroup: Path) -> float | None:
    try:
        quota = int((cgroup / "cpu" / "cpu.cfs_quota_us").read_text())
        period = int((cgroup / "cpu" / "cpu.cfs_period_us").read_text())
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
