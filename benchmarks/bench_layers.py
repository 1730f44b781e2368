"""Benchmark of layers with a custom derivative against XLA's own, forward and backward, in milliseconds:

    python benchmarks/bench_layers.py [--repeat 7]

The shapes are those of network S for two images of 600x800 pixels, of ResNet-50's for one and for the head of 64 RoIs,
and of EfficientNet-Lite0's depthwise convolutions for two of 480x640; PyTorch's of these are timed as well if it is
installed.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
from bench_inputs import cpu_name, single_call_medians
from jax import lax

from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.errors import run_main
from frcnn_jax.models.layers import (
    Conv,
    Norm,
    Padding,
    Pool,
    convolve,
    depthwise,
    local_response_norm,
    max_pool,
    output_size,
)


def xla_pool(x: jax.Array, layer: Pool) -> jax.Array:
    after = [
        (output_size(layer, side) - 1) * layer.stride + layer.kernel - side - layer.padding for side in x.shape[1:3]
    ]
    edges = ((0, 0), (layer.padding, after[0]), (layer.padding, after[1]), (0, 0))
    window, strides = (1, layer.kernel, layer.kernel, 1), (1, layer.stride, layer.stride, 1)
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, edges)


def xla_norm(x: jax.Array, layer: Norm) -> jax.Array:
    half = layer.size // 2
    padded = jnp.pad(jnp.square(x), ((0, 0), (0, 0), (0, 0), (half, half)))
    window = sum(padded[..., i : i + x.shape[-1]] for i in range(layer.size))
    return x * (layer.k + layer.alpha / layer.size * window) ** -layer.beta


def xla_convolution(x: jax.Array, kernel: jax.Array, layer: Conv) -> jax.Array:
    parts = zip(jnp.split(x, layer.groups, -1), jnp.split(kernel, layer.groups, -1), strict=True)
    edges, numbers = ((layer.padding, layer.padding),) * 2, ("NHWC", "HWIO", "NHWC")
    strides = (layer.stride, layer.stride)
    return jnp.concatenate(
        [lax.conv_general_dilated(p, k, strides, edges, dimension_numbers=numbers) for p, k in parts], -1
    )


def xla_depthwise(x: jax.Array, kernel: jax.Array, *, stride: int, padding: Padding) -> jax.Array:
    numbers, channels = ("NHWC", "HWIO", "NHWC"), x.shape[3]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=numbers, feature_group_count=channels
    )


def torch_depthwise(x: jax.Array, kernel: jax.Array, *, stride: int) -> Callable[[], object]:
    """Return a run of PyTorch's convolution and gradients, with channels last, its fastest layout."""
    import torch

    tensor = torch.from_numpy(np.array(x)).permute(0, 3, 1, 2).requires_grad_()
    weight = torch.from_numpy(np.array(kernel)).permute(3, 2, 0, 1).contiguous().requires_grad_()

    def run() -> object:
        out = torch.nn.functional.conv2d(tensor, weight, stride=stride, padding=len(kernel) // 2, groups=len(weight))
        return torch.autograd.grad(out, (tensor, weight), torch.ones_like(out))

    return run


def forward_and_backward(function: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
    """Return a jitted function of the gradients of all arguments, for an incoming gradient of ones."""

    def run(*args: jax.Array) -> tuple[jax.Array, ...]:
        out, pullback = jax.vjp(function, *args)
        return pullback(jnp.ones_like(out))

    compiled = jax.jit(run)
    return lambda *args: jax.block_until_ready(compiled(*args))


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--repeat", type=int, default=7)
    repeat = parser.parse_args(argv).repeat
    check_at_least(1, repeat=repeat)
    print(f"{os.cpu_count()} cores of {cpu_name()}; jax {jax.__version__}")
    rng = np.random.default_rng(0)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(np.maximum(rng.normal(0, 1, shape), 0), jnp.float32)

    pool, norm = Pool(3, 2, 1), Norm(1e-4, 1.0)
    conv3, conv4 = Conv("conv3", 384, 3, padding=1), Conv("conv4", 384, 3, padding=1, groups=2)
    before, after = array(2, 76, 101, 256), array(2, 38, 51, 256)
    cases: dict[str, tuple[Callable[..., jax.Array], Callable[..., jax.Array], tuple[jax.Array, ...]]] = {
        "max pool 2": (lambda x: max_pool(x, pool), lambda x: xla_pool(x, pool), (before,)),
        "norm 2": (lambda x: local_response_norm(x, norm), lambda x: xla_norm(x, norm), (before,)),
    }
    for name, layer, own, inputs in (
        ("conv3", conv3, after, 256),
        ("conv4", conv4, array(2, 38, 51, 384), 192),
        ("1x1, stage 1", Conv("", 256, 1), array(1, 150, 200, 64), 64),
        ("1x1/2, stage 3", Conv("", 1024, 1, stride=2), array(1, 75, 100, 512), 512),
        ("1x1, head", Conv("", 2048, 1), array(64, 7, 7, 512), 512),
        ("3x3/2, head", Conv("", 512, 3, stride=2, padding=1), array(64, 14, 14, 512), 512),
    ):
        cases[name] = (
            partial(convolve, layer=layer),
            partial(xla_convolution, layer=layer),
            (own, array(layer.kernel, layer.kernel, inputs, layer.features)),
        )
    peers: dict[str, Callable[[], object]] = {}
    for k, stride, shape in ((3, 1, (2, 120, 160, 144)), (5, 1, (2, 60, 80, 240)), (5, 2, (2, 120, 160, 144))):
        name, given = f"depthwise {k}x{k}/{stride}", (array(*shape), array(k, k, 1, shape[3]))
        padding = ((k // 2, k // 2),) * 2
        cases[name] = (
            partial(depthwise, stride=stride, padding=padding),
            partial(xla_depthwise, stride=stride, padding=padding),
            given,
        )
        if find_spec("torch"):
            peers[name] = torch_depthwise(*given, stride=stride)
    for name, (ours, xla, args) in cases.items():
        runs: dict[str, Callable[[], object]] = {
            program: partial(forward_and_backward(function), *args)
            for program, function in (("ours", ours), ("XLA", xla))
        }
        if name in peers:
            runs["PyTorch"] = peers[name]
        ms = single_call_medians(runs, repeat)
        times = "   ".join(f"{program} {spent:6.1f} ms" for program, spent in ms.items())
        print(f"{name:15}  {times}   ratio {ms['ours'] / ms['XLA']:.2f}")


if __name__ == "__main__":
    run_main(main)
