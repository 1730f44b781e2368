"""The configuration: every field, with the values of the main job on the synthetic set.

A recipe in experiments/ is a delta on this. Only the command lines read it; all else takes plain arguments.
"""

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from frcnn_jax.errors import InputError


def get_config() -> ConfigDict:
    """Every field. The types are fixed: a value of another type is refused."""
    config = ConfigDict()

    # Data
    config.dataset = "synthetic"  # "synthetic" or "voc"
    config.voc_dir = ""  # voc: the VOCdevkit folder
    config.year = 2007  # voc: which VOC<year>
    config.train_split = "train"
    config.val_split = "val"
    config.train_images = 600  # synthetic: images in the train split
    config.val_images = 200  # synthetic: images in the val split
    config.class_names = ()  # filled in from the data

    # Proposals: OpenCV's selective search
    config.proposal_mode = "fast"  # "fast" or "quality"
    config.max_proposals = 2000  # an image
    config.proposal_cache = ""  # a folder; W/proposals where empty
    config.workers = 0  # processes; one a core where 0

    # Network
    config.network = "tiny"  # a row of models.NETWORKS
    config.weights = ""  # an .npz of pretrained layers; random where empty
    config.min_size = 144  # the shorter side of an image after resizing, in pixels ...
    config.max_size = 192  # ... unless the longer one would be over this

    # Mini-batch (section 2.3)
    config.images_per_batch = 2  # over all devices
    config.rois_per_batch = 128
    config.fg_fraction = 0.25
    config.fg_iou = 0.5
    config.bg_iou_low = 0.0  # background has its best IoU in [low, high)
    config.bg_iou_high = 0.5
    config.flip = True

    # Solver
    config.steps = 2000
    config.learning_rate = 0.01
    config.learning_rate_drops = (1700,)  # times 0.1 from these steps on
    config.momentum = 0.9
    config.weight_decay = 0.0005
    config.seed = 0

    # Test (section 3)
    config.nms_iou = 0.3
    config.candidates_per_class = 100  # best scores of a class that enter its NMS

    # Housekeeping
    config.log_every = 20  # steps
    config.checkpoint_every = 500  # steps
    config.keep_checkpoints = 2
    config.pictures = 12  # held-out images drawn at the end ...
    config.picture_threshold = 0.5  # ... with their detections of this score or more
    return config


def load_config(argv: Sequence[str]) -> tuple[dict[str, Any], Path]:
    """The config and the workdir of `--workdir W [--config FILE] [--config.field=value ...]`.

    Raises:
        InputError: a config file that can't be loaded, an unknown field, a value of another type.
    """
    parser = argparse.ArgumentParser(
        prog="python -m frcnn_jax.train",
        description="Trains Fast R-CNN and scores it; on the same workdir it goes on from the last checkpoint.",
        epilog="Fields and their meaning: frcnn_jax/config.py. Recipes: experiments/.",
        usage="%(prog)s --workdir W [--config FILE.py] [--config.FIELD=VALUE ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder for all that training leaves")
    args, overrides = parser.parse_known_args(argv)
    values = flags.FlagValues()
    command = [parser.prog, *overrides]
    try:
        config_flags.DEFINE_config_file("config", __file__, flag_values=values, sys_argv=command)
        stray = values(command)[1:]
        config = values.config.to_dict()
    except (AttributeError, KeyError) as error:
        raise InputError(_unknown_field(str(error))) from None
    except OSError as error:
        raise InputError(f"--config: {' '.join(str(error).split())}") from None
    except (flags.Error, TypeError, ValueError, SyntaxError) as error:
        raise InputError(" ".join(str(error).split())) from None
    if stray:
        raise InputError(f"unknown argument {stray[0]!r}; a field is set with --config.FIELD=VALUE")
    return config, args.workdir


def _unknown_field(text: str) -> str:
    name = (re.search(r"'(\w+)'", text.replace("\\", "")) or [text, text])[1]
    near = difflib.get_close_matches(name, get_config(), n=3)
    return f"--config.{name}: no such field" + (f"; near ones are {', '.join(near)}" if near else "")
