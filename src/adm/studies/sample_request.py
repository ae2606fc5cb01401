"""What a sample set records of its making, and what to say when its model has moved on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adm.checkpoints.load import fingerprint
from adm.runtime import files
from adm.runtime.errors import UsageError
from adm.runtime.text import one_line, shown_path
from adm.studies.generate import Request

__all__ = ["describe_weights", "refuse_newer_checkpoint"]


def describe_weights(request: Request) -> dict[str, Any]:
    """Model and guidance by name, in full, and by the sha256 of their weights: part of `request.json`."""
    if request.checkpoint is None:
        raise ValueError("the request's model was not named: use prepare_named")
    return {
        "model": request.name,
        "model_sha256": fingerprint(request.checkpoint),
        "guidance": list(request.guidance),
        "guidance_sha256": [fingerprint(path) for path in request.guides],
    }


def refuse_newer_checkpoint(directory: Path, request: Request) -> None:
    """UsageError when the sample set in `directory` was begun with an older checkpoint of the run asked for now."""
    path = directory / "request.json"
    if request.checkpoint is None or request.checkpoint.parent.name != "checkpoints" or not path.exists():
        return
    before = files.read_json(path)
    name = one_line(before.get("model"), 100) if isinstance(before, Mapping) else ""
    if name == request.name or not name.startswith("step-") or not any(directory.glob("*.png")):
        return
    older = request.checkpoint.parent / name
    if not older.is_dir():
        raise UsageError(
            f"{shown_path(directory)} was begun with {name}, which this run, now at {request.name}, does not keep. "
            "Choose another --out."
        )
    if fingerprint(older) == before["model_sha256"]:
        raise UsageError(
            f"{shown_path(directory)} was begun with {name}, and the run has trained on to {request.name}. "
            f"To continue, give that checkpoint as MODEL: {shown_path(older)}"
        )
