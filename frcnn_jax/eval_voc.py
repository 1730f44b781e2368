"""Score a trained workdir, or result files, by the VOC protocol:

    frcnn eval-voc --workdir W [--step N] [--images N] [--pictures DIR] [--comp4 DIR] [--config.FIELD=VALUE ...]
    frcnn eval-voc --detections DIR --voc VOCDEVKIT --year 2007 --split val

Both forms take --metric voc07_11point (the default) or area, --iou-threshold, --json F and --report DIR. A workdir is
scored on its val split with the config of its training; fields that may change at test can be overridden, as in
--config.test_box_regression=False.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from frcnn_jax.build import read_split_of
from frcnn_jax.cli import check_at_least, command_parser, run
from frcnn_jax.config import TEST_FIELDS, override_config
from frcnn_jax.data.voc import VOC_CLASSES, read_voc
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.comp4 import check_comp4, read_comp4, write_comp4
from frcnn_jax.evaluation.evaluator import Evaluation, save_pictures
from frcnn_jax.evaluation.metrics import METRICS
from frcnn_jax.evaluation.report import write_report
from frcnn_jax.evaluation.scores import results_table, score
from frcnn_jax.files import check_file, check_folder, write_json
from frcnn_jax.workdir import evaluate_workdir, read_config


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    args, fields = _parse(argv)
    scoring = {"metric": args.metric, "iou_threshold": args.iou_threshold}
    if args.workdir:
        config = override_config(read_config(args.workdir, network=args.network), fields, TEST_FIELDS)
        if args.comp4:
            check_comp4(read_split_of(config, "val", workdir=args.workdir), config["val_split"])
        found = evaluate_workdir(args.workdir, config, step=args.step, images=args.images, **scoring)
    else:
        names = args.classes.split(",") if args.classes else VOC_CLASSES
        dataset = read_voc(args.voc, split=args.split, year=args.year, class_names=names)
        detections = read_comp4(args.detections, dataset, year=args.year, split=args.split)
        found = Evaluation(dataset, detections, *score(detections, dataset, **scoring))
    print(results_table(found.results))
    if args.json:
        write_json(args.json, found.results)
    if args.pictures:
        count, threshold = config["pictures"], config["picture_threshold"]
        save_pictures(found, args.pictures, pictures=count, score_threshold=threshold)
    if args.report:
        write_report(args.report, found.dataset, found.detections, found.results, found.curves)
    if args.comp4:
        write_comp4(args.comp4, found.detections, found.dataset, year=config["year"], split=config["val_split"])


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = command_parser(__doc__, "--network", "--step", "--images", "--json")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, help="workdir of a training")
    source.add_argument("--detections", type=Path, help="folder of comp4 result files")
    parser.add_argument("--pictures", type=Path, help="folder for pictures of detections, and for plots")
    parser.add_argument("--comp4", type=Path, help="folder for comp4 result files of the workdir's val split")
    parser.add_argument("--report", type=Path, help="folder for an HTML report of scores and errors, with pictures")
    files = parser.add_argument_group("with --detections")
    files.add_argument("--voc", type=Path, default=Path("VOCdevkit"), help="VOCdevkit folder; default: %(default)s")
    files.add_argument("--year", type=int, default=2007, help="year of the data set; default: %(default)s")
    files.add_argument("--split", default="val", help="split of the data set; default: %(default)s")
    files.add_argument("--classes", metavar="NAMES", help="names of the classes, joined by commas; default: VOC's")
    parser.add_argument("--metric", choices=METRICS, default=METRICS[0], help="AP metric; default: %(default)s")
    parser.add_argument(
        "--iou-threshold", type=float, default=0.5, help="IoU that a hit must exceed, 0 to 1; default: %(default)s"
    )
    args, fields = parser.parse_known_args(argv)
    check_at_least(1, images=args.images)
    if args.detections and (args.step is not None or args.images or args.pictures or args.comp4 or fields):
        raise InputError("--step, --images, --pictures, --comp4 and --config need --workdir")
    if not 0 < args.iou_threshold < 1:
        raise InputError(f"--iou-threshold must be between 0 and 1, got {args.iou_threshold}")
    if args.json:
        check_file(args.json)
    for folder in filter(None, (args.comp4, args.report, args.pictures)):
        check_folder(folder)
    return args, fields


if __name__ == "__main__":
    run("eval-voc")
