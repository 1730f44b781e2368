"""Report every problem in a data set (file, image, box), its statistics, and what looks wrong, with what to do:

    frcnn check-dataset [--report FOLDER] [--recall FOLDER] [--config RECIPE] --config.data_dir=FOLDER ...

Reads both splits of the config, loads every image, and exits with status 1 if there is any problem; it prints the first
30 of them. A split that can't be read counts as one problem; the other split is still checked. Remarks do not change
the status.
"""

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from frcnn_jax.build import image_sizes, load_proposals_of, read_split_of
from frcnn_jax.cli import command_parser, run
from frcnn_jax.config import add_config_argument, load_config
from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.problems import CorrectedError, count_corrections
from frcnn_jax.data.records import ImageFile, Record
from frcnn_jax.data.splits import find_copies, image_sketch, shared_images
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.dataset_check import (
    Remark,
    class_remarks,
    class_table,
    copy_remarks,
    format_table,
    gather_objects,
    recall_by_class,
    shared_remarks,
    split_remarks,
    totals,
)
from frcnn_jax.evaluation.dataset_report import SplitReport, write_dataset_report
from frcnn_jax.evaluation.recall import recall_table, split_recall
from frcnn_jax.files import check_file, check_folder

Problems = list[InputError | OSError]
SHOWN = 30  # problems that are printed


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--report",
        type=Path,
        metavar="FOLDER",
        help="write statistics and remarks, with pictures, to FOLDER/index.html; or to a file that ends in .html",
    )
    parser.add_argument(
        "--recall", type=Path, metavar="FOLDER", help="cache proposals of the val split in FOLDER, print their recall"
    )
    add_config_argument(parser)
    args, fields = parser.parse_known_args(argv)
    config = load_config(args.config, fields)
    report = _report_file(args.report) if args.report else None
    if args.recall:
        check_folder(args.recall)
    problems: Problems = []
    splits: dict[str, SplitReport] = {}
    sketches: dict[str, dict[str, np.ndarray]] = {}
    size = max(image_sizes(config), key=lambda sizes: sizes.shorter)
    for split in ("train", "val"):
        with _gathered(problems):
            found, sketches[split] = _check_split(config, split, size, problems)
            splits[split] = found
            config["class_names"] = found.dataset.class_names if config["dataset"] != "synthetic" else ()
            print(
                f"{split} split, {config[f'{split}_split']}:\n{format_table(found.classes)}\n  {totals(found.dataset)}"
            )
    if args.recall and "val" in splits:
        with _gathered(problems):
            splits["val"] = _with_recall(config, args.recall, splits["val"], size)
    remarks = class_remarks({name: (split.dataset, split.objects) for name, split in splits.items()})
    if len(splits) == 2:
        train, val = (split.dataset for split in splits.values())
        shared = shared_images(train.records, val.records)
        said = {*shared.same, *shared.alike}
        others = {image_id: sketch for image_id, sketch in sketches["val"].items() if image_id not in said}
        remarks += shared_remarks(shared, val) + copy_remarks(find_copies(sketches["train"], others), val)
    remarks += [Remark(f"corrected: {line}") for line in count_corrections(problems)]
    # a problem common to both splits is printed once
    texts = list(dict.fromkeys(str(problem) for problem in problems if not isinstance(problem, CorrectedError)))
    lines = [remark.text for remark in remarks]
    lines += [f"{name} split: {remark.text}" for name, split in splits.items() for remark in split.remarks]
    advice = "; to train without what is broken: --config.on_error=skip" if texts and len(splits) == 2 else ""
    counts = _count(lines, "remark"), _count(texts, "problem") + advice
    more = [f"... and {len(texts) - SHOWN} more; --report writes all"] if len(texts) > SHOWN else []
    print(counts[0], *(f"- {line}" for line in lines), *texts[:SHOWN], *more, counts[1], sep="\n")
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_dataset_report(report, splits, remarks=remarks, problems=texts)
        print(f"report: {report}", file=sys.stderr)
    if texts:
        sys.exit(1)


def _count(lines: Sequence[str], what: str) -> str:
    return f"{len(lines)} {what}" + "s" * (len(lines) != 1)


def _report_file(path: Path) -> Path:
    """Return the file of the report; InputError if it can't be written."""
    if path.suffix.lower() in (".html", ".htm"):
        check_file(path)
        return path
    check_folder(path)
    return path / "index.html"


def _check_split(
    config: dict[str, Any], split: str, size: Sizes, problems: Problems
) -> tuple[SplitReport, dict[str, np.ndarray]]:
    """Read a split and load its images; append what is wrong to `problems`. Return sketches of the images too."""
    dataset = read_split_of(config, split, problems.append)
    with ThreadPoolExecutor() as pool:
        loaded = list(tqdm(pool.map(_sketch, dataset.records), split, len(dataset.records), unit="image"))
    problems += [found for found in loaded if isinstance(found, InputError)]
    sketches = {
        record.image_id: found
        for record, found in zip(dataset.records, loaded, strict=True)
        if not isinstance(found, InputError)
    }
    objects = gather_objects(dataset, size)
    remarks = split_remarks(dataset, objects, size=size, nms_iou=config["nms_iou"])
    if untold := [record for record in dataset.records if _has_untold_orientation(record)]:
        how = "turned upright" if config["exif"] == "apply" else "read as stored"
        text = f"{len(untold)} images have an EXIF orientation untold by their size: {how}; see --config.exif"
        remarks.append(Remark(text, [(record, record.boxes) for record in untold]))
    return SplitReport(dataset, objects, class_table(dataset, objects, config["nms_iou"]), remarks), sketches


def _sketch(record: Record) -> np.ndarray | InputError:
    """Return the sketch of a record's image, or what prevents that it is loaded."""
    try:
        return image_sketch(record.load())
    except InputError as problem:
        return problem


def _with_recall(config: dict[str, Any], cache: Path, split: SplitReport, size: Sizes) -> SplitReport:
    """Print the recall of the proposals of a split; return the split with the recall by class and remarks on it."""
    dataset, proposals = load_proposals_of({**config, "on_error": "skip"}, cache, split.dataset)
    numbers = config["max_proposals"]
    print(f"recall of the proposals of the val split:\n{recall_table(*split_recall(dataset, proposals, numbers))}")
    table, remarks = recall_by_class(dataset, proposals, gather_objects(dataset, size), numbers)
    print(f"recall at IoU 0.5 by class and by side as the network sees it, of so many objects:\n{format_table(table)}")
    return split._replace(recall=table, remarks=[*split.remarks, *remarks])


def _has_untold_orientation(record: Record) -> bool:
    try:
        return isinstance(record.load, ImageFile) and record.load.has_untold_orientation()
    except InputError:  # `_sketch` returns it
        return False


@contextmanager
def _gathered(problems: Problems) -> Iterator[None]:
    """Append an error that ends the block to `problems`."""
    try:
        yield
    except (InputError, OSError) as problem:
        problems.append(problem)


if __name__ == "__main__":
    run("check-dataset")
