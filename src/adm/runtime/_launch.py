"""Which process of how many this one is: what torchrun or Slurm say in the environment, which is only read."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from adm.runtime.errors import UsageError
from adm.runtime.text import one_line

__all__ = ["Launch", "find_launch", "first_host", "local_rank"]

FIRST_PORT, NUM_PORTS = 10_000, 20_000
"""Where the ports of Slurm jobs lie: below those that systems give to outgoing connections."""
PORTS_TRIED = 3
NO_TASK_STEP = 0xFFFFFFF0
"""Slurm's step ids from here on are not srun's tasks but the batch script, an interactive shell and the like."""

MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Where Open MPI and those of MPICH's kind say how many processes there are."""


@dataclass(frozen=True)
class Launch:
    """This process is number `rank` of `size`, and number `local_rank` of its machine.

    address: where process 0 is found. ports: those that it may listen at, in the order of trying. job: tells this job's
    processes from those of another one at the same port. store: torchrun listens at the port itself, with a store in
    which process 0 says where it listens. by: what started the processes.
    """

    rank: int
    size: int
    local_rank: int
    address: str
    ports: tuple[int, ...]
    job: str
    store: bool
    by: str


def find_launch(environ: Mapping[str, str]) -> Launch | None:
    """What torchrun's variables say, else Slurm's; None for a process that is alone.

    Raises UsageError for variables that do not fit together.
    """
    # Scripts for Slurm export WORLD_SIZE and leave it to srun to say which process is which.
    if _is_slurm_task(environ) and not (environ.get("RANK") and environ.get("WORLD_SIZE")):
        return _of_slurm(environ)
    launch = _of_torchrun(environ)
    if launch is None:
        _refuse_mpi(environ)
    elif launch.by != "torchrun" and _is_slurm_task(environ):
        _refuse_other_rank(launch, environ)
    return launch


def local_rank(environ: Mapping[str, str]) -> int | None:
    """This process's number on its machine, if one started several."""
    text = environ.get("LOCAL_RANK") or (environ.get("SLURM_LOCALID", "") if _is_slurm_task(environ) else "")
    return int(text) if text.isdecimal() else None


def _of_torchrun(environ: Mapping[str, str]) -> Launch | None:
    size = _number(environ, "WORLD_SIZE", 1)
    rank = _number(environ, "RANK", 0)
    if size <= 1:
        if rank > 0:
            raise UsageError(
                f"RANK={rank} and WORLD_SIZE={environ.get('WORLD_SIZE') or 'unset'} do not fit. "
                "Start with torchrun, or unset RANK."
            )
        return None
    port = environ.get("MASTER_PORT", "")
    if "RANK" not in environ or not 0 <= rank < size or not environ.get("MASTER_ADDR") or not _is_port(port):
        raise UsageError(
            f"WORLD_SIZE={size} asks for many processes, but RANK, MASTER_ADDR or MASTER_PORT do not fit. "
            "Start with torchrun, or unset WORLD_SIZE."
        )
    elastic = environ.get("TORCHELASTIC_RUN_ID")
    return Launch(
        rank,
        size,
        local_rank(environ) or 0,
        environ["MASTER_ADDR"],
        (int(port),),
        f"{elastic}/{environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{size}",
        environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        "the environment" if elastic is None else "torchrun",
    )


def _refuse_mpi(environ: Mapping[str, str]) -> None:
    """Raises UsageError where mpirun started many: each would believe that it is alone."""
    for name in MPI_SIZES:
        size = environ.get(name, "")
        if size.isdecimal() and int(size) > 1:
            raise UsageError(
                f"{name}={size}: mpirun started {size} processes, and says to none where the others are. Start them "
                f"with torchrun or srun, or unset {name}."
            )


def _refuse_other_rank(launch: Launch, environ: Mapping[str, str]) -> None:
    """Raises UsageError where each task of srun has a RANK that its job script exported for all of them."""
    size, rank = _slurm_size(environ), _number(environ, "SLURM_PROCID", 0)
    if launch.size == size and launch.rank != rank:
        raise UsageError(
            f"RANK={launch.rank} and SLURM_PROCID={rank} contradict each other. Unset RANK: srun says it itself."
        )


def _slurm_size(environ: Mapping[str, str]) -> int:
    return _number(environ, "SLURM_STEP_NUM_TASKS", 0) or _number(environ, "SLURM_NTASKS", 1)


def _is_slurm_task(environ: Mapping[str, str]) -> bool:
    """Whether srun started this process: the shell of an allocation has many of the same variables."""
    step = environ.get("SLURM_STEP_ID", "")
    if step.isdecimal():
        return "SLURM_PROCID" in environ and int(step) < NO_TASK_STEP
    return "SLURM_PROCID" in environ and environ.get("ENVIRONMENT") != "BATCH"


def _of_slurm(environ: Mapping[str, str]) -> Launch | None:
    size = _slurm_size(environ)
    rank = _number(environ, "SLURM_PROCID", 0)
    if _number(environ, "WORLD_SIZE", size) != size:
        raise UsageError(
            f"WORLD_SIZE={environ['WORLD_SIZE']}, and srun started {size}. Unset WORLD_SIZE: srun says it itself."
        )
    if size <= 1:
        return None
    job, step = environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_STEP_ID", "0")
    hosts = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or environ.get("SLURM_NODELIST")
    address = (
        environ.get("MASTER_ADDR") or (first_host(hosts) if hosts else "") or environ.get("SLURM_LAUNCH_NODE_IPADDR")
    )
    if not 0 <= rank < size or not job or not address:
        raise UsageError(
            f"SLURM_NTASKS={size} asks for many processes, but SLURM_PROCID, SLURM_JOB_ID or SLURM_JOB_NODELIST do not "
            "fit. Start with srun, or unset SLURM_PROCID."
        )
    name = f"{job}.{step}"
    port = environ.get("MASTER_PORT", "")
    if port and not _is_port(port):
        raise UsageError(f"MASTER_PORT={one_line(port, 20)} is no port. Set 1 to 65535, or unset it: srun needs none.")
    # Several ports, the same in every process: nobody can ask Slurm which one is free.
    ports = [FIRST_PORT + zlib.crc32(f"{name}/{i}".encode()) % NUM_PORTS for i in range(PORTS_TRIED)]
    return Launch(
        rank,
        size,
        local_rank(environ) or 0,
        address,
        (int(port),) if port else tuple(ports),
        f"slurm {name}/{environ.get('SLURM_RESTART_COUNT', '0')}/{size}",
        False,
        "srun",
    )


def first_host(nodelist: str) -> str:
    """The first host of Slurm's list: "node03" of "node[03-05,7],other"; every bracket gives its first number."""
    depth, end = 0, len(nodelist)
    for i, c in enumerate(nodelist):
        depth += (c == "[") - (c == "]")
        if c == "," and depth == 0:
            end = i
            break
    first = re.sub(r"\[([^\]\[,-]+)[^\]\[]*\]", r"\1", nodelist[:end])
    if not first or any(c in first for c in "[] "):
        raise UsageError(f"{one_line(nodelist, 60)!r} is no list of hosts of Slurm. Set MASTER_ADDR to the first host.")
    return first


def _is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) < 65536


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise UsageError(f"{name}={one_line(text, 20)} is no number. Start with torchrun or srun, or unset it.")
    return int(text)
