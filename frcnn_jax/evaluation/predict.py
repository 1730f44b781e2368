"""Detection: the jitted step that scores RoIs, decodes boxes and applies NMS, and its loop over a split.

Shape letters: B images, R RoIs, K foreground classes, M detections per class, D detections.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from tqdm import tqdm

from frcnn_jax.data.batches import ROI_MULTIPLE, TestBatches, prefetch
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.coco_metrics import coco_box
from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.ops._nms import inclusive_nms
from frcnn_jax.training.hosts import all_gather

Predictions = tuple[jax.Array, jax.Array, jax.Array]  # boxes (B, K, M, 4), scores (B, K, M), valid (B, K, M)


class Detections(NamedTuple):
    """Detections in an image, best first."""

    boxes: np.ndarray  # (D, 4) float32, in the image's pixels
    labels: np.ndarray  # (D,) int32, 1 to K
    scores: np.ndarray  # (D,) float32

    def to_records(self, class_names: Sequence[str]) -> list[dict[str, Any]]:
        """Return a dict per detection, as `pandas.DataFrame` takes them: "label", a name, "score" and "box", rounded.

        Args:
            class_names: Names of labels 1 to K.
        """
        return [
            {
                "label": class_names[label - 1],
                "score": round(float(score), 4),
                "box": [round(float(side), 1) for side in box],
            }
            for box, label, score in zip(*self, strict=True)
        ]

    def to_coco(self, image_id: int, *, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return COCO results: a dict per detection with "image_id", "category_id", "bbox" (x, y, w, h) and "score".

        Args:
            image_id: COCO id of the image.
            category_ids: K COCO category ids; the labels where None.
        """
        return [
            {
                "image_id": image_id,
                "category_id": int(label) if category_ids is None else category_ids[label - 1],
                "bbox": coco_box(box),
                "score": float(score),
            }
            for box, label, score in zip(*self, strict=True)
        ]

    def to_supervision(self) -> Any:
        """Return a `supervision.Detections`, whose boxes are continuous: 1 is added to x2 and y2. Class ids are labels.

        Raises:
            InputError: The package supervision is not installed.
        """
        try:
            import supervision  # deferred: optional
        except ImportError:
            raise InputError("to_supervision needs the package supervision: pip install supervision") from None
        corners = self.boxes + np.array([0, 0, 1, 1], np.float32)
        return supervision.Detections(xyxy=corners, class_id=self.labels.astype(int), confidence=self.scores)


@dataclass(frozen=True)
class DetectionOptions:
    """Options of non-maximum suppression (NMS) and box regression.

    Attributes:
        nms_iou: IoU, in [0, 1], above which a box is dropped for a better one of its class.
        candidates: Number M of best-scoring RoIs per class that enter NMS, 1 to 512.
        box_regression: Whether deltas are applied; RoIs are the boxes otherwise.
        vote_iou: IoU, in [0, 1], from which a class's candidates vote on a box that NMS keeps; 0 for no votes. The box
            is then their mean, weighted by their scores (Gidaris and Komodakis 2015, section 5).

    Raises:
        InputError: A number is out of range.
    """

    nms_iou: float = 0.3
    candidates: int = 100
    box_regression: bool = True
    vote_iou: float = 0.0

    def __post_init__(self) -> None:
        for name in ("nms_iou", "vote_iou"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if not 1 <= self.candidates <= ROI_MULTIPLE:
            raise InputError(f"candidates must be 1 to {ROI_MULTIPLE}, got {self.candidates}")


def decode_and_suppress(
    scores: jax.Array, deltas: jax.Array, batch: Mapping[str, jax.Array], options: DetectionOptions = DetectionOptions()
) -> Predictions:
    """Decode the best RoIs of each class, clip them to the image, and apply greedy NMS (section 3).

    Args:
        scores: `(B, R, K + 1)` scores; class 0 is background.
        deltas: `(B, R, K + 1, 4)` deltas for `decode`.
        batch: A batch with "rois", "roi_mask", "scale" and "original_size".
        options: Options of NMS and box regression.

    Returns:
        Boxes `(B, K, M, 4)` in original pixels, scores `(B, K, M)` and mask `(B, K, M)` of valid ones, best first.
    """

    def one_class(scores, deltas, rois, scale, original_size):
        top, index = lax.top_k(scores, options.candidates)
        decoded = box_ops.decode(rois[index], deltas[index]) if options.box_regression else rois[index]
        decoded = decoded / jnp.broadcast_to(scale, scores.shape)[index, None]
        boxes = box_ops.clip(decoded, original_size[0], original_size[1])
        kept, valid = inclusive_nms(boxes, top, iou_threshold=options.nms_iou, max_outputs=options.candidates)
        found = _vote(boxes[kept], boxes, top, options.vote_iou) if options.vote_iou else boxes[kept]
        return found, jnp.where(valid, top[kept], 0), valid

    def one_image(scores, deltas, rois, mask, scale, original_size):
        scores = jnp.where(mask, scores[:, 1:].T, -jnp.inf)
        classes = jax.vmap(one_class, (0, 1, None, None, None))
        return classes(scores, deltas[:, 1:], rois, scale, original_size)

    arguments = (batch[name] for name in ("rois", "roi_mask", "scale", "original_size"))
    return jax.vmap(one_image)(scores, deltas, *arguments)


def _vote(kept: jax.Array, boxes: jax.Array, scores: jax.Array, iou: float) -> jax.Array:
    """Return for each of the `(M, 4)` boxes kept the mean of the `(N, 4)` that overlap it, weighted by their scores.

    Scores below 0, which margins may be, have no weight; without any weight a box stays.
    """
    weights = jnp.where(box_ops.iou(kept, boxes) >= iou, jnp.maximum(scores, 0), 0)
    total = weights.sum(-1, keepdims=True)
    mean = jnp.matmul(weights, boxes, precision=lax.Precision.HIGHEST) / jnp.where(total > 0, total, 1)
    return jnp.where(total > 0, mean, kept)


def make_predict_step(model: FastRCNN, *, options: DetectionOptions = DetectionOptions()) -> Callable[..., Predictions]:
    """Return the jitted `predict(variables, batch)`, which applies the network and `decode_and_suppress`."""

    @jax.jit
    def predict(variables: Any, batch: Mapping[str, jax.Array]) -> Predictions:
        images = [batch[name] for name in ("image", "image_size", "rois")]
        outputs: Any
        if "level" in batch:
            outputs = model.apply(variables, *images, batch["level"], method=FastRCNN.predict_pyramid)
        else:
            outputs = model.apply(variables, *images, method=FastRCNN.predict)
        scores, deltas = outputs
        return decode_and_suppress(scores, deltas, batch, options)

    return predict


def select_detections(
    boxes: np.ndarray, scores: np.ndarray, valid: np.ndarray, score_threshold: float, max_detections: int
) -> Detections:
    """Return the best detections over all classes from the `(K, M, ...)` predictions for one image."""
    label, place = np.nonzero(valid & (scores >= score_threshold))
    best = np.argsort(-scores[label, place], kind="stable")[:max_detections]
    label, place = label[best], place[best]
    return Detections(boxes[label, place], (label + 1).astype(np.int32), scores[label, place])


def image_detections(
    detections: Sequence[ClassDetections], image: int, score_threshold: float, max_detections: int = 100
) -> Detections:
    """Return the best detections over all classes in the image of a split with this index."""
    own = [[field[found.image == image] for field in found] for found in detections]
    _, scores, boxes = (np.concatenate(fields) for fields in zip(*own, strict=True))
    of_class = np.repeat(np.eye(len(own), dtype=bool), [len(indices) for indices, *_ in own], axis=1)  # (K, D)
    boxes, scores = np.broadcast_to(boxes, (*of_class.shape, 4)), np.broadcast_to(scores, of_class.shape)
    return select_detections(boxes, scores, of_class, score_threshold, max_detections)


class SplitPredictions(NamedTuple):
    """Detections in a split."""

    by_class: list[ClassDetections]  # K
    seconds_per_image: float | None  # data and step, without compilation; None if each image compiled


def predict_split(
    predict: Callable[..., Predictions], variables: Any, batches: TestBatches, num_classes: int
) -> SplitPredictions:
    """Run `predict` on every image, with a progress bar.

    Each process distributes its share of the images over its devices. All processes return all results.

    Args:
        predict: A step of `make_predict_step`.
        variables: Variables of the model.
        batches: The batches of the split.
        num_classes: Number of foreground classes K.
    """
    devices = jax.local_devices()
    on_device = [jax.device_put(variables, device) for device in devices]
    process, processes = jax.process_index(), jax.process_count()
    images = range(process, len(batches), processes)
    found: list[np.ndarray] = []  # per image (D, 7): class, image, score, box
    running: deque[tuple[int, Predictions]] = deque()
    seconds, shapes = [], set()

    def collect() -> None:
        i, predictions = running.popleft()
        boxes, scores, valid = (p[0] for p in jax.device_get(predictions))
        label, place = np.nonzero(valid)
        found.append(np.column_stack([label, np.full(len(label), i), scores[label, place], boxes[label, place]]))

    with tqdm(total=len(images), desc="evaluate", unit="image", disable=process > 0) as bar:
        begin = time.perf_counter()
        for count, (i, batch) in enumerate(
            zip(images, prefetch(batches, start=process, stride=processes), strict=True)
        ):
            device = count % len(devices)
            running.append((i, predict(on_device[device], jax.device_put(batch, devices[device]))))
            if len(running) == len(devices):
                collect()
            end = time.perf_counter()
            if (shape := f"{device} {jax.tree.map(np.shape, batch)}") in shapes:
                seconds.append(end - begin)
            shapes.add(shape)
            begin = end
            bar.update()
        while running:
            collect()
    rows = _from_all_processes(np.concatenate([np.zeros((0, 7)), *found]))
    by_class = [rows[rows[:, 0] == k] for k in range(num_classes)]
    detections = [
        ClassDetections(own[:, 1].astype(int), own[:, 2].astype(np.float32), own[:, 3:].astype(np.float32))
        for own in by_class
    ]
    return SplitPredictions(detections, float(np.mean(seconds)) if seconds else None)


def _from_all_processes(rows: np.ndarray) -> np.ndarray:
    """Gather the `(D, 7)` float64 rows of all processes, sorted by image."""
    counts = all_gather(len(rows))
    padded = np.zeros((counts.max(), 7), np.float32)  # exact: they were float32 or small integers
    padded[: len(rows)] = rows
    rows = np.concatenate([own[:count] for own, count in zip(all_gather(padded), counts, strict=True)])
    return rows[np.argsort(rows[:, 1], kind="stable")].astype(np.float64)
