"""Which adm this is."""

from __future__ import annotations

from importlib import metadata

__all__ = ["version"]


def version() -> str:
    """The installed version, or "0+source" for a source tree that was never installed."""
    try:
        return metadata.version("adm-diffusion")
    except metadata.PackageNotFoundError:
        return "0+source"
