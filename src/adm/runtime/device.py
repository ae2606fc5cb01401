"""The device to compute on."""

from __future__ import annotations

import os

import torch

from adm.runtime.errors import UsageError
from adm.runtime.text import one_line

__all__ = ["pick_device"]


def pick_device(name: str = "auto") -> torch.device:
    """The named device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps. Else ``UsageError``.

    Under torchrun cuda without a number is the one of this process's LOCAL_RANK.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu"
    if name == "cuda" and os.environ.get("LOCAL_RANK", "").isdecimal() and torch.cuda.device_count() > 0:
        name = f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"  # each process of torchrun its own
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
