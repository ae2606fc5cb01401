"""One optimizer step after another. Knows no files; what it must remember between steps it can give and take."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adm.data import Batch
from adm.diffusion.losses import LossTerms
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.diffusion.timesteps import LogNormal, LossSecondMoment, TimestepSampler, Uniform
from adm.runtime import randomness
from adm.runtime.distributed import World
from adm.runtime.errors import DivergedError
from adm.training.config import ClassifierTraining, TrainConfig, UpsamplerTraining
from adm.training.ema import EMA
from adm.training.gradients import check_portions, make_gradients
from adm.training.objectives import Denoising, Examples, NoisyClassification, Objective, StepNoise, Upsampling

__all__ = ["StepResult", "Trainer", "make_objective"]


@dataclass(frozen=True)
class StepResult:
    """What one step did: means over the whole batch. skipped: the weights stayed as they were."""

    step: int
    loss: float
    terms: Mapping[str, float]
    grad_norm: float
    lr: float
    skipped: str | None = None


class Trainer:
    """Trains a diffusion model, an upsampler or a noisy classifier; which, its config says.

    Every draw is a function of (seed, position), where position counts the images seen: a trainer that is restored
    from `tensors()` and `state()` continues bit for bit. Many processes see the same order and the same noise, each its
    share of every batch, and hold the same weights.
    """

    def __init__(self, model: DiffusionModel | NoisyClassifier, config: TrainConfig, world: World = World()) -> None:
        loop = config.loop
        check_portions(loop.batch_size, loop.microbatch, loop.exact, world)
        self.model = model.train()
        self.config = config
        self.world = world
        self.step = 0
        self.seconds = 0.0
        self._counted = self._uncounted = 0.0
        self.num_skipped = 0
        self.num_skipped_in_a_row = 0
        self.ema = EMA(model.network, config.ema)
        self.objective = make_objective(model, config)
        self.timesteps = make_timesteps(model, config)
        model.precision = torch.bfloat16 if loop.precision == "bfloat16" else None
        self.device = next(model.network.parameters()).device
        self.gradients = make_gradients(model.network, world, loop.microbatch, loop.exact, self.device)
        # The same model around what a forward pass must go through, which may be a replica's wrapping.
        self.replica = copy.copy(model)
        self.replica._modules = {**model._modules, "network": self.gradients.network}
        o = config.optimizer
        # The fused update does the same arithmetic in one pass; it exists for these devices.
        self.optimizer = torch.optim.AdamW(
            model.network.parameters(),
            lr=o.lr,
            betas=o.betas,
            weight_decay=o.weight_decay,
            fused=self.device.type in ("cpu", "cuda"),
        )

    @property
    def position(self) -> int:
        """Images seen so far, by all processes."""
        return self.step * self.config.loop.batch_size

    @property
    def progress(self) -> float:
        """How much of the run lies behind, 0 to 1: by steps, or by the clock where `loop.minutes` is set."""
        loop = self.config.loop
        return min(1.0, self.step / loop.steps if loop.minutes is None else self.seconds / (60 * loop.minutes))

    @property
    def finished(self) -> bool:
        loop = self.config.loop
        return self.step >= loop.steps or (loop.minutes is not None and self.seconds >= 60 * loop.minutes)

    def advance(self, batch: Batch) -> StepResult:
        """One step on this process's share of the batch at `position`.

        Raises DivergedError, with nothing changed, when it is not finite and may not be skipped (`loop.on_nan`).
        """
        started = (
            time.monotonic() - self._uncounted
        )  # the end of the last step, which could not be told the others then
        o = self.config.optimizer
        t, weight, noise = self._draw(tuple(batch.images.shape[1:]))
        losses, terms, seconds = self._of_all(
            self._backward(Examples(batch.images, batch.label), noise, weight), started
        )
        parameters = [p for p in self.model.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        grad_norm = float(norm)
        lr = o.lr_at(self.step, self.progress)
        # Before clipping, which spreads a NaN to all of them.
        problem = self._not_finite(losses, grad_norm)
        if problem is None:
            if o.clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(parameters, o.clip_norm, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            self.optimizer.step()
            self.timesteps = self.timesteps.updated(t, losses)
            self.num_skipped_in_a_row = 0
        else:
            self._skip(problem)
        self.optimizer.zero_grad(set_to_none=True)
        if problem is None:
            self.ema.update(self.model.network)
        self.step += 1
        self.seconds += seconds
        self._uncounted = time.monotonic() - started - self._counted
        means = {name: float(values.mean()) for name, values in terms.items()}
        return StepResult(self.step, float((losses * weight).mean()), means, grad_norm, lr, problem)

    @property
    def share(self) -> slice:
        """This process's rows of a batch."""
        size = self.config.loop.batch_size // self.world.size
        return slice(self.world.rank * size, (self.world.rank + 1) * size)

    def _draw(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, StepNoise]:
        """Timesteps and weights of the whole batch, and the noise of this process's share."""
        seed = self.config.loop.seed
        positions = range(self.position, self.position + self.config.loop.batch_size)
        t, weight = self.timesteps.draw(StepNoise.uniforms(seed, positions))
        own = positions[self.share]
        return t, weight, StepNoise(t[self.share], StepNoise.normals(seed, own, shape), seed, own)

    def _backward(self, examples: Examples, noise: StepNoise, weight: Tensor) -> list[LossTerms]:
        """Leaves the gradient of the weighted mean loss; the unweighted losses and terms of the share."""
        weight = weight[self.share].to(self.device)

        def forward(rows: slice) -> tuple[Tensor, LossTerms]:
            some, drawn = examples[rows].to(self.device), noise[rows]
            assert drawn.positions is not None
            # By the microbatch's place in training: where microbatches are the same ones, so is what dropout draws.
            with randomness.fork(seed=drawn.seed, stream="dropout", step=drawn.positions[0], device=self.device):
                result = self.objective(self.replica, some, drawn.to(self.device))
            return result.loss * weight[rows], result

        return self.gradients.backward(len(noise.t), forward)

    def _of_all(self, results: list[LossTerms], started: float) -> tuple[Tensor, dict[str, Tensor], float]:
        """Losses and terms of the whole batch, on the CPU, and what the step has taken so far by the first's clock."""
        names = list(results[0].terms)
        columns = [
            torch.cat([r.loss for r in results]),
            *(torch.cat([r.terms[name] for r in results]) for name in names),
        ]
        rows = torch.stack([column.double().cpu() for column in columns], dim=1)
        self._counted = time.monotonic() - started
        clock = torch.full((len(rows), 1), self._counted, dtype=torch.float64)
        rows = self.world.all_gather(torch.cat([rows, clock], dim=1))
        losses, *terms, seconds = rows.unbind(dim=1)
        return losses, dict(zip(names, terms, strict=True)), float(seconds[0])

    def _not_finite(self, losses: Tensor, grad_norm: float) -> str | None:
        """What is not finite, and where first, or None."""
        if bool(torch.isfinite(losses).all()) and grad_norm < float("inf"):
            return None
        what = f"loss {float(losses.mean()):g}, gradient norm {grad_norm:g}"
        named = list(self.model.network.named_parameters())
        bad = [
            f"weight {name}" for name, p in named if not bool(torch.isfinite(p).all())
        ]  # then all gradients are, too
        bad += [
            f"the gradient of {name}"
            for name, p in named
            if p.grad is not None and not bool(torch.isfinite(p.grad).all())
        ]
        where = f" (first in {bad[0]})" if bad else ""
        return f"step {self.step + 1}: not finite: {what}{where}"

    def _skip(self, problem: str) -> None:
        """Count a step that is left out, or DivergedError where that was one too many."""
        allowed = self.config.loop.on_nan
        if allowed == "stop" or self.num_skipped_in_a_row >= allowed:
            self.optimizer.zero_grad(set_to_none=True)
            again = "" if allowed == "stop" else f" {allowed} steps before it were skipped."
            raise DivergedError(
                f"{problem}. The step was not taken and is not saved.{again} "
                "Continue from the last checkpoint with a lower optimizer.lr."
            )
        self.num_skipped += 1
        self.num_skipped_in_a_row += 1

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors to remember, by group."""
        names = {id(p): name for name, p in self.model.network.named_parameters()}
        optimizer = {
            f"{names[id(p)]}.{key}": value for p, state in self.optimizer.state.items() for key, value in state.items()
        }
        return {
            "model": dict(self.model.network.state_dict()),
            **self.ema.tensors(),
            "optimizer": optimizer,
            "timesteps": self.timesteps.state(),
        }

    def state(self) -> dict[str, Any]:
        """All else to remember."""
        return {
            "step": self.step,
            "position": self.position,
            "ema_updates": self.ema.num_updates,
            "seconds": self.seconds if self.config.loop.minutes is not None else None,  # else files would differ
            "skipped": self.num_skipped,
            "skipped_in_a_row": self.num_skipped_in_a_row,
        }

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Continue where `tensors` and `state` were taken."""
        self.step = int(state["step"])
        self.seconds = float(state.get("seconds") or 0.0)
        self.num_skipped = int(state.get("skipped", 0))
        self.num_skipped_in_a_row = int(state.get("skipped_in_a_row", 0))
        self.model.network.load_state_dict(dict(tensors["model"]))
        self.ema.restore(tensors, int(state["ema_updates"]))
        self.timesteps = self.timesteps.restored(dict(tensors["timesteps"]))
        kept: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors["optimizer"].items():
            name, _, what = key.rpartition(".")
            kept.setdefault(name, {})[what] = value
        for name, p in self.model.network.named_parameters():
            # A fused AdamW keeps its step count beside the weights too.
            self.optimizer.state[p] = {what: value.clone().to(p.device) for what, value in kept.get(name, {}).items()}


def make_objective(model: DiffusionModel | NoisyClassifier, config: TrainConfig) -> Objective[Any]:
    """What the config trains the model for."""
    if isinstance(config, ClassifierTraining):
        return NoisyClassification()
    assert isinstance(model, DiffusionModel)
    how = (config.loss, config.weight, config.input_perturbation, config.label_dropout)
    if isinstance(config, UpsamplerTraining):
        return Upsampling(model.schedule, config.low_res, config.low_res_noise, *how)
    return Denoising(model.schedule, *how)


def make_timesteps(model: DiffusionModel | NoisyClassifier, config: TrainConfig) -> TimestepSampler:
    """The distribution of training timesteps."""
    assert model.schedule is not None, "models made from a training config have a schedule"
    T = model.schedule.num_timesteps
    if config.timesteps == "log-normal":
        return LogNormal.new(model.schedule, config.log_normal.mean, config.log_normal.std)
    return Uniform(T) if config.timesteps == "uniform" else LossSecondMoment.new(T)
