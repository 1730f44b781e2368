"""TensorBoard event files, written at once: a kill loses no value, and a full disk is an error here."""

import struct
import time
from pathlib import Path
from typing import Any, Self

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c


class Board:
    """A new event file in a folder; what earlier ones hold from the step `purge_from` on is not shown."""

    def __init__(self, folder: Path, purge_from: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = open(folder / f"events.out.tfevents.{time.time_ns()}", "xb", buffering=0)  # noqa: SIM115
        self._write(file_version="brain.Event:2")
        self._write(step=purge_from, session_log=SessionLog(status=SessionLog.START))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        """A point of the curve `name`."""
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))

    def _write(self, **event: Any) -> None:
        data = Event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self._file.write(length + next(checks) + data + next(checks))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
