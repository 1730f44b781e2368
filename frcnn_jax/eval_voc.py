r"""VOC scores of a trained workdir, or of result files:

    python scripts/eval_voc.py --workdir W [--step N] [--images N] [--pictures DIR] [--comp4 DIR] \
        [--config.FIELD=VALUE ...]
    python scripts/eval_voc.py --detections DIR --voc VOCDEVKIT --year 2007 --split val

Both take --metric voc07_11point (the default) or area, --iou-threshold, --json F and --report DIR. A workdir's val
split is the one that it was trained with, and so are all fields of the config that are not given, such as
--config.test_box_regression=False.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from frcnn_jax.config import evaluation_overrides
from frcnn_jax.data.voc import read_voc
from frcnn_jax.detect import read_config
from frcnn_jax.errors import InputError, run_main
from frcnn_jax.evaluation.comp4 import check_comp4, read_comp4, write_comp4
from frcnn_jax.evaluation.evaluate import Evaluation, evaluate_workdir
from frcnn_jax.evaluation.metrics import METRICS
from frcnn_jax.evaluation.report import write_report
from frcnn_jax.evaluation.scores import results_table, score
from frcnn_jax.files import check_file, check_folder, write_json
from frcnn_jax.splits import read_split


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, help="where frcnn_jax.train left its checkpoints")
    source.add_argument("--detections", type=Path, help="folder of comp4 result files")
    parser.add_argument("--step", type=int, help="of the checkpoint; the newest by default")
    parser.add_argument("--images", type=int, help="only the first N of the split")
    parser.add_argument("--pictures", type=Path, help="folder for detections beside ground truth, and curves")
    parser.add_argument("--comp4", type=Path, help="folder for result files of a workdir's val split")
    parser.add_argument("--report", type=Path, help="folder for a page on what is found and what is not, index.html")
    parser.add_argument("--voc", type=Path, default=Path("VOCdevkit"), help="the VOCdevkit folder")
    parser.add_argument("--year", type=int, default=2007)
    parser.add_argument("--split", default="val")
    parser.add_argument("--metric", choices=METRICS, default=METRICS[0])
    parser.add_argument("--iou-threshold", type=float, default=0.5, help="of a hit; default %(default)s")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args, fields = parser.parse_known_args(argv)
    overrides = evaluation_overrides(fields)
    if args.images is not None and args.images < 1:
        raise InputError(f"--images must be at least 1, got {args.images}")
    if args.detections and (args.step is not None or args.images or args.pictures or args.comp4 or overrides):
        raise InputError("--step, --images, --pictures, --comp4 and --config go with --workdir, not with --detections")
    if not 0 < args.iou_threshold < 1:
        raise InputError(f"--iou-threshold must be between 0 and 1, got {args.iou_threshold}")
    if args.json:
        check_file(args.json)
    for folder in filter(None, (args.comp4, args.report, args.pictures)):
        check_folder(folder)
    if args.comp4:
        config = {**read_config(args.workdir), **overrides}
        check_comp4(read_split(config, "val"), config["val_split"])
    if args.workdir:
        found = evaluate_workdir(
            args.workdir,
            step=args.step,
            metric=args.metric,
            iou_threshold=args.iou_threshold,
            images=args.images,
            pictures=args.pictures,
            overrides=overrides,
        )
    else:
        dataset = read_voc(args.voc, args.year, args.split)
        detections = read_comp4(args.detections, dataset, year=args.year, split=args.split)
        found = Evaluation(
            dataset, detections, *score(detections, dataset, metric=args.metric, iou_threshold=args.iou_threshold)
        )
    print(results_table(found.results))
    if args.json:
        write_json(args.json, found.results)
    if args.report:
        write_report(args.report, found.dataset, found.detections, found.results, found.curves)
    if args.comp4:
        write_comp4(args.comp4, found.detections, found.dataset, year=config["year"], split=config["val_split"])


if __name__ == "__main__":
    run_main(main)
