"""Builders from a config: model, frozen parameters, image sizes, detection options, splits and proposals.

Only command lines and workdirs use them; all other modules take plain arguments.
"""

import math
import sys
from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frcnn_jax.config import Config
from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.problems import OnProblem, problem_handler
from frcnn_jax.data.readers import read_split
from frcnn_jax.data.records import Dataset, without_difficult
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.predict import DetectionOptions
from frcnn_jax.files import read_json
from frcnn_jax.models.fast_rcnn import FastRCNN, example_inputs
from frcnn_jax.models.networks import get_network
from frcnn_jax.models.parameters import paths_before
from frcnn_jax.models.pools import with_pool
from frcnn_jax.proposals.cache import search_images
from frcnn_jax.proposals.load import load_proposals, make_search, split_source
from frcnn_jax.training.hosts import fail_together

SPLIT_FILE = "split.json"  # of a workdir: the image ids of both splits, of a data set in any layout


def build_model(config: Config, num_classes: int) -> FastRCNN:
    """Return the model for K classes.

    Raises:
        InputError: The network's function returns no such model, or the pool can't be changed.
    """
    model = get_network(config["network"]).build(
        num_classes,
        dtype=jnp.dtype(config["compute_type"]),
        fc_ranks=config["fc_ranks"],
        classifier=config["classifier"],
    )
    return with_pool(model, config["pool"]) if config["pool"] else model


def frozen_parameters(config: Config) -> tuple[str, ...]:
    """Return the patterns (`models.parameters`) of the parameters that are not trained.

    Raises:
        InputError: `train_from` names no layer of the network.
    """
    frozen, first = tuple(config["freeze"]), config["train_from"]
    if first:
        return paths_before(build_model(config, 1), example_inputs(), first) + frozen
    return frozen or get_network(config["network"]).frozen


def image_sizes(config: Config) -> tuple[Sizes, ...]:
    """Return the sizes to which images are resized; several make an image pyramid."""
    exact, scales = config["buckets"] == "exact", config["scales"] or (config["min_size"],)
    return tuple(Sizes(shorter, config["max_size"], exact=exact) for shorter in scales)


def total_steps(config: Config, images: int) -> int:
    """Return the number of steps, of `reference_images` each, of a training on so many images."""
    return max(config["steps"], math.ceil(config["epochs"] * images / config["reference_images"]))


def detection_options(config: Config) -> DetectionOptions:
    """Return the options of NMS, box regression and voting."""
    names = "nms_iou", "candidates_per_class", "test_box_regression", "vote_iou"
    return DetectionOptions(*(config[name] for name in names))


def read_split_of(
    config: Config, split: str, on_problem: OnProblem | None = None, *, workdir: Path | None = None
) -> Dataset:
    """Read the train or the val split; say what was recognised in a data set of any layout.

    Args:
        config: The config.
        split: "train" or "val".
        on_problem: Called with each problem that the reader finds; where None, the config's `on_error` decides.
        workdir: A workdir, whose `split.json` divides a data set without splits if it is there.

    Raises:
        InputError: See `read_split`.
    """
    folder = config["voc_dir" if config["dataset"] == "voc" else "data_dir"]
    handler = nullcontext(on_problem) if on_problem else problem_handler(config["on_error"], f"{split} split")
    with handler as report:
        dataset = read_split(
            config["dataset"],
            split=config[f"{split}_split"],
            folder=folder or None,
            year=config["year"],
            images=config[f"{split}_images"],
            class_names=config["class_names"],
            include_difficult=split == "val" or (config["train_difficult"] and config["dataset"] != "coco"),
            exif=config["exif"],
            seed=config["seed"],
            drawn=_recorded_split(workdir / SPLIT_FILE) if workdir else None,
            on_problem=report,
        )
    if dataset.description and split == "train":
        print(f"{config['data_dir']}: {dataset.description}", file=sys.stderr)
    if split == "train" and dataset.has_crowds:
        dataset = without_difficult(dataset)
    if split == "train" and not any(len(record.labels) for record in dataset.records):
        images = len(dataset.records)
        raise InputError(f"{folder}: none of the {images} train images has objects; are their annotations elsewhere?")
    return dataset


def _recorded_split(path: Path) -> dict[str, list[str]] | None:
    """Read the image ids of both splits; None if there is no file."""
    if not path.exists():
        return None
    found = read_json(path)
    try:
        ids = {split: list(found[split]) for split in ("train", "val")}
        if not all(isinstance(image_id, str) for own in ids.values() for image_id in own):
            raise TypeError
    except (KeyError, TypeError):
        raise InputError(f"{path}: not a split that frcnn train wrote") from None
    return ids


def load_proposals_of(
    config: Config, workdir: Path, dataset: Dataset, executor: Executor | None = None
) -> tuple[Dataset, Mapping[str, np.ndarray]]:
    """Return a split without unusable images, and its proposals. Several processes share the search.

    Args:
        config: The config.
        workdir: Folder of the search cache, unless the config names another.
        dataset: The split.
        executor: Runs the searches; local processes where None.

    Raises:
        InputError: See `load_proposals`.
    """
    size, max_boxes = config["proposal_size"] or None, config["max_proposals"]
    options: dict[str, Any] = {
        "cache_dir": Path(config["proposal_cache"] or workdir / "proposals"),
        "workers": config["workers"] or None,
        "executor": executor,
    }
    if jax.process_count() > 1:
        images = {record.image_id: record.load for record in dataset.records}
        share = {i: images[i] for i in sorted(images)[jax.process_index() :: jax.process_count()]}
        with fail_together():
            for name in split_source(config["proposals"]):
                if search := make_search(name, size=size, max_boxes=max_boxes):
                    search_images(share, search, **options, on_problem=lambda _: None)
    with problem_handler(config["on_error"], "images and proposals") as on_problem:
        return load_proposals(
            dataset, source=config["proposals"], size=size, max_boxes=max_boxes, **options, on_problem=on_problem
        )
