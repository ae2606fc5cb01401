"""What a sample set records of its making, and what to say when its model has moved on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adm.checkpoints.load import fingerprint
from adm.runtime import files, lookup
from adm.runtime._spelling import NotFromText, from_text
from adm.runtime.errors import UsageError
from adm.runtime.text import one_line, shown_path
from adm.studies._resolve import nested_options, unwrapped
from adm.studies.choices import full_spec
from adm.studies.request import Request

__all__ = ["as_begun", "describe_chain", "describe_sampler", "describe_weights", "refuse_newer_checkpoint"]


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


def describe_sampler(spec: str) -> dict[str, Any]:
    """The sampler as it was asked for, and with its defaults, which may be others one day: part of `request.json`."""
    return {"sampler": spec, "sampler_in_full": full_spec("sampling", spec)}


def describe_chain(request: Request) -> dict[str, Any]:
    """Links, and the grid if it is not the sampler's own: part of `request.json`."""
    steps: dict[str, Any] = {"steps": len(request.chain)}
    if request.grid is None:
        return steps
    return steps | {"grid": request.grid, "timesteps": request.chain.timesteps.flip(0).tolist()}


def as_begun(directory: Path, description: Mapping[str, object]) -> Mapping[str, object]:
    """The description as the sample set in `directory` spells it, where it means the same.

    Sampler and guidance mean the same when all their options have the same values: those that they got since then are
    not in there, and stand at their defaults. A grid is its timesteps, whatever it is called.
    """
    path = directory / "request.json"
    before = files.read_json(path) if path.exists() and any(directory.glob("*.png")) else None
    if not isinstance(before, Mapping):
        return description
    begun = before.get("sampler_in_full", before.get("sampler"))  # without it: a set from before there was such a word
    description = dict(description)
    full = description.get("sampler_in_full")
    is_same_sampler = _same("sampling", [begun], [full])
    if is_same_sampler and "sampler_in_full" not in before:
        del description["sampler_in_full"]
    same = {
        "sampler": is_same_sampler,
        "sampler_in_full": is_same_sampler and "sampler_in_full" in before,
        "guidance": _same("guidance", before.get("guidance"), description.get("guidance")),
        "grid": "grid" in before and "grid" in description and before.get("timesteps") == description.get("timesteps"),
    }
    return {**description, **{name: before[name] for name, is_same in same.items() if is_same}}


def _same(room: str, begun: object, asked: object) -> bool:
    """Whether these specs mean the same, one for one."""
    if not isinstance(begun, list) or not isinstance(asked, list) or not all(isinstance(x, str) for x in begun + asked):
        return False
    try:
        return [_meaning(room, spec) for spec in begun] == [_meaning(room, spec) for spec in asked]
    except UsageError:
        return False


def _meaning(room: str, text: str) -> tuple[str, dict[str, object]]:
    """The component's name, and the values of all its options; text where that alone is no value."""
    spec = lookup.parse_spec(text)
    arguments = lookup.arguments(lookup.find(room, spec.name))
    values = {name: a.default for name, a in arguments.items() if a.default is not a.empty}
    nested = nested_options(text) if room == "guidance" else []
    for name, value in spec.options.items():
        if name in nested:
            values[name] = _meaning(room, unwrapped(value))
            continue
        try:
            values[name] = from_text(arguments[name].annotation, value)
        except (KeyError, ValueError, NotFromText):
            values[name] = float(value) if value in ("inf", "-inf") else value
    return spec.name.replace("-", "_"), values


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
