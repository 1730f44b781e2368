"""Names every problem of a data set (file, image, box, what is wrong) and prints its statistics:

    python scripts/check_dataset.py [--recall FOLDER] --config.dataset=xml --config.data_dir=FOLDER ...

Reads the train and the val split that the config names, loads every image, and exits with 1 if anything is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from frcnn_jax.config import check_config, read_arguments
from frcnn_jax.datasets import Dataset, Record
from frcnn_jax.errors import InputError, run_main
from frcnn_jax.splits import read_split, recall_table, split_recall, with_proposals


def image_problem(record: Record) -> InputError | None:
    try:
        record.load()
    except InputError as problem:
        return problem
    return None


def statistics(dataset: Dataset) -> str:
    records = dataset.records
    labels, difficult = (np.concatenate([getattr(r, name) for r in records]) for name in ("labels", "difficult"))
    boxes = np.concatenate([record.boxes for record in records])
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1))
    width = max(map(len, dataset.class_names))
    lines = [f"  {'class':<{width}}  images  objects  difficult  side in pixels: least, median, most"]
    for label, name in enumerate(dataset.class_names, 1):
        own = labels == label
        spread = "  ".join(f"{v:.0f}" for v in np.quantile(sides[own], (0, 0.5, 1))) if own.any() else "-"
        images = sum((record.labels == label).any() for record in records)
        lines.append(f"  {name:<{width}}  {images:6}  {own.sum():7}  {difficult[own].sum():9}  {spread}")
    heights, widths = ([getattr(r, name) for r in records] for name in ("height", "width"))
    empty = sum(not len(record.labels) for record in records)
    lines.append(
        f"  {len(records)} images, {min(widths)} to {max(widths)} pixels wide, {min(heights)} to {max(heights)} high"
    )
    lines.append(f"  {len(labels)} objects, {difficult.sum()} of them difficult; {empty} images without any")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recall", type=Path, metavar="FOLDER", help="proposals of the val split, kept there, and their recall"
    )
    args, fields = parser.parse_known_args(argv)
    config = read_arguments(fields)
    check_config(config)
    most = config["max_proposals"]
    problems: list[InputError] = []
    for split in ("train", "val"):
        dataset = read_split(config, split, problems.append)
        config["class_names"] = dataset.class_names if config["dataset"] != "synthetic" else ()
        with ThreadPoolExecutor() as pool:
            loaded = tqdm(pool.map(image_problem, dataset.records), split, len(dataset.records), unit="image")
            problems += filter(None, loaded)
        print(f"{split} split, {config[f'{split}_split']}:\n{statistics(dataset)}")
    if args.recall:
        dataset, proposals = with_proposals({**config, "on_error": "skip"}, args.recall, dataset)
        print(f"recall of the proposals of the val split:\n{recall_table(*split_recall(dataset, proposals, most))}")
    print(*problems, f"{len(problems)} problems", sep="\n")
    if problems:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
