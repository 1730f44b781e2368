"""Scores of a network over a split, the VOC protocol, and its files.

Shape letters: K foreground classes, D detections.
"""

import json
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather, sync_global_devices
from PIL.Image import Image
from tqdm import tqdm

from frcnn_jax.coco import read_coco
from frcnn_jax.config import check_config
from frcnn_jax.datasets import VOC_CLASSES, Dataset, Record, read_voc, read_xml_folder, stop, without_difficult
from frcnn_jax.detect import Detections, Predictions, image_sizes, load_variables, make_predict_step, read_config
from frcnn_jax.errors import InputError
from frcnn_jax.files import write_whole
from frcnn_jax.metrics import (
    ClassDetections,
    Curve,
    ProposalRecall,
    average_precision,
    mean_average_precision,
    precision_recall,
    proposal_recall,
)
from frcnn_jax.models import FastRCNN
from frcnn_jax.pipeline import TestBatches, prefetch
from frcnn_jax.proposal_files import read_proposals
from frcnn_jax.proposals import make_proposals
from frcnn_jax.synthetic import read_synthetic
from frcnn_jax.tfds_voc import read_tfds
from frcnn_jax.visualize import draw_boxes, plot_precision_recall, side_by_side

DATASETS = ("synthetic", "voc", "xml", "coco", "tfds:voc/2007", "tfds:voc/2012")


def read_split(
    config: Mapping[str, Any], split: str, on_problem: Callable[[InputError], None] | None = None
) -> Dataset:
    """The train or the val split that a config names. What its reader finds wrong goes to `on_problem`; where None, it
    is raised, or, where `on_error` is "skip", left out and counted.

    Raises:
        InputError: an unknown data set, no folder given, or what its reader finds wrong.
    """
    if on_problem or config["on_error"] == "stop":
        return _read_split(config, split, on_problem or stop)
    problems: list[InputError] = []
    dataset = _read_split(config, split, problems.append)
    _say_skipped(f"{split} split", problems)
    return dataset


def _say_skipped(what: str, problems: Sequence[InputError]) -> None:
    if problems:
        print(f"{what}: {len(problems)} objects, boxes or images left out, the first: {problems[0]}", file=sys.stderr)


def _read_split(config: Mapping[str, Any], split: str, report: Callable[[InputError], None]) -> Dataset:
    seen: list[InputError] = []

    def on_problem(problem: InputError) -> None:
        seen.append(problem)
        report(problem)

    if config["dataset"] == "synthetic":
        dataset = read_synthetic(config[f"{split}_split"], config[f"{split}_images"])
        if tuple(config["class_names"]) not in ((), dataset.class_names):
            raise InputError(
                f"the synthetic set has the classes {', '.join(dataset.class_names)}; leave class_names empty"
            )
        return dataset
    if config["dataset"] == "voc":
        if not config["voc_dir"]:
            raise InputError("the data set 'voc' needs --config.voc_dir=VOCDEVKIT, the folder that holds VOC<year>")
        names = config["class_names"] or VOC_CLASSES
        dataset = read_voc(Path(config["voc_dir"]), config["year"], config[f"{split}_split"], names, on_problem)
    elif config["dataset"] in DATASETS and config["dataset"].startswith("tfds:"):
        folder, name = Path(config["data_dir"]) if config["data_dir"] else None, config["dataset"].removeprefix("tfds:")
        dataset = read_tfds(name, config[f"{split}_split"], folder, on_problem)
    elif config["dataset"] in ("xml", "coco"):
        folder, name, names = Path(config["data_dir"]), config[f"{split}_split"], config["class_names"]
        if not config["data_dir"]:
            raise InputError(f"the data set {config['dataset']!r} needs --config.data_dir=FOLDER")
        if config["dataset"] == "xml":
            dataset = read_xml_folder(folder / name, names, on_problem)
        else:
            dataset = read_coco(folder / "annotations" / f"instances_{name}.json", folder / name, names, on_problem)
    else:
        raise InputError(f"dataset must be one of {', '.join(DATASETS)}, got {config['dataset']!r}")
    if not dataset.records or not dataset.class_names:
        what = "image" if dataset.class_names else "class"
        raise InputError(f"the {split} split has no {what}{f'; the first problem: {seen[0]}' if seen else ''}")
    easy_only = split == "train" and (config["dataset"] == "coco" or not config["train_difficult"])
    return without_difficult(dataset) if easy_only else dataset


def with_proposals(
    config: Mapping[str, Any], workdir: Path, dataset: Dataset, executor: Executor | None = None
) -> tuple[Dataset, Mapping[str, np.ndarray]]:
    """The set, where `on_error` is "skip" without images that can't be loaded or have no proposals, and by image id its
    proposals: those of the files that the config names, or selective search's, through the cache that it names and run
    by the executor, if one is given.

    Raises:
        InputError: an image can't be loaded, or what `read_proposals` finds wrong.
    """
    problems: list[InputError] = []
    on_problem = stop if config["on_error"] == "stop" else problems.append
    records = dataset.records
    proposals: Mapping[str, np.ndarray] = {}
    if config["proposals"]:
        if config["on_error"] == "skip":
            records = [record for record in records if _can_be_loaded(record, on_problem)]
        if records:
            sizes = {record.image_id: (record.height, record.width) for record in records}
            most = config["max_proposals"]
            proposals = read_proposals(config["proposals"], sizes=sizes, max_boxes=most, on_problem=on_problem)
    else:
        images = {record.image_id: record.load for record in records}
        search = partial(
            make_proposals,
            cache_dir=Path(config["proposal_cache"] or workdir / "proposals"),
            mode=config["proposal_mode"],
            max_boxes=config["max_proposals"],
            workers=config["workers"] or None,
            executor=executor,
        )
        if jax.process_count() > 1:  # each process fills the cache with its share
            share = sorted(images)[jax.process_index() :: jax.process_count()]
            search({image_id: images[image_id] for image_id in share}, on_problem=lambda problem: None)
            sync_global_devices("proposals")
        proposals = search(images, on_problem=on_problem)
    _say_skipped("images and proposals", problems)
    records = [record for record in records if record.image_id in proposals]
    if not records:
        raise InputError(f"none of the {len(dataset.records)} images can be loaded, the first: {problems[0]}")
    return Dataset(dataset.class_names, records), proposals


def _can_be_loaded(record: Record, on_problem: Callable[[InputError], None]) -> bool:
    try:
        record.load()
    except InputError as problem:
        on_problem(problem)
        return False
    return True


RECALL_IOUS = tuple(i / 40 for i in range(20, 41))  # 0.5 to 1
_RECALL_NUMBERS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)


def split_recall(
    dataset: Dataset, proposals: Mapping[str, np.ndarray], max_boxes: int
) -> tuple[list[int], ProposalRecall]:
    """Numbers of proposals up to `max_boxes`, and the recall of the first that many at RECALL_IOUS, difficult objects
    left out."""
    numbers = [*(n for n in _RECALL_NUMBERS if n < max_boxes), max_boxes]
    records = without_difficult(dataset).records
    boxes = (proposals[record.image_id] for record in records)
    truth = (record.boxes for record in records)
    return numbers, proposal_recall(boxes, truth, iou_thresholds=RECALL_IOUS, numbers=numbers)


def recall_table(numbers: Sequence[int], recall: ProposalRecall) -> str:
    """Recall by number of proposals and by IoU, and average recall, as text."""
    shown = [RECALL_IOUS.index(iou) for iou in (0.5, 0.6, 0.7, 0.8, 0.9)]
    lines = ["proposals  " + "".join(f"IoU {RECALL_IOUS[i]:<5}" for i in shown) + "average"]
    for number, row, average in zip(numbers, recall.recall, recall.average, strict=True):
        lines.append(f"{number:>9}  " + "".join(f"{value:<9.3f}" for value in [*row[shown], average]).rstrip())
    return "\n".join(lines)


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
    if jax.process_count() == 1:
        return rows
    counts = process_allgather(np.array([len(rows)]))
    padded = np.zeros((counts.max(), 7), np.float32)  # exact: they were float32 or small integers
    padded[: len(rows)] = rows
    gathered = process_allgather(padded)
    rows = np.concatenate([own[: int(count)] for own, count in zip(gathered, counts.ravel(), strict=True)])
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


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def _comp4_file(folder: Path, split: str, class_name: str) -> Path:
    return folder / f"comp4_det_{split}_{class_name}.txt"


def write_comp4(
    folder: Path, detections: Sequence[ClassDetections], dataset: Dataset, *, year: int, split: str
) -> None:
    """VOC's result files, one a class, into results/VOC<year>/Main of `folder`: lines `id score x1 y1 x2 y2`, best
    first, boxes 1-based and with one decimal.

    Scores have six decimals; the paper's code writes three, which makes ties of the low ones. `read_comp4` keeps the
    order of ties, so the ranking survives.

    Raises:
        InputError: the split or a class holds a "/", or the id of an image white space.
    """
    inner = folder / "results" / f"VOC{year}" / "Main"
    for name in (split, *dataset.class_names):
        if "/" in name:
            raise InputError(f"{name!r} can't be part of the name of a result file: it holds a '/'")
    for record in dataset.records:
        if record.image_id.split() != [record.image_id]:
            raise InputError(f"the image id {record.image_id!r} can't stand in a result file: it holds white space")
    inner.mkdir(parents=True, exist_ok=True)
    for name, found in zip(dataset.class_names, detections, strict=True):
        lines = []
        for i in np.argsort(-found.scores, kind="stable"):
            box = " ".join(f"{side + 1:.1f}" for side in found.boxes[i])
            lines.append(f"{dataset.records[found.image[i]].image_id} {found.scores[i]:.6f} {box}\n")
        write_text(_comp4_file(inner, split, name), "".join(lines))


def read_comp4(folder: Path, dataset: Dataset, *, year: int, split: str) -> list[ClassDetections]:
    """Detections from VOC's result files `comp4_det_<split>_<class>.txt`, in `folder` or its results/VOC<year>/Main.

    Raises:
        InputError: a file is missing, or a line is not `id score x1 y1 x2 y2` for an image of the split.
    """
    for inner in (folder / "results" / f"VOC{year}" / "Main", folder):
        if inner.is_dir():
            break
    place = {record.image_id: i for i, record in enumerate(dataset.records)}
    detections = []
    for name in dataset.class_names:
        path = _comp4_file(inner, split, name)
        try:
            lines = path.read_text().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{path}: no such result file (one for each class is expected)") from None
        image, numbers = [], []
        for number, line in enumerate(lines, 1):
            try:
                image_id, *values = line.split()
                score, x1, y1, x2, y2 = map(float, values)
                image.append(place[image_id])
            except ValueError:
                raise InputError(f"{path}:{number}: expected 'id score x1 y1 x2 y2', got {line!r}") from None
            except KeyError:
                raise InputError(f"{path}:{number}: image {image_id!r} is not in the split {split!r}") from None
            numbers.append((score, x1 - 1, y1 - 1, x2 - 1, y2 - 1))  # 1-based in the file
        array = np.array(numbers).reshape(-1, 5)
        if not np.isfinite(array).all():
            raise InputError(f"{path}: holds numbers that are not finite")
        detections.append(ClassDetections(np.array(image, int), array[:, 0], array[:, 1:]))
    return detections
