"""Differences under equal seeds are those of the paired t-test, and a choice never sees what it is judged by."""

import pytest
from scipy import stats

from adm.studies._comparison import (
    CONFIDENCE,
    best_by_others,
    how_chosen,
    no_error_bars,
    paired,
    seed_guide,
    under_seeds,
)

OURS = {0: 1.31, 1: 0.94, 2: 1.72, 3: 1.05}
THEIRS = {0: 1.25, 1: 0.91, 2: 1.49, 3: 1.11}


def test_mean_and_standard_error_are_those_of_the_paired_t_test():
    gap = paired(OURS, THEIRS)
    found = stats.ttest_rel(list(OURS.values()), list(THEIRS.values()))
    assert gap.mean / gap.error == pytest.approx(found.statistic, rel=1e-12)
    assert (gap.num, found.df) == (4, 3)


def test_what_both_share_in_a_seed_does_not_count():
    luck = {0: 5.0, 1: -7.0, 2: 0.0, 3: 2.0}
    shifted = paired({k: v + luck[k] for k, v in OURS.items()}, {k: v + luck[k] for k, v in THEIRS.items()})
    gap = paired(OURS, THEIRS)
    assert (shifted.mean, shifted.error) == pytest.approx((gap.mean, gap.error), rel=1e-9)


@pytest.mark.parametrize(
    "shift, higher_is_better, word",
    [(0.0, False, "as good"), (3.0, False, "not as good"), (-3.0, False, "better"), (-3.0, True, "not as good")],
)
def test_two_standard_errors_decide(shift, higher_is_better, word):
    noise = {0: 0.1, 1: -0.1, 2: 0.05, 3: -0.05}
    gap = paired({k: shift + v for k, v in noise.items()}, dict.fromkeys(noise, 0.0))
    assert gap.verdict(higher_is_better).startswith(word)


def test_what_a_report_says_of_two_standard_errors_is_what_the_t_distribution_has():
    said = {3: 82, 5: 88, 10: 92}
    for seeds, percent in said.items():
        assert round(100 * (2 * stats.t(seeds - 1).cdf(2) - 1)) == percent
        assert f"{percent} % with {seeds}" in CONFIDENCE[1]


def test_one_seed_gives_a_difference_and_nothing_else():
    gap = paired({0: 1.0}, {0: 0.5})
    assert gap.error is None and gap.verdict() is None and gap.show() == gap.explain(".2f") == "+0.50"
    two = paired({0: 1.0, 1: 1.0}, {0: 0.5, 1: 0.3})
    assert two.explain(".2f") == "+0.60 ± 0.10 (standard error): not as good, by more than the error bars"


def test_what_is_said_of_one_seed_is_said_of_no_more():
    assert not seed_guide(1) and not no_error_bars(2) and CONFIDENCE in seed_guide(2)
    assert "no error bars" in " ".join(no_error_bars(1))
    assert (under_seeds(1), under_seeds(3)) == ("one seed", "3 seeds, each with models of its own")
    assert "others" in how_chosen(2) and "others" not in how_chosen(1)


def test_different_seeds_are_refused():
    with pytest.raises(ValueError, match="equal seeds"):
        paired({0: 1.0, 1: 2.0}, {0: 1.0, 2: 2.0})


def test_the_choice_for_a_seed_does_not_know_it():
    # "lucky" is best of all under seed 0 and in the mean, yet under the other seeds "steady" is.
    candidates = {"lucky": {0: -9.0, 1: 2.0, 2: 2.0}, "steady": {0: 1.0, 1: 1.0, 2: 1.0}}
    assert best_by_others(candidates)[0] == "steady"
    assert best_by_others({"a": {0: 1.0}, "b": {0: 0.5}}) == {0: "b"}
