"""What a run logs: metrics.jsonl and TensorBoard event files, written at once: a kill loses no value, and a full disk
is an error here."""

import json
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c

from frcnn_jax.errors import InputError
from frcnn_jax.files import write_text


class RunLog:
    """The metrics.jsonl of a workdir and a new event file in its `tensorboard`. What a former run logged after `step`,
    where this one goes on, is left out of the one and not shown of the other."""

    def __init__(self, workdir: Path, step: int) -> None:
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        write_text(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self._rows = open(workdir / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115
        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._events = open(folder / f"events.out.tfevents.{time.time_ns()}", "xb", buffering=0)  # noqa: SIM115
        self._write_event(file_version="brain.Event:2")
        self._write_event(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """A row, and a point of the curve of each value that is not None."""
        self._rows.write((json.dumps({"step": step, **values}) + "\n").encode())
        for name, value in values.items():
            if value is not None:
                self._write_event(step=step, summary=Summary(value=[Summary.Value(tag=name, simple_value=value)]))

    def _write_event(self, **event: Any) -> None:
        data = Event(wall_time=time.time(), **event).SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self._events.write(length + next(checks) + data + next(checks))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl, but for a last one that a kill cut short: it has no line end.

    Raises:
        InputError: another line is no row.
    """
    path = workdir / "metrics.jsonl"
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.is_file() else (), 1):
        try:
            row = json.loads(line)
            if not isinstance(row["step"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            raise InputError(f"{path}: line {number} is no row of metrics: {line[:40]!r}; remove it") from None
        rows.append(row)
    return rows
