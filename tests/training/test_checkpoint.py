import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from examples import ROOT

from frcnn_jax.errors import InputError
from frcnn_jax.training.checkpoint import (
    Checkpoints,
    NewestAndBest,
    best_first,
    load_model,
    remove_after,
    restore,
    resume_from,
    saved_steps,
)
from frcnn_jax.workdir import lock_workdir

OPTIMIZER = {"m": jnp.zeros(2)}


def tree(value):
    return {"a": {"kernel": jnp.full((2, 3), value)}, "b": jnp.arange(3) + value}


def save_steps(workdir, *steps, **options):
    with Checkpoints(workdir, **options) as checkpoints:
        for step in steps:
            checkpoints.save(step, model=tree(float(step)), optimizer={"m": jnp.full(2, float(-step))})


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def alter(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = [
    (truncate, "has changed since it was written"),
    (alter, "has changed since it was written"),
    (Path.unlink, "is missing"),
]


def test_round_trip_and_keep(tmp_path):
    save_steps(tmp_path, 1, 2, 3, keep=2)
    assert saved_steps(tmp_path) == [2, 3]
    restored, step = restore(tmp_path, model=tree(0.0), optimizer=OPTIMIZER)
    assert step == 3
    np.testing.assert_array_equal(restored["model"]["a"]["kernel"], np.full((2, 3), 3))
    np.testing.assert_array_equal(restored["optimizer"]["m"], [-3, -3])


def test_the_hooks_of_the_process_stay(tmp_path):
    hooks = sys.excepthook, sys.unraisablehook
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, model=tree(0.0))
        assert (sys.excepthook, sys.unraisablehook) == hooks


def test_load_model_takes_the_newest_or_a_step(tmp_path):
    save_steps(tmp_path, 4, 8)
    for asked, got in ((None, 8), (4, 4)):
        model, step = load_model(tmp_path, tree(0.0), asked)
        assert step == got
        np.testing.assert_array_equal(model["b"], np.arange(3) + got)


def test_what_is_not_there(tmp_path):
    with pytest.raises(InputError, match="no checkpoint; train first"):
        load_model(tmp_path, tree(0.0))
    save_steps(tmp_path)
    with pytest.raises(InputError, match="no checkpoint; train first"):
        load_model(tmp_path, tree(0.0))
    save_steps(tmp_path, 4)
    with pytest.raises(InputError, match=r"no checkpoint of step 5; available: \[4\]"):
        load_model(tmp_path, tree(0.0), 5)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({**tree(0.0), "b": jnp.arange(4)}, r"b is \(3,\), expected \(4,\)"),
        ({**tree(0.0), "c": jnp.arange(4)}, r"c is absent, expected \(4,\)"),
        ({"b": jnp.arange(3)}, r"a\.kernel is \(2, 3\), expected absent"),
    ],
)
def test_another_network_is_no_damage(tmp_path, model, text):
    save_steps(tmp_path, 4, 8)
    (tmp_path / "checkpoints" / "8.json").unlink()
    with pytest.raises(InputError, match=f"8: of another network or number of classes: {text}$"):
        load_model(tmp_path, model)


def test_which_are_kept():
    """The newest, the best by score, the later of equal ones; a step without a score is no best one."""

    class Info:
        def __init__(self, step):
            self.step = step

    def kept(newest, best, scores):
        steps = [10, 20, 30, 40]
        flags = NewestAndBest(newest, best, scores).should_preserve([Info(step) for step in steps], context=None)
        return [step for step, flag in zip(steps, flags, strict=True) if flag]

    assert kept(1, 0, {10: 0.9}) == [40]
    assert kept(1, 1, {10: 0.9}) == [10, 40]
    assert kept(1, 1, {10: 0.5, 20: 0.5, 30: 0.1}) == [20, 40]
    assert kept(2, 2, {10: 0.5, 20: 0.5, 40: 0.6}) == [20, 30, 40]
    assert kept(1, 3, {}) == [40]


def test_the_best_one_is_kept(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_best=1) as checkpoints:
        for step, score in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.1)):
            checkpoints.save(step, model=tree(float(step)), optimizer=OPTIMIZER)
            checkpoints.scores[step] = score
    assert saved_steps(tmp_path) == [2, 4]
    assert {path.name for path in (tmp_path / "checkpoints").glob("*.json")} == {"2.json", "4.json"}


def test_later_steps_are_removed(tmp_path):
    save_steps(tmp_path, 1, 2, 3, keep=3)
    remove_after(tmp_path, 1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "1.json"]
    assert best_first([1, 2, 3, 4], {4: 0.5, 2: 0.7, 1: 0.7, 9: 1.0}) == [2, 1, 4]


def test_digests_of_every_file(tmp_path):
    save_steps(tmp_path, 4)
    folder = tmp_path / "checkpoints" / "4"
    digests = json.loads((tmp_path / "checkpoints" / "4.json").read_text())
    assert set(digests) == {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert any(name.startswith("optimizer/") for name in digests)
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in digests.items())


@pytest.mark.parametrize(("damage", "text"), DAMAGES)
def test_a_damaged_one_is_named_and_the_one_before_is_taken(tmp_path, capsys, damage, text):
    save_steps(tmp_path, 4, 8)
    path = largest_file(tmp_path / "checkpoints" / "8" / "model")
    damage(path)
    model, step = load_model(tmp_path, tree(0.0))
    assert step == 4
    np.testing.assert_array_equal(model["b"], np.arange(3) + 4)
    name = path.relative_to(tmp_path / "checkpoints" / "8")
    assert f"checkpoints/8: {name} {text}; skipping this checkpoint\n" in capsys.readouterr().err
    with pytest.raises(InputError, match=f"checkpoints/8: {name} {text}"):
        load_model(tmp_path, tree(0.0), 8)


@pytest.mark.parametrize("text", ['{"model/_METADATA": "', "{}", "[]", "3", '{"optimizer/a": "0"}', "a folder"])
def test_unreadable_digests_are_damage(tmp_path, capsys, text):
    save_steps(tmp_path, 4, 8)
    (tmp_path / "checkpoints" / "8.json").unlink()
    if text == "a folder":
        (tmp_path / "checkpoints" / "8.json").mkdir()
    else:
        (tmp_path / "checkpoints" / "8.json").write_text(text)
    assert load_model(tmp_path, tree(0.0))[1] == 4
    assert "checkpoints/8: its digests in 8.json are unreadable" in capsys.readouterr().err


def test_a_damaged_optimizer_matters_to_training_alone(tmp_path):
    save_steps(tmp_path, 4, 8)
    alter(largest_file(tmp_path / "checkpoints" / "8" / "optimizer"))
    assert load_model(tmp_path, tree(0.0))[1] == 8
    assert restore(tmp_path, model=tree(0.0), optimizer=OPTIMIZER)[1] == 4


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_digests_orbax_decides(tmp_path, capsys):
    """As when the kill came just before they were written.

    When one array can't be read, orbax closes its event loop without waiting for the others, whose callbacks then may
    find it closed: an ignored exception in a thread.
    """
    save_steps(tmp_path, 4, 8)
    digests = (tmp_path / "checkpoints" / "8.json").read_text()
    (tmp_path / "checkpoints" / "8.json").unlink()
    assert load_model(tmp_path, tree(0.0))[1] == 8
    resume_from(tmp_path, 8)
    assert (tmp_path / "checkpoints" / "8.json").read_text() == digests
    (tmp_path / "checkpoints" / "8.json").unlink()
    truncate(largest_file(tmp_path / "checkpoints" / "8" / "model" / "d"))
    assert load_model(tmp_path, tree(0.0))[1] == 4
    assert "checkpoints/8: not a complete checkpoint of this network (" in capsys.readouterr().err


def test_none_whole_is_an_error(tmp_path):
    save_steps(tmp_path, 4, 8)
    for step in ("4", "8"):
        alter(largest_file(tmp_path / "checkpoints" / step / "model"))
    with pytest.raises(InputError, match=r"checkpoints: none of the checkpoints \[4, 8\] is intact"):
        load_model(tmp_path, tree(0.0))


def test_steps_set_aside_can_be_saved_again(tmp_path, capsys):
    save_steps(tmp_path, 4, 8)
    for digests in (True, False):  # an earlier 8.damaged gives way
        if not digests:
            (tmp_path / "checkpoints" / "8.json").unlink()
        alter(largest_file(tmp_path / "checkpoints" / "8" / "model"))
        resume_from(tmp_path, 4)
        assert "checkpoints/8: renamed to 8.damaged\n" in capsys.readouterr().err
        assert saved_steps(tmp_path) == [4]
        save_steps(tmp_path, 8)
    assert load_model(tmp_path, tree(0.0))[1] == 8
    assert saved_steps(tmp_path) == [4, 8]


def test_old_digests_go_before_the_step_is_saved_again(tmp_path, monkeypatch):
    """Else a kill before the new ones are written would make the step a damaged one."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "8.json").write_text("{}")
    monkeypatch.setattr(Checkpoints, "_finish", lambda *_: None)
    save_steps(tmp_path, 8)
    assert not (tmp_path / "checkpoints" / "8.json").exists()


def test_what_a_kill_left_goes(tmp_path):
    save_steps(tmp_path, 4)
    left = tmp_path / "checkpoints" / "8.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "part").write_bytes(b"1")
    assert load_model(tmp_path, tree(0.0))[1] == 4
    save_steps(tmp_path, 8)
    assert not left.exists()
    assert saved_steps(tmp_path) == [4, 8]


def test_a_disk_that_is_full(tmp_path):
    """No file may be larger than 2000 bytes: the save fails in background threads, step 4 is intact."""
    pytest.importorskip("resource")
    save_steps(tmp_path, 4)
    code = (
        "import sys, resource, numpy as np, jax.numpy as jnp\n"
        "from pathlib import Path\n"
        "from frcnn_jax.training.checkpoint import Checkpoints\n"
        "from frcnn_jax.errors import run_main\n"
        "def main(argv):\n"
        "    rng = np.random.default_rng(0)\n"
        "    noise = {str(i): jnp.asarray(rng.normal(size=(50, 50))) for i in range(40)}\n"
        "    with Checkpoints(Path(argv[0])) as checkpoints:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "        checkpoints.save(8, model=noise, optimizer=noise)\n"
        "run_main(main)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}  # its files may be larger
    run = subprocess.run([sys.executable, "-c", code, tmp_path], env=env, capture_output=True, text=True)
    assert run.returncode == 1
    path = tmp_path / "checkpoints" / "8"
    assert run.stderr == f"error: {path}: can't write this checkpoint: File too large; step 4 is intact\n"
    model, step = load_model(tmp_path, tree(0.0))
    assert step == 4
    np.testing.assert_array_equal(model["b"], np.arange(3) + 4)


def test_a_save_that_fails_names_the_one_before_it(tmp_path, monkeypatch):
    def fail(self, step, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.save", fail)
    with pytest.raises(
        InputError, match="8: can't write this checkpoint: No space left on device; there is no earlier one"
    ):
        save_steps(tmp_path, 8)


def test_pipes_in_a_checkpoint_are_not_waited_for(tmp_path):
    save_steps(tmp_path, 4)
    (tmp_path / "checkpoints" / "4.json").unlink()
    metadata = tmp_path / "checkpoints" / "4" / "model" / "_METADATA"
    metadata.unlink()
    os.mkfifo(metadata)
    with pytest.raises(InputError, match=r"checkpoints/4: model/_METADATA is not a regular file"):
        load_model(tmp_path, tree(0.0), 4)


def test_a_lock_that_is_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OSError, match="lock"), lock_workdir(tmp_path):
        pass


def test_a_workdir_is_locked_until_its_process_dies(tmp_path):
    pytest.importorskip("fcntl")
    code = (
        "import sys; from frcnn_jax.workdir import lock_workdir\n"
        "with lock_workdir(sys.argv[1]): print('locked', flush=True); sys.stdin.read()\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, tmp_path]
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="in use by another training"), lock_workdir(tmp_path):
            pass
        other.kill()
        other.wait()
    for _ in range(2):
        with lock_workdir(tmp_path):
            pass


def test_a_step_without_digests_must_be_finite(tmp_path, capsys):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, model={"w": jnp.ones(3)})
        checkpoints.save(2, model={"w": jnp.array([1, jnp.nan, 1])})
    assert load_model(tmp_path, {"w": jnp.zeros(3)})[1] == 2
    (tmp_path / "checkpoints" / "2.json").unlink()
    assert load_model(tmp_path, {"w": jnp.zeros(3)})[1] == 1
    assert "2: without digests, and with values that are not finite; skipping" in capsys.readouterr().err
