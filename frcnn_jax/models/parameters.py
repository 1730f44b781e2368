"""Parameters by their path, such as "backbone/layer2/0/conv1/kernel", and patterns of paths.

A pattern names one part of a path, or several in a row joined by "/"; `*` stands for any characters. "conv1" matches
"backbone/conv1/kernel" but not "backbone/conv1_2/kernel"; "backbone", "layer[12]" and "head/fc*" match whole groups.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax

from frcnn_jax.errors import InputError


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves of nested dicts by their path."""
    return flax.traverse_util.flatten_dict(params, sep="/")


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested dicts: the inverse of `flatten`."""
    return flax.traverse_util.unflatten_dict(dict(leaves), sep="/")


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether any of the patterns matches a path."""
    return any(fnmatchcase(f"/{path}/", f"*/{pattern}/*") for pattern in patterns)


def split(params: Mapping[str, Any], patterns: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters that no pattern matches, and the others, each with all top-level names of `params`.

    Raises:
        InputError: A pattern matches no parameter; the message lists the layers.
    """
    leaves = flatten(params)
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in leaves):
            raise InputError(f"no parameters match {pattern!r}; the layers are {', '.join(layer_names(leaves))}")
    parts: dict[str, Any] = {part: {} for part in params}
    rest, matching = (
        parts | unflatten({path: leaf for path, leaf in leaves.items() if matches(path, patterns) == wanted})
        for wanted in (False, True)
    )
    return rest, matching


def merge(params: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of both: the inverse of `split`."""
    return unflatten({**flatten(params), **flatten(others)})


def paths_before(model: nn.Module, inputs: Sequence[Any], name: str) -> tuple[str, ...]:
    """Return the paths of the parameters that a model uses before those that match a name.

    Args:
        model: The model, which is not run: only the shapes are traced.
        inputs: Its inputs, or their shapes and dtypes.
        name: A pattern.

    Raises:
        InputError: No parameters match; the message lists the layers.
    """
    made: list[str] = []

    def init(*inputs: Any) -> None:
        made.extend(flatten(model.init(jax.random.key(0), *inputs)["params"]))  # in the order of their use

    jax.eval_shape(init, *inputs)
    first = next((i for i, path in enumerate(made) if matches(path, [name])), None)
    if first is None:
        raise InputError(f"train_from must be one of {', '.join(layer_names(made))}, got {name!r}")
    return tuple(made[:first])


def layer_names(paths: Iterable[str]) -> list[str]:
    """Return the second parts of paths, and patterns of one part, each once."""
    return list(dict.fromkeys(path.split("/")[1 if "/" in path else 0] for path in paths))
