"""Names every problem of a data set (file, image, box, what is wrong) and prints its statistics:

    python scripts/check_dataset.py [--recall FOLDER] --config.dataset=xml --config.data_dir=FOLDER ...

Reads the train and the val split that the config names, loads every image, and exits with 1 if anything is wrong. A
split that can't be read at all is one problem; the other one is checked all the same.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from frcnn_jax.config import check_config, read_arguments
from frcnn_jax.data.records import Dataset, Record
from frcnn_jax.errors import InputError, run_main
from frcnn_jax.evaluation.recall import recall_table, split_recall
from frcnn_jax.files import check_folder
from frcnn_jax.splits import read_split, with_proposals


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


@contextmanager
def gathered(problems: list[InputError | OSError]) -> Iterator[None]:
    """What ends the block is one more problem."""
    try:
        yield
    except (InputError, OSError) as problem:
        problems.append(problem)


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--recall", type=Path, metavar="FOLDER", help="proposals of the val split, kept there, and their recall"
    )
    args, fields = parser.parse_known_args(argv)
    config = read_arguments(fields)
    check_config(config)
    if args.recall:
        check_folder(args.recall)
    problems: list[InputError | OSError] = []
    datasets = {}
    for split in ("train", "val"):
        with gathered(problems):
            dataset = datasets[split] = read_split(config, split, problems.append)
            config["class_names"] = dataset.class_names if config["dataset"] != "synthetic" else ()
            with ThreadPoolExecutor() as pool:
                loaded = tqdm(pool.map(image_problem, dataset.records), split, len(dataset.records), unit="image")
                problems += filter(None, loaded)
            print(f"{split} split, {config[f'{split}_split']}:\n{statistics(dataset)}")
    if args.recall and "val" in datasets:
        with gathered(problems):
            dataset, proposals = with_proposals({**config, "on_error": "skip"}, args.recall, datasets["val"])
            table = recall_table(*split_recall(dataset, proposals, config["max_proposals"]))
            print(f"recall of the proposals of the val split:\n{table}")
    texts = dict.fromkeys(map(str, problems))  # what is wrong with the config is so for both splits
    print(*texts, f"{len(texts)} problems", sep="\n")
    if texts:
        sys.exit(1)


if __name__ == "__main__":
    run_main(main)
