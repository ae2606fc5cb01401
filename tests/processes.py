"""A program run as several processes of one job, as torchrun starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def run_ranks(program: str, size: int, *words: str) -> list[subprocess.CompletedProcess[str]]:
    """The program's source run by `size` processes that know each other's address, one thread each; by rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = dict(os.environ, WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", program, *words]
    started = [
        subprocess.Popen(
            command, env=shared | {"RANK": str(rank)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(size)
    ]
    outputs = [process.communicate(timeout=200) for process in started]
    return [
        subprocess.CompletedProcess(command, process.returncode, *output)
        for process, output in zip(started, outputs, strict=True)
    ]
