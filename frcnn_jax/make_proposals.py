r"""Proposals of a split, as shards that --config.proposals takes, and their recall:

    python scripts/make_proposals.py --out F.proposals [--split train|val] [--shards N] [--scheduler tcp://HOST:8786] \
        [--recall PLOT.png] [--config FILE.py] [--config.FIELD=VALUE ...]

Selective search by default, on every core or on a Dask cluster; stopped and run again, it goes on from its cache, the
folder `proposals` beside F or --config.proposal_cache. With --config.proposals=FILE it converts other programs' files.
Of several shards F-1-of-N.proposals one is made after the other, and held in memory. Recall counts objects that are
not difficult.
"""

import argparse
from collections import ChainMap
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from frcnn_jax.config import check_config, read_arguments
from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError, run_main
from frcnn_jax.evaluation.pictures import plot_proposal_recall, plot_suffixes
from frcnn_jax.proposals.files import read_proposals, write_proposals
from frcnn_jax.proposals.search import cluster
from frcnn_jax.splits import RECALL_IOUS, read_split, recall_table, split_recall, with_proposals


def shard_paths(out: Path, shards: int) -> list[Path]:
    if out.suffix != ".proposals" or not out.parent.is_dir():
        raise InputError(f"--out {out}: a file *.proposals in a folder that exists is expected")
    return [out] if shards == 1 else [out.with_stem(f"{out.stem}-{i}-of-{shards}") for i in range(1, shards + 1)]


def check_plot(path: Path) -> None:
    if path.suffix.lower() not in plot_suffixes() or path.is_dir() or not path.parent.is_dir():
        endings = ", ".join(plot_suffixes())
        raise InputError(f"--recall {path}: a file ({endings}) in a folder that exists is expected")


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, required=True, help="the shard, *.proposals")
    parser.add_argument("--split", choices=("train", "val"), default="val", help="default %(default)s")
    parser.add_argument("--shards", type=int, default=1, help="files of about as many images; default %(default)s")
    parser.add_argument("--scheduler", help="of a Dask cluster whose workers see the same paths")
    parser.add_argument("--recall", type=Path, metavar="PLOT.png", help="print recall by number and IoU, and plot it")
    args, fields = parser.parse_known_args(argv)
    config = read_arguments(fields)
    check_config(config)
    paths = shard_paths(args.out, args.shards)
    if args.recall:
        check_plot(args.recall)
    config |= {name: str(Path(config[name]).absolute()) for name in ("voc_dir", "data_dir") if config[name]}
    dataset = read_split(config, args.split)
    names, records = dataset.class_names, dataset.records
    if not 1 <= args.shards <= len(records):
        raise InputError(f"--shards must be 1 to the {len(records)} images, got {args.shards}")
    bounds = [len(records) * i // args.shards for i in range(args.shards + 1)]
    with cluster(args.scheduler) if args.scheduler else nullcontext() as executor:
        for path, begin, end in zip(paths, bounds[:-1], bounds[1:], strict=True):
            part, proposals = with_proposals(config, args.out.parent, Dataset(names, records[begin:end]), executor)
            write_proposals(path, {record.image_id: proposals[record.image_id] for record in part.records})
            size = path.stat().st_size / len(part.records)
            print(f"{path}: {len(part.records)} images, {size:.0f} bytes an image")
    if args.recall:
        found = ChainMap(*map(read_proposals, paths))  # type: ignore[arg-type, var-annotated]
        kept = [record for record in records if record.image_id in found]
        numbers, recall = split_recall(Dataset(names, kept), found, config["max_proposals"])
        print(recall_table(numbers, recall))
        plot_proposal_recall(numbers, RECALL_IOUS, recall, args.recall)


if __name__ == "__main__":
    run_main(main)
