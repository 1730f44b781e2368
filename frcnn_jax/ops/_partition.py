"""Functions that the devices of a mesh compute each for its own part of a batch, without communication."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec


def partitioned(function: Callable[..., Any], rule: str, splittable: str, gathered: str = "") -> Callable[..., Any]:
    """Return a function whose parts along some axes depend on the same parts of its arguments alone.

    Under `jax.jit` it is partitioned along these axes: as the compiler decides on automatic meshes, as the arguments
    are on explicit ones. `vmap` merges the mapped axis into the first one. It has no derivative.

    Args:
        function: Takes and returns arrays. It must not close over arrays.
        rule: A letter for each axis, as "b h w c, b r k -> b r i j c".
        splittable: Letters of the axes along which it may be partitioned.
        gathered: Letters of axes along which arguments may be sharded, but are gathered.
    """
    takes, gives = ([axes.split() for axes in side.split(",")] for side in rule.split("->"))
    letters = dict.fromkeys(letter for axes in (*takes, *gives) for letter in axes)

    def specs(split: dict[str, Any], arrays: list[list[str]]) -> tuple[PartitionSpec, ...]:
        return tuple(PartitionSpec(*(split.get(letter) for letter in axes)) for axes in arrays)

    def partition(mesh: Any, _: Any, result: Any) -> tuple[Any, ...]:
        shardings = jax.tree.map(lambda of: of.sharding, result)
        split: dict[str, Any] = {}
        for axes, sharding in zip(gives, jax.tree.leaves(shardings), strict=True):
            split |= {letter: axis for letter, axis in zip(axes, sharding.spec, strict=False) if axis is not None}
        return mesh, function, shardings, tuple(NamedSharding(mesh, spec) for spec in specs(split, takes))

    automatic = custom_partitioning(function)
    whole = tuple(letter for letter in letters if letter not in splittable)
    automatic.def_partition(partition=partition, sharding_rule=rule, need_replication_factors=whole)

    def explicit_split(types: list[Any]) -> dict[str, Any]:
        """Return the mesh axes of letters by the arguments' types; none on automatic meshes."""
        split: dict[str, Any] = {}
        for axes, of in zip(takes, types, strict=True):
            for letter, axis in zip(axes, of.sharding.spec, strict=False):
                if axis is None or letter in gathered:
                    continue
                if letter in whole or split.setdefault(letter, axis) != axis:
                    expected, got = ", ".join(" ".join(axes) for axes in takes), ", ".join(map(str, types))
                    allowed = " and ".join(splittable)
                    raise ValueError(f"arguments ({expected}) may be sharded along {allowed} only, alike; got {got}")
        return split

    @jax.custom_batching.custom_vmap
    def over_mesh(*args: jax.Array) -> Any:
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return function(*args)
        types = [jax.typeof(arg) for arg in args]
        split = explicit_split(types)
        if not any(axis is not None for of in types for axis in of.sharding.spec):
            return automatic(*args)
        in_specs, out_specs = specs(split, takes), specs(split, gives)
        args = tuple(jax.sharding.reshard(arg, spec) for arg, spec in zip(args, in_specs, strict=True))
        single = out_specs[0] if len(gives) == 1 else out_specs
        return jax.shard_map(function, mesh=types[0].sharding.mesh, in_specs=in_specs, out_specs=single)(*args)

    @over_mesh.def_vmap
    def merged(size: int, is_mapped: list[bool], *args: jax.Array) -> tuple[Any, Any]:
        stacked = (
            arg if mapped else jax.numpy.broadcast_to(arg, (size, *arg.shape))
            for arg, mapped in zip(args, is_mapped, strict=True)
        )
        out = over_mesh(*(arg.reshape(-1, *arg.shape[2:]) for arg in stacked))
        out = jax.tree.map(lambda part: part.reshape(size, -1, *part.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return over_mesh
