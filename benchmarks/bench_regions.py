"""Benchmark of `Detector.embed` against evaluation, and its memory:

    python benchmarks/bench_regions.py [--network tiny] [--images 100] [--repeat 5]
    python benchmarks/bench_regions.py --network vgg16 --boxes 100000 [--layer fc7|classify]

The first runs both in turns on the same JPEG files and boxes, 2,000 each: decoding, resizing, the network with random
weights; evaluation also decodes boxes and suppresses. It prints images per second, and embed's over evaluation's. The
second embeds or classifies so many boxes of one image, and prints the memory at its peak, less that of the result.
"""

import resource
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from bench_inputs import CLASSES, ROIS, Run, cpu_name
from PIL import Image

from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.data.batches import Sizes, TestBatches
from frcnn_jax.data.records import ImageFile, Record, make_record
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.errors import run_main
from frcnn_jax.evaluation.predict import make_predict_step, predict_split
from frcnn_jax.evaluation.regions import RegionBatches, classify_step, embed_step, run_regions
from frcnn_jax.models.fast_rcnn import init_variables, variable_shapes
from frcnn_jax.models.networks import NETWORKS, get_network


def random_boxes(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return boxes of all sizes inside an image."""
    corners = np.sort(np.random.default_rng(seed).uniform(0, 1, (count, 2, 2)), axis=1).reshape(-1, 4)
    return (corners * ([width - 2, height - 2] * 2) + [0, 0, 1, 1]).astype(np.float32)


def write_images(folder: Path, count: int, height: int, width: int) -> list[Record]:
    """Write synthetic scenes of a size as JPEG files; return their records."""
    records = []
    for i in range(count):
        path = folder / f"{i}.jpg"
        Image.fromarray(draw_scene(0, "val", i).image).resize((width, height)).save(path)
        records.append(make_record(str(path), height, width, [], ImageFile(str(path))))
    return records


def compare(network: str, images: int, repeat: int) -> None:
    """Print images per second of both, and the ratio."""
    model = get_network(network).build(CLASSES)
    variables = init_variables(model, jax.random.key(0))
    height, width = (144, 192) if network == "tiny" else (375, 500)
    sizes = [Sizes(144, 192) if network == "tiny" else Sizes()]
    with tempfile.TemporaryDirectory() as folder:
        records = write_images(Path(folder), images, height, width)
        boxes = {record.image_id: random_boxes(ROIS, height, width, i) for i, record in enumerate(records)}
        test = TestBatches(records, boxes, sizes, model.pixels, model.rounding_scale)
        regions = RegionBatches(list(boxes), list(boxes.values()), sizes, model.pixels)
        predict, step = make_predict_step(model), embed_step(model)
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
    model = get_network(network).build(CLASSES)
    # random weights take more memory while they are drawn
    variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.001, leaf.dtype), variable_shapes(model))
    image = np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8)
    began = time.perf_counter()
    batches = RegionBatches([image], [random_boxes(count, 600, 800)], [Sizes()], model.pixels)
    step = classify_step(model) if layer == "classify" else embed_step(model, layer=layer)
    (rows,) = run_regions(step, variables, batches)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    own = sum(array.nbytes for array in jax.tree.leaves(rows)) / 2**30
    print(f"{network}, {count} boxes, {layer}: peak {peak:.2f} GiB, ", end="")
    print(f"{peak - own:.2f} without the {own:.2f} of the result; {seconds:.0f} s; {cpu_name()}")


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--network", default="tiny", choices=NETWORKS)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--boxes", type=int, help="measure memory with so many boxes in an image")
    parser.add_argument(
        "--layer", default="fc7", help="with --boxes: a layer to embed, or classify; default %(default)s"
    )
    args = parser.parse_args(argv)
    check_at_least(1, images=args.images, repeat=args.repeat, boxes=args.boxes)
    if args.boxes:
        print_memory(args.network, args.boxes, args.layer)
    else:
        compare(args.network, args.images, args.repeat)


if __name__ == "__main__":
    run_main(main)
