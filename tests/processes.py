"""A program run as several processes of one job, as torchrun or srun start them, each a fork of one that has torch."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PRELOADED = [
    "torch._dynamo",
    "torch.distributed.tensor",
    "tensorboard.summary.writer.record_writer",
    "adm.runtime._replica",
    "adm.training.run",  # there is one server for all tests, and other files need this
]
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "TORCHELASTIC", "SLURM_", "GROUP_", "ROLE_", "ENVIRONMENT")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun_environments(size: int) -> list[dict[str, str]]:
    """What torchrun sets, as far as it is needed, by rank."""
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(size)]


def alone() -> dict[str, str]:
    """The environment without what a launcher sets."""
    return {name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)}


class Rank:
    """One process; what it printed is in `out` and `err` when it has ended."""

    def __init__(self, program: str, words: Sequence[str], environment: Mapping[str, str], folder: Path) -> None:
        self.folder = folder
        # The server imports torch once and forks a process for each call.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.process = context.Process(target=_run, args=(program, list(words), dict(environment), Path.cwd(), folder))
        self.started = time.monotonic()
        self.process.start()
        self.seconds: float | None = None

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def wait(self, seconds: float = 100) -> int | None:
        """The exit status, negative for a signal; None if it is still there."""
        self.process.join(seconds)
        return self.process.exitcode

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()


class Job:
    """Processes that know each other's address, one thread each. Those that are left at the end are killed."""

    def __init__(self, program: str, size: int, *words: str, environments: Sequence[Mapping[str, str]] | None = None):
        self.folder = tempfile.TemporaryDirectory()
        environments = torchrun_environments(size) if environments is None else environments
        shared = alone() | {"OMP_NUM_THREADS": "1"}
        self.ranks = []
        for rank, environment in enumerate(environments):
            folder = Path(self.folder.name) / str(rank)
            folder.mkdir()
            self.ranks.append(Rank(program, words, shared | dict(environment), folder))

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        for rank in self.ranks:
            rank.process.kill()
            rank.process.join()
        self.folder.cleanup()

    def wait_for(self, text: str, seconds: float = 60) -> None:
        """Until every process has printed it."""
        deadline = time.monotonic() + seconds
        while not all((rank.folder / "out").exists() and text in rank.out for rank in self.ranks):
            assert time.monotonic() < deadline, [(rank.process.exitcode, rank.out, rank.err) for rank in self.ranks]
            time.sleep(0.02)

    def codes(self, seconds: float = 100) -> list[int | None]:
        """The exit statuses after at most so long, None for those that are still there."""
        deadline = time.monotonic() + seconds
        return [rank.wait(max(0.0, deadline - time.monotonic())) for rank in self.ranks]

    @property
    def lines(self) -> list[str]:
        """All that the processes said on stderr."""
        return [line for rank in self.ranks for line in rank.err.splitlines()]


def run_ranks(
    program: str, size: int, *words: str, environments: Sequence[Mapping[str, str]] | None = None
) -> list[subprocess.CompletedProcess[str]]:
    """The program's source run by `size` processes, by rank, when all have ended."""
    with Job(program, size, *words, environments=environments) as job:
        codes = job.codes()
        assert None not in codes, [(rank.out, rank.err) for rank in job.ranks]
        return [
            subprocess.CompletedProcess([program, *words], code or 0, rank.out, rank.err)
            for code, rank in zip(codes, job.ranks, strict=True)
        ]


def torchrun(program: Path, *words: str, options: Sequence[str] = (), **more: Any) -> subprocess.Popen[str]:
    """The file run by torch's launcher, which starts interpreters of its own."""
    command = [sys.executable, "-m", "torch.distributed.run", *options, str(program), *words]
    return subprocess.Popen(
        command,
        env=alone() | {"OMP_NUM_THREADS": "1"} | more.pop("env", {}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **more,
    )


def _run(program: str, words: list[str], environment: dict[str, str], cwd: Path, folder: Path) -> None:
    import torch

    for stream, name in ((sys.stdout, "out"), (sys.stderr, "err")):
        file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, stream.fileno())
        os.close(file)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.argv = ["program", *words]
    try:
        exec(compile(program, "program", "exec"), {"__name__": "__main__"})
    finally:
        sys.stdout.flush()
