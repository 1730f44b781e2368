"""Proposals in JSON files, and the detections of the package supervision in .json and .csv files.

What a file is follows from its names, never from its numbers:

| content | boxes | score |
|---|---|---|
| `[{"image_id", "bbox", "score"}]`, COCO results | (x, y, width, height) | `score` |
| `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "bbox"}]}`, COCO instances | the same | `score` |
| `[{"predicted_iou", "bbox", "segmentation"}]`, SAM's masks; the image is the file's stem | below | `predicted_iou` |
| `{"image": {"image_id", "file_name"}, "annotations": [..]}` with such masks, SA-1B | below | `predicted_iou` |
| rows with `x_min`, `y_min`, `x_max`, `y_max`, supervision's JSONSink and CSVSink | continuous | `confidence` |

SAM's bbox is (x, y, x of the last column - x, y of the last row - y). Records without a bbox may have a run-length
encoded mask, `segmentation`. Scores are optional, but not for a part of an image's boxes. A row of supervision names
its image in one of the fields IMAGE_FIELDS or in `image_id`.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.data.rle import rle_box
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_bytes
from frcnn_jax.proposals.entries import Content, Entry, Options, best_first, to_inclusive

IMAGE_FIELDS = ("file_name", "filename", "image_name", "image_path", "image")
_SIDES = ("x_min", "y_min", "x_max", "y_max")
_EXPECTED = (
    "expected COCO results [{image_id, bbox}], COCO instances {images, annotations}, SAM's masks "
    "[{predicted_iou, bbox}] or {image, annotations}, or supervision's rows [{x_min, y_min, x_max, y_max}]"
)


def read_json(path: Path, _: Options) -> Content:
    """Read a JSON file of one of the kinds in this module; malformed files raise errors of many kinds."""
    content = json.loads(read_bytes(path))
    if isinstance(content, dict) and isinstance(content.get("image"), dict):
        image = content["image"]
        file_name = image.get("file_name", "")
        key = _key(image.get("image_id", file_name), file_name, "image")
        return Content("SAM masks", _of_images(_records(content, "annotations"), lambda _: key, [key]))
    if isinstance(content, dict) and "images" in content:
        return Content("COCO instances", _instances(content))
    records = _records({"list": content}, "list") if isinstance(content, list) else []
    if content == [] or (records and "predicted_iou" in records[0]):  # SAM writes [] for an image without masks
        if any("image_id" in record for record in records):
            return Content("SAM masks", _of_images(records, lambda record: _key(record["image_id"], "", "image_id")))
        stem = (path.stem, "")
        return Content("SAM masks", _of_images(records, lambda _: stem, [stem]))
    if records and "image_id" in records[0]:
        return Content("COCO results", _of_images(records, lambda record: _key(record["image_id"], "", "image_id")))
    if records and "x_min" in records[0]:
        return Content("supervision detections", _of_images(records, _row_key))
    got = f"a list of records with {', '.join(map(repr, list(records[0])[:9]))}" if records else f"{str(content)[:60]}"
    raise InputError(f"{_EXPECTED}, got {got}")


def read_csv(path: Path, _: Options) -> Content:
    """Read the file of supervision's CSVSink; malformed files raise errors of many kinds."""
    with io.StringIO(read_bytes(path).decode("utf-8-sig"), newline="") as file:
        reader = csv.DictReader(file, strict=True)
        if not set(_SIDES) <= set(reader.fieldnames or ()):
            raise InputError(f"expected columns {', '.join(_SIDES)} of supervision, got {reader.fieldnames}")
        records = [
            {name: _number(text) if name in (*_SIDES, "confidence") else text for name, text in row.items()}
            for row in reader
        ]
    return Content("supervision detections", _of_images(records, _row_key))


def _number(text: Any) -> Any:
    try:
        return float(text)
    except (TypeError, ValueError):
        return text  # reported with its box


def _records(content: Mapping[str, Any], name: str) -> list[dict]:
    records = content.get(name)
    if not isinstance(records, list):
        raise InputError(f"{name} must be a list, got {str(records)[:60]}")
    for i, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(f"{name}: entry {i}: expected an object, got {str(record)[:60]}")
    return records


def _key(image_id: Any, file_name: Any, where: str) -> tuple[str, str]:
    """Return the id and the file name of an image as text."""
    if type(image_id) not in (int, str) or not isinstance(file_name, str) or image_id == "":
        got = f"{str(image_id)[:60]!r}" + (f" and {str(file_name)[:60]!r}" if file_name else "")
        raise InputError(f"{where}: expected an id, a number or a text, and a file name, got {got}")
    return str(image_id), file_name


def _instances(content: Mapping[str, Any]) -> Iterator[Entry]:
    keys: dict[str, tuple[str, str]] = {}
    for i, image in enumerate(_records(content, "images")):
        key = _key(image.get("id"), image.get("file_name", ""), f"image {i}")
        if keys.setdefault(key[0], key) is not key:
            raise InputError(f"image {i}: the id {key[0]!r} comes twice")
    records = _records(content, "annotations")
    for i, record in enumerate(records):
        if str(record.get("image_id")) not in keys:
            raise InputError(f"annotation {i}: no image has the id {str(record.get('image_id'))[:60]!r}")
    return _of_images(records, lambda record: keys[str(record["image_id"])], keys.values())


def _row_key(record: Mapping[str, Any]) -> tuple[str, str]:
    file_name = next((record[field] for field in IMAGE_FIELDS if field in record), "")
    if not file_name and "image_id" not in record:
        raise InputError(
            f"no field names the image: write it with custom_data={{'file_name': ..}}"
            f" (or {', '.join(IMAGE_FIELDS[1:])} or image_id)"
        )
    return _key(record.get("image_id", file_name), file_name, "image")


def _of_images(
    records: Iterable[Mapping[str, Any]],
    key_of: Callable[[Mapping[str, Any]], tuple[str, str]],
    keys: Iterable[tuple[str, str]] = (),
) -> Iterator[Entry]:
    """Yield the images of `keys`, even without boxes, and then others, in the order of the records."""
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {key: [] for key in keys}
    for i, record in enumerate(records):
        try:
            key = key_of(record)
        except KeyError as error:
            raise InputError(f"entry {i}: it has no {error}") from None
        except InputError as error:
            raise InputError(f"entry {i}: {error}") from None
        groups.setdefault(key, []).append(record)
    for (image_id, file_name), own in groups.items():
        rows, scores = [], []
        for i, record in enumerate(own):
            try:
                rows.append(_box(record))
                scores.append(_score(record))
            except InputError as error:
                raise InputError(f"image {image_id!r}: box {i}: {error}") from None
        boxes = to_inclusive(np.array(rows, np.float64).reshape(-1, 4), "xyxy")
        if all(score is None for score in scores):
            yield Entry(image_id, boxes, file_name)
        elif None in scores:
            raise InputError(f"image {image_id!r}: box {scores.index(None)}: it has no score, others have")
        else:
            yield best_first(image_id, boxes, scores, file_name)


def _box(record: Mapping[str, Any]) -> list[float]:
    """Return the corners of a record's box, x2 and y2 exclusive."""
    if "x_min" in record:
        return _four([record.get(side) for side in _SIDES])
    if "bbox" not in record:
        if "segmentation" not in record:
            raise InputError("it has neither bbox nor segmentation")
        return rle_box(record["segmentation"])
    x, y, width, height = _four(record["bbox"])
    more = "predicted_iou" in record  # SAM's ends at the corner of the last pixel that is nearer
    return [x, y, x + width + more, y + height + more]


def _four(numbers: Any) -> list[float]:
    if not isinstance(numbers, list) or [type(n) in (int, float) for n in numbers] != [True] * 4:
        raise InputError(f"expected a box of four numbers, got {str(numbers)[:60]}")
    return [_float(n) for n in numbers]


def _score(record: Mapping[str, Any]) -> float | None:
    name = next((name for name in ("predicted_iou", "score", "confidence") if name in record), "")
    value = record.get(name, "")
    if value == "":  # supervision's mark for none
        return None
    if type(value) not in (int, float) or value != value:
        raise InputError(f"expected a number as its {name}, got {str(value)[:60]}")
    return _float(value)


def _float(number: float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer; it is reported as a box outside the image
        return float("inf")
