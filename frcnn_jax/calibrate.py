"""Calibrate the scores of a trained workdir: of the new workdir's detections with score 0.7, some 70 % are right:

    frcnn calibrate --workdir W [--out W-calibrated] [--images N] [--plot PLOT.png]

A temperature and an offset of the background are fitted on the first half of the val split and put into the output
layer. The expected calibration error on the second half is printed, before and after, and plotted.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from frcnn_jax.build import detection_options, image_sizes, load_proposals_of, read_split_of
from frcnn_jax.cli import check_at_least, command_parser, run
from frcnn_jax.config import Config
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.calibration import calibrate_head, fit_calibration, reliability, scored_hits
from frcnn_jax.evaluation.evaluator import Evaluator
from frcnn_jax.evaluation.pictures import check_plot, plot_reliability
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.models.heads import check_outputs
from frcnn_jax.workdir import derive_workdir, read_config


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__, "--workdir", "--network", "--images")
    parser.add_argument("--out", type=Path, help="new workdir; default: W-calibrated")
    parser.add_argument("--plot", type=Path, help="file of the plot")
    args = parser.parse_args(argv)
    check_at_least(2, images=args.images)
    if args.plot:
        check_plot("--plot", args.plot)
    config = read_config(args.workdir, network=args.network)
    out = args.out or args.workdir.with_name(args.workdir.name + "-calibrated")
    if config["classifier"] != "softmax":
        raise InputError(f"{args.workdir}: has no probabilities to calibrate, but the margins of SVMs")
    if out.exists():
        raise InputError(f"{out} exists; name another folder with --out")

    def calibrate(config: Config, model: FastRCNN, variables: Any) -> dict[str, Any]:
        check_outputs(variables["params"]["head"])
        first, second = _halves(model, config, args.workdir, args.images)
        temperature, offset = fit_calibration(*first(variables))
        params = calibrate_head(variables["params"], temperature, offset)
        rows = {"before": second(variables), "after": second({**variables, "params": params})}
        found = {name: reliability(*row) for name, row in rows.items()}
        print(f"{out}: logits divided by {temperature:.3f}, {-offset:+.3f} on the background's")
        errors = ", ".join(f"{own.error:.4f} {name}" for name, own in found.items())
        print(f"expected calibration error on the second half of the val split: {errors}")
        if args.plot:
            plot_reliability(found, args.plot)
        return params

    derive_workdir(args.workdir, out, calibrate, images=0, network=args.network)


def _halves(model: FastRCNN, config: Config, workdir: Path, images: int | None) -> list[Any]:
    """Return, for each half of the val split, a function from variables to scores and hits."""
    dataset, proposals = load_proposals_of(config, workdir, read_split_of(config, "val"))
    records = dataset.records[:images]
    if len(records) < 2:
        raise InputError(f"{workdir}: calibration needs two val images, got {len(records)}")
    half = len(records) // 2

    def scored(part: Sequence[Any]) -> Any:
        split = replace(dataset, records=part)
        evaluator = Evaluator(model, split, proposals, sizes=image_sizes(config), options=detection_options(config))
        return lambda variables: scored_hits(evaluator(variables).detections, split)

    return [scored(records[:half]), scored(records[half:])]


if __name__ == "__main__":
    run("calibrate")
