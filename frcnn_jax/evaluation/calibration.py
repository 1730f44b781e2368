"""Calibration: whether a score is the fraction of detections with that score that are right (Guo et al. 2017).

A detection is right if it is a hit by the rule of VOC (`metrics.match`); those of difficult objects do not count.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.metrics import ClassDetections, match
from frcnn_jax.evaluation.scores import class_objects


class Reliability(NamedTuple):
    """Detections by score, in bins of equal width."""

    score: np.ndarray  # (bins,) mean score; 0 in an empty bin
    precision: np.ndarray  # (bins,) fraction of hits; 0 in an empty bin
    number: np.ndarray  # (bins,) of detections

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |score - precision| over detections."""
        return float(np.abs(self.score - self.precision) @ self.number / max(self.number.sum(), 1))


def scored_hits(
    detections: Sequence[ClassDetections], dataset: Dataset, *, score_threshold: float = 0.05
) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores `(D,)` of the detections of all classes that count, and whether each is a hit, `(D,)` bool.

    Args:
        detections: K detections, one `ClassDetections` per class.
        dataset: The split.
        score_threshold: Minimum score.
    """
    scores, hits = [np.zeros(0)], [np.zeros(0, bool)]
    for label, found in enumerate(detections, 1):
        matches = match(found, *class_objects(dataset, label))
        counts = ~matches.ignored & (matches.ranked.scores >= score_threshold)
        scores.append(matches.ranked.scores[counts])
        hits.append(matches.hit[counts])
    return np.concatenate(scores).astype(np.float64), np.concatenate(hits)


def reliability(scores: np.ndarray, hits: np.ndarray, *, bins: int = 15) -> Reliability:
    """Return the reliability of `(D,)` scores in [0, 1], of which `(D,)` hits are right."""
    place = np.minimum((scores * bins).astype(int), bins - 1)
    number, total, right = (np.bincount(place, w, bins) for w in (None, scores, hits))
    return Reliability(total / np.maximum(number, 1), right / np.maximum(number, 1), number)


def fit_calibration(scores: np.ndarray, hits: np.ndarray) -> tuple[float, float]:
    """Fit sigmoid(logit(score) / temperature + offset) to hits by maximum likelihood (Platt 1999), by Newton's method.

    Args:
        scores: `(D,)` in (0, 1).
        hits: `(D,)` bool.

    Returns:
        The temperature, over 0, and the offset.

    Raises:
        InputError: There are no hits, no misses, or better scores are not hits more often.
    """
    p = np.clip(scores, 1e-6, 1 - 1e-6)
    x = np.stack([np.log(p / (1 - p)), np.ones(len(p))], axis=1)
    w = np.array([1.0, 0.0])
    if hits.all() or not hits.any():
        raise InputError(f"calibration needs hits and misses, got {hits.sum()} hits of {len(hits)} detections")
    for _ in range(100):
        q = 1 / (1 + np.exp(-x @ w))
        step = np.linalg.solve((x.T * (q * (1 - q))) @ x + 1e-9 * np.eye(2), x.T @ (hits - q))
        w = w + step * min(1, 1 / np.abs(step).max())
        if np.abs(step).max() < 1e-9:
            break
    if not w[0] > 0:
        raise InputError("calibration failed: better scores are not hits more often")
    return float(1 / w[0]), float(w[1])


def calibrate_head(params: Mapping[str, Any], temperature: float, offset: float) -> dict[str, Any]:
    """Return parameters whose logits are divided by a temperature, and whose background's are lowered by an offset.

    Against the background alone, a class's score p becomes sigmoid(logit(p) / temperature + offset).
    """
    layer = jax.tree.map(lambda leaf: np.asarray(leaf) / np.float32(temperature), dict(params["head"]["cls_score"]))
    layer["bias"] = layer["bias"] - np.float32(offset) * (np.arange(len(layer["bias"])) == 0).astype(np.float32)
    return {**params, "head": {**params["head"], "cls_score": layer}}
