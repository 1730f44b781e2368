"""The fuzzer of all readers: `benchmarks/fuzz.py`."""

import importlib
import subprocess
import sys

import pytest
from examples import ROOT

from frcnn_jax.data.layouts.auto import LAYOUTS
from frcnn_jax.data.readers import FORMATS
from frcnn_jax.data.records import IMAGE_FORMATS
from frcnn_jax.models import weight_files
from frcnn_jax.proposals import files

FUZZ = ROOT / "benchmarks" / "fuzz.py"
NO_FILES = {
    "synthetic",
    "tfds:voc/2007",
    "tfds:voc/2012",
}  # drawn; prepared on this machine


def test_every_reader_of_a_format_is_fuzzed(monkeypatch):
    monkeypatch.syspath_prepend(FUZZ.parent)
    targets = importlib.import_module("fuzz").TARGETS
    readers = {
        *(f"image {name}" for name in IMAGE_FORMATS),
        *(f"dataset {name}" for name in FORMATS.keys() - NO_FILES if not name.startswith("auto")),
        *(f"proposals {suffix}" for suffix in files._READERS),
        *(f"weights {suffix}" for suffix in weight_files._READERS),
        *(f"layout {name}" for name in LAYOUTS),
    }
    kinds = {name.rsplit(None, count)[0] for name in targets for count in (0, 1, 2)}
    assert not readers - kinds, "add these readers to benchmarks/fuzz_targets.py or fuzz_layouts.py"


def run_fuzz(*arguments):
    run = subprocess.run([sys.executable, FUZZ, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return int(run.stdout.splitlines()[-1].split()[0])


@pytest.mark.slow
def test_a_hundred_damaged_files_are_read_or_refused():
    assert run_fuzz("--mutants", 1, "--without-crafted") > 100


@pytest.mark.nightly
def test_ten_thousand_hostile_files_are_read_or_refused():
    assert run_fuzz("--mutants", 180, "--seed", 1) > 10_000


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("raise InputError('no name')", "does not name the file"),
        ("bytearray(3 << 30)", "MemoryError"),
        ("import time; time.sleep(30)", "more than"),
        ("import os; os.abort()", "the process ended"),
        ("import os; os.system('true')", "os.system"),
        ("open('/tmp/elsewhere', 'w')", "opens /tmp/elsewhere"),
    ],
)
def test_the_fuzzer_sees_faults(read, fault, tmp_path):
    program = f"""
import sys; sys.path.insert(0, {str(FUZZ.parent)!r})
import fuzz; from pathlib import Path; from frcnn_jax.errors import InputError
fuzz.SECONDS = 1
def read(path):
    {read}
print(fuzz.outcome(fuzz.Target("a", list, read), b"", Path({str(tmp_path)!r})))
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert run.stdout.startswith("fault: "), run.stderr
    assert fault in run.stdout
