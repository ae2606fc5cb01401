"""Guidance by an ordinary classifier, one that has only seen clean images."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from adm.diffusion.condition import Condition
from adm.diffusion.model import SIGMA_DATA, Denoiser, of_label
from adm.diffusion.prediction import GuidanceGradient, Prediction
from adm.diffusion.schedule import Time, expand
from adm.guidance._calibration import ImageClassifier, logits_of
from adm.guidance._protocol import GuidedDenoiser, Stage
from adm.guidance._strength import check_finite, check_scale
from adm.guidance.classifier import Classifier

__all__ = ["CleanClassifierGuidance"]


@dataclass(frozen=True, eq=False)
class CleanClassifierGuidance:
    """Adds scale * grad_{x_0} log p(y | x_0) to the guidance gradient, at the predicted x_0 (EluCD, Ma et al. 2023).

    What approximates what: p(y | x_t) is taken to be p(y | x_0(x_t)), and d x_0 / d x_t, through which its gradient in
    x_t would pass, to be a number. So nothing is differentiated through the denoising network: an evaluation costs one
    pass through the classifier and back. The gradient belongs to the prediction, so a sampler that asks at another
    point (`DDPM(grad_at="mean")`) gets that of the same x_0.

    The strength of the gradient is scale (1 + gamma sin(pi u) / u) with u = t / T. Published is, for DDPM alone,
    Sigma + gamma Sigma_max sin(pi u) in place of Sigma; the two agree where Sigma / Sigma_max = u, which holds on the
    linear schedule to 5 % from t = 0.1 T on.

    classifier: images in [-1, 1] (N, C, H, W) -> logits (N, K), such as `smoothed(resnet)`; or an
        adm.NoisyClassifier, which is asked at t = 0. scale: how strong; 0 switches it off, without evaluations.
    tau1, tau2: p(y | x_0) is exp(tau1 f_y) / sum_j exp(tau2 f_j) of the logits f; 1 and 1 are the plain softmax, a
        smaller tau2 also asks for a high f_y, and not for small others alone.
    gamma: how much stronger it is at small noise, by the factor 1 + gamma sin(pi u) / u, u = t / T; 0 is the same
        everywhere, 0.3 was published.
    temperature: divides the logits before that; `fit_temperature` finds the one of an honest classifier.
    jacobian: the number for d x_0 / d x_t, "gaussian", that of normal data of EDM's sigma_data = 0.5, or "identity", 1,
        as published, for DDPM alone. The first is alpha v / (alpha^2 v + sigma^2) with v = 0.25; x_0 moves by at most
        v times the gradient, in every sampler. Under the second DDPM's Sigma keeps it in bounds; an ODE rule moves x_0
        by sigma^2 / alpha times it, which at large noise drives all images of a class to one.
    mean, std: what the classifier's images were normalised with, in [0, 1], one number or one a channel; None: it
        takes images in [-1, 1] as they are.
    size: the side to which x_0 is resized; None: that of the classifier if it says one (`image_shape`), else x_0's own.
    Labels come from `Condition.label`; an image with label -1 is not guided.
    """

    classifier: Classifier | ImageClassifier
    scale: float = 1.0
    tau1: float = 1.0
    tau2: float = 0.5
    gamma: float = 0.3
    temperature: float = 1.0
    jacobian: Literal["gaussian", "identity"] = "gaussian"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.classifier):
            raise ValueError(
                f"a {type(self.classifier).__name__} is no classifier: give a function from images to logits, or "
                "adm.load one"
            )
        check_scale(self.scale)
        check_finite("tau1", self.tau1, "1 is the plain softmax's")
        check_finite("tau2", self.tau2, "1 is the plain softmax's, 0.5 was published")
        check_finite("gamma", self.gamma, "0 keeps the strength the same at all timesteps, 0.3 was published")
        if not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature {self.temperature}: choose a positive number; 1 leaves the classifier as it is"
            )
        if self.jacobian not in ("gaussian", "identity"):
            raise ValueError(f"jacobian {self.jacobian!r}: choose gaussian, or identity (as published, for DDPM)")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std belong together: give both, or neither for images in [-1, 1]")
        if self.std is not None and not all(value > 0 and math.isfinite(value) for value in self.std):
            raise ValueError(f"std {self.std}: give positive numbers, one for all channels or one to each")
        if self.mean is not None and not all(map(math.isfinite, self.mean)):
            raise ValueError(f"mean {self.mean}: give numbers, one for all channels or one to each")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size {self.size}: give the side of the classifier's images in pixels")

    @property
    def stage(self) -> Stage:
        return "gradient"

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        shape: tuple[int, int, int] | None = getattr(denoiser, "image_shape", None)
        if shape is not None:
            self._check_channels(shape[0])
        return denoiser if self.scale == 0 else _CleanGuided(denoiser, self)

    def logits(self, images: Tensor) -> Tensor:
        """f: logits (N, K) of images in [-1, 1], (N, C, H, W), brought to the classifier's size and normalisation."""
        return logits_of(self.classifier, self._as_seen(images)) / self.temperature

    def strength(self, t: Time, schedule_length: int) -> Tensor:
        """scale (1 + gamma sin(pi u) / u) at u = t / T; clean data, t = -1, count as t = 0. float64, of t's shape."""
        u = torch.as_tensor(t).cpu().double().clamp(min=0) / schedule_length
        return self.scale * (1 + self.gamma * math.pi * torch.sinc(u))

    def _check_channels(self, channels: int) -> None:
        """Raise ValueError for images of that many channels where the classifier or its normalisation has others."""
        own: tuple[int, int, int] | None = getattr(self.classifier, "image_shape", None)
        if own is not None and own[0] != channels:
            raise ValueError(
                f"the classifier takes {own[0]}-channel images, the model makes {channels}-channel ones: use a "
                "classifier of such images, or give a function that converts them before it asks"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, channels):
                raise ValueError(
                    f"{name} has {len(values)} numbers, but the number of channels is {channels}: give one for all of "
                    "them or one to each"
                )

    def _as_seen(self, images: Tensor) -> Tensor:
        self._check_channels(images.shape[1])
        own: tuple[int, int, int] | None = getattr(self.classifier, "image_shape", None)
        sides = tuple(images.shape[2:]) if own is None else own[1:]
        size = sides if self.size is None else (self.size, self.size)
        if tuple(images.shape[2:]) != size:
            images = F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        if self.mean is None or self.std is None:
            return images
        mean, std = (images.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return ((images + 1) / 2 - mean) / std


class _CleanGuided(GuidedDenoiser):
    def __init__(self, denoiser: Denoiser, how: CleanClassifierGuidance) -> None:
        super().__init__(denoiser)
        self.how = how

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        prediction = self.denoiser(x_t, t, cond)
        return replace(prediction, guidance=self._gradient(prediction, cond))

    def _gradient(self, prediction: Prediction, cond: Condition) -> GuidanceGradient:
        label, others = cond.label, prediction.guidance
        if label is None:
            raise ValueError("classifier guidance needs to know which class: give Condition(label=...)")
        x0, jacobian = prediction.x0.detach().clamp(-1, 1), self._jacobian(prediction)

        def gradient(x: Tensor, t: Time) -> Tensor:
            strength = self.how.strength(t, self.schedule.num_timesteps)
            own = expand(strength, x) * jacobian * self._grad_log_prob(x0, label)
            return own if others is None else others(x, t) + own

        return gradient

    def _jacobian(self, prediction: Prediction) -> Tensor | float:
        if self.how.jacobian == "identity":
            return 1.0
        v = SIGMA_DATA**2
        return prediction.alpha * v / (prediction.alpha**2 * v + prediction.sigma**2)

    @torch.enable_grad()
    def _grad_log_prob(self, x0: Tensor, label: Tensor) -> Tensor:
        """grad_{x_0} log [exp(tau1 f_y) / sum_j exp(tau2 f_j)]; 0 where the label is -1."""
        x0 = x0.clone().requires_grad_()
        f = self.how.logits(x0)
        log_prob = of_label(self.how.tau1 * f - (self.how.tau2 * f).logsumexp(dim=1, keepdim=True), label)
        return torch.autograd.grad(log_prob.sum(), x0)[0]
