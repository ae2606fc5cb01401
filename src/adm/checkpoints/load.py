"""Models from directories, from files, and by the names of presets."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection
from pathlib import Path

import torch

from adm.checkpoints import format as checkpoint_format
from adm.checkpoints import store, triples
from adm.checkpoints.model_document import Model, build_model, describe_model, set_weights
from adm.checkpoints.presets import find_preset, is_preset
from adm.checkpoints.released import Released, file_sha256, read_released
from adm.checkpoints.torch_file import read_torch_file
from adm.runtime import files
from adm.runtime.errors import DamagedError, UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["check_weights", "fingerprint", "load", "load_file", "locate", "save_model"]

FURTHER = re.compile("ema-[1-9][0-9]{0,3}")
WEIGHTS = re.compile(f"ema|model|{FURTHER.pattern}")


def load(path: str | Path, device: str | torch.device = "cpu", weights: str = "ema") -> Model:
    """The model of a run, a checkpoint directory, a preset or a released file, in eval mode.

    Of a run the newest intact checkpoint is taken; damaged ones are named in a warning. A preset comes from the
    cache. A .pt or .safetensors file is loaded when it is recognised as a preset; of others `adm.convert` can be told
    what they are. weights: "ema", the averaged ones; "ema-1", "ema-2", ..., the further averages of a run with
    `ema.others`; or "model", those of the last step. A file or a converted file has only the one kind that it was
    released with. Raises UsageError when there is nothing at the path, a file does not say what it is, or it has no
    such weights, and DamagedError, naming the file, when nothing intact is.
    """
    check_weights(weights)
    place = locate(path)
    model = load_directory(place, weights) if place.is_dir() else load_file(place, weights).model
    return model.to(device).eval()


def check_weights(weights: str) -> None:
    """UsageError for what names no weights anywhere."""
    if not WEIGHTS.fullmatch(weights):
        raise UsageError(
            f"weights {one_line(weights, 40)!r}: choose ema (averaged), ema-1 (averaged over another width), "
            "or model (of the last step)."
        )


def load_file(file: Path, weights: str) -> Released:
    """The model of a released file, which has one kind of weights."""
    if FURTHER.fullmatch(weights):
        raise UsageError(f"{shown_path(file)}: a file has one kind of weights, not {weights}. Leave the choice out.")
    return read_released(file)


def load_directory(directory: Path, weights: str) -> Model:
    """The model of a checkpoint directory."""
    stored = {Path(name).stem for name in files.read_manifest(directory) if name.endswith(".safetensors")}
    group = stored_group(directory, weights, stored)
    checkpoint = checkpoint_format.load(directory, groups=[group])
    if "model" not in checkpoint.documents:
        raise DamagedError(f"{shown_path(directory)}: holds no model.json. Give a run or checkpoint that adm wrote.")
    model = build_model(checkpoint.documents["model"], f"{shown_path(directory)}/model.json")
    set_weights(model, checkpoint.tensors[group], f"{shown_path(directory)}/{group}.safetensors")
    return model


def stored_group(directory: Path, weights: str, stored: Collection[str]) -> str:
    """The group of tensors that is meant; a model that was not trained here has weights, but no average."""
    if weights in stored:
        return weights
    if weights == "ema" and "model" in stored:
        return "model"
    there = sorted(group for group in stored if WEIGHTS.fullmatch(group))
    if not there:
        raise DamagedError(f"{shown_path(directory)}: holds no weights. Give a run or checkpoint that adm wrote.")
    raise UsageError(f"{shown_path(directory)}: has no weights {weights!r}. Choose {' or '.join(there)}.")


def locate(path: str | Path) -> Path:
    """The checkpoint directory or the file that a path or the name of a preset means.

    Damaged checkpoints that were passed over are named in a warning; files are not opened.
    """
    path = Path(path)
    if not path.exists():
        return locate_preset(path)
    if (path / "checkpoints").is_dir():
        newest, notes = checkpoint_format.newest_intact(path / "checkpoints")
        if newest is None and notes:
            raise DamagedError(notes[0])
        if newest is None:
            raise UsageError(f"{shown_path(path)}: this run has no checkpoint yet. Train it first.")
        for note in notes:
            warnings.warn(note, stacklevel=3)
        return newest
    if (path / "MANIFEST.json").exists() or (path / "model.json").exists():
        return path
    if not path.is_dir():
        if (path.parent / "MANIFEST.json").exists():
            raise UsageError(f"{shown_path(path)} is a part of a checkpoint. Give its directory, {path.parent}.")
        triples.refuse_optimizer(path)
        return path
    if triples.find(path) is not None:
        raise UsageError(
            f"{shown_path(path)}: holds files of the original trainer, which do not say what they are. "
            f"Say it once: adm convert {one_line(path, 60)} DST --flags '...'"
        )
    if (path / ".metadata").exists() or (path / "data.pkl").exists():
        read_torch_file(path)  # says what such a directory is, and that it is never read
    raise UsageError(
        f"{shown_path(path)}: holds neither a run nor a checkpoint, nor model*.pt or ema_*.pt of the original trainer. "
        "Give one of these directories."
    )


def locate_preset(path: Path) -> Path:
    """The file of a preset, named instead of a path that exists."""
    name = path.as_posix()
    if is_preset(name) or name.startswith("openai/"):
        return store.require_file(find_preset(name))
    raise UsageError(
        f"{shown_path(path)}: no such run or checkpoint. Give the directory that adm wrote, a .pt file, "
        "or a name that adm models list shows."
    )


def fingerprint(path: str | Path) -> str:
    """The sha256 that identifies the weights at a located path: that of the file, or of the directory's manifest."""
    path = Path(path)
    return files.sha256_file(path / files.MANIFEST) if path.is_dir() else file_sha256(path)


def save_model(model: Model, directory: str | Path, provenance: dict[str, object] | None = None) -> Path:
    """Write the model alone as a new checkpoint directory that `load` reads; refuses one that exists."""
    directory = Path(directory)
    documents: dict[str, object] = {"model": describe_model(model)}
    if provenance is not None:
        documents["provenance"] = provenance
    checkpoint_format.save(directory, tensors={"model": dict(model.network.state_dict())}, documents=documents)
    return directory
