"""Perturbed-attention guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Time
from adm.guidance._protocol import GuidedDenoiser, Stage
from adm.guidance._strength import check_scale

__all__ = ["PerturbedAttention"]


class Perturbable(Denoiser, Protocol):
    """A denoiser that can be had with the identity in place of some attention maps, as adm.DiffusionModel can."""

    def with_identity_attention(self, layers: Sequence[str]) -> Denoiser: ...


@dataclass(frozen=True)
class PerturbedAttention:
    """D + scale (D - D'), where D' is the model with the maps of some self-attention replaced by the identity (Ahn et
    al. 2024, section 4). It needs no label and no second model.

    scale: how strong; 0 switches it off, without evaluations. layers: modules of the network by their paths, all
    self-attention in them, such as middle, decoder.blocks.3 or several, (middle,decoder.blocks.3). What was published
    for the released 256x256 models is ("encoder.blocks.13", "encoder.blocks.15", "encoder.blocks.16", "middle"), there
    input_blocks 14, 16, 17 and the middle. Around other guidances of the stage mix, D and D' are still the model's own,
    with its condition, and scale (D - D') is added to what the others made of x_0, as the paper adds it to
    classifier-free guidance. One more evaluation of the network, two around others. Raises ValueError for a denoiser
    whose attention is out of reach and for layers that it does not have.
    """

    scale: float = 1.0
    layers: tuple[str, ...] = ("middle",)

    def __post_init__(self) -> None:
        check_scale(self.scale)
        if isinstance(self.layers, str):
            raise ValueError(f"layers {self.layers!r} is one name: give a list of them, such as ('middle',)")

    @property
    def stage(self) -> Stage:
        return "mix"

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        if self.scale == 0:
            return denoiser
        model = _model_beneath(denoiser)
        return _Perturbed(denoiser, model, model.with_identity_attention(self.layers), self.scale)


class _Perturbed(GuidedDenoiser):
    def __init__(self, denoiser: Denoiser, model: Denoiser, perturbed: Denoiser, scale: float) -> None:
        super().__init__(denoiser)
        self.model = model
        self.perturbed = perturbed
        self.scale = scale

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        prediction = self.denoiser(x_t, t, cond)
        plain = prediction if self.denoiser is self.model else self.model(x_t, t, cond)
        shift = plain.x0 - self.perturbed(x_t, t, cond).x0
        return replace(prediction, x0=prediction.x0 + self.scale * shift)


def _model_beneath(denoiser: Denoiser) -> Perturbable:
    """The denoiser, or what other guidances have wrapped, whose attention can be perturbed."""
    beneath: object = denoiser
    while beneath is not None and not hasattr(beneath, "with_identity_attention"):
        beneath = getattr(beneath, "denoiser", None)
    if beneath is None:
        raise ValueError(
            f"a {type(denoiser).__name__} does not let its self-attention be perturbed: guide an adm.DiffusionModel, "
            "or give it a method with_identity_attention(layers) -> denoiser"
        )
    return beneath  # type: ignore[return-value]
