"""Reads files in a process of its own, in which everything that Python audits is written down.

    python watched_reader.py READER FILES RESULTS

READER: "closed", or "trusting", the twin that unpickles. FILES: a JSON list of paths. RESULTS: a JSON line for each
file: what came of it, its digest if it was read, CPU seconds, bytes of memory taken at the peak, and the audit events
other than opening that file for reading.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from adm.checkpoints.torch_file import read_state_dict
from adm.runtime.errors import DamagedError

SECONDS = 40
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC


class Hanging(BaseException):
    pass


def digest(tensors: dict[str, Tensor]) -> str:
    """Equal for equal names, types, shapes and bits."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name!r} {tensor.dtype} {list(tensor.shape)} ".encode())
        found.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def trusting(path: str) -> dict[str, Tensor]:
    return torch.load(path, map_location="cpu", weights_only=False)


def memory(field: str) -> int:
    with open("/proc/self/status") as status:
        return int(re.search(rf"{field}:\s+(\d+) kB", status.read())[1]) * 1024  # type: ignore[index]


def watched(read: Callable[[str], dict[str, Tensor]], path: str, events: list[str]) -> dict[str, Any]:
    with open("/proc/self/clear_refs", "w") as peaks:
        peaks.write("5")
    before, start = memory("VmRSS"), time.process_time()
    events.clear()
    signal.alarm(SECONDS)
    result: dict[str, Any] = {}
    try:
        tensors = read(path)
        result["outcome"] = "read"
    except DamagedError as error:
        result |= {"outcome": "refused", "says": str(error)}
    except Hanging:
        result["outcome"] = "hang"
    except BaseException as error:
        result |= {"outcome": "traceback", "says": f"{type(error).__name__}: {error}"}
    signal.alarm(0)
    seen = list(events)
    result |= {"seconds": time.process_time() - start, "memory": memory("VmHWM") - before, "events": seen}
    if result["outcome"] == "read" and isinstance(tensors, dict):
        result["digest"] = digest(tensors) if all(isinstance(t, Tensor) for t in tensors.values()) else "no weights"
    return result


def main() -> None:
    reader, files, results = sys.argv[1:]
    with open(files) as stream:
        paths = json.load(stream)
    read = read_state_dict if reader == "closed" else trusting
    events: list[str] = []
    reading = ""

    def record(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "builtins.id":  # an address, of no consequence
            return
        if event == "open" and os.fspath(arguments[0]) == reading and not (arguments[2] or 0) & WRITING:
            return
        if len(events) < 50:
            events.append(f"{event} {arguments!r}"[:120])

    def hang(*_: object) -> None:
        raise Hanging

    signal.signal(signal.SIGALRM, hang)
    with open(results, "w") as out:
        watched(read, paths[0], events)  # what libraries import when they are first used
        sys.addaudithook(record)
        for reading in paths:
            out.write(json.dumps({"path": reading} | watched(read, reading, events)) + "\n")
            out.flush()


if __name__ == "__main__":
    main()
