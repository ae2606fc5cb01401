"""Where what was fetched is kept."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["cache_directory"]


def cache_directory() -> Path:
    """$ADM_CACHE, else $XDG_CACHE_HOME/adm, else ~/.cache/adm. It need not exist."""
    if own := os.environ.get("ADM_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "adm"
