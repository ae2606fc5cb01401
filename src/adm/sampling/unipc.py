"""UniPC: a predictor and a corrector of the same kind, one evaluation a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from adm.diffusion.chain import Link
from adm.diffusion.grids import log_snr
from adm.diffusion.schedule import Schedule, expand
from adm.sampling._log_snr import Evaluation, check_reach, finite, first_order, gaps, lambda_s, lambda_t, moments
from adm.sampling._protocol import Denoise, Draw, guided

__all__ = ["UniPC"]


@dataclass(frozen=True, eq=False)
class _Predicted:
    """A step whose end has been predicted and not yet been evaluated.

    known: the predictions that it was made from, the latest first, which is that at its beginning, x_t.
    """

    link: Link
    known: tuple[Evaluation, ...]
    x_t: Tensor
    x_s: Tensor


@dataclass(frozen=True)
class UniPC:
    """UniPC-p for x_0 (Zhao et al. 2023, Alg. 1 and 2): deterministic, of order p + 1; guided as in ADM Alg. 2.

    A step's end is predicted from p predictions of x_0. When the next step has evaluated the model there, the end is
    computed once more with that evaluation, and the next step leaves from the corrected point. Where something else
    took the place of the predicted end, as `on_step` may, that stands, uncorrected.

    order: p, 2 or 3, from how many predictions of x_0 a step's end is predicted. The steps before there are p of them
    are of lower order, the one to clean data is of first.
    b: the B(h) of the paper, "bh2", 1 - e^-h, the better with few steps, or "bh1", h. It has a meaning only where one
    coefficient is to be found, which is then set to 1/2. Order 3 overshoots with strong guidance and few steps: use
    order 2 or DPM-Solver++(2M) there. Noise and the model's variance are not used.
    reach: the line through two predictions is followed over at most so many times their distance in lambda = log(alpha
    / sigma); inf is as published. Without a bound the order stays on grids with steps that lengthen in lambda.
    """

    order: int = 2
    b: Literal["bh1", "bh2"] = "bh2"
    reach: float = 1.0

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"order {self.order}: choose 2 (for guided samples) or 3")
        if self.b not in ("bh1", "bh2"):
            raise ValueError(f"b {self.b!r}: choose bh2 (1 - e^-h, the better with few steps) or bh1 (h)")
        check_reach(self.reach)

    def timesteps(self, schedule: Schedule, num_steps: int) -> list[float]:
        return log_snr(schedule, num_steps)

    def init(self) -> None:
        return None

    def step(
        self, denoise: Denoise, x_t: Tensor, link: Link, noise: Draw, state: _Predicted | None
    ) -> tuple[Tensor, _Predicted]:
        here = Evaluation(lambda_t(link), guided(denoise, x_t, link.t).x0)
        known: tuple[Evaluation, ...] = (here,)
        if state is not None:
            if x_t is state.x_s:
                x_t = self._end(state.link, state.known, state.x_t, corrector=here)
            known = (here, *state.known[: self.order - 1])
        x_s = self._end(link, known, x_t)
        return x_s, _Predicted(link, known, x_t, x_s)

    def _end(
        self, link: Link, known: tuple[Evaluation, ...], x_t: Tensor, corrector: Evaluation | None = None
    ) -> Tensor:
        """UniP, or UniC with an evaluation at the predicted end: Alg. 2 and 1 of the paper, in x_0 (its appendix)."""
        here, *before = known
        others = before if corrector is None else [*before, corrector]
        of_x_t, of_x0 = first_order(link)
        x_s = expand(of_x_t, x_t) * x_t + expand(of_x0, x_t) * here.x0
        h = lambda_s(link) - here.at
        length = torch.where(h.isfinite(), h, torch.ones_like(h))
        places = [-gap / length for gap in gaps(h, known, self.reach)]
        if corrector is not None:
            places.append(torch.ones_like(length))
        for weight, other in zip(self._weights(length, places), others, strict=True):
            x_s = x_s + expand(finite(h, link.alpha_s * weight), x_t) * (other.x0 - here.x0)
        return x_s

    def _weights(self, h: Tensor, places: list[Tensor]) -> list[Tensor]:
        """Of each difference to the prediction at t; places: where the others lie, t at 0 and s at 1."""
        if not places:
            return []
        if len(places) == 1:  # section 3: a_1 = 1/2 serves any B(h)
            b = h if self.b == "bh1" else -torch.expm1(-h)
            return [b / 2 / places[0]]
        # Theorem 3.1's conditions say: the polynomial through all predictions, integrated exactly; B(h) cancels.
        powers = torch.stack([torch.stack([place**k for place in places], -1) for k in range(1, len(places) + 1)], -2)
        wanted = torch.stack(moments(h, len(places) + 1)[1:], -1)
        return list(torch.linalg.solve(powers, wanted).unbind(-1))
