"""Features kept on disk, so that hours of work are not lost and a reference is not extracted twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adm.checkpoints import format as checkpoint_format
from adm.runtime import files
from adm.runtime.errors import DamagedError, ResourceError, UsageError

__all__ = ["FeatureCache"]


class FeatureCache:
    """Blocks of feature rows in a directory, each checked against its sha256 when it is read.

    A block is found by everything that its numbers depend on: a source or extractor with another hash is another
    block. What is damaged counts as absent.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def get(self, key: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """The rows by tap, or None."""
        block = self._path(key)
        if not block.is_dir():
            return None
        try:
            return checkpoint_format.load(block).tensors["features"]
        except (DamagedError, KeyError):
            files.remove(block)
            return None

    def put(self, key: Mapping[str, Any], rows: Mapping[str, Tensor]) -> None:
        """Keep the rows. Raises ResourceError when the directory cannot hold them."""
        block = self._path(key)
        if block.exists():
            return
        try:
            checkpoint_format.save(block, tensors={"features": dict(rows)}, documents={"key": dict(key)})
        except UsageError as error:
            if not block.exists():  # otherwise another process was faster, with the same rows
                raise ResourceError(str(error)) from error

    def forget(self, key: Mapping[str, Any] | None) -> None:
        """Remove the block if it is there."""
        if key is not None and self._path(key).exists():
            files.remove(self._path(key))

    def _path(self, key: Mapping[str, Any]) -> Path:
        text = json.dumps(key, sort_keys=True, default=str)
        return self.directory / hashlib.sha256(text.encode()).hexdigest()[:32]
