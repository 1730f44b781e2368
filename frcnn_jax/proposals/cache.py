"""Searches of many images in worker processes, cached on disk, and read when an image needs them.

A cache folder has a folder for each search and its options, which holds a file of boxes per image, named by the digest
of its pixels, and `index.txt`, which gives this digest for image files by path, size and time stamp: known ones are not
decoded again. Files are written atomically and lines appended in one write, each with a checksum, so that kills and
concurrent writers do no harm.
"""

import hashlib
import json
import os
import sys
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from frcnn_jax.data.problems import OnProblem, ReportTo, stop
from frcnn_jax.data.records import ImageFile
from frcnn_jax.data.workers import process_pool
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_bytes, write_atomic
from frcnn_jax.proposals.search import STANDARD, image_digest, opencv

Search = Callable[[np.ndarray], np.ndarray]  # image -> boxes; its str() tells all options; picklable
Load = Callable[[], np.ndarray]
_CLUSTER_LIMIT = 1024  # images submitted at a time
_CHECKSUM = 8  # bytes
_FRESH = 2  # seconds: a file as new as this may change again under the same time stamp


class SearchedProposals(Mapping[str, np.ndarray]):
    """`(N, 4)` float32 boxes by image id, read from the cache on access; a damaged entry is searched again."""

    def __init__(self, images: Mapping[str, Load], digests: Mapping[str, bytes], search: Search, folder: Path) -> None:
        self._images, self._digests, self._search, self._folder = images, digests, search, folder

    def __getitem__(self, image_id: str) -> np.ndarray:
        load = self._images[image_id]
        size = load.size if isinstance(load, ImageFile) else None  # others are searched, or checked, in each process
        boxes = _read(path := _entry(self._folder, self._digests[image_id]), self._search, size)
        if boxes is None:
            print(f"{path}: missing or damaged; searching image {image_id!r} again", file=sys.stderr)
            boxes = _search(load(), self._search, path)
        return boxes

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)


def search_images(
    images: Mapping[str, Load],
    search: Search = STANDARD,
    *,
    cache_dir: str | Path,
    workers: int | None = None,
    executor: Executor | None = None,
    on_problem: OnProblem = stop,
) -> Mapping[str, np.ndarray]:
    """Search many images in worker processes, with a cache and a progress bar.

    Args:
        images: Picklable functions that load `(H, W, 3)` uint8 RGB images, by image id. The file of an `ImageFile` is
            not decoded if the cache knows it by path, size and time stamp.
        search: A picklable function of an image that returns `(N, 4)` boxes of whole numbers below 65,536. Its `str()`
            names it and its options in the cache.
        cache_dir: The cache's folder, which any number of processes may share; interrupted work resumes from it.
        workers: Number of processes; by default one per core.
        executor: Runs the searches instead of these processes, such as `dask_executor`'s.
        on_problem: Receives the InputError of an image that can't be loaded; if it returns, the image is skipped.

    Returns:
        `(N, 4)` float32 boxes by image id, read from the cache on access.

    Raises:
        InputError: A worker process died, or an image can't be loaded (unless `on_problem` returns).
        OSError: The cache can't be written.
    """
    cache_dir, workers = Path(cache_dir).absolute(), workers or os.cpu_count() or 1  # a cluster's workers run elsewhere
    folder = cache_dir / str(search)
    _report_other_searches(folder)
    digests = _known(images, cache_dir, folder)
    todo = {image_id: load for image_id, load in images.items() if image_id not in digests}
    run = partial(_search_one, search=search, folder=folder)
    try:
        with (
            nullcontext(executor) if executor or not todo else process_pool(workers) as pool,
            closing(_run_bounded(pool, run, todo, _CLUSTER_LIMIT if executor else 4 * workers, len(images))) as found,
        ):
            for image_id, future in found:
                with ReportTo(on_problem):
                    digests[image_id], old_enough = future.result()
                    if old_enough and isinstance(file := images[image_id], ImageFile):
                        append_line(cache_dir, digests[image_id], file, old_enough)
    except BrokenExecutor:
        raise InputError(
            f"a worker process was killed (out of memory?); run again to resume from {cache_dir}"
        ) from None
    return SearchedProposals(images, {i: digests[i] for i in images if i in digests}, search, folder)


def _search_one(load: Load, search: Search, folder: Path) -> tuple[bytes, tuple[int, int] | None]:
    """Make sure that the cache has an image's boxes; return its digest, and its stamp if it is an old enough file."""
    found = stamp(load) if isinstance(load, ImageFile) else None
    old_enough = found if found and found[1] < time.time_ns() - _FRESH * 10**9 else None
    opencv().setNumThreads(1)
    image = load()
    if max(image.shape[:2]) > np.iinfo(np.uint16).max:
        raise InputError(f"proposals are stored as uint16: an image of {image.shape[:2]} pixels is too large")
    digest = image_digest(image)
    if _read(path := _entry(folder, digest), search, image.shape[:2]) is None:
        if path.exists():
            print(f"{path}: damaged; searching again", file=sys.stderr)
        _search(image, search, path)
    return digest, old_enough


def _search(image: np.ndarray, search: Search, path: Path) -> np.ndarray:
    height, width = image.shape[:2]
    boxes = np.clip(search(image), 0, np.array([width - 1, height - 1] * 2, np.float32))
    data = boxes.astype("<u2").tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: file.write(_checksum(data) + data))
    return boxes


def _entry(folder: Path, digest: bytes) -> Path:
    return folder / f"{digest.hex()}.boxes"


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_CHECKSUM).digest()


def _read(path: Path, search: Search, size: tuple[int, int] | None) -> np.ndarray | None:
    """Return the boxes of an entry, None if it is missing or is not what `_search` writes for an image.

    Args:
        path: The entry.
        search: The search, of whose boxes there are at most its `max_boxes`, if it has these.
        size: Height and width of the image, if they are known.
    """
    try:
        content = read_bytes(path)
    except FileNotFoundError:
        return None
    checksum, data = content[:_CHECKSUM], content[_CHECKSUM:]
    if len(data) % 8 or checksum != _checksum(data):
        return None
    boxes = np.frombuffer(data, "<u2").reshape(-1, 4).astype(np.float32)
    height, width = size or (np.inf, np.inf)
    ordered = (boxes[:, :2] <= boxes[:, 2:]).all() and (boxes[:, 2:] < [width, height]).all()
    most = getattr(search, "max_boxes", None)
    return boxes if ordered and not (isinstance(most, int) and len(boxes) > most) else None


def stamp(file: ImageFile) -> tuple[int, int] | None:
    """Return a file's size and time of change in nanoseconds, None if it can't be read."""
    try:
        status = os.stat(file.path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _known(images: Mapping[str, Load], cache_dir: Path, folder: Path) -> dict[str, bytes]:
    """Return the digests of the image files that the index knows and whose boxes are there."""
    path = cache_dir / "index.txt"
    try:
        entries = {entry.name for entry in os.scandir(folder)}
        lines = read_bytes(path).splitlines()
    except FileNotFoundError:
        return {}
    parsed = [_parse_line(line) for line in lines]
    index = dict(filter(None, parsed))
    digests = {}
    for image_id, load in images.items():
        if isinstance(load, ImageFile) and (known := index.get(_key(load))):
            digest, of_digest = known
            if f"{digest.hex()}.boxes" in entries and of_digest == stamp(load):
                digests[image_id] = digest
    damaged = sum(1 for line in parsed if line is None)
    if damaged and len(digests) < len(images):
        print(f"{path}: {damaged} damaged lines; the images that it lacks are decoded again", file=sys.stderr)
    return digests


def _key(file: ImageFile) -> tuple:
    return os.path.abspath(file.path), *(file.size or ()), file.exif


def append_line(cache_dir: Path, digest: bytes, file: ImageFile, of_digest: tuple[int, int]) -> None:
    """Append an image file's digest, and the stamp that it had then, to the index."""
    text = json.dumps([digest.hex(), *of_digest, *_key(file)]).encode()
    with open(cache_dir / "index.txt", "ab", buffering=0) as index:
        index.write(b"%08x %s\n" % (zlib.crc32(text), text))


def _parse_line(line: bytes) -> tuple[tuple, tuple[bytes, tuple[int, int]]] | None:
    """Return the key, and digest and stamp, of a line of the index; None if it is damaged."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    try:
        digest, size, changed, *key = json.loads(text)
        return (*map(_plain, key),), (bytes.fromhex(digest), (size, changed))
    except (ValueError, TypeError, RecursionError):
        return None


def _plain(value: Any) -> str | int:
    if not isinstance(value, str | int):
        raise TypeError
    return value


def _report_other_searches(folder: Path) -> None:
    others = sorted(path.name for path in folder.parent.glob(f"{folder.name.partition('-')[0]}-*"))
    if others and folder.name not in others:
        print(f"{folder.parent} has {', '.join(others)} but not {folder.name}; searching again", file=sys.stderr)


def _run_bounded(
    pool: Executor | None, run: Callable, images: Mapping[str, Load], limit: int, total: int
) -> Generator[tuple[str, Future]]:
    """Yield (id, finished search), with at most `limit` images submitted at a time; closing cancels these."""
    if not pool or not images:
        return
    todo = iter(images.items())
    running: dict[Future, str] = {}
    known = total - len(images)
    with tqdm(total=total, initial=known, desc="search", unit="image", smoothing=0.05) as bar:
        try:
            while True:
                while len(running) < limit and (item := next(todo, None)):
                    running[pool.submit(run, item[1])] = item[0]
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future
                    bar.update()
        finally:
            for future in running:
                future.cancel()
