"""Killed, stopped, started twice and at any hour: the same command ends with the bytes of the undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from adm.runtime import _disk
from adm.runtime._lock import Lock
from adm.training.loop import RunLoop
from adm.training.trainer import Trainer
from faults import faults
from storms import RESOURCES, STEPS, STOPPED, Runs, Trial, ask_to_stop, count, for_good, partials, storm

SAVE_EVERY = 2
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


# ---- kill -9 --------------------------------------------------------------------------------------


def kill_here() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(operation: int) -> Callable[[], object]:
    """For a trial: dies at that operation on the disk."""
    return lambda: for_good(faults(operation, kill_here))  # type: ignore[arg-type]


def operations_of_a_save(runs: Runs, base: str) -> range:
    """From the report of the last step on: snapshot, checkpoint, retention, grid, and what ends a run."""
    marks = runs.root / "marks"

    def note() -> None:
        counter = for_good(faults())
        report = RunLoop.report

        def marked(loop: RunLoop, *args: Any, **kwargs: Any) -> None:
            with marks.open("a") as stream:
                stream.write(f"{loop.trainer.step} {len(counter.calls)}\n")
            report(loop, *args, **kwargs)

        RunLoop.report = marked  # type: ignore[method-assign]
        at_exit = os._exit

        def leave(status: int) -> None:
            with marks.open("a") as stream:
                stream.write(f"end {len(counter.calls)}\n")
            at_exit(status)

        os._exit = leave  # type: ignore[assignment]

    shutil.copytree(runs.root / base, runs.root / "marked")
    assert runs.start("marked", note).wait() == 0
    found = dict(line.split() for line in marks.read_text().splitlines())
    return range(int(found["8"]), int(found["end"]))


def kill_storm(runs: Runs, trials: int) -> dict[str, Any]:
    """One that has done 6 of 8 steps is killed at each operation of its last save, a new one at a random moment."""
    root = runs.root
    runs.stopped("six", 6)
    save = operations_of_a_save(runs, "six")
    every = list(save)[:: max(1, 2 * len(save) // trials)]
    rng, problems, repeated, moments, killed = random.Random(0), [], 0, 0, 0
    for trial in range(trials):
        out = f"run-{trial}"
        if trial < len(every):
            shutil.copytree(root / "six", root / out)
            died = runs.start(out, killed_at(every[trial])).wait()
            where = f"operation {every[trial]}"
        else:
            moments += 1
            process = runs.start(out)
            wait = rng.uniform(0, runs.seconds)
            time.sleep(wait)
            os.kill(process.pid, signal.SIGKILL)
            died, where = process.wait(), f"{wait:.3f} s"
            repeated = max(repeated, repeated_steps(runs, process, out))
        ended = runs.run(out)
        wrong = runs.differences(out) if ended == 0 else [(root / f"{out}.said").read_text()[-600:]]
        stray = partials(root / out)
        killed += died == -signal.SIGKILL
        as_planned = (-signal.SIGKILL,) if trial < len(every) else (0, -signal.SIGKILL)  # a moment may come too late
        if died not in as_planned or ended != 0 or wrong or stray:
            problems.append(f"{where}: {died} then {ended}: {wrong} {stray}")
        shutil.rmtree(root / out)
    told = {"operations": len(every), "of": len(save), "moments": moments, "killed": killed}
    return told | {"repeated": repeated, "problems": problems}


def repeated_steps(runs: Runs, process: Trial, out: str) -> int:
    """Steps that were reported and are in no checkpoint."""
    saved, _ = runs.newest(out)
    return max(process.steps, default=0) - (saved or 0)


def kill_minus_nine(found: dict[str, Any], trials: int) -> None:
    count("kill -9", trials - len(found["problems"]), trials,
          operations_of_a_save=f"{found['operations']} of {found['of']}", random_moments=found["moments"],
          killed_then=found["killed"] - found["operations"], most_steps_repeated=found["repeated"])  # fmt: skip
    assert found["problems"] == []
    assert found["repeated"] <= SAVE_EVERY
    assert found["killed"] - found["operations"] >= found["moments"] // 2


# ---- asked to stop --------------------------------------------------------------------------------


def stop_storm(runs: Runs, trials: int, twice: int) -> dict[str, Any]:
    """A signal at a random moment after the first step; at another few, a second one on its heels."""
    root = runs.root
    rng, problems, lost, asked, slowest = random.Random(1), [], 0, 0, 0.0
    for trial in range(trials + twice):
        out, number = f"run-{trial}", SIGNALS[trial % 3]
        process = runs.start(out)
        while not process.steps[1:] and process.seconds_so_far < 60:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.6 * runs.seconds))
        os.kill(process.pid, number)
        sent = time.monotonic()
        if trial >= trials:
            time.sleep(rng.uniform(0, 0.05))
            with suppress(ProcessLookupError):  # it may be gone by now
                os.kill(process.pid, number)
        status = process.wait()
        slowest = max(slowest, time.monotonic() - sent)
        saved, damaged = runs.newest(out)
        asked += status == STOPPED
        if trial < trials:
            lost += max(process.steps) - (saved or 0)
            said = (
                status == 0
                or f"stopped at step {saved}; run the same command" in process.problem
                or (status == STOPPED and f"step {saved}, the last, was saved" in process.problem)
            )
        else:
            said = status in (0, STOPPED)
        ended = runs.run(out)
        if status not in (0, STOPPED) or not said or damaged or ended != 0 or runs.differences_of_end(out):
            problems.append(
                f"{number.name}: {status} then {ended}: {process.said[-300:]} {runs.differences_of_end(out)}"
            )
        shutil.rmtree(root / out)
    return {"problems": problems, "lost": lost, "asked": asked, "slowest": round(slowest, 2)}


def requests_to_stop(found: dict[str, Any], trials: int, twice: int) -> None:
    count("SIGTERM, SIGINT, SIGHUP", trials + twice - len(found["problems"]), trials + twice, steps_lost=found["lost"],
          of_them_twice=twice, stopped_with_75=found["asked"], slowest_seconds=found["slowest"])  # fmt: skip
    assert found["problems"] == [] and found["lost"] == 0 and found["slowest"] < 10
    assert found["asked"] >= (trials + twice) // 2


# ---- two starts, wrong clocks ---------------------------------------------------------------------


def double_storm(runs: Runs, trials: int) -> dict[str, Any]:
    """Two starts at the same moment in one new directory; the holder is killed, then a third goes to the end."""
    root = runs.root
    problems, slowest = [], 0.0

    def waiting() -> None:
        report = RunLoop.report

        def reported(loop: RunLoop, *args: Any, **kwargs: Any) -> None:
            report(loop, *args, **kwargs)
            time.sleep(60)

        RunLoop.report = reported  # type: ignore[method-assign]

    for trial in range(trials):
        out = f"run-{trial}"
        both = [Trial(runs.words(out), root / f"{out}-{k}.said", waiting) for k in range(2)]
        while both[0].poll() is None and both[1].poll() is None and both[0].seconds_so_far < 30:
            time.sleep(0.001)
        second, first = sorted(both, key=lambda one: one.status is None)
        slowest = max(slowest, second.seconds)
        held = first.poll() is None
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        named = f"is in use by pid {first.pid} on " in second.problem
        ended = runs.run(out)
        if second.status != RESOURCES or not held or not named or ended != 0 or runs.differences(out):
            problems.append(f"{second.status} {held} {named} {ended} {second.said[-300:]}")
        shutil.rmtree(root / out)
    return {"problems": problems, "slowest": round(slowest, 2)}


def double_starts(found: dict[str, Any], trials: int) -> None:
    count("two starts at once", trials - len(found["problems"]), trials, slowest_refusal_seconds=found["slowest"])
    assert found["problems"] == []


def clock_storm(runs: Runs, trials: int) -> dict[str, Any]:
    """Stopped twice; the clock of each start is off by up to ten years, and so are the times of all files."""
    root = runs.root
    rng, problems = random.Random(2), []
    years = 10 * 365.25 * 86400

    def shifted(by: float, at: int | None) -> Callable[[], None]:
        def before() -> None:
            now = time.time
            time.time = lambda: now() + by  # type: ignore[assignment]
            if at is not None:
                ask_to_stop(at)

        return before

    for trial in range(trials):
        out = f"run-{trial}"
        statuses = []
        for at in (rng.randint(1, 4), rng.randint(5, STEPS - 1), None):
            statuses.append(runs.start(out, shifted(rng.uniform(-years, years), at)).wait())
            for path in (root / out).rglob("*"):
                moment = time.time() + rng.uniform(-years, years)
                os.utime(path, (moment, moment))
        if statuses[-1] != 0 or not set(statuses) <= {0, STOPPED} or runs.differences_of_end(out):
            problems.append(f"{statuses} {runs.differences_of_end(out)}")
        shutil.rmtree(root / out)
    return {"problems": problems}


def wrong_clocks(found: dict[str, Any], trials: int) -> None:
    count("clocks and times of files off by up to ten years", trials - len(found["problems"]), trials)
    assert found["problems"] == []


# ---- a few of each by default, all of them when asked ---------------------------------------------

STORMS = {"kill": kill_storm, "stop": stop_storm, "double": double_storm, "clock": clock_storm}
CHECKS = {"kill": kill_minus_nine, "stop": requests_to_stop, "double": double_starts, "clock": wrong_clocks}
FEW = {"kill": (2,), "stop": (1, 1), "double": (1,), "clock": (1,)}
MANY = {"kill": (200,), "stop": (100, 20), "double": (20,), "clock": (20,)}


def storms(root: Path, trials: dict[str, list[int]]) -> dict[str, Any]:
    runs = Runs(root)
    found = {name: STORMS[name](runs, *numbers) for name, numbers in trials.items()}
    return found | {"twin": forgetful(runs), "both": both_write(runs)}


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In one process, which is most of what a few cost."""
    return storm(storms, tmp_path_factory.mktemp("storms"), FEW)


@pytest.mark.parametrize("what", STORMS)
def test_a_few_times_the_end_is_that_of_the_undisturbed_run(what: str, few: dict[str, Any]) -> None:
    CHECKS[what](few[what], *FEW[what])


@pytest.mark.slow
@pytest.mark.parametrize("what", STORMS)
def test_many_times_the_end_is_that_of_the_undisturbed_run(what: str, tmp_path: Path) -> None:
    CHECKS[what](storm(storms, tmp_path, {what: MANY[what]})[what], *MANY[what])


def test_the_twin_a_run_that_forgets_ends_differently(few: dict[str, Any]) -> None:
    """What all of the above compare tells a run whose optimizer began anew, and one without a line of its log."""
    assert "log.jsonl" in few["twin"] and "checkpoints/step-00000008/model.safetensors" in few["twin"]


def test_the_twin_without_a_lock_both_starts_write_and_it_is_seen(few: dict[str, Any]) -> None:
    """Neither is refused, or not at once; or the log holds the steps of both."""
    assert few["both"]["refused"] == 0 and few["both"]["different"]


def both_write(runs: Runs) -> dict[str, Any]:
    """Two starts in one directory whose lock is given to everybody: each step is there twice, or an end differs."""

    def unlocked() -> None:
        _disk.lock = lambda fd, *, wait: True  # type: ignore[assignment]
        Lock.check = lambda lock: None  # type: ignore[method-assign]

    both = [Trial(runs.words("both"), runs.root / f"both-{k}.said", unlocked) for k in range(2)]
    statuses = [trial.wait() for trial in both]
    refused = sum("is in use by" in trial.said for trial in both)
    return {"refused": refused, "different": statuses != [0, 0] or runs.differences("both") != []}


def forgetful(runs: Runs) -> list[str]:
    """What is different at the end of a run that was stopped, and forgot."""

    def forget() -> None:
        restore = Trainer.restore

        def restored(trainer: Trainer, tensors: Any, state: Any) -> None:
            restore(trainer, tensors, state)
            trainer.optimizer.state.clear()

        Trainer.restore = restored  # type: ignore[method-assign]

    log = runs.stopped("forgetful", 6) / "log.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[1:]))
    assert runs.start("forgetful", forget).wait() == 0
    return runs.differences_of_end("forgetful")
