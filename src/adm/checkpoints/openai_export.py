"""Our models as files that the original code loads, and how it is to be told what they are."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from adm.checkpoints.model_document import Model, describe_schedule
from adm.checkpoints.openai_flags import Spec
from adm.checkpoints.openai_keys import to_openai
from adm.checkpoints.openai_words import write_flags, write_keywords
from adm.diffusion.model import DiffusionModel
from adm.nn import EncoderClassifier, UNet
from adm.runtime import files
from adm.runtime.errors import AdmError, UsageError
from adm.runtime.text import shown_path

__all__ = ["save_released", "spec_of"]

GROUPS = 32
"""Of every normalisation in the original code; channels that they do not divide it cannot have."""


def save_released(model: Model, file: str | Path, *, new_attention_order: bool = False) -> str:
    """Write a new .pt that the original code loads strictly; returns the flags with which.

    The file holds an ordered dict of float32 tensors under the released names. new_attention_order: how it lays out
    qkv (use_new_attention_order). Where no flags say what the network is, the keywords of the original constructor
    come back instead, as a JSON object. Raises UsageError, naming it, for what that code cannot express, before
    anything is written, and for a file that exists.
    """
    file = Path(file)
    if file.exists():
        raise UsageError(f"{shown_path(file)} exists. Choose another destination, or remove it.")
    spec = spec_of(model, new_attention_order)
    words = words_for(spec)
    weights = {name: tensor.detach().to("cpu", torch.float32) for name, tensor in model.network.state_dict().items()}
    released = to_openai(weights, spec.network, new_attention_order=new_attention_order)
    needed = sum(tensor.numel() * tensor.element_size() for tensor in released.values())
    files.require_space(file, needed)
    with files.write_stream(file, needed=needed) as stream:
        save_in(stream, OrderedDict((name, alone(tensor)) for name, tensor in released.items()))
    return words


def save_in(stream: BinaryIO, content: object) -> None:
    """`torch.save`, of whose complaint about a write that failed only the cause is raised."""
    try:
        torch.save(content, stream)
    except RuntimeError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, AdmError | OSError):
            cause = cause.__context__
        raise cause or error from None


def spec_of(model: Model, new_attention_order: bool = False) -> Spec:
    """What released flags would say of the model. Raises UsageError for what the original code has not."""
    network = model.network
    if not isinstance(network, UNet | EncoderClassifier):
        raise UsageError(f"the original code has no {type(network).__name__}. Keep the model in our format.")
    schedule = None if model.schedule is None else describe_schedule(model.schedule)
    foreign = []
    if schedule is not None and schedule.name not in ("linear", "cosine"):
        foreign.append("its schedule is neither linear nor cosine")
    T = 0 if schedule is None else schedule.num_timesteps
    if model.time_scale is not None and (T == 0 or model.time_scale != 1000 / T):
        foreign.append(f"time_scale is {model.time_scale:g}, rescale_timesteps means 1000 / T")
    if isinstance(model, DiffusionModel) and model.mean not in ("eps", "x0"):
        foreign.append(f"mean is {model.mean}, not eps or x0")
    narrow = [channels for channels in network.config.level_channels if channels % GROUPS]
    if narrow:
        foreign.append(f"{narrow[0]} channels are no multiple of {GROUPS}, which its normalisations need")
    if foreign:
        raise UsageError(f"the original code cannot run this model: {'; '.join(foreign)}. Keep it in our format.")
    common = {
        "noise_schedule": None if schedule is None else schedule.name,
        "diffusion_steps": None if schedule is None else schedule.num_timesteps,
        "time_scale": model.time_scale,
        "new_attention_order": new_attention_order,
    }
    if not isinstance(model, DiffusionModel):
        return Spec("classifier", network.config, **common)  # type: ignore[arg-type]
    kind = "upsampler" if getattr(network.config, "low_res_channels", 0) else "diffusion"
    return Spec(kind, network.config, mean=model.mean, variance=model.variance, **common)  # type: ignore[arg-type]


def words_for(spec: Spec) -> str:
    """The flag string, or where there is none the constructor's keywords."""
    try:
        return write_flags(spec)
    except UsageError:
        return json.dumps(write_keywords(spec))


def alone(tensor: Tensor) -> Tensor:
    """The tensor in a storage of its own: of a part of a larger one torch would write all of it."""
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)
