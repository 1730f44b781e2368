"""Benchmark of the input pipeline: training images per second, by number of threads and worker processes:

    python benchmarks/bench_pipeline.py [--batches 60] [--config RECIPE] [--config.FIELD=VALUE ...]

It reads the train split of the config (the synthetic data set by default); the proposals are random.
"""

import os
import time
from collections.abc import Sequence

import numpy as np
from bench_inputs import cpu_name

from frcnn_jax.build import build_model, image_sizes, read_split_of
from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.config import add_config_argument, load_config
from frcnn_jax.data.batches import prefetch
from frcnn_jax.errors import run_main
from frcnn_jax.training.batches import TrainingBatches

STEP = 0.010  # seconds of a training step on a GPU, with which the pipeline should keep up


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--batches", type=int, default=60, help="batches timed per row; default %(default)s")
    add_config_argument(parser)
    args, fields = parser.parse_known_args(argv)
    config = load_config(args.config, fields)
    check_at_least(1, batches=args.batches)
    dataset = read_split_of(config, "train")
    rng, proposals = np.random.default_rng(0), {}
    for record in dataset.records:
        corners = np.sort(rng.uniform(0, 1, (config["max_proposals"], 2, 2)), axis=1).reshape(-1, 4)
        proposals[record.image_id] = (corners * ([record.width - 1, record.height - 1] * 2)).astype(np.float32)
    shape = (len(dataset.class_names) + 1, 4)
    batches = TrainingBatches(
        dataset.records,
        proposals,
        {"mean": np.zeros(shape, np.float32), "std": np.ones(shape, np.float32)},
        image_sizes(config),
        build_model(config, 1).pixels,
        args.batches + 1,
        images_per_batch=config["images_per_batch"],
        rois_per_image=config["rois_per_batch"] // config["images_per_batch"],
    )
    images, cores = config["images_per_batch"], os.cpu_count() or 1
    size = f"{config['scales'] or config['min_size']}/{config['max_size']} px"
    print(f"{len(dataset.records)} images at {size}, {config['max_proposals']} proposals each")
    print(f"{cores} cores of {cpu_name()}")
    print("worker processes | threads each | start, s | images/s")
    for workers, threads in [(0, 1), (0, 2), (0, 4), (1, 2), *((n, 2) for n in (2, 4, 8, 16) if n <= cores)]:
        begin = time.perf_counter()
        made = prefetch(batches, threads=threads, workers=workers)
        next(made)
        first = time.perf_counter()
        for _ in made:
            pass
        rate = args.batches * images / (time.perf_counter() - first)
        print(f"{workers:16} | {threads:12} | {first - begin:8.1f} | {rate:8.1f}", flush=True)
    print(f"a step of {STEP * 1000:.0f} ms on {images} images consumes {images / STEP:.0f} images/s")


if __name__ == "__main__":
    run_main(main)
