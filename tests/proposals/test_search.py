import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from examples import ROOT
from PIL import Image

from frcnn_jax.data.synthetic import read_synthetic
from frcnn_jax.errors import InputError
from frcnn_jax.proposals import cluster
from frcnn_jax.proposals.cluster import dask_executor
from frcnn_jax.proposals.search import MODES, cached_selective_search, search_images, selective_search

SCRIPT = ROOT / "scripts" / "make_proposals.py"


@pytest.fixture(scope="module")
def images():
    return {record.image_id: record.load for record in read_synthetic(split="test", images=3).records}


def test_boxes_lie_within_the_image(images):
    for load in images.values():
        image = load()
        boxes = selective_search(image)
        assert boxes.dtype == np.float32
        assert len(boxes) > 50
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] < [image.shape[1], image.shape[0]]).all()
        assert (boxes[:, 2:] >= boxes[:, :2]).all()


def test_the_same_image_gives_the_same_bytes_in_any_worker(images, tmp_path):
    here = {name: selective_search(load(), max_boxes=60) for name, load in images.items()}
    reverse = dict(reversed(images.items()))
    for workers, order in ((1, images), (2, reverse)):
        there = search_images(order, cache_dir=tmp_path / str(workers), max_boxes=60, workers=workers)
        assert list(there) == list(order)
        for name, boxes in here.items():
            np.testing.assert_array_equal(there[name], boxes)


def test_cache_is_read_and_mended(images, tmp_path, monkeypatch):
    load = next(iter(images.values()))
    boxes = cached_selective_search(load, tmp_path, "fast", 50)
    (entry,) = tmp_path.rglob("*.npy")
    assert entry.stat().st_size < 20_000
    entry.write_bytes(entry.read_bytes()[:100])  # as a full disk would leave it
    np.testing.assert_array_equal(cached_selective_search(load, tmp_path, "fast", 50), boxes)
    monkeypatch.setattr("frcnn_jax.proposals.search.selective_search", None)
    np.testing.assert_array_equal(cached_selective_search(load, tmp_path, "fast", 50), boxes)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [entry]


def test_the_boxes_are_opencvs(images, tmp_path):
    """Those of the image as OpenCV reads it, in BGR; only their order depends on `rand`."""
    image = next(iter(images.values()))()
    Image.fromarray(image).save(tmp_path / "a.png")
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(cv2.imread(str(tmp_path / "a.png")))
    switch = {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality}
    for mode in MODES:
        switch[mode]()
        x, y, width, height = search.process().T
        boxes = selective_search(image, mode=mode, max_boxes=10**6)
        assert set(map(tuple, boxes)) == set(zip(x, y, x + width - 1, y + height - 1, strict=True))
        np.testing.assert_array_equal(selective_search(image, mode=mode, max_boxes=50), boxes[:50])


def test_the_cache_knows_pixels_parameters_and_version(tmp_path, monkeypatch):
    """A change of any of them is another search, of that image with those parameters."""
    searched, boxes = [], np.array([[0, 1, 300, 65535]], np.float32)

    def search(image, **options):
        searched.append((image.shape, image.sum(), *options.values()))
        return boxes

    monkeypatch.setattr("frcnn_jax.proposals.search.selective_search", search)
    image = np.zeros((4, 6, 3), np.uint8)
    other = image.copy()
    other[3, 5, 2] = 1
    for pixels, mode, max_boxes, version in (
        (image, "fast", 50, "4"),
        (other, "fast", 50, "4"),
        (image.reshape(6, 4, 3), "fast", 50, "4"),
        (image, "quality", 50, "4"),
        (image, "fast", 60, "4"),
        (image, "fast", 50, "5"),
    ):
        monkeypatch.setattr("cv2.__version__", version)
        for _ in range(2):
            with ThreadPoolExecutor(1) as executor:
                options = {"mode": mode, "max_boxes": max_boxes, "executor": executor}
                found = search_images({"a": lambda pixels=pixels: pixels}, cache_dir=tmp_path, **options)
            np.testing.assert_array_equal(found["a"], boxes)
        assert searched[-1] == (pixels.shape, pixels.sum(), mode, max_boxes)
    assert len(searched) == 6


class InTurn(Executor):
    """The last of the images submitted is done first."""

    def __init__(self):
        self.waiting, self.most, self.folders = {}, 0, set()

    def submit(self, search, load):
        self.folders.add(search.keywords["cache_dir"])
        self.waiting[future := Future()] = load
        self.most = max(self.most, len(self.waiting))
        return future

    def wait(self, running, **options):
        future, load = self.waiting.popitem()
        future.set_result(load())
        return wait([future])


def test_few_images_wait_and_all_keep_their_order(tmp_path, monkeypatch):
    """A cluster's workers run in another folder."""
    executor = InTurn()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("frcnn_jax.proposals.search.wait", executor.wait)
    monkeypatch.setattr("frcnn_jax.proposals.search._CLUSTER_LIMIT", 3)
    found = search_images({i: lambda i=i: i for i in range(7)}, cache_dir="cache", executor=executor)
    assert list(found.items()) == [(i, i) for i in range(7)]
    assert executor.most == 3
    assert executor.folders == {Path.cwd() / "cache"}


def test_an_image_too_large_for_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("frcnn_jax.proposals.search.selective_search", None)  # it would take gigabytes
    for shape in ((1, 65536, 3), (65536, 1, 3)):
        with pytest.raises(InputError, match=r"as uint16: an image of \(\d+, \d+\) pixels is too large"):
            cached_selective_search(partial(np.zeros, shape, np.uint8), tmp_path, "fast", 50)


def test_a_blank_image_is_no_error():
    assert len(selective_search(np.full((40, 50, 3), 7, np.uint8))) <= 1


def _broken():
    raise InputError("a.jpg: can't be read")


def test_a_worker_passes_on_the_problem(tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg: can't be read"):
        search_images({"a": _broken}, cache_dir=tmp_path, workers=1)


@pytest.mark.parametrize(
    ("image", "mode", "text"),
    [
        (np.zeros((4, 4, 3), np.uint8), "best", "one of fast, quality, got 'best'"),
        (np.zeros((4, 4), np.uint8), "fast", r"got \(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), "fast", "float32"),
    ],
)
def test_errors_say_what_came(image, mode, text):
    with pytest.raises(InputError, match=text):
        selective_search(image, mode=mode)


def test_an_executor_of_threads_gives_the_same_bytes(images, tmp_path):
    """They share the state of C rand()."""
    many = {f"{name}{i}": load for i in range(4) for name, load in images.items()}
    with ThreadPoolExecutor(4) as executor:
        found = search_images(many, cache_dir=tmp_path, max_boxes=60, executor=executor)
    for name, boxes in found.items():
        np.testing.assert_array_equal(boxes, selective_search(images[name[:-1]](), max_boxes=60))


def test_a_worker_that_dies_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"a worker process was killed .* run again to resume from .*cache"):
        search_images({"a": partial(os._exit, 1)}, cache_dir=tmp_path / "cache", workers=1)


def test_a_worker_searches_in_one_thread(images, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(cv2, "setNumThreads", said.append)
    cached_selective_search(next(iter(images.values())), tmp_path, "fast", 60)
    assert said == [1]


def test_says_that_a_cache_is_of_another_version(images, tmp_path, capsys):
    (tmp_path / "selective_search-fast-60-cv3.4.1").mkdir()
    first = dict(list(images.items())[:1])
    for said in (True, False):
        with ThreadPoolExecutor(1) as executor:
            search_images(first, cache_dir=tmp_path, max_boxes=60, executor=executor)
        assert ("has selective_search-fast-60-cv3.4.1 but not sel" in capsys.readouterr().err) == said


@pytest.mark.parametrize(
    ("error", "line"),
    [(ValueError("lost a worker\nat once"), "lost a worker"), (ValueError(), "ValueError")],
)
def test_an_error_of_a_cluster_is_one_line(error, line):
    assert cluster._first_line(error) == line


def test_nobody_answers():
    for address in ("tcp://127.0.0.1:1", "nowhere"):
        with (
            pytest.raises(InputError, match=f"{address}: no Dask scheduler answers"),
            dask_executor(address, timeout=5),
        ):
            pass


def command(out, *options, images=16):
    fields = {"val_images": images, "max_proposals": 300, "workers": 2, "proposal_cache": out.parent / "cache"}
    return [sys.executable, SCRIPT, "--out", out, *options, *(f"--config.{k}={v}" for k, v in fields.items())]


def entries(folder):
    return [path for path in (folder / "cache").rglob("*") if path.is_file() and path.suffix == ".npy"]


def wait_for(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The shard of an undisturbed run over 16 images."""
    out = tmp_path_factory.mktemp("whole") / "a.proposals"
    subprocess.run(command(out), check=True, capture_output=True)
    assert len(entries(out.parent)) == 16
    return out.read_bytes()


@pytest.mark.nightly
def test_killed_at_random_moments_it_goes_on(undisturbed, tmp_path, rng):
    """The whole group of processes, as a batch system does, or the parent alone, which its workers do not outlive."""
    out = tmp_path / "a.proposals"
    for i, number in enumerate(np.sort(rng.integers(1, 15, 2))):
        running = subprocess.Popen(command(out), stderr=subprocess.PIPE, start_new_session=True)
        wait_for(lambda number=number: len(entries(tmp_path)) >= number)
        time.sleep(rng.uniform(0, 0.1))
        if i % 2:
            running.kill()
        else:
            os.killpg(running.pid, signal.SIGKILL)
        running.stderr.read()  # till all that hold it have ended
        running.wait()
        assert not out.exists()
    subprocess.run(command(out), check=True, capture_output=True)
    assert out.read_bytes() == undisturbed
    assert len(entries(tmp_path)) == 16


@pytest.mark.slow
def test_two_writers_at_the_same_time(undisturbed, tmp_path):
    out = tmp_path / "a.proposals"
    both = [subprocess.Popen(command(out), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [running.wait() for running in both] == [0, 0]
    assert out.read_bytes() == undisturbed
    assert len(entries(tmp_path)) == 16
    assert len(list(tmp_path.rglob("*.tmp"))) == 0


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1000, 20_000])
def test_a_full_disk_is_one_line(limit, tmp_path):
    """A limit on the size of files stands for it: an entry of the cache does not fit, or the shard."""
    out = tmp_path / "a.proposals"
    limited = (  # not preexec_fn: this process has jax's threads
        "import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2);"
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    full = [sys.executable, "-c", limited, str(limit), *map(str, command(out))]
    done = subprocess.run(full, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"error: {tmp_path}")
    assert last.split(": ", 2)[2].startswith("can't be written (")
    assert not out.exists()
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.fixture
def dask_processes(tmp_path):
    """A scheduler's address and two workers, each of one thread, on loopback."""
    address, running = tmp_path / "scheduler", []
    local = ["--local-directory", tmp_path, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
    where = ["--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", address]

    def start(*arguments):
        dask = [sys.executable, "-m", "dask", *arguments]
        running.append(subprocess.Popen(dask, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        return running[-1]

    start("scheduler", *where)
    wait_for(lambda: address.exists() and address.read_text().endswith("}"))
    workers = [start("worker", "--scheduler-file", address, *local) for _ in range(2)]
    yield json.loads(address.read_text())["address"], workers
    for process in running:
        process.kill()
        process.wait()


@pytest.mark.nightly
def test_a_dask_cluster_loses_a_worker_and_nothing_else(dask_processes, undisturbed, tmp_path):
    address, workers = dask_processes
    out = tmp_path / "a.proposals"
    running = subprocess.Popen(command(out, "--scheduler", address), stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(entries(tmp_path)) >= 5)
    workers[0].kill()
    error = running.communicate(timeout=120)[1]
    assert running.returncode == 0, error
    assert workers[1].poll() is None
    assert out.read_bytes() == undisturbed  # nothing lost, nothing twice
    assert len(entries(tmp_path)) == 16
