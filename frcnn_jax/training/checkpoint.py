"""Atomic, asynchronous checkpoints in `<workdir>/checkpoints/<step>/{model,optimizer}`, written and read by orbax.

The file `<step>.json` beside each step holds the SHA-256 of its files, so that later damage is found and an earlier
step is used. A step without it (the process was killed just before writing it) is used if orbax can restore it.

This is orbax's v0 API, which leaves its top level with 1.0. In 0.12, v1 can't save from one process of several:
`training.Checkpointer` refuses `active_processes`, and `save_checkpointables` waits for all processes.
"""

import contextlib
import hashlib
import re
import shutil
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from frcnn_jax.errors import InputError
from frcnn_jax.files import read_json, write_json


def _folder(workdir: Path) -> Path:
    return (Path(workdir) / "checkpoints").absolute()


def _manifest(path: Path) -> Path:
    """Return the file of digests that belongs to the step in the folder `path`."""
    return path.with_name(f"{path.name}.json")


def saved_steps(workdir: Path) -> list[int]:
    """Return the steps of a workdir's checkpoints, ascending."""
    folder = _folder(workdir)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if re.fullmatch(r"0|[1-9]\d*", name))


def _this_process() -> ocp.options.MultiprocessingOptions:
    """Return orbax's options for a process that reads and writes without the others."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(own, {own}, barrier_sync_key_prefix=f"process{own}")


# Writing


def best_first(steps: Iterable[int], scores: Mapping[int, float]) -> list[int]:
    """Return those of some steps that have a score, the highest first, later ones first on ties."""
    return sorted((step for step in steps if step in scores), key=lambda step: (-scores[step], -step))


@dataclass(frozen=True)
class NewestAndBest:
    """An orbax preservation policy: the `newest` steps and the `best` ones by score, later ones first on ties."""

    newest: int
    best: int
    scores: Mapping[int, float]  # by step; may change between saves, and lack steps

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Return a flag for each checkpoint, which come in ascending order of `.step`."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.newest :], *best_first(steps, self.scores)[: self.best]}
        return [step in kept for step in steps]


class Checkpoints:
    """Writer of a workdir's checkpoints, one at a time in the background; a context manager.

    Args:
        workdir: The folder whose `checkpoints` are written; created if missing.
        keep: Number of newest steps to keep.
        keep_best: Number of steps with the highest `scores` to keep as well.

    Attributes:
        scores: Score by step, higher is better; read at the next save.
    """

    def __init__(self, workdir: Path, *, keep: int = 2, keep_best: int = 0) -> None:
        self.scores: dict[int, float] = {}
        self._folder = _folder(workdir)
        self._last = max(saved_steps(workdir), default=None)
        self._pending: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=NewestAndBest(keep, keep_best, self.scores),
            cleanup_tmp_directories=True,  # left by a killed process
            create=False,
            lightweight_initialize=True,
            multiprocessing_options=_this_process(),
        )
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, step: int, **items: Any) -> None:
        """Start writing a checkpoint of named pytrees, after waiting for the previous one.

        Raises:
            InputError: This checkpoint or the previous one can't be written.
        """
        self.wait()
        with self._failure_named(step):
            _manifest(self._folder / str(step)).unlink(missing_ok=True)  # left by a step that was set aside
            if jax.process_count() > 1:  # orbax takes process-local arrays only as NumPy's
                items = jax.device_get(items)
            args = {name: ocp.args.StandardSave(item) for name, item in items.items()}
            self._manager.save(step, args=ocp.args.Composite(**args))
        self._pending = self._thread.submit(self._finish, step)

    def wait(self) -> None:
        """Wait until the last checkpoint is on disk. Raises InputError if it can't be written."""
        pending, self._pending = self._pending, None
        if pending:
            pending.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            with contextlib.suppress(Exception):  # repeats the error of the last save
                self._manager.close()

    def _finish(self, step: int) -> None:
        path = self._folder / str(step)
        with self._failure_named(step):
            self._manager.wait_until_finished()
            write_json(_manifest(path), _digests(path))
        self._last = step
        for manifest in self._folder.glob("*.json"):
            if not manifest.with_suffix("").exists():
                manifest.unlink()

    @contextlib.contextmanager
    def _failure_named(self, step: int) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise many kinds
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0].rsplit(": ", 1)[-1].split(" [")[0]
            earlier = "there is no earlier one" if self._last is None else f"step {self._last} is intact"
            raise InputError(f"{self._folder}/{step}: can't write this checkpoint: {reason}; {earlier}") from error


def remove_after(workdir: Path, step: int) -> None:
    """Remove the checkpoints of later steps."""
    for later in (s for s in saved_steps(workdir) if s > step):
        shutil.rmtree(path := _folder(workdir) / str(later))
        _manifest(path).unlink(missing_ok=True)


def save_model(workdir: Path, step: int, model: Any) -> None:
    """Write a checkpoint for detection: without an optimizer, so training can't resume from it."""
    with Checkpoints(workdir) as checkpoints:
        checkpoints.save(step, model=model)


# Digests


def _digests(path: Path, items: Collection[str] = (".",)) -> dict[str, str]:
    """Return the SHA-256 by name of the files of a step, or of some of its items."""
    digests = {}
    for file in sorted(file for item in items for file in (path / item).rglob("*") if file.is_file()):
        with open(file, "rb") as content:
            digests[file.relative_to(path).as_posix()] = hashlib.file_digest(content, "sha256").hexdigest()
    return digests


def _find_damage(path: Path, items: Collection[str]) -> str | None:
    """Describe the first difference between items of a step and its digests; without digests, what is no file."""
    for file in (file for item in items for file in (path / item).rglob("*")):
        if not (file.is_file() or file.is_dir()):
            return f"{file.relative_to(path)} is not a regular file"  # orbax would wait for the writer of a pipe
    if not _manifest(path).exists():
        return None
    try:
        digests = read_json(_manifest(path)).items()
        expected = {name: digest for name, digest in digests if name.split("/")[0] in items}
        if {name.split("/")[0] for name in expected} != {*items}:
            raise ValueError
    except (ValueError, AttributeError):
        return f"its digests in {_manifest(path).name} are unreadable"
    try:
        found = _digests(path, items)
    except OSError as error:
        return f"unreadable: {error}"
    for name, digest in expected.items():
        if name not in found:
            return f"{name} is missing"
        if found[name] != digest:
            return f"{name} has changed since it was written"
    return None


# Reading


class DamagedError(InputError):
    """A checkpoint differs from what was written."""


def _shapes(tree: Any) -> dict[str, Any]:
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape for path, leaf in leaves}


def _restore_step(path: Path, targets: Mapping[str, Any]) -> dict[str, Any]:
    if damage := _find_damage(path, targets):
        raise DamagedError(f"{path}: {damage}")
    try:
        with contextlib.closing(ocp.StandardCheckpointHandler(multiprocessing_options=_this_process())) as handler:
            for name, target in targets.items():
                stored, expected = _shapes(handler.metadata(path / name).tree), _shapes(target)
                if stored != expected:
                    array = min(dict(stored.items() ^ expected.items()))
                    shapes = f"{stored.get(array, 'absent')}, expected {expected.get(array, 'absent')}"
                    raise InputError(f"{path}: of another network or number of classes: {array} is {shapes}")
            args = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
            restored = {name: handler.restore(path / name, args=arg) for name, arg in args.items()}
    except InputError:
        raise
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        kind = InputError if _manifest(path).exists() else DamagedError
        raise kind(f"{path}: not a complete checkpoint of this network ({reason})") from None
    if not _manifest(path).exists() and not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(restored)):
        raise DamagedError(f"{path}: without digests, and with values that are not finite")
    return restored


def restore(workdir: Path, step: int | None = None, **targets: Any) -> tuple[dict[str, Any], int]:
    """Restore named pytrees from a workdir's checkpoint.

    Args:
        workdir: The folder that `Checkpoints` wrote to.
        step: The step to restore; None for the newest intact one. Damaged ones are reported on stderr.
        **targets: Pytrees of arrays or ShapeDtypeStructs, whose structure, shapes and sharding the result takes.

    Returns:
        The pytrees by name, and their step.

    Raises:
        InputError: There is no such checkpoint, it is damaged, or another network wrote it.
    """
    folder, steps = _folder(workdir), saved_steps(workdir)
    if not steps:
        raise InputError(f"{folder}: no checkpoint; train first: frcnn train --workdir {workdir}")
    if step is not None:
        if step not in steps:
            raise InputError(f"{folder}: no checkpoint of step {step}; available: {steps}")
        return _restore_step(folder / str(step), targets), step
    for newest in reversed(steps):
        try:
            return _restore_step(folder / str(newest), targets), newest
        except DamagedError as damage:
            print(f"{damage}; skipping this checkpoint", file=sys.stderr)
    raise InputError(f"{folder}: none of the checkpoints {steps} is intact")


def load_model(workdir: Path, model: Any, step: int | None = None) -> tuple[Any, int]:
    """Load the variables of a workdir's checkpoint onto the first local device.

    Args:
        workdir: The folder that `Checkpoints` wrote to.
        model: Pytree of arrays or ShapeDtypeStructs that the variables must match.
        step: The step to load; None for the newest intact one.

    Returns:
        The variables, and their step.

    Raises:
        InputError: As in `restore`.
    """
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), model)
    restored, step = restore(workdir, step, model=placed)
    return restored["model"], step


def resume_from(workdir: Path, step: int) -> None:
    """Prepare a workdir for resuming training from `step`.

    Later (damaged) steps are renamed to `<step>.damaged`, so that they can be saved again; digests of `step` are
    written if it has none.
    """
    for newer in (s for s in saved_steps(workdir) if s > step):
        path = _folder(workdir) / str(newer)
        aside = path.with_name(f"{newer}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        _manifest(path).unlink(missing_ok=True)
        print(f"{path}: renamed to {aside.name}", file=sys.stderr)
    path = _folder(workdir) / str(step)
    if not _manifest(path).exists():
        write_json(_manifest(path), _digests(path))
