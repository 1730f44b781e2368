import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from examples import ROOT, free_port, run_command

from frcnn_jax.errors import InputError, Interrupted
from frcnn_jax.training.hosts import (
    all_gather,
    any_stopped,
    check_shared,
    fail_together,
    interrupt_on_peer_loss,
    join_processes,
)
from frcnn_jax.workdir import lock_workdir

SMALL = ["--config.train_images=60", "--config.val_images=2", "--config.steps=5", "--config.workers=1"]


def start(options, *, cwd=(ROOT, ROOT), devices=(1, 1)):
    """Two processes of one training, each with its options, its folder and its number of devices."""
    many = ["--coordinator", f"localhost:{free_port()}", "--num-processes", "2", "--timeout", "100"]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "frcnn_jax.train", *many, "--process-id", str(i), *map(str, options[i])],
            cwd=cwd[i],
            env={**os.environ, "JAX_NUM_CPU_DEVICES": str(devices[i]), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]


def ends(running):
    """Of each its exit code and the lines of stderr, without Gloo's greeting."""
    for process in running:
        _, errors = process.communicate(timeout=200)
        assert "Traceback" not in errors
        yield process.returncode, [line for line in errors.splitlines() if not line.startswith("[Gloo]")]


def test_the_clock_stops_when_all_have_joined(monkeypatch):
    exits = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(os, "_exit", exits.append)
    join_processes(None, 2, 1, timeout=0.05)
    time.sleep(0.2)
    assert not exits


@pytest.mark.parametrize("process", [0, 1])
def test_processes_that_do_not_meet_end_with_a_line(process, tmp_path):
    """The others do not come, or nobody listens at the coordinator's address."""
    address = f"localhost:{free_port()}"
    many = ["--coordinator", address, "--num-processes", "2", "--process-id", str(process), "--timeout", "2"]
    command = [sys.executable, "-m", "frcnn_jax.train", "--workdir", str(tmp_path / "w"), *many]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: not all processes joined at {address} within 2 s\n"
    assert not (tmp_path / "w").exists()


def test_no_cluster_is_said(tmp_path):
    command = [sys.executable, "-m", "frcnn_jax.train", "--workdir", str(tmp_path / "w"), "--distributed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: jax can't join the processes: ")
    assert len(done.stderr.splitlines()) == 1


def test_a_port_in_use_is_said(tmp_path):
    with socket.create_server(("", 0)) as other:
        address = f"localhost:{other.getsockname()[1]}"
        many = ["--coordinator", address, "--num-processes", "2", "--process-id", "0", "--timeout", "2"]
        done = run_command("train", "--workdir", tmp_path / "w", *many)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: --coordinator {address}: can't use this port (")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "rates", "message"),
    [
        ((1, 1), (0.01, 0.001), "error: the configs of process 1 and process 0 differ"),
        ((1, 3), (0.01, 0.01), "error: process 1 has 3 devices, process 0 has 1; expected equal numbers"),
    ],
)
def test_processes_that_would_train_apart_all_say_so(devices, rates, message, tmp_path):
    options = [["--workdir", tmp_path / "w", f"--config.learning_rate={rate}"] for rate in rates]
    for code, errors in ends(start(options, devices=devices)):
        assert code == 1
        assert message in errors
    assert not (tmp_path / "w").exists()


@pytest.mark.nightly
def test_a_workdir_that_is_not_shared_is_said(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    for code, errors in ends(start([["--workdir", "w", *SMALL]] * 2, cwd=folders)):
        assert code == 1
        assert errors == ["error: w: not shared: process 1 and process 0 see different folders"]
    assert not list(tmp_path.rglob("config.json"))


@pytest.mark.slow
def test_what_is_wrong_in_one_process_ends_both(tmp_path):
    """Another training runs in the workdir, which process 0 alone finds out."""
    pytest.importorskip("fcntl")
    with lock_workdir(tmp_path):
        first, second = ends(start([["--workdir", tmp_path, *SMALL]] * 2))
    assert first == (1, [f"error: {tmp_path}: in use by another training; wait for it or use another workdir"])
    assert second == (1, ["error: process 0 failed; see its output"])


@pytest.mark.nightly
def test_a_signal_to_one_process_ends_the_other_with_a_line(tmp_path):
    running = start([["--workdir", tmp_path / "w", *SMALL]] * 2)
    while running[1].poll() is None and not list(tmp_path.rglob("*.boxes")):
        time.sleep(0.1)
    running[1].send_signal(signal.SIGTERM)
    (lost, *_, error), (left, *_, interrupted) = ((code, *errors) for code, errors in ends(running))
    assert (lost, left) == (75, 75)
    assert interrupted == f"interrupted: run the same command to resume from {tmp_path / 'w'}"
    assert re.fullmatch(r"interrupted: another process ended or is unreachable \(.*\); run the same commands .*", error)


def test_a_folder_that_both_see_and_one_that_process_1_does_not(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr("frcnn_jax.training.hosts.broadcast_one_to_all", lambda value: value)
    monkeypatch.setattr("frcnn_jax.training.hosts.all_gather", lambda value: np.array([value, value]))
    check_shared(tmp_path)
    monkeypatch.setattr("frcnn_jax.training.hosts.all_gather", lambda value: np.array([value, False]))
    with pytest.raises(InputError, match="not shared: process 1 and process 0 see different folders"):
        check_shared(tmp_path)
    assert not list(tmp_path.iterdir())


def test_one_process_is_enough(tmp_path):
    np.testing.assert_array_equal(all_gather([1, 2]), [[1, 2]])
    assert any_stopped(True, 3, every=20)
    assert not any_stopped(False, 20, every=20)
    check_shared(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="broken"), fail_together():
        raise InputError("broken")
    with pytest.raises(ValueError, match="Gloo"), interrupt_on_peer_loss():
        raise ValueError("UNKNOWN: Gloo failed")


@pytest.mark.parametrize("kind", [ValueError, jax.errors.JaxRuntimeError])
def test_a_lost_process_is_told_from_a_bug(kind, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(Interrupted, match=r"is unreachable \(UNKNOWN: Gloo failed\)"), interrupt_on_peer_loss():
        raise kind("UNKNOWN: Gloo failed")
    with pytest.raises(kind, match="shapes differ"), interrupt_on_peer_loss():
        raise kind("shapes differ")
    with pytest.raises(InputError, match=r"^IMAGES: broken"), interrupt_on_peer_loss():
        raise InputError("IMAGES: broken")
