"""COCO result files, and COCO metrics from pycocotools.

COCO boxes are (x, y, width, height), 0-based, with width = x2 - x1 + 1 and height = y2 - y1 + 1.
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from frcnn_jax.data.coco import Id, coco_id, id_order, is_crowd, outer_box
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.files import decoding

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
    kind: str, entries: Sequence[dict[str, Any]], images: Mapping[Id, int], categories: Mapping[Id, int]
) -> Iterator[dict[str, Any]]:
    """Yield the checked entries with the fields that pycocotools needs and no other; only a "result" has a score.

    Entries are numbered from 1, as pycocotools takes the number 0 for no match. A result has its whole box as area.
    """
    if not isinstance(entries, Sequence):
        raise InputError(f"expected a list of {kind}s, got {entries!r:.60}")
    for i, entry in enumerate(entries):
        try:
            box: Any = entry.get("bbox") or outer_box(entry.get("segmentation"))
            x, y, width, height = bbox = [float(side) for side in box]
            score = float(entry["score"]) if kind == "result" else 0.0
            image, category = coco_id(entry["image_id"]), coco_id(entry["category_id"])
            own_area = float(entry.get("area") or 0) if kind == "annotation" else 0.0
        except (TypeError, KeyError, ValueError, OverflowError, AttributeError) as error:
            fields = "image_id, category_id, bbox" + (" and score" if kind == "result" else "")
            raise InputError(f"{kind} {i}: expected {fields} ({error!r:.80})") from None
        if image not in images or category not in categories:
            raise InputError(f"{kind} {i}: unknown image {entry['image_id']!r} or category {entry['category_id']!r}")
        if not np.isfinite([x, y, width, height, score, own_area]).all():
            more = f"score {entry['score']}" if kind == "result" else f"area {entry.get('area')}"
            raise InputError(f"{kind} {i}: bbox {entry.get('bbox')} or {more} is not finite")
        found = {"id": i + 1, "image_id": images[image], "category_id": categories[category], "bbox": bbox}
        found |= {"area": own_area if own_area > 0 else width * height, "score": score}
        yield {**found, "iscrowd": int(kind == "annotation" and is_crowd(entry.get("iscrowd")))}


def _ranks(kind: str, entries: Sequence[dict[str, Any]]) -> dict[Id, int]:
    """Number the ids of images or categories from 1 in their order, by which pycocotools breaks ties."""
    normal = sorted((coco_id(entry["id"]) for entry in entries), key=id_order)
    if twice := [own for own, following in pairwise(normal) if own == following]:
        raise InputError(f"{kind} {twice[0]!r} is listed twice")
    return {own: i for i, own in enumerate(normal, 1)}


def coco_metrics(
    truth: dict[str, Any], results: Sequence[dict[str, Any]], *, truth_name: str = "", results_name: str = ""
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Compute the COCO metrics of a result file with pycocotools.

    AP is the mean precision at 101 recalls. IoU is computed from (x, y, width, height), without the +1 of VOC.

    Ties are not broken as in VOC: equal scores rank by image id, then in the order given. An object that has been
    hit is matched no more, so each of two identical objects can be hit, the last one first; a crowd is matched only if
    no other object is.

    Args:
        truth: The content of an instances file.
        results: The content of a result file.
        truth_name, results_name: Names of the two files, for messages.

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
    objects, found = COCO(), COCO()
    with decoding(truth_name or "ground truth", "not a COCO instances file"):
        images, categories = _ranks("image", truth["images"]), _ranks("category", truth["categories"])
        names = {categories[coco_id(category["id"])]: str(category["name"]) for category in truth["categories"]}
        annotations = list(_checked("annotation", truth["annotations"], images, categories))
    with decoding(results_name or "results", "not a COCO result file"):
        detections = list(_checked("result", results, images, categories))
    ranked = {"images": [{"id": i} for i in images.values()], "categories": [{"id": i} for i in names]}
    objects.dataset, found.dataset = {**ranked, "annotations": annotations}, {**ranked, "annotations": detections}
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
