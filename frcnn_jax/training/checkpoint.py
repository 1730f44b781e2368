"""Checkpoints, through orbax: W/checkpoints/<step>/{model,optimizer}, whole or not at all, while training goes on.

Beside each, <step>.json holds the SHA-256 of its files, so that one that was altered later is found out; then the one
before it is taken. A step without that file (killed just before it was written) is taken if orbax can restore it, and
gets it when training goes on.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from frcnn_jax.errors import InputError

logging.getLogger("asyncio").setLevel(logging.CRITICAL)
logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax reports each save at length, and what it raises as well


def _folder(workdir: Path) -> Path:
    return (Path(workdir) / "checkpoints").absolute()


def saved_steps(workdir: Path) -> list[int]:
    """The steps of a workdir's checkpoints, ascending."""
    folder = _folder(workdir)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name))


def _this_process() -> ocp.options.MultiprocessingOptions:
    """For orbax: of several processes each reads for itself, and the first one alone writes."""
    if jax.process_count() == 1:
        return ocp.options.MultiprocessingOptions()
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(own, {own}, barrier_sync_key_prefix=f"process{own}")


# Writing


@dataclass(frozen=True)
class KeepPolicy(PreservationPolicy):
    """The `newest` steps and the `best` ones by their score, the later of equal ones."""

    newest: int
    best: int
    scores: Mapping[int, float]  # by step; those that are not in it have none

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each of `checkpoints`, which ascend."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        by_score = sorted((step for step in steps if step in self.scores), key=lambda s: (-self.scores[s], -s))
        kept = {*steps[-self.newest :], *by_score[: self.best]}
        return [step in kept for step in steps]


class Checkpoints:
    """The checkpoints of a workdir, to write to; see `open_checkpoints`. `scores` are read at the next save."""

    def __init__(self, workdir: Path, *, keep: int, keep_best: int) -> None:
        self.scores: dict[int, float] = {}
        self._folder = _folder(workdir)
        self._whole = max(saved_steps(workdir), default=None)
        self._folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=KeepPolicy(keep, keep_best, self.scores),
            cleanup_tmp_directories=True,  # what a kill left
            create=False,
            lightweight_initialize=True,
            multiprocessing_options=_this_process(),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self.whole = True  # all that was saved is
        self._writing: tuple[int, Future[None]] | None = None

    def save(self, step: int, **items: Any) -> None:
        """Begins to write a checkpoint of pytrees; a former one that is still being written is waited for.

        Raises:
            InputError: this one or the former can't be written.
        """
        self.wait()
        with self._failure(step):
            _manifest(self._folder / str(step)).unlink(missing_ok=True)  # of one that was moved away
            if jax.process_count() > 1:  # orbax takes local arrays as NumPy's alone
                items = jax.device_get(items)
            args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
            self._manager.save(step, args=ocp.args.Composite(**args))
        self._writing = step, self._thread.submit(self._finish, step)

    def wait(self) -> None:
        """Until the last save is on disk. InputError if it can't be written."""
        if self._writing:
            (step, done), self._writing = self._writing, None
            with self._failure(step):
                done.result()
            self._whole = step

    def close(self) -> None:
        """Waits, and ends orbax's threads."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            with contextlib.suppress(Exception):  # an error of the last save once more
                self._manager.close()

    def _finish(self, step: int) -> None:
        self._manager.wait_until_finished()
        write_manifest(self._folder / str(step))
        for path in self._folder.glob("*.json"):
            if not path.with_suffix("").exists():
                path.unlink()

    @contextlib.contextmanager
    def _failure(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise many kinds
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rsplit(": ", 1)[-1]
            former = "there is none before it" if self._whole is None else f"step {self._whole} is whole"
            self.whole = False
            raise InputError(f"{self._folder}/{step}: can't write this checkpoint: {reason}; {former}") from error


@contextlib.contextmanager
def open_checkpoints(workdir: Path, *, keep: int = 2, keep_best: int = 0) -> Iterator[Checkpoints]:
    """The checkpoints of a workdir; the newest `keep` and the `keep_best` of the best scores are kept. Leaving it ends
    what is being written."""
    checkpoints = Checkpoints(workdir, keep=keep, keep_best=keep_best)
    hooks = sys.excepthook, sys.unraisablehook
    sys.excepthook, sys.unraisablehook = (partial(_say_unless_of_writing, hook) for hook in hooks)
    try:
        yield checkpoints
    finally:
        checkpoints.close()
        if checkpoints.whole:
            sys.excepthook, sys.unraisablehook = hooks


def _say_unless_of_writing(hook: Callable[..., None], *report: Any) -> None:
    """Leaves out what orbax's threads print of the other files after one could not be written: that is said once."""
    error = report[1] if len(report) > 1 else report[0].exc_value
    if not isinstance(error, RuntimeError | ValueError) or threading.current_thread() is threading.main_thread():
        hook(*report)


def save(checkpoints: Checkpoints, step: int, model: Any, optimizer: Any) -> None:
    """Begins to write a checkpoint of training."""
    checkpoints.save(step, model=model, optimizer=optimizer)


def save_model(workdir: Path, step: int, model: Any) -> None:
    """A checkpoint to detect with, not to train on from: no optimizer in it."""
    with open_checkpoints(workdir) as checkpoints:
        checkpoints.save(step, model=model)


# Digests


def _manifest(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(path: Path) -> None:
    """Writes the digests of a step's files beside its folder `path`, whole or not at all."""
    digests = {file.relative_to(path).as_posix(): _digest(file) for file in sorted(path.rglob("*")) if file.is_file()}
    beside = _manifest(path).with_suffix(".tmp")
    beside.write_text(json.dumps(digests, indent=1) + "\n")
    os.replace(beside, _manifest(path))


def find_damage(path: Path, items: Collection[str]) -> str | None:
    """What differs between those items of a step's folder `path` and its manifest; None where nothing does or there is
    no manifest."""
    try:
        digests = json.loads(_manifest(path).read_text())
        by_item = {item: [name for name in digests if name.startswith(f"{item}/")] for item in items}
        if not all(by_item.values()):
            raise ValueError("an item without digests")
        for name in (name for names in by_item.values() for name in names):
            if not (path / name).is_file():
                return f"{name} is missing"
            if _digest(path / name) != digests[name]:
                return f"{name} is not as it was written"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError):
        return f"its digests in {_manifest(path).name} are not readable"
    return None


# Reading


class DamagedError(InputError):
    """A checkpoint is not as it was written."""


def _misfit(metadata: Any, target: Any) -> str | None:
    """The first array that orbax's metadata of an item and a pytree do not have alike; None where there is none."""
    if metadata.item_metadata is None:
        raise ValueError("it has no metadata")
    stored = {leaf.name: leaf.shape for leaf in jax.tree.leaves(metadata.item_metadata.tree)}
    asked = {name: leaf.shape for name, leaf in ocp.tree.to_flat_dict(target, sep=".").items()}
    for name in sorted(stored | asked):
        if name not in stored:
            return f"{name} is not in it"
        if name not in asked:
            return f"{name} is in it"
        if stored[name] != asked[name]:
            return f"{name} is {stored[name]} and not {asked[name]}"
    return None


def _restore_step(path: Path, targets: Mapping[str, Any]) -> dict[str, Any]:
    if damage := find_damage(path, targets):
        raise DamagedError(f"{path}: {damage}")
    try:
        with ocp.StandardCheckpointer(multiprocessing_options=_this_process()) as checkpointer:
            for name, target in targets.items():
                if differs := _misfit(checkpointer.metadata(path / name), target):
                    raise InputError(f"{path}: of another network or number of classes: {differs}")
            return {name: checkpointer.restore(path / name, target) for name, target in targets.items()}
    except InputError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        kind = InputError if _manifest(path).exists() else DamagedError
        raise kind(f"{path}: not a whole checkpoint of this network ({reason})") from None


def restore(workdir: Path, step: int | None = None, **targets: Any) -> tuple[dict[str, Any], int]:
    """Pytrees of a workdir's newest whole checkpoint, or of `step`, shaped and placed like those given, and its step.
    What is wrong with a newer one goes to stderr.

    Raises:
        InputError: there is no such checkpoint, or it is damaged, or of another network.
    """
    folder, steps = _folder(workdir), saved_steps(workdir)
    if not folder.is_dir():
        raise InputError(f"{workdir}: no checkpoints here; train first: python -m frcnn_jax.train --workdir {workdir}")
    if not steps:
        raise InputError(f"{folder}: no checkpoint yet; train first")
    if step is not None:
        if step not in steps:
            raise InputError(f"{folder}: no checkpoint of step {step}; there are {steps}")
        return _restore_step(folder / str(step), targets), step
    for newest in reversed(steps):
        try:
            return _restore_step(folder / str(newest), targets), newest
        except DamagedError as damage:
            print(f"{damage}; this checkpoint is left out", file=sys.stderr)
    raise InputError(f"{folder}: none of the checkpoints {steps} is whole")


def go_on_from(workdir: Path, step: int) -> None:
    """Renames the checkpoints after a step to <step>.damaged, so that these steps can be saved again, and writes the
    step's digests where a kill came before them."""
    for newer in (s for s in saved_steps(workdir) if s > step):
        path = _folder(workdir) / str(newer)
        shutil.rmtree(aside := path.with_name(f"{newer}.damaged"), ignore_errors=True)
        path.rename(aside)
        _manifest(path).unlink(missing_ok=True)
        print(f"{path} is now {aside.name}", file=sys.stderr)
    if not _manifest(path := _folder(workdir) / str(step)).exists():
        write_manifest(path)


def load_model(workdir: Path, model: Any, step: int | None = None) -> tuple[Any, int]:
    """The model of a workdir's newest whole checkpoint, or of `step`, shaped like `model` (arrays or
    ShapeDtypeStructs).

    Raises:
        InputError: as `restore`.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), model)
    restored, step = restore(workdir, step, model=placed)
    return restored["model"], step


# One training at a time


@contextlib.contextmanager
def lock_workdir(workdir: Path) -> Iterator[None]:
    """Keeps a second training out of a workdir. The kernel ends it with the process, however that dies. Of several
    processes of one training the first locks. Nothing on Windows.

    Raises:
        InputError: another process holds it.
    """
    if sys.platform == "win32" or jax.process_index():
        yield
        return
    import fcntl

    with open(Path(workdir) / "lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{workdir}: another training runs in it; take another workdir, or wait for it") from None
        except OSError as error:  # some network file systems
            print(f"{workdir}: can't be locked ({error.strerror}); let no second training run in it", file=sys.stderr)
        yield
