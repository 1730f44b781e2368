"""Benchmark of detection and a training step against PyTorch and torchvision, if installed:

    python benchmarks/bench.py [--network vgg16] [--image PHOTO] [--only detect,svd,step,rcnn,compile] [--repeat 5]
    python benchmarks/bench.py --platform gpu [--network vgg16] [--image PHOTO] [--repeat 5]

Both programs run in one process, with the same parameters, the first 2000 RoIs of selective search (ours padded to
2048), and greedy NMS of the 100 best boxes of each of 20 classes. A training step takes the image twice, with 64 RoIs
each.

On a CPU: float32, all cores, an image of 600x800 (ours in a canvas of 608x800). In turns with the programs it times a
product of large float32 matrices. The share of its rate is the number of operations of the convolutions and fully
connected layers, divided by the time of the program and by that rate.

detect  detection, and its parts
svd     detection with fc6 and fc7 factored (section 3.1), against PyTorch's without
step    a training step
rcnn    detection as R-CNN does it: every RoI warped to 224x224 and sent through the complete network
compile compilation of an epoch of training on VOC, in fresh processes, without and with jax's compilation cache

On a GPU: an image of 600x1000, in float32, tf32 and bfloat16. Results are first compared with the CPU's float32; the
exit status is 1 if they differ by more than rounding explains. Two lower bounds stand next to the times: operations at
the rate of a product of large matrices, and bytes at the rate of adding to a large array in place.
"""

import os
import resource
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np
from bench_gpu import bench_gpu, find_gpu
from bench_inputs import (
    CLASSES,
    ROIS,
    Part,
    Run,
    Step,
    chain,
    cpu_name,
    has_torch,
    matrix_product,
    medians,
    test_inputs,
    training_batch,
)
from count_operations import count

from frcnn_jax.cli import check_at_least, command_parser
from frcnn_jax.data.batches import Batch, Sizes, prepare_test
from frcnn_jax.errors import InputError, run_main
from frcnn_jax.evaluation.predict import decode_and_suppress, make_predict_step, select_detections
from frcnn_jax.models.fast_rcnn import FastRCNN, init_variables
from frcnn_jax.models.networks import LAYER_NETWORKS, NETWORKS, AnyNetwork, Network
from frcnn_jax.models.pixels import PixelNorm

PARTS = ("detect", "svd", "step", "rcnn", "compile")
RANKS = (1024, 256)
ROWS, COLUMNS = 600, 800
CROP, CROPS, CROPS_AT_ONCE = 224, 64, 16
PROBE = 4096  # rows and columns of the matrices in the timed product

COMPILATION = ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration")


def part_medians(parts: Mapping[str, Part], repeat: int) -> dict[str, float]:
    """Return the median seconds of each part of a chain."""
    values: dict[str, Any] = {"": None}

    def run(name: str, before: str) -> None:
        values[name] = jax.block_until_ready(parts[name](values[before]))

    names = ["", *parts]
    return medians({name: partial(run, name, before) for before, name in zip(names, parts, strict=False)}, repeat)


def our_parts(model: FastRCNN, variables: Any, batch: Batch) -> dict[str, Part]:
    """Return the parts of detection, in order."""
    convolutions = jax.jit(lambda v, *image: model.apply(v, *image, method=FastRCNN.features))
    pool = jax.jit(model.pool)
    head = jax.jit(lambda v, pooled: model.apply(v, pooled, method=FastRCNN.outputs))
    suppress = jax.jit(decode_and_suppress)
    return {
        "convolutions": lambda _: convolutions(variables, batch["image"], batch["image_size"]),
        "RoI pool": lambda features: pool(features, batch["rois"]),
        "fc": lambda pooled: head(variables, pooled),
        "NMS": lambda outputs: suppress(*outputs, batch),
    }


def host_runs(pixels: PixelNorm, image: np.ndarray, rois: np.ndarray, found: tuple[Any, Any, Any]) -> dict[str, Run]:
    """Return what `Detector` does on the host, except proposals."""
    boxes, scores, valid = (array[0] for array in found)
    return {
        "prepare": lambda: prepare_test(image, rois, sizes=[Sizes(ROWS, COLUMNS)], pixels=pixels, spatial_scale=1 / 16),
        "select": lambda: select_detections(boxes, scores, valid, 0.05, 100),
    }


def rcnn(model: FastRCNN, variables: Any, image: np.ndarray, rois: np.ndarray) -> Run:
    """Return a run that warps and scores the first CROPS RoIs."""
    predict = jax.jit(lambda *args: model.apply(*args, method=FastRCNN.predict))
    sizes = np.full((CROPS_AT_ONCE, 2), CROP, np.int32)
    whole = np.tile(np.array([0, 0, CROP - 1, CROP - 1], np.float32), (CROPS_AT_ONCE, 1, 1))
    centred = model.pixels(image)

    def run() -> None:
        for boxes in rois[:CROPS].astype(int).reshape(-1, CROPS_AT_ONCE, 4):
            crops = [cv2.resize(centred[y1 : y2 + 1, x1 : x2 + 1], (CROP, CROP)) for x1, y1, x2, y2 in boxes]
            jax.block_until_ready(predict(variables, np.stack(crops), sizes, whole))

    return run


def count_compilations() -> dict[str, list[float]]:
    """Return lists to which every later compilation appends its seconds, by phase."""
    seconds: dict[str, list[float]] = {name: [] for name in COMPILATION}

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        if (name := event.rsplit("/", 1)[1]) in seconds:
            seconds[name].append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    return seconds


def compile_epoch(network: AnyNetwork, cache: str) -> tuple[int, float]:
    """Return the number of programs and the seconds of compiling a step for each of four canvases."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", cache)
    model = network.build(CLASSES)
    step = Step(model, init_variables(model, jax.random.key(0)), network.frozen)
    compiled, sizes = count_compilations(), Sizes()
    for rows, columns in ((600, 800), (800, 600), (600, 1000), (1000, 600)):
        test = {
            "image": np.zeros((1, *sizes.canvas(rows, columns), 3), np.float32),
            "image_size": np.array([[rows, columns]], np.int32),
            "rois": np.tile(np.array([0, 0, columns, rows], np.float32), (1, ROIS, 1)) / 2,
            "roi_mask": np.ones((1, ROIS), bool),
        }
        step(training_batch(test))
    return len(compiled[COMPILATION[-1]]), sum(map(sum, compiled.values()))


def print_times(what: str, ours: float, theirs: float | None = None, name: str = "PyTorch") -> None:
    peer = "" if theirs is None else f"   {name} {theirs:8.3f} s   ratio {ours / theirs:.2f}"
    print(f"{what:26} ours {ours:8.3f} s{peer}", flush=True)


def largest_difference(ours: Mapping[str, Part], theirs: Mapping[str, Part]) -> float:
    """Return the largest difference between class probabilities of the two programs."""
    logits = []
    for parts in (ours, theirs):
        scores, _ = chain({name: part for name, part in parts.items() if name != "NMS"})()
        logits.append(np.asarray(scores).reshape(-1, CLASSES + 1)[:ROIS])
    probabilities = np.exp(logits[1]) / np.exp(logits[1]).sum(1, keepdims=True)
    return float(np.abs(logits[0] - probabilities).max())


def bench_cpu(network: AnyNetwork, image: np.ndarray, rois: np.ndarray, wanted: set[str], repeat: int) -> None:
    model = network.build(CLASSES)
    batch = prepare_test(image, rois, sizes=[Sizes(ROWS, COLUMNS)], pixels=model.pixels, spatial_scale=None)
    variables = init_variables(model, jax.random.key(0))

    compiled, predict = count_compilations(), make_predict_step(model)
    found = jax.device_get(predict(variables, batch))
    compilation = f"{len(compiled[COMPILATION[-1]])} program, compiled in {sum(map(sum, compiled.values())):.1f} s"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # before torch is imported
    print(f"{os.cpu_count()} cores of {cpu_name()}; jax {jax.__version__}; peak memory {peak:.2f} GiB")
    print(f"detection is {compilation}")

    def timed(runs: Mapping[str, Run], operations: int) -> dict[str, float]:
        """Return median seconds, and print the shares of the rate of a matrix product timed in turns with the runs."""
        seconds = medians({**runs, "product": matrix_product(PROBE)}, repeat)
        rate = 2 * PROBE**3 / seconds.pop("product")
        shares = (f"{name} {operations / spent / rate:.0%}" for name, spent in seconds.items() if name != "svd")
        print(f"a matrix product reaches {rate / 1e9:.0f} GFLOP/s", end="")
        print(f"; shares at {operations / 1e12:.3g} TFLOP: {', '.join(shares)}" if operations else "")
        return seconds

    def operations(images: int, rois: int, *, train: bool) -> int:
        """Count those of a network of layers; 0 for others."""
        layers = isinstance(network, Network)
        return count(network, canvas, images, rois, train=train).operations if layers else 0

    peer = None
    if not has_torch():
        print("torch or torchvision is not installed: ours alone")
    elif model.neck is not None or isinstance(model.spatial_scale, tuple):
        print("no PyTorch program has a neck or a pyramid: ours alone")
    else:
        from torch_program import TorchProgram

        peer = TorchProgram(network, variables)

    ours, theirs = our_parts(model, variables, batch), peer.parts(batch) if peer else {}
    runs: dict[str, Run] = {"ours": lambda: jax.device_get(predict(variables, batch))}
    if theirs and wanted & {"detect", "svd"}:
        print(f"scores differ by at most {largest_difference(ours, theirs):.1e}")
        runs["PyTorch"] = chain(theirs)
    if "svd" in wanted:
        factored = network.build(CLASSES, fc_ranks=RANKS)
        small, predict_small = init_variables(factored, jax.random.key(0)), make_predict_step(factored)
        runs["svd"] = lambda: jax.device_get(predict_small(small, batch))
    canvas = batch["image"].shape[1:3]
    if wanted - {"step", "compile"}:
        seconds = timed(runs, operations(1, ROIS, train=False))
    if "detect" in wanted:
        print_times("detection", seconds["ours"], seconds.get("PyTorch"))
        by_part = part_medians(ours, repeat), part_medians(theirs, repeat)
        for name, spent in by_part[0].items():
            print_times(f"  {name}", spent, by_part[1].get(name))
        print_times("  host", sum(medians(host_runs(model.pixels, image, rois, found), repeat).values()))
    if "svd" in wanted:
        name = f"detection, SVD {RANKS[0]}/{RANKS[1]}"
        print_times(name, seconds["svd"], seconds.get("PyTorch"), "PyTorch without")
    if "rcnn" in wanted:
        crops = medians({"rcnn": rcnn(model, variables, image, rois)}, 1)["rcnn"] * ROIS / CROPS
        print(f"detection the R-CNN way {crops:.0f} s, {crops / seconds['ours']:.0f} times ours")
    if "step" in wanted:
        training, step = training_batch(batch), Step(model, variables, network.frozen)
        steps: dict[str, Run] = {"ours": lambda: step(training).block_until_ready()}
        steps |= {"PyTorch": peer.step(training)} if peer else {}
        seconds = timed(steps, operations(2, 64, train=True))
        print_times("training step", seconds["ours"], seconds.get("PyTorch"))
    if "compile" in wanted:
        with tempfile.TemporaryDirectory() as cache:
            for what in ("without", "with"):
                with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                    programs, spent = fresh.submit(compile_epoch, network, cache).result()
                print(f"an epoch of training is {programs} programs, compiled in {spent:.1f} s {what} a cache")


def main(argv: Sequence[str]) -> None:
    parser = command_parser(__doc__)
    parser.add_argument("--platform", choices=("cpu", "gpu"), default="cpu", help="default %(default)s")
    parser.add_argument("--network", default="vgg16", choices=NETWORKS, help="default %(default)s")
    parser.add_argument("--image", type=Path, help="a photograph; default: an enlarged synthetic scene")
    parser.add_argument("--only", help=f"on a CPU, some of {','.join(PARTS)}; default: all")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args(argv)
    network = NETWORKS[args.network]
    parts = PARTS if isinstance(network, Network) else tuple(part for part in PARTS if part != "svd")
    wanted = set(args.only.split(",") if args.only else parts)
    if unknown := sorted(wanted - set(parts)):
        raise InputError(f"--only must be some of {','.join(parts)}, got {unknown[0]!r}")
    if args.platform == "gpu" and args.only:
        raise InputError("--only is for --platform cpu")
    check_at_least(1, repeat=args.repeat)
    if args.platform == "gpu":
        if not isinstance(network, Network):
            raise InputError(f"--platform gpu takes {', '.join(LAYER_NETWORKS)}, got {args.network}")
        device = find_gpu()
        print(args.network, end=", ")
        image, rois = test_inputs(args.image, 600, 1000)
        bench_gpu(network, image, rois, Sizes(), device, repeat=args.repeat)
    else:
        jax.config.update("jax_platforms", "cpu")
        print(args.network, end=", ")
        image, rois = test_inputs(args.image, ROWS, COLUMNS)
        bench_cpu(network, image, rois, wanted, args.repeat)


if __name__ == "__main__":
    run_main(main)
