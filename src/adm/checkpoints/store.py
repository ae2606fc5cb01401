"""What was fetched of the public models: which files are in the cache, whole, and with the hash they came with.

Layout: models/<file> in the cache directory, and beside each <file>.json, its record.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from adm.checkpoints.presets import PRESETS, Preset
from adm.runtime import files
from adm.runtime.cache import cache_directory
from adm.runtime.download import Artifact, Record, partial_file, read_record
from adm.runtime.errors import AdmError, DamagedError, UsageError
from adm.runtime.text import num_bytes, shown_path

__all__ = [
    "INCEPTION",
    "Stored",
    "artifact",
    "cached_file",
    "check_recorded",
    "models_directory",
    "preset_of_sha256",
    "recorded_sha256",
    "require_file",
    "stored",
]

TORCH_FILES = (b"PK\x03\x04", b"\x80\x02")
"""How files of torch.save begin: since 1.6 as a zip, before as a pickle of protocol 2."""

INCEPTION = Artifact(
    name="inception",
    file="pt_inception-2015-12-05-6726825d.pth",
    urls=(
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    ),
    num_bytes=95_628_359,
    sha256="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    begins=TORCH_FILES,
)
"""The weights of the Inception network with which FID is measured, as PyTorch ports of them are published."""


@dataclass(frozen=True)
class Stored:
    """What is there of an artifact. state: "absent", "partial" (continues), "here", or "damaged"; note: why so.

    num_bytes: of what is there; sha256: as recorded when it was fetched.
    """

    state: Literal["absent", "partial", "here", "damaged"]
    num_bytes: int = 0
    sha256: str | None = None
    note: str = ""


def models_directory() -> Path:
    """Where the files of models are kept."""
    return cache_directory() / "models"


def artifact(preset: Preset) -> Artifact:
    """What is to be fetched for a preset; neither its size nor its hash is published."""
    return Artifact(preset.name, preset.file, (preset.url,), num_bytes=None, sha256=None, begins=TORCH_FILES)


def stored(artifact: Artifact) -> Stored:
    """What is there of it, by names and sizes alone: contents are not read."""
    path = models_directory() / artifact.file
    try:
        size = path.stat().st_size
    except OSError:
        try:
            return Stored("partial", partial_file(path).stat().st_size)
        except OSError:
            return Stored("absent")
    try:
        record = read_record(path)
    except AdmError as error:
        return Stored("damaged", size, note=str(error))
    expected = artifact.num_bytes if record is None else record.num_bytes
    if expected is not None and size != expected:
        return Stored("damaged", size, note=f"has {num_bytes(size)} of {num_bytes(expected)}")
    return Stored("here", size, None if record is None else record.sha256)


def cached_file(artifact: Artifact) -> Path | None:
    """The file in the cache, if it is there and as long as it was when it was fetched."""
    return models_directory() / artifact.file if stored(artifact).state == "here" else None


def require_file(preset: Preset) -> Path:
    """The preset's file in the cache. Raises UsageError, saying how to fetch it, if it is not there, and DamagedError
    if it is not whole."""
    path, there = models_directory() / preset.file, stored(artifact(preset))
    if there.state == "here":
        return path
    again = f"Fetch it{' again' if there.state == 'damaged' else ''}: adm models get {preset.name}"
    if there.state == "damaged":
        raise DamagedError(f"{shown_path(path)}, the file of {preset.name}, {there.note}. {again}")
    raise UsageError(f"{preset.name} is not on this machine ({preset.file} is not in the cache). {again}")


def recorded_sha256(file: Path) -> str | None:
    """The hash that was recorded beside the file when it was fetched, if it was. The file is not read."""
    record = _record(file)
    return None if record is None else record.sha256


def check_recorded(file: Path) -> str:
    """The file's sha256, computed. Raises DamagedError if it is another than the one recorded beside it.

    Takes about a second for 2 GB.
    """
    record = _record(file)
    found = files.sha256_file(file)
    if record is not None and record.sha256 != found:
        raise DamagedError(
            f"{shown_path(file)} was changed since it was fetched (sha256 {found[:8]}, recorded {record.sha256[:8]}). "
            f"Fetch it again: adm models get {record.name}"
        )
    return found


def _record(file: Path) -> Record | None:
    """The file's record; elsewhere than in the cache, something else of that name counts for nothing."""
    try:
        return read_record(file)
    except DamagedError:
        if file.parent == models_directory():
            raise
        return None


def preset_of_sha256(sha256: str) -> Preset | None:
    """The preset that was fetched with this hash on this machine, if one was."""
    for preset in PRESETS.values():
        try:
            record = read_record(models_directory() / preset.file)
        except AdmError:
            continue
        if record is not None and (record.sha256, record.name) == (sha256, preset.name):
            return preset
    return None
