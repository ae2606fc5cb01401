"""Guidance in a range of noise levels: closed forms of T6, what it saves, and what it passes on."""

import math

import pytest
import torch

import adm
from adm.guidance import GuidedDenoiser
from analytic import GaussianGuide, MixtureClassifier, MixtureDenoiser, gaussian
from labelled import LabelledMixture

F64 = torch.float64
SCHEDULE = adm.cosine(1000)
MIXTURE = MixtureDenoiser(
    SCHEDULE,
    torch.tensor([[-0.9, 0.1], [0.9, 0.6], [0.2, -0.9]], dtype=F64),
    torch.tensor([0.04, 0.09, 0.02]),
    torch.tensor([0.5, 0.3, 0.2]),
)
CLASSES = [0, 0, 1]
COND = adm.Condition(label=torch.tensor([0, 1, 1]))
X = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
FREE, LOW, HIGH = adm.ClassifierFreeGuidance(3.0), 0.3, 2.0
TIMES = [int(SCHEDULE.time_at(ratio)) for ratio in (0.05, 0.7, 6.0)]
"""Below, inside and above the interval."""
IN_AND_OUT = list(zip(TIMES, (False, True, False), strict=True))


def conditional():
    return LabelledMixture(MIXTURE, CLASSES)


def final_variance(guided, per_piece):
    """Var_0 of the guided ODE from N(0, 80^2) at sigma = 80, by DDIM on levels with nodes at 0.5 and 5."""
    pieces = [(1e-4, 0.5), (0.5, 5.0), (5.0, 80.0)]
    levels = [torch.logspace(math.log10(a), math.log10(b), per_piece + 1, dtype=F64)[:-1] for a, b in pieces]
    levels = torch.cat([*levels, torch.tensor([80.0], dtype=F64)])
    levels[per_piece], levels[2 * per_piece] = 0.5, 5.0
    schedule = adm.Schedule.from_sigmas(levels)
    chain = adm.Chain(schedule, range(len(levels)))
    x = torch.full((1, 1, 1, 1), 80 / math.sqrt(1 + 80**2), dtype=F64)
    out = adm.sample(guided(schedule), chain, adm.DDIM(), None, x.shape, adm.Condition(label=[0]), x=x)
    return float(out) ** 2


def extrapolated(guided):
    """Romberg on DDIM's first-order error."""
    rows = [[final_variance(guided, 12 * 2**k)] for k in range(4)]
    for k in range(1, 4):
        for j in range(1, k + 1):
            rows[k].append(rows[k][-1] + (rows[k][-1] - rows[k - 1][j - 1]) / (2**j - 1))
    return rows[-1][-1]


def by_labels(schedule, gamma):
    return adm.ClassifierFreeGuidance(gamma, gaussian(schedule, 2.0))


def by_classifier(schedule, gamma):
    return adm.ClassifierGuidance(GaussianGuide(schedule, 2.0, 1.0), gamma - 1)


class TestT6:
    """Prior N(0, 2) and class N(0, 1) from sigma = 80: Var_0 of the ODE in closed form, (b / (b + sigma^2))^gamma
    (a / (a + sigma^2))^(1 - gamma) inside the interval and gamma = 1 outside."""

    @pytest.mark.parametrize("make", [by_labels, by_classifier])
    @pytest.mark.parametrize(
        ("gamma", "interval", "expected"),
        [(2, None, 0.5), (2, (0.5, 5.0), 0.57683), (3, None, 0.25004), (3, (0.5, 5.0), 0.33279)],
    )
    def test_guidance_everywhere_and_in_an_interval(self, make, gamma, interval, expected):
        def guided(schedule):
            made = make(schedule, gamma)
            return (made if interval is None else adm.Interval(made, *interval))(gaussian(schedule, 1.0))

        assert extrapolated(guided) == pytest.approx(expected, abs=6e-6)

    @pytest.mark.parametrize(("weight", "expected"), [(2, 0.76915), (3, 0.59168)])
    def test_autoguidance(self, weight, expected):
        def guided(schedule):
            return adm.Autoguidance(gaussian(schedule, 1.3), weight)(gaussian(schedule, 1.0))

        assert extrapolated(guided) == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize(("t", "inside"), IN_AND_OUT)
def test_it_is_the_guidance_inside_and_nothing_outside_to_the_bit(t, inside):
    found = adm.Interval(FREE, LOW, HIGH)(conditional())(X, t, COND)
    guided, plain = FREE(conditional())(X, t, COND), conditional()(X, t, COND)
    assert torch.equal(found.x0, guided.x0 if inside else plain.x0)
    assert not torch.equal(guided.x0, plain.x0)


def test_the_lower_end_is_outside_and_the_upper_one_inside():
    schedule = adm.Schedule.from_sigmas(torch.tensor([0.1, 0.25, 1.0, 3.0, 10.0]))
    low, high = (float(((1 - ab) / ab).sqrt()) for ab in schedule.alpha_bar[[1, 3]])
    inside = adm.Interval(FREE, low, high).contains(gaussian(schedule, 1.0), torch.arange(5))
    assert inside.tolist() == [False, False, True, True, False]
    every = adm.Interval(FREE).contains(gaussian(schedule, 1.0), torch.arange(-1, 5))
    assert every.tolist() == [False] + [True] * 5


def test_a_real_t_counts_by_its_own_level():
    contains = adm.Interval(FREE, LOW, HIGH).contains
    for ratio, expected in ((0.299, False), (0.301, True), (1.999, True), (2.001, False)):
        assert bool(contains(MIXTURE, SCHEDULE.time_at(ratio))) == expected


def test_what_the_guidance_costs_is_saved_outside():
    model, other = conditional(), conditional()
    chain = adm.Chain(SCHEDULE, adm.strided(1000, 50))
    inside = sum(LOW < float(link.sigma / link.alpha) <= HIGH for link in chain)
    assert 0 < inside < 50
    noise = adm.SeededNoise(range(3), F64)
    adm.sample(adm.Interval(FREE, LOW, HIGH)(model), chain, adm.DDIM(), noise, X.shape, COND)
    assert (model.calls, model.rows) == (50, 3 * (50 + inside))
    model = conditional()
    two = adm.Interval(adm.Autoguidance(other, 2.0), LOW, HIGH)
    adm.sample(two(model), chain, adm.DDIM(), noise, X.shape, COND)
    assert (model.rows, other.rows) == (3 * 50, 3 * inside)


class CountingClassifier(MixtureClassifier):
    calls = 0

    def grad_log_prob(self, x_t, t, label):
        self.calls += 1
        t = torch.as_tensor(t).expand(len(x_t))
        ask = super().grad_log_prob
        return torch.cat([ask(x_t[i : i + 1], t[i], label[i : i + 1]) for i in range(len(x_t))])


class TestGradients:
    @pytest.mark.parametrize(("t", "inside"), IN_AND_OUT)
    def test_they_are_there_inside_alone(self, t, inside):
        guidance = adm.Interval(adm.ClassifierGuidance(CountingClassifier(MIXTURE, CLASSES)), LOW, HIGH)
        assert guidance.stage == "gradient"
        found = adm.guide(MIXTURE, guidance, adm.Clip())(X, t, COND)
        assert (found.guidance is not None) == inside

    def test_the_level_of_the_prediction_decides_wherever_the_gradient_is_asked(self):
        classifier = CountingClassifier(MIXTURE, CLASSES)
        found = adm.Interval(adm.ClassifierGuidance(classifier), LOW, HIGH)(MIXTURE)(X, TIMES[1], COND)
        expected = classifier.grad_log_prob(X + 0.1, TIMES[0], COND.label)
        assert torch.equal(found.guidance(X + 0.1, TIMES[0]), expected)

    def test_the_classifier_is_not_asked_outside(self):
        classifier = CountingClassifier(MIXTURE, CLASSES)
        chain = adm.Chain(SCHEDULE, adm.strided(1000, 50))
        inside = sum(LOW < float(link.sigma / link.alpha) <= HIGH for link in chain)
        for sampler in (adm.DDIM(), adm.DDPM(grad_at="mean")):
            classifier.calls = 0
            guided = adm.Interval(adm.ClassifierGuidance(classifier), LOW, HIGH)(MIXTURE)
            adm.sample(guided, chain, sampler, adm.SeededNoise(range(3), F64), X.shape, COND)
            assert classifier.calls == inside

    def test_those_of_others_stay_outside(self):
        classifier = CountingClassifier(MIXTURE, CLASSES)
        first, second = adm.ClassifierGuidance(classifier, 2.0), adm.ClassifierGuidance(classifier, 0.5)
        guided = adm.guide(MIXTURE, first, adm.Interval(second, LOW, HIGH))
        for t, scale in zip(TIMES, (2.0, 2.5, 2.0), strict=True):
            found = guided(X, t, COND).guidance(X, t)
            torch.testing.assert_close(found, scale * classifier.grad_log_prob(X, t, COND.label))


class TestImagesAtTheirOwnTimes:
    T = torch.tensor(TIMES)

    @pytest.mark.parametrize("clip", [(), (adm.Clip(),)])
    def test_each_is_as_by_itself(self, clip):
        guided = adm.guide(conditional(), adm.Interval(FREE, LOW, HIGH), *clip)
        together = guided(X, self.T, COND)
        assert together.guidance is None
        for i, t in enumerate(TIMES):
            alone = guided(X[i : i + 1], t, COND[i])
            torch.testing.assert_close(together.x0[i : i + 1], alone.x0, rtol=0, atol=1e-12)
            torch.testing.assert_close(together.var_frac[i : i + 1], alone.var_frac)
            torch.testing.assert_close(together.eps[i : i + 1], alone.eps, rtol=0, atol=1e-9)

    def test_gradients_too(self):
        classifier = CountingClassifier(MIXTURE, CLASSES)
        inner = adm.ClassifierGuidance(classifier, 2.0)
        for denoiser, others in ((conditional(), 0.0), (adm.ClassifierGuidance(classifier, 0.5)(conditional()), 0.5)):
            found = adm.Interval(inner, LOW, HIGH)(denoiser)(X, self.T, COND).guidance(X, self.T)
            scale = torch.tensor([others, others + 2, others], dtype=F64).reshape(3, 1, 1, 1)
            torch.testing.assert_close(found, scale * classifier.grad_log_prob(X, self.T, COND.label))

    @pytest.mark.parametrize(("times", "rows"), [([TIMES[0]] * 3, 3), ([TIMES[1]] * 3, 6), (TIMES, 9)])
    def test_both_are_evaluated_only_where_both_are_needed(self, times, rows):
        model = conditional()
        adm.Interval(FREE, LOW, HIGH)(model)(X, torch.tensor(times), COND)
        assert model.rows == rows


class TestMemory:
    APG = adm.AdaptiveProjectedGuidance(3.0, momentum=-0.5)

    def test_what_is_inside_remembers_within_a_trajectory_alone(self):
        guided = adm.Interval(self.APG, LOW, HIGH)(conditional())
        within = guided.fresh()
        first, second = (within(X, TIMES[1], COND).x0 for _ in range(2))
        assert not torch.equal(first, second) and torch.equal(guided.fresh()(X, TIMES[1], COND).x0, first)
        assert torch.equal(guided(X, TIMES[1], COND).x0, first)

    def test_what_lies_beneath_remembers_the_same_inside_and_outside(self):
        """An interval of scaling by 1 + 1e-15 is no change, so the momentum beneath must be that without it."""
        nothing = adm.EpsilonScaling(1 + 1e-15)
        chain, noise = adm.Chain(SCHEDULE, adm.strided(1000, 50)), adm.SeededNoise(range(3), F64)
        with_it, without = (
            adm.sample(adm.guide(conditional(), self.APG, *more), chain, adm.DDIM(), noise, X.shape, COND)
            for more in ([adm.Interval(nothing, LOW, HIGH)], [])
        )
        torch.testing.assert_close(with_it, without, rtol=0, atol=1e-9)

    def test_without_memory_nothing_is_built_anew(self):
        built = []

        def counted(denoiser):
            built.append(denoiser)
            return adm.EpsilonScaling(1.1)(denoiser)

        guided = adm.guide(conditional(), adm.Clip(), adm.Interval(counted, LOW, HIGH))
        guided.fresh()
        assert len(built) == 1


def test_the_stage_is_that_of_the_guidance():
    stages = [adm.Interval(of).stage for of in (FREE, adm.Clip(), adm.Clip(after=True), lambda denoiser: denoiser)]
    assert stages == ["mix", "clip", "after", "mix"]


def test_a_guidance_that_is_off_costs_nothing():
    assert adm.Interval(adm.ClassifierFreeGuidance(1.0), LOW, HIGH)(MIXTURE) is MIXTURE
    assert isinstance(adm.Interval(FREE, LOW, HIGH)(MIXTURE), GuidedDenoiser)


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (-0.1, 1.0), (float("nan"), 1.0)])
def test_an_empty_interval_is_refused(low, high):
    with pytest.raises(ValueError, match="is empty: choose 0 <= low < high, as noise-to-signal ratios"):
        adm.Interval(FREE, low, high)


def test_what_is_no_guidance_is_refused():
    with pytest.raises(ValueError, match=r"a str is no guidance: give one, such as adm\.ClassifierFreeGuidance"):
        adm.Interval("classifier_free")
