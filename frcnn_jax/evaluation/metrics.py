"""PASCAL VOC average precision, by the 11-point rule (VOC2007) or as the area under the curve (VOC2010 on).

Difficult objects are excluded here: `match` marks detections on them as ignored, and `precision_recall` drops those
detections and counts only the other objects as positives. Detecting or missing a difficult object changes no score.

Ties: detections with equal scores are ranked in the order given. Among ground-truth boxes with equal IoU (such as
identical boxes), a detection is compared only with the first, so only that one can be hit. Classes are scored apart:
identical boxes of two classes do not compete.

Shape letters: D detections of one class, O its objects over the split, G ground-truth boxes of one image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from frcnn_jax.ops import boxes as box_ops

METRICS = ("voc07_11point", "area")


class ClassDetections(NamedTuple):
    """Detections of one class over a split, in any order; equal scores rank in the order given."""

    image: np.ndarray  # (D,) integers: index of the image in the split
    scores: np.ndarray  # (D,)
    boxes: np.ndarray  # (D, 4)


class Curve(NamedTuple):
    """Precision and recall at each rank; empty if no object counts."""

    recall: np.ndarray  # (D - ignored,) in [0, 1]
    precision: np.ndarray  # (D - ignored,) in [0, 1]
    positives: int  # objects that are not difficult


class Matches(NamedTuple):
    """Matches of the detections of one class with its objects, which are numbered over the split."""

    ranked: ClassDetections  # (D,) by descending score, as are the next four fields
    overlap: np.ndarray  # (D,) greatest IoU with an object of the same image, 0 if none overlaps
    nearest: np.ndarray  # (D,) number of that object, -1 if none overlaps
    hit: np.ndarray  # (D,) bool: a true positive
    ignored: np.ndarray  # (D,) bool: on a difficult object, neither a true nor a false positive
    difficult: np.ndarray  # (O,) bool
    missed: np.ndarray  # (O,) bool: not difficult and without a hit


def nearest_objects(detections: ClassDetections, gt_boxes: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Find the box in the same image that each detection overlaps most.

    Args:
        detections: D detections.
        gt_boxes: `(G, 4)` boxes per image of the split.

    Returns:
        `(D,)` IoU with that box, in [0, 1], and `(D,)` the number of the box over the split, the first of equals; 0 and
        -1 for a detection that overlaps no box.
    """
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
    """Match the detections of one class with its objects by the rule of the VOC devkit (VOCevaldet.m).

    By descending score, each detection is compared with the one object of its image that it overlaps most. If their IoU
    exceeds the threshold, the detection is ignored if the object is difficult, a hit if it is the first detection of
    that object, and otherwise a false positive (a duplicate). All other detections are false positives.

    Args:
        detections: D detections of the class.
        gt_boxes: The class's `(G, 4)` boxes per image of the split.
        gt_difficult: `(G,)` bool per image of the split.
        iou_threshold: IoU that a hit must exceed, in [0, 1].

    Returns:
        The ranked detections, and the outcome for each detection and each object.
    """
    order = np.argsort(-detections.scores, kind="stable")
    ranked = ClassDetections(*(field[order] for field in detections))
    overlap, nearest = nearest_objects(ranked, gt_boxes)
    difficult = np.concatenate([np.zeros(0, bool), *gt_difficult])
    matched = np.where(overlap > iou_threshold, nearest, -1)
    ignored = (matched >= 0) & np.append(difficult, False)[matched]
    hit = np.zeros(len(order), bool)
    hit[np.unique(matched, return_index=True)[1]] = True  # the best ranked detection of each object
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
    """Compute the precision-recall curve of one class; difficult objects do not count.

    Args:
        detections: D detections of the class.
        gt_boxes: The class's `(G, 4)` boxes per image of the split.
        gt_difficult: `(G,)` bool per image of the split.
        iou_threshold: IoU that a hit must exceed, in [0, 1].

    Returns:
        Recall and precision after each detection that `match` does not ignore.
    """
    matches = match(detections, gt_boxes, gt_difficult, iou_threshold=iou_threshold)
    hits = np.cumsum(matches.hit[~matches.ignored])
    positives = int(np.sum(~matches.difficult))
    if not positives:
        return Curve(np.zeros(0), np.zeros(0), 0)
    return Curve(hits / positives, hits / np.arange(1, len(hits) + 1), positives)


def error_kinds(matches: Matches, other_overlap: np.ndarray) -> np.ndarray:
    """Classify each detection of one class after Hoiem et al., "Diagnosing error in object detectors" (2012).

    The first of these that applies:

    - "ignored" and "correct": ignored and a hit in `match`;
    - "localisation": IoU of at least 0.1 with an object of the class: too low for a hit, or a duplicate;
    - "confusion": IoU of at least 0.1 with an object of another class;
    - "background": anything else.

    Difficult objects count like any other for "localisation" and "confusion". The paper separates similar classes from
    others; here both are "confusion".

    Args:
        matches: The matched detections of the class.
        other_overlap: `(D,)`, by rank, greatest IoU with an object of another class, in [0, 1].

    Returns:
        `(D,)` strings, by rank.
    """
    tests = (matches.ignored, matches.hit, matches.overlap >= 0.1, other_overlap >= 0.1)
    return np.select(tests, ("ignored", "correct", "localisation", "confusion"), "background")


def average_precision(curve: Curve, *, metric: str = "voc07_11point") -> float | None:
    """Compute the average precision of a curve.

    Args:
        curve: The curve of one class.
        metric: "voc07_11point", the mean over recalls 0, 0.1, ..., 1 of the best precision at that recall or more
            (VOC2007), or "area", the area under the precision made monotone (VOC2010 on). The recalls are
            `numpy.arange(0, 1.1, 0.1)`, as in the widely used Python evaluation: 0.3, 0.6 and 0.7 are rounded up, so
            a recall of exactly 6/10 does not reach 0.6.

    Returns:
        AP in [0, 1]; None if no object counts.

    Raises:
        ValueError: The metric is unknown.
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
    """Return the mean of the APs that are not None; None if there is none."""
    counted = [ap for ap in aps if ap is not None]
    return float(np.mean(counted)) if counted else None
