"""What a run writes down while it goes: one JSON line for each logged step, and the same for TensorBoard."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import Any

from adm.runtime import files
from adm.training._events import Events
from adm.training._wandb import Sink
from adm.training.trainer import StepResult

__all__ = ["RunLog", "read_log"]


class RunLog:
    """`log.jsonl` and TensorBoard events of a run directory. Values are means since the line before.

    images_per_second counts the time of training alone: see `paused`. check: called before each line is written; raises
    when the directory is no longer this process's. sink: where lines go too, such as Weights & Biases. Events and sink
    may fail, with a note: what a run learns does not depend on who watches.
    """

    def __init__(
        self,
        directory: Path,
        start_step: int,
        log_every: int,
        check: Callable[[], None] = lambda: None,
        sink: Sink | None = None,
    ) -> None:
        self.path = directory / "log.jsonl"
        self.measurements = directory / "validation.jsonl"
        self.sink = sink
        self.log_every = log_every
        self.check = check
        _forget_after(self.path, start_step)
        _forget_after(self.measurements, start_step)
        self._events = Events(directory / "tensorboard", after=start_step)
        self._pending: list[StepResult] = []
        self._since = time.monotonic()

    def add(self, result: StepResult, num_images: int) -> None:
        """Take in a step; write a line when one is due."""
        self._pending.append(result)
        if result.step % self.log_every == 0:
            self.flush(num_images)

    def flush(self, num_images: int) -> None:
        """Write what has come in since the last line, if anything."""
        if not self._pending:
            return
        last, taken = self._pending[-1], [r for r in self._pending if r.skipped is None]
        elapsed = time.monotonic() - self._since
        line: dict[str, float] = {"step": last.step}
        if taken:
            line["loss"] = fmean(r.loss for r in taken)
            line |= {name: fmean(r.terms[name] for r in taken) for name in taken[-1].terms}
            line["grad_norm"] = fmean(r.grad_norm for r in taken)
        line |= {"lr": last.lr, "images_per_second": len(self._pending) * num_images / max(elapsed, 1e-9)}
        if len(taken) < len(self._pending):
            line["skipped"] = len(self._pending) - len(taken)
        self.check()
        files.append_line(self.path, json.dumps(line))
        self._show({name: value for name, value in line.items() if name != "step"}, last.step)
        self._pending, self._since = [], time.monotonic()

    def measured(self, step: int, result: Mapping[str, Any]) -> None:
        """A line of `validation.jsonl`, and its scalars beside those of training."""
        self.check()
        files.append_line(self.measurements, json.dumps({"step": step, **result}, allow_nan=False))
        self._show({f"validation/{name}": value for name, value in result["scalars"].items()}, step)

    def picture(self, path: Path, step: int) -> None:
        """Shown where `sink` shows pictures; the file itself is in the run directory."""
        if self.sink is not None:
            self.sink.image(path, step)

    def _show(self, scalars: Mapping[str, float], step: int) -> None:
        self._events.scalars(scalars, step)
        if self.sink is not None:
            self.sink.log(dict(scalars), step)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Within the block no time passes for images_per_second."""
        start = time.monotonic()
        try:
            yield
        finally:
            self._since += time.monotonic() - start

    def close(self) -> None:
        if self.sink is not None:
            self.sink.close()


def read_log(path: Path) -> list[Mapping[str, float]]:
    """The lines of a log, oldest first; torn and damaged ones are left out."""
    if not path.exists():
        return []
    lines: list[Mapping[str, float]] = []
    for text in files.read_bytes(path).decode(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def _forget_after(path: Path, step: int) -> None:
    """Drop lines of steps that are about to be done again, and unreadable ones."""
    kept = "".join(json.dumps(line) + "\n" for line in read_log(path) if line["step"] <= step)
    if path.exists() and path.read_bytes() != kept.encode():
        files.write_text(path, kept)
