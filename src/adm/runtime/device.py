"""The device to compute on."""

from __future__ import annotations

import os

import torch

from adm.runtime._launch import local_rank
from adm.runtime.errors import UsageError
from adm.runtime.text import one_line

__all__ = ["available_memory", "pick_device"]


def pick_device(name: str = "auto") -> torch.device:
    """The named device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps. Else ``UsageError``.

    Under torchrun and srun cuda without a number is the one of this process's number on its machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    local = local_rank(os.environ)
    if name == "cuda" and local is not None and torch.cuda.device_count() > 0:
        name = f"cuda:{local % torch.cuda.device_count()}"  # each process its own
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"there is no device {one_line(name, 40)!r}. Choose auto, cpu, cuda, cuda:<number> or mps.")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(_has_mps())}[device.type]
    if (device.index or 0) >= count:
        found = f"{count} found, numbered from 0" if count else "none found"
        raise UsageError(f"device {name!r} is not available: {found}. Choose another, or auto.")
    return device


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def available_memory(device: torch.device) -> int | None:
    """Bytes that this process could have on the device, what it has already included; None where nobody says."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device)
    if device.type != "cpu":
        return None
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        with open("/proc/self/statm", encoding="ascii") as file:
            resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return int(lines["MemAvailable"].split()[0]) * 1024 + resident
    except (OSError, KeyError, ValueError):  # not Linux
        return None
