"""The console command `frcnn NAME ...`, its table of commands, and helpers for their arguments."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from frcnn_jax import __version__
from frcnn_jax.errors import InputError, run_main

# name: (module, help)
COMMANDS = {
    "train": ("train", "train on a data set and evaluate; rerun to resume"),
    "detect": ("detect", "detect objects in images; write pictures and a JSON file"),
    "embed": ("embed", "write the features of given boxes"),
    "eval-voc": ("eval_voc", "score a workdir, or result files, by the VOC protocol"),
    "eval-coco": ("eval_coco", "compute COCO metrics for a workdir or a result file"),
    "proposals": ("make_proposals", "compute or convert the proposals of a split, and measure their recall"),
    "check-dataset": ("check_dataset", "report every problem in a data set, and print its statistics"),
    "export": ("export", "export the detection step as one file that needs only jax"),
    "convert-weights": ("convert_weights", "convert weights from Caffe, torchvision, Keras or a workdir"),
    "calibrate": ("calibrate", "make scores probabilities of being right"),
    "compress": ("compress", "compress fc6 and fc7 by truncated SVD"),
    "train-svm": ("train_svm", "replace the softmax by one SVM per class"),
    "prepare-voc": ("prepare_voc", "prepare VOC for tensorflow-datasets without a network"),
}


# options that several commands share
OPTIONS: dict[str, dict[str, Any]] = {
    "--workdir": {"type": Path, "required": True, "help": "workdir of a training"},
    "--network": {
        "default": "",
        "metavar": "MODULE:FUNCTION",
        "help": "the function that makes the workdir's network, if it is your own",
    },
    "--step": {"type": int, "help": "step of the checkpoint; default: the newest"},
    "--images": {"type": int, "metavar": "N", "help": "use only the first N images of the split; default: all"},
    "--json": {"type": Path, "help": "file to write the scores to"},
}

ANY_DETECTOR = "workdir of a training or a detector's .safetensors file; default: the detector that the package has"


def command_parser(doc: str | None, *options: str) -> argparse.ArgumentParser:
    """Return a parser with options of OPTIONS; its help begins with the command's docstring, unchanged."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for name in options:
        parser.add_argument(name, **OPTIONS[name])
    return parser


def check_at_least(least: int, **values: int | None) -> None:
    """Raise InputError for the first option that is given and too small."""
    for name, value in values.items():
        if value is not None and value < least:
            raise InputError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def run(name: str) -> None:
    """Run one command with the arguments in `sys.argv`; the entry point of every command."""
    command = importlib.import_module(f"frcnn_jax.{COMMANDS[name][0]}")
    from frcnn_jax.training.hosts import exit_together  # deferred: imports jax

    sys.argv[0] = f"frcnn {name}"  # shown in usage texts
    with exit_together():
        run_main(command.main)


def main() -> None:
    """Run `frcnn NAME ...`; `frcnn --help` lists the names."""
    lines = (f"  {name:<16} {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="frcnn",
        usage="%(prog)s NAME ...",
        description="Fast R-CNN in JAX.\n\ncommands:\n" + "\n".join(lines),
        epilog="Run `frcnn NAME --help` for the arguments of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("name", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.name is None:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if args.name not in COMMANDS:
        parser.exit(2, f"frcnn: unknown command {args.name!r}; choose from {', '.join(COMMANDS)}\n")
    sys.argv[1:] = args.arguments
    run(args.name)
