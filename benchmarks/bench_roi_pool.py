"""Milliseconds of RoI max pooling, ours and torchvision's (where it is installed), in one process run:

    python benchmarks/bench_roi_pool.py [--quick] [--align] [--images PHOTO ...] [--bandwidth GB/s]
    python benchmarks/bench_roi_pool.py --forms | --memory

runs unchanged on CPU and GPU; both sides run on the same device. The RoIs are drawn uniformly, and are those of
selective search in the images given (else in one of the embedded set, enlarged).

"least" counts the bytes that no program can avoid, each read or written once: the maps, the RoIs and what comes out;
backward also both gradients. "table" counts those that the form for accelerators moves, its look-ups and its scattered
gradient included. Their milliseconds are at the bandwidth that adding to a large array in place reaches here, or at
that of another machine, named with --bandwidth: what to expect there.

--align compares RoIAlign, 2 x 2 samples a bin, instead; the bytes stay those of max pooling.
--forms times every form over numbers of RoIs, output sizes and channels instead: what `method="auto"` goes by.
--memory prints the bytes that each compiled form needs beside its arguments and results, in maps.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from frcnn_jax import roi_align_flat, roi_pool_flat, selective_search
from frcnn_jax.data.records import load_image
from frcnn_jax.data.synthetic import read_synthetic
from frcnn_jax.ops._roi_pool import METHODS, window_sizes

MAPS = ((38, 63, 512), (36, 61, 512), (39, 64, 256))
LOADS = ((1, 2000), (2, 128))  # images, RoIs in all
FORMS = METHODS[1:]
PIXELS = 16  # of an image, a map cell

Run = Callable[[], Any]


def times(runs: dict[str, Run], repeat: int) -> dict[str, float]:
    """Median milliseconds; in turn, so that a noisy machine disturbs all alike. The first call compiles."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for i in range(repeat + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if i:
                spent[name].append(1e3 * (time.perf_counter() - begin))
    return {name: float(np.median(milliseconds)) for name, milliseconds in spent.items()}


def uniform_rois(count: int, height: int, width: int) -> np.ndarray:
    corners = np.sort(np.random.default_rng(0).uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
    return (corners * np.tile([width, height], 2) * PIXELS).astype(np.float32)


def searched_rois(paths: Sequence[Path], count: int, height: int, width: int) -> np.ndarray:
    """Selective-search boxes of the images, scaled to the map, repeated where there are too few."""
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


def measured_bandwidth() -> float:
    """Bytes a second, read and written, of adding to 1 GiB in place."""
    array = jnp.ones(2**28, jnp.float32)
    add = jax.jit(lambda x: x + 1, donate_argnums=0)

    def run() -> None:
        nonlocal array
        array = add(array).block_until_ready()

    return 2 * array.nbytes / (1e-3 * times({"add": run}, 7)["add"])


def bytes_moved(images: int, height: int, width: int, channels: int, count: int, itemsize: int) -> dict[str, list[int]]:
    """By pass, the least and those of the table form."""
    maps, pooled = images * height * width * channels, count * 49 * channels
    rows, columns = len(window_sizes(height, 7)), len(window_sizes(width, 7))
    least = (maps + pooled) * itemsize + count * 16
    built = maps * (1 + 2 * rows + rows * columns)  # read and written: windows of rows, then of columns
    return {
        "forward": [least, (built + 5 * pooled) * itemsize],
        # places, int32, go with the maxima; backward they are read again with the gradient and added to a zeroed map
        "forward+backward": [2 * least, (built + 5 * pooled) * (itemsize + 4) + pooled * (itemsize + 12) + maps * 8],
    }


def cases(paths: Sequence[Path], quick: bool) -> Iterator[tuple[tuple[int, int, int], str, int, str, np.ndarray]]:
    """(map, dtype, images, where the RoIs come from, RoIs)."""
    for shape in MAPS[:1] if quick else MAPS:
        for dtype in ("float32",) if quick else ("float32", "bfloat16"):
            for images, count in LOADS:
                yield shape, dtype, images, "uniform", uniform_rois(count, *shape[:2])
                if not quick:
                    yield shape, dtype, images, "selective search", searched_rois(paths, count, *shape[:2])


def compare(paths: Sequence[Path], bandwidth: float, repeat: int, quick: bool, align: bool) -> None:
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
        except (ImportError, RuntimeError):  # not installed, not for this device or type
            theirs = {}
        moved = bytes_moved(images, *shape, len(rois), jnp.dtype(dtype).itemsize)
        for which, run in ours.items():
            ms = times({"ours": run} | ({"torchvision": theirs[which]} if theirs else {}), repeat)
            peer = (
                f"{ms['torchvision']:12.2f}  {ms['torchvision'] / ms['ours']:5.1f}" if theirs else f"{'-':>12}      -"
            )
            counted = "  ".join(f"{count / 1e6:6.1f} {1e3 * count / bandwidth:6.3f}" for count in moved[which])
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
            ms = times({form: run[which] for form, run in runs.items()}, repeat)
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--quick", action="store_true", help="one map, float32, uniform RoIs")
    parser.add_argument("--align", action="store_true", help="RoIAlign instead")
    parser.add_argument("--forms", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--images", type=Path, nargs="*", default=[])
    parser.add_argument("--bandwidth", type=float, help="GB/s; measured by default")
    parser.add_argument("--repeat", type=int, default=7)
    args = parser.parse_args()
    device = jax.devices()[0]
    bandwidth = 1e9 * args.bandwidth if args.bandwidth else measured_bandwidth()
    print(f"{device.platform}: {device.device_kind}, jax {jax.__version__}, copies {bandwidth / 1e9:.0f} GB/s")
    if args.memory:
        print_memory()
    elif args.forms:
        compare_forms(args.repeat)
    else:
        compare(args.images, bandwidth, args.repeat, args.quick, args.align)


if __name__ == "__main__":
    main()
