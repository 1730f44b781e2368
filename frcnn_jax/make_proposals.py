r"""Compute the proposals of a split, as shards for --config.proposals, and measure their recall; convert files of them:

    frcnn proposals --out F.proposals [--split train|val] [--shards N] [--scheduler tcp://HOST:8786] \
        [--recall PLOT.png] [--config RECIPE] [--config.FIELD=VALUE ...]
    frcnn proposals convert SOURCE --out FILE [--boxes FORMAT] [--ids FILE]

Runs selective search on all cores or on a Dask cluster. An interrupted run resumes from the cache: the folder
`proposals` next to F, or --config.proposal_cache. --config.proposals=FILE takes files of other programs, and measures
their recall. Only one shard at a time is in memory; several are named F-1-of-N.proposals and so on. Recall ignores
difficult objects.
"""

from collections import ChainMap
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from frcnn_jax import convert_proposals
from frcnn_jax.build import load_proposals_of, read_split_of
from frcnn_jax.cli import command_parser, run
from frcnn_jax.config import add_config_argument, load_config
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.pictures import check_plot, plot_proposal_recall
from frcnn_jax.evaluation.recall import RECALL_IOUS, recall_table, split_recall
from frcnn_jax.proposals.cluster import dask_executor
from frcnn_jax.proposals.files import read_proposals
from frcnn_jax.proposals.shards import write_proposals


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    if argv[:1] == ["convert"]:
        convert_proposals.main(argv[1:])
        return
    parser = command_parser(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="file to write, *.proposals")
    parser.add_argument(
        "--split", choices=("train", "val"), default="val", help="split of the data set; default: %(default)s"
    )
    parser.add_argument("--shards", type=int, default=1, help="number of files; default: %(default)s")
    parser.add_argument("--scheduler", help="address of a Dask cluster with the same file paths")
    parser.add_argument("--recall", type=Path, metavar="PLOT.png", help="print and plot the recall")
    add_config_argument(parser)
    args, fields = parser.parse_known_args(argv)
    config = load_config(args.config, fields)
    paths = _shard_paths(args.out, args.shards)
    if args.recall:
        check_plot("--recall", args.recall)
    config |= {name: str(Path(config[name]).absolute()) for name in ("voc_dir", "data_dir") if config[name]}
    dataset = read_split_of(config, args.split)
    records = dataset.records
    if not 1 <= args.shards <= len(records):
        raise InputError(f"--shards must be 1 to {len(records)}, the number of images, got {args.shards}")
    bounds = [len(records) * i // args.shards for i in range(args.shards + 1)]
    with dask_executor(args.scheduler) if args.scheduler else nullcontext() as executor:
        for path, begin, end in zip(paths, bounds[:-1], bounds[1:], strict=True):
            part = replace(dataset, records=records[begin:end])
            part, proposals = load_proposals_of(config, args.out.parent, part, executor)
            write_proposals(path, proposals)
            size = path.stat().st_size / len(part.records)
            print(f"{path}: {len(part.records)} images, {size:.0f} bytes per image")
    if args.recall:
        found = ChainMap(*map(read_proposals, paths))  # type: ignore[arg-type, var-annotated]
        kept = replace(dataset, records=[record for record in records if record.image_id in found])
        numbers, recall = split_recall(kept, found, config["max_proposals"])
        print(recall_table(numbers, recall))
        plot_proposal_recall(numbers, RECALL_IOUS, recall, args.recall)


def _shard_paths(out: Path, shards: int) -> list[Path]:
    if out.suffix != ".proposals" or not out.parent.is_dir():
        raise InputError(f"--out {out}: expected a file *.proposals in an existing folder")
    return [out] if shards == 1 else [out.with_stem(f"{out.stem}-{i}-of-{shards}") for i in range(1, shards + 1)]


if __name__ == "__main__":
    run("proposals")
