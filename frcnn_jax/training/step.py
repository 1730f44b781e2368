"""One step of training: the state, the multi-task loss and the optimizer's update, mapped over devices by `jax.pmap`.

Shape letters: B images over all devices, D devices, R RoIs, K foreground classes.
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
from frcnn_jax.training import losses

AXIS = "device"


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes, and the frozen layers and box statistics that it reads."""

    step: jax.Array  # () int32
    params: Any  # those that are trained
    frozen: Any  # the layers that are not
    box_stats: Any  # "mean" and "std", (K + 1, 4)
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """As `FastRCNN.apply` takes them."""
        return {"params": _join(self.params, self.frozen), "box_stats": self.box_stats}


def _join(params: Mapping, frozen: Mapping) -> dict:
    return {part: {**params[part], **frozen[part]} for part in params}


def create_state(
    variables: Mapping[str, Any], frozen_layers: Sequence[str], optimizer: optax.GradientTransformation
) -> TrainState:
    """The state at step 0; frozen layers get no gradient and no momentum."""
    trained, frozen = (
        {
            part: {name: layer for name, layer in layers.items() if (name in frozen_layers) == is_frozen}
            for part, layers in variables["params"].items()
        }
        for is_frozen in (False, True)
    )
    return TrainState(jnp.zeros((), jnp.int32), trained, frozen, variables["box_stats"], optimizer.init(trained))


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
    """One step of stochastic gradient descent on the multi-task loss (equation 1); pure, mapped over `axis_name`.

    The losses are sums over the device's RoIs over the mean number of RoIs a device, and gradients are averaged over
    devices: any spread of the same images gives the same update. Dropout keys follow the image's index in the run.

    Args:
        state: the same on every device.
        batch: the device's part of `pipeline.TrainingBatches`.
        key: the run's.
        box_loss_weight: lambda of equation 1.
        accumulate: the device's images go through the network in this many parts, one after another; the gradients are
            summed.
    """
    rois = _mean_over_devices(batch["roi_mask"].sum().astype(jnp.float32), axis_name)
    rois = jnp.maximum(rois, 1 / 64)  # no RoI at all: losses of 0

    def loss_fn(params, part):
        variables = {"params": _join(params, state.frozen), "box_stats": state.box_stats}
        dropout_keys = jax.vmap(partial(jax.random.fold_in, key))(part["index"])
        logits, deltas = model.apply(variables, part["image"], part["image_size"], part["rois"], dropout_keys)
        mask, labels = part["roi_mask"], part["labels"]
        loss_cls = jnp.where(mask, optax.softmax_cross_entropy_with_integer_labels(logits, labels), 0).sum() / rois
        loss_box = jnp.where(mask, losses.box_loss(deltas, part["box_targets"], labels), 0).sum() / rois
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
    metrics["gradient_norm"] = optax.global_norm(gradients)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def _mean_over_devices(tree: Any, axis_name: str) -> Any:
    """`lax.pmean`; nothing for a single device, where XLA on CPU would still copy every gradient."""
    return tree if lax.axis_size(axis_name) == 1 else lax.pmean(tree, axis_name)


def make_train_step(
    model: FastRCNN,
    optimizer: optax.GradientTransformation,
    *,
    devices: Sequence[jax.Device] | None = None,
    **options: Any,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """`train_step`, with its options, mapped by `jax.pmap` over `devices`, all local ones by default. It takes a batch
    of all B images; the state, alike on all devices and without a device axis, is donated."""
    step = partial(train_step, model=model, optimizer=optimizer, **options)
    mapped = jax.pmap(step, axis_name=AXIS, in_axes=(None, 0, None), out_axes=None, donate_argnums=0, devices=devices)
    count = len(devices) if devices else jax.local_device_count()

    def spread(value):
        return value.reshape(count, -1, *value.shape[1:])

    return lambda state, batch, key: mapped(state, jax.tree.map(spread, batch), key)


def replicate(tree: Any, devices: Sequence[jax.Device] | None = None) -> Any:
    """`tree` on all those devices, placed as the mapped step gives it back, so that step is compiled only once."""
    mesh = jax.sharding.Mesh(np.array(devices or jax.local_devices()), (AXIS,))
    return jax.device_put(tree, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
