"""Models from directories."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch

from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.model_document import Model, build_model, describe_model, set_weights
from adm.runtime import files
from adm.runtime.errors import DamagedError, UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["load", "locate", "save_model"]


def load(path: str | Path, device: str | torch.device = "cpu", weights: str = "ema") -> Model:
    """The model of a run directory or checkpoint directory, in eval mode, with nothing else to be said.

    Of a run the newest intact checkpoint is taken; damaged ones are named in a warning. weights: "ema", the averaged
    ones, or "model", those of the last step; a converted file has only the one kind that it was released with.
    Raises UsageError when there is nothing at the path and DamagedError, naming the file, when nothing intact is.
    """
    if weights not in ("ema", "model"):
        raise UsageError(f"weights {one_line(weights, 40)!r}: choose ema (averaged) or model (of the last step).")
    directory = locate(path)
    stored = {Path(name).stem for name in files.read_manifest(directory) if name.endswith(".safetensors")}
    group = weights if weights in stored else "model"
    if group not in stored:
        raise DamagedError(f"{shown_path(directory)}: holds no weights. Give a run or checkpoint that adm wrote.")
    checkpoint = checkpoint_format.load(directory, groups=[group])
    if "model" not in checkpoint.documents:
        raise DamagedError(f"{shown_path(directory)}: holds no model.json. Give a run or checkpoint that adm wrote.")
    model = build_model(checkpoint.documents["model"], f"{shown_path(directory)}/model.json")
    set_weights(model, checkpoint.tensors[group], f"{shown_path(directory)}/{group}.safetensors")
    return model.to(device).eval()


def locate(path: str | Path) -> Path:
    """The checkpoint directory that a path means; damaged ones that were passed over are named in a warning."""
    path = Path(path)
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
    if not path.exists():
        raise UsageError(f"{shown_path(path)}: no such run or checkpoint. Give the directory that adm wrote.")
    if path.is_file():
        raise UsageError(
            f"{shown_path(path)} is a file, not a run or checkpoint. A released .pt becomes one by `adm convert`."
        )
    raise UsageError(f"{shown_path(path)}: holds neither a run nor a checkpoint. Give the directory that adm wrote.")


def save_model(model: Model, directory: str | Path, provenance: dict[str, object] | None = None) -> Path:
    """Write the model alone as a new checkpoint directory that `load` reads; refuses one that exists."""
    directory = Path(directory)
    documents: dict[str, object] = {"model": describe_model(model)}
    if provenance is not None:
        documents["provenance"] = provenance
    checkpoint_format.save(directory, tensors={"model": dict(model.network.state_dict())}, documents=documents)
    return directory
