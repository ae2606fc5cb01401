"""Denoisers and classifiers with closed forms, in ADM's own convention, for the production samplers to run on.

Data are Gaussian mixtures: component k has weight w_k, mean m_k, variance v_k (isotropic), and a class. Everything
about x_t then follows exactly: with a = sqrt(alpha_bar), marginal k is N(a m_k, a^2 v_k + 1 - alpha_bar).
"""

from __future__ import annotations

import torch
from torch import Tensor

import adm
from adm.diffusion.schedule import Schedule, Time


class MixtureDenoiser:
    """E[x_0 | x_t] of a mixture. With a chain, var_frac is the exact posterior variance of Gaussian data."""

    def __init__(
        self,
        schedule: Schedule,
        means: Tensor,
        variances: Tensor,
        weights: Tensor | None = None,
        chain: adm.Chain | None = None,
    ) -> None:
        self.schedule = schedule
        self.means, self.variances = means.double(), variances.double()  # (K, D), (K,)
        self.weights = torch.ones(len(means)).double() if weights is None else weights.double()
        self.weights = self.weights / self.weights.sum()
        self.links = None if chain is None else {float(link.t): link for link in chain}

    def responsibilities(self, x_t: Tensor, t: Time) -> Tensor:
        """(N, K)."""
        alpha, sigma = self.schedule.alpha_sigma(t, self.means[0, 0])
        spread = alpha**2 * self.variances + sigma**2
        x = x_t.reshape(len(x_t), 1, -1)
        square = ((x - alpha * self.means) ** 2).sum(-1)
        log_r = self.weights.log() - 0.5 * square / spread - 0.5 * self.means.shape[1] * spread.log()
        return log_r.softmax(-1)

    def __call__(self, x_t: Tensor, t: Time, cond: adm.Condition = adm.Condition()) -> adm.Prediction:
        alpha, sigma = self.schedule.alpha_sigma(t, self.means[0, 0])
        gain = alpha * self.variances / (alpha**2 * self.variances + sigma**2)  # (K,)
        x = x_t.reshape(len(x_t), 1, -1)
        posterior_means = self.means + gain[:, None] * (x - alpha * self.means)  # (N, K, D)
        x0 = (self.responsibilities(x_t, t)[..., None] * posterior_means).sum(1).reshape(x_t.shape)
        return adm.Prediction(x_t, x0.to(x_t.dtype), alpha, sigma, self._var_frac(t, alpha, sigma))

    def _var_frac(self, t: Time, alpha: Tensor, sigma: Tensor) -> Tensor:
        if self.links is None:
            return torch.zeros((), dtype=torch.float64)
        link = self.links.get(float(t))
        if link is None:  # a second evaluation at the chain's end, where no variance is needed
            return torch.zeros((), dtype=torch.float64)
        var_x0 = self.variances[0] * sigma**2 / (alpha**2 * self.variances[0] + sigma**2)
        c1 = link.beta * link.alpha_bar_s.sqrt() / (1 - link.alpha_bar)
        optimal = link.beta_tilde + c1**2 * var_x0
        return (optimal.log() - link.log_beta_tilde) / (link.log_beta - link.log_beta_tilde)


class MixtureClassifier:
    """p(y | x_t, t) proportional to the marginals of the components of class y; all else exact too."""

    def __init__(self, denoiser: MixtureDenoiser, classes: list[int]) -> None:
        self.schedule = denoiser.schedule
        self.denoiser = denoiser
        self.classes = torch.tensor(classes)

    def __call__(self, x_t: Tensor, t: Time) -> Tensor:
        """Logits (N, K): the log posterior of each class."""
        r = self.denoiser.responsibilities(x_t, t)
        members = [self.classes == k for k in range(int(self.classes.max()) + 1)]
        return torch.stack([r[:, member].sum(-1).log() for member in members], dim=1).to(x_t.dtype)

    def log_prob(self, x_t: Tensor, t: Time, label: Tensor) -> Tensor:
        r = self.denoiser.responsibilities(x_t, t)
        member = (self.classes[None, :] == label[:, None]).double()
        return (r * member).sum(-1).log()

    def grad_log_prob(self, x_t: Tensor, t: Time, label: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            return torch.autograd.grad(self.log_prob(x, t, label).sum(), x)[0]


def gaussian(schedule: Schedule, variance: float, mean: float = 0.0, chain: adm.Chain | None = None) -> MixtureDenoiser:
    """One-dimensional N(mean, variance)."""
    return MixtureDenoiser(schedule, torch.tensor([[mean]]).double(), torch.tensor([variance]).double(), chain=chain)


class GaussianGuide:
    """grad log [N(x_0; 0, class_variance) / N(x_0; 0, prior_variance)] diffused to t: the exact p(y | x_t) of T5."""

    def __init__(self, schedule: Schedule, prior_variance: float, class_variance: float) -> None:
        self.schedule = schedule
        self.prior, self.given = prior_variance, class_variance

    def grad_log_prob(self, x_t: Tensor, t: Time, label: Tensor) -> Tensor:
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        return x_t / (alpha**2 * self.prior + sigma**2) - x_t / (alpha**2 * self.given + sigma**2)


def linear_map(
    denoiser: adm.Denoiser, chain: adm.Chain, sampler: adm.Sampler, cond: adm.Condition | None = None
) -> tuple[float, float]:
    """(gain, noise variance) of the affine map x_T -> x_0 that a sampler is on centred Gaussian data.

    Rows of one batch are the probes: x_T = 1 without noise, and x_T = 0 with unit noise at one step each.
    """
    n = len(chain)
    x = torch.zeros(n + 1, 1, 1, 1, dtype=torch.float64)
    x[0] = 1

    class Impulse:
        def initial(self, shape):
            raise AssertionError("the chain starts from x")

        def at(self, i, shape, draw=0):
            z = torch.zeros(shape, dtype=torch.float64)
            z[i + 1] = 1
            return z

    out = adm.sample(denoiser, chain, sampler, Impulse(), x.shape, cond or adm.Condition(), x=x).flatten()
    return float(out[0]), float((out[1:] ** 2).sum())
