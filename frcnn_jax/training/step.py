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
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.training.losses import box_loss

AXIS = "device"


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes, and the frozen layers and box statistics that it reads."""

    step: jax.Array  # () int32
    params: Any  # the trained layers
    frozen: Any  # the other layers
    box_stats: Any  # "mean" and "std", (K + 1, 4)
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """The collections that `FastRCNN.apply` takes."""
        return {"params": _join(self.params, self.frozen), "box_stats": self.box_stats}


def _join(params: Mapping, frozen: Mapping) -> dict:
    return {part: {**params[part], **frozen[part]} for part in params}


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
        variables: Of a `FastRCNN`.
        optimizer: Whose state it holds.
        frozen: Names of layers that get no gradient and no momentum.
        step: Steps taken so far.
        opt_state: The optimizer's state; a fresh one where None.
    """
    trained, fixed = (
        {
            part: {name: layer for name, layer in layers.items() if (name in frozen) == is_frozen}
            for part, layers in variables["params"].items()
        }
        for is_frozen in (False, True)
    )
    opt_state = optimizer.init(trained) if opt_state is None else opt_state
    return TrainState(jnp.int32(step), trained, fixed, variables["box_stats"], opt_state)


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
        state: The same on every device.
        batch: The device's part of a batch of `TrainingBatches`.
        key: The run's; dropout folds it with each image's "index".
        model: The network.
        optimizer: As in `create_state`.
        box_loss_weight: Lambda of equation 1.
        accumulate: The device's images go through the network in this many parts, whose gradients are summed.
        axis_name: The mapped axis.

    Returns:
        The next state and the metrics "loss", "loss_cls", "loss_box", "foreground" (fraction of RoIs) and
        "gradient_norm".
    """
    rois = _mean_over_devices(batch["roi_mask"].sum().astype(jnp.float32), axis_name)
    rois = jnp.maximum(rois, 1 / 64)  # no RoI at all: losses of 0

    def loss_fn(params, part):
        variables = {"params": _join(params, state.frozen), "box_stats": state.box_stats}
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


def _mean_over_devices(tree: Any, axis_name: str) -> Any:
    """`lax.pmean`, skipped for a single device, where XLA on CPU would still copy every gradient."""
    return tree if lax.axis_size(axis_name) == 1 else lax.pmean(tree, axis_name)


def make_train_step(
    model: FastRCNN,
    optimizer: optax.GradientTransformation,
    *,
    devices: Sequence[jax.Device] | None = None,
    **options: Any,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Return `train_step` mapped over devices by `jax.pmap`.

    The returned function takes a batch of all B images; the state, alike on all devices and without a device axis, is
    donated.

    Args:
        model: The network.
        optimizer: As in `create_state`.
        devices: All local ones where None.
        **options: `box_loss_weight` and `accumulate` of `train_step`.
    """
    step = partial(train_step, model=model, optimizer=optimizer, **options)
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0, devices=devices)
    count = len(devices) if devices else jax.local_device_count()

    def spread(value):
        return value.reshape(count, -1, *value.shape[1:])

    return lambda state, batch, key: mapped(state, jax.tree.map(spread, batch), key)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """Place a tree on all devices, local ones where None, as the mapped step returns it: it compiles only once."""
    mesh = jax.sharding.Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
