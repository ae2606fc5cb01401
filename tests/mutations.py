"""Changes to a file that nobody intended, and what reading it may not do: hang, or take memory."""

from __future__ import annotations

import resource
import signal
import sys
from pathlib import Path

import numpy as np


def patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def flipped(data: bytes, at: int, bit: int = 0) -> bytes:
    return patched(data, at, bytes([data[at] ^ 1 << bit]))


def changed(data: bytes, at: int, kind: int, rng: np.random.RandomState) -> bytes:
    """Of seven kinds, by number: a flipped bit, other bytes, a cut, a gap, bytes more, a repetition, bytes of ones."""
    length = rng.randint(1, 40)
    noise = rng.bytes(length)
    match kind:
        case 0:
            return flipped(data, at, rng.randint(8))
        case 1:
            return patched(data, at, noise[: len(data) - at])
        case 2:
            return data[:at]
        case 3:
            return data[:at] + data[at + length :]
        case 4:
            return data[:at] + noise + data[at:]
        case 5:
            return data[:at] + data[max(0, at - length) :]
        case _:
            return patched(data, at, b"\xff" * min(4, len(data) - at))


def end_hangs() -> None:
    """From now on `signal.alarm` raises TimeoutError where this process then is."""

    def hangs(*_: object) -> None:
        raise TimeoutError("it hangs")

    signal.signal(signal.SIGALRM, hangs)


def forget_peak() -> int:
    """The memory of the process now; where the system can, the peak starts again from there."""
    if not Path("/proc/self/clear_refs").exists():
        return peak()
    Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most memory that the process had, in bytes, since `forget_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
