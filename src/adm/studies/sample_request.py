"""What a sample set records of its making, and what to say when its model has moved on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adm.checkpoints.load import fingerprint
from adm.runtime import files, lookup
from adm.runtime.errors import UsageError
from adm.runtime.text import one_line, shown_path
from adm.studies.choices import full_spec
from adm.studies.generate import Request

__all__ = ["as_begun", "describe_chain", "describe_weights", "refuse_newer_checkpoint"]


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


def describe_chain(request: Request) -> dict[str, Any]:
    """Links, and the grid if it is not the sampler's own: part of `request.json`."""
    steps: dict[str, Any] = {"steps": len(request.chain)}
    if request.grid is None:
        return steps
    return steps | {"grid": request.grid, "timesteps": request.chain.timesteps.flip(0).tolist()}


def as_begun(directory: Path, description: Mapping[str, object]) -> Mapping[str, object]:
    """The description with the guidance spelled as in the sample set in `directory`, where it means the same: options
    that a guidance got since then are not in there, and stand at their defaults."""
    path = directory / "request.json"
    before = files.read_json(path) if path.exists() else None
    begun = before.get("guidance") if isinstance(before, Mapping) else None
    asked = description.get("guidance")
    if not isinstance(begun, list) or not isinstance(asked, list) or begun == asked:
        return description
    try:
        same = [_meaning(spec) for spec in begun] == [_meaning(spec) for spec in asked]
    except UsageError:
        return description
    return {**description, "guidance": begun} if same else description


def _meaning(spec: object) -> lookup.Spec:
    return lookup.parse_spec(full_spec("guidance", str(spec)))


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
