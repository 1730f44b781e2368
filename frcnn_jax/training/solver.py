"""Learning rates by step, and stochastic gradient descent with momentum by Caffe's rule (section 2.3), or AdamW.

    V = momentum * V + rate * multiplier * (g + decay * w),    w = w - V

The rate is inside the momentum buffer: `optax.sgd`, which applies it outside, differs after each change of rate.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from frcnn_jax.errors import InputError
from frcnn_jax.models.parameters import flatten, matches, unflatten

BIAS_RATE = 2.0  # the multiplier of biases


class Recipe(NamedTuple):
    """A learning rate and the steps for which it holds."""

    learning_rate: float
    steps: int
    drops: tuple[int, ...]
    warmup_steps: int

    def for_batch(self, images: int, reference: int) -> "Recipe":
        """Return the recipe scaled from `reference` to `images` images per step (Goyal et al. 2017, linear scaling).

        The rate grows in proportion. Steps shrink in proportion, rounded up: as many images are seen as before.
        """
        steps, *drops, warmup = (-(-n * reference // images) for n in (self.steps, *self.drops, self.warmup_steps))
        return Recipe(self.learning_rate * images / reference, steps, tuple(drops), warmup)


def step_schedule(
    learning_rate: float, drops: Sequence[int], *, factor: float = 0.1, warmup_steps: int = 0
) -> optax.Schedule:
    """Return a step-wise schedule with a linear warm-up.

    Args:
        learning_rate: The rate after the warm-up.
        drops: Steps at which the rate is multiplied by `factor`.
        factor: The multiplier at each drop.
        warmup_steps: Steps over which the rate rises linearly, from 1 / (warmup_steps + 1) of itself.

    Raises:
        InputError: A number is negative or not finite.
    """
    _check_not_negative(learning_rate=learning_rate, factor=factor, warmup_steps=warmup_steps)
    for step in drops:
        _check_not_negative(drops=step)
    steps = optax.piecewise_constant_schedule(learning_rate, {int(step): factor for step in drops})
    if not warmup_steps:
        return steps
    return lambda count: steps(count) * jnp.minimum((count + 1) / (warmup_steps + 1), 1)


def cosine_schedule(learning_rate: float, *, steps: int, warmup_steps: int = 0) -> optax.Schedule:
    """Return half a cosine from a rate to 0 (Loshchilov and Hutter 2017), with a linear warm-up as in `step_schedule`.

    Args:
        learning_rate: The rate at the start.
        steps: The step at which it is 0.
        warmup_steps: Steps over which the rate rises linearly.

    Raises:
        InputError: A number is negative or not finite, or `steps` is 0.
    """
    _check_not_negative(learning_rate=learning_rate, steps=steps, warmup_steps=warmup_steps)
    if not steps:
        raise InputError(f"steps must be over 0, got {steps}")
    cosine = optax.cosine_decay_schedule(learning_rate, steps)
    return lambda count: cosine(count) * jnp.minimum((count + 1) / (warmup_steps + 1), 1)


def _check_not_negative(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 <= value < math.inf:
            raise InputError(f"{name} must be finite and at least 0, got {value}")


def caffe_sgd(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    decay_biases: bool = False,
    multipliers: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Return the update above, in which biases learn at twice the rate.

    Args:
        schedule: The learning rate by step.
        momentum: As in the formula, in [0, 1].
        weight_decay: As in the formula, at least 0.
        decay_biases: Whether biases, the parameters with a part "bias" in their path, decay as well: yes in the paper,
            no in its code.
        multipliers: Factors of the rate, at least 0, by pattern (`models.parameters`). A parameter takes that of the
            first pattern that matches it.

    Raises:
        InputError: `momentum` is outside [0, 1], or `weight_decay` or a multiplier is negative.
    """
    multipliers = dict(multipliers or {})
    _check_not_negative(momentum=momentum, weight_decay=weight_decay, **multipliers)
    if momentum > 1:
        raise InputError(f"momentum must be at most 1, got {momentum}")

    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=None if decay_biases else _is_weight),
        optax.masked(optax.scale(BIAS_RATE), _is_bias),
        *_multiplied(multipliers),
        optax.scale_by_learning_rate(schedule),
        optax.trace(decay=momentum),
    )


def adamw(
    schedule: optax.Schedule,
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.01,
    decay_biases: bool = False,
    multipliers: Mapping[str, float] | None = None,
) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov and Hutter 2019), whose decay is `rate * multiplier * weight_decay * w` per step.

    Args:
        schedule: The learning rate by step.
        momentum: Beta 1, in [0, 1).
        weight_decay: At least 0.
        decay_biases: Whether biases decay as well.
        multipliers: As in `caffe_sgd`.

    Raises:
        InputError: As in `caffe_sgd`.
    """
    multipliers = dict(multipliers or {})
    _check_not_negative(momentum=momentum, weight_decay=weight_decay, **multipliers)
    if momentum >= 1:
        raise InputError(f"momentum must be below 1, got {momentum}")
    return optax.chain(
        optax.scale_by_adam(momentum),
        optax.add_decayed_weights(weight_decay, mask=None if decay_biases else _is_weight),
        *_multiplied(multipliers),
        optax.scale_by_learning_rate(schedule),
    )


def _is_bias(params):
    return jax.tree_util.tree_map_with_path(lambda path, _: any(key.key == "bias" for key in path), params)


def _is_weight(params):
    return jax.tree.map(operator.not_, _is_bias(params))


def _multiplied(multipliers: Mapping[str, float]) -> list[optax.GradientTransformation]:
    """Return what multiplies each update by the factor of the first pattern that matches its parameter."""

    def multiplied(updates, _):
        leaves = flatten(updates)
        for path, leaf in leaves.items():
            factor = next((factor for pattern, factor in multipliers.items() if matches(path, [pattern])), 1.0)
            leaves[path] = leaf * factor if factor != 1 else leaf
        return {part: {} for part in updates} | unflatten(leaves)

    return [optax.stateless(multiplied)] if multipliers else []
