"""Released checkpoints as ours, and ours as released ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from adm.checkpoints import format as checkpoint_format
from adm.checkpoints import triples
from adm.checkpoints.load import load, locate, save_model
from adm.checkpoints.model_document import describe_model
from adm.checkpoints.openai_export import save_released
from adm.checkpoints.released import Said, model_from_released, read_released
from adm.checkpoints.triples import Triple, read_triple
from adm.runtime import files
from adm.runtime.errors import DamagedError, UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["convert", "export", "model_from_released", "parts", "read_flags_file", "read_triple"]

Flags = str | Mapping[str, Any]
SUFFIXES = (".pt", ".pth", ".safetensors")


def convert(
    source: str | Path,
    destination: str | Path,
    flags: Flags | None = None,
    like: str | None = None,
    to: Literal["adm", "openai"] = "adm",
    weights: str = "ema",
) -> Path:
    """A released file as a checkpoint directory that `adm.load` reads, or with to="openai" a model of ours as a
    released file; returns the destination.

    source: a .pt or .safetensors file, the directory of the original trainer (whose averaged and last weights both
    come along, with the step and the optimizer's state), or the name of a preset. flags: the released flag string, a
    mapping of the same names, or a mapping of the original constructor's keywords; noise_schedule, diffusion_steps and
    rescale_timesteps may stand beside those; JSON text, or the path of a .json file, of such a mapping. like: the
    preset whose flags the file has, but for those given. What is said neither so nor by the shapes of the file takes
    the released default; a classifier's schedule has none and is unknown then. Without flags and like the file must
    be recognised as a preset. weights: with to="openai", "ema" or "model".

    Raises UsageError for flags that cannot be, or that are missing, and DamagedError for a file that is damaged or
    does not fit them. Nothing in the file is executed.
    """
    if to == "openai":
        return export(source, destination, flags, like, weights)[0]
    if to != "adm":
        raise UsageError(f"to {one_line(to, 40)!r}: choose adm or openai.")
    if weights != "ema":
        raise UsageError('weights chooses what to="openai" writes; our format keeps both. Leave it out.')
    if Path(destination).exists():
        raise UsageError(f"{shown_path(destination)} exists. Choose another destination, or remove it.")
    said = Said(None if flags is None else read_flags_file(flags), like)
    said.check()  # what is wrong with the flags alone is said before a large file is read
    source = Path(source)
    if source.is_dir() and triples.find(source) is not None:
        return save_triple(read_triple(source, said), Path(destination))
    place = place_of(source)
    if place.is_dir():
        raise UsageError(f"{shown_path(place)} is in our format. To write a released file of it, add --to openai.")
    triples.note_average(place)
    released = read_released(place, said)
    return save_model(released.model, destination, released.provenance)


def export(
    source: str | Path,
    destination: str | Path,
    flags: Flags | None = None,
    like: str | None = None,
    weights: str = "ema",
) -> tuple[Path, str]:
    """A model as a file of the original code: (the file, the flags with which that code loads it)."""
    destination = Path(destination)
    if destination.exists():
        raise UsageError(f"{shown_path(destination)} exists. Choose another destination, or remove it.")
    place = place_of(Path(source))
    if place.is_dir():
        if flags is not None or like is not None:
            raise UsageError(f"{shown_path(place)} says itself what it is. Leave out --flags and --like.")
        return destination, save_released(load(place, weights=weights), destination, new_attention_order=order(place))
    said = Said(None if flags is None else read_flags_file(flags), like)
    released = read_released(place, said)
    words = save_released(released.model, destination, new_attention_order=released.spec.new_attention_order)
    return destination, words


def place_of(source: Path) -> Path:
    """Where the source is; of a file that is not there its reader says so."""
    return source if source.suffix in SUFFIXES and not source.exists() else locate(source)


def order(directory: Path) -> bool:
    """Whether a checkpoint was converted from a file with the new attention order; such files go back as they were."""
    if "provenance.json" not in files.read_manifest(directory):
        return False
    provenance = files.read_json(directory / "provenance.json")
    return isinstance(provenance, dict) and provenance.get("new_attention_order") is True


def save_triple(triple: Triple, destination: Path) -> Path:
    """A step of the original trainer as a checkpoint directory with both kinds of weights."""
    groups: dict[str, Mapping[str, Tensor] | None] = {
        "model": triple.model if triple.model is not None else triple.ema,
        "ema": triple.ema if triple.model is not None else None,
        "optimizer": triple.optimizer,
    }
    provenance = triple.released.provenance | {"step": triple.step}
    if triple.rate is not None:
        provenance["ema_rate"] = triple.rate
    checkpoint_format.save(
        destination,
        tensors={name: tensors for name, tensors in groups.items() if tensors is not None},
        documents={
            "model": describe_model(triple.released.model),
            "state": {"step": triple.step},
            "provenance": provenance,
        },
    )
    for note in triple.notes:
        warnings.warn(note, stacklevel=3)
    return destination


def parts(directory: Path) -> str | None:
    """What came along from the original trainer, in a line; None of a checkpoint from one file."""
    provenance = files.read_json(directory / "provenance.json")
    if "step" not in provenance:
        return None
    average = f"averaged weights (rate {provenance['ema_rate']:g})" if "ema_rate" in provenance else None
    there = files.read_manifest(directory)
    both = "ema.safetensors" in there or average is None
    state = "optimizer's state" if "optimizer.safetensors" in there else None
    named = [average, "weights of the step" if both else None, state]
    return f"step {provenance['step']}: {', '.join(part for part in named if part)}"


def read_flags_file(flags: Flags) -> Flags:
    """The flags themselves, where the text is a JSON object or the path of a file with one."""
    if not isinstance(flags, str):
        return flags
    text = flags.strip()
    is_file = text.endswith(".json") and not text.startswith("--")
    if not is_file and not text.startswith("{"):
        return flags
    try:
        found = files.read_json(text) if is_file else files.parse_json(text.encode(), "--flags")
    except DamagedError as error:
        raise UsageError(f"the flags cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{one_line(text, 60)}: holds no JSON object. Give one of flag names and values.")
    return found
