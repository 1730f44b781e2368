"""SVMs on fc7 in place of a trained workdir's softmax (section 5.4), in a new workdir; both compared on the val split:

python scripts/train_svm.py --workdir W [--out W-svm] [--negative-images N] [--images N]

Stopped and run again, it goes on from the last 250 images; where it is done, it compares again. Scores of the new
workdir are margins: 0 is the boundary.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from frcnn_jax.__main__ import run
from frcnn_jax.detect import image_sizes, load_variables, read_config
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.evaluate import compare_workdirs
from frcnn_jax.files import check_folder, write_json
from frcnn_jax.splits import read_split, with_proposals
from frcnn_jax.training.checkpoint import save_model
from frcnn_jax.training.svm import train_svms


def train(
    workdir: Path, config: Mapping[str, Any], out: Path, changed: Mapping[str, Any], negative_images: int | None
) -> None:
    model, variables, step = load_variables(workdir, config)
    dataset, proposals = with_proposals(config, workdir, read_split(config, "train"))
    (sizes,) = image_sizes(config)
    out.mkdir(parents=True, exist_ok=True)
    state = out / "svm.npz"
    params = train_svms(
        model,
        variables,
        dataset.records,
        proposals,
        sizes=sizes,
        state=state,
        negative_images=negative_images,
        seed=config["seed"],
    )
    save_model(out, step, {**variables, "params": params})
    write_json(out / "config.json", changed)
    state.unlink()


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="the new workdir; W-svm by default")
    parser.add_argument("--negative-images", type=int, help="mine negatives in the first N of the train split only")
    parser.add_argument("--images", type=int, help="compare on the first N of the val split only; 0 for no comparison")
    args = parser.parse_args(argv)
    for name in ("negative_images", "images"):
        least = 1 if name == "negative_images" else 0
        if (value := getattr(args, name)) is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")
    out = args.out or args.workdir.with_name(args.workdir.name + "-svm")
    check_folder(out)
    config = read_config(args.workdir)
    if config["classifier"] == "svm":
        raise InputError(f"{args.workdir}: its classifier is an SVM already")
    if config["scales"]:
        raise InputError(f"{args.workdir}: SVMs are trained at one scale, it has {config['scales']}")
    cache = config["proposal_cache"] or str((args.workdir / "proposals").absolute())
    changed = {**config, "classifier": "svm", "proposal_cache": cache, "picture_threshold": 0.0}
    if not (out / "config.json").exists():
        train(args.workdir, config, out, changed, args.negative_images)
    elif read_config(out) != changed:
        raise InputError(f"{out} exists; name another folder with --out")
    if args.images != 0:
        _, results = compare_workdirs((args.workdir, out), images=args.images)
        if args.images is None:
            write_json(out / "results.json", results)


if __name__ == "__main__":
    run("train-svm")
