"""Parameters by their path, such as "backbone/layer2/0/conv1/kernel", and patterns of paths.

A pattern names one part of a path, or several in a row joined by "/"; `*` stands for any characters. "conv1" matches
"backbone/conv1/kernel" but not "backbone/conv1_2/kernel"; "backbone", "layer[12]" and "head/fc*" match whole groups.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, Literal

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
    check_patterns(leaves, patterns)
    parts: dict[str, Any] = {part: {} for part in params}
    rest, matching = (
        parts | unflatten({path: leaf for path, leaf in leaves.items() if matches(path, patterns) == wanted})
        for wanted in (False, True)
    )
    return rest, matching


def merge(params: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of both: the inverse of `split`."""
    return unflatten({**flatten(params), **flatten(others)})


def check_patterns(paths: Collection[str], patterns: Sequence[str]) -> None:
    """Raise InputError for the first pattern that matches none of the paths; the message lists the layers."""
    for pattern in patterns:
        if not any(matches(path, [pattern]) for path in paths):
            raise InputError(f"no parameters match {pattern!r}; the layers are {', '.join(layer_names(paths))}")


def paths_before(model: nn.Module, inputs: Sequence[Any], name: str) -> tuple[str, ...]:
    """Return the paths of the parameters that a model uses before those that match a name.

    Args:
        model: The model, which is not run: only the shapes are traced.
        inputs: Its inputs, or their shapes and dtypes.
        name: A pattern.

    Raises:
        InputError: No parameters match; the message lists the layers.
    """
    variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    leaves = flatten(variables["params"])

    def apply(leaves: Mapping[str, Any], *inputs: Any) -> Any:
        others = {name: tree for name, tree in variables.items() if name != "params"}
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), others)
        return model.apply({**zeros, "params": unflatten(leaves)}, *inputs)

    program = jax.make_jaxpr(apply)(leaves, *inputs).jaxpr
    names = {variable: [path] for variable, path in zip(program.invars, sorted(leaves), strict=False)}
    used = list(dict.fromkeys([*_uses(program, names), *leaves]))  # those that it does not use are last
    first = next((i for i, path in enumerate(used) if matches(path, [name])), None)
    if first is None:
        raise InputError(f"train_from must be one of {', '.join(layer_names(used))}, got {name!r}")
    return tuple(used[:first])


def _uses(program: Jaxpr, names: dict[Any, list[str]]) -> Iterator[str]:
    """Yield the names of a traced program's inputs, by variable, in the order in which it combines them with others.

    Variables made of named ones alone, such as one in another type, are added to the names.
    """
    for equation in program.eqns:
        given = [variable for variable in equation.invars if not isinstance(variable, Literal)]
        own = [name for variable in given for name in names.get(variable, ())]
        programs = (getattr(option, "jaxpr", option) for option in equation.params.values())
        inner = next((p for p in programs if len(getattr(p, "invars", ())) == len(equation.invars)), None)
        if own and inner:
            passed = {to: names.get(v, []) for to, v in zip(inner.invars, equation.invars, strict=True) if v in given}
            yield from _uses(inner, passed)
            made = zip(equation.outvars, inner.outvars, strict=True)
            names |= {out: passed[v] for out, v in made if not isinstance(v, Literal) and passed.get(v)}
        elif own and all(names.get(variable) for variable in given):
            names |= dict.fromkeys(equation.outvars, own)
        else:
            yield from own


def layer_names(paths: Iterable[str]) -> list[str]:
    """Return the second parts of paths, and patterns of one part, each once."""
    return list(dict.fromkeys(path.split("/")[1 if "/" in path else 0] for path in paths))
