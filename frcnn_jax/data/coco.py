"""COCO instances files.

Their boxes are (x, y, width, height), 0-based, with width = x2 - x1 + 1.
"""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np

from frcnn_jax.data.problems import OnProblem, ReportTo, stop
from frcnn_jax.data.records import (
    Dataset,
    ImageFile,
    Record,
    collect_records,
    image_path,
    make_record,
    read_image_size,
    turned_edges,
)
from frcnn_jax.data.rle import rle_box
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_json

Id = int | str
_ENOUGH = 5  # boxes, whose width and height are all greater than x and y, are no coincidence


def read_coco(
    annotations: str | Path,
    *,
    image_dir: str | Path,
    class_names: Sequence[str] = (),
    exif: str = "apply",
    find_image: Callable[[str], str] | None = None,
    on_problem: OnProblem = stop,
) -> Dataset:
    """Read a COCO instances file (`{"images": [..], "annotations": [..], "categories": [..]}`).

    Crowd regions, and objects with `ignore`, count as difficult. Boxes (x, y, width, height) become
    (x, y, x + width - 1, y + height - 1), at least one pixel wide and high; an object without one takes the outer box
    of its segmentation, one that CVAT has turned the box around it. A file that is listed as several images is one,
    with the objects of all. Images without width and height have those of their file. Ids may be integers or text: 7,
    7.0 and "7" are the same.

    Args:
        annotations: The JSON file.
        image_dir: The folder that its file names are relative to. Names are also found with backslashes, percent
            encoding, Unicode in another normal form, and without leading folders.
        class_names: The names of labels 1 to K; by default its categories, by ascending id.
        exif: See `load_image`.
        find_image: Returns the path of an image by its file name, or raises InputError; by default in `image_dir`.
        on_problem: Receives missing or repeated images, repeated annotations, unknown categories, and boxes that are
            empty or exceed the image by more than one pixel.

    Raises:
        InputError: The file is missing or not in this format, or its boxes are fractions of the image.
    """
    annotations = Path(annotations)
    content = read_json(annotations, object_hook=_without_segmentation)
    if isinstance(content, dict) and "images" in content and "annotations" not in content:
        raise InputError(f"{annotations}: it has images, but no annotations, which training and evaluation need")
    check_categories(content, annotations)
    try:
        pairs = [(coco_id(c["id"]), str(c["name"])) for c in content["categories"]]
        images = list(content["images"])
        numbers = [coco_id(image["id"]) for image in images]
        file_names = [image_name(image) for image in images]
        entries = [entry if type(entry) is dict else dict(entry) for entry in content["annotations"]]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{annotations}: not a COCO instances file ({type(error).__name__}: {error})") from None
    if entries and all("segments_info" in entry for entry in entries):
        raise InputError(f"{annotations}: a panoptic file, whose segments are masks; expected an instances file")
    categories = dict(sorted(pairs, key=lambda pair: id_order(pair[0])))
    for what, distinct in (("id", categories), ("name", {name for _, name in pairs})):
        if len(distinct) < len(pairs):
            raise InputError(f"{annotations}: two categories have the same {what}")
    _refuse_fractions(entries, annotations)
    class_names = tuple(class_names or categories.values())
    labels = {number: class_names.index(name) + 1 for number, name in categories.items() if name in class_names}
    owner = _first_of_file(file_names)
    order, bounds = _sort_by_image(entries, numbers, owner, annotations, on_problem)
    objects = _convert_objects(entries, order, bounds, images, labels, annotations)
    find = find_image or _image_finder(Path(image_dir))
    names_of_number = defaultdict(set)
    for number, name in zip(numbers, file_names, strict=True):
        names_of_number[number].add(str(name))
    taken: dict[str, str] = {}

    def read(i: int) -> Record:
        image, own = images[i], slice(*bounds[i : i + 2])
        where = f"{annotations}: image {image['id']}"
        if len(names := names_of_number[numbers[i]]) > 1:
            raise InputError(f"{where}: its id is that of several files: {', '.join(sorted(names))}")
        name, path, height, width = _name_and_size(image, where, find, exif)
        if taken.setdefault(path, name) != name:
            raise InputError(f"{where}: {name!r} and {taken[path]!r} are both found as {path}")
        load = ImageFile(path, (height, width), exif)
        if objects.usual[i]:
            arrays = objects.boxes[own], objects.labels[own], objects.difficult[own]
            return Record(str(numbers[i]), height, width, *arrays, load)
        read_objects = []
        for entry in (entries[j] for j in order[own]):
            with ReportTo(on_problem, f"{where} ({name}): annotation {entry.get('id')}"):
                read_objects.append(_read_object(entry, labels, height, width))
        return make_record(str(numbers[i]), height, width, read_objects, load)

    shown = [i for i, number in enumerate(numbers) if owner[i] == i or numbers[owner[i]] == number]
    readers = ((str(numbers[i]), partial(read, i)) for i in shown)
    return Dataset(class_names, collect_records(readers, annotations, on_problem))


def check_categories(content: Any, source: Path) -> None:
    """Raise InputError if a file of images has no categories."""
    if isinstance(content, dict) and "images" in content and "categories" not in content:
        raise InputError(f"{source}: it has images, but no categories, which name the classes")


def image_name(image: dict[str, Any]) -> Any:
    """Return the file name of an image, or else the address that ends in it; None if there is neither."""
    return image.get("file_name") or image.get("coco_url")


def coco_id(value: Any) -> Id:
    """Return an id as an integer if it is one, also as 7.0 or "7"; else as text.

    Raises:
        InputError: It is neither a whole number of 64 bits nor text: many larger ones may have one hash.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is int and -_LARGEST_ID <= value < _LARGEST_ID:
        return value
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"0|[1-9][0-9]{0,17}", value) else value
    raise InputError(f"an id must be a whole number of 64 bits or text, got {value!r:.60}")


_LARGEST_ID = 1 << 64


def id_order(value: Id) -> tuple:
    """Return the key that sorts ids: numbers first."""
    return isinstance(value, str), value


def is_crowd(value: Any) -> bool:
    """Return what an "iscrowd" says: a number, a truth value, text, or nothing."""
    return bool(value) if not isinstance(value, str) else value.strip().lower() not in ("", "0", "false", "no", "none")


def _is_ignored(entry: dict) -> bool:
    """Return whether an annotation is of several objects or, as MMDetection's `ignore` says, of none to count."""
    return is_crowd(entry.get("iscrowd")) or is_crowd(entry.get("ignore"))


def outer_box(segmentation: Any) -> list[float] | None:
    """Return the box (x, y, width, height) around polygons or a run-length encoded mask; None if it is neither."""
    with suppress(InputError, ValueError, TypeError, IndexError, OverflowError):
        if isinstance(segmentation, dict):
            x1, y1, x2, y2 = rle_box(segmentation)
            return [x1, y1, x2 - x1, y2 - y1]
        polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
        points = np.concatenate([np.asarray(polygon, float).reshape(-1, 2) for polygon in polygons])
        return [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).tolist()]
    return None


def _without_segmentation(found: dict[str, Any]) -> dict[str, Any]:
    """Drop an annotation's polygons as soon as they are read, two thirds of the memory, but for their outer box."""
    segmentation = found.pop("segmentation", None)
    if segmentation and not found.get("bbox"):
        found["bbox"] = outer_box(segmentation)
    return found


def _refuse_fractions(entries: Sequence[dict], source: Path) -> None:
    """Raise InputError if all boxes are fractions of the image's sides, which would be read as one pixel."""
    boxes = _usual_boxes(entries)
    with np.errstate(invalid="ignore", over="ignore"):
        if len(boxes) and (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all() and (boxes % 1).any():
            number = int((boxes % 1).any(axis=1).argmax())
            box = entries[number]["bbox"]
            raise InputError(f"{source}: annotation {number}: bbox {box} is a fraction of the image; expected pixels")


def _first_of_file(file_names: Sequence[Any]) -> list[int]:
    """Return for each image the index of the first one of its file."""
    first: dict[Any, int] = {}
    return [first.setdefault(n, i) if isinstance(n, str) else i for i, n in enumerate(file_names)]


def _sort_by_image(
    entries: Sequence[dict], numbers: Sequence[Id], owner: Sequence[int], source: Path, on_problem: OnProblem
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of annotations in the order of their images, and `(images + 1,)` bounds of each image's."""
    place = {number: owner[i] for i, number in reversed(list(enumerate(numbers)))}  # the first of a repeated image
    kept, places, seen = [], [], set()
    for i, entry in enumerate(entries):
        own, image_id = entry.get("id"), entry.get("image_id")  # both may have any type
        own = own if type(own) is int and -_LARGEST_ID <= own < _LARGEST_ID else repr(own)
        if type(image_id) is not int:
            with suppress(InputError):
                image_id = coco_id(image_id)
        if not isinstance(image_id, Id) or image_id not in place:
            on_problem(InputError(f"{source}: annotation {i}: no image has the id {image_id!r}"))
        elif own in seen:
            on_problem(InputError(f"{source}: annotation {i}: its id {own} is used twice"))
        else:
            kept.append(i)
            places.append(place[image_id])
            if own != "None":
                seen.add(own)
    owners, bounds = np.array(places, int), np.zeros(len(numbers) + 1, int)
    np.cumsum(np.bincount(owners, minlength=len(numbers)), out=bounds[1:])
    return np.array(kept, int)[np.argsort(owners, kind="stable")], bounds


class _Objects(NamedTuple):
    """Arrays of all objects, sorted by image."""

    boxes: np.ndarray  # (M, 4) float32
    labels: np.ndarray  # (M,) int32
    difficult: np.ndarray  # (M,) bool
    usual: list[bool]  # per image: whether its objects stand in the arrays; `_read_object` reads all others


def _convert_objects(
    entries: Sequence[dict],
    order: np.ndarray,
    bounds: np.ndarray,
    images: Sequence[dict],
    labels: dict[Id, int],
    source: Path,
) -> _Objects:
    """Convert all objects at once; what is unusual, or wrong, is left to `_read_object`.

    Raises:
        InputError: The boxes are (x1, y1, x2, y2).
    """

    def usual_label(category: Any) -> int:
        return labels.get(category, 0) if type(category) in (int, str) else 0

    label = _column(entries, "category_id", usual_label, np.int32)[order]
    difficult = np.fromiter(map(_is_ignored, entries), bool, len(entries))[order]
    x, y, w, h = _usual_boxes(entries)[order].T
    image = np.repeat(np.arange(len(images)), np.diff(bounds))
    height, width = (_column(images, side, _usual_side, float)[image] for side in ("height", "width"))
    with np.errstate(invalid="ignore", over="ignore"):
        inside = _is_inside(x, y, w, h, height, width)
        if len(x) >= _ENOUGH and (~inside).sum() > 1 and _are_corners(x, y, w, h, height, width).all():
            box = entries[order[int(inside.argmin())]]["bbox"]
            raise InputError(
                f"{source}: bbox {box}, as all others, seems to be x1, y1, x2, y2; expected x, y, width, height"
            )
        bad = (label == 0) | ~inside | _is_fraction(x, y, w, h)
        boxes = np.stack(_corners(x, y, w, h, height, width), axis=1).astype(np.float32)
    return _Objects(boxes, label, difficult, (np.bincount(image[bad], minlength=len(images)) == 0).tolist())


def _column(rows: Sequence[dict], name: str, convert: Callable[[Any], Any], dtype: type) -> np.ndarray:
    return np.fromiter((convert(row.get(name)) for row in rows), dtype, len(rows))


def _usual_boxes(entries: Sequence[dict]) -> np.ndarray:
    """Return `(M, 4)` boxes as they stand in the file, NaN where they are not four numbers or are turned."""
    found = [None if _rotation(entry) else entry.get("bbox") for entry in entries]
    rows = [box if type(box) is list and len(box) == 4 else (np.nan,) * 4 for box in found]
    try:
        return np.fromiter(chain.from_iterable(rows), float, 4 * len(rows)).reshape(-1, 4)
    except (TypeError, ValueError, OverflowError):
        return np.full((len(rows), 4), np.nan)


def _rotation(entry: dict) -> Any:
    """Return by how many degrees CVAT says that a box is turned about its centre."""
    attributes = entry.get("attributes")
    return attributes.get("rotation") if type(attributes) is dict else None


def _usual_side(value: Any) -> int:
    return value if type(value) is int and 0 < value < 2**31 else 0


def _is_inside(x: Any, y: Any, w: Any, h: Any, height: Any, width: Any) -> Any:
    """Return whether boxes, arrays or numbers, exceed their image by at most one pixel, and none is empty."""
    return (w > 0) & (h > 0) & (x >= -1) & (y >= -1) & (x + w <= width + 1) & (y + h <= height + 1)


def _are_corners(x: Any, y: Any, w: Any, h: Any, height: Any, width: Any) -> Any:
    """Return whether boxes are within their image if they are (x1, y1, x2, y2)."""
    return (x >= -1) & (y >= -1) & (x < w) & (y < h) & (w <= width + 1) & (h <= height + 1)


def _is_fraction(x: Any, y: Any, w: Any, h: Any) -> Any:
    """Return whether boxes, arrays or numbers, lie within the first pixel: they are in fractions of the image."""
    return (x + w <= 1) & (y + h <= 1) & (w < 1) & (h < 1)


def _corners(x: Any, y: Any, w: Any, h: Any, height: Any, width: Any) -> tuple[Any, Any, Any, Any]:
    """Return the inclusive corners (x1, y1, x2, y2) of boxes, arrays or numbers, clipped to their image."""
    x1, y1 = np.minimum(np.maximum(x, 0), width - 1), np.minimum(np.maximum(y, 0), height - 1)
    x2, y2 = (np.maximum(last, first) for last, first in ((x + w - 1, x1), (y + h - 1, y1)))
    return x1, y1, np.minimum(x2, width - 1), np.minimum(y2, height - 1)


def _image_finder(folder: Path) -> Callable[[str], str]:
    """Return `image_path` of a folder, which it lists once instead of asking for each file."""
    try:
        with os.scandir(folder) as listed:
            present = {entry.name for entry in listed if entry.is_file()}
    except OSError:  # image_path says why
        present = set()
    prefix = str(folder / "_")[:-1]

    def find(name: str) -> str:
        if name in present:
            return f"{prefix}{name}"
        try:
            return str(image_path(folder, name))
        except InputError:
            parts = PurePosixPath(name.replace("\\", "/")).parts
            if ".." in parts or "/" in parts:
                raise
            for spelled in _spellings(name):
                with suppress(OSError):
                    if spelled in present or (folder / spelled).is_file():
                        return f"{prefix}{spelled}"
            raise

    return find


def _spellings(name: str) -> Iterator[str]:
    """Yield what a file may be called that an annotation names: with backslashes, percent encoding, leading folders."""
    slashes = name.replace("\\", "/")
    spelled = [PurePosixPath(text).parts for text in dict.fromkeys((slashes, unquote(slashes)))]
    for start in range(max(map(len, spelled))):
        for parts in spelled:
            if parts[start:] and not {"..", "/"} & set(parts[start:]):
                yield from (unicodedata.normalize(form, "/".join(parts[start:])) for form in ("NFC", "NFD"))


def _name_and_size(image: dict, where: str, find: Callable[[str], str], exif: str) -> tuple[str, str, int, int]:
    """Return the name, path, height and width of an image."""
    name, height, width = image_name(image), image.get("height"), image.get("width")
    if not isinstance(name, str):
        raise InputError(f"{where}: file_name must be a string, got {name!r}")
    path = find(name)
    if not height and not width:
        return name, path, *read_image_size(path, exif=exif)
    with suppress(InputError):
        height, width = coco_id(height), coco_id(width)
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise InputError(f"{where}: height and width must be positive integers, got {height!r} and {width!r}")
    return name, path, height, width


def _read_object(entry: dict, labels: dict[Id, int], height: int, width: int) -> tuple[tuple, int, bool]:
    category = entry.get("category_id")
    with suppress(InputError):
        category = coco_id(category)
    if not isinstance(category, Id) or category not in labels:
        raise InputError(f"unknown category {category!r}; the categories are {', '.join(map(str, labels))}")
    box = entry.get("bbox")
    try:
        x, y, w, h = map(float, box)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"bbox must be four numbers, got {box!r}") from None
    if degrees := _rotation(entry):
        if not (isinstance(degrees, int | float) and abs(degrees) < 1e9):
            raise InputError(f"rotation must be a number, got {degrees!r:.80}")
        left, top, right, bottom = turned_edges((x, y, x + w, y + h), degrees, height, width)
        x, y, w, h = left, top, right - left, bottom - top
    if not _is_inside(x, y, w, h, height, width):
        raise InputError(f"bbox {box}: expected x, y, width > 0, height > 0 within the {width} x {height} image")
    if _is_fraction(x, y, w, h):
        raise InputError(f"bbox {box}: it seems to be a fraction of the image's sides; expected pixels")
    sides = min(height, 2**63), min(width, 2**63)  # NumPy takes no integer beyond the range of float
    return _corners(x, y, w, h, *sides), labels[category], _is_ignored(entry)
