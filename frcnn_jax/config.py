"""The configuration: every field, with the values of the main job on the synthetic set.

A recipe in experiments/ is a delta on this. Only the command lines read it; all else takes plain arguments.
"""

import argparse
import ast
import difflib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from frcnn_jax.errors import InputError


def get_config() -> ConfigDict:
    """Every field. The types are fixed: a value of another type is refused."""
    config = ConfigDict()

    # Data
    config.dataset = "synthetic"  # "synthetic", "voc", "xml", "coco", "tfds:voc/2007" or "tfds:voc/2012"
    config.voc_dir = ""  # voc: the VOCdevkit folder
    config.year = 2007  # voc: the VOC<year> of splits that name none
    config.data_dir = ""  # xml: <split>/*.xml, images beside; coco: annotations/instances_<split>.json, <split>/*;
    # tfds: where it was prepared, ~/tensorflow_datasets where empty
    config.train_split = "train"  # voc: may join several, "2007_trainval+2012_trainval"
    config.val_split = "val"
    config.on_error = "stop"  # at what is wrong in the data; "skip" leaves the object or image out, and counts
    config.train_images = 600  # synthetic: images in the train split
    config.val_images = 200  # synthetic: images in the val split
    config.train_difficult = True  # objects marked difficult are trained on, as the paper's code does
    config.class_names = ()  # filled in from the data

    # Proposals: OpenCV's selective search, or files
    config.proposals = ""  # a file or folder of them (proposal_files.py), or several, "A+B"; the search where empty
    config.proposal_mode = "fast"  # "fast" or "quality"
    config.max_proposals = 2000  # an image
    config.proposal_cache = ""  # a folder; W/proposals where empty
    config.workers = 0  # processes; one a core where 0

    # Network
    config.network = "tiny"  # a row of models.NETWORKS
    config.weights = ""  # a file of pretrained layers, see weight_files.py; random where empty
    config.train_from = (
        ""  # the first layer that is trained (section 4.5), "fc6" for none of the convolutions; the row's
    )
    config.compute_type = "float32"  # or "bfloat16"; parameters stay float32
    config.fc_ranks = ()  # of fc6 and fc7 as two layers each; scripts/compress.py sets it
    config.classifier = "softmax"  # "svm": cls_score holds one SVM a class; scripts/train_svm.py sets it
    config.min_size = 144  # the shorter side of an image after resizing, in pixels ...
    config.max_size = 192  # ... unless the longer one would be over this
    config.scales = ()  # several shorter sides (section 5.2): one drawn an image in training, an image pyramid at test

    # Mini-batch (section 2.3)
    config.data_workers = 0  # processes that make batches; 0 for threads of this one
    config.images_per_batch = 2  # over all devices
    config.accumulate = 1  # parts of a device's images that go through the network one after another
    config.rois_per_batch = 128
    config.fg_fraction = 0.25
    config.fg_iou = 0.5
    config.bg_iou_low = 0.0  # background has its best IoU in [low, high)
    config.bg_iou_high = 0.5
    config.flip = True
    config.box_loss_weight = 1.0  # lambda of equation 1; 0 trains on classes alone

    # Solver: steps and rate are meant for this many images a step; for another images_per_batch the rate is scaled in
    # proportion, the steps in inverse proportion
    config.reference_images = 2
    config.steps = 2000
    config.learning_rate = 0.01
    config.learning_rate_drops = (1700,)  # times 0.1 from these steps on
    config.momentum = 0.9
    config.weight_decay = 0.0005
    config.decay_biases = False  # the paper's text says yes, its code no
    config.warmup_steps = 0  # the rate rises linearly over them
    config.seed = 0

    # Test (section 3)
    config.nms_iou = 0.3
    config.test_box_regression = True  # off: RoIs as they are
    config.candidates_per_class = 100  # best scores of a class that enter its NMS

    # Housekeeping
    config.log_every = 20  # steps
    config.profile_steps = ()  # the first and the last step of a trace in W/profile, for TensorBoard, XProf, Perfetto;
    # one or two on a CPU, where a step takes some 60 MB on disk, 1 GB of memory and 7 s
    config.checkpoint_every = 500  # steps
    config.keep_checkpoints = 2  # the newest ones
    config.keep_best = 0  # and so many with the best mAP of those that were scored
    config.eval_every = 0  # steps; these checkpoints are scored on the val split. 0: only the last one
    config.eval_images = 0  # of it, the first ones; all where 0. The last score is always that of all
    config.pictures = 12  # held-out images drawn at the end ...
    config.picture_threshold = 0.5  # ... with their detections of this score or more
    return config.lock()


def voc07_config(network: str) -> ConfigDict:
    """The paper's recipe on VOC2007: trained on trainval, scored on test (sections 2.3 and 4.2)."""
    config = get_config()
    config.dataset = "voc"
    config.train_split = "trainval"
    config.val_split = "test"
    config.network = network
    config.min_size = 600
    config.max_size = 1000
    config.bg_iou_low = 0.1
    config.learning_rate = 0.001
    config.steps = 40_000
    config.learning_rate_drops = (30_000,)
    config.checkpoint_every = 2000
    return config


# Fields that do not change what is trained: they may differ when a run goes on.
HOUSEKEEPING = frozenset(
    (
        "log_every",
        "profile_steps",
        "checkpoint_every",
        "keep_checkpoints",
        "keep_best",
        "eval_every",
        "eval_images",
        "pictures",
        "picture_threshold",
        "workers",
        "data_workers",
        "proposal_cache",
    )
)

_POSITIVE = [
    "train_images",
    "val_images",
    "max_proposals",
    "min_size",
    "max_size",
    "images_per_batch",
    "accumulate",
    "reference_images",
    "rois_per_batch",
    "steps",
    "candidates_per_class",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "learning_rate",
]
_NOT_NEGATIVE = [
    "workers", "data_workers", "pictures", "seed", "weight_decay", "box_loss_weight", "warmup_steps", "keep_best",
    "eval_every", "eval_images",
]  # fmt: skip
_FRACTIONS = ["fg_fraction", "fg_iou", "bg_iou_low", "bg_iou_high", "momentum", "nms_iou", "picture_threshold"]
CLASSIFIERS = ("softmax", "svm")
COMPUTE_TYPES = ("float32", "bfloat16")
MOST_CANDIDATES = 512  # RoIs are padded to a multiple of this at test


def check_config(config: Mapping[str, Any]) -> None:
    """InputError for the first field whose value is out of its range."""
    checks = [(name, config[name] > 0, "over 0") for name in _POSITIVE]
    checks += [(name, config[name] >= 0, "0 or more") for name in _NOT_NEGATIVE]
    checks += [(name, 0 <= config[name] <= 1, "from 0 to 1") for name in _FRACTIONS]
    checks += [
        ("learning_rate", math.isfinite(config["learning_rate"]), "finite"),
        ("keep_best", config["eval_every"] or not config["keep_best"], "0 where eval_every is 0"),
        ("max_size", config["max_size"] >= config["min_size"], "at least min_size"),
        (
            "rois_per_batch",
            config["rois_per_batch"] % max(config["images_per_batch"], 1) == 0,
            f"a multiple of images_per_batch, {config['images_per_batch']}",
        ),
        ("candidates_per_class", config["candidates_per_class"] <= MOST_CANDIDATES, f"at most {MOST_CANDIDATES}"),
        (
            "learning_rate_drops",
            all(isinstance(step, int) and step >= 0 for step in config["learning_rate_drops"]),
            "steps, whole numbers",
        ),
        ("bg_iou_low", config["bg_iou_low"] < config["bg_iou_high"], "below bg_iou_high"),
        ("seed", config["seed"] < 2**32, "below 2^32"),
        ("proposal_mode", config["proposal_mode"] in ("fast", "quality"), "one of fast, quality"),
        ("on_error", config["on_error"] in ("stop", "skip"), "stop or skip"),
        ("classifier", config["classifier"] in CLASSIFIERS, f"one of {', '.join(CLASSIFIERS)}"),
        ("compute_type", config["compute_type"] in COMPUTE_TYPES, f"one of {', '.join(COMPUTE_TYPES)}"),
        (
            "fc_ranks",
            len(config["fc_ranks"]) in (0, 2) and all(isinstance(r, int) and r >= 0 for r in config["fc_ranks"]),
            "empty or two whole numbers, 0 for a full layer",
        ),
        (
            "scales",
            all(isinstance(s, int) and 0 < s <= config["max_size"] for s in config["scales"]),
            "sides of 1 to max_size",
        ),
        (
            "profile_steps",
            len(config["profile_steps"]) in (0, 2)
            and all(isinstance(step, int) and step > 0 for step in config["profile_steps"])
            and list(config["profile_steps"]) == sorted(config["profile_steps"]),
            "empty or the first and the last step",
        ),
        ("class_names", all(isinstance(name, str) for name in config["class_names"]), "names"),
    ]
    for name, holds, expected in checks:
        if not holds:
            raise InputError(f"--config.{name} must be {expected}, got {config[name]!r}")


def fits_type(value: Any, default: Any) -> bool:
    """Whether a field may take a value, by the type of its default: a whole number will do for a float, a list for a
    tuple."""
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default) or (isinstance(value, list) and isinstance(default, tuple))


# Fields that a trained network can be evaluated with other values of.
TEST_FIELDS = frozenset(
    (
        "min_size", "max_size", "scales", "max_proposals", "nms_iou", "candidates_per_class", "test_box_regression",
        "compute_type", "voc_dir", "data_dir", "on_error", "year", "val_split", "val_images", "proposals",
        "proposal_cache", "workers",
    )
)  # fmt: skip


def evaluation_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Values by field of `--config.FIELD=VALUE` arguments, for evaluation.

    Raises:
        InputError: another argument, a field that is fixed once trained, or a value of another type.
    """
    defaults, values = get_config(), {}
    for argument in arguments:
        match = re.fullmatch(r"--config\.([^=]*)=(.*)", argument)
        if not match:
            raise InputError(f"unknown argument {argument!r}; a field is set with --config.FIELD=VALUE")
        name, text = match.groups()
        if name not in TEST_FIELDS:
            raise InputError(f"--config.{name}: not a field of evaluation; those are {', '.join(sorted(TEST_FIELDS))}")
        try:
            values[name] = text if isinstance(defaults[name], str) else ast.literal_eval(text.capitalize())
        except (ValueError, SyntaxError):
            values[name] = None
        if not fits_type(values[name], defaults[name]):
            example = ", such as (480, 576)" if isinstance(defaults[name], tuple) else ""
            raise InputError(f"--config.{name} must be a {type(defaults[name]).__name__}{example}, got {text!r}")
    return values


def load_config(argv: Sequence[str]) -> tuple[dict[str, Any], argparse.Namespace]:
    """The config and the other arguments of `--workdir W [--config FILE] [--config.field=value ...]`.

    Raises:
        InputError: a config file that can't be loaded, an unknown field, a value of another type.
    """
    parser = argparse.ArgumentParser(
        description="Trains Fast R-CNN and scores it; on the same workdir it goes on from the last checkpoint.",
        epilog="Fields and their meaning: frcnn_jax/config.py. Recipes: experiments/.",
        usage="%(prog)s --workdir W [--config FILE.py] [--config.FIELD=VALUE ...] [--distributed | --coordinator ...]",
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder for all that training leaves")
    many = parser.add_argument_group("several processes, one a host (docs/scaling.md)")
    many.add_argument("--distributed", action="store_true", help="on SLURM, GKE and TPU pods, where jax finds the rest")
    many.add_argument("--coordinator", metavar="HOST:PORT", help="elsewhere: the address of process 0")
    many.add_argument("--num-processes", type=int, help="with --coordinator")
    many.add_argument("--process-id", type=int, help="with --coordinator: from 0")
    many.add_argument("--timeout", type=int, default=300, help="seconds to wait for the others; default %(default)s")
    args, rest = parser.parse_known_args(argv)
    of_coordinator = (args.num_processes is not None, args.process_id is not None)
    if any(given != (args.coordinator is not None) for given in of_coordinator):
        raise InputError("--coordinator, --num-processes and --process-id go together")
    address = re.fullmatch(r".+:(\d{1,5})", args.coordinator or "host:1")
    if not address or not 0 < int(address[1]) < 2**16:
        raise InputError(f"--coordinator must be HOST:PORT, a port from 1 to 65535, got {args.coordinator!r}")
    if args.coordinator and args.num_processes < 1:
        raise InputError(f"--num-processes must be at least 1, got {args.num_processes}")
    if args.coordinator and not 0 <= args.process_id < args.num_processes:
        raise InputError(f"--process-id must be from 0 to {args.num_processes - 1}, got {args.process_id}")
    if args.timeout < 1:
        raise InputError(f"--timeout must be at least 1 s, got {args.timeout}")
    return read_arguments(rest), args


def _file_first(arguments: Sequence[str]) -> list[str]:
    """The arguments, with `--config FILE` before the fields that change it."""
    for i, argument in enumerate(arguments):
        if re.fullmatch(r"--?config(=.*)?", argument):
            end = i + (1 if "=" in argument else 2)
            return [*arguments[i:end], *arguments[:i], *arguments[end:]]
    return list(arguments)


def read_arguments(arguments: Sequence[str]) -> dict[str, Any]:
    """The config of `[--config FILE] [--config.field=value ...]`.

    Raises:
        InputError: a config file that can't be loaded, an unknown field, a value of another type.
    """
    for override in arguments:
        if (field := re.match(r"--?config\.([^=]*)", override)) and field[1] not in get_config():
            near = difflib.get_close_matches(field[1], get_config(), n=3)
            near_ones = f"; near ones are {', '.join(near)}" if near else ""
            raise InputError(f"--config.{field[1]}: no such field{near_ones}")
    values = flags.FlagValues()
    command = ["", *_file_first(arguments)]
    try:
        config_flags.DEFINE_config_file("config", __file__, flag_values=values, sys_argv=command)
        stray = values(command)[1:]
        config = values.config.to_dict()
    except Exception as error:  # whatever a recipe's own code raises, too
        raise InputError(f"--config: {type(error).__name__}: {' '.join(str(error).split())}") from None
    if stray:
        raise InputError(f"unknown argument {stray[0]!r}; a field is set with --config.FIELD=VALUE")
    if unknown := sorted(set(config) ^ set(get_config())):
        raise InputError(f"--config: the recipe's fields are not those of frcnn_jax/config.py: {', '.join(unknown)}")
    return config
