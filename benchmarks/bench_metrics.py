"""Benchmark of scoring by the VOC protocol, on one core, for random detections, 100 per class and image:

python benchmarks/bench_metrics.py [--images 5000]
"""

import os
import time
from collections.abc import Sequence

import numpy as np
from bench_inputs import cpu_name

from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.data.records import Dataset, Record
from frcnn_jax.data.voc import VOC_CLASSES
from frcnn_jax.errors import run_main
from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.evaluation.scores import score

SIDE, OBJECTS, DETECTIONS = 500, 3, 100


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    corners = np.sort(rng.uniform(0, SIDE - 1, (count, 2, 2)), axis=1)
    return corners.reshape(-1, 4).astype(np.float32)


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--images", type=int, default=5000, help="default %(default)s")
    args = parser.parse_args(argv)
    check_at_least(1, images=args.images)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rng = np.random.default_rng(0)
    records = [
        Record(
            str(i),
            SIDE,
            SIDE,
            random_boxes(rng, OBJECTS),
            rng.integers(1, 21, OBJECTS),
            rng.random(OBJECTS) < 0.2,
            lambda: np.zeros((SIDE, SIDE, 3), np.uint8),
        )
        for i in range(args.images)
    ]
    image = np.repeat(np.arange(args.images), DETECTIONS)
    detections = [
        ClassDetections(image, rng.random(len(image), np.float32), random_boxes(rng, len(image))) for _ in VOC_CLASSES
    ]
    begin = time.perf_counter()
    score(detections, Dataset(VOC_CLASSES, records))
    seconds = time.perf_counter() - begin
    count = len(image) * len(VOC_CLASSES)
    print(f"{count / 1e6:.1f} million detections in {args.images} images: {seconds:.1f} s on a core of {cpu_name()}")


if __name__ == "__main__":
    run_main(main)
