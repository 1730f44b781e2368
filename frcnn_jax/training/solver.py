"""Stochastic gradient descent as Caffe does it (paper, section 2.3).

    V = momentum * V + rate * multiplier * (g + decay * w),    w = w - V

The rate is inside the buffer: a chain that scales after the momentum trace differs at every change of rate.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

BIAS_RATE = 2.0  # biases learn at twice the rate


class Recipe(NamedTuple):
    """A learning rate and the steps it is trained for."""

    learning_rate: float
    steps: int
    drops: tuple[int, ...]
    warmup_steps: int

    def for_batch(self, images: int, reference: int) -> "Recipe":
        """The recipe, meant for `reference` images a step, for `images` a step: the rate in proportion, the steps in
        inverse proportion, rounded up, so that as many images are seen (linear scaling: Goyal et al. 2017)."""
        steps, *drops, warmup = (-(-n * reference // images) for n in (self.steps, *self.drops, self.warmup_steps))
        return Recipe(self.learning_rate * images / reference, steps, tuple(drops), warmup)


def step_schedule(
    learning_rate: float, drops: Sequence[int], *, factor: float = 0.1, warmup_steps: int = 0
) -> optax.Schedule:
    """`learning_rate`, times `factor` from each step in `drops` on; before that it rises linearly over `warmup_steps`,
    of which the first has 1 / (warmup_steps + 1) of it."""
    steps = optax.piecewise_constant_schedule(learning_rate, {int(step): factor for step in drops})
    if not warmup_steps:
        return steps
    return lambda count: steps(count) * jnp.minimum((count + 1) / (warmup_steps + 1), 1)


def caffe_sgd(
    schedule: optax.Schedule, *, momentum: float = 0.9, weight_decay: float = 5e-4, decay_biases: bool = False
) -> optax.GradientTransformation:
    """The update above, for parameters whose biases are the leaves named "bias"; these decay only where told to (the
    paper says they do, its code does not)."""

    def is_weight(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key != "bias", params)

    def is_bias(params):
        return jax.tree.map(lambda weight: not weight, is_weight(params))

    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=None if decay_biases else is_weight),
        optax.masked(optax.scale(BIAS_RATE), is_bias),
        optax.scale_by_learning_rate(schedule),
        optax.trace(decay=momentum),
    )
