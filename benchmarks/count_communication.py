"""Count of the bytes that a training step sends between devices, read from the compiled program:

    python benchmarks/count_communication.py [--network vgg16]

The step is compiled, not run, for two simulated devices with an image of 600x800 and 64 RoIs each, and 20 classes.
"""

import math
import re
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from frcnn_jax.cli import command_parser
from frcnn_jax.errors import run_main
from frcnn_jax.models.fast_rcnn import variable_shapes
from frcnn_jax.models.networks import LAYER_NETWORKS
from frcnn_jax.training.solver import caffe_sgd, step_schedule
from frcnn_jax.training.step import AXIS, create_state, train_step

DEVICES, ROIS, CLASSES = 2, 64, 20
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}


def all_reduced(program: str) -> list[int]:
    """Return the bytes that each all-reduce in the text of a compiled program returns."""
    results = re.findall(r"= (.*?) all-reduce(?:-start)?\(", program)
    return [
        sum(BYTES[kind] * math.prod(map(int, sides.split(",") if sides else ())) for kind, sides in shapes)
        for shapes in (re.findall(r"(\w+)\[([\d,]*)\]", result) for result in results)
    ]


def compiled_step(network: str) -> str:
    """Return the text of a training step compiled for DEVICES."""
    row, optimizer = LAYER_NETWORKS[network], caffe_sgd(step_schedule(0.001, ()))
    model = row.build(CLASSES)
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    state = jax.eval_shape(partial(create_state, optimizer=optimizer, frozen=row.frozen), variable_shapes(model))
    batch = {
        "image": shape((DEVICES, 1, 608, 800, 3)),
        "image_size": jax.ShapeDtypeStruct((DEVICES, 1, 2), jnp.int32),
        "rois": shape((DEVICES, 1, ROIS, 4)),
        "roi_mask": jax.ShapeDtypeStruct((DEVICES, 1, ROIS), jnp.bool_),
        "labels": jax.ShapeDtypeStruct((DEVICES, 1, ROIS), jnp.int32),
        "box_targets": shape((DEVICES, 1, ROIS, 4)),
        "index": jax.ShapeDtypeStruct((DEVICES, 1), jnp.int32),
    }
    step = jax.pmap(
        partial(train_step, model=model, optimizer=optimizer), axis_name=AXIS, in_axes=(None, 0, None), out_axes=None
    )
    return step.lower(state, batch, jax.eval_shape(partial(jax.random.key, 0))).compile().as_text()


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--network", default="vgg16", choices=LAYER_NETWORKS, help="default %(default)s")
    network = parser.parse_args(argv).network
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", DEVICES)
    sizes = all_reduced(compiled_step(network))
    print(f"{network}: {sum(sizes) / 1e6:.1f} MB in {len(sizes)} all-reduces")


if __name__ == "__main__":
    run_main(main)
