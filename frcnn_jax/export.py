r"""The detection step of a trained network as one file that needs jax alone:

    python -m frcnn_jax.export --workdir W --out F [--canvas ROWS COLUMNS] [--rois N] [--platforms cpu,cuda,tpu] \
        [--config.FIELD=VALUE ...]

F is StableHLO with the parameters in it, for one canvas and one number of RoIs. docs/export.md has the contract, and a
program that runs it.

Shape letters: R RoIs, K foreground classes, M detections a class.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export

from frcnn_jax.__main__ import run
from frcnn_jax.config import check_config, evaluation_overrides
from frcnn_jax.data.batches import ROI_MULTIPLE
from frcnn_jax.data.records import MAX_PIXELS
from frcnn_jax.detect import image_sizes, load_variables, make_predict_step, read_config
from frcnn_jax.errors import InputError
from frcnn_jax.files import check_file, write_whole

INPUTS = ("image", "image_size", "rois", "roi_mask", "scale", "original_size")
OUTPUTS = ("boxes", "scores", "valid")
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
SMALLEST_CANVAS = 32  # from which on every network's map has a cell
MOST_ROIS = 1_000_000  # an image


def export_detector(
    workdir: Path,
    *,
    canvas: tuple[int, int] | None = None,
    rois: int | None = None,
    platforms: Sequence[str] | None = None,
    step: int | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> export.Exported:
    """The detection step of a workdir's newest checkpoint, or of `step`'s, for one image: a function of INPUTS, of the
    shapes that `pipeline.prepare_test` gives them, that returns OUTPUTS as `detect.make_predict_step` has them.

    Args:
        canvas: rows and columns; those that hold every landscape image where None.
        rois: R; where None, the least that is padded to at `max_proposals`.
        platforms: of PLATFORMS, what it can run on; this machine's where None.
        overrides: fields of the config that take other values than in training.

    Raises:
        InputError: no such checkpoint, a network on several scales, or an argument out of its range.
    """
    config = {**read_config(workdir), **(overrides or {})}
    check_config(config)
    if config["scales"]:
        raise InputError(f"{workdir}: detects at the scales {config['scales']}; a program of one canvas can't")
    (sizes,) = image_sizes(config)
    rows, columns = canvas or sizes.canvas(sizes.shorter, sizes.longer)
    if min(rows, columns) < SMALLEST_CANVAS or rows * columns > MAX_PIXELS:
        raise InputError(
            f"canvas must be {SMALLEST_CANVAS} rows and columns or more, and at most {MAX_PIXELS} pixels, "
            f"got {rows} and {columns}"
        )
    rois = math.ceil(config["max_proposals"] / ROI_MULTIPLE) * ROI_MULTIPLE if rois is None else rois
    if not config["candidates_per_class"] <= rois <= MOST_ROIS:
        least = f"the {config['candidates_per_class']} candidates a class"
        raise InputError(f"rois must be at least {least} and at most {MOST_ROIS}, got {rois}")
    if unknown := set(platforms or ()) - set(PLATFORMS):
        raise InputError(f"platforms must be of {', '.join(PLATFORMS)}, got {', '.join(sorted(unknown))}")
    model, variables, _ = load_variables(workdir, config, step)
    predict = make_predict_step(
        model,
        nms_iou=config["nms_iou"],
        candidates=config["candidates_per_class"],
        box_regression=config["test_box_regression"],
    )
    shapes = [
        jax.ShapeDtypeStruct((1, *shape), dtype)
        for shape, dtype in (
            ((rows, columns, 3), jnp.float32),
            ((2,), jnp.int32),
            ((rois, 4), jnp.float32),
            ((rois,), jnp.bool_),
            ((), jnp.float32),
            ((2,), jnp.int32),
        )
    ]

    def detect(image, image_size, rois, roi_mask, scale, original_size):
        inputs = (image, image_size, rois, roi_mask, scale, original_size)
        return predict(variables, dict(zip(INPUTS, inputs, strict=True)))

    return export.export(jax.jit(detect), platforms=platforms)(*shapes)


def contract(exported: export.Exported) -> str:
    """Its inputs and outputs, a line each."""
    names = (*INPUTS, *(f"-> {name}" for name in OUTPUTS))
    avals = (*exported.in_avals, *exported.out_avals)
    return "\n".join(f"{name:14} {aval.str_short()}" for name, aval in zip(names, avals, strict=True))


def main(argv: Sequence[str]) -> None:
    """The command line."""
    description = "Writes a network as StableHLO."
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, required=True, help="where frcnn_jax.train left its checkpoints")
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--canvas", type=int, nargs=2, metavar=("ROWS", "COLUMNS"), help="default: any landscape image")
    parser.add_argument("--rois", type=int, help=f"default: max_proposals, up to a multiple of {ROI_MULTIPLE}")
    parser.add_argument("--platforms", help=f"some of {','.join(PLATFORMS)}; default: this machine's")
    parser.add_argument("--step", type=int, help="of the checkpoint; the newest by default")
    args, fields = parser.parse_known_args(argv)
    check_file(args.out)
    exported = export_detector(
        args.workdir,
        canvas=args.canvas,
        rois=args.rois,
        platforms=args.platforms and list(dict.fromkeys(args.platforms.split(","))),
        step=args.step,
        overrides=evaluation_overrides(fields),
    )
    write_whole(args.out, lambda file: file.write(exported.serialize()))
    print(contract(exported))
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB, for {', '.join(exported.platforms)}")


if __name__ == "__main__":
    run("export")
