"""Training log: metrics.jsonl and TensorBoard event files, flushed per row, so that a killed process loses none."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

from frcnn_jax.errors import InputError
from frcnn_jax.files import write_text


class RunLog:
    """Writer of a workdir's metrics.jsonl and of a new event file in its `tensorboard`; a context manager.

    Args:
        workdir: The folder to write to.
        step: The step training resumes from. Later rows are dropped from metrics.jsonl and hidden in TensorBoard.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        rows = [row for row in read_metrics(workdir) if row["step"] <= step]
        write_text(workdir / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        self._rows = open(workdir / "metrics.jsonl", "ab", buffering=0)  # noqa: SIM115
        folder = workdir / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(folder / "events"), filename_suffix=f".{time.time_ns()}")
        self._write_event(step=step + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, step: int, values: Mapping[str, float | None]) -> None:
        """Append a row, and a point to the curve of each value that is not None.

        Raises:
            OSError: The files can't be written, as when the disk is full.
        """
        self._rows.write((json.dumps({"step": step, **values}) + "\n").encode())
        points = [Summary.Value(tag=name, simple_value=value) for name, value in values.items() if value is not None]
        self._write_event(step=step, summary=Summary(value=points))

    def _write_event(self, **fields: Any) -> None:
        self._events.write_event(Event(wall_time=time.time(), **fields))
        self._events.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """Return the rows of a workdir's metrics.jsonl, except a last line that a kill cut short.

    Raises:
        InputError: Another line is not a row.
    """
    path = workdir / "metrics.jsonl"
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1] if path.is_file() else (), 1):
        try:
            row = json.loads(line)
            if type(row["step"]) is not int or not 0 <= row["step"] < 2**63:
                raise ValueError
            {name: float(value) for name, value in row.items() if value is not None}
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise InputError(f"{path}: line {number} is not a row of metrics: {line[:40]!r}; remove it") from None
        rows.append(row)
    return rows
