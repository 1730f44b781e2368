import json
import os
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from functools import partial
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from examples import ROOT
from PIL import Image

from frcnn_jax.data.records import ImageFile, load_image
from frcnn_jax.data.synthetic import read_synthetic
from frcnn_jax.errors import InputError
from frcnn_jax.proposals import cache, cluster
from frcnn_jax.proposals.cache import search_images
from frcnn_jax.proposals.cluster import dask_executor
from frcnn_jax.proposals.search import SelectiveSearch

SCRIPT = ROOT / "scripts" / "make_proposals.py"


SEARCH = SelectiveSearch("standard", max_boxes=60)


@pytest.fixture(scope="module")
def images():
    return {record.image_id: record.load for record in read_synthetic(split="test", images=3).records}


@pytest.fixture
def files(images, tmp_path):
    """Image files, older than the seconds in which a file may change again under the same time stamp."""
    found = {}
    for name, load in images.items():
        path = tmp_path / f"{name}.png"
        Image.fromarray(load()).save(path)
        os.utime(path, (1e9, 1e9))
        found[name] = ImageFile(str(path), load().shape[:2])
    return found


@pytest.fixture
def run(tmp_path):
    """Search in a thread of this process."""

    def search(images, search=SEARCH, **options):
        with ThreadPoolExecutor(1) as executor:
            return search_images(images, search, cache_dir=tmp_path / "cache", executor=executor, **options)

    return search


def test_the_same_image_gives_the_same_bytes_in_any_worker(images, tmp_path):
    here = {name: SEARCH(load()) for name, load in images.items()}
    reverse = dict(reversed(images.items()))
    for workers, order in ((1, images), (2, reverse)):
        there = search_images(order, SEARCH, cache_dir=tmp_path / str(workers), workers=workers)
        assert list(there) == list(order)
        for name, boxes in here.items():
            np.testing.assert_array_equal(there[name], boxes)


def rows(*boxes):
    return np.array(boxes, np.float32).reshape(-1, 4)


def named(function, name="search"):
    search = mock.Mock(side_effect=function)
    search.__str__ = lambda _: name
    return search


def test_the_cache_knows_pixels_and_search(run):
    """A change of either is another search; boxes of any number come back as they are, within the image."""
    image = np.zeros((4, 6, 3), np.uint8)
    other = image.copy()
    other[3, 5, 2] = 1
    results = iter([rows([0, 1, 5, 65535]), rows(), rows([1, 1, 2, 2], [3, 3, 3, 4]), rows([5, 3, 5, 3])])
    searches = [named(lambda _: next(results), name) for name in ("a", "b")]
    cases = ((image, 0), (other, 0), (image.reshape(6, 4, 3), 0), (image, 1))
    for expected in ([[0, 1, 5, 3]], [], [[1, 1, 2, 2], [3, 3, 3, 4]], [[5, 3, 5, 3]]):
        pixels, i = cases[sum(search.call_count for search in searches)]
        for _ in range(2):
            found = run({"a": lambda pixels=pixels: pixels}, searches[i])["a"]
            assert found.tolist() == expected
            assert found.dtype == np.float32
            assert found.shape == (len(expected), 4)
    assert [search.call_count for search in searches] == [3, 1]


def test_the_search_names_all_its_options(monkeypatch):
    names = []
    for version in ("4", "5"):
        monkeypatch.setattr("cv2.__version__", version)
        names += map(
            str, (SEARCH, SelectiveSearch("fast"), SelectiveSearch("fast", 100), SelectiveSearch("fast", 100, 9))
        )
    assert len(set(names)) == 8


def test_a_damaged_entry_is_said_and_searched_again(run, files, tmp_path, capsys):
    """At the start for images that are decoded, on access for files that the index knows."""
    name, file = next(iter(files.items()))
    boxes = run({name: file})[name]
    (entry,) = tmp_path.rglob("*.boxes")
    whole = entry.read_bytes()
    assert len(whole) == 8 + 8 * len(boxes)
    flipped = whole[:20] + bytes([whole[20] ^ 1]) + whole[21:]
    for load, when in ((file.__call__, "damaged"), (file, "missing or damaged")):
        for damaged in (whole[:100], whole[:96], b"", flipped, whole + b"12345678"):
            entry.write_bytes(damaged)
            found = run({name: load})
            assert ("damaged" in capsys.readouterr().err) == (when == "damaged")
            np.testing.assert_array_equal(found[name], boxes)
            assert (f"{entry}: {when}; searching" in capsys.readouterr().err) == (when != "damaged")
            assert entry.read_bytes() == whole
    entry.unlink()
    np.testing.assert_array_equal(run({name: file})[name], boxes)
    assert entry.read_bytes() == whole


def test_known_files_are_not_decoded(run, files, monkeypatch, capsys):
    first = {name: boxes.tolist() for name, boxes in run(files).items()}
    assert "search: 100%" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr("frcnn_jax.data.records.load_image", None)
        assert {name: boxes.tolist() for name, boxes in run(files).items()} == first
    assert capsys.readouterr().err == ""
    assert run(files, named(lambda _: rows()))  # another search decodes them, and then finds them by digest


def test_a_changed_file_is_decoded_again(run, files):
    """By its time stamp or its size; other pixels are searched, the same pixels found in the cache."""
    name, file = next(iter(files.items()))
    search = named(lambda _: rows([0, 0, 1, 1]))
    run({name: file}, search)
    os.utime(file.path, (1e9, 1e9 + 5))
    run({name: file}, search)
    assert search.call_count == 1
    image = file().copy()
    image[0, 0] ^= 255
    Image.fromarray(image).save(file.path)
    os.utime(file.path, (1e9, 1e9 + 5))
    run({name: file}, search)
    assert search.call_count == 2


def test_a_file_that_may_still_change_is_not_known(run, files, monkeypatch):
    name, file = next(iter(files.items()))
    now = time.time()
    os.utime(file.path, (now, now))
    run({name: file})
    loads = mock.Mock(side_effect=load_image)
    monkeypatch.setattr("frcnn_jax.data.records.load_image", loads)
    run({name: file})
    assert loads.call_count == 1


def test_files_of_other_annotated_size_are_others(run, tmp_path):
    """The size decides whether the orientation in EXIF applies."""
    image = np.zeros((20, 30, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "a.jpg", exif=exif)
    os.utime(tmp_path / "a.jpg", (1e9, 1e9))
    shape = named(lambda image: rows([0, 0, image.shape[1] - 1, image.shape[0] - 1]))
    for size in ((20, 30), (30, 20)):
        for _ in range(2):
            found = run({"a": ImageFile(str(tmp_path / "a.jpg"), size)}, shape)
            assert found["a"].tolist() == [[0, 0, size[1] - 1, size[0] - 1]]


def test_a_file_read_upright_is_another_than_as_stored(run, tmp_path):
    """Of a square image, which has the same size both ways; the search returns the bright pixel."""
    image = np.zeros((20, 20, 3), np.uint8)
    image[2, 5] = 255
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    os.utime(tmp_path / "a.png", (1e9, 1e9))
    bright = named(lambda image: rows([*np.argwhere(image[..., 0])[0][::-1], 19, 19]))
    for how, box in (("apply", [14, 17, 19, 19]), ("ignore", [5, 2, 19, 19])) * 2:
        assert run({"a": ImageFile(str(tmp_path / "a.png"), (20, 20), how)}, bright)["a"].tolist() == [box]


def test_damaged_lines_of_the_index_are_said_and_their_images_decoded_again(run, files, tmp_path, capsys):
    """As two machines that append to a file of a network may leave them."""
    run(files)
    index = tmp_path / "cache" / "index.txt"
    lines = index.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    index.write_bytes(lines[0][:-9] + lines[1] + lines[2].replace(b"1000000000", b"1000000001") + b"\xff\n\n")
    search = named(lambda _: rows())
    with mock.patch("frcnn_jax.data.records.load_image", side_effect=load_image) as loads:
        run(files)
        assert loads.call_count == 3
        said = f"{index}: 4 damaged lines; the images that it lacks are decoded again\n"
        assert said in capsys.readouterr().err
        run(files)
        assert loads.call_count == 3
    assert capsys.readouterr().err == ""
    assert not search.called


def test_an_index_that_is_a_pipe_is_not_waited_for(run, files, tmp_path):
    run(files)
    (tmp_path / "cache" / "index.txt").unlink()
    os.mkfifo(tmp_path / "cache" / "index.txt")
    with pytest.raises(InputError, match=r"index\.txt: not a regular file"):
        run(files)


class InTurn(Executor):
    """The last of the images submitted is done first."""

    def __init__(self):
        self.waiting, self.most, self.folders = {}, 0, set()

    def submit(self, search, load):
        self.folders.add(search.keywords["folder"].parent)
        self.waiting[future := Future()] = partial(search, load)
        self.most = max(self.most, len(self.waiting))
        return future

    def wait(self, running, **options):
        future, run = self.waiting.popitem()
        future.set_result(run())
        return wait([future])


def test_few_images_wait_and_all_keep_their_order(tmp_path, monkeypatch):
    """A cluster's workers run in another folder."""
    executor = InTurn()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("frcnn_jax.proposals.cache.wait", executor.wait)
    monkeypatch.setattr("frcnn_jax.proposals.cache._CLUSTER_LIMIT", 3)
    search = named(lambda image: rows([0, 0, 0, image[0, 0, 0]]))
    images = {i: partial(np.full, (9, 1, 3), i, np.uint8) for i in range(7)}
    found = search_images(images, search, cache_dir="cache", executor=executor)
    assert [(i, boxes.tolist()) for i, boxes in found.items()] == [(i, [[0, 0, 0, i]]) for i in range(7)]
    assert executor.most == 3
    assert executor.folders == {Path.cwd() / "cache"}


def test_an_image_too_large_for_the_cache(run):
    for shape in ((1, 65536, 3), (65536, 1, 3)):
        with pytest.raises(InputError, match=r"as uint16: an image of \(\d+, \d+\) pixels is too large"):
            run({"a": partial(np.zeros, shape, np.uint8)}, named(lambda _: 1 / 0))


def test_a_worker_searches_in_one_thread(images, run, monkeypatch):
    said = []
    monkeypatch.setattr(cv2, "setNumThreads", said.append)
    run(dict(list(images.items())[:1]))
    assert said == [1]


def _broken():
    raise InputError("a.jpg: can't be read")


def test_a_worker_passes_on_the_problem(tmp_path):
    with pytest.raises(InputError, match=r"a\.jpg: can't be read"):
        search_images({"a": _broken}, cache_dir=tmp_path, workers=1)


def test_an_executor_of_threads_gives_the_same_bytes(images, tmp_path):
    """They share the state of C rand()."""
    many = {f"{name}{i}": load for i in range(4) for name, load in images.items()}
    with ThreadPoolExecutor(4) as executor:
        found = search_images(many, SEARCH, cache_dir=tmp_path, executor=executor)
    for name, boxes in found.items():
        np.testing.assert_array_equal(boxes, SEARCH(images[name[:-1]]()))


def test_a_worker_that_dies_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"a worker process was killed .* run again to resume from .*cache"):
        search_images({"a": partial(os._exit, 1)}, cache_dir=tmp_path / "cache", workers=1)


def test_says_that_a_cache_is_of_another_version(images, run, tmp_path, capsys):
    (tmp_path / "cache" / "selective_search-standard-350-60-cv3.4.1").mkdir(parents=True)
    first = dict(list(images.items())[:1])
    for said in (True, False):
        run(first)
        assert ("has selective_search-standard-350-60-cv3.4.1 but not sel" in capsys.readouterr().err) == said


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
    return [path for path in (folder / "cache").rglob("*") if path.is_file() and path.suffix == ".boxes"]


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


@pytest.mark.parametrize(
    "boxes", [[[9, 0, 1, 5]], [[0, 9, 5, 1]], [[0, 0, 60_000, 5]], [[0, 0, 5, 60_000]], [[0, 0, 1, 1]] * 3000]
)
def test_an_entry_that_the_search_can_not_have_written_is_searched_again(boxes, run, files, tmp_path, capsys):
    file = next(iter(files.values()))
    expected = run({"a": file})["a"]
    (entry,) = (tmp_path / "cache").glob("*/*.boxes")
    data = np.array(boxes, "<u2").tobytes()
    for load in (file, file.__call__):
        entry.write_bytes(cache._checksum(data) + data)
        np.testing.assert_array_equal(run({"a": load})["a"], expected)
        assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize("text", [b"3", b"[]", b"[1, 2, 3]", b'["zz", 1, 2, "a"]', b'["00", 1, 2, []]', b"[" * 100_000])
def test_lines_of_the_index_that_are_whole_and_say_nothing(text, run, files, tmp_path):
    run(files)
    with open(tmp_path / "cache" / "index.txt", "ab") as index:
        index.write(b"%08x %s\n" % (zlib.crc32(text), text))
    assert list(run(files)) == list(files)
