"""Compute COCO metrics, with pycocotools, for a trained workdir on its val split or for a result file:

    frcnn eval-coco --workdir W [--step N] [--images N] [--results F] [--json F] [--config.FIELD=VALUE ...]
    frcnn eval-coco --detections RESULTS.json --annotations INSTANCES.json [--json F]

A workdir may have been trained on any data set. --results writes a COCO result file and needs a COCO data set.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from frcnn_jax.cli import check_at_least, command_parser, run
from frcnn_jax.config import TEST_FIELDS, override_config
from frcnn_jax.data.coco import coco_id
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.coco_metrics import coco_ground_truth, coco_metrics, coco_results
from frcnn_jax.evaluation.evaluator import Evaluation
from frcnn_jax.evaluation.scores import format_score
from frcnn_jax.files import check_file, read_json, write_json
from frcnn_jax.workdir import evaluate_workdir, read_config


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    args, fields = _parse(argv)
    if args.workdir:
        config = override_config(read_config(args.workdir, network=args.network), fields, TEST_FIELDS)
        if args.results and config["dataset"] != "coco":
            raise InputError(f"--results needs a COCO data set, this one is {config['dataset']!r}")
        found = evaluate_workdir(args.workdir, config, step=args.step, images=args.images)
        if args.results:
            folder = Path(config["data_dir"])
            _write_results(args.results, found, folder / "annotations" / f"instances_{config['val_split']}.json")
        images, labels = range(1, len(found.dataset.records) + 1), range(1, len(found.dataset.class_names) + 1)
        metrics, aps = coco_metrics(coco_ground_truth(found.dataset), coco_results(found.detections, images, labels))
    else:
        truth, results = read_json(args.annotations), read_json(args.detections)
        metrics, aps = coco_metrics(truth, results, truth_name=str(args.annotations), results_name=str(args.detections))
    for name, value in {**metrics, **{f"AP50 {name}": ap for name, ap in aps.items()}}.items():
        print(f"{name:24} {format_score(value)}")
    if args.json:
        write_json(args.json, {**metrics, "ap50": aps})


def _write_results(path: Path, found: Evaluation, annotations: Path) -> None:
    truth = read_json(annotations)
    numbers = {category["name"]: category["id"] for category in truth["categories"]}
    of_record = {str(coco_id(image["id"])): image["id"] for image in truth["images"]}
    images = [of_record[record.image_id] for record in found.dataset.records]
    write_json(path, coco_results(found.detections, images, [numbers[name] for name in found.dataset.class_names]))


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = command_parser(__doc__, "--network", "--step", "--images", "--json")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, help="workdir of a training")
    source.add_argument("--detections", type=Path, help="COCO result file")
    parser.add_argument("--annotations", type=Path, help="with --detections: COCO instances file")
    parser.add_argument("--results", type=Path, help="COCO result file to write the detections to")
    args, fields = parser.parse_known_args(argv)
    check_at_least(1, images=args.images)
    of_workdir = args.step is not None or args.images or args.results or fields
    if args.detections and (of_workdir or not args.annotations):
        raise InputError("--detections needs --annotations and takes no other option than --json")
    for path in filter(None, (args.json, args.results)):
        check_file(path)
    return args, fields


if __name__ == "__main__":
    run("eval-coco")
