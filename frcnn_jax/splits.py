"""The splits and proposals that a config names."""

from collections.abc import Mapping
from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np

from frcnn_jax.data import readers
from frcnn_jax.data.problems import OnProblem, problem_handler
from frcnn_jax.data.records import Dataset
from frcnn_jax.proposals.load import load_proposals
from frcnn_jax.proposals.search import search_images
from frcnn_jax.training.hosts import all_or_none


def read_split(config: Mapping[str, Any], split: str, on_problem: OnProblem | None = None) -> Dataset:
    """`readers.read_split` for the "train" or "val" split of a config."""
    folder = config["voc_dir" if config["dataset"] == "voc" else "data_dir"]
    handler = nullcontext(on_problem) if on_problem else problem_handler(config["on_error"], f"{split} split")
    with handler as report:
        return readers.read_split(
            config["dataset"],
            config[f"{split}_split"],
            folder=Path(folder) if folder else None,
            year=config["year"],
            images=config[f"{split}_images"],
            class_names=config["class_names"],
            include_difficult=split == "val" or (config["train_difficult"] and config["dataset"] != "coco"),
            on_problem=report,
        )


def with_proposals(
    config: Mapping[str, Any], workdir: Path, dataset: Dataset, executor: Executor | None = None
) -> tuple[Dataset, Mapping[str, np.ndarray]]:
    """`load_proposals` as a config says; several processes first fill the cache together."""
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
        with all_or_none():
            search_images({image_id: images[image_id] for image_id in share}, **search, on_problem=lambda _: None)
    with problem_handler(config["on_error"], "images and proposals") as on_problem:
        return load_proposals(dataset, source=config["proposals"], **search, on_problem=on_problem)
