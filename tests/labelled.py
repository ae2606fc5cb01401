"""A class-conditional denoiser with a closed form, which counts what it is asked."""

from __future__ import annotations

import torch
from torch import Tensor

import adm
from adm.diffusion.schedule import Time
from analytic import MixtureDenoiser


class LabelledMixture:
    """E[x_0 | x_t, y] of a mixture whose components have classes; for label -1, or without labels, of all of them.

    t may differ between images. var_frac is (label + 2) / 10, so that one can tell whose it is.
    """

    def __init__(self, mixture: MixtureDenoiser, classes: list[int]) -> None:
        self.schedule = mixture.schedule
        self.of = {-1: mixture, **{y: _members(mixture, torch.tensor(classes) == y) for y in set(classes)}}
        self.calls = self.rows = 0

    def __call__(self, x_t: Tensor, t: Time, cond: adm.Condition = adm.Condition()) -> adm.Prediction:
        self.calls, self.rows = self.calls + 1, self.rows + len(x_t)
        label = torch.full((len(x_t),), -1) if cond.label is None else cond.label
        times = torch.as_tensor(t).expand(len(x_t))
        x0 = [self.of[int(y)](x_t[i : i + 1], times[i]).x0 for i, y in enumerate(label)]
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        return adm.Prediction(x_t, torch.cat(x0), alpha, sigma, (label + 2).to(x_t).reshape(-1, 1, 1, 1) / 10)


def _members(mixture: MixtureDenoiser, which: Tensor) -> MixtureDenoiser:
    return MixtureDenoiser(mixture.schedule, mixture.means[which], mixture.variances[which], mixture.weights[which])
