"""COCO's result files, and its metrics through pycocotools.

Boxes there are (x, y, width, height), 0-based, width = x2 - x1 + 1.
"""

import contextlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.metrics import ClassDetections

COCO_METRICS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_1", "AR_10", "AR_100", "AR_small", "AR_medium",
    "AR_large",
)  # fmt: skip


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
