"""COCO instances files.

Their boxes are (x, y, width, height), 0-based, with width = x2 - x1 + 1.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from frcnn_jax.data.problems import OnProblem, ReportTo, stop
from frcnn_jax.data.records import Dataset, ImageFile, Record, collect_records, image_path, make_record
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_json


def read_coco(
    annotations: str | Path,
    *,
    image_dir: str | Path,
    class_names: Sequence[str] = (),
    on_problem: OnProblem = stop,
) -> Dataset:
    """Read a COCO instances file (`{"images": [..], "annotations": [..], "categories": [..]}`).

    Crowd regions count as difficult. Boxes (x, y, width, height) become (x, y, x + width - 1, y + height - 1), at least
    one pixel wide and high.

    Args:
        annotations: The JSON file.
        image_dir: The folder that its file names are relative to.
        class_names: The names of labels 1 to K; by default its categories, by ascending id.
        on_problem: Receives missing or repeated images, repeated annotations, unknown categories, and boxes that are
            empty or exceed the image by more than one pixel.

    Raises:
        InputError: The file is missing or not in this format.
    """
    annotations = Path(annotations)
    content = read_json(annotations, object_hook=_without_segmentation)
    try:
        categories = {int(c["id"]): str(c["name"]) for c in sorted(content["categories"], key=lambda c: int(c["id"]))}
        images = list(content["images"])
        numbers = [int(image["id"]) for image in images]
        entries = [entry if type(entry) is dict else dict(entry) for entry in content["annotations"]]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{annotations}: not a COCO instances file ({type(error).__name__}: {error})") from None
    for what, values in (("id", [c["id"] for c in content["categories"]]), ("name", list(categories.values()))):
        if len(set(values)) < len(values):
            raise InputError(f"{annotations}: two categories have the same {what}")
    class_names = tuple(class_names or categories.values())
    labels = {number: class_names.index(name) + 1 for number, name in categories.items() if name in class_names}
    order, bounds = _sort_by_image(entries, numbers, annotations, on_problem)
    objects = _convert_objects(entries, order, bounds, images, labels)
    find = _image_finder(Path(image_dir))

    def read(i: int) -> Record:
        image, own = images[i], slice(*bounds[i : i + 2])
        where = f"{annotations}: image {image['id']}"
        name, height, width = _name_and_size(image, where)
        load = ImageFile(find(name), (height, width))
        if objects.usual[i]:
            arrays = objects.boxes[own], objects.labels[own], objects.difficult[own]
            return Record(str(numbers[i]), height, width, *arrays, load)
        read_objects = []
        for entry in (entries[j] for j in order[own]):
            with ReportTo(on_problem, f"{where} ({name}): annotation {entry.get('id')}"):
                read_objects.append(_read_object(entry, labels, height, width))
        return make_record(str(numbers[i]), height, width, read_objects, load)

    readers = ((str(number), partial(read, i)) for i, number in enumerate(numbers))
    return Dataset(class_names, collect_records(readers, annotations, on_problem))


def _without_segmentation(found: dict[str, Any]) -> dict[str, Any]:
    """Drop an annotation's polygons as soon as they are read: two thirds of the memory."""
    found.pop("segmentation", None)
    return found


def _sort_by_image(
    entries: Sequence[dict], numbers: Sequence[int], source: Path, on_problem: OnProblem
) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of annotations in the order of their images, and `(images + 1,)` bounds of each image's."""
    place = {number: i for i, number in reversed(list(enumerate(numbers)))}  # the first of a repeated image
    kept, places, seen = [], [], set()
    for i, entry in enumerate(entries):
        own, image_id = entry.get("id"), entry.get("image_id")  # both may have any type
        own = own if type(own) is int else repr(own)
        if not isinstance(image_id, int) or image_id not in place:
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
    entries: Sequence[dict], order: np.ndarray, bounds: np.ndarray, images: Sequence[dict], labels: dict[int, int]
) -> _Objects:
    """Convert all objects at once; what is unusual, or wrong, is left to `_read_object`."""

    def usual_label(category: Any) -> int:
        return labels.get(category, 0) if type(category) is int else 0

    label = _column(entries, "category_id", usual_label, np.int32)[order]
    difficult = _column(entries, "iscrowd", bool, bool)[order]
    x, y, w, h = _usual_boxes(entries)[order].T
    image = np.repeat(np.arange(len(images)), np.diff(bounds))
    height, width = (_column(images, side, _usual_side, float)[image] for side in ("height", "width"))
    with np.errstate(invalid="ignore", over="ignore"):
        bad = (label == 0) | ~_is_inside(x, y, w, h, height, width)
        boxes = np.stack(_corners(x, y, w, h, height, width), axis=1).astype(np.float32)
    return _Objects(boxes, label, difficult, (np.bincount(image[bad], minlength=len(images)) == 0).tolist())


def _column(rows: Sequence[dict], name: str, convert: Callable[[Any], Any], dtype: type) -> np.ndarray:
    return np.fromiter((convert(row.get(name)) for row in rows), dtype, len(rows))


def _usual_boxes(entries: Sequence[dict]) -> np.ndarray:
    """Return `(M, 4)` boxes as they stand in the file, NaN where they are not four numbers."""
    found = [entry.get("bbox") for entry in entries]
    rows = [box if type(box) is list and len(box) == 4 else (np.nan,) * 4 for box in found]
    try:
        return np.fromiter(chain.from_iterable(rows), float, 4 * len(rows)).reshape(-1, 4)
    except (TypeError, ValueError, OverflowError):
        return np.full((len(rows), 4), np.nan)


def _usual_side(value: Any) -> int:
    return value if type(value) is int and 0 < value < 2**31 else 0


def _is_inside(x: Any, y: Any, w: Any, h: Any, height: Any, width: Any) -> Any:
    """Return whether boxes, arrays or numbers, exceed their image by at most one pixel, and none is empty."""
    return (w > 0) & (h > 0) & (x >= -1) & (y >= -1) & (x + w <= width + 1) & (y + h <= height + 1)


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
    return lambda name: f"{prefix}{name}" if name in present else str(image_path(folder, name))


def _name_and_size(image: dict, where: str) -> tuple[str, int, int]:
    name, height, width = image.get("file_name"), image.get("height"), image.get("width")
    if not isinstance(name, str):
        raise InputError(f"{where}: file_name must be a string, got {name!r}")
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise InputError(f"{where}: height and width must be positive integers, got {height!r} and {width!r}")
    return name, height, width


def _read_object(entry: dict, labels: dict[int, int], height: int, width: int) -> tuple[tuple, int, bool]:
    category = entry.get("category_id")
    if not isinstance(category, int) or category not in labels:
        raise InputError(f"unknown category {category!r}; the categories are {', '.join(map(str, labels))}")
    box = entry.get("bbox")
    try:
        x, y, w, h = map(float, box)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"bbox must be four numbers, got {box!r}") from None
    if not _is_inside(x, y, w, h, height, width):
        raise InputError(f"bbox {box}: expected x, y, width > 0, height > 0 within the {width} x {height} image")
    sides = min(height, 2**63), min(width, 2**63)  # NumPy takes no integer beyond the range of float
    return _corners(x, y, w, h, *sides), labels[category], bool(entry.get("iscrowd", 0))
