"""Truncated SVD of a trained workdir's fc6 and fc7 (section 3.1) into a new workdir; both compared on the val split:

python scripts/compress.py --workdir W --fc6 1024 --fc7 256 [--out W-svd] [--images N]

Run again, it compares again.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from frcnn_jax.__main__ import run
from frcnn_jax.detect import load_variables, read_config
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.evaluate import compare_workdirs
from frcnn_jax.files import check_folder, write_json
from frcnn_jax.models.svd import compress_head
from frcnn_jax.training.checkpoint import save_model


def parameters(head: Mapping[str, Any]) -> int:
    layers = [layer for name, layer in head.items() if name.startswith("fc")]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(layers))


def compress(workdir: Path, config: Mapping[str, Any], out: Path, compressed: Mapping[str, Any]) -> None:
    _, variables, step = load_variables(workdir, config)
    params = compress_head(variables["params"], tuple(compressed["fc_ranks"]))
    save_model(out, step, {**variables, "params": params})
    write_json(out / "config.json", compressed)
    before, after = (parameters(head) for head in (variables["params"]["head"], params["head"]))
    print(f"{out}: fc6 and fc7 have {after / 1e6:.1f} of {before / 1e6:.1f} million parameters")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="the new workdir; W-svd by default")
    parser.add_argument("--fc6", type=int, default=1024, help="rank, 0 to leave it; default %(default)s")
    parser.add_argument("--fc7", type=int, default=256, help="rank, 0 to leave it; default %(default)s")
    parser.add_argument("--images", type=int, help="compare on the first N of the val split only; 0 for no comparison")
    args = parser.parse_args(argv)
    if args.images is not None and args.images < 0:
        raise InputError(f"--images must be at least 0, got {args.images}")
    out = args.out or args.workdir.with_name(args.workdir.name + "-svd")
    check_folder(out)
    config = read_config(args.workdir)
    if config["fc_ranks"]:
        raise InputError(f"{args.workdir}: its fc6 and fc7 are factored already")
    cache = config["proposal_cache"] or str((args.workdir / "proposals").absolute())
    compressed = {**config, "fc_ranks": [args.fc6, args.fc7], "proposal_cache": cache}
    if not out.exists():
        compress(args.workdir, config, out, compressed)
    elif not (out / "config.json").exists() or read_config(out) != compressed:
        raise InputError(f"{out} exists; name another folder with --out")
    if args.images == 0:
        return
    _, factored = compare_workdirs((args.workdir, out), images=args.images)
    if args.images is None:
        write_json(out / "results.json", factored)


if __name__ == "__main__":
    run("compress")
