"""The training loop: step, log, save, evaluate."""

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from frcnn_jax.data.batches import Batch, prefetch
from frcnn_jax.errors import InputError, Interrupted
from frcnn_jax.training.batches import TrainingBatches
from frcnn_jax.training.checkpoint import Checkpoints
from frcnn_jax.training.hosts import all_gather, any_stopped
from frcnn_jax.training.logs import RunLog
from frcnn_jax.training.signals import defer_signals, interrupt_on_signals
from frcnn_jax.training.step import TrainState
from frcnn_jax.training.watch import Watch

Step = Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
Score = Callable[[Any], float | None]


class Schedule(NamedTuple):
    """Intervals of the loop's actions, in steps.

    Attributes:
        log_every: Interval between rows of metrics.
        checkpoint_every: Interval between checkpoints; the last step is saved as well.
        eval_every: Interval between evaluations on the val split; 0 for none.
        profile: First and last step of a trace in `workdir`/profile; empty for none.
        stop_after: Evaluations in a row without a better score after which training stops; 0 for never.
    """

    log_every: int = 20
    checkpoint_every: int = 500
    eval_every: int = 0
    profile: tuple[int, ...] = ()
    stop_after: int = 0

    def evaluates(self, step: int, last: int) -> bool:
        """Return whether a step is scored: before the last by `eval_every`; the last if it need not be the best."""
        if step == last:
            return bool(self.eval_every and self.stop_after)
        return bool(self.eval_every) and 0 < step < last and step % self.eval_every == 0

    def ends(self, scored: Mapping[int, float | None]) -> bool:
        """Return whether, of the scores by step, the newest `stop_after` are all no better than an earlier one."""
        values = [-math.inf if value is None else value for _, value in sorted(scored.items())]
        latest = len(values) - self.stop_after
        return self.stop_after > 0 and latest > 0 and max(values[latest:]) <= max(values[:latest])


def train(
    state: TrainState,
    step_fn: Step,
    batches: TrainingBatches,
    key: jax.Array,
    *,
    schedule: Schedule,
    learning_rate: optax.Schedule,
    checkpoints: Checkpoints,
    workdir: Path,
    out: Path,
    score: Score | None = None,
    scored: dict[int, float | None] | None = None,
    watch: Watch | None = None,
    data_workers: int = 0,
) -> TrainState:
    """Train from the state's step to the last batch, or until scores no longer improve.

    Args:
        state: Initial state, replicated.
        step_fn: Step function, from `make_train_step`.
        batches: One batch per step.
        key: Dropout key, replicated.
        schedule: When to log, save, evaluate and profile.
        learning_rate: Learning rate by step, for the log.
        checkpoints: Open writer of checkpoints.
        workdir: The workdir, for messages.
        out: Folder of the logs: the workdir, or a scratch folder in non-zero processes.
        score: Function from variables to mAP on the val split.
        scored: Scores by step from earlier runs.
        watch: Warns of a training that learns nothing.
        data_workers: Number of processes that prepare batches; 0 for threads.

    Returns:
        The last state.

    Raises:
        InputError: The loss or a parameter is not finite, or a checkpoint can't be written.
        Interrupted: SIGINT or SIGTERM arrived; the state is saved.
    """
    start, last = int(state.step), len(batches)
    with (
        RunLog(out, start) as log,
        tqdm(total=last, initial=start, desc="train", unit="step", smoothing=0.05, disable=out != workdir) as bar,
        defer_signals() as stopped,
        _Profile(schedule.profile, last, out, bar) as profile,
        contextlib.closing(prefetch(batches, start=start, workers=data_workers)) as made,
    ):
        rows = _MetricRows(log, bar, schedule.log_every, batches.images_per_batch, learning_rate, watch)
        scored = dict(scored or {})
        run = _Run(workdir, checkpoints, rows, score, start, scored)
        checkpoints.scores.update({at: value for at, value in scored.items() if value is not None})
        if score and schedule.evaluates(start, last) and start not in scored:
            run.evaluate(start, state)
        over = run.ends(schedule)
        for at in range(start + 1, last + 1):
            if over:
                break
            batch = rows.next_batch(made)
            profile.before(at)
            state, metrics = step_fn(state, batch, key)
            run.log(at, metrics)
            bar.update()
            stop = any_stopped(stopped(), at, schedule.log_every)
            with rows.paused():
                profile.after(at, stop, metrics)
            evaluates = score is not None and schedule.evaluates(at, last)
            if at % schedule.checkpoint_every == 0 or at == last or evaluates or stop:
                run.save(at, state)
            if stop:
                raise Interrupted(saved_at(at, workdir))
            if evaluates:
                run.evaluate(at, state)
                over = run.ends(schedule)
    return state


def saved_at(step: int, workdir: Path) -> str:
    """Return the message of an interruption after a checkpoint."""
    return f"step {step} is saved in {workdir}; run the same command to resume"


class _Run:
    """Logging, saving and evaluation during a run."""

    def __init__(
        self,
        workdir: Path,
        checkpoints: Checkpoints,
        rows: "_MetricRows",
        score: Score | None,
        start: int,
        scored: dict[int, float | None],
    ) -> None:
        self.workdir, self.checkpoints, self.rows, self.score = workdir, checkpoints, rows, score
        self.saved, self.scored = start, scored

    def log(self, at: int, metrics: dict[str, jax.Array]) -> None:
        """Add a step's metrics and check those of the step before, so that the device need not wait."""
        self._check_finite(self.rows.take(at, metrics), at - 1)

    def save(self, at: int, state: TrainState) -> None:
        """Write the pending row of metrics, which a kill could split otherwise, and start writing a checkpoint."""
        self._check_finite(self.rows.flush(at), at)
        self._check_finite(all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(state.params)), at)
        if jax.process_index() == 0:
            self.checkpoints.save(at, model=state.variables, optimizer=state.opt_state)
        self.saved = at

    def evaluate(self, at: int, state: TrainState) -> None:
        """Score the saved parameters; if a signal interrupts this, the next start repeats it."""
        assert self.score
        with self.rows.paused(), interrupt_on_signals(saved_at(at, self.workdir)):
            found = self.score(state.variables)
        self.rows.log.add(at, {"map": found})
        self.scored[at] = found
        if found is not None:
            self.checkpoints.scores[at] = found

    def ends(self, schedule: Schedule) -> bool:
        """Return whether scores no longer improve, by those of process 0."""
        return bool(all_gather(schedule.ends(self.scored))[0])

    def _check_finite(self, finite: bool, step: int) -> None:
        if not finite:
            last = f"the last good checkpoint is step {self.saved}" if self.saved else "there is no checkpoint yet"
            advice = "start again in another workdir, perhaps with a lower --config.learning_rate"
            raise InputError(f"{self.workdir}: loss or parameters are not finite at step {step}; {last}; {advice}")


class _MetricRows:
    """Means of the step metrics since the last row, with rates and times, written every `every` steps."""

    def __init__(
        self, log: RunLog, bar: Any, every: int, images: int, learning_rate: optax.Schedule, watch: Watch | None
    ) -> None:
        self.log, self._bar, self._every, self._images, self._learning_rate = log, bar, every, images, learning_rate
        self._watch = watch
        self._pending: dict[str, jax.Array] | None = None
        self._steps: list[dict[str, float]] = []
        self._since, self._waited = time.perf_counter(), 0.0

    def next_batch(self, made: Iterator[Batch]) -> Batch:
        """Return the next batch and measure the wait for it."""
        asked = time.perf_counter()
        batch = next(made)
        self._waited += time.perf_counter() - asked
        if self._watch:
            self._warn(self._watch.batch(batch["labels"]))
        return batch

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time spent inside from rates."""
        began = time.perf_counter()
        yield
        self._since += time.perf_counter() - began

    def take(self, at: int, metrics: dict[str, jax.Array]) -> bool:
        """Add the metrics of the step before and keep these; return whether the former loss is finite."""
        finite = self._add() if self._pending else True
        if finite and self._steps and (at - 1) % self._every == 0:
            self._write(at - 1)
        self._pending = metrics
        return finite

    def flush(self, at: int) -> bool:
        """Add the metrics of step `at` and write the row; return whether its loss is finite."""
        finite = self._add()
        if finite:
            self._write(at)
        return finite

    def _add(self) -> bool:
        assert self._pending
        self._steps.append({name: float(value) for name, value in jax.device_get(self._pending).items()})
        self._pending = None
        if self._watch:
            self._warn(self._watch.loss(self._steps[-1]["loss"]))
        return math.isfinite(self._steps[-1]["loss"])

    def _warn(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            self._bar.write(f"warning: {warning}", file=sys.stderr)

    def _write(self, at: int) -> None:
        now, count = time.perf_counter(), len(self._steps)
        row = {name: float(np.mean([step[name] for step in self._steps])) for name in self._steps[0]}
        row["learning_rate"] = float(self._learning_rate(at - 1))
        row["images_per_second"] = count * self._images / (now - self._since)
        row["data_seconds"] = self._waited / count
        row["device_seconds"] = (now - self._since - self._waited) / count
        row["memory_gib"] = _peak_memory() / 2**30
        self.log.add(at, row)
        shown = {"loss": f"{row['loss']:.3f}", "rate": f"{row['learning_rate']:g}"}
        self._bar.set_postfix({**shown, "images/s": f"{row['images_per_second']:.3g}"})
        self._steps.clear()
        self._since, self._waited = now, 0.0


def _peak_memory() -> int:
    """Return the peak bytes in use by the device or, on a CPU, by the process."""
    if stats := jax.local_devices()[0].memory_stats():
        return stats["peak_bytes_in_use"]
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Profile:
    """A trace of the steps from the first to the last of `steps`, for TensorBoard, XProf and Perfetto."""

    def __init__(self, steps: tuple[int, ...], last: int, out: Path, bar: Any) -> None:
        self._first, self._last = (steps[0], min(steps[1], last)) if steps else (0, 0)
        self._out, self._bar, self._began = out / "profile", bar, 0

    def before(self, at: int) -> None:
        """Start the trace, if the step is in it."""
        if self._first <= at <= self._last and not self._began:
            jax.profiler.start_trace(str(self._out))
            self._began = at

    def after(self, at: int, stop: bool, metrics: Any) -> None:
        """End the trace after its last step, or when the run stops."""
        if self._began and (at == self._last or stop):
            jax.block_until_ready(metrics)
            self._bar.write(f"writing the profile of steps {self._began} to {at} to {self._out}")
            jax.profiler.stop_trace()
            self._began, self._last = 0, 0

    def __enter__(self) -> "_Profile":
        return self

    def __exit__(self, *_: object) -> None:
        if self._began:
            jax.profiler.stop_trace()
