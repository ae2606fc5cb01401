"""The sampling rules, and the grids, that the study of samplers compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["GRIDS", "REFERENCE", "RULES", "Rule"]


@dataclass(frozen=True)
class Rule:
    """A sampler as text, on its own grid or on `grid`; evaluations: how many times a link asks the network.

    noise: whether it adds noise on the way. Without, an image is a function of the noise it starts from.
    """

    spec: str
    meaning: str
    grid: str = "{links}"
    evaluations: int = 1
    noise: bool = False

    def links(self, evaluations: int) -> int:
        """The largest number of links that costs no more: two evaluations a link are 2 n - 1, as the last has one."""
        return (evaluations + self.evaluations - 1) // self.evaluations

    def spent(self, evaluations: int) -> int:
        """What that many links cost: one less than an even number for a rule of two evaluations a link."""
        return self.links(evaluations) * self.evaluations - self.evaluations + 1


REFERENCE = "ddpm"
RULES: Mapping[str, Rule] = {
    REFERENCE: Rule("ddpm", "ancestral, the model's learned variance (ADM)", noise=True),
    "ddpm-linear": Rule("ddpm:interpolation=linear", "the same, learned variance interpolated linearly", noise=True),
    "ddim": Rule("ddim", "DDIM on every n-th timestep, as released"),
    "euler": Rule("euler", "Euler, that is DDIM, on the log-SNR grid"),
    "euler-churn": Rule("euler:churn=4", "Euler with churn (EDM Alg. 2)", noise=True),
    "heun": Rule("heun", "Heun (EDM Alg. 1)", evaluations=2),
    "heun-churn": Rule("heun:churn=4", "Heun with churn (EDM Alg. 2)", evaluations=2, noise=True),
    "dpm2m": Rule("dpm_solver_2m", "DPM-Solver++(2M)"),
    "dpm3m-published": Rule("dpm_solver_3m:d2=published", "DPM-Solver++(3M) as published"),
    "dpm3m": Rule("dpm_solver_3m:d2=corrected", "DPM-Solver++(3M), second difference corrected"),
    "dpm-sde": Rule("dpm_solver_sde", "SDE-DPM-Solver++(2M)", noise=True),
    "unipc2": Rule("unipc:order=2", "UniPC-2"),
    "unipc3": Rule("unipc:order=3", "UniPC-3"),
    "ipndm": Rule("ipndm", "iPNDM of order 4"),
}
GRIDS: Mapping[str, Rule] = {
    f"dpm2m-{grid}": Rule("dpm_solver_2m", f"on the grid {grid}", f"{grid}:{{links}}")
    for grid in ("log-snr", "karras", "strided", "even")
}
