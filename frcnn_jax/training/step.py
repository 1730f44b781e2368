"""One training step: the state, the multi-task loss and the optimizer's update, mapped over devices by `jax.pmap`.

Shape letters: B images over all devices, R RoIs, K foreground classes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from frcnn_jax.data.batches import Batch
from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.models.parameters import merge, split
from frcnn_jax.training.losses import box_loss

AXIS = "device"
FIELDS = ("image", "image_size", "rois", "roi_mask", "labels", "box_targets", "index")  # read from a batch


class TrainState(flax.struct.PyTreeNode):
    """What a step updates, and the frozen parameters and other collections that it reads."""

    step: jax.Array  # () int32
    params: Any  # the trained ones
    frozen: Any  # the other parameters
    constants: Any  # the other collections: "box_stats" and any of the backbone's own
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """The collections that `FastRCNN.apply` takes."""
        return {"params": merge(self.params, self.frozen), **self.constants}


def create_state(
    variables: Mapping[str, Any],
    optimizer: optax.GradientTransformation,
    *,
    frozen: Sequence[str] = (),
    step: int = 0,
    opt_state: Any = None,
) -> TrainState:
    """Return the state at a step.

    Args:
        variables: Variables of a `FastRCNN`.
        optimizer: The optimizer whose state it holds.
        frozen: Patterns of the parameters that get no gradient and no momentum; see `models.parameters`.
        step: Steps taken so far.
        opt_state: The optimizer's state; a fresh one if None.

    Raises:
        InputError: A pattern matches no parameter of `variables`; the message lists the layers.
    """
    constants = dict(variables)
    trained, fixed = split(constants.pop("params"), frozen)
    opt_state = optimizer.init(trained) if opt_state is None else opt_state
    return TrainState(jnp.int32(step), trained, fixed, constants, opt_state)


def train_step(
    state: TrainState,
    batch: Mapping[str, jax.Array],
    key: jax.Array,
    *,
    model: FastRCNN,
    optimizer: optax.GradientTransformation,
    box_loss_weight: float = 1.0,
    accumulate: int = 1,
    axis_name: str = AXIS,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Take one step of stochastic gradient descent on the multi-task loss (equation 1).

    A pure function to be mapped over `axis_name`, by `jax.pmap` or `jax.shard_map`. Losses are sums over the device's
    RoIs divided by the mean number of RoIs per device, and gradients are averaged over devices: any distribution of the
    same images gives the same update.

    Args:
        state: The state, the same on every device.
        batch: The device's share of a batch of `TrainingBatches`.
        key: The run's dropout key, folded with each image's "index".
        model: The network.
        optimizer: As in `create_state`.
        box_loss_weight: Lambda of equation 1.
        accumulate: Number of parts into which the device's images are split, and whose gradients are summed.
        axis_name: The mapped axis.

    Returns:
        The next state and the metrics "loss", "loss_cls", "loss_box", "foreground" (fraction of RoIs) and
        "gradient_norm".

    Raises:
        InputError: The batch lacks a field, has one of the wrong shape, or can't be split into `accumulate` parts.
    """
    _check_batch(batch, accumulate)
    rois = _mean_over_devices(batch["roi_mask"].sum().astype(jnp.float32), axis_name)
    rois = jnp.maximum(rois, 1 / 64)  # losses are 0 without any RoI

    def loss_fn(params, part):
        variables = {"params": merge(params, state.frozen), **state.constants}
        inputs = (part["image"], part["image_size"], part["rois"])
        logits, deltas = model.apply(variables, *inputs, True, part["index"], rngs={"dropout": key})
        mask, labels = part["roi_mask"], part["labels"]
        classes = jax.nn.one_hot(labels, logits.shape[-1])
        loss_cls = jnp.where(mask, optax.softmax_cross_entropy(logits, classes), 0).sum() / rois
        loss_box = jnp.where(mask, box_loss(deltas, part["box_targets"], labels), 0).sum() / rois
        loss = loss_cls + box_loss_weight * loss_box
        foreground = (mask & (labels > 0)).sum() / rois
        return loss, {"loss": loss, "loss_cls": loss_cls, "loss_box": loss_box, "foreground": foreground}

    def part_of_step(part):
        return jax.grad(loss_fn, has_aux=True)(state.params, part)

    if accumulate == 1:
        found = part_of_step(batch)
    else:
        parts = jax.tree.map(lambda value: value.reshape(accumulate, -1, *value.shape[1:]), dict(batch))
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(part_of_step, batch))
        found, _ = lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, part_of_step(part)), None), zeros, parts)
    gradients, metrics = _mean_over_devices(found, axis_name)
    metrics["gradient_norm"] = optax.tree.norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def _check_batch(batch: Mapping[str, jax.Array], parts: int) -> None:
    if missing := [name for name in FIELDS if name not in batch]:
        raise InputError(f"the batch lacks {', '.join(missing)}")
    images = len(batch["image"])
    lead = (images, *batch["rois"].shape[-2:-1])
    shapes = ((images, 2), (*lead, 4), lead, lead, (*lead, 4), (images,))
    for name, expected in zip(FIELDS[1:], shapes, strict=True):
        if batch[name].shape != expected:
            raise InputError(f"the batch's {name} must be {expected}, got {batch[name].shape}")
    if parts < 1 or images % parts:
        raise InputError(f"accumulate must divide a device's {images} images, got {parts}")


def _mean_over_devices(tree: Any, axis_name: str) -> Any:
    """Apply `lax.pmean`, skipped for a single device, where XLA on CPU would still copy every gradient."""
    return tree if lax.axis_size(axis_name) == 1 else lax.pmean(tree, axis_name)


def make_train_step(
    model: FastRCNN,
    optimizer: optax.GradientTransformation,
    *,
    box_loss_weight: float = 1.0,
    accumulate: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Return `train_step` mapped over devices by `jax.pmap`.

    The returned function takes a batch of all B images. The state, the same on all devices and without a device axis,
    is donated.

    Args:
        model: The network.
        optimizer: As in `create_state`.
        box_loss_weight: As in `train_step`.
        accumulate: As in `train_step`.
        devices: Devices to map over; all local ones if None.

    Raises:
        InputError: Raised by the returned function: the batch can't be split over the devices, or as in `train_step`.
    """
    step = partial(train_step, model=model, optimizer=optimizer, box_loss_weight=box_loss_weight, accumulate=accumulate)
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0, devices=devices)
    count = len(devices) if devices else jax.local_device_count()

    def step_fn(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
        if len(batch["image"]) % count:
            raise InputError(f"a batch must be a multiple of {count} images, one or more per device")
        return mapped(state, jax.tree.map(lambda value: value.reshape(count, -1, *value.shape[1:]), batch), key)

    return step_fn


def replicate(tree: Any, *, devices: Sequence[jax.Device] | None = None) -> Any:
    """Place a tree on devices (all local ones if None) as the mapped step returns it, which then compiles only once."""
    mesh = jax.sharding.Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
