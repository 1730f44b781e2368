"""The console command `frcnn NAME ...`: the table of commands, and how each one runs."""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from frcnn_jax.errors import InputError, run_main

# name: (module, help)
COMMANDS = {
    "train": ("train", "train on a data set and score the result; resumes by itself"),
    "detect": ("detect", "draw and list the detections in images"),
    "eval-voc": ("eval_voc", "score a workdir, or result files, by the VOC protocol"),
    "eval-coco": ("eval_coco", "score a workdir, or a result file, with COCO's metrics"),
    "proposals": ("make_proposals", "compute or convert the proposals of a split, and measure their recall"),
    "check-dataset": ("check_dataset", "list every problem in a data set, and its statistics"),
    "export": ("export", "write the detection step as a file that needs jax alone"),
    "convert-weights": ("convert_weights", "convert weights from Caffe, torchvision, Keras or a workdir"),
    "compress": ("compress", "truncate fc6 and fc7 by SVD"),
    "train-svm": ("train_svm", "replace the softmax by one SVM per class"),
    "prepare-voc": ("prepare_voc", "prepare VOC for tensorflow-datasets without a network"),
}


# options that several commands share
OPTIONS: dict[str, dict[str, Any]] = {
    "--workdir": {"type": Path, "required": True, "help": "workdir of a training"},
    "--step": {"type": int, "help": "step of the checkpoint; default: the newest"},
    "--images": {"type": int, "help": "number of images to use, the first of the split; default: all"},
    "--json": {"type": Path, "help": "file to write the scores to"},
}


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
    """Run one command with the arguments in `sys.argv`. Every entry point of a command ends here."""
    command = importlib.import_module(f"frcnn_jax.{COMMANDS[name][0]}")
    from frcnn_jax.training.hosts import exit_together  # late: imports jax

    sys.argv[0] = f"frcnn {name}"  # usage texts show it
    with exit_together():
        run_main(command.main)


def main() -> None:
    """Run `frcnn NAME ...`; `frcnn --help` lists the names."""
    lines = (f"  {name:<16} {text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="frcnn",
        usage="%(prog)s NAME ...",
        description="Fast R-CNN in JAX.\n\ncommands:\n" + "\n".join(lines),
        epilog="`frcnn NAME --help` explains a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.name not in COMMANDS:
        parser.exit(2, f"frcnn: unknown command {args.name!r}; choose from {', '.join(COMMANDS)}\n")
    sys.argv[1:] = args.arguments
    run(args.name)
