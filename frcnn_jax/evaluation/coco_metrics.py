"""COCO result files, and COCO metrics from pycocotools.

COCO boxes are (x, y, width, height), 0-based, with width = x2 - x1 + 1 and height = y2 - y1 + 1.
"""

import contextlib
import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.metrics import ClassDetections

COCO_METRICS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium",
    "AR_large",
)  # fmt: skip


def coco_box(box: np.ndarray) -> list[float]:
    """Return an inclusive box as (x, y, width, height)."""
    x1, y1, x2, y2 = (float(side) for side in box)
    return [x1, y1, x2 - x1 + 1, y2 - y1 + 1]


def coco_ground_truth(dataset: Dataset) -> dict[str, Any]:
    """Return a data set as the content of a COCO instances file.

    Images are numbered from 1; category ids are the labels. Difficult objects become crowds, so pycocotools ignores
    them and the detections on them.
    """
    annotations: list[dict[str, Any]] = []
    for i, record in enumerate(dataset.records, 1):
        for box, label, difficult in zip(record.boxes, record.labels, record.difficult, strict=True):
            bbox = coco_box(box)
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
    """Return detections as the content of a COCO result file.

    Args:
        detections: K detections, one `ClassDetections` per class.
        image_ids: COCO image id of each image of the split.
        category_ids: K COCO category ids.
    """
    return [
        {"image_id": image_ids[image], "category_id": category, "bbox": coco_box(box), "score": float(score)}
        for category, found in zip(category_ids, detections, strict=True)
        for image, score, box in zip(found.image, found.scores, found.boxes, strict=True)
    ]


def _checked(
    kind: str, entries: Sequence[dict[str, Any]], images: Collection[Any], categories: Collection[Any]
) -> Iterator[dict[str, Any]]:
    """Yield the checked entries with the fields that pycocotools needs; only a "result" has a score."""
    if not isinstance(entries, Sequence):
        raise InputError(f"expected a list of {kind}s, got {entries!r:.60}")
    for i, entry in enumerate(entries):
        try:
            x, y, width, height = bbox = [float(side) for side in entry["bbox"]]
            score = float(entry["score"]) if kind == "result" else 0.0
            known = entry["image_id"] in images and entry["category_id"] in categories
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            fields = "image_id, category_id, bbox" + (" and score" if kind == "result" else "")
            raise InputError(f"{kind} {i}: expected {fields} ({error!r})") from None
        if not known:
            raise InputError(f"{kind} {i}: unknown image {entry['image_id']!r} or category {entry['category_id']!r}")
        if not np.isfinite([x, y, width, height, score]).all():
            raise InputError(f"{kind} {i}: bbox {entry['bbox']} or score {entry.get('score')} is not finite")
        added = {"bbox": bbox, "area": width * height, "id": i + 1, "iscrowd": 0}
        yield {**entry, **added, "score": score} if kind == "result" else {**added, **entry}


def coco_metrics(
    truth: dict[str, Any], results: Sequence[dict[str, Any]]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Compute the COCO metrics of a result file with pycocotools.

    AP is the mean precision at 101 recalls. IoU is computed from (x, y, width, height), without the +1 of VOC.

    Ties are not broken as in VOC: equal scores rank by image id, then in the order given. An object that has been
    hit is matched no more, so each of two identical objects can be hit, the last one first; a crowd is matched only if
    no other object is.

    Args:
        truth: The content of an instances file.
        results: The content of a result file.

    Returns:
        The twelve COCO_METRICS, in [0, 1], and AP at IoU 0.5 by category name; None for a value without any object.

    Raises:
        InputError: `pycocotools` is not installed, or the content is not that of such files.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise InputError("COCO metrics need the package pycocotools: pip install 'frcnn_jax[coco]'") from None
    try:
        images = {image["id"] for image in truth["images"]}
        names = {category["id"]: str(category["name"]) for category in truth["categories"]}
        annotations = truth["annotations"]
    except (TypeError, KeyError) as error:
        raise InputError(f"not a COCO instances file ({error!r})") from None
    objects, found = COCO(), COCO()
    objects.dataset = {**truth, "annotations": list(_checked("annotation", annotations, images, names))}
    found.dataset = {**truth, "annotations": list(_checked("result", results, images, names))}
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        objects.createIndex()
        found.createIndex()
        evaluation = COCOeval(objects, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][0, :, :, 0, 2]  # IoU 0.5, all areas, 100 detections: (recalls, categories)
    aps = {names[category]: precision[:, k].mean() for k, category in enumerate(evaluation.params.catIds)}
    return _none_below_0(dict(zip(COCO_METRICS, evaluation.stats, strict=True))), _none_below_0(aps)


def _none_below_0(values: Mapping[str, float]) -> dict[str, float | None]:
    """Replace -1, by which pycocotools marks a missing value, with None."""
    return {name: None if value < 0 else value for name, value in values.items()}
