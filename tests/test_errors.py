import os
import re
import subprocess
import sys

import pytest
from examples import ROOT

from frcnn_jax.errors import InputError, run_main


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        (InputError("a.xml: broken"), "error: a.xml: broken", 1),
        (OSError(28, "No space left on device", "w/x"), "error: .*No space left on device.*", 1),
    ],
)
def test_a_mistake_is_one_line_and_not_zero(error, text, code, capsys):
    def main(argv):
        raise error

    with pytest.raises(SystemExit) as exit_info:
        run_main(main)
    assert exit_info.value.code == code
    assert re.fullmatch(f"{text}\\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("error", "text", "code"),
    [
        ("Interrupted('step 3 is saved')", "interrupted: step 3 is saved", 75),
        ("KeyboardInterrupt", "interrupted", 1),
    ],
)
def test_an_interruption_is_one_line_while_xla_compiles(error, text, code):
    """In whose teardown it would crash."""
    program = f"""
import threading
import jax, jax.numpy as jnp
from frcnn_jax.errors import Interrupted, run_main

def slow(x):
    for i in range(3000):
        x = jnp.sin(x @ x) + i
    return x

def main(argv):
    compiling = jax.jit(slow).lower(jnp.ones((8, 8)))
    threading.Thread(target=compiling.compile, daemon=True).start()
    print("said")
    raise {error}

run_main(main)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (code, "said\n", f"{text}\n")


def test_names_that_are_no_utf8_are_printed(capsys):
    run_main(lambda argv: print("a\udcff.xml"))
    assert capsys.readouterr().out == "a\\udcff.xml\n"


@pytest.mark.parametrize("given", ["JAX_PLATFORMS=cuda", "JAX_PLATFORMS=none", "JAX_NUM_CPU_DEVICES=0"])
def test_a_device_that_is_not_there_is_one_line(given):
    code = "import jax; from frcnn_jax.errors import run_main; run_main(lambda argv: jax.numpy.zeros(3))"
    name, value = given.split("=")
    env = {**os.environ, "PYTHONPATH": str(ROOT), name: value}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    if run.returncode == 0 and value != "none":
        pytest.skip("it is there")
    assert run.returncode == 1
    assert re.fullmatch(f"error: jax finds no device: .*{given}.*", run.stderr.splitlines()[-1])
    assert "Traceback" not in run.stderr


def test_a_bug_keeps_its_traceback():
    def main(argv):
        raise TypeError("bug")

    with pytest.raises(TypeError):
        run_main(main)


def test_importing_changes_nothing():
    """Of loggers, hooks, warning filters and signal handlers. (orbax adds a handler to the root logger.)"""
    program = """
import importlib, logging, pkgutil, signal, sys, threading, warnings
import frcnn_jax, orbax.checkpoint

def loggers():
    found = {"": logging.root, **logging.root.manager.loggerDict}
    return {
        name: (log.level, log.disabled, log.propagate, [*log.handlers])
        for name, log in found.items()
        if isinstance(log, logging.Logger)
    }

def others():
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    return hooks, [*warnings.filters], [signal.getsignal(number) for number in signal.valid_signals()]

before, others_before = loggers(), others()
modules = [module.name for module in pkgutil.walk_packages(frcnn_jax.__path__, "frcnn_jax.")]
for name in modules:
    importlib.import_module(name)
after = loggers()
assert {name: after[name] for name in before} == before
assert {after[name][0] for name in {*after} - {*before}} <= {logging.NOTSET}
assert others() == others_before
print(*modules)
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "frcnn_jax.training.checkpoint" in run.stdout.split()


def test_a_message_is_one_line_and_not_endless():
    assert str(InputError("a\n.jpg\r: no such image")) == "a\\n.jpg\\r: no such image"
    assert str(InputError("\x1b[2J\x9b\0: é")) == "\\x1b[2J\\x9b\\x00: é"
    assert len(str(InputError("x" * 10**6))) < 4000
