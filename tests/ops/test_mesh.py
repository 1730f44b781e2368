"""RoI ops on a mesh of four devices, automatic and explicit: equal results without communication."""

import subprocess
import sys

import pytest
from examples import ROOT

PROGRAM = """
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

from frcnn_jax import ops

op, kind, letter = sys.argv[1:]
rng = np.random.default_rng(0)
centre, side = rng.uniform(0, 300, (8, 9, 2)), rng.uniform(5, 200, (8, 9, 2))
rois = np.concatenate([centre - side / 2, centre + side / 2], axis=-1).astype(np.float32)
features = rng.normal(size=(8, 20, 30, 16)).astype(np.float32)
weights = rng.normal(size=(8, 9, 7, 7, 16)).astype(np.float32)

def pyramid(features, rois):
    return ops.multiscale_roi_align([features, features[:, ::2, ::2]], rois, strides=(8, 16))

forward = {"roi_pool": ops.roi_pool, "roi_align": ops.roi_align, "multiscale_roi_align": pyramid}[op]

def results(features, rois, weights):
    pooled, pullback = jax.vjp(lambda features: forward(features, rois), features)
    return pooled, pullback(weights)[0]

def to_boxes(features, rois, weights):
    return jax.grad(lambda rois: (ops.roi_align(features, rois, differentiable_boxes=True) * weights).sum())(rois)

def shared(features, rois, weights):
    return jax.grad(lambda factor: (forward(factor * features, rois) * weights).sum())(jnp.float32(1))

def collectives(text):
    names = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
    return {name: n for name in names if (n := text.count(name + "(") + text.count(name + "-start("))}

def check(found, expected, exact):
    for part, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if exact:
            np.testing.assert_array_equal(part, wanted)
        else:
            np.testing.assert_allclose(part, wanted, rtol=1e-4, atol=1e-5)

cases = [(results, {}, True), (shared, {"all-reduce": 1}, False)]
if op == "roi_align" and letter == "b":
    cases.append((to_boxes, {}, False))
expected = [jax.device_get(jax.jit(function)(features, rois, weights)) for function, *_ in cases]
split = {"b": (P("d"), P("d"), P("d")), "c": (P(None, None, None, "d"), P(), P(None, None, None, None, "d"))}[letter]
mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType[kind],))
with jax.set_mesh(mesh):
    args = [jax.device_put(x, NamedSharding(mesh, s)) for x, s in zip((features, rois, weights), split)]
    for (function, allowed, exact), wanted in zip(cases, expected, strict=True):
        compiled = jax.jit(function).lower(*args).compile()
        assert collectives(compiled.as_text()) == allowed, (function, collectives(compiled.as_text()))
        check(compiled(*args), wanted, exact)
    pooled, gradient = jax.jit(results)(*args)
    at = {"b": (0, 0), "c": (4, 3)}[letter]
    assert (pooled.sharding.spec[at[0]], gradient.sharding.spec[at[1]]) == ("d", "d")

def refuses(text, call, *args):
    try:
        call(*args)
    except ValueError as error:
        assert text in str(error), error
    else:
        raise AssertionError(f"no error: {text}")

if kind == "Explicit" and op != "multiscale_roi_align":
    flat = {"roi_pool": ops.roi_pool_flat, "roi_align": ops.roi_align_flat}[op]
    with jax.set_mesh(mesh):
        refuses("needs maps that are not sharded", flat, args[0], jnp.zeros((3, 4)), jnp.zeros(3, int))
        rows = jax.device_put(features, NamedSharding(mesh, P(None, "d")))
        refuses("may be sharded along b and r and c only", jax.jit(forward), rows, rois)
"""


@pytest.mark.slow
@pytest.mark.parametrize("letter", ["b", "c"])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
@pytest.mark.parametrize("op", ["roi_pool", "roi_align", "multiscale_roi_align"])
def test_partitions_without_communication(op, kind, letter, monkeypatch):
    for name, value in (("JAX_NUM_CPU_DEVICES", "4"), ("JAX_PLATFORMS", "cpu"), ("PYTHONPATH", str(ROOT))):
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", PROGRAM, op, kind, letter], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
