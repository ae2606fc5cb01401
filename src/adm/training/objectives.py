"""What is trained: (model, batch, noise) -> LossTerms, for the diffusion model and for the noisy classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.losses import LossKind, LossTerms, denoising_loss
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.diffusion.schedule import Schedule
from adm.runtime import randomness

__all__ = ["Denoising", "Examples", "NoisyClassification", "Objective", "StepNoise"]

M = TypeVar("M", bound=nn.Module, contravariant=True)


@dataclass(frozen=True, eq=False)
class Examples:
    """Training images x0 (N, C, H, W) in [-1, 1] with labels (N,), -1 for none."""

    x0: Tensor
    label: Tensor

    def __getitem__(self, rows: slice) -> Examples:
        return Examples(self.x0[rows], self.label[rows])


@dataclass(frozen=True, eq=False)
class StepNoise:
    """What is drawn for a batch: timesteps t (N,) and eps (N, C, H, W)."""

    t: Tensor
    eps: Tensor

    def __getitem__(self, rows: slice) -> StepNoise:
        return StepNoise(self.t[rows], self.eps[rows])

    @staticmethod
    def uniforms(seed: int, positions: range) -> Tensor:
        """(N,) uniforms to draw timesteps from; each a function of its position in training alone."""
        return randomness.uniform_rows((), seed=seed, stream="training timestep", indices=positions)

    @staticmethod
    def normals(seed: int, positions: range, shape: tuple[int, ...]) -> Tensor:
        """(N, *shape) normals; each image's a function of its position in training alone."""
        return randomness.normal_rows(shape, seed=seed, stream="training noise", indices=positions)


class Objective(Protocol[M]):
    """The loss of each example, (N,); the trainer weights and averages."""

    def __call__(self, model: M, batch: Examples, noise: StepNoise) -> LossTerms: ...


class Denoising:
    """The losses of a diffusion model: simple, hybrid (ADM), or the bound. Labels go to conditional networks alone."""

    def __init__(self, schedule: Schedule, kind: LossKind = "hybrid") -> None:
        self.chain = Chain(schedule, range(schedule.num_timesteps))
        self.kind: LossKind = kind

    def __call__(self, model: DiffusionModel, batch: Examples, noise: StepNoise) -> LossTerms:
        cond = Condition() if model.num_classes is None else Condition(label=batch.label)
        link = self.chain[len(self.chain) - 1 - noise.t]
        return denoising_loss(model, link, batch.x0, noise.eps, cond, self.kind)


class NoisyClassification:
    """Cross-entropy of the label at x_t = q_sample(x0, t, eps), in nats (ADM section 4)."""

    def __call__(self, model: NoisyClassifier, batch: Examples, noise: StepNoise) -> LossTerms:
        if model.schedule is None:
            raise ValueError("this classifier does not know its schedule: training needs one; set it in the config")
        logits = model(model.schedule.q_sample(batch.x0, noise.t, noise.eps), noise.t)
        loss = F.cross_entropy(logits, batch.label, reduction="none")
        accuracy = (logits.detach().argmax(dim=1) == batch.label).float()
        return LossTerms(loss, {"cross_entropy": loss, "accuracy": accuracy})
