"""Compress fc6 and fc7 of a trained workdir by truncated SVD (section 3.1) into a new workdir, and compare the two:

    frcnn compress --workdir W --fc6 1024 --fc7 256 [--out W-svd] [--images N]

If the new workdir exists already, the command only compares.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from frcnn_jax.cli import check_at_least, command_parser, run
from frcnn_jax.config import Config
from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.models.heads import check_two_layers
from frcnn_jax.models.svd import compress_head
from frcnn_jax.workdir import derive_workdir, read_config


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__, "--workdir", "--network")
    parser.add_argument("--out", type=Path, help="new workdir; default: W-svd")
    parser.add_argument("--fc6", type=int, default=1024, help="rank of fc6, 0 for no change; default: %(default)s")
    parser.add_argument("--fc7", type=int, default=256, help="rank of fc7, 0 for no change; default: %(default)s")
    parser.add_argument("--images", type=int, metavar="N", help="compare on the first N val images; 0 for none")
    args = parser.parse_args(argv)
    check_at_least(0, images=args.images)
    out = args.out or args.workdir.with_name(args.workdir.name + "-svd")
    if read_config(args.workdir, network=args.network)["fc_ranks"]:
        raise InputError(f"{args.workdir}: fc6 and fc7 are already factored")

    def compress(_: Config, model: FastRCNN, variables: Any) -> dict[str, Any]:
        check_two_layers(model.head)
        params = compress_head(variables["params"], (args.fc6, args.fc7))
        before, after = (_parameters(head) for head in (variables["params"]["head"], params["head"]))
        print(f"{out}: fc6 and fc7 have {after / 1e6:.1f} of {before / 1e6:.1f} million parameters")
        return params

    derive_workdir(args.workdir, out, compress, images=args.images, network=args.network, fc_ranks=[args.fc6, args.fc7])


def _parameters(head: Mapping[str, Any]) -> int:
    """Number of parameters of fc6 and fc7."""
    layers = [layer for name, layer in head.items() if name.startswith("fc")]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(layers))


if __name__ == "__main__":
    run("compress")
