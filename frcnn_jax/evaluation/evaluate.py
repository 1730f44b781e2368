"""Scores of a network over a split, by the VOC protocol.

Shape letters: K foreground classes, D detections.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL.Image import Image
from tqdm import tqdm

from frcnn_jax.config import check_config
from frcnn_jax.data.batches import TestBatches, prefetch
from frcnn_jax.data.records import Dataset, Record
from frcnn_jax.detect import Detections, Predictions, image_sizes, load_variables, make_predict_step, read_config
from frcnn_jax.evaluation.metrics import (
    ClassDetections,
    Curve,
    average_precision,
    mean_average_precision,
    precision_recall,
)
from frcnn_jax.evaluation.pictures import draw_boxes, plot_precision_recall, side_by_side
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.splits import read_split, with_proposals
from frcnn_jax.training.hosts import all_gather


class SplitPredictions(NamedTuple):
    """All that a network finds in a split."""

    by_class: list[ClassDetections]  # K
    seconds_per_image: float | None  # of the jitted step and its data, compilation left out


def predict_split(
    predict: Callable[..., Predictions], variables: Any, batches: TestBatches, num_classes: int
) -> SplitPredictions:
    """Runs `predict` (of `detect.make_predict_step`) over every image, with a progress bar: each process takes its
    share of the images, and hands them to its devices in turn. All processes get all that is found."""
    devices = jax.local_devices()
    on_device = [jax.device_put(variables, device) for device in devices]
    process, processes = jax.process_index(), jax.process_count()
    images = range(process, len(batches), processes)
    found: list[np.ndarray] = []  # by image (D, 7): class, image, score, box
    running: deque[tuple[int, Predictions]] = deque()
    seconds, shapes = [], set()

    def collect() -> None:
        i, predictions = running.popleft()
        boxes, scores, valid = (p[0] for p in jax.device_get(predictions))
        label, place = np.nonzero(valid)
        found.append(np.column_stack([label, np.full(len(label), i), scores[label, place], boxes[label, place]]))

    with tqdm(total=len(images), desc="evaluate", unit="image", disable=process > 0) as bar:
        begin = time.perf_counter()
        for count, (i, batch) in enumerate(zip(images, prefetch(batches, process, stride=processes), strict=True)):
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
    """The `(D, 7)` float64 rows of all processes, by image."""
    counts = all_gather(len(rows))
    padded = np.zeros((counts.max(), 7), np.float32)  # exact: they were float32 or small integers
    padded[: len(rows)] = rows
    rows = np.concatenate([own[:count] for own, count in zip(all_gather(padded), counts, strict=True)])
    return rows[np.argsort(rows[:, 1], kind="stable")].astype(np.float64)


def class_objects(dataset: Dataset, label: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """By place in the split, a class's `(G, 4)` boxes and `(G,)` bool of difficult ones."""
    own = [(record, record.labels == label) for record in dataset.records]
    return [record.boxes[m] for record, m in own], [record.difficult[m] for record, m in own]


def score(
    detections: Sequence[ClassDetections],
    dataset: Dataset,
    *,
    metric: str = "voc07_11point",
    iou_threshold: float = 0.5,
) -> tuple[dict[str, Any], dict[str, tuple[Curve, float | None]]]:
    """The protocol over a split.

    Returns:
        the results `{"map", "protocol", "iou_threshold", "images", "aps", "seconds_per_image"}` (None in the last) and
        by class its curve and AP.
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


def image_detections(
    detections: Sequence[ClassDetections], image: int, *, score_threshold: float, max_detections: int = 100
) -> Detections:
    """Those of one image of the split, best first."""
    fields = []
    for label, found in enumerate(detections, 1):
        own = (found.image == image) & (found.scores >= score_threshold)
        fields.append((found.boxes[own], np.full(own.sum(), label, np.int32), found.scores[own]))
    boxes, labels, scores = (np.concatenate(field) for field in zip(*fields, strict=True))
    best = np.argsort(-scores, kind="stable")[:max_detections]
    return Detections(boxes[best], labels[best], scores[best])


class Evaluation(NamedTuple):
    """A split, what was found in it, and what `score` says to that."""

    dataset: Dataset
    detections: list[ClassDetections]  # K
    results: dict[str, Any]
    curves: dict[str, tuple[Curve, float | None]]


def make_evaluation(
    config: Mapping[str, Any], workdir: Path, model: FastRCNN, images: int | None = None
) -> tuple[Dataset, Callable[[Any], SplitPredictions]]:
    """The val split, or the first `images` of it, and a function from the model's variables to what they find in it.

    Raises:
        InputError: the data can't be read.
    """
    dataset = read_split(config, "val")
    dataset, proposals = with_proposals(config, workdir, Dataset(dataset.class_names, dataset.records[:images]))
    batches = TestBatches(dataset.records, proposals, image_sizes(config), model.network.spatial_scale)
    predict = make_predict_step(
        model,
        nms_iou=config["nms_iou"],
        candidates=config["candidates_per_class"],
        box_regression=config["test_box_regression"],
    )
    return dataset, lambda variables: predict_split(predict, variables, batches, len(dataset.class_names))


def evaluate_workdir(
    workdir: Path,
    *,
    step: int | None = None,
    metric: str = "voc07_11point",
    iou_threshold: float = 0.5,
    images: int | None = None,
    pictures: Path | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Scores a workdir's newest checkpoint (or `step`'s) on its val split, or on the first `images` of it, and draws
    detections and curves into the folder `pictures`, if one is given. Its results have "seconds_per_image" and "step".
    `overrides` are fields that take other values than in training.

    Raises:
        InputError: there is no such checkpoint, a field is out of its range, or the data can't be read.
    """
    config = {**read_config(workdir), **(overrides or {})}
    check_config(config)
    model, variables, step = load_variables(workdir, config, step)
    dataset, evaluate = make_evaluation(config, workdir, model, images)
    predictions = evaluate(variables)
    results, curves = score(predictions.by_class, dataset, metric=metric, iou_threshold=iou_threshold)
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
        plot_precision_recall(curves, pictures / "precision_recall.png")
        for i, record in enumerate(dataset.records[: config["pictures"]]):
            found = image_detections(predictions.by_class, i, score_threshold=config["picture_threshold"])
            name = record.image_id.replace("/", "_")
            _compare(record, found, dataset.class_names).save(pictures / f"{name}.png")
    results |= {"seconds_per_image": predictions.seconds_per_image, "step": step}
    return Evaluation(dataset, predictions.by_class, results, curves)


def compare_workdirs(workdirs: Sequence[Path], *, images: int | None = None) -> list[dict[str, Any]]:
    """Scores each workdir on its val split, or the first `images` of it, and prints mAP and seconds an image."""
    results = [evaluate_workdir(workdir, images=images).results for workdir in workdirs]
    for workdir, found in zip(workdirs, results, strict=True):
        score = "-" if found["map"] is None else format(found["map"], ".4f")
        print(f"{workdir}: mAP {score} on {found['images']} images, {found['seconds_per_image'] or 0:.3f} s an image")
    return results


def _compare(record: Record, found: Detections, class_names: Sequence[str]) -> Image:
    image = record.load()
    truth = [
        class_names[label - 1] + (" (difficult)" if difficult else "")
        for label, difficult in zip(record.labels, record.difficult, strict=True)
    ]
    captions = [
        f"{class_names[label - 1]} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)
    ]
    return side_by_side(
        draw_boxes(image, record.boxes, record.labels, truth), draw_boxes(image, found.boxes, found.labels, captions)
    )


def results_table(results: Mapping[str, Any]) -> str:
    """AP by class and mAP, as text."""
    width = max(map(len, results["aps"]))
    lines = [f"{name:<{width}}  {'-' if ap is None else format(ap, '.4f')}" for name, ap in results["aps"].items()]
    total = "-" if results["map"] is None else format(results["map"], ".4f")
    how = f"{results['protocol']}, IoU > {results['iou_threshold']}, {results['images']} images"
    return "\n".join([*lines, f"{'mAP':<{width}}  {total}  ({how})"])
