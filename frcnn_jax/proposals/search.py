"""Region proposals: OpenCV's selective search in worker processes or on a Dask cluster, cached on disk.

The search is a pure function of the pixels: OpenCV ranks its boxes with C `rand()`, so libc is seeded from the
image's digest before each call, and the same image gives the same bytes in any worker and any run.
"""

import ctypes
import hashlib
import logging
import multiprocessing
import os
import socket
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from frcnn_jax.data.workers import end_with_parent
from frcnn_jax.errors import InputError
from frcnn_jax.files import write_whole

MODES = ("fast", "quality")
_RAND = threading.Lock()  # C rand() has one state a process, and a cluster's worker may run several threads


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, key=repr(image.shape).encode()).digest()


def selective_search(image: np.ndarray, *, mode: str = "fast", max_boxes: int = 2000) -> np.ndarray:
    """Selective search (Uijlings et al. 2013), the paper's proposals (section 2.3).

    Args:
        image: `(H, W, 3)` uint8 RGB.
        mode: "fast" or "quality" (more boxes, several times slower).
        max_boxes: the first this many are kept, best ranked first.

    Returns:
        `(N, 4)` float32 boxes (x1, y1, x2, y2), 0-based and inclusive, N <= max_boxes; N may be 0.

    Raises:
        InputError: for another mode, or an image of another shape or type.
    """
    import cv2

    if mode not in MODES:
        raise InputError(f"selective search mode must be one of {', '.join(MODES)}, got {mode!r}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise InputError(f"selective search needs a (H, W, 3) uint8 image, got {image.shape} {image.dtype}")
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    if mode == "fast":
        search.switchToSelectiveSearchFast()
    else:
        search.switchToSelectiveSearchQuality()
    with _RAND:
        ctypes.CDLL(None).srand(int.from_bytes(_digest(image)[:4], "little"))
        found = search.process()
    x, y, width, height = np.asarray(found[:max_boxes]).reshape(-1, 4).T
    return np.stack([x, y, x + width - 1, y + height - 1], axis=1).astype(np.float32)


def _entries(cache_dir: Path, mode: str, max_boxes: int) -> Path:
    """The cache's folder of these parameters and this version of OpenCV."""
    import cv2

    return cache_dir / f"selective_search-{mode}-{max_boxes}-cv{cv2.__version__}"


def cached_selective_search(load: Callable[[], np.ndarray], cache_dir: Path, mode: str, max_boxes: int) -> np.ndarray:
    """Like `selective_search(load())`, through a cache keyed by the pixels, the parameters and OpenCV's version.

    An entry is one .npy of uint16, written whole or not at all: safe against a kill and a second writer.
    """
    import cv2

    cv2.setNumThreads(1)
    image = load()
    if max(image.shape[:2]) > np.iinfo(np.uint16).max:
        raise InputError(f"proposals are kept as uint16: image of {image.shape[:2]} pixels is too large")
    path = _entries(cache_dir, mode, max_boxes) / f"{_digest(image).hex()}.npy"
    try:
        return np.load(path, allow_pickle=False).astype(np.float32)
    except (FileNotFoundError, ValueError, EOFError):  # not there, or not whole: search anew
        boxes = selective_search(image, mode=mode, max_boxes=max_boxes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: np.save(file, boxes.astype(np.uint16), allow_pickle=False))
    return boxes


def make_proposals(
    images: Mapping[str, Callable[[], np.ndarray]],
    *,
    cache_dir: Path,
    mode: str = "fast",
    max_boxes: int = 2000,
    workers: int | None = None,
    executor: Executor | None = None,
    on_problem: Callable[[InputError], None] | None = None,
) -> dict[str, np.ndarray]:
    """Selective search on many images, in worker processes, with a progress bar; what is cached is read.

    Args:
        images: by image id, a picklable function that loads the `(H, W, 3)` uint8 RGB image.
        cache_dir: the cache; interrupted work goes on from what it holds. Any number of processes may share it.
        mode, max_boxes: as `selective_search`.
        workers: processes, one a core where None.
        executor: runs the searches instead, such as `cluster`'s.
        on_problem: gets the InputError of an image that can't be loaded, which is then left out; None raises it.

    Returns:
        by image id, `(N, 4)` float32 boxes.

    Raises:
        InputError: an image can't be loaded (the loader's own text), or a worker process died.
        OSError: the cache can't be written.
    """
    if mode not in MODES:
        raise InputError(f"selective search mode must be one of {', '.join(MODES)}, got {mode!r}")
    cache_dir, workers = cache_dir.absolute(), workers or os.cpu_count() or 1  # a cluster's workers are elsewhere
    _say_other_versions(cache_dir, mode, max_boxes)
    search = partial(cached_selective_search, cache_dir=cache_dir, mode=mode, max_boxes=max_boxes)
    limit = _MOST_ON_CLUSTER if executor else 4 * workers
    found: dict[str, np.ndarray] = {}
    try:
        with (
            nullcontext(executor) if executor else _process_pool(workers) as pool,
            closing(_run_bounded(pool, search, images, limit)) as searches,
        ):
            for image_id, search_of in searches:
                try:
                    found[image_id] = search_of.result()
                except InputError as problem:
                    if on_problem is None:
                        raise
                    on_problem(problem)
    except BrokenExecutor:
        raise InputError(
            f"a worker process was killed (too little memory?); the same command goes on from {cache_dir}"
        ) from None
    return {image_id: found[image_id] for image_id in images if image_id in found}


_MOST_ON_CLUSTER = 1024  # images handed out at a time


def _say_other_versions(cache_dir: Path, mode: str, max_boxes: int) -> None:
    own = _entries(cache_dir, mode, max_boxes)
    others = sorted(path.name for path in cache_dir.glob(f"selective_search-{mode}-{max_boxes}-cv*"))
    if others and own.name not in others:
        print(f"{cache_dir} holds {', '.join(others)}; this is {own.name}: searched anew", file=sys.stderr)


def _process_pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)


def _run_bounded(
    pool: Executor, search: Callable, images: Mapping[str, Callable], limit: int
) -> Generator[tuple[str, Future[np.ndarray]], None, None]:
    """Yields (id, search done) as they come, with at most `limit` images handed out; what is left at the end, because
    nobody asks for more, is cancelled."""
    todo = iter(images.items())
    running: dict[Future[np.ndarray], str] = {}
    with tqdm(total=len(images), desc="selective search", unit="image", smoothing=0.05) as bar:
        try:
            while True:
                while len(running) < limit and (item := next(todo, None)):
                    running[pool.submit(search, item[1])] = item[0]
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future
                    bar.update()
        finally:
            for future in running:
                future.cancel()


@contextmanager
def cluster(scheduler: str, *, timeout: float = 30) -> Iterator[Executor]:
    """An executor for `make_proposals` on a Dask cluster. Where a worker dies, another one takes on its images.

    Workers load the images and write the cache by the same absolute paths as here.

    Args:
        scheduler: its address, such as "tcp://10.0.0.1:8786".
        timeout: seconds to wait for it and for a worker.

    Raises:
        InputError: the package is missing, nobody answers, the scheduler is lost, or an image's workers died again and
            again.
    """
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise InputError("a Dask cluster needs the package distributed: pip install 'frcnn_jax[dask]'") from None
    try:
        place = urlsplit(scheduler)
        socket.create_connection((place.hostname, place.port), timeout).close()  # Client waits on for an unknown host
        client = Client(scheduler, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{scheduler}: no Dask scheduler answers ({_first_line(error)})") from None
    log = logging.getLogger("distributed.client")  # says at length what is said in a line below
    log.setLevel(logging.CRITICAL)
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError:
            raise InputError(f"{scheduler}: the Dask scheduler has no worker") from None
        try:
            yield client.get_executor()
        except CancelledError:
            raise InputError(f"{scheduler}: lost the Dask scheduler; the same command goes on from the cache") from None
        except KilledWorker as error:
            raise InputError(f"{scheduler}: {_first_line(error)}; the same command goes on from the cache") from None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
