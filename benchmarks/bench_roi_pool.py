"""Benchmark of RoI max pooling against torchvision, if installed, in milliseconds:

    python benchmarks/bench_roi_pool.py [--quick] [--align] [--images PHOTO ...] [--bandwidth GB/s]
    python benchmarks/bench_roi_pool.py --forms | --memory

It runs unchanged on CPU and GPU, both programs in one process and on the same device. The RoIs are uniformly random,
and those of selective search in the given images (by default an enlarged synthetic one).

"least" counts the bytes that every program must move, each read or written once: the maps, the RoIs and the result;
backward also both gradients. "table" counts those that `method="table"` moves, with its look-ups and its scattered
gradient. Their milliseconds follow from the bandwidth that adding to a large array in place reaches here, or from
--bandwidth, which predicts another machine.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_gpu import bandwidth
from bench_inputs import Run, cpu_name, has_torch, single_call_medians

from frcnn_jax import roi_align_flat, roi_pool_flat, selective_search
from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.data.records import load_image
from frcnn_jax.data.synthetic import read_synthetic
from frcnn_jax.errors import run_main
from frcnn_jax.ops._pool_methods import METHODS, window_sizes

MAPS = ((38, 63, 512), (36, 61, 512), (39, 64, 256))
LOADS = ((1, 2000), (2, 128))  # images, RoIs of all images together
FORMS = METHODS[1:]
PIXELS = 16  # of the image per map cell


def uniform_rois(count: int, height: int, width: int) -> np.ndarray:
    corners = np.sort(np.random.default_rng(0).uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
    return (corners * np.tile([width, height], 2) * PIXELS).astype(np.float32)


def searched_rois(paths: Sequence[Path], count: int, height: int, width: int) -> np.ndarray:
    """Return selective-search boxes of the images, scaled to the map, and repeated if there are too few."""
    images = [load_image(path) for path in paths] or [
        read_synthetic(split="val", images=1).records[0].load().repeat(3, 0).repeat(3, 1)
    ]
    boxes = [
        selective_search(image, max_boxes=2000)
        * np.float32(PIXELS)
        * np.tile([width, height], 2)
        / np.tile(image.shape[1::-1], 2)
        for image in images
    ]
    return np.resize(np.concatenate(boxes), (count, 4)).astype(np.float32)


def our_runs(
    pool: Callable[..., jax.Array], features: np.ndarray, rois: np.ndarray, index: np.ndarray, dtype: str
) -> dict[str, Run]:
    arrays = jnp.asarray(features, dtype), jnp.asarray(rois), jnp.asarray(index)
    gradient = jnp.ones(jax.eval_shape(pool, *arrays).shape, dtype)

    @jax.jit
    def both(
        features: jax.Array, rois: jax.Array, index: jax.Array, gradient: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        pooled, pullback = jax.vjp(lambda features: pool(features, rois, index), features)
        return pooled, pullback(gradient)[0]

    forward = jax.jit(pool)
    return {
        "forward": lambda: jax.block_until_ready(forward(*arrays)),
        "forward+backward": lambda: jax.block_until_ready(both(*arrays, gradient)),
    }


def torchvision_runs(
    features: np.ndarray, rois: np.ndarray, index: np.ndarray, dtype: str, align: bool
) -> dict[str, Run]:
    import torch
    from torchvision import ops

    pool = partial(ops.roi_align, sampling_ratio=2, aligned=True) if align else ops.roi_pool
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ImportError("this torch has no CUDA")
    maps = torch.from_numpy(features.transpose(0, 3, 1, 2).copy()).to(device, getattr(torch, dtype)).requires_grad_()
    boxes = torch.from_numpy(np.concatenate([index[:, None], rois], 1).astype(np.float32)).to(maps)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def forward() -> Any:
        with torch.no_grad():
            pooled = pool(maps, boxes, (7, 7), 1 / PIXELS)
        wait()
        return pooled

    gradient = torch.ones_like(forward())

    def both() -> Any:
        maps.grad = None
        pooled = pool(maps, boxes, (7, 7), 1 / PIXELS)
        pooled.backward(gradient)
        wait()
        return pooled

    return {"forward": forward, "forward+backward": both}


def bytes_moved(images: int, height: int, width: int, channels: int, count: int, itemsize: int) -> dict[str, list[int]]:
    """Return, by pass, the least bytes and those of `method="table"`."""
    maps, pooled = images * height * width * channels, count * 49 * channels
    rows, columns = len(window_sizes(height, 7)), len(window_sizes(width, 7))
    least = (maps + pooled) * itemsize + count * 16
    built = maps * (1 + 2 * rows + rows * columns)  # read and written: windows of rows, then of columns
    return {
        "forward": [least, (built + 5 * pooled) * itemsize],
        # int32 positions accompany the maxima; backward reads them again with the gradient and adds to a zeroed map
        "forward+backward": [2 * least, (built + 5 * pooled) * (itemsize + 4) + pooled * (itemsize + 12) + maps * 8],
    }


def cases(paths: Sequence[Path], quick: bool) -> Iterator[tuple[tuple[int, int, int], str, int, str, np.ndarray]]:
    """Yield (shape of the map, dtype, images, source of the RoIs, RoIs)."""
    for shape in MAPS[:1] if quick else MAPS:
        for dtype in ("float32",) if quick else ("float32", "bfloat16"):
            for images, count in LOADS:
                yield shape, dtype, images, "uniform", uniform_rois(count, *shape[:2])
                if not quick:
                    yield shape, dtype, images, "selective search", searched_rois(paths, count, *shape[:2])


def compare(paths: Sequence[Path], bytes_per_second: float, repeat: int, quick: bool, align: bool) -> None:
    print(
        f"{'map':10} {'type':8} images RoIs {'from':16} {'pass':16}     ours  torchvision  ratio"
        "   least         table  (ms; MB, ms; MB, ms)"
    )
    for shape, dtype, images, source, rois in cases(paths, quick):
        rng = np.random.default_rng(0)
        features = rng.standard_normal((images, *shape), np.float32)
        index = np.sort(rng.integers(0, images, len(rois))).astype(np.int32)
        ours = our_runs(roi_align_flat if align else roi_pool_flat, features, rois, index, dtype)
        try:
            theirs = torchvision_runs(features, rois, index, dtype, align)
        except (ImportError, RuntimeError):  # not installed, or not for this device or dtype
            theirs = {}
        moved = bytes_moved(images, *shape, len(rois), jnp.dtype(dtype).itemsize)
        for which, run in ours.items():
            ms = single_call_medians({"ours": run} | ({"torchvision": theirs[which]} if theirs else {}), repeat)
            peer = (
                f"{ms['torchvision']:12.2f}  {ms['torchvision'] / ms['ours']:5.1f}" if theirs else f"{'-':>12}      -"
            )
            counted = "  ".join(f"{count / 1e6:6.1f} {1e3 * count / bytes_per_second:6.3f}" for count in moved[which])
            where = f"{'x'.join(map(str, shape)):10} {dtype:8} {images:6} {len(rois):4} {source:16} {which:16}"
            print(f"{where} {ms['ours']:8.2f} {peer}  {counted}", flush=True)


def compare_forms(repeat: int) -> None:
    loads = [(1, *MAPS[0], 7, count) for count in (64, 128, 256, 512, 2000)]
    loads += [(2, *MAPS[0], 7, count) for count in (128, 512)] + [(1, *MAPS[0], bins, 512) for bins in (1, 2, 14)]
    loads += [(1, 38, 63, 64, 7, 512), (1, 100, 150, 256, 7, 512), (1, 100, 150, 256, 7, 2000)]
    print(
        f"{'images':6}  {'map':12} bins  RoIs  pass              " + "  ".join(f"{form:>8}" for form in FORMS) + "  ms"
    )
    for images, height, width, channels, bins, count in loads:
        rng = np.random.default_rng(0)
        features = rng.standard_normal((images, height, width, channels), np.float32)
        rois, index = uniform_rois(count, height, width), rng.integers(0, images, count)
        pools = {form: partial(roi_pool_flat, output_size=bins, method=form) for form in FORMS}
        runs = {form: our_runs(pool, features, rois, index, "float32") for form, pool in pools.items()}
        for which in ("forward", "forward+backward"):
            ms = single_call_medians({form: run[which] for form, run in runs.items()}, repeat)
            row = "  ".join(f"{ms[form]:8.2f}" for form in FORMS)
            print(f"{images:6}  {f'{height}x{width}x{channels}':12} {bins:4}  {count:4}  {which:16}  {row}", flush=True)


def print_memory() -> None:
    for images, count in LOADS:
        shape = (images, *MAPS[0])
        arrays = [
            jax.ShapeDtypeStruct(s, t) for s, t in ((shape, "float32"), ((count, 4), "float32"), ((count,), "int32"))
        ]
        for method in METHODS:
            compiled = jax.jit(partial(roi_pool_flat, method=method)).lower(*arrays).compile()
            analysis = compiled.memory_analysis()
            assert analysis is not None
            extra = analysis.temp_size_in_bytes / (4 * np.prod(shape))
            print(f"{images} images, {count} RoIs, {method:8} {extra:6.1f} maps")


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--quick", action="store_true", help="one map, float32, uniform RoIs")
    parser.add_argument(
        "--align", action="store_true", help="RoI Align, 2 x 2 samples per bin; the bytes stay those of max pooling"
    )
    parser.add_argument("--forms", action="store_true", help="time every method, on which `auto` is based")
    parser.add_argument("--memory", action="store_true", help="print the temporary memory of every method, in maps")
    parser.add_argument("--images", type=Path, nargs="*", default=[], metavar="PHOTO")
    parser.add_argument("--bandwidth", type=float, help="GB/s; measured by default")
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args(argv)
    check_at_least(1, repeat=args.repeat)
    device = jax.devices()[0]
    kind = f"{os.cpu_count()} cores of {cpu_name()}" if device.platform == "cpu" else device.device_kind
    print(f"{kind}; jax {jax.__version__}")
    if args.memory:
        print_memory()
    elif args.forms:
        compare_forms(args.repeat)
    else:
        if not has_torch():
            print("torch or torchvision is not installed: ours alone")
        reached = 1e9 * args.bandwidth if args.bandwidth else bandwidth(device, 8192, 3)
        print(f"bytes move at {reached / 1e9:.0f} GB/s")
        compare(args.images, reached, args.repeat, args.quick, args.align)


if __name__ == "__main__":
    run_main(main)
