"""Region proposals by OpenCV's selective search, in worker processes and cached on disk.

The search is a pure function of the pixels. OpenCV ranks its boxes with C `rand()`; libc is seeded with the image's
digest before each call, so the same image gives the same bytes in any worker and any run.
"""

import ctypes
import hashlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ProcessPoolExecutor, wait
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from frcnn_jax.data.problems import OnProblem, ReportTo, stop
from frcnn_jax.data.records import check_image
from frcnn_jax.data.workers import end_with_parent
from frcnn_jax.errors import InputError
from frcnn_jax.files import write_atomic

MODES = ("fast", "quality")
_CLUSTER_LIMIT = 1024  # images submitted at a time
_RAND = threading.Lock()  # C rand() has one state per process, and a cluster's workers may run several threads


def _digest(image: np.ndarray) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16, key=repr(image.shape).encode()).digest()


def selective_search(image: np.ndarray, *, mode: str = "fast", max_boxes: int = 2000) -> np.ndarray:
    """Return selective search's proposals for an image (Uijlings et al. 2013), the paper's choice (section 2.3).

    Args:
        image: `(H, W, 3)` uint8 RGB.
        mode: "fast" or "quality" (more boxes, several times slower).
        max_boxes: Maximum number of boxes; the best ranked are kept.

    Returns:
        `(N, 4)` float32 boxes (x1, y1, x2, y2), 0-based and inclusive, best ranked first; N may be 0.

    Raises:
        InputError: The mode is unknown, `max_boxes` is below 1, or the image has the wrong shape or type.
    """
    import cv2

    _check_options(mode, max_boxes)
    image = check_image(image)
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


def _check_options(mode: str, max_boxes: int) -> None:
    if mode not in MODES:
        raise InputError(f"selective search mode must be one of {', '.join(MODES)}, got {mode!r}")
    if max_boxes < 1:
        raise InputError(f"max_boxes must be at least 1, got {max_boxes}")


def _entries(cache_dir: Path, mode: str, max_boxes: int) -> Path:
    """Return the cache folder for these parameters and this version of OpenCV."""
    import cv2

    return cache_dir / f"selective_search-{mode}-{max_boxes}-cv{cv2.__version__}"


def cached_selective_search(load: Callable[[], np.ndarray], cache_dir: Path, mode: str, max_boxes: int) -> np.ndarray:
    """Return `selective_search(load())` through a cache keyed by pixels, parameters and OpenCV's version.

    An entry is a uint16 .npy file, written atomically, so that kills and concurrent writers do no harm.
    """
    import cv2

    cv2.setNumThreads(1)
    image = load()
    if max(image.shape[:2]) > np.iinfo(np.uint16).max:
        raise InputError(f"proposals are stored as uint16: an image of {image.shape[:2]} pixels is too large")
    path = _entries(cache_dir, mode, max_boxes) / f"{_digest(image).hex()}.npy"
    try:
        return np.load(path, allow_pickle=False).astype(np.float32)
    except (FileNotFoundError, ValueError, EOFError):  # missing or truncated
        boxes = selective_search(image, mode=mode, max_boxes=max_boxes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, lambda file: np.save(file, boxes.astype(np.uint16), allow_pickle=False))
    return boxes


def search_images(
    images: Mapping[str, Callable[[], np.ndarray]],
    *,
    cache_dir: str | Path,
    mode: str = "fast",
    max_boxes: int = 2000,
    workers: int | None = None,
    executor: Executor | None = None,
    on_problem: OnProblem = stop,
) -> dict[str, np.ndarray]:
    """Run selective search on many images in worker processes, with a cache and a progress bar.

    Args:
        images: Picklable functions that load `(H, W, 3)` uint8 RGB images, by image id.
        cache_dir: The cache's folder, which any number of processes may share; interrupted work resumes from it.
        mode: As in `selective_search`.
        max_boxes: As in `selective_search`.
        workers: Number of processes; by default one per core.
        executor: Runs the searches instead of these processes, such as `dask_executor`'s.
        on_problem: Receives the InputError of an image that can't be loaded; if it returns, the image is skipped.

    Returns:
        `(N, 4)` float32 boxes by image id.

    Raises:
        InputError: The mode is unknown, `max_boxes` is below 1, a worker process died, or an image can't be loaded
            (unless `on_problem` returns).
        OSError: The cache can't be written.
    """
    _check_options(mode, max_boxes)
    cache_dir, workers = Path(cache_dir).absolute(), workers or os.cpu_count() or 1  # a cluster's workers run elsewhere
    _report_other_versions(cache_dir, mode, max_boxes)
    search = partial(cached_selective_search, cache_dir=cache_dir, mode=mode, max_boxes=max_boxes)
    found: dict[str, np.ndarray] = {}
    own_pool = partial(ProcessPoolExecutor, workers, multiprocessing.get_context("spawn"), end_with_parent)
    try:
        with (
            nullcontext(executor) if executor else own_pool() as pool,
            closing(_run_bounded(pool, search, images, _CLUSTER_LIMIT if executor else 4 * workers)) as searches,
        ):
            for image_id, future in searches:
                with ReportTo(on_problem):
                    found[image_id] = future.result()
    except BrokenExecutor:
        raise InputError(
            f"a worker process was killed (out of memory?); run again to resume from {cache_dir}"
        ) from None
    return {image_id: found[image_id] for image_id in images if image_id in found}


def _report_other_versions(cache_dir: Path, mode: str, max_boxes: int) -> None:
    own = _entries(cache_dir, mode, max_boxes)
    others = sorted(path.name for path in cache_dir.glob(f"selective_search-{mode}-{max_boxes}-cv*"))
    if others and own.name not in others:
        print(f"{cache_dir} has {', '.join(others)} but not {own.name}; searching again", file=sys.stderr)


def _run_bounded(
    pool: Executor, search: Callable, images: Mapping[str, Callable], limit: int
) -> Generator[tuple[str, Future[np.ndarray]], None, None]:
    """Yield (id, finished search), with at most `limit` images submitted at a time; closing cancels these."""
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
