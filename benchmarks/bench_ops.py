"""Benchmark of `frcnn_jax.ops` against torchvision.ops, in milliseconds, both in one process on the CPU:

    python benchmarks/bench_ops.py [OP ...] [--repeat 7]

Each op runs at a small, a usual and a large size: forward, and forward and backward where it has a gradient. The ratio
is torchvision's time over ours; above 1 we are faster.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from bench_inputs import Run, cpu_name, single_call_medians
from torchvision import ops as peer

from frcnn_jax import ops
from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.errors import InputError, run_main

PAIRWISE = ("box_iou", "generalized_box_iou", "distance_box_iou", "complete_box_iou")
LOSSES = ("generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss")
NMS = ("nms", "nms, clusters", "batched_nms")
OPS = (
    "box_area", "box_convert", *PAIRWISE, *LOSSES, "clip_boxes_to_image", "remove_small_boxes", "masks_to_boxes",
    "sigmoid_focal_loss", *NMS,
)  # fmt: skip

Row = tuple[str, str, Run, Run]  # size, pass, ours, torchvision's


def spread_boxes(count: int, seed: int = 0) -> np.ndarray:
    """Return boxes of 10 to 60 pixels, few of which overlap by much."""
    rng = np.random.default_rng(seed)
    centre, size = rng.uniform(0, 40 * count**0.5, (count, 2)), rng.uniform(10, 60, (count, 2))
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)


def clustered_boxes(count: int, seed: int = 0) -> np.ndarray:
    """Return clusters of 60 boxes of about 80 pixels, 3 pixels apart."""
    rng = np.random.default_rng(seed)
    cluster = rng.integers(0, max(count // 60, 1), count)
    centre = rng.uniform(0, 2000, (max(count // 60, 1), 2))[cluster] + rng.normal(0, 3, (count, 2))
    size = rng.normal(80, 5, (count, 2))
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1).astype(np.float32)


def passes(
    size: str, ours: Callable[..., Any], theirs: Callable[..., Any], arrays: Sequence[np.ndarray], gradient: bool
) -> Iterator[Row]:
    """Yield the forward pass, and with `gradient` both: the result, and its gradient pulled back to the first array."""
    jax_arrays, tensors = [jnp.asarray(a) for a in arrays], [torch.from_numpy(a) for a in arrays]
    forward = jax.jit(ours)

    def peer_forward() -> Any:
        with torch.no_grad():
            return theirs(*tensors)

    yield size, "forward", lambda: jax.block_until_ready(forward(*jax_arrays)), peer_forward
    if gradient:
        pulled = np.random.default_rng(2).random(forward(*jax_arrays).shape, np.float32)

        @jax.jit
        def both(pulled: jax.Array, first: jax.Array, *rest: jax.Array) -> tuple[jax.Array, jax.Array]:
            result, pull_back = jax.vjp(lambda first: ours(first, *rest), first)
            return result, *pull_back(pulled)

        leaf, pulled_tensor = tensors[0].clone().requires_grad_(), torch.from_numpy(pulled)

        def peer_both() -> Any:
            leaf.grad = None
            result = theirs(leaf, *tensors[1:])
            result.backward(pulled_tensor)
            return result, leaf.grad

        pulled_array = jnp.asarray(pulled)
        yield size, "forward+backward", lambda: jax.block_until_ready(both(pulled_array, *jax_arrays)), peer_both


def rows(op: str) -> Iterator[Row]:
    """Yield the runs of an op."""
    ours, theirs = getattr(ops, op.split(",")[0]), getattr(peer, op.split(",")[0])
    if op in PAIRWISE:
        for n, m in ((100, 10), (2000, 20), (5000, 1000)):
            yield from passes(f"{n} x {m}", ours, theirs, [spread_boxes(n), spread_boxes(m, 1)], True)
    elif op in LOSSES:
        for n in (100, 10_000, 1_000_000):
            yield from passes(f"{n}", ours, theirs, [spread_boxes(n), spread_boxes(n) + 2], True)
    elif op in NMS:
        for n in (1000, 6000, 12_000, 50_000):
            boxes = clustered_boxes(n) if "clusters" in op else spread_boxes(n)
            rng = np.random.default_rng(1)
            arrays = [boxes, rng.permutation(n).astype(np.float32)]
            if op == "batched_nms":
                arrays.append(rng.integers(0, 80, n))
            yield from passes(
                f"{n}",
                lambda *arrays, n=n: ours(*arrays, iou_threshold=0.5, max_outputs=n),
                lambda *arrays: theirs(*arrays, 0.5),
                arrays,
                False,
            )
    elif op == "masks_to_boxes":
        for n, side in ((10, 100), (100, 200), (100, 800)):
            masks = np.random.default_rng(0).random((n, side, side)) < 0.01
            yield from passes(f"{n} of {side} x {side}", ours, theirs, [masks], False)
    elif op == "sigmoid_focal_loss":
        for n in (100, 10_000, 100_000):
            rng = np.random.default_rng(0)
            arrays = [rng.normal(size=(n, 80)).astype(np.float32), (rng.random((n, 80)) < 0.1).astype(np.float32)]
            yield from passes(f"{n} x 80", ours, theirs, arrays, True)
    else:
        arguments = {
            "box_convert": ("xyxy", "cxcywh"), "clip_boxes_to_image": ((600, 1000),), "remove_small_boxes": (20.0,)
        }.get(op, ())  # fmt: skip
        for n in (100, 10_000, 1_000_000):
            yield from passes(
                f"{n}",
                lambda boxes: ours(boxes, *arguments),
                lambda boxes: theirs(boxes, *arguments),
                [spread_boxes(n)],
                op in ("box_area", "box_convert", "clip_boxes_to_image"),
            )


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"{', '.join(OPS)}; all if none")
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args(argv)
    check_at_least(1, repeat=args.repeat)
    if unknown := set(args.ops) - set(OPS):
        raise InputError(f"no op {min(unknown)!r}; expected {', '.join(OPS)}")
    print(f"{os.cpu_count()} cores of {cpu_name()}; jax {jax.__version__}, torch {torch.__version__}")
    print(f"{'op':26} {'size':18} {'pass':16} {'ours':>9} {'torchvision':>12} {'ratio':>6}  ms")
    for op in args.ops or OPS:
        for size, which, ours, theirs in rows(op):
            ms = single_call_medians({"ours": ours, "torchvision": theirs}, args.repeat)
            ratio = ms["torchvision"] / ms["ours"]
            print(f"{op:26} {size:18} {which:16} {ms['ours']:9.3f} {ms['torchvision']:12.3f} {ratio:6.2f}", flush=True)


if __name__ == "__main__":
    run_main(main)
