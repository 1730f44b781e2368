import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from examples import ROOT

CODE = """
import multiprocessing, time, numpy as np
from frcnn_jax.data.batches import prefetch

class Numbers:
    def __len__(self): return 10**6
    def __getitem__(self, i): return {"i": np.int32(i)}

if __name__ == "__main__":
    made = prefetch(Numbers(), workers=2)
    next(made), next(made)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
def test_workers_end_with_a_parent_that_is_killed(tmp_path):
    (tmp_path / "main.py").write_text(CODE)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, tmp_path / "main.py"], env=env, stdout=subprocess.PIPE, text=True) as parent:
        workers = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(workers) >= 2
        assert all(map(runs, workers))
        parent.kill()
    assert all_end(workers)


STARTING = """
import multiprocessing, signal, sys, time
from frcnn_jax.data.batches import prefetch
from frcnn_jax.data.workers import process_pool

time.sleep(1)  # a worker imports this module too

if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: None)
    print(flush=True)
    if sys.argv[1] == "pool":
        with process_pool(2) as pool:
            assert list(pool.map(abs, [-1, -2])) == [1, 2]
    else:
        assert list(prefetch([1, 2], workers=2)) == [1, 2]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Python ends its own handlers before the process
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["pool", "prefetch"])
def test_workers_that_start_leave_signals_to_the_parent(tmp_path, kind, number):
    """Signals all along, from before the workers exist to after they have their handlers."""
    (tmp_path / "main.py").write_text(STARTING)
    command, env = [sys.executable, tmp_path / "main.py", kind], {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=env, start_new_session=True, stdout=pipe, stderr=pipe, text=True) as parent:
        parent.stdout.readline()
        while parent.poll() is None:
            os.killpg(parent.pid, number)
            time.sleep(0.05)
        assert parent.stderr.read() == ""
    assert parent.returncode == 0


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_is_for_the_parent(tmp_path, number):
    """As a terminal's Ctrl-C or a scheduler's SIGTERM: selective search ends with one line and no worker stays."""
    command = [sys.executable, "-m", "frcnn_jax.train", "--workdir", str(tmp_path / "w"), "--config.workers=2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, start_new_session=True, stderr=subprocess.PIPE, text=True) as parent:
        while parent.poll() is None and not list(tmp_path.rglob("*.boxes")):
            time.sleep(0.1)
        group = [int(path.name) for path in Path("/proc").glob("[0-9]*") if session(path) == parent.pid]
        os.killpg(parent.pid, number)
        _, errors = parent.communicate(timeout=60)
    assert parent.returncode == 75
    assert errors.splitlines()[-1] == f"interrupted: run the same command to resume from {tmp_path / 'w'}"
    assert "Traceback" not in errors
    assert len(group) > 2
    assert all_end(group)


def session(path):
    try:
        return int((path / "stat").read_text().rsplit(")", 1)[1].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return None


def all_end(pids):
    until = time.monotonic() + 20
    while any(map(runs, pids)) and time.monotonic() < until:
        time.sleep(0.1)
    return not any(map(runs, pids))


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
