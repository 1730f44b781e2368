"""VOC scores of a trained workdir, or of result files:

    python scripts/eval_voc.py --workdir W [--step N] [--images N] [--json F]
    python scripts/eval_voc.py --detections DIR --voc VOCDEVKIT --year 2007 --split val

Both take --metric voc07_11point (the default) or area. A workdir's val split is the one that it was trained with.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from frcnn_jax.datasets import read_voc
from frcnn_jax.errors import run_main
from frcnn_jax.evaluate import evaluate_workdir, read_comp4, results_table, score, write_json
from frcnn_jax.metrics import METRICS


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=Path, help="where frcnn_jax.train left its checkpoints")
    source.add_argument("--detections", type=Path, help="folder of comp4 result files")
    parser.add_argument("--step", type=int, help="of the checkpoint; the newest by default")
    parser.add_argument("--images", type=int, help="only the first N of the split")
    parser.add_argument("--voc", type=Path, default=Path("VOCdevkit"), help="the VOCdevkit folder")
    parser.add_argument("--year", type=int, default=2007)
    parser.add_argument("--split", default="val")
    parser.add_argument("--metric", choices=METRICS, default=METRICS[0])
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args(argv)
    if args.workdir:
        results = evaluate_workdir(args.workdir, step=args.step, metric=args.metric, images=args.images)
    else:
        dataset = read_voc(args.voc, args.year, args.split)
        detections = read_comp4(args.detections, dataset, year=args.year, split=args.split)
        results, _ = score(detections, dataset, metric=args.metric)
    print(results_table(results))
    if args.json:
        write_json(args.json, results)


if __name__ == "__main__":
    run_main(main)
