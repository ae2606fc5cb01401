"""A checkpoint on disk: safetensors, JSON and a manifest, in which every changed bit is seen. No pickle.

``step-00001200/`` holds ``<group>.safetensors`` for each group of tensors, ``<name>.json`` for each document,
and ``MANIFEST.json``. It appears complete or not at all, never changes, and knows no path: it may be moved or
renamed. The order of checkpoints is that of their steps; times of files mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from adm.checkpoints._safetensors import serialized_size, write_tensors
from adm.runtime import files
from adm.runtime.errors import DivergedError, UsageError
from adm.runtime.files import DamagedDirectoryError
from adm.runtime.text import one_line, shown_path

__all__ = ["Checkpoint", "load", "newest_intact", "retain", "save", "step_name", "steps"]

STEP_NAME = re.compile(r"step-([0-9]{8,})")
PART_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
TENSORS, DOCUMENT = ".safetensors", ".json"
MIN_INTACT = 2


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What was saved: tensors by group and name, documents by name."""

    tensors: dict[str, dict[str, Tensor]]
    documents: dict[str, Any]


def save(directory: Path, *, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, object]) -> None:
    """Writes a new checkpoint; equal contents give equal bytes.

    tensors: group -> name -> tensor, on any device. documents: name -> JSON-able object; a directory called
    ``step-*`` needs a "state" with that "step". Raises ``DivergedError`` for a number that is not finite,
    before anything is written; ``ResourceError`` when the disk is full, with nothing left behind;
    ``UsageError`` when the directory exists.
    """
    directory = Path(directory)
    _check_names(directory, tensors, documents)
    sizes = [serialized_size(members) for members in tensors.values()]
    for group, members in tensors.items():
        for name, tensor in members.items():
            _check_finite(f"{group}: {name}", tensor)
    texts = {name: _document_bytes(name, document) for name, document in documents.items()}
    needed = sum(sizes) + sum(map(len, texts.values()))
    files.require_space(directory, needed)
    with files.new_directory(directory) as partial:
        for group, members in tensors.items():
            with files.new_file(partial / f"{group}{TENSORS}", needed=needed) as stream:
                write_tensors(stream, members)
        for name, text in texts.items():
            with files.new_file(partial / f"{name}{DOCUMENT}", needed=needed) as stream:
                stream.write(text)


def _check_names(directory: Path, tensors: Collection[str], documents: Mapping[str, object]) -> None:
    for name in [*tensors, *documents]:
        if not PART_NAME.fullmatch(name) or name == "MANIFEST":
            raise ValueError(f"{one_line(name)!r} cannot name a part of a checkpoint: use letters, digits, . _ and -")
    named = _step_of(directory)
    state = documents.get("state")
    stated = state.get("step") if isinstance(state, Mapping) else None
    if named is not None and stated != named:
        raise ValueError(f"{directory.name} needs a document 'state' with step {named}: it says {stated}")


def _check_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise DivergedError(
            f"nothing is saved: {one_line(name, 100)} has {count:,} of {tensor.numel():,} values not finite. "
            "Continue from the last checkpoint, with a lower learning rate."
        )


def _document_bytes(name: str, document: object) -> bytes:
    try:
        return files.json_bytes(document)
    except ValueError as error:
        raise DivergedError(
            f"nothing is saved: {one_line(name)}{DOCUMENT} holds no finite JSON ({one_line(error)}). "
            "Continue from the last checkpoint, with a lower learning rate."
        ) from error


def load(directory: Path, groups: Collection[str] | None = None, device: torch.device | str = "cpu") -> Checkpoint:
    """Reads a checkpoint, having checked every file of it against the manifest, also those not asked for.

    groups: the groups of tensors wanted, None for all. Raises ``DamagedError``, which names the file.
    """
    directory = Path(directory)
    records = files.read_manifest(directory)
    absent = sorted(group for group in groups or () if f"{group}{TENSORS}" not in records)
    if absent:
        raise DamagedDirectoryError(directory, f"{absent[0]}{TENSORS}", "not part of this checkpoint")
    checkpoint = Checkpoint({}, {})
    for file, record in records.items():
        name, suffix = Path(file).stem, Path(file).suffix
        if suffix == TENSORS and (groups is None or name in groups):
            data = files.read_recorded(directory, file, record)
            checkpoint.tensors[name] = _tensors(directory, file, data, device)
        elif suffix == DOCUMENT:
            data = files.read_recorded(directory, file, record)
            checkpoint.documents[name] = files.parse_json(data, directory / file)
        else:
            files.check_recorded(directory, file, record)
    return checkpoint


def _tensors(directory: Path, file: str, data: bytes, device: torch.device | str) -> dict[str, Tensor]:
    try:
        return {name: tensor.to(device) for name, tensor in sorted(load_safetensors(data).items())}
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise DamagedDirectoryError(directory, file, f"no safetensors file ({one_line(error, 60)})") from error


def step_name(step: int) -> str:
    """``step-00001200``."""
    if step < 0:
        raise ValueError(f"step {step} is negative: steps count from 0")
    return f"step-{step:08d}"


def steps(checkpoints: Path) -> list[int]:
    """The steps of the checkpoints there, by their names alone, in order; other names are ignored."""
    checkpoints = Path(checkpoints)
    if not checkpoints.is_dir():
        return []
    found = (_step_of(entry) for entry in checkpoints.iterdir())
    return sorted(step for step in found if step is not None)


def _step_of(directory: Path) -> int | None:
    match = STEP_NAME.fullmatch(directory.name)
    return int(match[1]) if match and directory.name == step_name(int(match[1])) else None


def newest_intact(checkpoints: Path, *, set_aside: bool = False) -> tuple[Path | None, list[str]]:
    """The checkpoint of the highest step that is as it was written, and a line on each newer, damaged one.

    set_aside: rename damaged ones to ``<name>.damaged``, so that their step can be saved again; nothing is
    deleted.
    """
    checkpoints = Path(checkpoints)
    damaged: list[str] = []
    for step in reversed(steps(checkpoints)):
        directory = checkpoints / step_name(step)
        try:
            _verify_step(directory, step)
        except DamagedDirectoryError as error:
            kept = f" Kept aside as {_set_aside(directory).name}." if set_aside else ""
            damaged.append(f"checkpoint {shown_path(directory)} is damaged ({error.reason}).{kept}")
        else:
            return directory, [f"{line} Using {directory.name}." for line in damaged]
    return None, [f"{line} No intact checkpoint is left." for line in damaged]


def _verify_step(directory: Path, step: int) -> None:
    """All files as written, and the hashed step that of the name: renaming makes no checkpoint newer."""
    records = files.verify_directory(directory)
    file = f"state{DOCUMENT}"
    if file not in records:
        raise DamagedDirectoryError(directory, file, "not part of this checkpoint")
    state = files.parse_json(files.read_recorded(directory, file, records[file]), directory / file)
    stated = state.get("step") if isinstance(state, dict) else None
    if stated != step:
        raise DamagedDirectoryError(directory, file, f"says step {one_line(stated, 20)}")


def _set_aside(directory: Path) -> Path:
    target = directory.with_name(f"{directory.name}.damaged")
    number = 1
    while target.exists():
        number += 1
        target = directory.with_name(f"{directory.name}.damaged-{number}")
    files.move(directory, target)
    return target


def retain(checkpoints: Path, keep: int) -> list[str]:
    """Deletes all but the newest ``keep`` checkpoints; returns the names deleted.

    First the newest is read back in full: if it is damaged, ``DamagedError`` and nothing is deleted. As many
    as it takes stay to have two intact ones. To be called by the only writer.
    """
    if keep < MIN_INTACT:
        raise UsageError(f"keep is {keep}: at least {MIN_INTACT} checkpoints stay, one in case the other is damaged.")
    checkpoints = Path(checkpoints)
    newest_first = steps(checkpoints)[::-1]
    intact = 0
    for i, step in enumerate(newest_first):
        try:
            _verify_step(checkpoints / step_name(step), step)
        except DamagedDirectoryError:
            if i == 0:
                raise
        else:
            intact += 1
        if intact == MIN_INTACT:
            expired = [step_name(old) for old in newest_first[max(keep, i + 1) :]]
            for name in reversed(expired):
                files.remove(checkpoints / name)
            return expired
    return []
