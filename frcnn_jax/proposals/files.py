"""Proposal files of this library and of other programs. Nothing in a file is executed.

| file | content | boxes |
|---|---|---|
| `.proposals` | a shard of `write_proposals` | 0-based, inclusive (x1, y1, x2, y2) |
| `.npz` | an `(N, 4)` array per image id | the same |
| `<name>.mat` with `images` and `boxes` | cell arrays, such as voc_2007_trainval.mat | 1-based (y1, x1, y2, x2) |
| `<id>.mat` with `boxes` | one image, such as the IJCV files | 1-based (x1, y1, x2, y2) |
| `<id>_boxes.mat` with `boxes` | one image, as in the paper's demo | 0-based, inclusive |
| `.pkl` | Detectron2's `ids`, `boxes`, `objectness_logits`, `bbox_mode` | 0-based, x2 and y2 exclusive |
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from frcnn_jax.data.problems import OnProblem, ReportTo, stop
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_npz
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.proposals.mat_files import read_mat_boxes
from frcnn_jax.proposals.pickles import read_pickle
from frcnn_jax.proposals.shards import LARGEST_SIDE, read_shard

# by suffix; each yields (image id, boxes), and raises errors of many kinds on a malformed file
_READERS: dict[str, Callable[[Path], Iterable[tuple[str, np.ndarray]]]] = {
    ".proposals": read_shard,
    ".npz": lambda path: read_npz(path).items(),
    ".mat": read_mat_boxes,
    ".pkl": read_pickle,
}


class Proposals(Mapping[str, np.ndarray]):
    """`(N, 4)` float32 boxes by image id; the stored arrays may be memory-mapped and of another type."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays

    def __getitem__(self, image_id: str) -> np.ndarray:
        return np.asarray(self._arrays[image_id], np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def read_proposals(
    source: str | Path,
    *,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    max_boxes: int | None = None,
    on_problem: OnProblem = stop,
) -> Proposals:
    """Read proposals from a file, from all files in a folder, or from several, "A+B". Shards are memory-mapped.

    Args:
        source: Files of the kinds listed in this module.
        sizes: Height and width, by id, of the images to read. Boxes up to a pixel over the edge are clipped. By default
            every image in the source is read, at any size.
        max_boxes: Maximum number of boxes per image; the first ones are kept.
        on_problem: Receives images without proposals, boxes that are not finite, reversed or outside the image, arrays
            that aren't boxes, repeated images, and, if there are several files, malformed ones.

    Returns:
        `(N, 4)` float32 boxes (x1, y1, x2, y2) by image id, 0-based and inclusive.

    Raises:
        InputError: A file is missing, malformed or of an unknown kind or version, none of the images has proposals, or
            `max_boxes` is below 1.
    """
    if max_boxes is not None and max_boxes < 1:
        raise InputError(f"max_boxes must be at least 1, got {max_boxes}")
    arrays: dict[str, np.ndarray] = {}
    origin: dict[str, Path] = {}
    files = _files(source)
    for path in files:
        entries: list[tuple[str, np.ndarray]] = []
        with ReportTo(on_problem if len(files) > 1 else stop):
            entries = _read_file(path)
        for image_id, boxes in entries:
            first = origin.setdefault(image_id, path)
            if sizes is not None and image_id not in sizes:
                continue
            with ReportTo(on_problem):
                if image_id in arrays:
                    raise InputError(f"{path}: image {image_id!r} is also in {first}")
                size = sizes[image_id] if sizes else (LARGEST_SIDE, LARGEST_SIDE)
                arrays[image_id] = _checked(boxes, size, max_boxes, f"{path}: image {image_id!r}", on_problem)
    if sizes and not origin.keys() & sizes.keys():
        found = f"it has images such as {next(iter(origin))!r}" if origin else "it has no images"
        raise InputError(f"{source}: no image such as {next(iter(sizes))!r}; {found}; is it for another dataset?")
    missing = [image_id for image_id in sizes or () if image_id not in arrays]
    for image_id in missing:
        on_problem(
            InputError(f"{source}: no proposals for {len(missing)} of {len(sizes or ())} images, such as {image_id!r}")
        )
    return Proposals(arrays)


def _files(source: str | Path) -> list[Path]:
    single = Path(source)
    paths = [single] if single.exists() else [Path(part) for part in str(source).split("+")]
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in _READERS and file.is_file())
            if not inside:
                raise InputError(f"{path}: no proposal files ({', '.join(_READERS)}) in this folder")
            found += inside
        elif not path.is_file():
            raise InputError(f"{path}: no such proposal file or folder")
        elif path.suffix not in _READERS:
            raise InputError(f"{path}: expected a proposal file ({', '.join(_READERS)})")
        else:
            found.append(path)
    return found


def _read_file(path: Path) -> list[tuple[str, np.ndarray]]:
    try:
        return list(_READERS[path.suffix](path))
    except Exception as error:  # malformed files raise errors of many kinds
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable {path.suffix} file of proposals ({reason})") from None


def _checked(
    boxes: np.ndarray, size: tuple[int, int], max_boxes: int | None, where: str, on_problem: OnProblem
) -> np.ndarray:
    """Return the valid boxes among the first `max_boxes`, clipped to the image: float32, or uint16 as in a shard."""
    if boxes.dtype.kind not in "fiu" or (boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4)):
        raise InputError(f"{where}: expected (N, 4) boxes, got {boxes.shape} {boxes.dtype}")
    height, width = size
    boxes = boxes.reshape(-1, 4)[:max_boxes]  # MATLAB's empty array is (0, 0)
    exact = boxes.astype(np.float64)
    x1, y1, x2, y2 = exact.T
    good = (x1 >= -1) & (x1 <= x2) & (x2 <= width) & (y1 >= -1) & (y1 <= y2) & (y2 <= height)
    for i in np.flatnonzero(~good):
        numbers = ", ".join(f"{v:g}" for v in exact[i])
        expected = f"0 <= x1 <= x2 < {width} and 0 <= y1 <= y2 < {height}"
        on_problem(InputError(f"{where}: box {i} is ({numbers}); expected {expected}, 0-based"))
    inside = box_ops.clip(exact[good], height, width)
    return boxes if boxes.dtype == np.uint16 and np.array_equal(inside, exact) else inside.astype(np.float32)
