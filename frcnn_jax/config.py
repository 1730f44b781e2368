"""The configuration: every field with its default, check and meaning. Only the command lines read it.

The defaults train on the synthetic data set. A recipe in experiments/ changes some of them.
"""

import argparse
import ast
import difflib
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from frcnn_jax.data.batches import ROI_MULTIPLE
from frcnn_jax.data.readers import FORMATS
from frcnn_jax.errors import CONTROL, InputError
from frcnn_jax.models.networks import CHOICES, NETWORKS, is_custom
from frcnn_jax.models.pools import POOLS
from frcnn_jax.proposals.search import MODES
from frcnn_jax.recipes import recipe_path

Config = Mapping[str, Any]
_READ_BY = {
    "voc_dir": ("voc",),
    "data_dir": ("auto", "xml", "coco", "tfds"),
    "train_images": ("synthetic",),
    "val_images": ("synthetic",),
}  # formats that read a field, where not all do


class Check(NamedTuple):
    """A condition on a field's value and config, and its description, in which {name} stands for another field."""

    holds: Callable[[Any, Config], bool]
    expected: str


class Field(NamedTuple):
    """A row of the table of fields.

    Attributes:
        default: The default value, whose type is that of the field.
        help: The meaning, with unit or range.
        check: The condition on a value, if any.
        at_test: Whether the field may be overridden at evaluation.
        housekeeping: Whether the value has no effect on the trained parameters, so that it may change on resuming.
    """

    default: Any
    help: str
    check: Check | None = None
    at_test: bool = False
    housekeeping: bool = False


def _one_of(choices: Collection[str]) -> Check:
    return Check(lambda value, _: value in choices, f"one of {', '.join(choices)}")


def _integers(values: Sequence[Any], least: int) -> bool:
    return all(type(value) is int and value >= least for value in values)


_POSITIVE = Check(lambda value, _: value > 0, "over 0")
_NOT_NEGATIVE = Check(lambda value, _: value >= 0, "0 or more")
_FRACTION = Check(lambda value, _: 0 <= value <= 1, "from 0 to 1")
_TYPES = _one_of(("float32", "bfloat16"))
_NAMES = Check(
    lambda value, _: all(isinstance(name, str) and not CONTROL.search(name) for name in value),
    "names without control characters",
)


def _texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str) and value for value in values)


def parse_multipliers(texts: Sequence[str]) -> dict[str, float]:
    """Return factors by pattern from texts PATTERN=NUMBER; ValueError if a number is none."""
    pairs = (text.rpartition("=") for text in texts)
    return {pattern: float(number) for pattern, _, number in pairs}


def _are_multipliers(texts: Sequence[str]) -> bool:
    try:
        multipliers = parse_multipliers(texts)
    except ValueError:
        return False
    return all(pattern and 0 <= number < inf for pattern, number in multipliers.items())


_RATE = Check(lambda value, _: value > 0 and isfinite(value), "over 0 and finite")
_STEPS = Check(lambda value, _: _integers(value, 0), "steps, integers of 0 or more")
_SEED = Check(lambda value, _: 0 <= value < 2**32, "0 or more and below 2^32")
_PROFILE = Check(lambda v, _: not v or (len(v) == 2 and _integers(v, 1) and v[0] <= v[1]), "empty or (first, last)")
_RANKS = Check(lambda v, _: len(v) in (0, 2) and _integers(v, 0), "empty or two integers, 0 for a full layer")
_STEP_COUNT = Check(lambda value, _: 0 < value < 2**31, "over 0 and below 2^31")
_JITTER = Check(
    lambda v, _: not v or (len(v) == 2 and all(type(x) in (int, float) for x in v) and 0 < v[0] <= v[1] <= 4),
    "empty or two factors (low, high) over 0 and at most 4",
)
_NEEDS_EVALUATIONS = Check(lambda v, c: v == 0 or (v > 0 and c["eval_every"]), "0 or more, and 0 where eval_every is 0")
_SCALES = Check(lambda v, c: _integers(v, 1) and max(v, default=0) <= c["max_size"], "sides of 1 to max_size")
_ROIS = Check(
    lambda v, c: v > 0 and c["images_per_batch"] > 0 and v % c["images_per_batch"] == 0,
    "over 0 and a multiple of images_per_batch, {images_per_batch}",
)

FIELDS: dict[str, Field] = {
    # Data
    "dataset": Field(
        "synthetic",
        f"Format of the data set: {', '.join(FORMATS)}. auto recognises the layout; it is what data_dir alone means.",
        _one_of(FORMATS),
    ),
    "voc_dir": Field("", "voc: path of the VOCdevkit folder.", at_test=True, housekeeping=True),
    "year": Field(2007, "voc: year of the splits that do not name one.", at_test=True),
    "data_dir": Field(
        "",
        "auto: folder of the data set; xml: folder of <split>/ with images and XML files; coco: folder of "
        "annotations/instances_<split>.json and <split>/; tfds: folder of the prepared data set, "
        "~/tensorflow_datasets if empty.",
        at_test=True,
        housekeeping=True,
    ),
    "train_split": Field("train", 'Training split; voc takes several, such as "2007_trainval+2012_trainval".'),
    "val_split": Field("val", "Validation split, on which the network is evaluated.", at_test=True),
    "on_error": Field("stop", "Broken images and objects: stop, or skip them.", _one_of(("stop", "skip")), True),
    "exif": Field(
        "apply",
        "EXIF orientations of which the annotated size can't tell: apply, which turns images upright, or ignore.",
        _one_of(("apply", "ignore")),
        True,
    ),
    "train_images": Field(600, "synthetic: number of training images, at least 1.", _POSITIVE),
    "val_images": Field(200, "synthetic: number of validation images, at least 1.", _POSITIVE, True),
    "train_difficult": Field(True, "Whether to train on difficult objects, as the paper's code does."),
    "class_names": Field((), "Class names in label order; the data set's if empty.", _NAMES),
    # Proposals
    "proposals": Field(
        "standard",
        f"Selective search ({', '.join(MODES)}), edge_boxes:MODEL, or proposal files or folders; "
        'several are joined by "+".',
        Check(lambda value, _: value, f"{', '.join(MODES)}, edge_boxes:MODEL or proposal files"),
        at_test=True,
    ),
    "proposal_size": Field(
        0, "Longer side, in pixels, to which larger images are shrunk for the search; 0 for the search's own.",
        _NOT_NEGATIVE, True,
    ),
    "max_proposals": Field(2000, "Maximum number of proposals per image, at least 1.", _POSITIVE, True),
    "proposal_cache": Field("", "Cache of selective search; proposals/ of the workdir if empty.", None, True, True),
    "workers": Field(0, "Number of processes for selective search; 0 for one per core.", _NOT_NEGATIVE, True, True),
    # Network
    "network": Field(
        "tiny",
        f"Network: {CHOICES}, which returns a FastRCNN.",
        Check(lambda value, _: value in NETWORKS or is_custom(value), CHOICES),
    ),
    "pool": Field("", f"RoI pool: {', '.join(POOLS)}; the network's own if empty.", _one_of(("", *POOLS))),
    "weights": Field("", "Pretrained weights, a file, a workdir or lite0; random initialisation if empty."),
    "train_from": Field("", "First layer to train (section 4.5); the network's default if empty."),
    "freeze": Field(
        (),
        'Patterns of parameters not to train, such as ("backbone/conv*",); with train_from, more of them.',
        Check(lambda value, _: _texts(value), "patterns"),
    ),
    "feature_cache": Field(
        "",
        "Folder in which the feature maps of a frozen backbone are kept, so that it runs once per training image; none "
        "if empty; workdir for one in it.",
    ),
    "rate_multipliers": Field(
        (), 'Factors of the learning rate by pattern, such as ("backbone=0.1",).',
        Check(lambda v, _: _texts(v) and _are_multipliers(v), "texts PATTERN=NUMBER, each number 0 or more"),
    ),
    "compute_type": Field("float32", "Type of activations; parameters are float32.", _TYPES, True),
    "fc_ranks": Field((), "Ranks of factored fc6 and fc7, 0 for a full layer; set by frcnn compress.", _RANKS),
    "classifier": Field("softmax", "softmax, or svm as set by frcnn train-svm.", _one_of(("softmax", "svm"))),
    "min_size": Field(144, "Shorter side of a resized image, in pixels, unless max_size limits it.", _POSITIVE, True),
    "max_size": Field(
        192,
        "Maximum longer side of a resized image, in pixels; at least min_size.",
        Check(lambda value, config: config["min_size"] <= value <= 10_000, "at least min_size and at most 10000"),
        at_test=True,
    ),
    "buckets": Field(
        "shared",
        "Canvas of an image: shared, one of four sizes; exact, its own size, for backbones that padding disturbs.",
        _one_of(("shared", "exact")),
        at_test=True,
    ),
    "scales": Field((), "Several min_size (section 5.2): one drawn per image; a pyramid at test.", _SCALES, True),
    # Mini-batch (section 2.3)
    "data_workers": Field(0, "Number of processes that make batches; 0 for threads.", _NOT_NEGATIVE, housekeeping=True),
    "images_per_batch": Field(2, "Images per batch, over all devices; at least 1.", _POSITIVE),
    "accumulate": Field(1, "Gradient accumulation: parts into which each device's images are split.", _POSITIVE),
    "rois_per_batch": Field(128, "RoIs per batch, over all devices; a multiple of images_per_batch.", _ROIS),
    "fg_fraction": Field(0.25, "Maximum fraction of foreground among the RoIs of an image, 0 to 1.", _FRACTION),
    "fg_iou": Field(0.5, "Minimum IoU of a foreground RoI with an object, 0 to 1.", _FRACTION),
    "bg_iou_low": Field(
        0.0,
        "Minimum IoU of a background RoI, from 0 to below bg_iou_high.",
        Check(lambda value, config: 0 <= value < config["bg_iou_high"], "0 or more and below bg_iou_high"),
    ),
    "bg_iou_high": Field(0.5, "Exclusive maximum IoU of a background RoI, 0 to 1.", _FRACTION),
    "flip": Field(True, "Whether to train on mirrored images as well."),
    "scale_jitter": Field(
        (), "Range (low, high) of a factor on a training image's size, drawn per image; none if empty.", _JITTER
    ),
    "color_jitter": Field(
        0.0,
        "Maximum relative change of a training image's brightness, contrast and saturation, drawn per image, 0 to 1.",
        _FRACTION,
    ),
    "box_loss_weight": Field(1.0, "Lambda of equation 1, 0 or more; 0 trains the classifier alone.", _NOT_NEGATIVE),
    # Solver; the rate scales with images_per_batch, the steps inversely
    "reference_images": Field(2, "Images per batch for which steps and learning_rate are given.", _POSITIVE),
    "steps": Field(2000, "Number of training steps, at least 1.", _STEP_COUNT),
    "optimizer": Field("sgd", "sgd, with momentum by Caffe's rule, or adamw.", _one_of(("sgd", "adamw"))),
    "schedule": Field(
        "step", "Learning rate by step: step, with drops, or cosine, to 0 at the end.", _one_of(("step", "cosine"))
    ),
    "epochs": Field(
        0.0, "Passes over the training images that training lasts for at least; 0 where steps alone are given.",
        _NOT_NEGATIVE,
    ),
    "learning_rate": Field(0.01, "Initial learning rate, over 0.", _RATE),
    "learning_rate_drops": Field((1700,), "Steps at which the learning rate is divided by 10.", _STEPS),
    "momentum": Field(0.9, "Momentum of SGD, or beta 1 of AdamW, 0 to 1.", _FRACTION),
    "weight_decay": Field(0.0005, "Weight decay, 0 or more.", _NOT_NEGATIVE),
    "decay_biases": Field(False, "Whether biases decay too; the paper's text says yes, its code no."),
    "warmup_steps": Field(0, "Number of steps over which the learning rate rises linearly.", _NOT_NEGATIVE),
    "seed": Field(0, "Seed of all random numbers, 0 to 2^32 - 1.", _SEED),
    # Test (section 3)
    "nms_iou": Field(0.3, "IoU with a better box above which non-maximum suppression drops a box.", _FRACTION, True),
    "test_box_regression": Field(True, "Whether to regress boxes at test; RoIs are the boxes otherwise.", at_test=True),
    "candidates_per_class": Field(
        100,
        f"Number of best-scoring RoIs per class that enter non-maximum suppression, 1 to {ROI_MULTIPLE}.",
        Check(lambda value, _: 0 < value <= ROI_MULTIPLE, f"over 0 and at most {ROI_MULTIPLE}"),
        at_test=True,
    ),
    "vote_iou": Field(
        0.0, "IoU from which a class's candidates vote on the box of a detection, 0 to 1; 0 for no votes.", _FRACTION,
        True,
    ),
    # Housekeeping
    "log_every": Field(20, "Steps between rows of the log, at least 1.", _POSITIVE, housekeeping=True),
    "profile_steps": Field((), "First and last step to trace into profile/ of the workdir.", _PROFILE, False, True),
    "checkpoint_every": Field(500, "Steps between checkpoints, at least 1.", _POSITIVE, housekeeping=True),
    "keep_checkpoints": Field(2, "Number of newest checkpoints to keep, at least 1.", _POSITIVE, housekeeping=True),
    "keep_best": Field(
        0,
        "Number of checkpoints with the best mAP to keep as well; needs eval_every.",
        _NEEDS_EVALUATIONS,
        housekeeping=True,
    ),
    "eval_every": Field(0, "Steps between evaluations; 0 for the end only.", _NOT_NEGATIVE, housekeeping=True),
    "stop_after": Field(
        0,
        "Evaluations in a row without a better mAP after which training stops, at its best checkpoint; 0 for never; "
        "needs eval_every.",
        _NEEDS_EVALUATIONS,
        housekeeping=True,
    ),
    "eval_images": Field(0, "Validation images used by eval_every, the first; 0 for all.", _NOT_NEGATIVE, False, True),
    "pictures": Field(12, "Number of validation images to draw at the end.", _NOT_NEGATIVE, housekeeping=True),
    "picture_threshold": Field(0.5, "Minimum score of the detections drawn, 0 to 1.", _FRACTION, housekeeping=True),
}  # fmt: skip


def get_config() -> ConfigDict:
    """Return all fields with their defaults. A value of another type is refused."""
    return ConfigDict({name: field.default for name, field in FIELDS.items()}).lock()


def voc07_config(network: str) -> ConfigDict:
    """Return the paper's recipe for VOC2007: train on trainval, evaluate on test (sections 2.3 and 4.2)."""
    config = get_config()
    config.update(
        dataset="voc",
        train_split="trainval",
        val_split="test",
        network=network,
        min_size=600,
        max_size=1000,
        proposals="paper",
        bg_iou_low=0.1,
        learning_rate=0.001,
        steps=40_000,
        learning_rate_drops=(30_000,),
        checkpoint_every=2000,
    )
    return config


def lite0_config() -> ConfigDict:
    """Return what trains the head of EfficientNet-Lite0 on stored maps, in batches of four images."""
    config = get_config()
    config.update(
        network="efficientnet_lite0_dilated",
        freeze=("backbone", "neck"),
        feature_cache="workdir",
        min_size=480,
        max_size=640,
        images_per_batch=4,
        reference_images=4,
        rois_per_batch=512,
        optimizer="adamw",
        schedule="cosine",
        learning_rate=0.0005,
        weight_decay=0.05,
        candidates_per_class=300,
    )
    return config


def check_config(config: Config) -> None:
    """Raise InputError for the first field whose value is out of range."""
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
    """Parse and check the config.json of a workdir; missing fields take their defaults.

    Raises:
        InputError: The text is not such a config, or a field is unknown, of the wrong type or out of range.
    """
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"not a config that frcnn train wrote ({error})") from None
    missing = {"network", "class_names"} - set(config) if isinstance(config, dict) else {"all fields"}
    if missing:
        raise InputError(f"not a config that frcnn train wrote: {', '.join(sorted(missing))} missing")
    mode = config.pop("proposal_mode", "fast")  # an earlier field: how to search where proposals were empty
    if config.get("proposals") == "":
        config["proposals"] = "paper" if mode == "fast" else mode
    if unknown := sorted(set(config) - set(FIELDS)):
        raise InputError(f"fields unknown to this version: {', '.join(unknown)}")
    config = {name: config.get(name, field.default) for name, field in FIELDS.items()}
    for name, field in FIELDS.items():
        if not _has_type(config[name], field.default):
            expected = "list" if isinstance(field.default, tuple) else type(field.default).__name__
            raise InputError(f"{name} must be of type {expected}, got {config[name]!r}")
    check_config(config)
    if not config["class_names"]:
        raise InputError("class_names must be one name or more, got none")
    return json.loads(json.dumps(config))


def add_config_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--config NAME|FILE.py`; `load_config` parses the `--config.FIELD=VALUE` arguments."""
    parser.add_argument("--config", metavar="RECIPE", help="recipe: a name in experiments/, or a Python file")


def load_config(recipe: str | None, arguments: Sequence[str]) -> dict[str, Any]:
    """Return the checked config of a recipe, with `--config.FIELD=VALUE` arguments applied.

    An exception raised by the recipe's code propagates with its traceback.

    Raises:
        InputError: The recipe does not exist or has other fields than FIELDS, an argument or a field is unknown, or a
            value is of the wrong type or out of range.
    """
    config = _run_recipe(recipe_path(recipe)) if recipe is not None else get_config()
    changed = _override(config, arguments, FIELDS)
    check_config(changed)
    changed |= _unset_data_fields(changed, arguments) | _unset_epochs(arguments)
    _check_read(changed, arguments)
    return changed


def _unset_data_fields(config: Config, arguments: Sequence[str]) -> dict[str, Any]:
    """Return dataset and splits for a `data_dir` that is given where no format that reads it is."""
    given = _given(arguments)
    if "data_dir" not in given or given & {"dataset", "voc_dir"} or config["dataset"] not in ("synthetic", "voc"):
        return {}
    unset = {"dataset": "auto", "train_split": "train", "val_split": "val"}
    return {name: value for name, value in unset.items() if name not in given}


def _unset_epochs(arguments: Sequence[str]) -> dict[str, Any]:
    """Return no epochs where steps alone are given: the recipe's epochs may be more."""
    return {"epochs": 0.0} if _given(arguments) & {"steps", "epochs"} == {"steps"} else {}


def _given(arguments: Sequence[str]) -> set[str]:
    """Return the names of the fields that arguments set."""
    return {found[1] for argument in arguments if (found := re.match(r"--?config\.(\w+)", argument))}


def _check_read(config: Config, arguments: Sequence[str]) -> None:
    """Raise InputError if a field is given that the format of the data set does not read."""
    dataset = config["dataset"]
    for name in sorted(_given(arguments) & set(_READ_BY)):
        if dataset.partition(":")[0] not in _READ_BY[name]:
            formats = ", ".join(_READ_BY[name])
            other = {"voc_dir": "data_dir", "data_dir": "voc_dir"}.get(name, "")
            reads = f", of --config.{other}" if other and dataset.partition(":")[0] in _READ_BY[other] else ""
            raise InputError(
                f"--config.{name} is for --config.dataset={formats}; the data set here is {dataset}{reads}"
            )


def _run_recipe(path: Path) -> ConfigDict:
    spec = importlib.util.spec_from_file_location("recipe", path)
    assert spec
    assert spec.loader
    module = sys.modules["recipe"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config() if hasattr(module, "get_config") else None
    except (OSError, InputError) as error:  # else a command line would print it without a traceback
        raise RuntimeError(f"{path}: the recipe failed") from error
    if config is None:
        raise InputError(f"{path}: a recipe must define get_config()")
    if not isinstance(config, ConfigDict) or set(config) != set(FIELDS):
        differ = ", ".join(sorted(set(config) ^ set(FIELDS))) if isinstance(config, ConfigDict) else repr(config)
        raise InputError(f"{path}: get_config() must return a ConfigDict with the fields of frcnn_jax.config: {differ}")
    for name, field in FIELDS.items():
        if not _has_type(config[name], field.default):
            raise InputError(f"{path}: {name} must be of type {type(field.default).__name__}, got {config[name]!r}")
    return config


def override_config(config: Config, arguments: Sequence[str], allowed: Collection[str]) -> dict[str, Any]:
    """Return a config with `--config.FIELD=VALUE` arguments applied.

    Args:
        config: A config with all fields.
        arguments: The arguments.
        allowed: The fields that may be set.

    Raises:
        InputError: An argument or a field is unknown, a field is not allowed or is not read for the data set, or a
            value is of the wrong type.
    """
    changed = _override(config, arguments, allowed)
    _check_read(changed, arguments)
    return changed


def _override(config: Config, arguments: Sequence[str], allowed: Collection[str]) -> dict[str, Any]:
    for argument in arguments:
        field = re.fullmatch(r"--?config\.([^=]*)(=.*)?", argument, re.DOTALL)
        if not field:
            continue  # the value of `--config.FIELD VALUE`, or an unknown argument
        if field[1] not in FIELDS:
            near = difflib.get_close_matches(field[1], FIELDS, n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"--config.{field[1]}: no such field{hint}")
        if field[1] not in allowed:
            takes = ", ".join(sorted(allowed))
            raise InputError(f"--config.{field[1]}: can't be changed after training; evaluation takes {takes}")
    arguments = _with_tuples(arguments)
    values = flags.FlagValues()
    typed = {name: type(field.default)(config[name]) for name, field in FIELDS.items()}
    command = ["", *arguments]
    config_flags.DEFINE_config_dict("config", ConfigDict(typed).lock(), flag_values=values, sys_argv=command)
    try:
        stray = values(command)[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname.replace("-", "_")
        name = name if name in FIELDS else "FIELD"
        raise InputError(f"unknown argument '--{error.flagname}'; set fields with --config.{name}=VALUE") from None
    except (flags.Error, ValueError, TypeError, SyntaxError) as error:
        raise InputError(f"--config: {' '.join(str(error).split())}") from None
    if stray:
        setting = f"data_dir={stray[0]}" if Path(stray[0]).exists() else "FIELD=VALUE"
        raise InputError(f"unknown argument {stray[0]!r}; set fields with --config.{setting}")
    return values.config.to_dict()


def _with_tuples(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which words that stand for a tuple, as in `--config.class_names=cat,dog`, are one."""
    found = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        given = re.fullmatch(r"(--?config\.(\w+)=)(.*)", argument, re.DOTALL)
        given = given or re.fullmatch(r"()--?config\.(\w+)\n(.*)", f"{before}\n{argument}", re.DOTALL)
        words = given and isinstance(FIELDS[given[2]].default, tuple) and not _is_literal(given[3])
        found.append(given[1] + repr(tuple(map(str.strip, given[3].split(",")))) if given and words else argument)
    return found


def _is_literal(text: str) -> bool:
    """Whether a text is a Python literal, or is meant as one."""
    if text[:1] in ("", "(", "["):
        return True
    try:
        ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return False
    return True


TEST_FIELDS = frozenset(name for name, field in FIELDS.items() if field.at_test)
HOUSEKEEPING = frozenset(name for name, field in FIELDS.items() if field.housekeeping)
