"""Workdirs: their config, results, lock and variables, their evaluation, and workdirs derived from them."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from frcnn_jax.build import (
    SPLIT_FILE,
    build_model,
    detection_options,
    image_sizes,
    load_proposals_of,
    read_split_of,
    total_steps,
)
from frcnn_jax.config import HOUSEKEEPING, Config, check_config, parse_config
from frcnn_jax.data.records import Record
from frcnn_jax.data.splits import split_digest
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.evaluator import Evaluation, Evaluator
from frcnn_jax.evaluation.scores import format_score
from frcnn_jax.files import check_folder, decoding, read_bytes, read_json, write_json
from frcnn_jax.models.fast_rcnn import FastRCNN, init_variables, variable_shapes
from frcnn_jax.models.heads import check_outputs
from frcnn_jax.models.networks import is_custom
from frcnn_jax.models.parameters import flatten, matches
from frcnn_jax.models.weight_files import read_weights
from frcnn_jax.models.weights import (
    Weights,
    canonical_arrays,
    canonical_names,
    described,
    fit_weights,
    fold_box_stats,
    load_pretrained,
    merge_weights,
)
from frcnn_jax.training.checkpoint import load_model, save_model, saved_steps

# what a detector needs of its config
DETECTOR_FIELDS = (
    "class_names", "network", "pool", "fc_ranks", "classifier", "compute_type", "min_size", "max_size", "buckets",
    "scales", "proposals", "proposal_size", "max_proposals", "nms_iou", "test_box_regression", "candidates_per_class",
    "vote_iou",
)  # fmt: skip


def read_config(workdir: Path, *, network: str = "") -> dict[str, Any]:
    """Read the config with which a workdir was trained.

    A workdir may come from a stranger, so that it alone does not make code run.

    Args:
        workdir: The workdir.
        network: The function of its network (`get_network`), which takes the place of the one that it names: the file
            may have moved, and paths depend on the current folder.

    Raises:
        InputError: There is none, this version can't use it, or its network is a function and none is given.
    """
    config = _stored_config(workdir)
    with decoding(Path(workdir) / "config.json", "not a config that frcnn train wrote"):
        return _with_function(config, network)


def _with_function(config: Config, network: str) -> dict[str, Any]:
    """Return a config; where its network is a function, with the one that the user names."""
    named = config["network"]
    if not is_custom(named):
        return dict(config)
    if not is_custom(network):
        raise InputError(f"its network is code, {named}: if you trust it, pass --network={named}")
    return {**config, "network": network}


def _stored_config(workdir: Path) -> dict[str, Any]:
    path = Path(workdir) / "config.json"
    if not path.exists():
        above = path.parent.parent
        hint = f"train first: frcnn train --workdir {workdir}"
        hint = f"did you mean its folder {above}?" if (above / path.name).exists() else hint
        raise InputError(f"{workdir}: no config.json; {hint}")
    with decoding(path, "not a config that frcnn train wrote"):
        return parse_config(read_bytes(path))


def resume_config(config: Config, workdir: Path) -> dict[str, Any]:
    """Return the config of a training in a workdir; class names are those of its earlier run, if any.

    Besides the fields of HOUSEKEEPING, `steps`, `epochs` and drops of the learning rate may change where they lie
    beyond the newest checkpoint.

    Raises:
        InputError: The workdir is a file, a field is out of range, or the earlier run had another config.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir}: the workdir must be a folder, got a file")
    check_config(config)
    current: dict[str, Any] = json.loads(json.dumps(dict(config)))
    if not (workdir / "config.json").exists():
        return current
    begun = _stored_config(workdir)
    if Path(begun["network"]).name == Path(current["network"]).name:
        begun["network"] = current["network"]  # a function whose file has moved
    current["class_names"] = current["class_names"] or begun["class_names"]
    same_past = _passed(begun, workdir) == _passed(current, workdir)
    differ = [
        f"{name} was {begun[name]!r}, is now {current[name]!r}"
        for name in sorted(set(current) - HOUSEKEEPING)
        if begun[name] != current[name] and not (same_past and name in _AHEAD)
    ]
    if differ:
        raise InputError(f"{workdir} was trained with another config: {'; '.join(differ)}. Use another workdir")
    return current


_AHEAD = ("steps", "epochs", "learning_rate_drops")


def _passed(config: Config, workdir: Path) -> list[int]:
    """Return what lies behind the newest checkpoint, of the end of training and the drops of its rate."""
    reached = max(saved_steps(workdir), default=0) * config["images_per_batch"] / config["reference_images"]
    end = total_steps(config, begun_images(workdir))
    ends = [end] if end < reached else []
    return [step for step in config["learning_rate_drops"] if step <= reached] + ends


def check_split(workdir: Path, records: Sequence[Record]) -> None:
    """Remember the training split in a workdir, and check that it is the same when training resumes.

    Raises:
        InputError: The workdir was trained on other images or objects.
    """
    path = workdir / "train_split.json"
    current = {"images": len(records), "objects": sum(len(r.labels) for r in records), "digest": split_digest(records)}
    if not path.exists():
        if jax.process_index() == 0:
            write_json(path, current)
    elif (begun := read_json(path)) != current:
        with decoding(path, "not a split that frcnn train wrote"):
            was, now = (f"{data['images']} images and {data['objects']} objects" for data in (begun, current))
        raise InputError(
            f"{workdir} was trained on other data: {was}, now {now}. Use another workdir, and "
            f"--config.weights={workdir} to start from its network"
        )


def begun_images(workdir: Path) -> int:
    """Return the number of images of the split on which training began in a workdir; 0 before.

    Raises:
        InputError: The file was not written by frcnn train.
    """
    path = workdir / "train_split.json"
    if not path.exists():
        return 0
    with decoding(path, "not a split that frcnn train wrote"):
        images = read_json(path)["images"]
        if type(images) is not int or not 0 <= images < 2**31:
            raise TypeError
        return images


def read_results(workdir: Path) -> dict[str, Any] | None:
    """Read the results of a finished run; None for an unfinished one.

    Raises:
        InputError: The file was not written by frcnn train.
    """
    path = workdir / "results.json"
    if not path.exists():
        return None
    try:
        results = read_json(path)
        scores = [results["map"], *results.get("aps", {}).values()]
        if type(results["step"]) is not int or not all(score is None or 0 <= score <= 1 for score in scores):
            raise TypeError
        return {name: results[name] for name in ("map", "step", *results)}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: not results that frcnn train wrote; delete it to evaluate again") from None


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Prevent a second training in a workdir.

    The kernel releases the lock when the process ends, however it ends. In a training of several processes, process 0
    holds the lock. No-op on Windows.

    Raises:
        InputError: Another process holds the lock.
    """
    if sys.platform == "win32" or jax.process_index():
        yield
        return
    import fcntl

    # without waiting for the reader of a pipe
    with open(Path(workdir) / "lock", "a", opener=lambda p, flags: os.open(p, flags | os.O_NONBLOCK, 0o666)) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{workdir}: in use by another training; wait for it or use another workdir") from None
        except OSError as error:  # some network file systems
            print(f"{workdir}: can't be locked ({error.strerror}); don't start another training here", file=sys.stderr)
        yield


def load_variables(workdir: Path, config: Config, step: int | None = None) -> tuple[FastRCNN, Any, int]:
    """Load the model, its variables and the step from the newest checkpoint of a workdir, or from that of `step`."""
    model = model_of(config, Path(workdir) / "config.json")
    return model, *load_model(workdir, variable_shapes(model), step)


def model_of(config: Config, source: str | Path) -> FastRCNN:
    """Return the model of a config with class names, which `source` holds.

    Raises:
        InputError: As `build_model` does; the message names the source.
    """
    try:
        return build_model(config, len(config["class_names"]))
    except InputError as error:
        raise InputError(f"{source}: {error}") from None


def workdir_weights(workdir: Path, *, network: str = "") -> Weights:
    """Load the newest checkpoint as canonical arrays, with the box statistics folded into the box layer.

    Args:
        workdir: The workdir.
        network: The function of its network, if it may name one; see `read_config`.

    Raises:
        InputError: The workdir can't be used, or its network has a head with other output layers.
    """
    config = read_config(workdir, network=network)
    model, variables, _ = load_variables(workdir, config)
    check_outputs(variables["params"]["head"])
    arrays = canonical_arrays(variables["params"], roi_size=model.roi_size)
    kept = {name: config[name] for name in DETECTOR_FIELDS}
    return described(fold_box_stats(arrays, **variables["box_stats"]), model, kept)


def detector_of(arrays: Weights, source: str, *, network: str = "") -> tuple[dict[str, Any], FastRCNN, Any]:
    """Return the config, model and variables of a detector that `workdir_weights` returned, perhaps by way of a file.

    Args:
        arrays: The weights.
        source: Where they come from, for messages.
        network: The function of its network, if it has one; see `read_config`.

    Raises:
        InputError: They are not of a complete detector, or its network is a function and none is given.
    """
    if not arrays.detector:
        raise InputError(f"{source}: not a detector: it has no config; frcnn convert-weights WORKDIR FILE writes one")
    with decoding(source, "not a detector"):
        config = _with_function(parse_config(json.dumps(arrays.detector)), network)
    return config, *assemble_detector(arrays, config, source)


def assemble_detector(arrays: Mapping[str, np.ndarray], config: Config, source: str) -> tuple[FastRCNN, Any]:
    """Return the model of a config and its variables, all from canonical arrays, for unnormalised box targets.

    Args:
        arrays: Canonical arrays.
        config: A config with class names.
        source: Where the arrays come from, for messages.

    Raises:
        InputError: Arrays are missing or do not fit.
    """
    model = model_of(config, source)
    shapes = variable_shapes(model)
    arrays = fit_weights(arrays, model, source)
    if missing := [name for name in canonical_names(shapes["params"]) if name not in arrays]:
        some = ", ".join(missing[:8]) + ("" if len(missing) <= 8 else f" and {len(missing) - 8} more")
        raise InputError(f"{source}: not a complete detector: {some} missing")
    params = merge_weights(shapes["params"], arrays, roi_size=model.roi_size, source=source)
    shape = (len(config["class_names"]) + 1, 4)
    stats = {"mean": np.zeros(shape, np.float32), "std": np.ones(shape, np.float32)}
    own = init_variables(model, jax.random.key(0)) if set(shapes) > {"params", "box_stats"} else {}
    return model, jax.tree.map(np.asarray, {**own, "params": params, "box_stats": stats})


def source_weights(weights: str, *, network: str = "") -> Weights:
    """Return the canonical arrays of a workdir, or of a file or name for `read_weights`.

    Args:
        weights: The workdir, file or name.
        network: The function of the workdir's network, if it may name one.
    """
    path = Path(weights)
    return workdir_weights(path, network=network) if path.is_dir() else read_weights(weights)


def initial_variables(
    model: FastRCNN, key: jax.Array, *, weights: str = "", frozen: Sequence[str] = (), network: str = ""
) -> Any:
    """Initialise variables, with pretrained layers from a weight file or workdir if one is named.

    Args:
        model: The network.
        key: Key of the random initialisation.
        weights: A file or name for `read_weights`, a workdir, or empty.
        frozen: Patterns of parameters that are not trained; cls_score is taken from `weights` only if one matches it.
        network: The function of the workdir's network, if it may name one.

    Raises:
        InputError: The weights can't be read or do not fit the network.
    """
    variables = init_variables(model, key)
    if not weights:
        return variables
    arrays = source_weights(weights, network=network)
    params = load_pretrained(
        variables["params"],
        fit_weights(arrays, model, weights),
        roi_size=model.roi_size,
        keep_classifier=matches("head/cls_score/kernel", frozen),
        source=weights,
    )
    if jax.process_index() == 0:
        print(_loaded(variables["params"], params, weights))
    return {**variables, "params": params}


def _loaded(fresh: Any, params: Any, source: str) -> str:
    """Return a line on how many layers were loaded, and which were not."""
    old, new = flatten(fresh), flatten(params)
    layers = {path.rpartition("/")[0] for path in new}
    kept = {path.rpartition("/")[0] for path, leaf in new.items() if leaf is old[path]}
    names = ", ".join(layer.partition("/")[2] for layer in sorted(kept))
    return f"{source}: {len(layers) - len(kept)} of {len(layers)} layers loaded" + (f"; new: {names}" if names else "")


def evaluate_workdir(
    workdir: Path,
    config: Config,
    *,
    step: int | None = None,
    images: int | None = None,
    metric: str = "voc07_11point",
    iou_threshold: float = 0.5,
) -> Evaluation:
    """Evaluate the newest checkpoint of a workdir on its val split.

    Args:
        workdir: The workdir of a training.
        config: Its config, in which fields of TEST_FIELDS may be overridden.
        step: Step of the checkpoint; the newest where None.
        images: Number of images, the first of the split; all where None.
        metric: "voc07_11point" or "area".
        iou_threshold: IoU that a hit must exceed, in [0, 1].

    Returns:
        The evaluation; its results include the "step" of the checkpoint.

    Raises:
        InputError: There is no such checkpoint, a field is out of range, or the data can't be read.
    """
    check_config(config)
    model, variables, step = load_variables(workdir, config, step)
    dataset = read_split_of(config, "val", workdir=workdir)
    dataset, proposals = load_proposals_of(config, workdir, replace(dataset, records=dataset.records[:images]))
    evaluate = Evaluator(model, dataset, proposals, sizes=image_sizes(config), options=detection_options(config))
    found = evaluate(variables, metric=metric, iou_threshold=iou_threshold)
    return found._replace(results={**found.results, "step": step})


def derive_workdir(
    workdir: Path,
    out: Path,
    make: Callable[[Config, FastRCNN, Any], Any],
    *,
    images: int | None = None,
    state: Path | None = None,
    network: str = "",
    **changes: Any,
) -> None:
    """Make a workdir from a trained one unless it exists, and compare the two on the val split.

    Args:
        workdir: The trained workdir.
        out: The new workdir; it uses the proposals of `workdir`.
        make: Returns the new parameters, given the config, the model and its variables.
        images: Number of images to compare on, 0 for none; all where None, which also writes the new results.json.
        state: A file in `out` from which an interrupted `make` resumes; deleted when it is no longer needed.
        network: The function of the workdir's network, if it may name one; see `read_config`.
        **changes: Config fields that differ in the new workdir.

    Raises:
        InputError: `out` exists and is not this workdir, or either one can't be used.
    """
    check_folder(out)
    config = read_config(workdir, network=network)
    cache = config["proposal_cache"] or str((workdir / "proposals").absolute())
    changed = {**config, "proposal_cache": cache, **changes}
    made = (out / "config.json").exists()
    if read_config(out, network=network) != changed if made else out.exists() and not state:
        raise InputError(f"{out} exists; name another folder with --out")
    if not made:
        model, variables, step = load_variables(workdir, config)
        save_model(out, step, {**variables, "params": make(config, model, variables)})
        if (workdir / SPLIT_FILE).exists():
            write_json(out / SPLIT_FILE, read_json(workdir / SPLIT_FILE))
        write_json(out / "config.json", changed)
    if state:
        state.unlink(missing_ok=True)
    if images == 0:
        return
    for folder in (workdir, out):
        results = evaluate_workdir(folder, read_config(folder, network=network), images=images).results
        seconds = results["seconds_per_image"] or 0
        score = format_score(results["map"])
        print(f"{folder}: mAP {score} on {results['images']} images, {seconds:.3f} s per image")
    if images is None:
        write_json(out / "results.json", results)
