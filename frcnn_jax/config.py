"""The configuration: every field with its default, its check and its meaning. Only the command lines read it.

The defaults are those of the main job on the synthetic data set. A recipe in experiments/ is a delta on them.
"""

import argparse
import difflib
import importlib.util
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from frcnn_jax.data.batches import ROI_MULTIPLE
from frcnn_jax.data.readers import FORMATS
from frcnn_jax.errors import InputError
from frcnn_jax.models.networks import NETWORKS
from frcnn_jax.proposals.search import MODES
from frcnn_jax.recipes import recipe_path

Config = Mapping[str, Any]


class Check(NamedTuple):
    """A condition on a field's value, given the config, and what it expects; {names} stand for other fields."""

    holds: Callable[[Any, Config], bool]
    expected: str


class Field(NamedTuple):
    """A row of the table: a default, whose type is the field's, its meaning and its check.

    Attributes:
        at_test: Whether a trained network may be evaluated with another value.
        housekeeping: Whether the value does not change what is trained, and so may change when a run is resumed.
    """

    default: Any
    help: str
    check: Check | None = None
    at_test: bool = False
    housekeeping: bool = False


def _one_of(choices: Collection[str]) -> Check:
    return Check(lambda value, _: value in choices, f"one of {', '.join(choices)}")


def _whole(values: Sequence[Any], least: int) -> bool:
    return all(type(value) is int and value >= least for value in values)


_POSITIVE = Check(lambda value, _: value > 0, "over 0")
_NOT_NEGATIVE = Check(lambda value, _: value >= 0, "0 or more")
_FRACTION = Check(lambda value, _: 0 <= value <= 1, "from 0 to 1")
_PROFILE = Check(lambda v, _: not v or (len(v) == 2 and _whole(v, 1) and v[0] <= v[1]), "empty or (first, last)")
_RANKS = Check(lambda v, _: len(v) in (0, 2) and _whole(v, 0), "empty or two whole numbers, 0 for a full layer")
_SCALES = Check(lambda v, c: _whole(v, 1) and max(v, default=0) <= c["max_size"], "sides of 1 to max_size")
_ROIS = Check(
    lambda v, c: v > 0 and c["images_per_batch"] > 0 and v % c["images_per_batch"] == 0,
    "over 0 and a multiple of images_per_batch, {images_per_batch}",
)

FIELDS: dict[str, Field] = {
    # Data
    "dataset": Field("synthetic", f"One of {', '.join(FORMATS)}.", _one_of(FORMATS)),
    "voc_dir": Field("", "voc: the VOCdevkit folder.", at_test=True),
    "year": Field(2007, "voc: the VOC<year> of splits that name none.", at_test=True),
    "data_dir": Field(
        "",
        "xml: holds <split>/ with images and XML files; coco: holds annotations/instances_<split>.json and <split>/; "
        "tfds: where it was prepared, ~/tensorflow_datasets if empty.",
        at_test=True,
    ),
    "train_split": Field("train", 'The split trained on; voc takes several, "2007_trainval+2012_trainval".'),
    "val_split": Field("val", "The split scored.", at_test=True),
    "on_error": Field("stop", '"skip" drops and counts broken objects and images.', _one_of(("stop", "skip")), True),
    "train_images": Field(600, "synthetic: images in the train split.", _POSITIVE),
    "val_images": Field(200, "synthetic: images in the val split.", _POSITIVE, True),
    "train_difficult": Field(True, "Whether to train on difficult objects, as the paper's code does."),
    "class_names": Field((), "From the data.", Check(lambda v, _: all(isinstance(n, str) for n in v), "names")),
    # Proposals
    "proposals": Field("", 'Proposal files or folders, "A+B"; selective search if empty.', at_test=True),
    "proposal_mode": Field("fast", "Of selective search.", _one_of(MODES)),
    "max_proposals": Field(2000, "The most proposals per image.", _POSITIVE, True),
    "proposal_cache": Field("", "A folder; W/proposals if empty.", None, True, True),
    "workers": Field(0, "Processes that search; 0 for one per core.", _NOT_NEGATIVE, True, True),
    # Network
    "network": Field("tiny", "A row of models.networks.NETWORKS.", _one_of(NETWORKS)),
    "weights": Field("", "A file of pretrained layers, or a workdir; random initialisation if empty."),
    "train_from": Field("", "The first trained layer (section 4.5); the network's own choice if empty."),
    "compute_type": Field("float32", "Parameters stay float32.", _one_of(("float32", "bfloat16")), True),
    "fc_ranks": Field((), "Ranks of factored fc6 and fc7; set by frcnn compress.", _RANKS),
    "classifier": Field("softmax", '"svm" after frcnn train-svm.', _one_of(("softmax", "svm"))),
    "min_size": Field(144, "Pixels of the shorter side of a resized image ...", _POSITIVE, True),
    "max_size": Field(
        192,
        "... unless the longer side would exceed this.",
        Check(lambda value, config: value >= config["min_size"], "at least min_size"),
        at_test=True,
    ),
    "scales": Field((), "Several shorter sides (section 5.2): one drawn per image, a pyramid at test.", _SCALES, True),
    # Mini-batch (section 2.3)
    "data_workers": Field(0, "Processes that make batches; 0 for threads.", _NOT_NEGATIVE, housekeeping=True),
    "images_per_batch": Field(2, "Over all devices.", _POSITIVE),
    "accumulate": Field(1, "Parts of a device's images, one after another through the network.", _POSITIVE),
    "rois_per_batch": Field(128, "Over all devices.", _ROIS),
    "fg_fraction": Field(0.25, "The most foreground among an image's RoIs.", _FRACTION),
    "fg_iou": Field(0.5, "The least IoU of foreground.", _FRACTION),
    "bg_iou_low": Field(
        0.0,
        "The least IoU of background.",
        Check(lambda value, config: 0 <= value < config["bg_iou_high"], "0 or more and below bg_iou_high"),
    ),
    "bg_iou_high": Field(0.5, "Background's IoU is below this.", _FRACTION),
    "flip": Field(True, "Whether mirrored images double the set."),
    "box_loss_weight": Field(1.0, "Lambda of equation 1; 0 trains on classes alone.", _NOT_NEGATIVE),
    # Solver; the rate scales with images_per_batch, the steps inversely
    "reference_images": Field(2, "The images per batch that steps and learning_rate are meant for.", _POSITIVE),
    "steps": Field(2000, "Length of the run.", _POSITIVE),
    "learning_rate": Field(0.01, "", Check(lambda value, _: value > 0 and isfinite(value), "over 0 and finite")),
    "learning_rate_drops": Field(
        (1700,), "Steps from which the rate is a tenth.", Check(lambda v, _: _whole(v, 0), "steps, whole numbers")
    ),
    "momentum": Field(0.9, "", _FRACTION),
    "weight_decay": Field(0.0005, "", _NOT_NEGATIVE),
    "decay_biases": Field(False, "The paper's text says yes, its code no."),
    "warmup_steps": Field(0, "Steps over which the rate rises linearly.", _NOT_NEGATIVE),
    "seed": Field(0, "Of all random draws.", Check(lambda value, _: 0 <= value < 2**32, "0 or more and below 2^32")),
    # Test (section 3)
    "nms_iou": Field(0.3, "Non-maximum suppression drops a box whose IoU exceeds this.", _FRACTION, True),
    "test_box_regression": Field(True, "Off: RoIs are the boxes.", at_test=True),
    "candidates_per_class": Field(
        100,
        "Best-scoring RoIs of each class that enter its suppression.",
        Check(lambda value, _: 0 < value <= ROI_MULTIPLE, f"over 0 and at most {ROI_MULTIPLE}"),
        at_test=True,
    ),
    # Housekeeping
    "log_every": Field(20, "Steps.", _POSITIVE, housekeeping=True),
    "profile_steps": Field((), "First and last step of a trace in W/profile.", _PROFILE, False, True),
    "checkpoint_every": Field(500, "Steps.", _POSITIVE, housekeeping=True),
    "keep_checkpoints": Field(2, "The newest ones to keep.", _POSITIVE, housekeeping=True),
    "keep_best": Field(
        0,
        "And as many with the best mAP of those that were scored.",
        Check(lambda v, c: v == 0 or (v > 0 and c["eval_every"]), "0 or more, and 0 where eval_every is 0"),
        housekeeping=True,
    ),
    "eval_every": Field(0, "Steps between scores on val; 0: only the last.", _NOT_NEGATIVE, housekeeping=True),
    "eval_images": Field(0, "The first images of val that such scores use; 0: all.", _NOT_NEGATIVE, housekeeping=True),
    "pictures": Field(12, "Held-out images drawn at the end ...", _NOT_NEGATIVE, housekeeping=True),
    "picture_threshold": Field(0.5, "... with their detections of at least this score.", _FRACTION, housekeeping=True),
}  # fmt: skip


def get_config() -> ConfigDict:
    """Return all fields with their defaults. Types are fixed: a value of another type is refused."""
    return ConfigDict({name: field.default for name, field in FIELDS.items()}).lock()


def voc07_config(network: str) -> ConfigDict:
    """Return the paper's recipe on VOC2007: trained on trainval, scored on test (sections 2.3 and 4.2)."""
    config = get_config()
    config.update(
        dataset="voc",
        train_split="trainval",
        val_split="test",
        network=network,
        min_size=600,
        max_size=1000,
        bg_iou_low=0.1,
        learning_rate=0.001,
        steps=40_000,
        learning_rate_drops=(30_000,),
        checkpoint_every=2000,
    )
    return config


def check_config(config: Config) -> None:
    """Raise InputError for the first field whose value is out of its range."""
    for name, field in FIELDS.items():
        if field.check and not field.check.holds(config[name], config):
            expected = field.check.expected.format_map(config)
            raise InputError(f"--config.{name} must be {expected}, got {config[name]!r}")


def _has_type(value: Any, default: Any) -> bool:
    """Whether a value read from JSON has the type of a field's default."""
    if isinstance(default, float):
        return type(value) in (int, float)
    return type(value) is type(default) or (isinstance(value, list) and isinstance(default, tuple))


def parse_config(text: str | bytes) -> dict[str, Any]:
    """Return the config that a workdir's config.json holds, checked; missing fields take their defaults.

    Raises:
        InputError: It is not such a file, has unknown fields, or values of another type or out of their range.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a config that frcnn train wrote ({error})") from None
    missing = {"network", "class_names"} - set(config) if isinstance(config, dict) else {"all fields"}
    if missing:
        raise InputError(f"not a config that frcnn train wrote: {', '.join(sorted(missing))} missing")
    if unknown := sorted(set(config) - set(FIELDS)):
        raise InputError(f"fields unknown to this version: {', '.join(unknown)}")
    config = {name: config.get(name, field.default) for name, field in FIELDS.items()}
    for name, field in FIELDS.items():
        if not _has_type(config[name], field.default):
            expected = "list" if isinstance(field.default, tuple) else type(field.default).__name__
            raise InputError(f"{name} must be of type {expected}, got {config[name]!r}")
    check_config(config)
    return json.loads(json.dumps(config))


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--config NAME|FILE.py`; `--config.FIELD=VALUE` arguments are left to `load_config`."""
    parser.add_argument("--config", metavar="RECIPE", help="a recipe of experiments/ by name, or a file FILE.py")


def load_config(recipe: str | None, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the config of a recipe with `--config.FIELD=VALUE` arguments applied, checked.

    An exception of the recipe's own code passes through, with its traceback.

    Raises:
        InputError: There is no such recipe or field, its fields are not those of this table, an argument is of another
            kind, or a value is of another type or out of its range.
    """
    config = _run_recipe(recipe_path(recipe)) if recipe else get_config()
    changed = override_config(config, arguments, FIELDS)
    check_config(changed)
    return changed


def _run_recipe(path: Path) -> ConfigDict:
    spec = importlib.util.spec_from_file_location("recipe", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if hasattr(module, "get_config") else None
    except OSError as error:  # which a command line would print without its traceback
        raise RuntimeError(f"{path}: the recipe failed") from error
    if config is None:
        raise InputError(f"{path}: a recipe must define get_config()")
    if not isinstance(config, ConfigDict) or set(config) != set(FIELDS):
        differ = ", ".join(sorted(set(config) ^ set(FIELDS))) if isinstance(config, ConfigDict) else repr(config)
        raise InputError(f"{path}: get_config() must return a ConfigDict with the fields of frcnn_jax.config: {differ}")
    return config


def override_config(config: Config, arguments: Sequence[str], allowed: Collection[str]) -> dict[str, Any]:
    """Return a config with `--config.FIELD=VALUE` arguments applied.

    Args:
        config: All fields.
        arguments: In any number.
        allowed: The fields that may be set.

    Raises:
        InputError: An argument is of another kind, a field is unknown or not allowed, or a value is of another type.
    """
    for argument in arguments:
        field = re.fullmatch(r"--?config\.([^=]*)(=.*)?", argument, re.DOTALL)
        if not field:
            continue  # the value of `--config.FIELD VALUE`, or stray
        if field[1] not in FIELDS:
            near = difflib.get_close_matches(field[1], FIELDS, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"--config.{field[1]}: no such field{hint}")
        if field[1] not in allowed:
            raise InputError(f"--config.{field[1]}: fixed once trained; evaluation takes {', '.join(sorted(allowed))}")
    values = flags.FlagValues()
    typed = {name: type(field.default)(config[name]) for name, field in FIELDS.items()}
    command = ["", *arguments]
    config_flags.DEFINE_config_dict("config", ConfigDict(typed).lock(), flag_values=values, sys_argv=command)
    try:
        stray = values(command)[1:]
    except flags.UnrecognizedFlagError as error:
        raise InputError(f"unknown argument '--{error.flagname}'; a field is set with --config.FIELD=VALUE") from None
    except (flags.Error, ValueError, TypeError, SyntaxError) as error:
        raise InputError(f"--config: {' '.join(str(error).split())}") from None
    if stray:
        raise InputError(f"unknown argument {stray[0]!r}; a field is set with --config.FIELD=VALUE")
    return values.config.to_dict()


TEST_FIELDS = frozenset(name for name, field in FIELDS.items() if field.at_test)
HOUSEKEEPING = frozenset(name for name, field in FIELDS.items() if field.housekeeping)
