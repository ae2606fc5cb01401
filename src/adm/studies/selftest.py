"""Known answers that an installation must reproduce on its own machine."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adm.checkpoints import format as checkpoint_format
from adm.checkpoints.load import load
from adm.data.digits import Digits
from adm.diffusion.chain import Chain
from adm.diffusion.condition import Condition
from adm.diffusion.model import DiffusionModel
from adm.diffusion.prediction import Prediction
from adm.diffusion.schedule import Schedule, Time, cosine, linear, spaced, strided
from adm.runtime.errors import DamagedError
from adm.sampling import RecordedNoise, SeededNoise, sample
from adm.sampling.ddim import DDIM
from adm.sampling.ddpm import DDPM
from adm.studies.demo import DemoConfig, diffusion_config
from adm.studies.generate import generate
from adm.training.config import LoopConfig
from adm.training.run import train

__all__ = ["CHECKS"]

Check = Callable[[torch.device], str | None]
"""device -> None, or what is wrong."""


class GaussianDenoiser:
    """The exact answer for data from N(0, variance), with the exact reverse variance of each link of the chain."""

    def __init__(self, schedule: Schedule, variance: float, chain: Chain) -> None:
        self.schedule, self.variance = schedule, variance
        self.links = {int(link.t): link for link in chain}

    def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
        alpha, sigma = self.schedule.alpha_sigma(t, x_t)
        spread = alpha**2 * self.variance + sigma**2
        link = self.links[int(t)]
        c1 = link.beta * link.alpha_bar_s.sqrt() / (1 - link.alpha_bar)
        optimal = link.beta_tilde + c1**2 * self.variance * sigma**2 / spread
        frac = (optimal.log() - link.log_beta_tilde) / (link.log_beta - link.log_beta_tilde)
        return Prediction(x_t, alpha * self.variance / spread * x_t, alpha, sigma, frac)


def schedules_end_where_they_should(device: torch.device) -> str | None:
    """alpha_bar_T of the released schedules (iDDPM Eq. 17, DDPM section 4)."""
    for schedule, end in ((linear(1000), 4.03583e-5), (cosine(1000), 2.42877e-9)):
        if abs(float(schedule.alpha_bar[-1]) / end - 1) > 1e-5:
            return f"alpha_bar_T is {float(schedule.alpha_bar[-1]):g}, not {end:g}"
    return None


def ancestral_sampling_is_exact_on_gaussian_data(device: torch.device) -> str | None:
    """Whatever the respacing, the variance of N(0, 0.25) data comes out, short of the last step's noise."""
    schedule = linear(1000)
    for count in (4, 50):
        chain = Chain(schedule, spaced(1000, count))
        probes = torch.zeros(count + 1, count + 1, 1, 1, 1, dtype=torch.float64)
        probes[range(1, count + 1), range(1, count + 1)] = 1  # at step i, image i + 1 gets unit noise
        start = torch.zeros(count + 1, 1, 1, 1, dtype=torch.float64)
        start[0] = 1
        noise = RecordedNoise([start, *probes[1:]])
        out = sample(GaussianDenoiser(schedule, 0.25, chain), chain, DDPM(), noise, start.shape).flatten()
        prior = 0.25 * float(chain[0].alpha_bar) + 1 - float(chain[0].alpha_bar)
        variance = float(out[0] ** 2 * prior + (out[1:] ** 2).sum())
        if abs(variance - 0.2499) > 1e-6:
            return f"{count} steps give variance {variance:.7f}, not 0.2499"
    return None


def ddim_at_eta_one_is_ddpm(device: torch.device) -> str | None:
    """DDIM's noisiest member is DDPM with the small variance (DDIM section 4.1)."""
    schedule = cosine(1000)
    chain = Chain(schedule, strided(1000, 25))
    exact = GaussianDenoiser(schedule, 0.25, chain)

    class Small:
        def __init__(self) -> None:
            self.schedule = schedule

        def __call__(self, x_t: Tensor, t: Time, cond: Condition = Condition()) -> Prediction:
            return replace(exact(x_t, t), var_frac=torch.zeros((), dtype=torch.float64))

    noise = SeededNoise(range(4), torch.float64)
    a, b = (sample(Small(), chain, rule, noise, (4, 1, 1, 1)) for rule in (DDPM(), DDIM(eta=1.0)))
    error = float((a - b).abs().max())
    return None if error < 1e-10 else f"they differ by {error:.1e}"


def training_saving_and_sampling_work(device: torch.device) -> str | None:
    """A few steps on digits, a checkpoint that loads, samples that do not depend on the batch, damage that is seen."""
    config = diffusion_config(DemoConfig())
    config = replace(config, loop=LoopConfig(steps=3, batch_size=16, save_every=3, sample_every=100))
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = train(config, Path(folder) / "run", device, dataset=Digits("train"))
        model = load(Path(folder) / "run", device)
        assert isinstance(model, DiffusionModel)
        images = generate(model, num=4, steps=5)
        if images.shape != (4, 8, 8, 1):
            return f"samples have shape {images.shape}"
        damaged = checkpoint / "ema.safetensors"
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 1
        damaged.write_bytes(bytes(content))
        try:
            checkpoint_format.load(checkpoint)
        except DamagedError:
            return None
    return "a flipped bit in a checkpoint was not noticed"


CHECKS: Mapping[str, Check] = {
    "schedules end where they should": schedules_end_where_they_should,
    "ancestral sampling is exact on Gaussian data": ancestral_sampling_is_exact_on_gaussian_data,
    "DDIM at eta = 1 is DDPM": ddim_at_eta_one_is_ddpm,
    "training, saving and sampling work, damage is seen": training_saving_and_sampling_work,
}
