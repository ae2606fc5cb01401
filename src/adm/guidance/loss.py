"""Guidance by any loss of x_0, differentiated through the network."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from adm.diffusion.condition import Condition
from adm.diffusion.model import Denoiser
from adm.diffusion.prediction import GuidanceGradient, Prediction
from adm.diffusion.schedule import Time
from adm.guidance._bounded import Bounded
from adm.guidance._protocol import GuidedDenoiser, Stage
from adm.guidance._strength import check_scale

__all__ = ["LossGuidance"]


@dataclass(frozen=True, eq=False)
class LossGuidance:
    """Adds -scale * grad_{x_t} function(x_0(x_t)) to the guidance gradient, taken through the network: samples of low
    loss, for inverse problems and for scores of images, with any function (DPS, Chung et al. 2022, section 3; universal
    guidance, Bansal et al. 2023, section 3.1).

    It stands for p(y | x_t) = exp(-scale * function(x_0(x_t))): for a measurement y = A(x_0) + s n, function
    ||y - A(x_0)||^2 / (2 s^2) and scale 1. DPS' own step size, which divides by the norm, is that of function
    ||y - A(x_0)||.

    Folded into eps, a gradient g moves x_0 by sigma^2 / alpha g (ADM Alg. 2). If x_0(x_t) is the mean of the images
    behind x_t, sigma^2 / alpha times its Jacobian is their covariance, and so bounded. A network's Jacobian is wrong
    by a little, and sigma / alpha is 164 where short chains begin: the error alone may move x_0 by many times the range
    of images, in any direction. Guided or not, a mean of images lies where they lie; hence `limit`.

    function: x_0 (N, C, H, W) -> (N,), a loss for each image, made of differentiable torch operations; an argument
        named `cond` receives the Condition. It is asked for a batch at a time. x_0 comes from the guidances before:
        where `Clip` holds it, its gradient is 0.
    scale: how strong; 0 switches it off, without evaluations.
    limit: the gradient does not move x_0 out of [-limit, limit], nor further out; inf: no bound, as published; None: 1
        where a guidance of the stage clip bounds x_0 before, as for samples by name unless told otherwise, else inf.
    An evaluation costs a pass through the network and one back, with their memory: one for all losses of the same
    limit that are given one after another, whose sum is bounded, and one more for each that has another guidance of
    the stage gradient between. Raises ValueError for a function that takes or returns something else.
    """

    function: Callable[..., Tensor]
    scale: float = 1.0
    limit: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise ValueError(
                f"a {type(self.function).__name__} is no function: give one from x_0 to a loss for each image"
            )
        _call_arguments(self.function)
        check_scale(self.scale)
        if self.limit is not None and not self.limit > 0:
            raise ValueError(f"limit {self.limit}: choose a positive bound; images lie in [-1, 1], inf is no bound")

    @property
    def stage(self) -> Stage:
        return "gradient"

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        if self.scale == 0:
            return denoiser
        limit = (1.0 if _is_bounded(denoiser) else math.inf) if self.limit is None else self.limit
        if isinstance(denoiser, _LossGuided) and denoiser.limit == limit:  # one pass serves neighbours
            return _LossGuided(denoiser.denoiser, (*denoiser.losses, self), limit)
        return _LossGuided(denoiser, (self,), limit)

    def loss(self, x0: Tensor, cond: Condition) -> Tensor:
        """scale * function, (N,)."""
        loss = self.function(x0, **({"cond": cond} if "cond" in _call_arguments(self.function) else {}))
        if not isinstance(loss, Tensor) or tuple(loss.shape) != (len(x0),):
            found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
            raise ValueError(
                f"the loss function returned {found} for {len(x0)} images: return one loss for each image, shape "
                f"({len(x0)},), such as error.flatten(1).mean(1)"
            )
        if not loss.requires_grad:
            raise ValueError(
                "the loss function returned what does not depend on x_0 differentiably: compute it from x_0 with "
                "torch, without detach, no_grad, rounding or numpy"
            )
        return self.scale * loss


class _LossGuided(GuidedDenoiser):
    def __init__(self, denoiser: Denoiser, losses: tuple[LossGuidance, ...], limit: float) -> None:
        super().__init__(denoiser)
        self.losses = losses
        self.limit = limit

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        prediction, own = self._evaluate(x_t, t, cond)
        return replace(prediction, guidance=self._gradient(prediction, t, cond, own))

    def _evaluate(self, x_t: Tensor, t: Time, cond: Condition) -> tuple[Prediction, Tensor]:
        """What the denoiser says at (x_t, t), and the gradient there. Detached, unless gradients are enabled and x_t
        asks for them: then both can be differentiated again."""
        differentiable = torch.is_grad_enabled() and x_t.requires_grad
        with torch.enable_grad():
            x = x_t if differentiable else x_t.detach().requires_grad_()
            prediction = self.denoiser(x, t, cond)
            total = cast(Tensor, sum(loss.loss(prediction.x0, cond).sum() for loss in self.losses))
            (gradient,) = torch.autograd.grad(total, x, create_graph=differentiable)
        gradient = _within(self.limit, prediction, -gradient)
        if differentiable:
            return prediction, gradient
        x0, var_frac = prediction.x0.detach(), prediction.var_frac.detach()
        return replace(prediction, x_t=x_t, x0=x0, var_frac=var_frac), gradient.detach()

    def _gradient(self, prediction: Prediction, t: Time, cond: Condition, own: Tensor) -> GuidanceGradient:
        x_t, others = prediction.x_t, prediction.guidance

        def gradient(x: Tensor, time: Time) -> Tensor:
            here = x is x_t and (time is t or torch.equal(torch.as_tensor(time), torch.as_tensor(t)))
            mine = own if here else self._evaluate(x, time, cond)[1]
            return mine if others is None else others(x, time) + mine

        return gradient


def _is_bounded(denoiser: Denoiser) -> bool:
    """Whether x_0 of its predictions has been clipped or thresholded."""
    while isinstance(denoiser, GuidedDenoiser):
        if isinstance(denoiser, Bounded):
            return True
        denoiser = denoiser.denoiser
    return False


def _within(limit: float, prediction: Prediction, gradient: Tensor) -> Tensor:
    """The gradient, where needed cut so that folded in it leaves x_0 in [-limit, limit], or no further out."""
    if math.isinf(limit):
        return gradient
    x0 = prediction.x0
    of_x0 = prediction.alpha / prediction.sigma.square().clamp(min=1e-12)  # at clean data sigma is 0, nothing moves
    return gradient.clamp((-limit - x0).clamp(max=0) * of_x0, (limit - x0).clamp(min=0) * of_x0)


def _call_arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    """Which of x_0 and cond the function takes; ValueError if it cannot be called with them."""
    try:
        signature = inspect.signature(function.forward if isinstance(function, nn.Module) else function)
    except (TypeError, ValueError):  # some built-in functions have none
        return ("x0",)
    arguments = {"cond": None} if "cond" in signature.parameters else {}
    try:
        signature.bind(None, **arguments)
    except TypeError as error:
        name = getattr(function, "__name__", type(function).__name__)
        raise ValueError(
            f"the loss function {name[:60]} cannot be called with x_0 ({error}): write it as {name[:60]}(x0) or "
            f"{name[:60]}(x0, cond)"
        ) from error
    return ("x0", *arguments)
