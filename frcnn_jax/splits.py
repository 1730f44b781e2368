"""The splits that a config names: their records, and their proposals."""

import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from frcnn_jax.data.coco import read_coco
from frcnn_jax.data.records import Dataset, Record, stop, without_difficult
from frcnn_jax.data.synthetic import read_synthetic
from frcnn_jax.data.tfds import read_tfds
from frcnn_jax.data.voc import VOC_CLASSES, read_voc, read_xml_folder
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.metrics import ProposalRecall, proposal_recall
from frcnn_jax.proposals.files import read_proposals
from frcnn_jax.proposals.search import make_proposals
from frcnn_jax.training.hosts import fail_together

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
            with fail_together():
                search({image_id: images[image_id] for image_id in share}, on_problem=lambda problem: None)
        proposals = search(images, on_problem=on_problem)
    _say_skipped("images and proposals", problems)
    records = [record for record in records if record.image_id in proposals]
    if not records:
        raise InputError(f"none of the {len(dataset.records)} images is left, the first problem: {problems[0]}")
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
    """Recall by number of proposals and by IoU, and average recall, as text; one line where there is no object."""
    if np.isnan(recall.average).any():
        return "no objects, or difficult ones only"
    shown = [RECALL_IOUS.index(iou) for iou in (0.5, 0.6, 0.7, 0.8, 0.9)]
    lines = ["proposals  " + "".join(f"IoU {RECALL_IOUS[i]:<5}" for i in shown) + "average"]
    for number, row, average in zip(numbers, recall.recall, recall.average, strict=True):
        lines.append(f"{number:>9}  " + "".join(f"{value:<9.3f}" for value in [*row[shown], average]).rstrip())
    return "\n".join(lines)
