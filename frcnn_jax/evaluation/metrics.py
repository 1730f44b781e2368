"""PASCAL VOC average precision, by the 11-point rule (VOC07) and as the area under the curve (VOC10 on). Pure NumPy.

Shape letters: D detections of a class, G ground-truth boxes of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from frcnn_jax.ops import boxes as box_ops

METRICS = ("voc07_11point", "area")


class ClassDetections(NamedTuple):
    """Detections of one class over a split, in any order; equal scores keep it."""

    image: np.ndarray  # (D,) integers: the place in the split
    scores: np.ndarray  # (D,)
    boxes: np.ndarray  # (D, 4)


class Curve(NamedTuple):
    """Precision and recall down the ranking; without counted objects both are empty."""

    recall: np.ndarray  # (D,) in [0, 1]
    precision: np.ndarray  # (D,) in [0, 1]
    positives: int  # objects counted


class Matches(NamedTuple):
    """The detections of a class by falling score, and the objects, numbered over the split, that they were given."""

    ranked: ClassDetections  # (D,)
    overlap: np.ndarray  # (D,) the IoU with the object of its image that it overlaps most; 0 without one
    nearest: np.ndarray  # (D,) that object; -1 without one
    hit: np.ndarray  # (D,) bool
    ignored: np.ndarray  # (D,) bool: on a difficult object, neither a hit nor a false positive
    difficult: np.ndarray  # (objects,) bool
    missed: np.ndarray  # (objects,) bool: counted, and hit by none


def nearest_objects(detections: ClassDetections, gt_boxes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the IoU with the box of its image that it overlaps most, in [0, 1], and that box's number over
    the split, the first of equals; 0 and -1 where it overlaps none. `gt_boxes` are `(G, 4)` by place in the split."""
    overlap, nearest = np.zeros(len(detections.image)), np.full(len(detections.image), -1)
    first_object = np.cumsum([0, *map(len, gt_boxes)])
    by_image = np.argsort(detections.image, kind="stable")
    bounds = np.searchsorted(detections.image[by_image], np.arange(len(gt_boxes) + 1))
    for i, truth in enumerate(gt_boxes):
        here = by_image[bounds[i] : bounds[i + 1]]
        if len(truth) and len(here):
            overlaps = box_ops.iou(detections.boxes[here].astype(np.float64), truth.astype(np.float64))
            overlap[here], nearest[here] = overlaps.max(axis=1), first_object[i] + overlaps.argmax(axis=1)
    nearest[overlap == 0] = -1
    return overlap, nearest


def match(
    detections: ClassDetections,
    gt_boxes: Sequence[np.ndarray],
    gt_difficult: Sequence[np.ndarray],
    *,
    iou_threshold: float = 0.5,
) -> Matches:
    """The VOC rule for one class.

    By falling score, a detection is compared with the ground truth of its image that it overlaps most. IoU over the
    threshold is a hit the first time and a false positive from then on; a difficult object is neither counted nor held
    against; all else is a false positive.

    Args:
        detections: of the class.
        gt_boxes: by place in the split, the class's `(G, 4)` boxes.
        gt_difficult: likewise `(G,)` bool.
        iou_threshold: IoU must be over this; in [0, 1].
    """
    order = np.argsort(-detections.scores, kind="stable")
    ranked = ClassDetections(*(field[order] for field in detections))
    overlap, nearest = nearest_objects(ranked, gt_boxes)
    difficult = np.concatenate([np.zeros(0, bool), *gt_difficult])
    matched = np.where(overlap > iou_threshold, nearest, -1)
    ignored = (matched >= 0) & np.append(difficult, False)[matched]
    hit = np.zeros(len(order), bool)
    hit[np.unique(matched, return_index=True)[1]] = True  # the best ranked of each object
    hit &= (matched >= 0) & ~ignored
    missed = ~difficult
    missed[matched[hit]] = False
    return Matches(ranked, overlap, nearest, hit, ignored, difficult, missed)


def precision_recall(
    detections: ClassDetections,
    gt_boxes: Sequence[np.ndarray],
    gt_difficult: Sequence[np.ndarray],
    *,
    iou_threshold: float = 0.5,
) -> Curve:
    """The curve of one class by the rule of `match`, which has the arguments."""
    matches = match(detections, gt_boxes, gt_difficult, iou_threshold=iou_threshold)
    hits = np.cumsum(matches.hit[~matches.ignored])
    positives = int(np.sum(~matches.difficult))
    if not positives:
        return Curve(np.zeros(0), np.zeros(0), 0)
    return Curve(hits / positives, hits / np.arange(1, len(hits) + 1), positives)


def error_kinds(matches: Matches, other_overlap: np.ndarray) -> np.ndarray:
    """What each detection of a class is, after Hoiem, Chodpathumwan and Dai, "Diagnosing error in object detectors"
    (2012): the first that holds of

    - "ignored" and "correct": as in `match`;
    - "localisation": IoU of at least 0.1 with an object of the class: too little for a hit, or a duplicate of one;
    - "confusion": IoU of at least 0.1 with an object of another class;
    - "background": all else.

    Difficult objects stand like others in the last three. The paper's similar and other classes are one here.

    Args:
        matches: of the class.
        other_overlap: `(D,)`, by rank, the greatest IoU with an object of another class.

    Returns:
        `(D,)` strings, by rank.
    """
    tests = (matches.ignored, matches.hit, matches.overlap >= 0.1, other_overlap >= 0.1)
    return np.select(tests, ("ignored", "correct", "localisation", "confusion"), "background")


def average_precision(curve: Curve, *, metric: str = "voc07_11point") -> float | None:
    """AP of a curve: the mean over recalls 0, 0.1 .. 1 of the best precision at that recall or more, or the area under
    the precision made monotone. None where no object was counted.

    Raises:
        ValueError: an unknown metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if not curve.positives:
        return None
    best = np.maximum.accumulate(np.append(curve.precision, 0)[::-1])[::-1]
    if metric == "area":
        return float(np.sum(np.diff(curve.recall, prepend=0) * best[:-1]))
    return float(np.mean(best[np.searchsorted(curve.recall, np.arange(0.0, 1.1, 0.1))]))


def mean_average_precision(aps: Sequence[float | None]) -> float | None:
    """The mean over the classes that have objects; None where none has."""
    counted = [ap for ap in aps if ap is not None]
    return float(np.mean(counted)) if counted else None
