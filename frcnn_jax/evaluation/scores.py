"""Scores of detections in a split by the VOC protocol, for detections from any source.

Detections are one `ClassDetections` per class, in the order of `Dataset.class_names`. Difficult objects are excluded
in `metrics.match`.

Shape letters: G ground-truth boxes of one class and image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from frcnn_jax.data.records import Dataset
from frcnn_jax.evaluation.metrics import (
    ClassDetections,
    Curve,
    average_precision,
    mean_average_precision,
    precision_recall,
)


def class_objects(dataset: Dataset, label: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the objects of one class, difficult ones included.

    Args:
        dataset: The split.
        label: The class, 1 to K.

    Returns:
        `(G, 4)` boxes and `(G,)` bool "difficult" flags, per image of the split.
    """
    own = [(record, record.labels == label) for record in dataset.records]
    return [record.boxes[m] for record, m in own], [record.difficult[m] for record, m in own]


def score(
    detections: Sequence[ClassDetections],
    dataset: Dataset,
    *,
    metric: str = "voc07_11point",
    iou_threshold: float = 0.5,
) -> tuple[dict[str, Any], dict[str, tuple[Curve, float | None]]]:
    """Score the detections of a split by the VOC protocol.

    Args:
        detections: K detections, one `ClassDetections` per class.
        dataset: The split.
        metric: "voc07_11point" or "area", see `metrics.average_precision`.
        iou_threshold: IoU that a hit must exceed, in [0, 1].

    Returns:
        Results `{"map", "protocol", "iou_threshold", "images", "aps", "seconds_per_image"}`, the last one None, and
        curve and AP by class name. A class without objects that count has AP None and is excluded from the mean.

    Raises:
        ValueError: The metric is unknown.
    """
    curves: dict[str, tuple[Curve, float | None]] = {}
    for label, (name, found) in enumerate(zip(dataset.class_names, detections, strict=True), 1):
        curve = precision_recall(found, *class_objects(dataset, label), iou_threshold=iou_threshold)
        curves[name] = (curve, average_precision(curve, metric=metric))
    aps = {name: ap for name, (_, ap) in curves.items()}
    results = {
        "map": mean_average_precision(list(aps.values())),
        "protocol": metric,
        "iou_threshold": iou_threshold,
        "images": len(dataset.records),
        "aps": aps,
        "seconds_per_image": None,
    }
    return results, curves


def format_score(value: float | None) -> str:
    """Format a score with four decimals; "-" for None."""
    return "-" if value is None else f"{value:.4f}"


def results_table(results: Mapping[str, Any]) -> str:
    """Format the results of `score` as a text table of AP per class and mAP."""
    width = max(map(len, results["aps"]))
    rows = [*results["aps"].items(), ("mAP", results["map"])]
    *lines, total = (f"{name:<{width}}  {format_score(ap)}" for name, ap in rows)
    how = f"{results['protocol']}, IoU > {results['iou_threshold']}, {results['images']} images"
    return "\n".join([*lines, f"{total}  ({how})"])
