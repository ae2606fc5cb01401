"""When the power fails, whatever had not been synced may be lost: an intact checkpoint is there all the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from adm.checkpoints import format as checkpoint_format
from adm.runtime import files
from adm.training.runlog import read_log
from crashes import Journal, rebuilt
from storms import count


def tensors(step: int) -> dict[str, dict[str, torch.Tensor]]:
    return {"model": {"w": torch.full((3, 5), float(step))}, "ema": {"w": torch.full((4,), step / 2)}}


def save(run: Path, step: int) -> None:
    """What a run writes at a save: a line, a checkpoint, and what is no longer kept goes."""
    files.append_line(run / "log.jsonl", f'{{"step": {step}}}')
    directory = run / "checkpoints" / checkpoint_format.step_name(step)
    files.make_directory(directory.parent)
    checkpoint_format.save(directory, tensors=tensors(step), documents={"state": {"step": step}})
    checkpoint_format.retain(run / "checkpoints", keep=2)


def recorded(root: Path, syncs: bool = True) -> tuple[Journal, list[tuple[int, int]]]:
    """A start, two saves of a run that has two checkpoints; (operations so far, step) of each save that returned."""
    run = root / "run"
    run.mkdir(parents=True)
    files.write_json(run / "config.json", {"start": 1})
    save(run, 2)
    save(run, 4)
    journal, returned = Journal(run), [(0, 4)]
    with journal.recorded(syncs), files.lock(run / ".lock"):
        files.write_json(run / "config.json", {"start": 2})
        for step in (6, 8):
            save(run, step)
            returned.append((len(journal.operations), step))
    return journal, returned


def wrong(run: Path, at_least: int) -> str | None:
    """What is not as promised in a directory after a crash."""
    checkpoints = run / "checkpoints"
    newest, notes = checkpoint_format.newest_intact(checkpoints)
    if newest is None:
        return f"no intact checkpoint: {notes}"
    step = int(newest.name.removeprefix("step-"))
    if step < at_least:
        return f"step {at_least} had been saved, and {step} is the newest"
    loaded = checkpoint_format.load(newest).tensors
    if any(not torch.equal(loaded[group]["w"], expected["w"]) for group, expected in tensors(step).items()):
        return f"step {step} has other numbers"
    if (run / "config.json").read_bytes() not in [files.json_bytes({"start": start}) for start in (1, 2)]:
        return "config.json is neither the old nor the new one"
    read_log(run / "log.jsonl")  # lines are not synced: those that are there are read
    return None


def goes_on(run: Path) -> str | None:
    """The next start sweeps, sets aside and saves."""
    checkpoints = run / "checkpoints"
    newest, _ = checkpoint_format.newest_intact(checkpoints, set_aside=True)
    files.remove_partials(run)
    files.remove_partials(checkpoints)
    assert newest is not None
    save(run, 10)
    newest, notes = checkpoint_format.newest_intact(checkpoints)
    return None if newest is not None and newest.name.endswith("10") and not notes else f"after it: {newest}, {notes}"


def crash(root: Path, most: int, syncs: bool = True) -> tuple[int, list[str]]:
    journal, returned = recorded(root, syncs)
    problems, rng = [], random.Random(5)
    states = journal.crashes(most, rng)
    for i, (end, how) in enumerate(states):
        run = rebuilt(journal.disk(end, how), root / "crashed")
        at_least = max(step for operations, step in returned if operations <= end)
        problem = wrong(run, at_least)
        if problem is None and i % 10 == 0:
            problem = goes_on(run)
        if problem is not None:
            problems.append(f"after operation {end}, {how}: {problem}")
    return len(states), problems


def power_failures(root: Path, most: int) -> None:
    num, problems = crash(root, most)
    count("crash states of two saves", num - len(problems), num)
    assert problems == []


def test_the_recorded_disk_is_the_real_one(tmp_path: Path) -> None:
    """With all arrived, the model of the disk holds what the disk does."""
    journal, _ = recorded(tmp_path)
    rebuilt(journal.disk(len(journal.operations), {}), tmp_path / "rebuilt")
    left, right = ({str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
                   for root in (tmp_path / "run", tmp_path / "rebuilt"))  # fmt: skip
    assert left == right and len(journal.operations) > 50


def test_after_a_power_failure_there_is_an_intact_checkpoint(tmp_path: Path) -> None:
    power_failures(tmp_path, 300)


@pytest.mark.slow
def test_after_five_thousand_power_failures_there_is_an_intact_checkpoint(tmp_path: Path) -> None:
    power_failures(tmp_path, 5000)


def test_the_twin_without_syncs_checkpoints_are_lost(tmp_path: Path) -> None:
    _, problems = crash(tmp_path, 300, syncs=False)
    assert any("no intact checkpoint" in problem for problem in problems), problems[:3]
    assert any("had been saved" in problem for problem in problems)
