"""Evaluation of a model on a split by the VOC protocol, and pictures of the detections."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from frcnn_jax.data.batches import Sizes, TestBatches
from frcnn_jax.data.records import Dataset, Record
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.metrics import ClassDetections, Curve
from frcnn_jax.evaluation.pictures import draw_boxes, plot_precision_recall, side_by_side
from frcnn_jax.evaluation.predict import DetectionOptions, image_detections, make_predict_step, predict_split
from frcnn_jax.evaluation.scores import score
from frcnn_jax.models.fast_rcnn import FastRCNN


class Evaluation(NamedTuple):
    """A split, its detections, and their scores."""

    dataset: Dataset
    detections: list[ClassDetections]  # K
    results: dict[str, Any]  # see `score`
    curves: dict[str, tuple[Curve, float | None]]


class Evaluator:
    """Evaluation of a model on a split, for any variables; compiled once per canvas size.

    Args:
        model: The network.
        dataset: The split.
        proposals: `(N, 4)` boxes by image id.
        sizes: Sizes to which images are resized; several make an image pyramid.
        options: Options of NMS and box regression.

    Raises:
        InputError: The number of classes of the dataset is not K, or an image has no proposals.
    """

    def __init__(
        self,
        model: FastRCNN,
        dataset: Dataset,
        proposals: Mapping[str, np.ndarray],
        *,
        sizes: Sequence[Sizes],
        options: DetectionOptions = DetectionOptions(),
    ) -> None:
        if len(dataset.class_names) != model.num_classes:
            raise InputError(f"the dataset has {len(dataset.class_names)} classes, the network {model.num_classes}")
        self._dataset, self._predict = dataset, make_predict_step(model, options=options)
        self._batches = TestBatches(dataset.records, proposals, sizes, model.pixels, model.rounding_scale)

    def __call__(
        self,
        variables: Any,
        *,
        images: int | None = None,
        metric: str = "voc07_11point",
        iou_threshold: float = 0.5,
    ) -> Evaluation:
        """Evaluate variables on the split.

        Args:
            variables: Variables of the model.
            images: Number of images, the first of the split; all where None.
            metric: "voc07_11point" or "area".
            iou_threshold: IoU that a hit must exceed, in [0, 1].
        """
        dataset = replace(self._dataset, records=self._dataset.records[:images])
        batches = replace(self._batches, records=dataset.records)
        found = predict_split(self._predict, variables, batches, len(dataset.class_names))
        results, curves = score(found.by_class, dataset, metric=metric, iou_threshold=iou_threshold)
        results["seconds_per_image"] = found.seconds_per_image
        return Evaluation(dataset, found.by_class, results, curves)


def save_pictures(found: Evaluation, folder: Path, *, pictures: int = 12, score_threshold: float = 0.5) -> None:
    """Write precision-recall curves, and detections next to ground truth for the first images, to a folder.

    Args:
        found: The evaluation.
        folder: Output folder; created if it does not exist.
        pictures: Number of images.
        score_threshold: Minimum score of the detections drawn.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plot_precision_recall(found.curves, folder / "precision_recall.png")
    for i, record in enumerate(found.dataset.records[:pictures]):
        name = record.image_id.replace("/", "_")
        _compare(record, i, found, score_threshold).save(folder / f"{name}.png")


def _compare(record: Record, image: int, found: Evaluation, score_threshold: float) -> Any:
    names = found.dataset.class_names
    truth = [
        names[label - 1] + (" (difficult)" if difficult else "")
        for label, difficult in zip(record.labels, record.difficult, strict=True)
    ]
    seen = image_detections(found.detections, image, score_threshold)
    captions = [f"{names[label - 1]} {score:.2f}" for label, score in zip(seen.labels, seen.scores, strict=True)]
    pixels = record.load()
    return side_by_side(
        draw_boxes(pixels, record.boxes, record.labels, truth), draw_boxes(pixels, seen.boxes, seen.labels, captions)
    )
