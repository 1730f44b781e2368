"""What a config describes, built: the network, how images are resized and tested, the splits and their proposals.

Command lines call these; everything below takes plain arguments.
"""

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
from frcnn_jax.data.records import Dataset
from frcnn_jax.evaluation.predict import DetectionOptions
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.models.networks import Network, get_network
from frcnn_jax.proposals.load import load_proposals
from frcnn_jax.proposals.search import search_images
from frcnn_jax.training.hosts import fail_together


def build_network(config: Config) -> Network:
    """Return the row of the table of networks, with the layers frozen that the config names."""
    network = get_network(config["network"])
    return network.trained_from(config["train_from"]) if config["train_from"] else network


def build_model(config: Config, num_classes: int) -> FastRCNN:
    """Return the network for K classes."""
    return build_network(config).build(
        num_classes,
        dtype=jnp.dtype(config["compute_type"]),
        fc_ranks=config["fc_ranks"],
        classifier=config["classifier"],
    )


def image_sizes(config: Config) -> tuple[Sizes, ...]:
    """Return how images are resized: one size, or several for an image pyramid."""
    return tuple(Sizes(shorter, config["max_size"]) for shorter in config["scales"] or (config["min_size"],))


def detection_options(config: Config) -> DetectionOptions:
    """Return how scores and deltas become detections."""
    return DetectionOptions(config["nms_iou"], config["candidates_per_class"], config["test_box_regression"])


def read_split_of(config: Config, split: str, on_problem: OnProblem | None = None) -> Dataset:
    """Return the "train" or "val" split.

    Args:
        config: The config.
        split: Which of the two.
        on_problem: Gets every problem of the reader; where None, `on_error` says whether the first one raises.

    Raises:
        InputError: See `read_split`.
    """
    folder = config["voc_dir" if config["dataset"] == "voc" else "data_dir"]
    handler = nullcontext(on_problem) if on_problem else problem_handler(config["on_error"], f"{split} split")
    with handler as report:
        return read_split(
            config["dataset"],
            split=config[f"{split}_split"],
            folder=folder or None,
            year=config["year"],
            images=config[f"{split}_images"],
            class_names=config["class_names"],
            include_difficult=split == "val" or (config["train_difficult"] and config["dataset"] != "coco"),
            on_problem=report,
        )


def load_proposals_of(
    config: Config, workdir: Path, dataset: Dataset, executor: Executor | None = None
) -> tuple[Dataset, Mapping[str, np.ndarray]]:
    """Return a split without its unusable images, and its proposals; several processes fill the cache together.

    Args:
        config: The config.
        workdir: Holds the cache of selective search, unless the config names another folder.
        dataset: The split.
        executor: Runs the searches; processes of this machine where None.

    Raises:
        InputError: See `load_proposals`.
    """
    search: dict[str, Any] = {
        "cache_dir": Path(config["proposal_cache"] or workdir / "proposals"),
        "mode": config["proposal_mode"],
        "max_boxes": config["max_proposals"],
        "workers": config["workers"] or None,
        "executor": executor,
    }
    if jax.process_count() > 1 and not config["proposals"]:
        images = {record.image_id: record.load for record in dataset.records}
        share = sorted(images)[jax.process_index() :: jax.process_count()]
        with fail_together():
            search_images({image_id: images[image_id] for image_id in share}, **search, on_problem=lambda _: None)
    with problem_handler(config["on_error"], "images and proposals") as on_problem:
        return load_proposals(dataset, source=config["proposals"], **search, on_problem=on_problem)
