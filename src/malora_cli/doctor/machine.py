"""What a process may have of its machine: in a container that is less than what the machine has."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")


def cores(cgroup: Path = _CGROUP) -> float:
    """Processor cores that this process may use at once."""
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text(cgroup / "cpu.max").partition(" ")
    return min(affine, int(quota) / int(period)) if quota.isdigit() and period.isdigit() else affine


def memory(cgroup: Path = _CGROUP) -> tuple[int, int]:
    """Bytes of memory in all, and those that are free."""
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit, used = _text(cgroup / "memory.max"), _text(cgroup / "memory.current")
    if limit.isdigit():
        total = min(total, int(limit))
        free = min(free, max(0, int(limit) - int(used or 0)))
    return total, free


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""
