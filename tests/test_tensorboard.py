import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from frcnn_jax.tensorboard import Board


def read_events(folder):
    """The events of a folder's files, in order; each record is length, its check, data, its check."""
    for path in sorted(folder.iterdir()):
        rest = path.read_bytes()
        while rest:
            (length,) = struct.unpack("<Q", rest[:8])
            data = rest[12 : 12 + length]
            assert struct.unpack("<I", rest[8:12])[0] == masked_crc32c(rest[:8])
            assert struct.unpack("<I", rest[12 + length : 16 + length])[0] == masked_crc32c(data)
            yield Event.FromString(data)
            rest = rest[16 + length :]


def test_values_are_on_disk_at_once_and_files_follow_each_other(tmp_path):
    with Board(tmp_path / "b", 1) as board:
        board.add_scalar("loss", 0.5, 20)
        assert [event.step for event in read_events(tmp_path / "b")] == [0, 1, 20]
    with Board(tmp_path / "b", 11) as board:
        board.add_scalar("loss", 0.25, 20)
    version, start, first, _, again, second = read_events(tmp_path / "b")
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == again.session_log.status == SessionLog.START
    assert (again.step, second.step, second.summary.value[0].tag) == (11, 20, "loss")
    assert [event.summary.value[0].simple_value for event in (first, second)] == [0.5, 0.25]


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    with Board(tmp_path, 1) as board, open("/dev/full", "wb", buffering=0) as full:
        monkeypatch.setattr(board, "_file", full)
        with pytest.raises(OSError, match="No space left"):
            board.add_scalar("loss", 0.5, 1)
