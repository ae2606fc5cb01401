"""A study's trials: each is done once, by one process, whichever stops when; a group of them is one process's."""

from dataclasses import replace

import pytest

from adm.runtime.distributed import World
from adm.runtime.errors import StoppedError
from adm.studies._trials import Trial, run_trials, summaries

TRIALS = [Trial(name, seed, [name, seed]) for name in ("a", "b", "c") for seed in range(3)]


class Alone(World):
    """A process of several whose others are somewhere else: it never waits for them."""

    def any(self, flag):
        return flag


def value(trial):
    return {"x": 10.0 * trial.seed + "abc".index(trial.variant)}


def test_each_trial_is_measured_once_whatever_the_number_of_processes(tmp_path):
    measured = []

    def measure(trial):
        measured.append(trial)
        return value(trial)

    for rank in (2, 1):  # process 0 comes last, when all is there
        with pytest.raises(Exception, match="is missing"):
            run_trials(TRIALS, tmp_path, measure, Alone(rank, 3))
    found = run_trials(TRIALS, tmp_path, measure, Alone(0, 3))
    assert sorted(t.key for t in measured) == sorted(t.key for t in TRIALS)
    assert found == [value(trial) for trial in TRIALS] == run_trials(TRIALS, tmp_path, measure)
    assert len(measured) == len(TRIALS)


def test_a_group_is_the_work_of_one_process(tmp_path):
    by_rank = {rank: [] for rank in range(2)}
    for rank in (1, 0):
        try:
            run_trials(
                TRIALS,
                tmp_path,
                lambda trial, rank=rank: by_rank[rank].append(trial.seed) or value(trial),
                Alone(rank, 2),
                share_by=lambda trial: trial.seed,
            )
        except Exception as error:
            assert "is missing" in str(error)  # process 1 does not wait for process 0 here
    assert (set(by_rank[0]), set(by_rank[1])) == ({0, 2}, {1})


def test_stopped_it_keeps_what_is_done_and_goes_on_from_there(tmp_path):
    measured = []

    def measure(trial):
        measured.append(trial)
        return value(trial)

    with pytest.raises(StoppedError, match="run the same command"):
        run_trials(TRIALS, tmp_path, measure, stop_requested=lambda: len(measured) == 4)
    assert len(measured) == 4
    run_trials(TRIALS, tmp_path, measure)
    assert [t.key for t in measured] == [t.key for t in TRIALS]


def test_a_process_that_has_nothing_left_stops_with_the_others(tmp_path):
    class Other(Alone):
        def any(self, flag):
            return True

    with pytest.raises(StoppedError, match="another process"):
        run_trials(TRIALS, tmp_path, value, Other(0, 1))


def test_a_stop_inside_of_a_trial_is_announced_to_the_others_first(tmp_path):
    told = []

    class Telling(Alone):
        def any(self, flag):
            told.append(flag)
            return flag

    def stopped(trial):
        raise StoppedError("saved at step 7")

    with pytest.raises(StoppedError, match="step 7"):
        run_trials(TRIALS, tmp_path, stopped, Telling(0, 2))
    assert told == [True]


def test_another_recipe_is_another_trial(tmp_path):
    run_trials(TRIALS, tmp_path, value)
    again = [replace(trial, recipe=[*trial.recipe, "new"]) for trial in TRIALS]
    assert run_trials(again, tmp_path, lambda trial: {"x": -1.0}) == [{"x": -1.0}] * len(TRIALS)


def test_summaries_have_the_mean_and_the_deviation_over_the_seeds():
    found = summaries(TRIALS, [value(trial) for trial in TRIALS])
    assert list(found) == ["a", "b", "c"]
    assert (found["b"].mean["x"], found["b"].spread["x"]) == (11.0, 10.0)  # of 1, 11, 21
    assert found["b"].show("x", ".1f") == "11.0 ± 10.0"
    assert found["b"].wins("x", found["a"], higher_is_better=True) == 3
