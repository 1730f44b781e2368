"""Truncated SVD of a trained workdir's fc6 and fc7 (section 3.1) into a new workdir, and a comparison of both:

    frcnn compress --workdir W --fc6 1024 --fc7 256 [--out W-svd] [--images N]

Run again, it compares again.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from frcnn_jax.cli import command_parser, run
from frcnn_jax.config import Config
from frcnn_jax.errors import InputError
from frcnn_jax.files import check_folder, write_json
from frcnn_jax.models.svd import compress_head
from frcnn_jax.training.checkpoint import save_model
from frcnn_jax.workdir import compare_workdirs, derived_config, load_variables, read_config


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="the new workdir; default: W-svd")
    parser.add_argument("--fc6", type=int, default=1024, help="rank, 0 to keep it; default %(default)s")
    parser.add_argument("--fc7", type=int, default=256, help="rank, 0 to keep it; default %(default)s")
    parser.add_argument("--images", type=int, help="compare on the first N of the val split; 0 for no comparison")
    args = parser.parse_args(argv)
    if args.images is not None and args.images < 0:
        raise InputError(f"--images must be at least 0, got {args.images}")
    out = args.out or args.workdir.with_name(args.workdir.name + "-svd")
    check_folder(out)
    config = read_config(args.workdir)
    if config["fc_ranks"]:
        raise InputError(f"{args.workdir}: its fc6 and fc7 are factored already")
    compressed = derived_config(config, args.workdir, fc_ranks=[args.fc6, args.fc7])
    if not out.exists():
        _compress(args.workdir, config, out, compressed)
    elif not (out / "config.json").exists() or read_config(out) != compressed:
        raise InputError(f"{out} exists; name another folder with --out")
    if args.images != 0:
        _, factored = compare_workdirs((args.workdir, out), images=args.images)
        if args.images is None:
            write_json(out / "results.json", factored)


def _compress(workdir: Path, config: Config, out: Path, compressed: Config) -> None:
    _, variables, step = load_variables(workdir, config)
    params = compress_head(variables["params"], tuple(compressed["fc_ranks"]))
    save_model(out, step, {**variables, "params": params})
    write_json(out / "config.json", compressed)
    before, after = (_parameters(head) for head in (variables["params"]["head"], params["head"]))
    print(f"{out}: fc6 and fc7 have {after / 1e6:.1f} of {before / 1e6:.1f} million parameters")


def _parameters(head: Mapping[str, Any]) -> int:
    layers = [layer for name, layer in head.items() if name.startswith("fc")]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(layers))


if __name__ == "__main__":
    run("compress")
