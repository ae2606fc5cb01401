"""What the original trainers leave behind: model000100.pt, ema_0.9999_000100.pt and opt000100.pt of a step."""

from __future__ import annotations

import math
import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adm.checkpoints.model_document import Model
from adm.checkpoints.openai_flags import Spec
from adm.checkpoints.openai_keys import Key, key_map
from adm.checkpoints.released import Released, Said, read_as, read_released
from adm.checkpoints.torch_file import read_torch_file
from adm.runtime.errors import UsageError
from adm.runtime.text import one_line, shown_path

__all__ = ["Triple", "TripleFiles", "find", "note_average", "read_triple", "refuse_optimizer"]

MODEL = re.compile(r"model([0-9]{6,})\.pt")
AVERAGE = re.compile(r"ema_([0-9.]+)_([0-9]{6,})\.pt")
OPTIMIZER = re.compile(r"opt([0-9]{6,})\.pt")


@dataclass
class TripleFiles:
    """The files of one step. averages: by their rate."""

    step: int
    model: Path | None = None
    averages: dict[float, Path] = field(default_factory=dict)
    optimizer: Path | None = None

    @property
    def average(self) -> Path | None:
        """That of the highest rate, which averages over the most steps."""
        return self.averages[max(self.averages)] if self.averages else None

    @property
    def weights(self) -> Path:
        """The file to take if it is to be one."""
        found = self.average or self.model
        assert found is not None
        return found


@dataclass(frozen=True, eq=False)
class Triple:
    """The newest step, read. ema, model: the averaged weights, and those of the step (of which there is one at
    least), under our names; rate: of the average; optimizer: Adam's moments and step, named as `Trainer.tensors` names
    them; released: the model that holds the averaged weights, or else the step's; notes: what was left out, and why.
    """

    step: int
    released: Released
    model: dict[str, Tensor] | None
    ema: dict[str, Tensor] | None
    rate: float | None
    optimizer: dict[str, Tensor] | None
    notes: tuple[str, ...] = ()


def find(directory: str | Path) -> TripleFiles | None:
    """The files of the newest step of which there are weights, if there is one."""
    steps: dict[int, TripleFiles] = {}
    for path in sorted(Path(directory).iterdir()):
        if match := MODEL.fullmatch(path.name):
            steps.setdefault(int(match[1]), TripleFiles(int(match[1]))).model = path
        elif (match := AVERAGE.fullmatch(path.name)) and match[1].count(".") <= 1 and match[1] != ".":
            steps.setdefault(int(match[2]), TripleFiles(int(match[2]))).averages[float(match[1])] = path
        elif match := OPTIMIZER.fullmatch(path.name):
            steps.setdefault(int(match[1]), TripleFiles(int(match[1]))).optimizer = path
    with_weights = [step for step, files in steps.items() if files.model or files.averages]
    return steps[max(with_weights)] if with_weights else None


def refuse_optimizer(path: Path) -> None:
    """Raises UsageError for opt000100.pt, naming the file that is meant."""
    match = OPTIMIZER.fullmatch(path.name)
    if match is None:
        return
    step = match[1]
    beside = sorted(path.parent.glob(f"ema_*_{step}.pt"))[::-1] + sorted(path.parent.glob(f"model{step}.pt"))
    instead = beside[0].name if beside else f"ema_0.9999_{step}.pt or model{step}.pt"
    raise UsageError(
        f"{shown_path(path)} holds the state of an optimizer, no weights. Give {instead}, or the whole directory to "
        "adm convert."
    )


def note_average(path: Path) -> None:
    """Warns of model000100.pt when its averaged weights lie beside it, which make better images."""
    match = MODEL.fullmatch(path.name)
    beside = sorted(path.parent.glob(f"ema_*_{match[1]}.pt")) if match else []
    if beside:
        warnings.warn(
            f"{path.name} has the weights of its last step; {beside[-1].name} beside it has the averaged ones, which "
            "make better images. The whole directory instead of one file takes both.",
            stacklevel=2,
        )


def read_triple(directory: str | Path, said: Said = Said()) -> Triple:
    """The newest step of a directory of the original trainer; see `Triple`.

    The optimizer's state is left out, and the reason given, when it does not fit the weights. Raises UsageError for
    a directory without such files, and what `read_released` raises.
    """
    files = find(directory)
    if files is None:
        raise UsageError(
            f"{shown_path(directory)}: holds no model000000.pt or ema_0.9999_000000.pt of the original trainer. "
            "Give such a directory, or one file."
        )
    released = read_released(files.weights, said)
    weights = {"ema" if files.average else "model": weights_of(released.model)}
    if files.average and files.model:
        weights["model"] = weights_of(read_as(files.model, released.spec))
    optimizer, notes = None, []
    rates = sorted(files.averages)
    if len(rates) > 1:
        notes.append(f"of the averages the one of the highest rate is taken, {rates[-1]:g}, not {rates[:-1]}")
    if files.optimizer is not None:
        try:
            optimizer = moments(read_torch_file(files.optimizer), released.spec)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            notes.append(f"{files.optimizer.name} is left out: it does not fit the weights ({one_line(error)})")
    return Triple(
        files.step,
        released,
        weights.get("model"),
        weights.get("ema"),
        rates[-1] if rates else None,
        optimizer,
        tuple(notes),
    )


def weights_of(model: Model) -> dict[str, Tensor]:
    return dict(model.network.state_dict())


def moments(content: Any, spec: Spec) -> dict[str, Tensor]:
    """Adam's moments and step for each tensor of the network, from the state of the original trainer's optimizer.

    In half precision that trainer optimizes one or two long vectors: all tensors end to end, or those of at most one
    axis and then the others. Raises ValueError, or what the lookups raise, for a state that does not fit.
    """
    keys = key_map(spec.network, spec.new_attention_order)
    order = [index for group in content["param_groups"] for index in group["params"]]
    states = [content["state"][index] for index in order]
    found: dict[str, Tensor] = {}
    for members, state in zip(optimized(keys, len(states)), states, strict=True):
        step = torch.as_tensor(state["step"], dtype=torch.float32).reshape(())
        for what in ("exp_avg", "exp_avg_sq"):
            for key, value in split(members, state[what]):
                found[f"{key.ours}.{what}"] = key.load(value.float()).contiguous()
        for key in members:
            found[f"{key.ours}.step"] = step.clone()
    return found


def optimized(keys: list[Key], count: int) -> list[list[Key]]:
    """The tensors of the network behind each of so many that the optimizer had."""
    if count == len(keys):
        return [[key] for key in keys]
    if count == 1:
        return [keys]
    if count == 2:
        return [[k for k in keys if len(k.released_shape) <= 1], [k for k in keys if len(k.released_shape) > 1]]
    raise ValueError(f"it has {count} tensors, the network {len(keys)}")


def split(members: list[Key], value: Tensor) -> list[tuple[Key, Tensor]]:
    """The parts of a tensor that holds its members end to end, in their released shapes."""
    sizes = [math.prod(key.released_shape) for key in members]
    if value.numel() != sum(sizes):
        raise ValueError(f"{value.numel()} numbers where {sum(sizes)} belong")
    if len(members) == 1 and tuple(value.shape) != members[0].released_shape:
        raise ValueError(f"{members[0].released} has the shape {tuple(value.shape)}")
    parts = value.reshape(-1).split(sizes)
    return [(key, part.reshape(key.released_shape)) for key, part in zip(members, parts, strict=True)]
