"""A network together with what makes it a model: the schedule it was trained for and what its output means."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from adm.diffusion.condition import Condition
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Schedule, Time, expand

__all__ = ["Denoiser", "DiffusionModel", "Mean", "NetworkOutput", "NoisyClassifier", "Variance", "fresh"]

Mean = Literal["eps", "x0", "v", "edm", "flow"]
Variance = Literal["learned", "small", "large"]

SIGMA_DATA = 0.5
"""EDM's standard deviation of data in [-1, 1] (EDM, Table 1)."""

OWN_TIME: dict[str, str] = {"edm": "log(sigma) / 4", "flow": "1000 u"}
"""What networks of these means are told in place of t."""


class Denoiser(Protocol):
    """Anything that predicts x_0: (x_t, t, cond) -> Prediction."""

    @property
    def schedule(self) -> Schedule: ...

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = ...) -> Prediction: ...


def fresh(denoiser: Denoiser) -> Denoiser:
    """The denoiser for one trajectory: `denoiser.fresh()` of one that remembers earlier calls, any other itself."""
    anew: Callable[[], Denoiser] | None = getattr(denoiser, "fresh", None)
    return denoiser if anew is None else anew()


@dataclass(frozen=True, eq=False)
class NetworkOutput:
    """The halves of a raw output: the mean's parametrization and, if learned, 2 var_frac - 1 (else None)."""

    mean: Tensor
    variance: Tensor | None


class NetworkModel(nn.Module):
    """What every model has around its network. Attributes to set: class_names, and precision, a dtype for autocast
    around the network alone (None: as it is)."""

    def __init__(self, network: nn.Module, time_scale: float | None) -> None:
        super().__init__()
        self.network = network
        self.time_scale = time_scale
        self.class_names: tuple[str, ...] = ()
        self.precision: torch.dtype | None = None

    @property
    def device(self) -> torch.device | None:
        """Where the network's weights are; None for a network that has none."""
        first = next(self.network.parameters(), None)
        return None if first is None else first.device

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """(C, H, W) of the images it was made for, when the network knows."""
        return getattr(self.network, "image_shape", None)

    @property
    def num_classes(self) -> int | None:
        return getattr(getattr(self.network, "config", None), "num_classes", None)


class DiffusionModel(NetworkModel):
    """Network + schedule + parametrization: what a checkpoint holds, and a Denoiser.

    network: (x, t, label, low_res) -> (N, C, H, W), or (N, 2C, H, W) with learned variance.
    mean: what the first C channels are: eps (ADM), x0, v (Salimans & Ho 2022), edm's F (EDM Eq. 7), or flow's velocity
        eps - x0 (rectified flow, Liu et al. 2022).
    variance: learned (iDDPM Eq. 15), small (beta_tilde), or large (beta; beta_tilde at t = 0, as released).
    time_scale: the network is given t * time_scale; the released rescale_timesteps is 1000 / T. None: t as it is.
        Two means have their own input and time whatever the schedule, with sigma the noise-to-signal ratio: edm c_in y
        and log(sigma) / 4 (EDM Table 1), flow z = (1 - u) x_0 + u eps and 1000 u, with u = sigma / (1 + sigma).
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        mean: Mean = "eps",
        variance: Variance = "learned",
        time_scale: float | None = None,
    ) -> None:
        super().__init__(network, time_scale)
        if mean not in ("eps", "x0", "v", "edm", "flow"):
            raise ValueError(f"mean {mean!r}: choose eps, x0, v, edm or flow")
        if variance not in ("learned", "small", "large"):
            raise ValueError(f"variance {variance!r}: choose learned, small or large")
        if mean in OWN_TIME and time_scale is not None:
            raise ValueError(
                f"time_scale has no meaning with mean={mean!r}, which is given {OWN_TIME[mean]}: leave it out"
            )
        self.schedule = schedule
        self.mean: Mean = mean
        self.variance: Variance = variance

    def forward(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        """Predict x_0 from x_t (N, C, H, W) at t. Unclipped; carries no guidance."""
        return self.predict(x_t, t, self.output(x_t, t, cond))

    def output(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> NetworkOutput:
        """One evaluation of the network. Raises ValueError when its channels do not fit the variance."""
        x_in, time = self._network_input(x_t, t)
        with autocast(x_t.device, self.precision):
            raw = self.network(x_in, time, cond.label, cond.low_res)
        raw = raw.to(x_t.dtype)
        channels = x_t.shape[1]
        expected = 2 * channels if self.variance == "learned" else channels
        if raw.shape[1] != expected:
            raise ValueError(
                f"the network returned {raw.shape[1]} channels for {channels}-channel images; "
                f"variance={self.variance!r} needs {expected}"
            )
        if self.variance == "learned":
            mean, variance = raw.split(channels, dim=1)
            return NetworkOutput(mean, variance)
        return NetworkOutput(raw, None)

    def predict(self, x_t: Tensor, t: Time, output: NetworkOutput) -> Prediction:
        """The prediction that an output stands for."""
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        return Prediction(x_t, self._x0(x_t, output.mean, alpha, sigma), alpha, sigma, self._var_frac(t, alpha, output))

    def with_identity_attention(self, layers: Sequence[str]) -> DiffusionModel:
        """This model around `network.with_identity_attention(layers)`, the same weights with some attention maps
        replaced by the identity. Class names and precision are those of now.

        Raises ValueError for a network without that method, and for layers that it does not have.
        """
        perturb = getattr(self.network, "with_identity_attention", None)
        if perturb is None:
            raise ValueError(
                f"the network, a {type(self.network).__name__}, cannot have its attention perturbed: use a UNet, or "
                "give it a method with_identity_attention(layers) -> network"
            )
        model = copy.copy(self)
        model._modules = {**self._modules, "network": perturb(layers)}
        return model

    def target(self, x0: Tensor, t: Time, eps: Tensor) -> Tensor:
        """What the mean half is trained to return at x_t = q_sample(x0, t, eps): eps, x0, v, EDM's F, or eps - x0."""
        if self.mean == "eps":
            return eps
        if self.mean == "x0":
            return x0
        alpha, sigma = self.schedule.alpha_sigma(t, x0)
        if self.mean == "v":
            return alpha * eps - sigma * x0
        if self.mean == "flow":
            return eps - x0  # the velocity dz/du of z = (1 - u) x0 + u eps
        skip, out, _ = _edm_scalings(sigma / alpha)
        return (x0 - skip * (x0 + sigma / alpha * eps)) / out  # EDM Eq. 8

    def x0_slope(self, t: Time, like: Tensor) -> Tensor:
        """d x_0 / d mean: an error of the network's mean half times this is one of x_0. Broadcasts over `like`."""
        alpha, sigma = self.schedule.alpha_sigma(t, like)
        if self.mean == "eps":
            return -sigma / alpha
        if self.mean == "x0":
            return torch.ones_like(alpha)
        if self.mean == "v":
            return -sigma
        if self.mean == "flow":
            return -sigma / (alpha + sigma)
        return _edm_scalings(sigma / alpha)[1]

    def _network_input(self, x_t: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        if self.mean == "edm":
            alpha, sigma = self.schedule.alpha_sigma(t, x_t)
            _, _, c_in = _edm_scalings(sigma / alpha)
            # EDM Table 1: c_noise = log(sigma) / 4; the schedule's image is alpha times EDM's.
            return c_in * x_t / alpha, per_image((sigma / alpha).log().flatten() / 4, x_t)
        if self.mean == "flow":
            alpha, sigma = self.schedule.alpha_sigma(t, x_t)
            return x_t / (alpha + sigma), per_image((1000 * sigma / (alpha + sigma)).flatten(), x_t)
        return x_t, per_image(t, x_t, self.time_scale)

    def _x0(self, x_t: Tensor, mean: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        if self.mean == "eps":
            return (x_t - sigma * mean) / alpha  # DDPM Eq. 15
        if self.mean == "x0":
            return mean
        if self.mean == "v":
            return alpha * x_t - sigma * mean
        if self.mean == "flow":
            return (x_t - sigma * mean) / (alpha + sigma)  # z - u velocity
        skip, out, _ = _edm_scalings(sigma / alpha)
        return skip * x_t / alpha + out * mean  # EDM Eq. 7

    def _var_frac(self, t: Time, alpha: Tensor, output: NetworkOutput) -> Tensor:
        if output.variance is not None:
            return (output.variance + 1) / 2  # iDDPM Eq. 15; the released code does not clamp it either
        if self.variance == "small":
            return torch.zeros_like(alpha)
        # Released: "large" still takes the small variance at t = 0, where beta would blur the final image.
        return expand((torch.as_tensor(t) != 0).to(alpha.dtype), output.mean).expand_as(alpha).clone()


class NoisyClassifier(NetworkModel):
    """Network + the schedule it was trained for: p(y | x_t, t), ADM section 4.

    network: (x, t) -> (N, num_classes) logits. schedule: None when unknown (a released file does not say), and then
    no model refuses it. time_scale: as for DiffusionModel.
    """

    def __init__(self, network: nn.Module, schedule: Schedule | None, time_scale: float | None = None) -> None:
        super().__init__(network, time_scale)
        self.schedule = schedule

    def forward(self, x_t: Tensor, t: Time) -> Tensor:
        """Logits (N, num_classes) at x_t (N, C, H, W). Below t = 0, where nothing was trained, t = 0 is asked."""
        t = torch.as_tensor(t).clamp(min=0)
        with autocast(x_t.device, self.precision):
            logits = self.network(x_t, per_image(t, x_t, self.time_scale))
        return logits.to(x_t.dtype)

    def log_prob(self, x_t: Tensor, t: Time, label: Tensor, temperature: float = 1.0) -> Tensor:
        """log p(label | x_t, t), (N,); 0 where the label is -1. Raises ValueError for a label that it does not know.

        temperature: of the softmax, which divides the logits (Guo et al. 2017, section 4.2); 1 is as trained.
        """
        logits = self(x_t, t)
        return of_label((logits if temperature == 1 else logits / temperature).log_softmax(dim=-1), label)

    def grad_log_prob(self, x_t: Tensor, t: Time, label: Tensor, temperature: float = 1.0) -> Tensor:
        """grad_{x_t} log p(label | x_t, t), of x_t's shape; images do not influence each other.

        Detached, unless gradients are enabled and x_t asks for them: then it can be differentiated again.
        """
        differentiable = torch.is_grad_enabled() and x_t.requires_grad
        with torch.enable_grad():
            x = x_t if differentiable else x_t.detach().requires_grad_()
            log_prob = self.log_prob(x, t, label, temperature).sum()
            (gradient,) = torch.autograd.grad(log_prob, x, create_graph=differentiable)
        return gradient


def of_label(values: Tensor, label: Tensor) -> Tensor:
    """The column of values (N, num_classes) that each label names, (N,); 0 for label -1. ValueError for no class."""
    label = torch.as_tensor(label, device=values.device).expand(len(values))
    # Looking at values on another device would wait for it.
    if label.device.type == "cpu" and bool(((label < -1) | (label >= values.shape[1])).any()):
        wrong = int(label[(label < -1) | (label >= values.shape[1])][0])
        raise ValueError(f"label {wrong} is no class of this classifier: give 0 to {values.shape[1] - 1}")
    selected = values.gather(1, label.clamp(min=0)[:, None])[:, 0]
    return torch.where(label < 0, torch.zeros_like(selected), selected)


def per_image(t: Time, x: Tensor, scale: float | None = None) -> Tensor:
    """t for each image of x, (N,) on its device, times the scale: what networks take. Whole numbers stay whole."""
    t = torch.as_tensor(t)
    if t.is_floating_point() or scale is not None:
        t = t.to(x.dtype)
    if t.ndim == 0 and t.device.type == "cpu":
        # A number is written by the device itself; copying a tensor there would wait for it.
        t = torch.full((len(x),), t.item(), dtype=t.dtype, device=x.device)
    t = t.to(x.device).expand(len(x))
    return t if scale is None else t * scale


def autocast(device: torch.device, precision: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast to the precision, or nothing where it is None."""
    return nullcontext() if precision is None else torch.autocast(device.type, dtype=precision)


def _edm_scalings(sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(c_skip, c_out, c_in) at EDM's noise level sigma, EDM Table 1."""
    total = sigma**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, sigma * SIGMA_DATA / total.sqrt(), 1 / total.sqrt()
