"""Replace the softmax of a trained workdir by SVMs on fc7 (section 5.4) in a new workdir, and compare the two:

    frcnn train-svm --workdir W [--out W-svm] [--negative-images N] [--images N]

An interrupted run resumes from its last save (one every 250 images); if the new workdir is complete, the command only
compares. Scores of the new workdir are margins: 0 is the decision boundary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frcnn_jax.build import image_sizes, load_proposals_of, read_split_of
from frcnn_jax.cli import check_at_least, command_parser, run
from frcnn_jax.config import Config
from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.models.heads import check_two_layers
from frcnn_jax.training.svm import train_svms
from frcnn_jax.workdir import derive_workdir, read_config


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__, "--workdir", "--network")
    parser.add_argument("--out", type=Path, help="new workdir; default: W-svm")
    parser.add_argument("--negative-images", type=int, metavar="N", help="mine only the first N train images")
    parser.add_argument("--images", type=int, metavar="N", help="compare on the first N val images; 0 for none")
    args = parser.parse_args(argv)
    check_at_least(1, negative_images=args.negative_images)
    check_at_least(0, images=args.images)
    out = args.out or args.workdir.with_name(args.workdir.name + "-svm")
    config = read_config(args.workdir, network=args.network)
    if config["classifier"] == "svm":
        raise InputError(f"{args.workdir}: its classifier is already an SVM")
    if config["scales"]:
        raise InputError(f"{args.workdir}: SVMs are trained at one scale, this network has {config['scales']}")
    state = out / "svm.npz"

    def train(config: Config, model: FastRCNN, variables: Any) -> dict[str, Any]:
        check_two_layers(model.head)
        dataset, proposals = load_proposals_of(
            config, args.workdir, read_split_of(config, "train", workdir=args.workdir)
        )
        (size,) = image_sizes(config)
        out.mkdir(parents=True, exist_ok=True)
        return train_svms(
            model,
            variables,
            dataset.records,
            proposals,
            size=size,
            state=state,
            negative_images=args.negative_images,
            seed=config["seed"],
        )

    changes = {"classifier": "svm", "picture_threshold": 0.0}
    derive_workdir(args.workdir, out, train, network=args.network, state=state, images=args.images, **changes)


if __name__ == "__main__":
    run("train-svm")
