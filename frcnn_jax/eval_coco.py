"""COCO's metrics, through pycocotools, of a trained workdir's val split, or of a result file:

    python scripts/eval_coco.py --workdir W [--step N] [--images N] [--results F] [--json F] [--config.FIELD=VALUE ...]
    python scripts/eval_coco.py --detections RESULTS.json --annotations INSTANCES.json [--json F]

Any data set will do; --results writes a result file in the ids of a COCO data set.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frcnn_jax.__main__ import run
from frcnn_jax.config import evaluation_overrides
from frcnn_jax.detect import read_config
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.coco_metrics import coco_ground_truth, coco_metrics, coco_results
from frcnn_jax.evaluation.evaluate import Evaluation, evaluate_workdir
from frcnn_jax.files import check_file, read_json, write_json


def write_results(path: Path, found: Evaluation, config: Mapping[str, Any]) -> None:
    annotations = Path(config["data_dir"]) / "annotations" / f"instances_{config['val_split']}.json"
    numbers = {category["name"]: category["id"] for category in read_json(annotations)["categories"]}
    images = [int(record.image_id) for record in found.dataset.records]
    write_json(path, coco_results(found.detections, images, [numbers[name] for name in found.dataset.class_names]))


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, help="where frcnn_jax.train left its checkpoints")
    source.add_argument("--detections", type=Path, help="a result file")
    parser.add_argument("--annotations", type=Path, help="with --detections: the instances file")
    parser.add_argument("--step", type=int, help="of the checkpoint; the newest by default")
    parser.add_argument("--images", type=int, help="only the first N of the split")
    parser.add_argument("--results", type=Path, help="where to write the result file")
    parser.add_argument("--json", type=Path, help="where to write the metrics")
    args, fields = parser.parse_known_args(argv)
    overrides = evaluation_overrides(fields)
    if args.images is not None and args.images < 1:
        raise InputError(f"--images must be at least 1, got {args.images}")
    for path in filter(None, (args.json, args.results)):
        check_file(path)
    if args.workdir:
        config = {**read_config(args.workdir), **overrides}
        if args.results and config["dataset"] != "coco":
            raise InputError(f"--results has the ids of a COCO data set, this one is {config['dataset']!r}")
        found = evaluate_workdir(args.workdir, step=args.step, images=args.images, overrides=overrides)
        if args.results:
            write_results(args.results, found, config)
        images, labels = range(1, len(found.dataset.records) + 1), range(1, len(found.dataset.class_names) + 1)
        metrics, aps = coco_metrics(coco_ground_truth(found.dataset), coco_results(found.detections, images, labels))
    elif args.annotations and args.step is None and not (args.images or args.results or overrides):
        metrics, aps = coco_metrics(read_json(args.annotations), read_json(args.detections))
    else:
        raise InputError("--detections goes with --annotations and --json alone")
    for name, value in {**metrics, **{f"AP50 {name}": ap for name, ap in aps.items()}}.items():
        print(f"{name:24} {'-' if value is None else format(value, '.4f')}")
    if args.json:
        write_json(args.json, {**metrics, "ap50": aps})


if __name__ == "__main__":
    run("eval-coco")
