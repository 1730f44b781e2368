"""SVMs on fc7 in place of a trained workdir's softmax (section 5.4), in a new workdir, and a comparison of both:

    frcnn train-svm --workdir W [--out W-svm] [--negative-images N] [--images N]

Interrupted and run again, it resumes from its last save, every 250 images; finished, it compares again. Scores of the
new workdir are margins: 0 is the boundary.
"""

from collections.abc import Sequence
from pathlib import Path

from frcnn_jax.build import image_sizes, load_proposals_of, read_split_of
from frcnn_jax.cli import command_parser, run
from frcnn_jax.config import Config
from frcnn_jax.errors import InputError
from frcnn_jax.files import check_folder, write_json
from frcnn_jax.training.checkpoint import save_model
from frcnn_jax.training.svm import train_svms
from frcnn_jax.workdir import compare_workdirs, derived_config, load_variables, read_config


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="the new workdir; default: W-svm")
    parser.add_argument("--negative-images", type=int, help="mine negatives in the first N of the train split only")
    parser.add_argument("--images", type=int, help="compare on the first N of the val split; 0 for no comparison")
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
    changed = derived_config(config, args.workdir, classifier="svm", picture_threshold=0.0)
    if not (out / "config.json").exists():
        _train(args.workdir, config, out, changed, args.negative_images)
    elif read_config(out) != changed:
        raise InputError(f"{out} exists; name another folder with --out")
    if args.images != 0:
        _, results = compare_workdirs((args.workdir, out), images=args.images)
        if args.images is None:
            write_json(out / "results.json", results)


def _train(workdir: Path, config: Config, out: Path, changed: Config, negative_images: int | None) -> None:
    model, variables, step = load_variables(workdir, config)
    dataset, proposals = load_proposals_of(config, workdir, read_split_of(config, "train"))
    (size,) = image_sizes(config)
    out.mkdir(parents=True, exist_ok=True)
    state = out / "svm.npz"
    params = train_svms(
        model,
        variables,
        dataset.records,
        proposals,
        size=size,
        state=state,
        negative_images=negative_images,
        seed=config["seed"],
    )
    save_model(out, step, {**variables, "params": params})
    write_json(out / "config.json", changed)
    state.unlink()


if __name__ == "__main__":
    run("train-svm")
