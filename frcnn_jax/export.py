r"""Export the detection step of a trained network as one file that needs only jax to run:

    frcnn export --workdir W --out F [--canvas ROWS COLUMNS] [--rois N] [--platforms cpu,cuda,tpu] \
        [--config.FIELD=VALUE ...]

F is a StableHLO program with the parameters inside, for one canvas and one number of RoIs. docs/export.md specifies its
inputs and outputs and shows how to run it.

Shape letters: R RoIs, K foreground classes, M detections per class.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from frcnn_jax.build import detection_options, image_sizes
from frcnn_jax.cli import command_parser, run
from frcnn_jax.config import TEST_FIELDS, check_config, override_config
from frcnn_jax.data.batches import ROI_MULTIPLE
from frcnn_jax.data.records import MAX_PIXELS
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.predict import DetectionOptions, make_predict_step
from frcnn_jax.files import check_file, write_atomic
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.workdir import load_variables, read_config

INPUTS = ("image", "image_size", "rois", "roi_mask", "scale", "original_size")
OUTPUTS = ("boxes", "scores", "valid")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
SMALLEST_CANVAS = 32  # the feature map of every network has a cell from this size on
MOST_ROIS = 1_000_000


def export_detector(
    model: FastRCNN,
    variables: Any,
    *,
    canvas: tuple[int, int],
    rois: int,
    options: DetectionOptions = DetectionOptions(),
    platforms: Sequence[str] | None = None,
) -> export.Exported:
    """Return the detection step for one image: a function of INPUTS that returns OUTPUTS.

    Args:
        model: The network.
        variables: Its variables; they become constants of the program.
        canvas: Rows and columns of the padded image, in pixels; each at least 32.
        rois: Number of RoIs R, padding included; from `options.candidates` to 1,000,000.
        options: How scores and deltas become detections.
        platforms: Platforms of PLATFORMS on which it can run; this machine's where None.

    Returns:
        A program whose inputs have the shapes that `data.batches.prepare_test` gives them, and whose outputs are those
        of `evaluation.predict.make_predict_step`.

    Raises:
        InputError: An argument is out of its range.
    """
    rows, columns = canvas
    if min(canvas) < SMALLEST_CANVAS or rows * columns > MAX_PIXELS:
        raise InputError(
            f"canvas must have at least {SMALLEST_CANVAS} rows and columns, and at most {MAX_PIXELS} pixels, "
            f"got {rows} and {columns}"
        )
    if not options.candidates <= rois <= MOST_ROIS:
        least = f"the {options.candidates} candidates per class"
        raise InputError(f"rois must be at least {least} and at most {MOST_ROIS}, got {rois}")
    if unknown := set(platforms or ()) - set(PLATFORMS):
        raise InputError(f"platforms must be among {', '.join(PLATFORMS)}, got {', '.join(sorted(unknown))}")
    predict = make_predict_step(model, options=options)
    shapes = ((rows, columns, 3), (2,), (rois, 4), (rois,), (), (2,))
    dtypes = (jnp.float32, jnp.int32, jnp.float32, jnp.bool_, jnp.float32, jnp.int32)
    arguments = [jax.ShapeDtypeStruct((1, *shape), dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    detect = jax.jit(lambda *inputs: predict(variables, dict(zip(INPUTS, inputs, strict=True))))
    return export.export(detect, platforms=platforms)(*arguments)


def contract(exported: export.Exported) -> str:
    """Describe the inputs and outputs of an exported program, one per line."""
    names = (*INPUTS, *(f"-> {name}" for name in OUTPUTS))
    avals = (*exported.in_avals, *exported.out_avals)
    return "\n".join(f"{name:14} {aval.str_short()}" for name, aval in zip(names, avals, strict=True))


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser("Export the detection step as StableHLO.", "--workdir", "--network", "--step")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--canvas",
        type=int,
        nargs=2,
        metavar=("ROWS", "COLUMNS"),
        help="size of the padded input in pixels; default: fits any landscape image",
    )
    parser.add_argument("--rois", type=int, help=f"default: max_proposals, rounded up to a multiple of {ROI_MULTIPLE}")
    parser.add_argument("--platforms", help=f"comma-separated, of {', '.join(PLATFORMS)}; default: this machine's")
    args, fields = parser.parse_known_args(argv)
    check_file(args.out)
    config = override_config(read_config(args.workdir, network=args.network), fields, TEST_FIELDS)
    check_config(config)
    if config["scales"]:
        raise InputError(
            f"{args.workdir}: detects at the scales {config['scales']}; an exported program has one canvas"
        )
    (size,) = image_sizes(config)
    model, variables, _ = load_variables(args.workdir, config, args.step)
    exported = export_detector(
        model,
        variables,
        canvas=tuple(args.canvas) if args.canvas else size.canvas(size.shorter, size.longer),
        rois=-(-config["max_proposals"] // ROI_MULTIPLE) * ROI_MULTIPLE if args.rois is None else args.rois,
        options=detection_options(config),
        platforms=args.platforms and list(dict.fromkeys(args.platforms.split(","))),
    )
    write_atomic(args.out, lambda file: file.write(exported.serialize()))
    print(contract(exported))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, for {', '.join(exported.platforms)}")


if __name__ == "__main__":
    run("export")
