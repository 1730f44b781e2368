"""COCO: its instances files, its result files, and its metrics through pycocotools.

Boxes there are (x, y, width, height), 0-based, width = x2 - x1 + 1.
"""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.datasets import Dataset, Record, leaves_folder, make_record, stop, why_no_image
from frcnn_jax.errors import InputError
from frcnn_jax.metrics import ClassDetections

COCO_METRICS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium",
    "AR_large",
)  # fmt: skip


def read_json(path: Path) -> Any:
    """The content of a JSON file. InputError where there is none."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None


def read_coco(
    annotations: Path,
    image_dir: Path,
    class_names: Sequence[str] = (),
    on_problem: Callable[[InputError], None] = stop,
) -> Dataset:
    """A COCO instances file (`{"images": [..], "annotations": [..], "categories": [..]}`).

    A crowd region counts as difficult. Boxes (x, y, width, height) become (x, y, x + width - 1, y + height - 1), one
    pixel wide at least.

    Args:
        annotations: the JSON file.
        image_dir: where its file_names are.
        class_names: of labels 1 to K; empty for its categories, in the order of their ids.
        on_problem: gets a missing or doubled image, a doubled annotation, an unknown category, a box of no size or over
            the image's edge by more than a pixel.

    Raises:
        InputError: the file is missing, or not of this form.
    """
    content = read_json(annotations)
    try:
        categories = {int(c["id"]): str(c["name"]) for c in sorted(content["categories"], key=lambda c: int(c["id"]))}
        objects: dict[int, list[dict]] = {int(image["id"]): [] for image in content["images"]}
        entries = [dict(entry) for entry in content["annotations"]]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(f"{annotations}: not a COCO instances file ({type(error).__name__}: {error})") from None
    for what, values in (("id", [c["id"] for c in content["categories"]]), ("name", list(categories.values()))):
        if len(set(values)) < len(values):
            raise InputError(f"{annotations}: two categories have the same {what}")
    class_names = tuple(class_names or categories.values())
    labels = {number: class_names.index(name) + 1 for number, name in categories.items() if name in class_names}
    ids = set()
    for i, entry in enumerate(entries):
        own = repr(entry.get("id"))  # what stands there may be of any type
        if not isinstance(entry.get("image_id"), int) or entry["image_id"] not in objects:
            on_problem(InputError(f"{annotations}: annotation {i}: no image of id {entry.get('image_id')!r}"))
        elif own in ids:
            on_problem(InputError(f"{annotations}: annotation {i}: the id {own} is there twice"))
        else:
            objects[entry["image_id"]].append(entry)
        ids |= {own} - {"None"}
    records, seen = [], set()
    for image in content["images"]:
        try:
            number = int(image["id"])
            if number in seen:
                raise InputError(f"{annotations}: the image {number} is there twice")
            seen.add(number)
            records.append(_coco_record(image, objects[number], labels, Path(image_dir), annotations, on_problem))
        except InputError as problem:
            on_problem(problem)
    return Dataset(class_names, records)


def _coco_record(
    image: dict,
    entries: Sequence[dict],
    labels: dict[int, int],
    image_dir: Path,
    source: Path,
    on_problem: Callable[[InputError], None],
) -> Record:
    name, height, width = image.get("file_name"), image.get("height"), image.get("width")
    where = f"{source}: image {image['id']}"
    if not isinstance(name, str) or leaves_folder(name):
        raise InputError(f"{where}: file_name must be a path within the folder, got {name!r}")
    if not (isinstance(height, int) and isinstance(width, int) and min(height, width) > 0):
        raise InputError(f"{where}: height and width must be whole numbers over 0, got {height!r} and {width!r}")
    if reason := why_no_image(image_dir / name):
        raise InputError(f"{image_dir / name}: {reason} (named by {source})")
    objects = []
    for entry in entries:
        try:
            objects.append(_coco_object(entry, labels, height, width))
        except InputError as problem:
            on_problem(InputError(f"{where} ({name}): annotation {entry.get('id')}: {problem}"))
    return make_record(str(image["id"]), height, width, objects, image_dir / name)


def _coco_object(entry: dict, labels: dict[int, int], height: int, width: int) -> tuple[list[float], int, bool]:
    category = entry.get("category_id")
    if not isinstance(category, int) or category not in labels:
        raise InputError(f"unknown category {category!r}; the categories are {', '.join(map(str, labels))}")
    box = entry.get("bbox")
    try:
        x, y, w, h = map(float, box)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"bbox must be four numbers, got {box!r}") from None
    if not (w > 0 and h > 0 and x >= -1 and y >= -1 and x + w <= width + 1 and y + h <= height + 1):
        raise InputError(f"bbox {box}: x, y, width > 0, height > 0 within the {width} x {height} image expected")
    x1, y1 = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    x2, y2 = min(max(x + w - 1, x1), width - 1), min(max(y + h - 1, y1), height - 1)
    return [x1, y1, x2, y2], labels[category], bool(entry.get("iscrowd", 0))


def _coco_box(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = (float(side) for side in box)
    return [x1, y1, x2 - x1 + 1, y2 - y1 + 1]


def coco_ground_truth(dataset: Dataset) -> dict[str, Any]:
    """The set as the content of an instances file: images are numbered from 1, categories are our labels, difficult
    objects are crowds, which COCO neither counts nor holds against."""
    annotations: list[dict[str, Any]] = []
    for i, record in enumerate(dataset.records, 1):
        for box, label, difficult in zip(record.boxes, record.labels, record.difficult, strict=True):
            bbox = _coco_box(box)
            entry = {"image_id": i, "category_id": int(label), "bbox": bbox, "area": bbox[2] * bbox[3]}
            annotations.append({"id": len(annotations) + 1, "iscrowd": int(difficult), **entry})
    return {
        "images": [{"id": i, "width": r.width, "height": r.height} for i, r in enumerate(dataset.records, 1)],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(dataset.class_names, 1)],
    }


def coco_results(
    detections: Sequence[ClassDetections], image_ids: Sequence[int], category_ids: Sequence[int]
) -> list[dict[str, Any]]:
    """The detections by class as the content of a result file, for images and classes of these ids, in their order."""
    return [
        {"image_id": image_ids[image], "category_id": category, "bbox": _coco_box(box), "score": float(score)}
        for category, found in zip(category_ids, detections, strict=True)
        for image, score, box in zip(found.image, found.scores, found.boxes, strict=True)
    ]


def coco_metrics(
    truth: dict[str, Any], results: Sequence[dict[str, Any]]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """COCO's metrics, by pycocotools.

    Args:
        truth: the content of an instances file.
        results: that of a result file.

    Returns:
        the twelve of COCO_METRICS, and by category its AP at IoU 0.5; None where nothing is counted. AP is the mean
        precision at 101 recalls; boxes are (x, y, width, height), without the +1 of VOC.

    Raises:
        InputError: pycocotools is missing, or a result is not of an image and a category of `truth`.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise InputError("COCO's metrics need the package pycocotools: pip install 'frcnn_jax[coco]'") from None
    try:
        images, categories = ({entry["id"] for entry in truth[name]} for name in ("images", "categories"))
        truth["annotations"]
    except (TypeError, KeyError) as error:
        raise InputError(f"the annotations are not those of a COCO instances file ({error!r})") from None
    try:
        for i, entry in enumerate(results):
            if entry["image_id"] not in images or entry["category_id"] not in categories:
                raise InputError(f"result {i}: no image {entry['image_id']!r} or category {entry['category_id']!r}")
        found = []
        for i, entry in enumerate(results, 1):
            x, y, width, height = map(float, entry["bbox"])
            score = float(entry["score"])
            if not np.isfinite([x, y, width, height, score]).all():
                raise InputError(f"result {i - 1}: bbox {entry['bbox']} or score {entry['score']} is not finite")
            box = {"bbox": [x, y, width, height], "area": width * height, "score": score}
            found.append({**entry, **box, "id": i, "iscrowd": 0})
        names = {entry["id"]: str(entry["name"]) for entry in truth["categories"]}
        objects = []
        for i, entry in enumerate(truth["annotations"], 1):
            area = float(entry["bbox"][2]) * float(entry["bbox"][3])
            objects.append({"iscrowd": 0, "area": area, "id": i, **entry})
            if entry["image_id"] not in images or entry["category_id"] not in categories:
                raise InputError(
                    f"annotation {i - 1}: no image {entry['image_id']!r} or category {entry['category_id']!r}"
                )
    except (TypeError, KeyError, ValueError, IndexError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        expected = (
            "results must be image_id, category_id, bbox and score each, annotations image_id, category_id and bbox"
        )
        raise InputError(f"{expected} ({error!r})") from None
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        ours, theirs = COCO(), COCO()
        ours.dataset, theirs.dataset = {**truth, "annotations": found}, {**truth, "annotations": objects}
        ours.createIndex()
        theirs.createIndex()
        evaluation = COCOeval(theirs, ours, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = {name: None if v < 0 else float(v) for name, v in zip(COCO_METRICS, evaluation.stats, strict=True)}
    precision = evaluation.eval["precision"][0, :, :, 0, 2]  # IoU 0.5, all areas, 100 detections: (recalls, categories)
    means = {names[number]: precision[:, k].mean() for k, number in enumerate(evaluation.params.catIds)}
    return stats, {name: None if mean < 0 else float(mean) for name, mean in means.items()}
