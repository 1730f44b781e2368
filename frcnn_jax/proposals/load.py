"""Proposals for a dataset, searched or read from files."""

from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path

import numpy as np

from frcnn_jax.data.problems import OnProblem, ReportTo, noting, stop
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.proposals.files import read_proposals
from frcnn_jax.proposals.search import search_images


def load_proposals(
    dataset: Dataset,
    *,
    source: str | Path = "",
    cache_dir: str | Path,
    mode: str = "fast",
    max_boxes: int = 2000,
    workers: int | None = None,
    executor: Executor | None = None,
    on_problem: OnProblem = stop,
) -> tuple[Dataset, Mapping[str, np.ndarray]]:
    """Return the proposals of every image of a dataset, from `source` or by selective search.

    Args:
        dataset: The images.
        source: Files of proposals, see `read_proposals`; selective search if empty.
        cache_dir: Where the search keeps its results.
        mode: Of the search, "fast" or "quality".
        max_boxes: The most boxes per image; the first ones are kept.
        workers: Processes of the search; by default one per core.
        executor: Runs the search in place of those.
        on_problem: Receives images that can't be loaded or have no proposals, and what `read_proposals` reports. With
            `stop`, the default, files of proposals are read without loading any image.

    Returns:
        The dataset without the images reported to `on_problem`, and `(N, 4)` float32 boxes by image id.

    Raises:
        InputError: No image is left, or see `read_proposals` and `search_images`.
    """
    problems: list[InputError] = []
    handler = noting(problems, on_problem)
    proposals: Mapping[str, np.ndarray] = {}
    if not source:
        proposals = search_images(
            {record.image_id: record.load for record in dataset.records},
            cache_dir=cache_dir,
            mode=mode,
            max_boxes=max_boxes,
            workers=workers,
            executor=executor,
            on_problem=handler,
        )
    else:
        sizes = {}
        for record in dataset.records:
            with ReportTo(handler):
                if on_problem is not stop:
                    record.load()
                sizes[record.image_id] = (record.height, record.width)
        if sizes:
            proposals = read_proposals(source, sizes=sizes, max_boxes=max_boxes, on_problem=handler)
    records = [record for record in dataset.records if record.image_id in proposals]
    if not records:
        first = f"; first problem: {problems[0]}" if problems else ""
        raise InputError(f"none of the {len(dataset.records)} images can be used{first}")
    return Dataset(dataset.class_names, records), proposals
