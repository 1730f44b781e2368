"""Region proposals: OpenCV's selective search in worker processes, cached on disk.

The search is a pure function of the pixels: OpenCV ranks its boxes with C `rand()`, so libc is seeded from the
image's digest before each call, and the same image gives the same bytes in any worker and any run.
"""

import ctypes
import hashlib
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from frcnn_jax.errors import InputError

MODES = ("fast", "quality")


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
    ctypes.CDLL(None).srand(int.from_bytes(_digest(image)[:4], "little"))
    x, y, width, height = np.asarray(search.process()[:max_boxes]).reshape(-1, 4).T
    return np.stack([x, y, x + width - 1, y + height - 1], axis=1).astype(np.float32)


def cached_selective_search(load: Callable[[], np.ndarray], cache_dir: Path, mode: str, max_boxes: int) -> np.ndarray:
    """Like `selective_search(load())`, through a cache keyed by the pixels, the parameters and OpenCV's version.

    An entry is one .npy of uint16, written beside and renamed: safe against a kill and a second writer.
    """
    import cv2

    cv2.setNumThreads(1)
    image = load()
    if max(image.shape[:2]) > np.iinfo(np.uint16).max:
        raise InputError(f"proposals are kept as uint16: image of {image.shape[:2]} pixels is too large")
    folder = cache_dir / f"selective_search-{mode}-{max_boxes}-cv{cv2.__version__}"
    path = folder / f"{_digest(image).hex()}.npy"
    try:
        return np.load(path, allow_pickle=False).astype(np.float32)
    except (FileNotFoundError, ValueError, EOFError):  # not there, or not whole: search anew
        boxes = selective_search(image, mode=mode, max_boxes=max_boxes)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".tmp", delete=False) as file:
        try:
            np.save(file, boxes.astype(np.uint16), allow_pickle=False)
            file.flush()
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    return boxes


def make_proposals(
    images: Mapping[str, Callable[[], np.ndarray]],
    *,
    cache_dir: Path,
    mode: str = "fast",
    max_boxes: int = 2000,
    workers: int | None = None,
    on_problem: Callable[[InputError], None] | None = None,
) -> dict[str, np.ndarray]:
    """Selective search on many images, in worker processes, with a progress bar; what is cached is read.

    Args:
        images: by image id, a picklable function that loads the `(H, W, 3)` uint8 RGB image.
        cache_dir: the cache; interrupted work goes on from what it holds.
        mode, max_boxes: as `selective_search`.
        workers: processes, one a core where None.
        on_problem: gets the InputError of an image that can't be loaded, which is then left out; None raises it.

    Returns:
        by image id, `(N, 4)` float32 boxes.

    Raises:
        InputError: an image can't be loaded (the loader's own text).
    """
    if mode not in MODES:
        raise InputError(f"selective search mode must be one of {', '.join(MODES)}, got {mode!r}")
    search = partial(cached_selective_search, cache_dir=cache_dir, mode=mode, max_boxes=max_boxes)
    found: dict[str, np.ndarray] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count(), context, initializer=_end_with_parent) as pool:
        try:
            for image_id, search_of in _run_bounded(pool, search, images, limit=4 * (workers or os.cpu_count() or 1)):
                try:
                    found[image_id] = search_of.result()
                except InputError as problem:
                    if on_problem is None:
                        raise
                    on_problem(problem)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {image_id: found[image_id] for image_id in images if image_id in found}


def _end_with_parent() -> None:
    """Ends this worker process with the one that started it, however that dies."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait_and_end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_and_end, daemon=True).start()


def _run_bounded(
    pool: ProcessPoolExecutor, search: Callable, images: Mapping[str, Callable], limit: int
) -> Iterator[tuple[str, Future[np.ndarray]]]:
    """Yields (id, search done) as they come, with at most `limit` images handed out."""
    todo = iter(images.items())
    running: dict[Future[np.ndarray], str] = {}
    with tqdm(total=len(images), desc="selective search", unit="image", smoothing=0.05) as bar:
        while True:
            while len(running) < limit and (item := next(todo, None)):
                running[pool.submit(search, item[1])] = item[0]
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future
                bar.update()
