"""What this process takes of the memory, and what its container allows."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["container_left", "peak_bytes", "resident_bytes"]

STATUS = Path("/proc/self/status")
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory.stat")),
    (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.stat"),
    ),
)
"""(limit, in use, of what) of a container, by version of the kernel's interface."""


def container_left() -> int | None:
    """What the limit of the container still allows this process to add; None without a limit."""
    within = [left for left in (_left_in(*paths) for paths in CGROUPS) if left is not None]
    return min(within, default=None)


def resident_bytes() -> int | None:
    """What this process occupies now; None where the system does not say."""
    return _kilobytes(STATUS, "VmRSS")


def peak_bytes() -> int | None:
    """The most that this process has occupied so far; None where the system does not say."""
    if (peak := _kilobytes(STATUS, "VmHWM")) is not None:  # getrusage would count what its parent occupied at the start
        return peak
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _kilobytes(path: Path, field: str) -> int | None:
    """The bytes of a line such as "VmRSS:  1234 kB"."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    found = [line.split() for line in lines if line.startswith(f"{field}:")]
    return int(found[0][1]) * 1024 if found else None


def _left_in(limit: Path, current: Path, of_what: Path) -> int | None:
    """What a container may still take; files that it only keeps in memory to read them faster do not count."""
    try:
        allowed, used = limit.read_text().strip(), int(current.read_text())
        stat = dict(line.split() for line in of_what.read_text().splitlines())
    except (OSError, ValueError):
        return None
    if not allowed.isdecimal():  # "max"
        return None
    cached = int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0))
    return max(0, int(allowed) - used + cached)
