"""The machine and the versions that a measurement was made with."""

from __future__ import annotations

import os
import platform

import torch

from adm.runtime.version import version

__all__ = ["machine"]


def machine() -> dict[str, str]:
    """What somebody who compares numbers needs to know."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "adm": version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "gpu": gpu,
    }
