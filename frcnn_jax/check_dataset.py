"""Report every problem in a data set (file, image, box), and print its statistics:

    frcnn check-dataset [--recall FOLDER] [--config RECIPE] --config.dataset=xml --config.data_dir=FOLDER ...

Reads both splits of the config, loads every image, and exits with status 1 if there is any problem. A split that can't
be read counts as one problem; the other split is still checked.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tqdm import tqdm

from frcnn_jax.build import load_proposals_of, read_split_of
from frcnn_jax.cli import command_parser, run
from frcnn_jax.config import add_config_argument, load_config
from frcnn_jax.data.problems import CorrectedError, count_corrections
from frcnn_jax.data.records import Dataset, ImageFile, Record, load_problem
from frcnn_jax.data.splits import describe_shared, shared_images
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.recall import recall_table, split_recall
from frcnn_jax.files import check_folder


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--recall", type=Path, metavar="FOLDER", help="cache proposals of the val split in FOLDER, print their recall"
    )
    add_config_argument(parser)
    args, fields = parser.parse_known_args(argv)
    config = load_config(args.config, fields)
    if args.recall:
        check_folder(args.recall)
    problems: list[InputError | OSError] = []
    datasets = {}
    for split in ("train", "val"):
        with _gathered(problems):
            dataset = datasets[split] = read_split_of(config, split, problems.append)
            config["class_names"] = dataset.class_names if config["dataset"] != "synthetic" else ()
            with ThreadPoolExecutor() as pool:
                loaded = tqdm(pool.map(load_problem, dataset.records), split, len(dataset.records), unit="image")
                problems += filter(None, loaded)
            print(f"{split} split, {config[f'{split}_split']}:\n{_statistics(dataset)}")
            if untold := sum(map(_has_untold_orientation, dataset.records)):
                how = "turned upright" if config["exif"] == "apply" else "read as stored"
                print(f"  {untold} images have an EXIF orientation untold by their size: {how}; see --config.exif")
    if len(datasets) == 2:
        train, val = (dataset.records for dataset in datasets.values())
        print(*(f"{line}\n" for line in describe_shared(shared_images(train, val), len(val))), sep="", end="")
    if args.recall and "val" in datasets:
        with _gathered(problems):
            skip = {**config, "on_error": "skip"}
            dataset, proposals = load_proposals_of(skip, args.recall, datasets["val"])
            table = recall_table(*split_recall(dataset, proposals, config["max_proposals"]))
            print(f"recall of the proposals of the val split:\n{table}")
    for line in count_corrections(problems):
        print(line)
    # a problem common to both splits is printed once
    texts = dict.fromkeys(str(problem) for problem in problems if not isinstance(problem, CorrectedError))
    print(*texts, f"{len(texts)} problems", sep="\n")
    if texts:
        sys.exit(1)


def _has_untold_orientation(record: Record) -> bool:
    try:
        return isinstance(record.load, ImageFile) and record.load.has_untold_orientation()
    except InputError:  # `load_problem` reports it
        return False


def _statistics(dataset: Dataset) -> str:
    """Format objects per class and image sizes as text."""
    records = dataset.records
    labels, difficult = (np.concatenate([getattr(r, name) for r in records]) for name in ("labels", "difficult"))
    boxes = np.concatenate([record.boxes for record in records])
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1))
    width = max(map(len, dataset.class_names))
    lines = [f"  {'class':<{width}}  images  objects  difficult  side (pixels): min, median, max"]
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
    lines.append(f"  {len(labels)} objects, {difficult.sum()} of them difficult; {empty} images without objects")
    return "\n".join(lines)


@contextmanager
def _gathered(problems: list[InputError | OSError]) -> Iterator[None]:
    """Append an error that ends the block to `problems`."""
    try:
        yield
    except (InputError, OSError) as problem:
        problems.append(problem)


if __name__ == "__main__":
    run("check-dataset")
