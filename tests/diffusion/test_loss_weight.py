"""Loss weights against the papers' formulas for each parametrization, written out here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import adm
from adm.diffusion.loss_weight import WeightConfig, loss_weight
from adm.diffusion.losses import LossKind, denoising_loss

T = torch.tensor([0, 1, 10, 300, 600, 999])
SCHEDULES = {"linear": adm.linear(1000), "edm": adm.edm(1000), "flow": adm.flow(1000)}


def snr_of(schedule: adm.Schedule) -> Tensor:
    return schedule.alpha_bar[T] / (1 - schedule.alpha_bar[T])


class Affine(nn.Module):
    """Some network, and optionally a half for the variance."""

    def __init__(self, learned: bool = False) -> None:
        super().__init__()
        self.learned = learned

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None, low_res: Tensor | None) -> Tensor:
        mean = 0.3 * x - 0.1
        return torch.cat([mean, 0.2 * x], dim=1) if self.learned else mean


def model(mean: str, schedule: adm.Schedule, variance: str = "small") -> adm.DiffusionModel:
    return adm.DiffusionModel(Affine(variance == "learned"), schedule, mean, variance)


PAPERS = {
    # Hang et al. 2023: of x_0, of eps, of v.
    ("min-snr", None, "x0"): lambda snr: torch.minimum(snr, torch.full_like(snr, 5.0)),
    ("min-snr", None, "eps"): lambda snr: torch.minimum(snr, torch.full_like(snr, 5.0)) / snr,
    ("min-snr", None, "v"): lambda snr: torch.minimum(snr, torch.full_like(snr, 5.0)) / (snr + 1),
    ("min-snr", 2.5, "v"): lambda snr: torch.minimum(snr, torch.full_like(snr, 2.5)) / (snr + 1),
    # Choi et al. 2022: of eps, with k = gamma = 1 and with another exponent.
    ("p2", None, "eps"): lambda snr: 1 / (1 + snr),
    ("p2", 0.5, "eps"): lambda snr: 1 / (1 + snr) ** 0.5,
    # Crowson et al. 2024: EDM's weight times a bump, of EDM's F with sigma_data = 0.5, is gamma = 4.
    ("soft-min-snr", None, "edm"): lambda snr: 0.25 / snr / (1 / snr + 0.25) ** 2,
    # and of x_0 1 / (sigma^2 + 1 / gamma).
    ("soft-min-snr", 7.0, "x0"): lambda snr: 1 / (1 / snr + 1 / 7),
    # Plain errors of x_0 are weighted by the SNR when it never reaches the bound: those of eps by 1,
    ("min-snr", 1e30, "eps"): torch.ones_like,
    # those of flow's velocity by u^2 SNR = (1 - u)^2, u = 1 / (1 + sqrt(SNR)).
    ("min-snr", 1e30, "flow"): lambda snr: (1 - 1 / (1 + snr.sqrt())) ** 2,
    # Min-SNR of EDM's F: of x_0 times c_out^2 = sigma^2 / 4 / (sigma^2 + 1 / 4).
    ("min-snr", None, "edm"): lambda snr: snr.clamp(max=5) * (0.25 / snr) / (1 / snr + 0.25),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("case", PAPERS, ids=lambda case: "-".join(map(str, case)))
def test_weights_are_the_papers(case: tuple[str, float | None, str], schedule: str) -> None:
    kind, gamma, mean = case
    m = model(mean, SCHEDULES[schedule])
    like = torch.zeros(len(T), 1, 2, 2, dtype=torch.float64)
    weight = loss_weight(WeightConfig(kind, gamma), m, T, like)  # type: ignore[arg-type]
    torch.testing.assert_close(weight, PAPERS[case](snr_of(m.schedule)), rtol=1e-9, atol=0)


def test_k_of_p2() -> None:
    m = model("eps", SCHEDULES["linear"])
    like = torch.zeros(len(T), 1, 2, 2, dtype=torch.float64)
    snr = snr_of(m.schedule)
    torch.testing.assert_close(loss_weight(WeightConfig("p2", 2.0, 0.3), m, T, like), (0.3 + snr) ** -2.0)
    torch.testing.assert_close(loss_weight(WeightConfig("p2", 1.0, 0.0), m, T, like), 1 / snr)


@pytest.mark.parametrize("kind", ["none", "min-snr", "soft-min-snr", "p2"])
def test_weights_have_the_dtype_of_the_images_and_one_value_for_each(kind: str) -> None:
    m = model("v", SCHEDULES["linear"])
    for dtype in (torch.float32, torch.float64):
        like = torch.zeros(3, 1, 2, 2, dtype=dtype)
        for t in (torch.tensor([1, 5, 9]), torch.tensor(5), 5):
            weight = loss_weight(WeightConfig(kind), m, t, like)  # type: ignore[arg-type]
            assert weight.shape == (3,) and weight.dtype == dtype


@pytest.mark.parametrize("mean", ["eps", "x0", "v", "edm", "flow"])
@pytest.mark.parametrize("kind", ["min-snr", "soft-min-snr", "p2"])
def test_a_weight_is_one_of_x0_whatever_the_network_returns(kind: str, mean: str) -> None:
    """The loss is w(SNR) |x_0 - predicted x_0|^2 with the same w in all parametrizations."""
    schedule = SCHEDULES["linear"]
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(T), 1, 2, 2, generator=rng, dtype=torch.float64)
    link = adm.Chain(schedule, range(1000))[999 - T]
    m = model(mean, schedule)
    loss = denoising_loss(m, link, x0, eps, adm.Condition(), "simple", WeightConfig(kind)).loss  # type: ignore[arg-type]
    error = (m(schedule.q_sample(x0, T, eps), T).x0 - x0).flatten(1).pow(2).mean(1)
    snr = snr_of(schedule)
    of_x0 = {"min-snr": snr.clamp(max=5), "soft-min-snr": 1 / (1 / snr + 1 / 4), "p2": snr / (1 + snr)}[kind]
    torch.testing.assert_close(loss, of_x0 * error, rtol=1e-7, atol=0)


def test_without_a_weight_the_loss_is_the_networks_own_and_edms_is_edms() -> None:
    """EDM: lambda(sigma) |D - y|^2, lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 (EDM Table 1)."""
    schedule = SCHEDULES["edm"]
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(T), 1, 2, 2, generator=rng, dtype=torch.float64)
    link = adm.Chain(schedule, range(1000))[999 - T]
    m = model("edm", schedule)
    loss = denoising_loss(m, link, x0, eps, adm.Condition(), "simple").loss
    sigma2 = 1 / snr_of(schedule)
    error = (m(schedule.q_sample(x0, T, eps), T).x0 - x0).flatten(1).pow(2).mean(1)
    torch.testing.assert_close(loss, (sigma2 + 0.25) / (0.25 * sigma2) * error, rtol=1e-7, atol=0)
    assert torch.equal(loss_weight(WeightConfig(), m, T, x0), torch.ones(len(T), dtype=torch.float64))


@pytest.mark.parametrize("kind", ["hybrid", "hybrid_rescaled"])
def test_the_bound_beside_a_weighted_error_has_no_weight(kind: LossKind) -> None:
    schedule = adm.Schedule(SCHEDULES["linear"].alpha_bar[:500])
    early = torch.tensor([0, 1, 10, 300, 499])
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, len(early), 1, 2, 2, generator=rng, dtype=torch.float64)
    link = adm.Chain(schedule, range(500))[499 - early]
    m = model("eps", schedule, "learned")
    plain = denoising_loss(m, link, x0, eps, adm.Condition(), kind)
    weighted = denoising_loss(m, link, x0, eps, adm.Condition(), kind, WeightConfig("min-snr"))
    for name in ("mse", "vb"):
        assert torch.equal(plain.terms[name], weighted.terms[name])
    factor = (5 * (1 / schedule.alpha_bar[early] - 1)).clamp(max=1)
    bound = plain.terms["vb"] * (0.5 if kind == "hybrid_rescaled" else 1)
    torch.testing.assert_close(weighted.loss, factor * plain.terms["mse"] + bound, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", ["vlb", "vlb_rescaled"])
def test_the_bound_alone_takes_no_weight(loss: str) -> None:
    schedule = SCHEDULES["linear"]
    x = torch.zeros(1, 1, 1, 1)
    link = adm.Chain(schedule, range(1000))[torch.tensor([5])]
    with pytest.raises(
        ValueError, match=f"weight p2 has no squared error to weigh in loss {loss}: use simple or hybrid"
    ):
        denoising_loss(model("eps", schedule, "learned"), link, x, x, adm.Condition(), loss, WeightConfig("p2"))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "snr"}, "weight kind 'snr': choose none, min-snr, soft-min-snr or p2"),
        ({"kind": "min-snr", "gamma": 0.0}, "gamma is 0.0: must be above 0"),
        ({"kind": "p2", "gamma": float("nan")}, "gamma is nan: must be above 0"),
        ({"gamma": 5.0}, "gamma is 5.0 without a weight: leave it out, or choose min-snr"),
        ({"kind": "p2", "k": -1.0}, "k is -1.0: must be 0 or more"),
    ],
)
def test_weights_that_cannot_be_are_refused_in_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        WeightConfig(**given)  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)
