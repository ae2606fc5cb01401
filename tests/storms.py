"""Many trials of one kind: the same command in forked processes, and the count of how they ended.

A storm is a function that is called in a process of its own, which trains once, so that all is imported, and then forks
a process for each trial. What it counts is printed (`pytest -s`) and, where ADM_STORM_COUNTS names a file, added to it.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from adm.checkpoints import format as checkpoint_format
from adm.training.trainer import Trainer
from tiny_runs import Stripes, contents, start_process

SETTINGS = (
    "network.model_channels=8", "network.channel_mult=1,2", "network.num_res_blocks=1",
    "network.attention_resolutions=4", "network.num_head_channels=8", "network.dropout=0.1",
    "schedule.num_timesteps=4", "timesteps=loss-second-moment", "loop.log_every=1", "loop.save_every=2",
    "loop.keep=2", "loop.sample_every=4", "ema.snapshot_every=4",
)  # fmt: skip
STEPS = 8
RESOURCES = 5
STOPPED = 75
ENTERED: list[object] = []


def count(what: str, passed: int, of: int, **numbers: object) -> None:
    """A line of the table in docs/reliability.md."""
    more = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in numbers.items())
    print(f"{what}: {passed:,} of {of:,}{f' ({more})' if more else ''}", flush=True)
    if path := os.environ.get("ADM_STORM_COUNTS"):
        with open(path, "a") as stream:
            stream.write(json.dumps({"what": what, "passed": passed, "of": of, **numbers}) + "\n")


# ---- a process for all trials ---------------------------------------------------------------------


def storm(target: Callable[..., Any], *args: Any, seconds: float = 3000) -> Any:
    """What `target(*args)` returns, as JSON holds it, in a process that has computed nothing before."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        process = start_process(_into_file, target, args, result)
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        told = json.loads(result.read_text()) if result.exists() else {"failed": f"exit status {process.exitcode}"}
    assert "failed" not in told, told["failed"]
    return told["value"]


def _into_file(target: Callable[..., Any], args: Any, result: Path) -> None:
    torch.set_num_threads(1)
    try:
        told = {"value": target(*args)}
    except BaseException:
        told = {"failed": traceback.format_exc()}
    result.write_text(json.dumps(told))


# ---- one trial ------------------------------------------------------------------------------------


class Trial:
    """A command line in a forked process. `said` is what it printed, `steps` the steps that it took, in order."""

    def __init__(self, words: list[str], log: Path, before: Callable[[], object] = lambda: None) -> None:
        self.log = log
        self.status: int | None = None
        self.seconds = 0.0
        self.step_log = log.with_suffix(".steps")
        for path in (self.log, self.step_log):
            path.write_bytes(b"")
        self.started = time.monotonic()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # forking beside torch's idle threads
            self.pid = os.fork()
        if self.pid == 0:
            status = self._run(words, before)
            os._exit(status)

    def _run(self, words: list[str], before: Callable[[], object]) -> int:
        from adm.cli.main import main
        from adm.training.loop import RunLoop

        output = os.open(self.log, os.O_WRONLY | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        steps, report = os.open(self.step_log, os.O_WRONLY | os.O_APPEND), RunLoop.report

        def reported(loop: RunLoop, *args: Any, **kwargs: Any) -> None:
            os.write(steps, f"{loop.trainer.step}\n".encode())
            report(loop, *args, **kwargs)

        RunLoop.report = reported  # type: ignore[method-assign]
        try:
            before()
            return main(words)
        except BaseException:
            os.write(2, traceback.format_exc().encode())
            return 99

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None if it is still there."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.seconds, self.status = self.seconds_so_far, os.waitstatus_to_exitcode(status)
        return self.status

    def wait(self, seconds: float = 120) -> int | None:
        """As `poll`, when it has ended or the time is up."""
        while self.poll() is None and self.seconds_so_far < seconds:
            time.sleep(0.001)
        return self.status

    @property
    def seconds_so_far(self) -> float:
        return time.monotonic() - self.started

    @property
    def said(self) -> str:
        return self.log.read_text()

    @property
    def problem(self) -> str:
        """The one line of an error that ends what was said."""
        line = self.said.splitlines()[-1]
        assert line.startswith("adm: ") and "Traceback" not in self.said, self.said
        return line

    @property
    def steps(self) -> list[int]:
        return [int(line) for line in self.step_log.read_text().splitlines()]


class Runs:
    """A directory of runs of one command, which differ in --out alone, and what the undisturbed one left."""

    def __init__(self, root: Path, job: str = "diffusion", steps: int = STEPS, settings: tuple[str, ...] = ()) -> None:
        self.root, self.job, self.num_steps = root, job, steps
        self.data = write_stripes(root / "data")
        own = tuple(name for name in SETTINGS if job == "diffusion" or not name.startswith(("loop.sample", "ema.snap")))
        self.settings = (*own, *settings)
        self.log = root / "said"
        assert self.run("undisturbed", here=True) == 0, self.log.read_text()  # imports, in this process
        self.reference = self.end("undisturbed")
        again = self.start("again")
        assert again.wait() == 0 and self.differences("again") == [], "two undisturbed runs differ"
        self.seconds = again.seconds

    def words(self, out: str, steps: int | None = None, *more: str) -> list[str]:
        settings = [word for setting in (*self.settings, *more) for word in ("--set", setting)]
        given = ["--data", str(self.data), "--out", str(self.root / out), "--steps", str(steps or self.num_steps)]
        return ["train", self.job, *given, "--batch", "5", "--device", "cpu", *settings]

    def start(self, out: str, before: Callable[[], object] = lambda: None, *more: str, **options: Any) -> Trial:
        return Trial(self.words(out, options.get("steps"), *more), self.root / f"{out}.said", before)

    def short(self, out: str) -> Trial:
        """What a user types to go on: everything else is as the run has it."""
        words = ["train", self.job, "--data", str(self.data), "--out", str(self.root / out), "--device", "cpu"]
        return Trial(words, self.root / f"{out}.said")

    def run(self, out: str, here: bool = False, steps: int | None = None) -> int | None:
        if not here:
            return self.start(out, steps=steps).wait()
        from adm.cli.main import main

        return main(self.words(out, steps))

    def stopped(self, out: str, at: int) -> Path:
        """A run that was asked to stop during that step."""

        trial = self.start(out, lambda: ask_to_stop(at))
        assert (trial.wait(), self.newest(out)) == (STOPPED, (at, [])), trial.said
        return self.root / out

    def end(self, out: str) -> dict[str, bytes]:
        """Every file that says what was learnt, and log lines without their speed."""
        found = contents(self.root / out)
        kept = {name: data for name, data in found.items() if not name.startswith("tensorboard")}
        lines = [json.loads(line) for line in kept["log.jsonl"].splitlines()]
        for line in lines:
            line.pop("images_per_second", None)  # of a flipped bit in its name it is another
        return kept | {"log.jsonl": json.dumps(lines).encode()}

    def differences(self, out: str) -> list[str]:
        """Files that are not as the undisturbed run left them, by name; also those too many or missing."""
        mine = self.end(out)
        return sorted(
            name for name in mine.keys() | self.reference.keys() if mine.get(name) != self.reference.get(name)
        )

    def differences_of_end(self, out: str) -> list[str]:
        """`differences` of a run that was stopped, which saved then too, and wrote a line: those files apart."""
        last = f"checkpoints/{checkpoint_format.step_name(self.num_steps)}/"
        return [name for name in self.differences(out) if name.startswith(last) or not name.startswith("checkpoints")]

    def newest(self, out: str) -> tuple[int | None, list[str]]:
        """The step of the newest intact checkpoint, None without one, and what is said of damaged ones."""
        directory, notes = checkpoint_format.newest_intact(self.root / out / "checkpoints")
        return (None if directory is None else int(directory.name.removeprefix("step-"))), notes


def ask_to_stop(at: int) -> None:
    """For a trial: a request to stop comes during that step."""
    advance = Trainer.advance

    def advanced(trainer: Trainer, batch: Any) -> Any:
        if trainer.step + 1 == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return advance(trainer, batch)

    Trainer.advance = advanced  # type: ignore[method-assign]


def write_stripes(root: Path) -> Path:
    stripes = Stripes()
    for i in range(len(stripes)):
        folder = root / stripes.class_names[stripes.label(i)]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(stripes.image(i)[..., 0]).save(folder / f"{i:02d}.png")
    return root


@contextmanager
def patched(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes replaced for the block: monkeypatch where there is no pytest."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)


def for_good(context: AbstractContextManager[Any]) -> Any:
    """Enters what the process, a trial, never leaves."""
    ENTERED.append(context)
    return context.__enter__()


def partials(directory: Path) -> list[str]:
    """What a killed writer left, anywhere below."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if ".partial-" in path.name)
