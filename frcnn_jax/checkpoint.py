"""Checkpoints, through orbax: W/checkpoints/<step>/{model,optimizer}, written whole or not at all."""

import logging
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from frcnn_jax.errors import InputError

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports each save at length


def open_checkpoints(workdir: Path, *, keep: int = 2) -> ocp.CheckpointManager:
    """The checkpoints of a workdir; the newest `keep` are kept. Use `with`: leaving it ends what is being written."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    return ocp.CheckpointManager((Path(workdir) / "checkpoints").absolute(), options=options)


def save(checkpoints: ocp.CheckpointManager, step: int, model: Any, optimizer: Any) -> None:
    """Begins to write a checkpoint; a former one that is still being written is waited for."""
    items = ocp.args.Composite(model=ocp.args.StandardSave(model), optimizer=ocp.args.StandardSave(optimizer))
    checkpoints.save(step, args=items)


def save_model(workdir: Path, step: int, model: Any) -> None:
    """A checkpoint to detect with, not to train on from: no optimizer in it."""
    with open_checkpoints(workdir) as checkpoints:
        checkpoints.save(step, args=ocp.args.Composite(model=ocp.args.StandardSave(model)))


def restore(checkpoints: ocp.CheckpointManager, step: int, model: Any, optimizer: Any) -> tuple[Any, Any]:
    """The model's and the optimizer's pytrees of a step, shaped and placed like those given."""
    items = ocp.args.Composite(model=ocp.args.StandardRestore(model), optimizer=ocp.args.StandardRestore(optimizer))
    restored = checkpoints.restore(step, args=items)
    return restored.model, restored.optimizer


def load_model(workdir: Path, model: Any, step: int | None = None) -> tuple[Any, int]:
    """The model of a workdir's newest checkpoint, or of `step`, shaped like `model` (arrays or ShapeDtypeStructs).

    Raises:
        InputError: there is no such checkpoint.
    """
    folder = Path(workdir) / "checkpoints"
    if not folder.is_dir():
        raise InputError(f"{workdir}: no checkpoints here; train first: python -m frcnn_jax.train --workdir {workdir}")
    with ocp.CheckpointManager(folder.absolute(), options=ocp.CheckpointManagerOptions(read_only=True)) as checkpoints:
        steps = sorted(checkpoints.all_steps())
        if not steps:
            raise InputError(f"{folder}: no checkpoint yet; train first")
        step = steps[-1] if step is None else step
        if step not in steps:
            raise InputError(f"{folder}: no checkpoint of step {step}; there are {steps}")
        placed = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
            ),
            model,
        )
        items = ocp.args.Composite(model=ocp.args.StandardRestore(placed))
        try:
            return checkpoints.restore(step, args=items).model, step
        except (ValueError, KeyError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{folder}/{step}: not a whole checkpoint of this network ({reason})") from None
