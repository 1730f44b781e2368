"""Count of the operations and bytes of detection and a training step, and the times predicted from a device's rates:

    python benchmarks/count_operations.py [--network vgg16] [--tflops 989 494 67] [--bandwidth 4800] [--reached 0.6 0.8]

Detection takes one image of 600x1000 with 2048 RoIs; a step takes two images with 64 RoIs each. A predicted time is the
sum of the times for operations and for bytes, without RoI pooling, NMS and the host. The default rates are an H200's.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from frcnn_jax.cli import command_parser
from frcnn_jax.data.batches import Sizes
from frcnn_jax.errors import run_main
from frcnn_jax.models.layers import Conv, output_size
from frcnn_jax.models.networks import LAYER_NETWORKS, Network

CLASSES = 20
ELEMENT = {"bfloat16": 2, "tf32": 4, "float32": 4}  # bytes per activation


class Count(NamedTuple):
    """Costs of a program."""

    operations: int  # a multiply-add counts as two
    elements: int  # activations read and written
    weight_bytes: int  # float32 parameters; gradients and momentum too, of trained layers


def count(network: Network, canvas: tuple[int, int], images: int, rois: int, *, train: bool) -> Count:
    """Count the operations, activations and weights of the convolutions and fully connected layers.

    A layer runs once forward. In training it runs once more for the gradient of its weights if it is trained, and once
    more for the gradient of its input if an earlier layer is trained. Each run reads the weights, and reads or writes
    each activation once. An update reads gradient, momentum and weights, and writes the last two.

    Args:
        network: A row of `NETWORKS`.
        canvas: Rows and columns of the padded images, in pixels.
        images: Images per batch.
        rois: RoIs per image.
        train: Whether to count a training step instead of detection.
    """
    operations = elements = weight_bytes = 0
    trained_before = False
    sides, channels = canvas, 3

    def add(products: int, activations: int, weights: int, frozen: bool) -> None:
        nonlocal operations, elements, weight_bytes, trained_before
        trained = train and not frozen
        runs = 1 + trained + (train and trained_before)
        operations += 2 * products * runs
        elements += activations * runs
        weight_bytes += 4 * weights * (runs + (6 if trained else 0))  # the gradient is also written once
        trained_before |= trained

    for layer in network.layers:
        before = math.prod(sides) * channels
        sides = (output_size(layer, sides[0]), output_size(layer, sides[1]))
        if isinstance(layer, Conv):
            weights = layer.kernel**2 * channels // layer.groups * layer.features
            channels = layer.features
            activations = images * (before + math.prod(sides) * channels)
            add(images * math.prod(sides) * weights, activations, weights, layer.name in network.frozen)
        else:
            elements += images * (before + math.prod(sides) * channels)
    inputs = math.prod(network.roi_size) * channels
    for outputs in network.fc:
        add(images * rois * inputs * outputs, images * rois * (inputs + outputs), inputs * outputs, False)
        inputs = outputs
    outputs = 5 * (CLASSES + 1)
    add(images * rois * inputs * outputs, images * rois * (inputs + outputs), inputs * outputs, False)
    return Count(operations, elements, weight_bytes)


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--network", default="vgg16", choices=LAYER_NETWORKS, help="default %(default)s")
    parser.add_argument(
        "--tflops",
        type=float,
        nargs=3,
        default=(989, 494, 67),
        help=f"rates of {', '.join(ELEMENT)}; default %(default)s",
    )
    parser.add_argument("--bandwidth", type=float, default=4800, help="GB/s of the memory; default %(default)s")
    parser.add_argument(
        "--reached",
        type=float,
        nargs=2,
        default=(0.6, 0.8),
        help="shares of the two that are reached; default %(default)s",
    )
    args = parser.parse_args(argv)
    network, canvas = LAYER_NETWORKS[args.network], Sizes().canvas(600, 1000)
    for name, images, rois, train in (("detection", 1, 2048, False), ("step", 2, 64, True)):
        needed = count(network, canvas, images, rois, train=train)
        print(f"{name}: {needed.operations / 1e12:.2f} TFLOP, {needed.weight_bytes / 1e9:.2f} GB of weights", end="")
        print(f", {needed.elements / 1e9:.2f} billion activations")
        for (kind, element), rate in zip(ELEMENT.items(), args.tflops, strict=True):
            compute = 1e3 * needed.operations / (rate * 1e12 * args.reached[0])
            size = needed.weight_bytes + element * needed.elements
            memory = 1e3 * size / (args.bandwidth * 1e9 * args.reached[1])
            print(f"  {kind:9} operations {compute:6.2f} ms   bytes {memory:6.2f} ms", end="")
            print(f"   predicted {compute + memory:6.2f} ms")


if __name__ == "__main__":
    run_main(main)
