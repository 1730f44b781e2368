from unittest import mock

import numpy as np
import pytest
from examples import read_events
from tensorboardX.proto.event_pb2 import SessionLog

from frcnn_jax.errors import InputError
from frcnn_jax.training import loop
from frcnn_jax.training.logs import RunLog, read_metrics


def test_values_are_on_disk_at_once_and_files_follow_each_other(tmp_path):
    with RunLog(tmp_path, 0) as log:
        log.add(10, {"loss": 0.5, "map": None})
        log.add(20, {"loss": 0.5})
        assert [event.step for event in read_events(tmp_path / "tensorboard")] == [0, 1, 10, 20]
        assert len(read_metrics(tmp_path)) == 2
    with RunLog(tmp_path, 10) as log:
        log.add(20, {"loss": 0.25})
    version, start, _, first, _, again, second = read_events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == again.session_log.status == SessionLog.START
    assert (again.step, second.step, second.summary.value[0].tag) == (11, 20, "loss")
    assert [event.summary.value[0].simple_value for event in (first, second)] == [0.5, 0.25]
    assert read_metrics(tmp_path) == [{"step": 10, "loss": 0.5, "map": None}, {"step": 20, "loss": 0.25}]


def test_every_value_is_shown_under_its_name(tmp_path):
    """Also in TensorBoard, except for None."""
    with RunLog(tmp_path, 0) as log:
        log.add(3, {"loss_cls": 0.75, "map": None, "loss_box": 0.25, "learning_rate": 0.001})
    *_, event = read_events(tmp_path / "tensorboard")
    values = [(value.tag, value.simple_value) for value in event.summary.value]
    assert values == [("loss_cls", 0.75), ("loss_box", 0.25), ("learning_rate", pytest.approx(0.001))]
    assert read_metrics(tmp_path) == [
        {"step": 3, "loss_cls": 0.75, "map": None, "loss_box": 0.25, "learning_rate": 0.001}
    ]


def test_the_rows_of_a_training_by_hand(tmp_path, monkeypatch):
    """A row every two steps of 4 images, by a clock that this test sets; TensorBoard shows the same."""
    clock = [100.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(loop, "_peak_memory", lambda: 3 * 2**30)

    def batches():
        for seconds in (3, 1, 2):
            clock[0] += seconds
            yield seconds

    def metrics(step):
        values = {"loss": 1.0, "loss_cls": 0.75, "loss_box": 0.25, "foreground": 0.125, "gradient_norm": 8.0}
        return {name: np.float32(value * step) for name, value in values.items()}

    made = batches()
    with RunLog(tmp_path, 0) as log:
        rows = loop._MetricRows(log, mock.Mock(), 2, 4, lambda count: [0.01, 0.02, 0.04][count], None)
        for at, seconds in ((1, 5), (2, 7), (3, 4)):
            assert rows.next_batch(made) == (3, 1, 2)[at - 1]
            clock[0] += seconds
            assert rows.take(at, metrics(at))
            with rows.paused():
                clock[0] += 1000
            assert len(read_metrics(tmp_path)) == at // 3  # one step later, so that the device need not wait
        clock[0] += 2
        assert rows.flush(3)
    # the first row ends with the third batch: 22 seconds, 6 of them for data
    first = {"step": 2, "loss": 1.5, "loss_cls": 1.125, "loss_box": 0.375, "foreground": 0.1875, "gradient_norm": 12}
    first |= {"learning_rate": 0.02, "images_per_second": 8 / 22, "data_seconds": 3, "device_seconds": 8}
    first["memory_gib"] = 3
    last = {"step": 3, "loss": 3, "loss_cls": 2.25, "loss_box": 0.75, "foreground": 0.375, "gradient_norm": 24}
    last |= {"learning_rate": 0.04, "images_per_second": 2, "data_seconds": 0, "device_seconds": 2, "memory_gib": 3}
    assert read_metrics(tmp_path) == [first, last]
    events = [event for event in read_events(tmp_path / "tensorboard") if event.summary.value]
    for event, row in zip(events, read_metrics(tmp_path), strict=True):
        shown = {value.tag: value.simple_value for value in event.summary.value}
        assert {"step": event.step, **shown} == pytest.approx(row)


def test_a_row_that_was_cut_short_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    with RunLog(tmp_path, 5) as log:
        log.add(6, {"loss": 1})
    assert [row["step"] for row in read_metrics(tmp_path)] == [1, 6]


@pytest.mark.parametrize("line", [b"3", b"{}", b'{"step": "1"}', b'{"step": 1, "lo', b'{"step": 1, "a": "\xff"}', b""])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1, "loss": 2}\n' + line + b'\n{"step": 2, "lo')
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is not a row of metrics: b'.*'; remove it"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("name", ["_rows", "_writer"])
def test_a_full_disk_is_an_error(tmp_path, monkeypatch, name):
    with RunLog(tmp_path, 0) as log, open("/dev/full", "wb", buffering=0) as full, monkeypatch.context() as patch:
        patch.setattr(log if name == "_rows" else log._events._py_recordio_writer, name, full)
        with pytest.raises(OSError, match="No space left"):
            log.add(1, {"loss": 0.5})


@pytest.mark.parametrize(
    "row",
    [
        '{"step": true}',
        '{"step": -1}',
        f'{{"step": {10**30}}}',
        '{"step": 1, "loss": "a"}',
        '{"step": 1, "loss": [1]}',
        f'{{"step": 1, "loss": {10**400}}}',
        "[" * 100_000,
        "[1]",
    ],
)
def test_rows_that_no_training_wrote(row, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1, "map": null}}\n{row}\n')
    with pytest.raises(InputError, match=r"metrics\.jsonl: line 2 is not a row of metrics"):
        read_metrics(tmp_path)
