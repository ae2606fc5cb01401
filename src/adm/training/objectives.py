"""What is trained: (model, batch, noise) -> LossTerms, for diffusion models, upsamplers and noisy classifiers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.loss_weight import WeightConfig
from adm.diffusion.losses import LossKind, LossTerms, denoising_loss
from adm.diffusion.model import DiffusionModel, NoisyClassifier
from adm.diffusion.schedule import Schedule
from adm.runtime import randomness
from adm.training.upsampling import low_res_of

__all__ = ["Denoising", "Examples", "NoisyClassification", "Objective", "StepNoise", "Upsampling"]

M = TypeVar("M", bound=nn.Module, contravariant=True)


@dataclass(frozen=True, eq=False)
class Examples:
    """Training images x0 (N, C, H, W) in [-1, 1] with labels (N,), -1 for none."""

    x0: Tensor
    label: Tensor

    def __getitem__(self, rows: slice) -> Examples:
        return Examples(self.x0[rows], self.label[rows])

    def to(self, device: torch.device) -> Examples:
        return Examples(self.x0.to(device), self.label.to(device))


@dataclass(frozen=True, eq=False)
class StepNoise:
    """What is random in a batch: timesteps t (N,), eps (N, C, H, W), and further draws where an objective asks.

    All are functions of (seed, position in training) of each image alone. positions: None for 0 .. N-1.
    """

    t: Tensor
    eps: Tensor
    seed: int = 0
    positions: Sequence[int] | None = None

    def __getitem__(self, rows: slice) -> StepNoise:
        return StepNoise(self.t[rows], self.eps[rows], self.seed, self._positions()[rows])

    def to(self, device: torch.device) -> StepNoise:
        """With eps on the device; timesteps stay, since tables are read on the CPU."""
        return StepNoise(self.t, self.eps.to(device), self.seed, self.positions)

    def uniform(self, what: str) -> Tensor:
        """(N,) float64 uniforms for the purpose named, on the CPU."""
        return randomness.uniform_rows((), seed=self.seed, stream=f"training {what}", indices=self._positions())

    def normal(self, what: str, shape: Sequence[int]) -> Tensor:
        """(N, *shape) normals for the purpose named, on the device of eps."""
        stream = f"training {what}"
        draws = randomness.normal_rows(shape, seed=self.seed, stream=stream, indices=self._positions())
        return draws.to(self.eps.device)

    def _positions(self) -> Sequence[int]:
        return range(len(self.t)) if self.positions is None else self.positions

    @staticmethod
    def uniforms(seed: int, positions: Sequence[int]) -> Tensor:
        """(N,) uniforms to draw timesteps from."""
        return randomness.uniform_rows((), seed=seed, stream="training timestep", indices=positions)

    @staticmethod
    def normals(seed: int, positions: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """(N, *shape) normals."""
        return randomness.normal_rows(shape, seed=seed, stream="training noise", indices=positions)


class Objective(Protocol[M]):
    """The loss of each example, (N,); the trainer weights and averages."""

    def __call__(self, model: M, batch: Examples, noise: StepNoise) -> LossTerms: ...


class Denoising:
    """The losses of a diffusion model: simple, hybrid (ADM), or the bound. Labels go to conditional networks alone.

    weight: of the squared error. label_dropout: the share of labels that become -1, "no label" (classifier-free
    guidance, Ho & Salimans 2022). input_perturbation: x_t is made with eps + gamma xi, and eps is still what has to be
    found (Ning et al. 2023).
    """

    def __init__(
        self,
        schedule: Schedule,
        kind: LossKind = "hybrid",
        weight: WeightConfig = WeightConfig(),
        input_perturbation: float = 0.0,
        label_dropout: float = 0.0,
    ) -> None:
        self.chain = Chain(schedule, range(schedule.num_timesteps))
        self.kind: LossKind = kind
        self.weight = weight
        self.input_perturbation = input_perturbation
        self.label_dropout = label_dropout

    def __call__(self, model: DiffusionModel, batch: Examples, noise: StepNoise) -> LossTerms:
        link = self.chain[len(self.chain) - 1 - noise.t]
        perturbation = None
        if self.input_perturbation:
            perturbation = self.input_perturbation * noise.normal("input perturbation", noise.eps.shape[1:])
        cond = self.condition(model, batch, noise)
        return denoising_loss(model, link, batch.x0, noise.eps, cond, self.kind, self.weight, perturbation)

    def condition(self, model: DiffusionModel, batch: Examples, noise: StepNoise) -> Condition:
        """What the network is told of each image besides x_t and t."""
        if model.num_classes is None:
            return Condition()
        if not self.label_dropout:
            return Condition(label=batch.label)
        left_out = (noise.uniform("label dropout") < self.label_dropout).to(batch.label.device)
        return Condition(label=torch.where(left_out, -1, batch.label))


class Upsampling(Denoising):
    """The same losses of an upsampler, which is also shown the image at low resolution (ADM section 5).

    size: (height, width) of the image shown, an area average. noise: of it, see `adm.training.upsampling.low_res_of`.
    """

    def __init__(
        self,
        schedule: Schedule,
        size: tuple[int, int],
        noise: float = 0.0,
        kind: LossKind = "hybrid",
        weight: WeightConfig = WeightConfig(),
        input_perturbation: float = 0.0,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__(schedule, kind, weight, input_perturbation, label_dropout)
        self.size = size
        self.noise = noise

    def condition(self, model: DiffusionModel, batch: Examples, noise: StepNoise) -> Condition:
        label = super().condition(model, batch, noise).label
        u = noise.uniform("low-res level")
        z = noise.normal("low-res noise", (batch.x0.shape[1], *self.size))
        return Condition(label=label, low_res=low_res_of(batch.x0, self.size, self.noise, u, z))


class NoisyClassification:
    """Cross-entropy of the label at x_t = q_sample(x0, t, eps), in nats (ADM section 4)."""

    def __call__(self, model: NoisyClassifier, batch: Examples, noise: StepNoise) -> LossTerms:
        if model.schedule is None:
            raise ValueError("this classifier does not know its schedule: training needs one; set it in the config")
        logits = model(model.schedule.q_sample(batch.x0, noise.t, noise.eps), noise.t)
        loss = F.cross_entropy(logits, batch.label, reduction="none")
        terms = {"cross_entropy": loss, "accuracy": _within(logits, batch.label, 1)}
        if logits.shape[1] > 5:
            terms["accuracy_top5"] = _within(logits, batch.label, 5)
        return LossTerms(loss, terms)


def _within(logits: Tensor, label: Tensor, k: int) -> Tensor:
    """(N,) 1.0 where the label is among the k most likely classes."""
    return (logits.detach().topk(k, dim=1).indices == label[:, None]).any(dim=1).float()
