"""Scalars for TensorBoard, which shows a run and is no part of it: the first one that cannot be written is the last."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adm.runtime import files
from adm.runtime.text import shown_path
from adm.training._wandb import described, note

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

__all__ = ["Events"]


class Events:
    """An event file of a directory, written by the thread that calls; TensorBoard's own writer has one that dies alone.

    after: events of later steps, which an earlier start left in the directory, are hidden by TensorBoard.
    """

    def __init__(self, directory: Path, after: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        name = f"events.out.tfevents.{time.time_ns() // 10**6}.{platform.node()}.{os.getpid()}"
        self.path = directory / name
        self.fails = False
        step = after + 1
        self._add(
            lambda: [
                Event(step=step, file_version="brain.Event:2"),
                Event(step=step, session_log=SessionLog(status=SessionLog.START)),
            ]
        )

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._add(lambda: [Event(step=step, summary=Summary(value=[value])) for value in summary])

    def _add(self, events: Callable[[], list[Event]]) -> None:
        if self.fails:
            return
        try:
            files.append_bytes(self.path, b"".join(map(record, events())))
        except Exception as error:  # of a disk that may be another than the run's: it must not stop the run
            self.fails = True
            cause = error.__cause__
            why = cause.strerror if isinstance(cause, OSError) and cause.strerror else described(error)
            note(f"TensorBoard gets no more of this run ({shown_path(self.path.parent)}: {why}). The run goes on.")


def record(event: Event) -> bytes:
    """An event as TensorBoard reads it: length and data, each with its checksum."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    event.wall_time = time.time()
    kept = Kept()
    RecordWriter(kept).write(event.SerializeToString())
    return kept.data


class Kept:
    """A file that keeps what is written."""

    data = b""

    def write(self, data: bytes) -> None:
        self.data += data
