"""A disk that fills up or fails: the checkpoint before is whole, the message says what to do, and then it goes on."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from adm.checkpoints import format as checkpoint_format
from adm.runtime import _disk
from faults import EIO, SmallDisk, Tmpfs, faults
from storms import RESOURCES, Runs, count, for_good, partials, storm
from tiny_runs import contents

FULL = "No space left on device"
BYTES = r"need \d[\d.]* (bytes|kB|MB), \d[\d.]* (bytes|kB|MB|GB|TB) free"


def refused(runs: Runs, out: str, before: Callable[[], object], cause: str, numbers: str) -> tuple[str, list[str]]:
    """What a run from step 4 does on a disk with that fault: "full" or "enough", and what is wrong with it."""
    trial = runs.start(out, before)
    status, wrong = trial.wait(), []
    step, notes = runs.newest(out)
    if status == RESOURCES:
        problem = trial.problem
        if not re.search(cause, problem) or not re.search(numbers, problem) or f"/{out}/" not in problem:
            wrong.append(f"said: {problem}")
        # One in its place whose directory could not be synced may be gone after a power failure: the one before counts.
        unsure = f"cannot write {runs.root / out}/checkpoints/{checkpoint_format.step_name(step or 0)}: " in problem
        sure = f"The last checkpoint is step {step - 2 if unsure and step else step}."
        if sure not in problem and "cannot lock" not in problem:
            wrong.append(f"names another checkpoint than step {step}: {problem}")
        wrong += [f"left behind: {name}" for name in partials(runs.root / out)]
    elif status != 0:
        wrong.append(f"exit {status}: {trial.said[-400:]}")
    if step not in (4, 6, 8) or notes:
        wrong.append(f"the newest checkpoint is {step}: {notes}")
    return ("full" if status == RESOURCES else "enough"), wrong


def goes_on(runs: Runs, out: str) -> list[str]:
    """What is wrong with a run that was refused, when there is space again and the same command is given."""
    if runs.run(out) != 0 or runs.differences(out):
        return [f"then, with space: {runs.differences(out)} {(runs.root / f'{out}.said').read_text()[-300:]}"]
    return []


def disk_storm(root: Path, trials: int, fsyncs: int) -> dict[str, Any]:
    """Every size between nothing and what the rest of the run needs; limits of a file likewise; failing syncs."""
    runs = Runs(root)
    runs.stopped("four", 4)
    used = sum(map(len, contents(root / "four").values()))
    largest = max(len(data) for data in runs.reference.values())
    more = 3 * sum(len(data) for name, data in runs.reference.items() if "step-00000008" in name)
    problems: list[str] = []
    counts: dict[str, int] = {}

    def note(kind: str, how: str, wrong: list[str]) -> None:
        counts[f"{kind} {how}"] = counts.get(f"{kind} {how}", 0) + 1
        problems.extend(f"{kind} {counts}: {line}" for line in wrong)

    def trial(kind: str, before: Callable[[], object], cause: str, numbers: str) -> None:
        shutil.copytree(root / "four", root / "run")
        how, wrong = refused(runs, "run", before, cause, numbers)
        note(kind, how, wrong + goes_on(runs, "run"))
        shutil.rmtree(root / "run")

    for i in range(trials):
        disk = SmallDisk(root / "run", used + i * more // trials)
        trial("disk", lambda disk=disk: for_good(disk.mounted()), FULL, BYTES)  # type: ignore[misc]
    counts["tmpfs"] = 0
    for i in range(trials):
        with ExitStack() as stack:
            try:
                mounted = stack.enter_context(Tmpfs(root / "run", pages_of(root / "four") + i * more // trials))
            except PermissionError:  # a file system of its own takes the right to mount one
                break
            counts["tmpfs"] += 1
            shutil.copytree(root / "four", root / "run", dirs_exist_ok=True)
            how, wrong = refused(runs, "run", lambda: None, FULL, BYTES)
            mounted.grow()
            note("tmpfs", how, wrong + goes_on(runs, "run"))
    for i in range(trials):
        limit = 1200 + i * largest // trials  # what a trial says goes to a file too
        trial("limit", lambda limit=limit: limit_files(limit), r"File too large \(limit ", BYTES)  # type: ignore[misc]
    syncs = sync_operations(runs)
    for at in syncs[:: max(1, len(syncs) // fsyncs)]:
        trial("sync", lambda at=at: for_good(faults(at, EIO)), "Input/output error", "Check the disk, then")  # type: ignore[misc]
    return {"problems": problems, "counts": counts, "twin": swallowed(runs)}


def swallowed(runs: Runs) -> list[str]:
    """What is wrong with a run whose disk is full, and which takes each write for done."""

    def quiet() -> None:
        disk = SmallDisk(runs.root / "quiet", 6000 + sum(map(len, contents(runs.root / "quiet").values())))
        for_good(disk.mounted())
        write = _disk.write

        def taken(fd: int, data: bytes | memoryview) -> int:
            with suppress(OSError):
                write(fd, data)
            return len(data)

        _disk.write, _disk.free_bytes = taken, lambda path: None
        checkpoint_format._verify_step = lambda directory, step: None  # type: ignore[assignment]

    shutil.copytree(runs.root / "four", runs.root / "quiet")
    return refused(runs, "quiet", quiet, FULL, BYTES)[1]


def pages_of(directory: Path) -> int:
    """Bytes that the files and directories take where both come in pages."""
    return sum(-(-path.stat().st_size // 4096) * 4096 if path.is_file() else 4096 for path in directory.rglob("*"))


def limit_files(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def sync_operations(runs: Runs) -> list[int]:
    """The numbers of all syncs from step 4 to the end."""
    shutil.copytree(runs.root / "four", runs.root / "counted")
    listed = runs.root / "calls"

    def note() -> None:
        counter = for_good(faults())
        leave = os._exit

        def written(status: int) -> None:
            listed.write_text("\n".join(name for name, _ in counter.calls))
            leave(status)

        os._exit = written  # type: ignore[assignment]

    assert runs.start("counted", note).wait() == 0
    return [i for i, name in enumerate(listed.read_text().split()) if name == "fsync"]


def disks(root: Path, trials: int, fsyncs: int) -> None:
    found = storm(disk_storm, root, trials, fsyncs)
    told = {name.replace(" ", "_"): number for name, number in found["counts"].items()}
    num = sum(told.values()) - told["tmpfs"]
    count("disk sizes, limits of file size, failing syncs", num - len(found["problems"]), num, **told)
    assert found["problems"] == []
    assert {"disk full", "limit full", "sync full"} <= found["counts"].keys()
    assert "sync enough" not in found["counts"], "a sync failed and nobody heard of it"
    assert told["tmpfs"] == 0 or "tmpfs full" in found["counts"]
    assert any("the newest checkpoint is" in line for line in found["twin"]), found["twin"]


def test_a_disk_that_fills_up_or_fails_costs_no_checkpoint(tmp_path: Path) -> None:
    disks(tmp_path, 1, 1)


@pytest.mark.slow
def test_forty_sizes_forty_limits_and_every_failing_sync_cost_no_checkpoint(tmp_path: Path) -> None:
    disks(tmp_path, 40, 1000)
