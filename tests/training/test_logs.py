import pytest
from examples import read_events
from tensorboardX.proto.event_pb2 import SessionLog

from frcnn_jax.errors import InputError
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
