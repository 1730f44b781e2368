"""Benchmark of `Detector.embed` against evaluation, and its memory:

    python benchmarks/bench_regions.py [--network tiny] [--images 100] [--repeat 5]
    python benchmarks/bench_regions.py --network vgg16 --boxes 100000 [--layer fc7]

The first runs both on the same images and boxes, 2,000 each, in turns: decoding, resizing, the network with random
weights; evaluation also decodes boxes and suppresses. Images per second, and embed's over evaluation's. The second
embeds so many boxes of one image, and prints the memory at its peak, less that of the features.
"""

import resource
import time
from collections.abc import Sequence
from functools import partial

import jax
import numpy as np
from bench_inputs import Run, cpu_name
from bench_ops import spread_boxes

from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.data.batches import Sizes, TestBatches
from frcnn_jax.data.records import Record
from frcnn_jax.data.synthetic import read_synthetic
from frcnn_jax.errors import run_main
from frcnn_jax.evaluation.predict import make_predict_step, predict_split
from frcnn_jax.evaluation.regions import RegionBatches, embed_step, run_regions
from frcnn_jax.models.fast_rcnn import init_variables
from frcnn_jax.models.networks import NETWORKS, get_network


def compare(network: str, images: int, repeat: int) -> None:
    """Print images per second of both, and the ratio."""
    model = get_network(network).build(20)
    variables = init_variables(model, jax.random.key(0))
    sizes = [Sizes(144, 192) if network == "tiny" else Sizes()]
    records: Sequence[Record] = read_synthetic(split="val", images=images).records
    boxes = {record.image_id: np.clip(spread_boxes(2000, i), 0, 120) for i, record in enumerate(records)}
    boxes = {name: own + np.array([0, 0, 2, 2], np.float32) for name, own in boxes.items()}
    test = TestBatches(records, boxes, sizes, model.pixels, None)
    predict, step = make_predict_step(model), embed_step(model)
    loaded = [record.load() for record in records]
    regions = RegionBatches(loaded, list(boxes.values()), sizes, model.pixels)
    runs: dict[str, Run] = {
        "evaluation": partial(predict_split, predict, variables, test, model.num_classes),
        "embed": lambda: [rows.shape for rows in run_regions(step, variables, regions)],
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeat + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if turn:  # the first compiles
                seconds[name].append(time.perf_counter() - began)
    rates = {name: images / float(np.median(spent)) for name, spent in seconds.items()}
    print(f"{network}: {', '.join(f'{name} {rate:.2f}' for name, rate in rates.items())} images/s, ", end="")
    print(f"ratio {rates['embed'] / rates['evaluation']:.2f}; {cpu_name()}")


def print_memory(network: str, count: int, layer: str) -> None:
    """Print the peak memory of one image with many boxes."""
    model = get_network(network).build(20)
    variables = init_variables(model, jax.random.key(0))
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    boxes = np.clip(spread_boxes(count), 0, 590) + np.array([0, 0, 2, 2], np.float32)
    began = time.perf_counter()
    batches = RegionBatches([image], [boxes], [Sizes()], model.pixels)
    (rows,) = run_regions(embed_step(model, layer=layer), variables, batches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    own = rows.nbytes / 2**30
    print(
        f"{network}, {count} boxes, {layer}: {peak:.2f} GiB, {peak - own:.2f} without the {own:.2f} of the features; ",
        end="",
    )
    print(f"{time.perf_counter() - began:.0f} s; {cpu_name()}")


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--network", default="tiny", choices=NETWORKS)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--boxes", type=int, help="measure memory with so many boxes in an image")
    parser.add_argument("--layer", default="fc7")
    args = parser.parse_args(argv)
    check_at_least(1, images=args.images, repeat=args.repeat, boxes=args.boxes)
    if args.boxes:
        print_memory(args.network, args.boxes, args.layer)
    else:
        compare(args.network, args.images, args.repeat)


if __name__ == "__main__":
    run_main(main)
