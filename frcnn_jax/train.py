"""Training in one go (section 2.3):

    python -m frcnn_jax.train --workdir W [--config experiments/x.py] [--config.field=value ...]

trains on the data that the config names (the embedded synthetic set by default), scores the val split and leaves in W:
config.json, checkpoints, metrics.jsonl, TensorBoard events, results.json and pictures. On the same W it goes on from
the last whole checkpoint, to the same bits as without the break. Ctrl-C or SIGTERM saves and exits with 75, go on
later.
"""

import contextlib
import io
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.multihost_utils import sync_global_devices
from tqdm import tqdm

from frcnn_jax.config import HOUSEKEEPING, check_config, load_config
from frcnn_jax.data.batches import prefetch
from frcnn_jax.data.records import Dataset
from frcnn_jax.detect import image_sizes, make_model, read_config, workdir_arrays
from frcnn_jax.errors import InputError, Interrupted, run_main
from frcnn_jax.evaluation.evaluate import evaluate_workdir, make_evaluation, results_table, score
from frcnn_jax.evaluation.pictures import plot_losses
from frcnn_jax.files import write_json
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.models.weight_files import WHERE, read_weights
from frcnn_jax.models.weights import OUTPUTS, merge_weights
from frcnn_jax.splits import read_split, with_proposals
from frcnn_jax.training import checkpoint
from frcnn_jax.training.batches import TrainingBatches
from frcnn_jax.training.hosts import (
    any_stopped,
    check_consistent,
    check_shared,
    exit_together,
    fail_together,
    interrupt_on_peer_loss,
    join_processes,
)
from frcnn_jax.training.logs import RunLog, read_metrics
from frcnn_jax.training.sampling import assign, target_statistics
from frcnn_jax.training.signals import defer_signals, interrupt_on_signals
from frcnn_jax.training.solver import Recipe, caffe_sgd, step_schedule
from frcnn_jax.training.step import TrainState, create_state, make_train_step, replicate


def train_and_evaluate(config: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """Trains as `config` says, goes on from what `workdir` holds, scores the val split. Returns the results.

    Raises:
        InputError: the config, the data or the workdir can't be used, another training runs in it, the disk is full, no
            checkpoint is whole, or the loss is not a number.
        Interrupted: SIGINT or SIGTERM came; the state is saved.
    """
    began = time.perf_counter()
    with interrupt_on_signals(f"the same command goes on from what {workdir} holds"), contextlib.ExitStack() as held:
        with fail_together():
            config = resume_config(config, workdir)
            if results := read_results(workdir):
                print(_finished(workdir, results))
                return results
            # what is wrong with any of it is said before the long work begins, and nothing is written
            config, train_set = _checked(config)
            model = make_model(config, len(train_set.class_names))
            key = jax.random.key(config["seed"])
            variables = initial_variables(model, key, config["weights"])
            workdir.mkdir(parents=True, exist_ok=True)
            held.enter_context(checkpoint.lock_workdir(workdir))
        check_shared(workdir)
        out = held.enter_context(_folder_to_write(workdir))
        results = _train_and_score(config, workdir, out, model, train_set, variables, key)
        print(f"{_finished(workdir, results)}, {time.perf_counter() - began:.0f} s; see {workdir}/pictures")
    return results


def _checked(config: Mapping[str, Any]) -> tuple[dict[str, Any], Dataset]:
    """The config with the names of the classes, and the train split. InputError for what can't be trained."""
    network = make_model(config, 1).network
    images, devices = config["images_per_batch"], jax.device_count()
    if images % (devices * config["accumulate"]):
        raise InputError(
            f"images_per_batch must be a multiple of the {devices} devices times accumulate, {config['accumulate']}, "
            f"got {images}"
        )
    if config["profile_steps"] and jax.default_backend() == "cpu":
        first, last = config["profile_steps"]
        if last > first + 1:
            raise InputError(
                "--config.profile_steps must be one or two steps on a CPU, each pass of RoI pooling's loops is in the "
                f"trace, some GB of memory a step; got {first} to {last}"
            )
    if network.frozen and not config["weights"]:
        frozen = ", ".join(network.frozen)
        raise InputError(
            f"{config['network']} keeps {frozen} as they are: give their values with --config.weights=FILE."
            + _where(config["network"])
        )
    if config["weights"] and not Path(config["weights"]).exists():
        raise InputError(f"--config.weights={config['weights']}: no such file.{_where(config['network'])}")
    for path in filter(None, config["proposals"].split("+")):
        if not Path(path).exists():
            raise InputError(f"--config.proposals={config['proposals']}: no such file or folder as {path}")
    train_set = read_split(config, "train")
    config = {**config, "class_names": list(train_set.class_names)}
    read_split(config, "val")
    return config, train_set


@contextlib.contextmanager
def _folder_to_write(workdir: Path) -> Iterator[Path]:
    """The workdir, for the first process; for the others a folder that is thrown away, and silence."""
    if jax.process_index() == 0:
        yield workdir
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        yield Path(folder)


def _train_and_score(
    config: Mapping[str, Any],
    workdir: Path,
    out: Path,
    model: FastRCNN,
    train_set: Dataset,
    variables: Any,
    key: jax.Array,
) -> dict[str, Any]:
    """Reads from `workdir`, writes to `out`."""
    frozen = model.network.frozen
    with fail_together():
        batches = _training_batches(config, *with_proposals(config, workdir, train_set))
    scorer = _make_scorer(config, workdir, model) if config["eval_every"] else None
    write_json(out / "config.json", config)

    recipe = batch_recipe(config)
    schedule = step_schedule(recipe.learning_rate, recipe.drops, warmup_steps=recipe.warmup_steps)
    optimizer = caffe_sgd(
        schedule,
        momentum=config["momentum"],
        weight_decay=config["weight_decay"],
        decay_biases=config["decay_biases"],
    )
    state = create_state({**variables, "box_stats": dict(batches.box_stats)}, frozen, optimizer)

    if checkpoint.saved_steps(workdir):
        restored, last = checkpoint.restore(workdir, model=state.variables, optimizer=state.opt_state)
        if last > len(batches):
            raise InputError(f"{workdir}: holds a checkpoint of step {last}, its config ends at {len(batches)}")
        if jax.process_index() == 0:
            checkpoint.resume_from(workdir, last)
        state = create_state(restored["model"], frozen, optimizer)
        state = state.replace(step=jnp.int32(last), opt_state=restored["optimizer"])
        print(f"{workdir}: goes on from step {last}")
    state, key = replicate((state, key))
    step_fn = make_train_step(
        model, optimizer, box_loss_weight=config["box_loss_weight"], accumulate=config["accumulate"]
    )
    keep, keep_best = config["keep_checkpoints"], config["keep_best"]
    with checkpoint.Checkpoints(out, keep=keep, keep_best=keep_best) as checkpoints:
        train(state, step_fn, batches, key, checkpoints, schedule, config, workdir, out, scorer)
    if jax.process_count() > 1:
        sync_global_devices("the last checkpoint is there")

    results = evaluate_workdir(workdir, pictures=out / "pictures").results
    plot_losses([row for row in read_metrics(out) if "learning_rate" in row], out / "pictures" / "loss.png")
    if config["eval_every"] and results["step"] not in _logged_maps(out):
        with RunLog(out, results["step"]) as log:
            log.add(results["step"], {"map": results["map"]})
    write_json(out / "results.json", results)
    print(results_table(results))
    return results


def _make_scorer(config: Mapping[str, Any], workdir: Path, model: FastRCNN) -> Callable[[Any], float | None]:
    """A function from variables, on any devices, to their mAP on the val images that the config names."""
    dataset, evaluate = make_evaluation(config, workdir, model, config["eval_images"] or None)

    def map_of(variables: Any) -> float | None:
        local = jax.tree.map(lambda array: array.addressable_data(0), variables)
        return score(evaluate(local).by_class, dataset)[0]["map"]

    return map_of


def _where(network: str) -> str:
    if network not in WHERE:
        return ""
    how = "It is read as it is, or after scripts/convert_weights.py; see experiments/README.md"
    return f" There is {WHERE[network]}. {how}"


def _finished(workdir: Path, results: Mapping[str, Any]) -> str:
    score = "-" if results["map"] is None else format(results["map"], ".4f")
    return f"{workdir}: finished at step {results['step']} with mAP {score}"


def batch_recipe(config: Mapping[str, Any]) -> Recipe:
    """The rate and the steps of a config, for its number of images a step."""
    values = (config[name] for name in ("learning_rate", "steps", "learning_rate_drops", "warmup_steps"))
    return Recipe(*values).for_batch(config["images_per_batch"], config["reference_images"])


def _training_batches(config: Mapping[str, Any], dataset: Dataset, proposals: Mapping[str, np.ndarray]):
    targets = (assign(proposals[r.image_id], r.boxes, r.labels) for r in dataset.records)
    mean, std = target_statistics(targets, len(dataset.class_names), fg_iou=config["fg_iou"], flip=config["flip"])
    return TrainingBatches(
        dataset.records,
        proposals,
        {"mean": mean, "std": std},
        image_sizes(config),
        batch_recipe(config).steps,
        images_per_batch=config["images_per_batch"],
        rois_per_image=config["rois_per_batch"] // config["images_per_batch"],
        fg_fraction=config["fg_fraction"],
        fg_iou=config["fg_iou"],
        bg_iou=(config["bg_iou_low"], config["bg_iou_high"]),
        flip=config["flip"],
        seed=config["seed"],
        process=(jax.process_index(), jax.process_count()),
    )


def initial_variables(model: FastRCNN, key: jax.Array, weights: str) -> dict[str, Any]:
    """Fresh variables with the pretrained layers of `weights`, a file or a workdir, if it is named. Where cls_score is
    frozen it has to be there; otherwise both output layers start afresh.

    Raises:
        InputError: the file is missing or does not fit the network.
    """
    path = Path(weights)
    arrays = (workdir_arrays(path) if path.is_dir() else read_weights(path)) if weights else None
    sizes = jnp.full((1, 2), 64, jnp.int32)
    variables = jax.jit(model.init)(key, jnp.zeros((1, 64, 64, 3)), sizes, jnp.zeros((1, 1, 4)))
    if arrays is None:
        return variables
    outputs = {name for name in arrays if name.split(".")[0] in OUTPUTS}
    if "cls_score" in model.network.frozen and not outputs:
        raise InputError(f"{weights}: no cls_score in it; the box head alone is trained on a trained detector")
    if "cls_score" not in model.network.frozen:
        arrays = {name: array for name, array in arrays.items() if name not in outputs}
    params = merge_weights(variables["params"], arrays, roi_size=model.network.roi_size, source=weights)
    head = {**params["head"], "bbox_pred": variables["params"]["head"]["bbox_pred"]}
    return {**variables, "params": {**params, "head": head}}


def train(
    state: TrainState,
    step_fn: Callable,
    batches: TrainingBatches,
    key: jax.Array,
    checkpoints: Any,
    schedule: optax.Schedule,
    config: Mapping[str, Any],
    workdir: Path,
    out: Path,
    scorer: Callable[[Any], float | None] | None = None,
) -> TrainState:
    """The loop, from the state's step to the last one; logs, saves each `checkpoint_every` steps and at the end, and
    each `eval_every` steps saves and scores, if there is a `scorer`. Writes to `out`, which is `workdir` but in
    processes after the first."""
    start, steps = int(state.step), len(batches)
    scores = {step: found for step, found in _logged_maps(workdir).items() if step <= start}
    checkpoints.scores.update({step: score for step, score in scores.items() if score is not None})
    saved = start

    def is_scored(at: int) -> bool:
        return scorer is not None and 0 < at < steps and at % config["eval_every"] == 0

    def save(at: int, state: TrainState) -> None:
        nonlocal saved
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params)):
            raise InputError(_not_finite(at, saved, workdir))
        if jax.process_index() == 0:
            checkpoints.save(at, model=state.variables, optimizer=state.opt_state)
        saved = at

    with (
        RunLog(out, start) as log,
        tqdm(total=steps, initial=start, desc="train", unit="step", smoothing=0.05, disable=out != workdir) as bar,
        defer_signals() as stopped,
        contextlib.ExitStack() as left,
    ):
        pending: dict[str, jax.Array] | None = None
        rows: list[dict[str, float]] = []
        since, waited = time.perf_counter(), 0.0

        def collect(at: int, *, saves: bool = False) -> None:
            """Takes the metrics of the step that ended at `at`, a step late where nothing is saved, so that the device
            need not wait. A checkpoint ends a row, which a break would cut in two."""
            nonlocal since, waited
            assert pending is not None
            rows.append({name: float(value) for name, value in jax.device_get(pending).items()})
            if not math.isfinite(rows[-1]["loss"]):
                raise InputError(_not_finite(at, saved, workdir))
            if at % config["log_every"] == 0 or saves:
                now = time.perf_counter()
                row = {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}
                row["learning_rate"] = float(schedule(at - 1))
                row["images_per_second"] = len(rows) * config["images_per_batch"] / (now - since)
                row["data_seconds"] = waited / len(rows)
                row["device_seconds"] = (now - since - waited) / len(rows)
                row["memory_gib"] = _peak_memory() / 2**30
                log.add(at, row)
                shown = {"loss": f"{row['loss']:.3f}", "rate": f"{row['learning_rate']:g}"}
                bar.set_postfix({**shown, "images/s": f"{row['images_per_second']:.3g}"})
                rows.clear()
                since, waited = now, 0.0

        def evaluate(at: int) -> None:
            """Scores the parameters, which are saved: a signal ends it, and the next start does it again."""
            nonlocal since
            began = time.perf_counter()
            assert scorer is not None
            with interrupt_on_signals(_saved_at(at, workdir)):
                found = scorer(state.variables)
            log.add(at, {"map": found})
            if found is not None:
                checkpoints.scores[at] = found
            since += time.perf_counter() - began

        if is_scored(start) and start not in scores:
            evaluate(start)
        profile_from, profile_to = config["profile_steps"] or (0, 0)
        traced = 0  # the first step of the trace that is being taken
        made = left.enter_context(contextlib.closing(prefetch(batches, start, workers=config["data_workers"])))
        for at in range(start + 1, steps + 1):
            asked = time.perf_counter()
            batch = next(made)
            waited += time.perf_counter() - asked
            former = pending
            if profile_from <= at <= profile_to and not traced:
                jax.profiler.start_trace(str(out / "profile"))
                traced = at
            state, latest = step_fn(state, batch, key)
            if former is not None:
                collect(at - 1)
            pending = latest
            bar.update()
            stop = any_stopped(stopped(), at, config["log_every"])
            if traced and (at in (profile_to, steps) or stop):
                jax.block_until_ready(latest)
                bar.write(f"writing the profile of steps {traced} to {at} to {workdir}/profile")
                began = time.perf_counter()
                jax.profiler.stop_trace()
                since += time.perf_counter() - began
                traced, profile_to = 0, 0
            if at % config["checkpoint_every"] == 0 or at == steps or is_scored(at) or stop:
                collect(at, saves=True)
                pending = None
                save(at, state)
            if stop:
                raise Interrupted(_saved_at(at, workdir))
            if is_scored(at):
                evaluate(at)
    return state


def _logged_maps(workdir: Path) -> dict[int, float | None]:
    """By step, the mAP on the val split."""
    return {int(row["step"]): row["map"] for row in read_metrics(workdir) if "map" in row}


def _peak_memory() -> int:
    """Bytes in use at most so far: the device's, or on a CPU the process's."""
    if stats := jax.local_devices()[0].memory_stats():
        return stats["peak_bytes_in_use"]
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _saved_at(step: int, workdir: Path) -> str:
    return f"step {step} is saved in {workdir}; the same command goes on from there"


def _not_finite(step: int, saved: int, workdir: Path) -> str:
    good = f"the last good checkpoint is step {saved} in {workdir}" if saved else "there is no checkpoint yet"
    advice = "train anew in another workdir, with a lower --config.learning_rate perhaps"
    return f"the loss is not a finite number at step {step}; {good}; {advice}"


def resume_config(config: Mapping[str, Any], workdir: Path) -> dict[str, Any]:
    """The config, checked, with the class names of the run that the workdir holds, if it holds one. Writes nothing.

    Raises:
        InputError: the workdir is a file, a field is out of its range, or the run was begun with another config.
    """
    if workdir.exists() and not workdir.is_dir():
        raise InputError(f"the workdir must be a folder, {workdir} is a file")
    check_config(config)
    current: dict[str, Any] = json.loads(json.dumps(config))
    if not (workdir / "config.json").exists():
        return current
    begun = read_config(workdir)
    current["class_names"] = current["class_names"] or begun["class_names"]
    differ = [
        f"{name} was {begun[name]!r}, now {current[name]!r}"
        for name in sorted(set(current) - HOUSEKEEPING)
        if begun[name] != current[name]
    ]
    if differ:
        raise InputError(f"{workdir} was begun with another config: {'; '.join(differ)}. Take another workdir")
    return current


def read_results(workdir: Path) -> dict[str, Any] | None:
    """The results of a finished run; None for one that is not."""
    path = workdir / "results.json"
    if not path.exists():
        return None
    try:
        results = json.loads(path.read_text())
        if not (isinstance(results["step"], int) and isinstance(results["map"], float | int | None)):
            raise TypeError
        return {name: results[name] for name in ("map", "step", *results)}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: not results that frcnn_jax.train wrote; remove it to evaluate again") from None


def main(argv: Sequence[str]) -> None:
    """The command line."""
    config, args = load_config(argv)
    if args.distributed or args.coordinator:
        join_processes(args.coordinator, args.num_processes, args.process_id, timeout=args.timeout)
        check_consistent(json.dumps(config, sort_keys=True), args.workdir)
    with interrupt_on_peer_loss():
        train_and_evaluate(config, args.workdir)


if __name__ == "__main__":
    with exit_together():
        run_main(main)
