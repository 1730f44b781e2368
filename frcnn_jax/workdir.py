"""A workdir: its config, results, lock and variables, and how they score on its val split."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from frcnn_jax.build import build_model, detection_options, image_sizes, load_proposals_of, read_split_of
from frcnn_jax.config import HOUSEKEEPING, Config, check_config, parse_config
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.evaluator import Evaluation, Evaluator
from frcnn_jax.evaluation.scores import format_score
from frcnn_jax.files import check_folder, read_json, write_json
from frcnn_jax.models.fast_rcnn import FastRCNN, init_variables, variable_shapes
from frcnn_jax.models.weight_files import read_weights
from frcnn_jax.models.weights import canonical_arrays, fold_box_stats, load_pretrained
from frcnn_jax.training.checkpoint import load_model, save_model


def read_config(workdir: Path) -> dict[str, Any]:
    """Return the config that a workdir was trained with.

    Raises:
        InputError: There is none, or it is not one that this version can use.
    """
    path = Path(workdir) / "config.json"
    try:
        return parse_config(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{workdir}: no config.json; train first: frcnn train --workdir {workdir}") from None
    except (OSError, InputError) as error:
        raise InputError(f"{path}: {error}") from None


def resume_config(config: Config, workdir: Path) -> dict[str, Any]:
    """Return the config to train with in a workdir, with the class names of the run that it holds, if any.

    Raises:
        InputError: The workdir is a file, a field is out of its range, or the workdir's run has another config.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"{workdir}: the workdir must be a folder, this is a file")
    check_config(config)
    current: dict[str, Any] = json.loads(json.dumps(dict(config)))
    if not (workdir / "config.json").exists():
        return current
    begun = read_config(workdir)
    current["class_names"] = current["class_names"] or begun["class_names"]
    differ = [
        f"{name} was {begun[name]!r}, is now {current[name]!r}"
        for name in sorted(set(current) - HOUSEKEEPING)
        if begun[name] != current[name]
    ]
    if differ:
        raise InputError(f"{workdir} was trained with another config: {'; '.join(differ)}. Use another workdir")
    return current


def read_results(workdir: Path) -> dict[str, Any] | None:
    """Return the results of a finished run; None for an unfinished one.

    Raises:
        InputError: The file is not one that frcnn train wrote.
    """
    path = workdir / "results.json"
    if not path.exists():
        return None
    try:
        results = read_json(path)
        if not (isinstance(results["step"], int) and isinstance(results["map"], float | int | None)):
            raise TypeError
        return {name: results[name] for name in ("map", "step", *results)}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not results that frcnn train wrote; delete it to evaluate again") from None


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keep a second training out of a workdir.

    The kernel releases the lock when the process ends, however it dies. Of several processes of one training the first
    locks. No-op on Windows.

    Raises:
        InputError: Another process holds the lock.
    """
    if sys.platform == "win32" or jax.process_index():
        yield
        return
    import fcntl

    with open(Path(workdir) / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{workdir}: in use by another training; wait for it or use another workdir") from None
        except OSError as error:  # some network file systems
            print(f"{workdir}: can't be locked ({error.strerror}); don't start another training here", file=sys.stderr)
        yield


def load_variables(workdir: Path, config: Config, step: int | None = None) -> tuple[FastRCNN, Any, int]:
    """Return the model, its variables and the step of a workdir's newest checkpoint, or of `step`'s."""
    model = build_model(config, len(config["class_names"]))
    return model, *load_model(workdir, variable_shapes(model), step)


def workdir_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Return a workdir's newest checkpoint as canonical arrays, the box statistics folded into its box layer."""
    model, variables, _ = load_variables(workdir, read_config(workdir))
    arrays = canonical_arrays(variables["params"], roi_size=model.pool.output_size)  # type: ignore[attr-defined]
    return fold_box_stats(arrays, **variables["box_stats"])


def initial_variables(model: FastRCNN, key: jax.Array, *, weights: str = "", frozen: Sequence[str] = ()) -> Any:
    """Return fresh variables, with the pretrained layers of a file or of a workdir if one is named.

    Args:
        model: The network.
        key: Of the random initialisation.
        weights: A file that `read_weights` takes, a workdir, or empty.
        frozen: Layers that are not trained; with cls_score among them, that layer is taken from `weights`, too.

    Raises:
        InputError: The weights can't be read, or do not fit the network.
    """
    variables = init_variables(model, key)
    if not weights:
        return variables
    path = Path(weights)
    params = load_pretrained(
        variables["params"],
        workdir_arrays(path) if path.is_dir() else read_weights(path),
        roi_size=model.pool.output_size,  # type: ignore[attr-defined]
        keep_classifier="cls_score" in frozen,
        source=weights,
    )
    return {**variables, "params": params}


def evaluate_workdir(
    workdir: Path,
    config: Config,
    *,
    step: int | None = None,
    images: int | None = None,
    metric: str = "voc07_11point",
    iou_threshold: float = 0.5,
) -> Evaluation:
    """Score a workdir's newest checkpoint on its val split.

    Args:
        workdir: Of a training.
        config: Its config, perhaps with other values of the fields that may change at test.
        step: Of another checkpoint.
        images: Only the first so many of the split.
        metric: "voc07_11point" or "area".
        iou_threshold: A hit's IoU exceeds this.

    Returns:
        The evaluation, the checkpoint's "step" among its results.

    Raises:
        InputError: There is no such checkpoint, a field is out of its range, or the data can't be read.
    """
    check_config(config)
    model, variables, step = load_variables(workdir, config, step)
    dataset = read_split_of(config, "val")
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
    **changes: Any,
) -> None:
    """Make a workdir from a trained one unless it exists, and compare the two on the val split.

    Args:
        workdir: The trained workdir.
        out: The new workdir; it uses the proposals of `workdir`.
        make: Returns the new parameters, given the config, the model and its variables.
        images: Number of images to compare on, 0 for none; all where None, which also writes the new results.json.
        state: A file in `out` from which an interrupted `make` resumes; deleted when it is no longer needed.
        **changes: Config fields that differ in the new workdir.

    Raises:
        InputError: `out` exists and is not this workdir, or either one can't be used.
    """
    check_folder(out)
    config = read_config(workdir)
    cache = config["proposal_cache"] or str((workdir / "proposals").absolute())
    changed = {**config, "proposal_cache": cache, **changes}
    made = (out / "config.json").exists()
    if read_config(out) != changed if made else out.exists() and not state:
        raise InputError(f"{out} exists; name another folder with --out")
    if not made:
        model, variables, step = load_variables(workdir, config)
        save_model(out, step, {**variables, "params": make(config, model, variables)})
        write_json(out / "config.json", changed)
    if state:
        state.unlink(missing_ok=True)
    if images == 0:
        return
    for folder in (workdir, out):
        results = evaluate_workdir(folder, read_config(folder), images=images).results
        seconds = results["seconds_per_image"] or 0
        score = format_score(results["map"])
        print(f"{folder}: mAP {score} on {results['images']} images, {seconds:.3f} s per image")
    if images is None:
        write_json(out / "results.json", results)
