"""One optimizer step after another. Knows no files; what it must remember between steps it can give and take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from adm.data import Batch
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.diffusion.timesteps import LossSecondMoment, TimestepSampler, Uniform
from adm.runtime import randomness
from adm.runtime.errors import DivergedError
from adm.training.config import TrainConfig
from adm.training.ema import EMA
from adm.training.objectives import Denoising, Examples, NoisyClassification, Objective, StepNoise

__all__ = ["StepResult", "Trainer"]


@dataclass(frozen=True)
class StepResult:
    """What one step did: means over the batch."""

    step: int
    loss: float
    terms: Mapping[str, float]
    grad_norm: float
    lr: float


class Trainer:
    """Trains a diffusion model or a noisy classifier; which, its config's objective says.

    Every draw is a function of (seed, position), where position counts the images seen: a trainer that is restored
    from `tensors()` and `state()` continues bit for bit.
    """

    def __init__(self, model: DiffusionModel | NoisyClassifier, config: TrainConfig) -> None:
        self.model = model.train()
        self.config = config
        self.step = 0
        self.ema = EMA(model.network, config.ema)
        self.objective = make_objective(model, config)
        self.timesteps = make_timesteps(model, config)
        model.precision = torch.bfloat16 if config.loop.precision == "bfloat16" else None
        o = config.optimizer
        # The fused update does the same arithmetic in one pass; it exists for these devices.
        self.optimizer = torch.optim.AdamW(
            model.network.parameters(),
            lr=o.lr,
            betas=o.betas,
            weight_decay=o.weight_decay,
            fused=next(model.network.parameters()).device.type in ("cpu", "cuda"),
        )

    @property
    def position(self) -> int:
        """Images seen so far."""
        return self.step * self.config.loop.batch_size

    def advance(self, batch: Batch) -> StepResult:
        """One step on the batch at `position`. Raises DivergedError, with nothing changed, when it is not finite."""
        config = self.config
        examples = Examples(batch.images, batch.label)
        t, weight, noise = self._draw(examples)
        losses, terms = self._backward(examples, noise, weight)
        gradients = [p.grad for p in self.model.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        grad_norm = float(norm)
        # Before clipping, which spreads a NaN to all of them.
        self._check_finite(losses, grad_norm)
        if config.optimizer.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.model.network.parameters(), config.optimizer.clip_norm, norm)
        lr = config.optimizer.lr_at(self.step, config.loop.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model.network)
        self.timesteps = self.timesteps.updated(t, losses)
        self.step += 1
        means = {name: float(values.mean()) for name, values in terms.items()}
        return StepResult(self.step, float((losses * weight).mean()), means, grad_norm, lr)

    def _draw(self, examples: Examples) -> tuple[Tensor, Tensor, StepNoise]:
        seed, n = self.config.loop.seed, len(examples.x0)
        positions = range(self.position, self.position + n)
        t, weight = self.timesteps.draw(StepNoise.uniforms(seed, positions))
        return t, weight, StepNoise(t, StepNoise.normals(seed, positions, tuple(examples.x0.shape[1:])))

    def _backward(self, examples: Examples, noise: StepNoise, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of the weighted mean loss, a microbatch at a time; the unweighted losses and terms, on the CPU."""
        n = len(examples.x0)
        size = self.config.loop.microbatch or n
        device = next(self.model.network.parameters()).device
        losses: list[Tensor] = []
        terms: dict[str, list[Tensor]] = {}
        for start in range(0, n, size):
            rows = slice(start, start + size)
            some, drawn = examples[rows], noise[rows]
            some = Examples(some.x0.to(device), some.label.to(device))
            with randomness.fork(
                seed=self.config.loop.seed, stream="dropout", step=self.position + start, device=device
            ):
                result = self.objective(self.model, some, StepNoise(drawn.t, drawn.eps.to(device)))
                # Each microbatch contributes its share of the one mean, so its size does not matter.
                ((result.loss * weight[rows].to(device)).sum() / n).backward()
            losses.append(result.loss.detach().cpu())
            for name, values in result.terms.items():
                terms.setdefault(name, []).append(values.detach().cpu())
        return torch.cat(losses), {name: torch.cat(values) for name, values in terms.items()}

    def _check_finite(self, losses: Tensor, grad_norm: float) -> None:
        if bool(torch.isfinite(losses).all()) and grad_norm < float("inf"):
            return
        what = f"loss {float(losses.mean()):g}, gradient norm {grad_norm:g}"
        bad = [
            name
            for name, p in self.model.network.named_parameters()
            if p.grad is not None and not bool(torch.isfinite(p.grad).all())
        ]
        where = f" (first in the gradient of {bad[0]})" if bad else ""
        self.optimizer.zero_grad(set_to_none=True)
        raise DivergedError(
            f"step {self.step + 1}: not finite: {what}{where}. The step was not taken and is not saved. "
            "Continue from the last checkpoint with a lower optimizer.lr."
        )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors to remember, by group."""
        names = {id(p): name for name, p in self.model.network.named_parameters()}
        optimizer = {
            f"{names[id(p)]}.{key}": value for p, state in self.optimizer.state.items() for key, value in state.items()
        }
        return {
            "model": dict(self.model.network.state_dict()),
            "ema": self.ema.weights,
            "optimizer": optimizer,
            "timesteps": self.timesteps.state(),
        }

    def state(self) -> dict[str, Any]:
        """All else to remember."""
        return {"step": self.step, "position": self.position, "ema_updates": self.ema.num_updates}

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Continue where `tensors` and `state` were taken."""
        self.step = int(state["step"])
        self.model.network.load_state_dict(dict(tensors["model"]))
        self.ema.restore(tensors["ema"], int(state["ema_updates"]))
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
    if config.job == "diffusion":
        return Denoising(model.schedule, config.loss)  # type: ignore[arg-type]
    return NoisyClassification()


def make_timesteps(model: DiffusionModel | NoisyClassifier, config: TrainConfig) -> TimestepSampler:
    """The distribution of training timesteps."""
    assert model.schedule is not None, "models made from a training config have a schedule"
    T = model.schedule.num_timesteps
    return Uniform(T) if config.timesteps == "uniform" else LossSecondMoment.new(T)
