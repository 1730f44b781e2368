"""Prepares VOC for tensorflow-datasets, with its own builder and without network:

    python scripts/prepare_voc.py FOLDER --year 2007 [--data-dir DIR]

FOLDER is the VOCdevkit folder, or holds the official tar files. Needs TensorFlow: pip install 'frcnn_jax[tfds]'. Then
train with --config.dataset=tfds:voc/2007 --config.data_dir=DIR --config.train_split=train+validation
--config.val_split=test; that does not need it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from frcnn_jax.data.tfds import prepare_tfds
from frcnn_jax.errors import run_main


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--year", type=int, choices=(2007, 2012), default=2007)
    parser.add_argument("--data-dir", type=Path, help="~/tensorflow_datasets by default")
    args = parser.parse_args(argv)
    print(f"{prepare_tfds(args.folder, args.year, args.data_dir)}: prepared")


if __name__ == "__main__":
    run_main(main)
