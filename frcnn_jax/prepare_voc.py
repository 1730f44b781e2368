"""Prepare VOC for tensorflow-datasets, with its own builder but without network access:

    frcnn prepare-voc FOLDER --year 2007 [--data-dir DIR]

FOLDER is the VOCdevkit folder or contains the official tar files. Preparing needs TensorFlow (pip install
'frcnn_jax[tfds]'), training does not: --config.dataset=tfds:voc/2007 --config.data_dir=DIR
--config.train_split=train+validation --config.val_split=test.
"""

from collections.abc import Sequence
from pathlib import Path

from frcnn_jax.cli import command_parser, run
from frcnn_jax.data.tfds import prepare_tfds


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="VOCdevkit folder, or folder of the tar files")
    parser.add_argument("--year", type=int, choices=(2007, 2012), default=2007, help="default: %(default)s")
    parser.add_argument("--data-dir", type=Path, help="folder to write to; default: ~/tensorflow_datasets")
    args = parser.parse_args(argv)
    print(f"{prepare_tfds(args.folder, args.year, args.data_dir)}: prepared")


if __name__ == "__main__":
    run("prepare-voc")
