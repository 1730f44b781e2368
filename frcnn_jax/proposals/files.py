"""Proposal files of this library and of other programs. Nothing in a file is executed.

| file | content | boxes |
|---|---|---|
| `.proposals` | a shard of `write_proposals` | 0-based, inclusive (x1, y1, x2, y2) |
| `.npz` | an `(N, 4)` array per image | the same |
| `<name>.mat` with `images` and `boxes` | cell arrays, such as voc_2007_trainval.mat | 1-based (y1, x1, y2, x2) |
| `<id>.mat` with `boxes` | one image, such as the IJCV files | 1-based (x1, y1, x2, y2) |
| `<id>_boxes.mat` with `boxes` | one image, as in the paper's demo | 0-based, inclusive |
| `.pkl` | Detectron2's, or mmdetection's of versions 2 and 3: `pickles.py` | 0-based, x2 and y2 exclusive |
| `.json` | COCO results or instances, SAM's masks, supervision's rows: `json_files.py` | 0-based, as listed there |
| `.csv` | supervision's rows: `json_files.py` | 0-based, x2 and y2 exclusive |
| `<id>.txt`, `<id>.npy` | one image, `(N, 4)` or `(N, 5)`: `array_files.py` | a format of BOX_FORMATS, which is said |

Files that have scores are read by descending score; the others are in order. A file names its images by their ids or by
their file names: `a/b.jpg` may be called `b`, `b.jpg`, `a/b` or `a/b.jpg`.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from frcnn_jax.data.problems import OnProblem, ReportTo, stop
from frcnn_jax.errors import InputError
from frcnn_jax.files import decoding, read_bytes, read_npz
from frcnn_jax.files import read_json as read_json_content
from frcnn_jax.proposals.array_files import read_npy, read_text
from frcnn_jax.proposals.entries import BOX_FORMATS, Content, Entry, Options
from frcnn_jax.proposals.json_files import read_csv, read_json
from frcnn_jax.proposals.mat_files import read_mat_boxes
from frcnn_jax.proposals.pickles import read_pickle
from frcnn_jax.proposals.shards import LARGEST_SIDE, read_shard

# by suffix; each raises errors of many kinds on a malformed file
_READERS: dict[str, Callable[[Path, Options], Content]] = {
    ".proposals": lambda path, _: Content("shard", read_shard(path)),
    ".npz": lambda path, _: Content(".npz arrays", read_npz(path).items()),
    ".mat": lambda path, _: Content("MATLAB boxes", read_mat_boxes(path)),
    ".pkl": read_pickle,
    ".json": read_json,
    ".csv": read_csv,
    ".txt": read_text,
    ".npy": read_npy,
}


class Proposals(Mapping[str, np.ndarray]):
    """`(N, 4)` float32 boxes by image id; the stored arrays may be memory-mapped and of another type.

    Args:
        parts: Arrays by image id. An image of several parts has their `union`, which is made when it is read.
        max_boxes: Maximum number of boxes of a union.
        kinds: What the files were taken for, such as "COCO results".
    """

    def __init__(
        self, parts: Sequence[Mapping[str, np.ndarray]], max_boxes: int | None = None, kinds: Sequence[str] = ()
    ):
        self._parts, self._max_boxes, self.kinds = parts, max_boxes, tuple(kinds)
        self._ids = dict.fromkeys(image_id for part in parts for image_id in part)

    def __getitem__(self, image_id: str) -> np.ndarray:
        found = [part[image_id] for part in self._parts if image_id in part]
        if not found:
            raise KeyError(image_id)
        return np.asarray(found[0], np.float32) if len(found) == 1 else union(found, self._max_boxes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)


def union(parts: Sequence[np.ndarray], max_boxes: int | None = None) -> np.ndarray:
    """Return the different boxes of several `(N, 4)` arrays, the first box of each, then the second ones, and so on.

    Args:
        parts: Boxes of one image, best first.
        max_boxes: Maximum number of boxes; the first ones are kept.

    Returns:
        `(N, 4)` float32 boxes.
    """
    ranks = np.concatenate([np.arange(len(part)) for part in parts])
    boxes = np.concatenate([np.asarray(part, np.float32) for part in parts])[np.argsort(ranks, kind="stable")]
    order = np.lexsort(boxes.T)  # equal boxes become neighbours, the first one first
    new = np.ones(len(boxes), bool)
    new[1:] = (boxes[order[1:]] != boxes[order[:-1]]).any(axis=1)
    return boxes[np.sort(order[new])][:max_boxes]


class _Part(NamedTuple):
    """The images of one file or of all files in a folder, and what the files are."""

    images: list[tuple[Path, Entry]]
    contents: list[Content]


def read_proposals(
    source: str | Path,
    *,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    names: Mapping[str, str] | None = None,
    max_boxes: int | None = None,
    box_format: str | None = None,
    ids: str | Path | None = None,
    on_problem: OnProblem = stop,
) -> Proposals:
    """Read proposals from a file, from all files in a folder, or from several, "A+B". Shards are memory-mapped.

    An image that is in several of "A+B" has the `union` of their boxes.

    Args:
        source: Files of the kinds listed in this module.
        sizes: Height and width, by id, of the images to read. Boxes up to a pixel over the edge are clipped. By default
            every image in the source is read, at any size, by the name that it has there.
        names: Paths of the image files, by id. Each of "A+B" is matched by ids or by file names, by whichever more
            images have; by default by ids.
        max_boxes: Maximum number of boxes per image; the first ones are kept.
        box_format: Format, one of BOX_FORMATS, of the boxes in files that do not say it.
        ids: A text file with an id per line, or a COCO annotation file: the images, in order, of a file that does not
            name them.
        on_problem: Receives images without proposals, boxes that are not finite, reversed or outside the image, arrays
            that aren't boxes, repeated images, names that may mean several images, and, if there are several files,
            malformed ones.

    Returns:
        `(N, 4)` float32 boxes (x1, y1, x2, y2) by image id, 0-based and inclusive.

    Raises:
        InputError: A file is missing, malformed or of an unknown kind or version, none of the images has proposals,
            `max_boxes` is below 1, or `box_format` or `ids` is given and no file needs it.
    """
    if max_boxes is not None and max_boxes < 1:
        raise InputError(f"max_boxes must be at least 1, got {max_boxes}")
    if box_format is not None and box_format not in BOX_FORMATS:
        raise InputError(f"box_format must be one of {', '.join(BOX_FORMATS)}, got {box_format!r}")
    options = Options(box_format, None if ids is None else _read_ids(Path(ids)))
    paths = _files(source)
    on_malformed = on_problem if sum(map(len, paths)) > 1 else stop
    parts = [_read_part(files, options, on_malformed) for files in paths]
    contents = [content for part in parts for content in part.contents]
    for name, value in (("box_format", box_format), ("ids", ids)):
        if value is not None and contents and not any(name in content.needed for content in contents):
            says = {"box_format": "says its box format", "ids": "names its images"}[name]
            raise InputError(f"{source}: {name}={value} is given, but every file {says}")
    stored, unused, matched = [], [], False
    for part in parts:
        keys, others = _match(part, sizes, names, on_problem)
        unused += others
        matched = matched or len(others) < len(keys)
        arrays: dict[str, np.ndarray] = {}
        origin: dict[str, Path] = {}
        for (path, entry), image_id in zip(part.images, keys, strict=True):
            if image_id is None:
                continue
            where = f"{path}: image {image_id!r}"
            with ReportTo(on_problem):
                if image_id in arrays:
                    raise InputError(f"{where} is also in {origin[image_id]}")
                size = sizes[image_id] if sizes else (LARGEST_SIDE, LARGEST_SIDE)
                arrays[image_id] = checked_boxes(entry.boxes, size, max_boxes, where, on_problem, entry.order)
                origin[image_id] = path
        stored.append(arrays)
    found = Proposals(stored, max_boxes, list(dict.fromkeys(content.kind for content in contents)))
    missing = [image_id for image_id in sizes or () if image_id not in found]
    if missing:
        text = f"{source}: proposals for {len(found)} of {len(sizes or ())} images, none for {_three(missing)}"
        text += f"; no image for its {_three(unused)}" if unused else ""
        if not matched:
            raise InputError(f"{text}; is it for another data set?")
        for _ in missing:
            on_problem(InputError(text))
    return found


def _three(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", .." if len(names) > 3 else "")


def _files(source: str | Path) -> list[list[Path]]:
    """Return the files of each part of "A+B"."""
    single = Path(source)
    paths = [single] if single.exists() else [Path(part) for part in str(source).split("+")]
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in _READERS and file.is_file())
            if not inside:
                raise InputError(f"{path}: no proposal files ({', '.join(_READERS)}) in this folder")
            found.append(inside)
        elif not path.is_file():
            raise InputError(f"{path}: no such proposal file or folder")
        elif path.suffix not in _READERS:
            raise InputError(f"{path}: expected a proposal file ({', '.join(_READERS)})")
        else:
            found.append([path])
    return found


def _read_part(files: Iterable[Path], options: Options, on_malformed: OnProblem) -> _Part:
    part = _Part([], [])
    for path in files:
        with ReportTo(on_malformed):
            content, entries = _read_file(path, options)
            part.contents.append(content)
            part.images.extend((path, entry) for entry in entries)
    return part


def _read_file(path: Path, options: Options) -> tuple[Content, list[Entry]]:
    with decoding(path, expected := f"not a readable {path.suffix} file of proposals"):
        try:
            content = _READERS[path.suffix](path, options)
            entries = [Entry(*entry) for entry in content.entries]
            _refuse_fractions(entries)
            return content, entries
        except InputError as error:
            raise InputError(f"{path}: {expected} ({error})") from None


def _refuse_fractions(entries: Sequence[Entry]) -> None:
    """Raise InputError if all boxes are fractions of the image's sides, which would be read as its first pixel."""
    some = [entry.boxes for entry in entries if entry.boxes.size]
    within = all(boxes.dtype.kind == "f" and (np.abs(boxes) <= 1).all() for boxes in some)
    if within and any((boxes % 1).any() for boxes in some):
        raise InputError("all its boxes lie within the first pixel, as fractions of the image; expected pixels")


def _read_ids(path: Path) -> list[tuple[str, str]]:
    """Return the ids and file names, which may be "", in a text file of ids or a COCO annotation file."""
    if path.suffix == ".json":
        try:
            images = read_json_content(path)["images"]
            return [(str(image["id"]), str(image.get("file_name", ""))) for image in images]
        except (AttributeError, KeyError, TypeError):
            raise InputError(f"{path}: expected a COCO annotation file, with an id for each of images") from None
    with decoding(path, "not a readable text file of image ids"):
        return [(line.strip(), "") for line in read_bytes(path).decode("utf-8-sig").splitlines() if line.strip()]


def _match(
    part: _Part, sizes: Mapping[str, object] | None, names: Mapping[str, str] | None, on_problem: OnProblem
) -> tuple[list[str | None], list[str]]:
    """Return the image id of each entry, None if it is none of the images, and the names of these entries."""
    entries = [entry for _, entry in part.images]
    if sizes is None:
        return [entry.image_id for entry in entries], []
    by_id = [entry.image_id if entry.image_id in sizes else None for entry in entries]
    keys = [entry.file_name or entry.image_id for entry in entries]
    candidates = _by_file_name(keys, {image_id: name for image_id, name in (names or {}).items() if image_id in sizes})
    by_name = [images[0] if len(images) == 1 else None for images in candidates]
    if len(set(by_id)) - (None in by_id) >= len(set(by_name)) - (None in by_name):
        return by_id, [entry.image_id for entry, image_id in zip(entries, by_id, strict=True) if image_id is None]
    for (path, _), key, images in zip(part.images, keys, candidates, strict=True):
        if len(images) > 1:
            on_problem(InputError(f"{path}: {key!r} may be the file name of {_three(images)}"))
    return by_name, [key for key, image_id in zip(keys, by_name, strict=True) if image_id is None]


def _by_file_name(keys: Sequence[str], names: Mapping[str, str]) -> list[list[str]]:
    """Return, for each key, the ids of the images whose path, with or without its suffix, is the key or ends in it."""
    last: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for image_id, name in names.items():
        path = PurePosixPath(name)
        for end in {path, path.with_suffix("")}:
            last[end.name].append((image_id, f"/{end}"))
    found = []
    for key in map(PurePosixPath, keys):
        images = [image_id for image_id, path in last.get(key.name, ()) if path.endswith(f"/{key}")]
        found.append(list(dict.fromkeys(images)))
    return found


def checked_boxes(
    boxes: np.ndarray,
    size: tuple[int, int],
    max_boxes: int | None,
    where: str,
    on_problem: OnProblem,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """Return the valid boxes among the first `max_boxes`, clipped to the image: float32, or uint16 as in a shard.

    Problems name a box by its place in the file, which is `order` where it is not that in `boxes`.
    """
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
        on_problem(
            InputError(f"{where}: box {i if order is None else order[i]} is ({numbers}); expected {expected}, 0-based")
        )
    inside = np.clip(exact[good], 0, [width - 1, height - 1] * 2)  # at a fifth of the time of `ops.boxes.clip`
    return boxes if boxes.dtype == np.uint16 and np.array_equal(inside, exact) else inside.astype(np.float32)
