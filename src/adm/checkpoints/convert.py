"""Released checkpoints as ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from adm.checkpoints import openai
from adm.checkpoints.load import save_model
from adm.checkpoints.model_document import Model, ScheduleConfig, make_schedule
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.nn import ClassifierConfig, EncoderClassifier, UNet, UNetConfig
from adm.runtime import files
from adm.runtime.errors import DamagedError, UsageError
from adm.runtime.text import shown_path

__all__ = ["convert", "model_from_released"]


def convert(source: str | Path, destination: str | Path, flags: str | Mapping[str, Any] | None = None) -> Path:
    """A released `.pt` file and its flags as a checkpoint directory that `adm.load` reads; returns the directory.

    flags: the released flag string, a mapping of the same names, or a mapping of the original constructor's
    keywords; noise_schedule, diffusion_steps and rescale_timesteps may stand beside those. What is not given takes
    the released default; a classifier's schedule has none and is unknown then. Raises UsageError for flags that
    cannot be, DamagedError for a file that is damaged or does not fit them. Nothing in the file is executed.
    """
    if flags is None:
        shown = shown_path(Path(source))
        raise UsageError(f"{shown}: a .pt does not say what it is. Give the flags it was released with: --flags '...'.")
    if Path(destination).exists():
        raise UsageError(f"{shown_path(Path(destination))} exists. Choose another destination, or remove it.")
    openai.read_flags(flags)  # what is wrong with the flags alone is said before a large file is read
    state_dict = openai.read_pt(source)
    # Released command lines name the flags of both networks: the file says which of them it is.
    spec = openai.read_flags(flags, "classifier" if openai.is_classifier(state_dict) else "unet")
    try:
        model = model_from_released(state_dict, spec)
    except DamagedError as error:
        raise DamagedError(f"{shown_path(Path(source))}: {error}") from error
    provenance: dict[str, object] = {
        "source": Path(source).name,
        "sha256": files.sha256_file(source),
        "flags": flags if isinstance(flags, str) else dict(flags),
    }
    return save_model(model, destination, provenance)


def model_from_released(state_dict: Mapping[str, Tensor], spec: openai.Spec) -> Model:
    """The model of a released state dict, in eval mode."""
    weights = openai.to_ours(state_dict, spec.network, new_attention_order=spec.new_attention_order)
    schedule = None
    if spec.noise_schedule is not None and spec.diffusion_steps is not None:
        config = ScheduleConfig(spec.noise_schedule, spec.diffusion_steps)  # type: ignore[arg-type]
        schedule = make_schedule(config)
    model: Model
    if isinstance(spec.network, ClassifierConfig):
        model = NoisyClassifier(EncoderClassifier(spec.network), schedule, spec.time_scale)
    else:
        assert isinstance(spec.network, UNetConfig) and schedule is not None
        model = DiffusionModel(UNet(spec.network), schedule, spec.mean, spec.variance, spec.time_scale)
    model.network.load_state_dict(weights)
    return model.eval()
