"""Proposals for a dataset, from searches, files or a function."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from frcnn_jax.data.problems import OnProblem, ReportTo, noting, stop
from frcnn_jax.data.records import Dataset, ImageFile, Record, check_boxes, read_image
from frcnn_jax.errors import InputError
from frcnn_jax.proposals.cache import Search, search_images
from frcnn_jax.proposals.edge_boxes import EdgeBoxes
from frcnn_jax.proposals.files import checked_boxes, read_proposals, union
from frcnn_jax.proposals.search import MODES, SelectiveSearch

Source = str | Path | Callable[[np.ndarray], Any]  # see `load_proposals`
_EDGE_BOXES = "edge_boxes:"


class _Union(Mapping[str, np.ndarray]):
    """Proposals of several sources, merged on access; only images that are in all of them."""

    def __init__(self, parts: Sequence[Mapping[str, np.ndarray]], max_boxes: int) -> None:
        self._parts, self._max_boxes = parts, max_boxes

    def __getitem__(self, image_id: str) -> np.ndarray:
        return union([part[image_id] for part in self._parts], self._max_boxes)

    def __iter__(self) -> Iterator[str]:
        return (image_id for image_id in self._parts[0] if all(image_id in part for part in self._parts))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def make_search(name: str, *, size: int | None = None, max_boxes: int = 2000) -> Search | None:
    """Return the search of a name: a key of MODES, or edge_boxes:MODEL. None if it is the name of neither."""
    if name in MODES:
        return SelectiveSearch(name, size, max_boxes)
    if name.startswith(_EDGE_BOXES):
        return EdgeBoxes(name.removeprefix(_EDGE_BOXES), size, max_boxes)
    return None


def split_source(source: str | Path) -> list[str]:
    """Return the parts of "A+B", or the source itself if it is a file or a folder."""
    return [str(source)] if Path(source).exists() else str(source).split("+")


def check_source(source: str) -> None:
    """Raise InputError if a part of the source is neither a search nor an existing file or folder."""
    for name in split_source(source):
        if not make_search(name) and not Path(name).exists():
            searches = f"{', '.join(MODES)}, {_EDGE_BOXES}MODEL"
            raise InputError(f"{name!r} is no proposal file or folder, and no search ({searches})")


def as_boxes(found: Any, name: str) -> np.ndarray:
    """Return the boxes of a function's result, an array or a `supervision.Detections`, as `(N, 4)` float32."""
    if hasattr(found, "xyxy"):
        found = np.asarray(found.xyxy) - [0, 0, 1, 1]  # continuous
    return check_boxes(found, name)


def propose(search: Callable[[np.ndarray], Any], image: Any) -> np.ndarray:
    """Return a search's boxes, clipped to the image: a path, a PIL image or `(H, W, 3)` uint8 RGB.

    Raises:
        InputError: The image can't be read, or a box is reversed or more than a pixel outside it.
    """
    pixels, where = read_image(image), "the proposals"
    height, width = pixels.shape[:2]
    return checked_boxes(as_boxes(search(pixels), where), (height, width), None, where, stop)


def load_proposals(
    dataset: Dataset,
    *,
    source: Source = "standard",
    cache_dir: str | Path,
    size: int | None = None,
    max_boxes: int = 2000,
    workers: int | None = None,
    executor: Executor | None = None,
    on_problem: OnProblem = stop,
) -> tuple[Dataset, Mapping[str, np.ndarray]]:
    """Return the proposals of every image of a dataset.

    Args:
        dataset: The images.
        source: A mode of selective search, "standard", "fast", "paper" or "quality"; "edge_boxes:MODEL", see
            `EdgeBoxes`; proposal files, see `read_proposals`; several of these joined by "+", whose boxes are merged
            by rank, without duplicates; or a function of an image, `(H, W, 3)` uint8 RGB, that returns `(N, 4)`
            inclusive boxes, best first, or a `supervision.Detections`.
        cache_dir: Folder where a search caches its results.
        size: Longer side of the image that is searched; see `selective_search`.
        max_boxes: Maximum number of boxes per image; the first ones are kept.
        workers: Number of processes that search; by default one per core.
        executor: Runs the search instead of these processes.
        on_problem: Receives images that can't be loaded or have no proposals, and what `read_proposals` reports. With
            `stop`, the default, proposal files are read without loading any image.

    Returns:
        The dataset without the images reported to `on_problem`, and `(N, 4)` float32 boxes by image id.

    Raises:
        InputError: No image remains; see also `read_proposals` and `search_images`.
    """
    problems: list[InputError] = []
    handler = noting(problems, on_problem)
    images = {record.image_id: record.load for record in dataset.records}
    found: list[Mapping[str, np.ndarray]] = []
    files = []
    if callable(source):
        found.append(_apply(source, dataset.records, max_boxes, handler))
    else:
        check_source(str(source))
        for name in split_source(source):
            if search := make_search(name, size=size, max_boxes=max_boxes):
                options: dict[str, Any] = {"workers": workers, "executor": executor, "on_problem": handler}
                found.append(search_images(images, search, cache_dir=cache_dir, **options))
            else:
                files.append(name)
    if files and dataset.records:
        found.append(_read("+".join(files), dataset.records, max_boxes, handler, load_images=on_problem is not stop))
    proposals = found[0] if len(found) == 1 else _Union(found, max_boxes)
    known = set(proposals) if found else set()
    records = [record for record in dataset.records if record.image_id in known]
    if not records:
        first = f"; first problem: {problems[0]}" if problems else ""
        raise InputError(f"none of the {len(dataset.records)} images can be used{first}")
    return Dataset(dataset.class_names, records), proposals


def _apply(
    function: Callable[[np.ndarray], Any], records: Sequence[Record], max_boxes: int, on_problem: OnProblem
) -> dict[str, np.ndarray]:
    """Return a function's proposals for each image, clipped to it."""
    found = {}
    for record in tqdm(records, desc="proposals", unit="image"):
        with ReportTo(on_problem):
            image, size, where = record.load(), (record.height, record.width), f"image {record.image_id!r}"
            boxes = as_boxes(function(image), f"{where}: the proposals")
            found[record.image_id] = checked_boxes(boxes, size, max_boxes, where, on_problem)
    return found


def _read(
    source: str, records: Sequence[Record], max_boxes: int, on_problem: OnProblem, *, load_images: bool
) -> Mapping[str, np.ndarray]:
    sizes, names = {}, {}
    for record in records:
        with ReportTo(on_problem):
            if load_images:
                record.load()
            sizes[record.image_id] = (record.height, record.width)
            if isinstance(record.load, ImageFile):
                names[record.image_id] = record.load.path
    if not sizes:
        return {}
    return read_proposals(source, sizes=sizes, names=names, max_boxes=max_boxes, on_problem=on_problem)
