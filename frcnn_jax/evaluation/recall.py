"""Recall of object proposals.

Shape letters: N proposals and G ground-truth boxes of an image, S numbers of proposals, T IoU thresholds.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from frcnn_jax.data.records import Dataset, without_difficult
from frcnn_jax.ops import boxes as box_ops

RECALL_IOUS = tuple(i / 40 for i in range(20, 41))  # 0.5 to 1
_RECALL_NUMBERS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)


class ProposalRecall(NamedTuple):
    """Fraction of the objects that proposals find; NaN if there are no objects."""

    recall: np.ndarray  # (S, T) in [0, 1], by number of proposals and IoU
    average: np.ndarray  # (S,) in [0, 1], by number of proposals


def proposal_recall(
    proposals: Iterable[np.ndarray],
    gt_boxes: Iterable[np.ndarray],
    *,
    iou_thresholds: Sequence[float],
    numbers: Sequence[int],
) -> ProposalRecall:
    """Compute recall and average recall of the first proposals of each image (Hosang et al. 2015).

    The overlap o of an object is its greatest IoU with a proposal; objects may share a proposal. Recall at an IoU
    threshold is the fraction of the objects with o **at or above** it. Average recall is the mean over thresholds from
    0.5 to 1: 2 * integral of recall = mean of max(2 o - 1, 0).

    Args:
        proposals: `(N, 4)` boxes per image, best first; N may vary and be 0.
        gt_boxes: `(G, 4)` boxes per image of the objects that count (the VOC protocol excludes difficult ones).
        iou_thresholds: T values in [0, 1].
        numbers: S numbers of proposals per image, each at least 1.

    Returns:
        Recall `(S, T)` and average recall `(S,)`.
    """
    overlaps = [np.zeros((len(numbers), 0))]
    for boxes, truth in zip(proposals, gt_boxes, strict=True):
        best = np.zeros((len(boxes) + 1, len(truth)))  # row n: with the first n proposals
        best[1:] = np.maximum.accumulate(box_ops.iou(boxes.astype(np.float64), truth.astype(np.float64)))
        overlaps.append(best[np.minimum(numbers, len(boxes))])
    found = np.concatenate(overlaps, axis=1)
    if not found.shape[1]:
        return ProposalRecall(np.full((len(numbers), len(iou_thresholds)), np.nan), np.full(len(numbers), np.nan))
    recall = (found[:, None] >= np.asarray(iou_thresholds)[:, None]).mean(axis=2)
    return ProposalRecall(recall, np.maximum(2 * found - 1, 0).mean(axis=1))


def split_recall(
    dataset: Dataset, proposals: Mapping[str, np.ndarray], max_boxes: int
) -> tuple[list[int], ProposalRecall]:
    """Compute the recall of a split's proposals at RECALL_IOUS, without difficult objects.

    Args:
        dataset: The split.
        proposals: `(N, 4)` boxes by image id.
        max_boxes: Maximum number of proposals per image.

    Returns:
        S numbers of proposals up to `max_boxes`, and the recall with that many proposals per image.
    """
    numbers = [*(n for n in _RECALL_NUMBERS if n < max_boxes), max_boxes]
    records = without_difficult(dataset).records
    boxes = (proposals[record.image_id] for record in records)
    truth = (record.boxes for record in records)
    return numbers, proposal_recall(boxes, truth, iou_thresholds=RECALL_IOUS, numbers=numbers)


def best_overlaps(dataset: Dataset, proposals: Mapping[str, np.ndarray], max_boxes: int) -> np.ndarray:
    """Return the greatest IoU of each object with one of the first `max_boxes` proposals of its image, `(N,)`."""
    overlaps = [np.zeros(0)]
    for record in dataset.records:
        boxes = proposals[record.image_id][:max_boxes].astype(np.float64)
        overlaps.append(box_ops.iou(record.boxes.astype(np.float64), boxes).max(axis=1, initial=0))
    return np.concatenate(overlaps)


def recall_table(numbers: Sequence[int], recall: ProposalRecall) -> str:
    """Format the result of `split_recall` as a text table, one row per number of proposals."""
    if np.isnan(recall.average).any():
        return "no objects, or only difficult ones"
    shown = [RECALL_IOUS.index(iou) for iou in (0.5, 0.6, 0.7, 0.8, 0.9)]
    lines = ["proposals  " + "".join(f"IoU {RECALL_IOUS[i]:<5}" for i in shown) + "average"]
    for number, row, average in zip(numbers, recall.recall, recall.average, strict=True):
        lines.append(f"{number:>9}  " + "".join(f"{value:<9.3f}" for value in [*row[shown], average]).rstrip())
    return "\n".join(lines)
