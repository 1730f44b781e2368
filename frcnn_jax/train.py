"""Train Fast R-CNN (section 2.3) and evaluate it:

    frcnn train --workdir W [--config RECIPE] [--config.FIELD=VALUE ...]

Trains on the data set of the config (generated synthetic images by default), evaluates on the val split, and writes to
W: config.json, checkpoints, metrics.jsonl, TensorBoard events, results.json and pictures. Run again on the same W, it
resumes from the newest intact checkpoint and ends bit-identical to an uninterrupted run. Ctrl-C and SIGTERM save a
checkpoint and exit with status 75.
"""

import argparse
import contextlib
import io
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from frcnn_jax.build import (
    SPLIT_FILE,
    build_model,
    detection_options,
    frozen_parameters,
    image_sizes,
    load_proposals_of,
    read_split_of,
    total_steps,
)
from frcnn_jax.cli import check_at_least, command_parser, run
from frcnn_jax.config import Config, add_config_argument, load_config, parse_multipliers
from frcnn_jax.data.problems import problem_handler
from frcnn_jax.data.records import Dataset, Record, load_problem
from frcnn_jax.data.splits import describe_shared, shared_images
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.evaluator import Evaluator, save_pictures
from frcnn_jax.evaluation.pictures import plot_losses
from frcnn_jax.evaluation.scores import format_score, results_table
from frcnn_jax.files import write_json
from frcnn_jax.models.fast_rcnn import FastRCNN, variable_shapes
from frcnn_jax.models.networks import is_custom
from frcnn_jax.models.parameters import check_patterns, flatten, layer_names, matches
from frcnn_jax.models.weight_files import WHERE, find_weights
from frcnn_jax.models.weights import OUTPUTS, keep_outputs
from frcnn_jax.proposals.load import check_source, make_search, split_source
from frcnn_jax.training import checkpoint, hosts, loop
from frcnn_jax.training.batches import TrainingBatches
from frcnn_jax.training.feature_maps import FeatureMaps, StoredMaps, store_maps
from frcnn_jax.training.logs import RunLog, read_metrics
from frcnn_jax.training.sampling import assign, target_statistics
from frcnn_jax.training.signals import interrupt_on_signals
from frcnn_jax.training.solver import Recipe, adamw, caffe_sgd, cosine_schedule, step_schedule
from frcnn_jax.training.step import create_state, make_train_step, replicate
from frcnn_jax.training.watch import Watch
from frcnn_jax.workdir import (
    begun_images,
    check_split,
    initial_variables,
    lock_workdir,
    read_results,
    resume_config,
    source_weights,
)

_STATISTICS_IMAGES = 20_000  # images, evenly spaced, that give the targets' mean and deviation: of COCO every sixth


def train_and_evaluate(config: Config, workdir: Path) -> dict[str, Any]:
    """Train with a config, resuming from the workdir's checkpoints, and evaluate on the val split.

    Returns:
        The content of results.json.

    Raises:
        InputError: Config, data or workdir can't be used, another training runs in the workdir, the disk is full, no
            checkpoint is intact, or the loss is not finite.
        Interrupted: SIGINT or SIGTERM was received; the state is saved.
    """
    began = time.perf_counter()
    with interrupt_on_signals(f"run the same command to resume from {workdir}"), contextlib.ExitStack() as held:
        with hosts.fail_together():
            config = resume_config(config, workdir)
            if (results := read_results(workdir)) and _is_finished(results, config, workdir):
                print(_finished(workdir, results))
                return results
            # find mistakes before the long work begins and before anything is written
            frozen = frozen_parameters(config)
            _check(config, frozen)
            train_set = read_split_of(config, "train", workdir=workdir)
            config = {**config, "class_names": list(train_set.class_names)}
            val_set = read_split_of(config, "val", workdir=workdir)
            model = build_model(config, len(train_set.class_names))
            key = jax.random.key(config["seed"])
            variables = initial_variables(
                model, key, weights=config["weights"], frozen=frozen, network=config["network"]
            )
            workdir.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock_workdir(workdir))
        hosts.check_shared(workdir)
        out = held.enter_context(_folder_to_write(workdir))
        if train_set.description and not (out / SPLIT_FILE).exists():
            splits = {"train": train_set, "val": val_set}
            write_json(
                out / SPLIT_FILE, {name: [record.image_id for record in s.records] for name, s in splits.items()}
            )
        with hosts.fail_together():
            check_split(workdir, train_set.records)
            if not all(map(make_search, split_source(config["proposals"]))):  # a search decodes all images
                val_set = _readable(config, val_set)
            train_set, proposals = load_proposals_of(config, workdir, train_set)
            evaluator = Evaluator(
                model,
                *load_proposals_of(config, workdir, val_set),
                sizes=image_sizes(config),
                options=detection_options(config),
            )
            if jax.process_index() == 0:
                print(*_remarks(train_set, val_set, proposals), sep="", end="", file=sys.stderr)
            stored = model.clone(neck=None) if _trains_neck(model, frozen) else model
            maps = _stored_maps(config, workdir, stored, variables, train_set)
            batches = _training_batches(config, model, train_set, proposals, maps)
        write_json(out / "config.json", config)
        variables = _with_outputs(config, {**variables, "box_stats": dict(batches.box_stats)}, frozen)
        last, variables = _train(config, workdir, out, model, frozen, batches, evaluator, variables, key)
        step, variables = _best(config, workdir, last, variables)
        early = last < len(batches)
        results = _score(config, out, evaluator, variables, step, last, early=early)
        print(f"{_finished(workdir, results)}, {time.perf_counter() - began:.0f} s; see {workdir}/pictures")
    return results


def _check(config: Config, frozen: Sequence[str]) -> None:
    """Raise InputError if the config does not fit the devices, or names files that do not exist."""
    name, images, devices = config["network"], config["images_per_batch"], jax.device_count()
    if images % (devices * config["accumulate"]):
        raise InputError(
            f"images_per_batch must be a multiple of {devices} devices times accumulate {config['accumulate']}, "
            f"got {images}"
        )
    if config["profile_steps"] and jax.default_backend() == "cpu":
        first, last = config["profile_steps"]
        if last > first + 1:
            raise InputError(
                f"--config.profile_steps must be at most two steps on a CPU, where each takes gigabytes of memory, "
                f"got {first} to {last}"
            )
    if patterns := [*config["freeze"], *parse_multipliers(config["rate_multipliers"])]:
        check_patterns(flatten(variable_shapes(build_model(config, 1))["params"]), patterns)
    where = f" Available: {WHERE[name]}; see experiments/README.md" if name in WHERE else ""
    if frozen and not (config["weights"] or is_custom(name)):  # a function may give its network pretrained parameters
        layers = ", ".join(layer_names(frozen))
        raise InputError(f"{name} does not train {layers}: pass --config.weights=FILE with pretrained layers.{where}")
    if config["scale_jitter"] and config["buckets"] == "exact":
        raise InputError("scale_jitter needs --config.buckets=shared: every size would be compiled")
    if config["feature_cache"]:
        if config["scale_jitter"] or config["color_jitter"]:
            raise InputError("feature_cache keeps the maps of images as they are, without scale_jitter or color_jitter")
        if not _is_frozen("backbone", build_model(config, 1), frozen):
            raise InputError("feature_cache needs a frozen backbone: pass --config.freeze='(\"backbone\",)'")
        if jax.process_count() > 1:
            raise InputError("feature_cache works in a single process")
    if config["weights"] and not find_weights(config["weights"]).exists():
        raise InputError(f"--config.weights={config['weights']}: no such file.{where}")
    check_source(config["proposals"])


def _is_frozen(part: str, model: FastRCNN, frozen: Sequence[str]) -> bool:
    paths = [path for path in flatten(variable_shapes(model)["params"]) if path.startswith(f"{part}/")]
    return all(matches(path, frozen) for path in paths)


def _trains_neck(model: FastRCNN, frozen: Sequence[str]) -> bool:
    return model.neck is not None and not _is_frozen("neck", model, frozen)


def _readable(config: Config, dataset: Dataset) -> Dataset:
    """Return a split without the images that can't be read, which would end the run only when it is scored."""
    readable = []
    with problem_handler(config["on_error"], "val images") as on_problem, ThreadPoolExecutor() as pool:
        for record, problem in zip(dataset.records, pool.map(load_problem, dataset.records), strict=True):
            if problem:
                on_problem(problem)
            else:
                readable.append(record)
    return replace(dataset, records=readable)


def _remarks(train_set: Dataset, val_set: Dataset, proposals: Mapping[str, np.ndarray]) -> list[str]:
    """Return lines on what in the data may surprise, each ended by a line break."""
    records, names = train_set.records, train_set.class_names
    counts = _objects(records, len(names))
    lines = describe_shared(shared_images(records, val_set.records), len(val_set.records))
    if absent := [name for name, count in zip(names, counts[1:], strict=True) if not count]:
        lines.append(f"the train split has no objects of {', '.join(absent)}, which the network can't learn to detect")
    if empty := sum(not len(record.labels) for record in records):
        lines.append(
            f"{empty} of the {len(records)} train images have no objects to train on: all their RoIs are background"
        )
    if unsearched := sum(not len(proposals[record.image_id]) for record in _spaced(records)):
        lines.append(f"{unsearched} train images have no proposals: they give no RoIs but their objects")
    return [f"{line}\n" for line in lines]


def _objects(records: Sequence[Record], classes: int) -> np.ndarray:
    """Return `(K + 1,)` numbers of objects by label."""
    return np.bincount(np.concatenate([record.labels for record in records]), minlength=classes + 1)


def _spaced(records: Sequence[Record]) -> Sequence[Record]:
    return records[:: math.ceil(len(records) / _STATISTICS_IMAGES)]


@contextlib.contextmanager
def _folder_to_write(workdir: Path) -> Iterator[Path]:
    """Yield the workdir; non-zero processes get a scratch folder and no standard output."""
    if jax.process_index() == 0:
        yield workdir
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        yield Path(folder)


def batch_recipe(config: Config, images: int) -> Recipe:
    """Return the learning rate and steps of a config for a training split, scaled to its images per batch."""
    steps = total_steps(config, images)
    recipe = Recipe(config["learning_rate"], steps, config["learning_rate_drops"], config["warmup_steps"])
    return recipe.for_batch(config["images_per_batch"], config["reference_images"])


def _with_outputs(config: Config, variables: dict[str, Any], frozen: Sequence[str]) -> dict[str, Any]:
    """Take over the output layers of the classes that the detector in --config.weights knows, unless one is frozen."""
    if not config["weights"] or any(matches(f"head/{layer}/kernel", frozen) for layer in OUTPUTS):
        return variables
    weights, names = source_weights(config["weights"], network=config["network"]), config["class_names"]
    params, kept = keep_outputs(variables["params"], weights, class_names=names, **variables["box_stats"])
    if kept:
        print(f"{config['weights']}: output layers of {len(kept)} of {len(names)} classes kept: {', '.join(kept)}")
    return {**variables, "params": params}


def _stored_maps(
    config: Config, workdir: Path, model: FastRCNN, variables: Any, dataset: Dataset
) -> FeatureMaps | None:
    if not config["feature_cache"]:
        return None
    folder = workdir / "features" if config["feature_cache"] == "workdir" else Path(config["feature_cache"])
    options = {"sizes": image_sizes(config), "flip": config["flip"], "folder": folder}
    return store_maps(model, variables, dataset.records, **options)


def _training_batches(
    config: Config,
    model: FastRCNN,
    dataset: Dataset,
    proposals: Mapping[str, np.ndarray],
    maps: FeatureMaps | None = None,
) -> TrainingBatches:
    targets = (assign(proposals[r.image_id], r.boxes, r.labels) for r in _spaced(dataset.records))
    mean, std = target_statistics(
        targets, num_classes=len(dataset.class_names), fg_iou=config["fg_iou"], flip=config["flip"]
    )
    return TrainingBatches(
        dataset.records,
        proposals,
        {"mean": mean, "std": std},
        image_sizes(config),
        model.pixels,
        batch_recipe(config, len(dataset.records)).steps,
        images_per_batch=config["images_per_batch"],
        rois_per_image=config["rois_per_batch"] // config["images_per_batch"],
        fg_fraction=config["fg_fraction"],
        fg_iou=config["fg_iou"],
        bg_iou=(config["bg_iou_low"], config["bg_iou_high"]),
        flip=config["flip"],
        seed=config["seed"],
        process=(jax.process_index(), jax.process_count()),
        maps=maps,
        scale_jitter=tuple(config["scale_jitter"]),
        color_jitter=config["color_jitter"],
    )


def _train(
    config: Config,
    workdir: Path,
    out: Path,
    model: FastRCNN,
    frozen: Sequence[str],
    batches: TrainingBatches,
    evaluator: Evaluator,
    variables: Any,
    key: jax.Array,
) -> tuple[int, Any]:
    """Train, from the newest checkpoint if there is one; return the last step and its variables."""
    recipe = batch_recipe(config, len(batches.records))
    rate, warmup = recipe.learning_rate, recipe.warmup_steps
    learning_rate = {
        "step": step_schedule(rate, recipe.drops, warmup_steps=warmup),
        "cosine": cosine_schedule(rate, steps=recipe.steps, warmup_steps=warmup),
    }[config["schedule"]]
    optimizer = {"sgd": caffe_sgd, "adamw": adamw}[config["optimizer"]](
        learning_rate,
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        decay_biases=config["decay_biases"],
        multipliers=parse_multipliers(config["rate_multipliers"]),
    )
    state = create_state(variables, optimizer, frozen=frozen)
    if checkpoint.saved_steps(workdir):
        restored, last = checkpoint.restore(workdir, model=state.variables, optimizer=state.opt_state)
        if last > len(batches):
            raise InputError(f"{workdir}: has a checkpoint of step {last}, but its config ends at step {len(batches)}")
        if jax.process_index() == 0:
            checkpoint.resume_from(workdir, last)
        state = create_state(restored["model"], optimizer, frozen=frozen, step=last, opt_state=restored["optimizer"])
        print(f"{workdir}: resuming from step {last}")
    state, key = replicate((state, key))
    trained = model
    if batches.maps:
        neck = model.neck if _trains_neck(model, frozen) else None
        trained = model.clone(backbone=StoredMaps(model.spatial_scale, model.map_size), neck=neck)
    step_fn = make_train_step(
        trained, optimizer, box_loss_weight=config["box_loss_weight"], accumulate=config["accumulate"]
    )
    schedule = loop.Schedule(
        config["log_every"],
        config["checkpoint_every"],
        config["eval_every"],
        tuple(config["profile_steps"]),
        config["stop_after"],
    )
    images = config["eval_images"] or None
    keep, keep_best = config["keep_checkpoints"], max(config["keep_best"], bool(config["stop_after"]))
    with checkpoint.Checkpoints(out, keep=keep, keep_best=keep_best) as checkpoints:
        state = loop.train(
            state,
            step_fn,
            batches,
            key,
            schedule=schedule,
            learning_rate=learning_rate,
            checkpoints=checkpoints,
            workdir=workdir,
            out=out,
            score=lambda variables: evaluator(_on_one_device(variables), images=images).results["map"],
            scored={at: found for at, found in _logged_maps(workdir).items() if at <= int(state.step)},
            watch=_watch(config, batches, fresh=not int(state.step)) if jax.process_count() == 1 else None,
            data_workers=config["data_workers"],
        )
    return int(state.step), _on_one_device(state.variables)


def _watch(config: Config, batches: TrainingBatches, *, fresh: bool) -> Watch:
    """Return the watch of a run in one process; each of several sees its share of a batch only."""
    objects = _objects(batches.records, len(config["class_names"]))
    foreground = round(batches.rois_per_image * batches.fg_fraction)
    return Watch(config["class_names"], objects, epoch=len(batches.plan(0)), foreground=foreground, fresh=fresh)


def _on_one_device(tree: Any) -> Any:
    """Return a replicated tree as arrays on one device."""
    return jax.tree.map(lambda array: array.addressable_data(0), tree)


def _best(config: Config, workdir: Path, last: int, variables: Any) -> tuple[int, Any]:
    """Return the step and variables to score: with `stop_after` those of the best mAP, else the last."""
    hosts.all_gather(last)  # process 0 has closed its log and checkpoints
    scores = {at: found for at, found in _logged_maps(workdir).items() if found is not None}
    best = checkpoint.best_first(checkpoint.saved_steps(workdir), scores) if config["stop_after"] else []
    if not best or best[0] == last:
        return last, variables
    print(f"{workdir}: trained to step {last}; the best mAP is that of step {best[0]}")
    return best[0], checkpoint.load_model(workdir, variables, best[0])[0]


def _score(
    config: Config, out: Path, evaluator: Evaluator, variables: Any, step: int, last: int, *, early: bool
) -> dict[str, Any]:
    """Evaluate the variables of a step, and write results, plots and pictures; remove checkpoints of later steps."""
    found = evaluator(variables)
    results = {**found.results, "step": step}
    if config["stop_after"]:
        results |= {"last_step": last, "stopped_after": config["stop_after"] if early else None}
    pictures = out / "pictures"
    save_pictures(found, pictures, pictures=config["pictures"], score_threshold=config["picture_threshold"])
    plot_losses(read_metrics(out), pictures / "loss.png")
    if config["eval_every"] and step not in _logged_maps(out):
        with RunLog(out, step) as log:
            log.add(step, {"map": results["map"]})
    checkpoint.remove_after(out, step)  # every command takes the newest
    write_json(out / "results.json", results)
    print(results_table(results))
    return results


def _logged_maps(workdir: Path) -> dict[int, float | None]:
    """Return the logged mAP on the val split by step."""
    return {int(row["step"]): row["map"] for row in read_metrics(workdir) if "map" in row}


def _is_finished(results: Mapping[str, Any], config: Config, workdir: Path) -> bool:
    """Return whether training reached the last step, or stopped after as many evaluations as the config wants."""
    if stopped := results.get("stopped_after"):
        return 0 < config["stop_after"] <= stopped
    return results.get("last_step", results["step"]) >= batch_recipe(config, begun_images(workdir)).steps


def _finished(workdir: Path, results: Mapping[str, Any]) -> str:
    stopped = results.get("stopped_after")
    early = (
        f", stopped at step {results['last_step']} after {stopped} evaluations without a better one" if stopped else ""
    )
    return f"{workdir}: finished at step {results['step']} with mAP {format_score(results['map'])}{early}"


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = command_parser("Train Fast R-CNN and evaluate it. Rerun on the same workdir to resume.")
    parser.epilog = "For the config fields see docs/configuration.md or frcnn_jax/config.py."
    parser.usage = (
        "%(prog)s --workdir W [--config RECIPE] [--config.FIELD=VALUE ...] [--distributed | --coordinator ...]"
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder for everything that training writes")
    add_config_argument(parser)
    many = parser.add_argument_group("several processes, one per host (docs/scaling.md)")
    many.add_argument(
        "--distributed", action="store_true", help="find the other processes through SLURM, GKE or the TPU pod"
    )
    many.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0, where jax can't find it")
    many.add_argument("--num-processes", type=int, help="number of processes, with --coordinator")
    many.add_argument("--process-id", type=int, help="index of this process from 0, with --coordinator")
    many.add_argument(
        "--timeout", type=int, default=300, help="seconds to wait for other processes; default: %(default)s"
    )
    args, fields = parser.parse_known_args(argv)
    of_coordinator = (args.num_processes is not None, args.process_id is not None)
    if any(given != (args.coordinator is not None) for given in of_coordinator):
        raise InputError("--coordinator, --num-processes and --process-id must be given together")
    address = re.fullmatch(r".+:(\d{1,5})", args.coordinator or "host:1")
    if not address or not 0 < int(address[1]) < 2**16:
        raise InputError(f"--coordinator must be HOST:PORT with a port from 1 to 65535, got {args.coordinator!r}")
    check_at_least(1, num_processes=args.num_processes, timeout=args.timeout)
    if args.coordinator and not 0 <= args.process_id < args.num_processes:
        raise InputError(f"--process-id must be from 0 to {args.num_processes - 1}, got {args.process_id}")
    return args, fields


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    args, fields = _parse(argv)
    config = load_config(args.config, fields)
    if args.distributed or args.coordinator:
        hosts.join_processes(args.coordinator, args.num_processes, args.process_id, timeout=args.timeout)
        hosts.check_consistent(json.dumps(config, sort_keys=True), args.workdir)
    with hosts.interrupt_on_peer_loss():
        train_and_evaluate(config, args.workdir)


if __name__ == "__main__":
    run("train")
