"""The fuzzer of all readers: `benchmarks/fuzz.py`."""

import ast
import importlib
import json
import subprocess
import sys
from datetime import date

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
    assert not readers - kinds, "add these readers to benchmarks/fuzz_*.py"


OPENERS = {
    "open", "read_bytes", "read_text", "open_regular", "read_json", "read_json_content", "read_npz", "open_zip", "File",
    "ZipFile", "is_zipfile", "safe_open", "memmap", "fromfile", "loadtxt", "genfromtxt", "np.load",
}  # fmt: skip
NOT_READ = {
    ("convert_proposals.py", "write"): "writes",
    ("proposals/cache.py", "append_line"): "writes",
    ("data/layouts/auto.py", "_advice"): "looks at the columns of an unknown table for a message: the crafted ones",
    ("data/listing.py", "check_is_folder"): "looks at the end of a file for a message",
    ("data/tfds.py", "_devkit"): "trusted",
    ("eval_coco.py", "_write_results"): "reads what read_coco has read",
    ("proposals/edge_boxes.py", "__str__"): "trusted",
    ("workdir.py", "<lambda>"): "opens a lock",
    ("workdir.py", "derive_workdir"): "copies a file",
    ("workdir.py", "lock_workdir"): "opens a lock",
}


def functions_that_open_files():
    """Return the file and name of each function of the library that calls one of OPENERS."""
    found = set()
    for path in (ROOT / "frcnn_jax").rglob("*.py"):
        waiting = [(ast.parse(path.read_text()), "")]
        for node, function in waiting:
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                if {called, called.rpartition(".")[2]} & OPENERS:
                    found.add((path.relative_to(ROOT / "frcnn_jax").as_posix(), function))
            name = getattr(node, "name", "<lambda>") if isinstance(node, ast.FunctionDef | ast.Lambda) else function
            waiting += [(child, name) for child in ast.iter_child_nodes(node)]
    return found


READ_ALL = """
import fuzz, json, pathlib, sys, tempfile, threading

called = set()

def note(frame, event, _):
    called.add((frame.f_code.co_filename, frame.f_code.co_name))

seeds = {name: target.seeds() for name, target in fuzz.TARGETS.items()}
threading.setprofile(note)
for name, contents in seeds.items():
    target = fuzz.TARGETS[name]
    for content in contents:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / target.file
            path.write_bytes(content)
            sys.setprofile(note)
            target.read(path)
            sys.setprofile(None)
print(json.dumps(sorted(called)))
"""


@pytest.mark.slow
def test_every_function_that_opens_a_file_is_fuzzed():
    run = subprocess.run([sys.executable, "-c", READ_ALL], cwd=FUZZ.parent, capture_output=True, text=True, check=True)
    called = {(file, name) for file, name in json.loads(run.stdout.splitlines()[-1]) if "/frcnn_jax/" in file}
    reached = {(file.rpartition("/frcnn_jax/")[2], name) for file, name in called}
    missing = functions_that_open_files() - reached - NOT_READ.keys()
    assert not missing, "add targets that reach these to benchmarks/fuzz_*.py"


def run_fuzz(*arguments):
    run = subprocess.run([sys.executable, FUZZ, *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return int(run.stdout.splitlines()[-1].split()[0])


@pytest.mark.slow
def test_a_hundred_damaged_files_are_read_or_refused():
    assert run_fuzz("--mutants", 1, "--without-crafted") > 100


@pytest.mark.nightly
def test_ten_thousand_hostile_files_are_read_or_refused():
    assert run_fuzz("--mutants", 180, "--seed", date.today().toordinal()) > 10_000  # others each night


@pytest.mark.parametrize(
    ("read", "fault"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("raise InputError('no name')", "does not name the file"),
        ("bytearray(3 << 30)", "MemoryError"),
        ("import time; time.sleep(30)", "more than 6 seconds"),
        ("while True: pass", "more than 1 seconds of the processor"),
        ("import os; os.abort()", "the process ended"),
        ("import os; os.system('true')", "os.system"),
        ("open('/tmp/elsewhere', 'w')", "opens /tmp/elsewhere"),
    ],
)
def test_the_fuzzer_sees_faults(read, fault):
    program = f"""
import sys; sys.path.insert(0, {str(FUZZ.parent)!r})
import fuzz; from frcnn_jax.errors import InputError
fuzz.SECONDS, fuzz.WAITING = 1, 6
def read(path):
    {read}
print(fuzz.outcome(fuzz.Target("a", list, read), "crafted", b""))
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    assert run.stdout.startswith("fault: "), run.stderr
    assert fault in run.stdout


def test_a_fault_is_that_of_its_file():
    """The process that reads is replaced after a fault; what others left behind is told apart."""
    program = f"""
import sys; sys.path.insert(0, {str(FUZZ.parent)!r})
import fuzz, os; from frcnn_jax.errors import InputError
read = []
def act(path):
    content = path.read_bytes()
    read.append(content)
    if content == b"dies":
        os.abort()
    if content == b"second":
        assert len(read) < 3
    print(content)
fuzz.TARGETS["a"] = fuzz.Target("a", list, act)
names = "good", "dies", "good", "good", "second", "good"
for found in fuzz.outcomes("a", iter([(name, name.encode()) for name in names])):
    print(found[0], found[2])
"""
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    good, dies, third, fourth, second, last = run.stdout.splitlines()
    assert {good, third, fourth, last} == {"good read"}
    assert dies == "dies fault: the process ended (6)"
    assert second.startswith("second fault: AssertionError")
    assert second.endswith("(not when it is read alone)")
