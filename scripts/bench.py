r"""Seconds of detection and of a training step, ours and those of a PyTorch and torchvision program of the same network
(where they are installed), in one process run:

    python scripts/bench.py [--network vgg16] [--image PHOTO] [--only detect,svd,step,rcnn,compile] \
        [--repeat 5]

On both sides: float32, all cores, an image of 600x800 (ours in its canvas of 608x800), the same parameters, the first
2000 RoIs of selective search on it (ours padded to 2048), none left out as a duplicate, and greedy NMS on the 100 best
of each of 20 classes. A training step takes two images and 64 of the RoIs of each.

detect  our detection step against theirs, and both by part
svd     ours with fc6 and fc7 factored (section 3.1) against theirs as it is
step    the training steps
rcnn    every RoI warped to 224x224 and put through the whole network, as R-CNN does, against ours
compile the training steps of an epoch on VOC, in a fresh process without and in one with jax's cache of programs
"""

import argparse
import functools
import os
import resource
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import jax
import numpy as np

from frcnn_jax.datasets import load_image
from frcnn_jax.detect import decode_and_suppress, make_predict_step, select_detections
from frcnn_jax.models import Conv, FastRCNN, Network, Norm, get_network
from frcnn_jax.pipeline import PIXEL_MEANS, Batch, Sizes, prepare_test
from frcnn_jax.proposals import selective_search
from frcnn_jax.roi_pool import roi_pool
from frcnn_jax.solver import caffe_sgd, step_schedule
from frcnn_jax.step import create_state, make_train_step, replicate
from frcnn_jax.synthetic import draw_scene
from frcnn_jax.train import initial_variables
from frcnn_jax.weights import canonical_arrays

CLASSES, ROIS, RANKS = 20, 2000, (1024, 256)
ROWS, COLUMNS = 600, 800
CROP, CROPS, CROPS_AT_ONCE = 224, 64, 16

COMPILATION = ("jaxpr_trace_duration", "jaxpr_to_mlir_module_duration", "backend_compile_duration")

Run = Callable[[], Any]
Part = Callable[[Any], Any]  # of what the part before it returned


def medians(runs: Mapping[str, Run], repeat: int) -> dict[str, float]:
    """Median seconds; in turn, so that a noisy machine disturbs all alike. Of two calls in a turn the second is timed:
    the first compiles, or takes memory from the system that another program has given back to it."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            run()
            begin = time.perf_counter()
            run()
            spent[name].append(time.perf_counter() - begin)
    return {name: float(np.median(seconds)) for name, seconds in spent.items()}


def part_medians(parts: Mapping[str, Part], repeat: int) -> dict[str, float]:
    """Median seconds of each of a chain of parts."""
    values: dict[str, Any] = {"": None}

    def run(name: str, before: str) -> None:
        values[name] = jax.block_until_ready(parts[name](values[before]))

    names = ["", *parts]
    return medians({name: partial(run, name, before) for before, name in zip(names, parts, strict=False)}, repeat)


def test_inputs(path: Path | None) -> tuple[np.ndarray, np.ndarray]:
    """The image, 600x800, and its RoIs."""
    image = load_image(path) if path else draw_scene(0, "val", 1).image
    image = cv2.resize(image, (COLUMNS, ROWS))
    rois = selective_search(image, mode="quality", max_boxes=ROIS)
    return image, np.resize(rois, (ROIS, 4)).astype(np.float32)


def training_batch(test: Batch) -> Batch:
    rng = np.random.default_rng(0)
    return {
        "image": np.repeat(test["image"], 2, axis=0),
        "image_size": np.repeat(test["image_size"], 2, axis=0),
        "rois": rng.permutation(test["rois"][0, :ROIS])[:128].reshape(2, 64, 4),
        "roi_mask": np.ones((2, 64), bool),
        "labels": np.where(np.arange(64) < 16, rng.integers(1, CLASSES + 1, (2, 64)), 0).astype(np.int32),
        "box_targets": rng.normal(0, 1, (2, 64, 4)).astype(np.float32),
        "index": np.arange(2, dtype=np.int32),
    }


def our_parts(model: FastRCNN, variables: Any, batch: Batch) -> dict[str, Part]:
    network = model.network
    convolutions = jax.jit(lambda v, *image: model.apply(v, *image, method=lambda m, *image: m.backbone(*image)))
    pool = jax.jit(partial(roi_pool, output_size=network.roi_size, spatial_scale=network.spatial_scale))
    head = jax.jit(lambda v, pooled: model.apply(v, pooled, method=FastRCNN._outputs))
    suppress = jax.jit(decode_and_suppress)
    return {
        "convolutions": lambda _: convolutions(variables, batch["image"], batch["image_size"]),
        "RoI pool": lambda features: pool(features, batch["rois"]),
        "fc": lambda pooled: head(variables, pooled),
        "NMS": lambda outputs: suppress(*outputs, batch),
    }


def host_runs(image: np.ndarray, rois: np.ndarray, found: tuple[Any, Any, Any]) -> dict[str, Run]:
    """What `Detector` does on the host, proposals aside."""
    boxes, scores, valid = (of_batch[0] for of_batch in found)
    return {
        "prepare": lambda: prepare_test(image, rois, sizes=[Sizes(ROWS, COLUMNS)], spatial_scale=1 / 16),
        "select": lambda: select_detections(boxes, scores, valid, 0.05, 100),
    }


def our_step(model: FastRCNN, variables: Any) -> Callable[[Batch], float]:
    """A training step, which returns the loss; it keeps the state."""
    optimizer = caffe_sgd(step_schedule(0.001, ()))
    state = create_state(variables, model.network.frozen, optimizer)
    state, key = replicate((jax.tree.map(np.asarray, state), jax.random.key(0)))
    step = make_train_step(model, optimizer)

    def run(batch: Batch) -> float:
        nonlocal state
        state, metrics = step(state, batch, key)
        return float(metrics["loss"])

    return run


def rcnn(model: FastRCNN, variables: Any, image: np.ndarray, rois: np.ndarray) -> Run:
    """The first CROPS RoIs, each warped and scored by itself."""
    predict = jax.jit(lambda *args: model.apply(*args, method=FastRCNN.predict))
    sizes = np.full((CROPS_AT_ONCE, 2), CROP, np.int32)
    whole = np.tile(np.array([0, 0, CROP - 1, CROP - 1], np.float32), (CROPS_AT_ONCE, 1, 1))
    centred = image[..., ::-1].astype(np.float32) - PIXEL_MEANS

    def run() -> None:
        for boxes in rois[:CROPS].astype(int).reshape(-1, CROPS_AT_ONCE, 4):
            crops = [cv2.resize(centred[y1 : y2 + 1, x1 : x2 + 1], (CROP, CROP)) for x1, y1, x2, y2 in boxes]
            jax.block_until_ready(predict(variables, np.stack(crops), sizes, whole))

    return run


class Torch:
    """A plain PyTorch and torchvision program of a network."""

    def __init__(self, network: Network, params: Any):
        import torch
        from torch import nn
        from torchvision import ops

        layers: dict[str, nn.Module] = {}
        channels = 3
        for i, layer in enumerate(network.layers):
            if isinstance(layer, Conv):
                options = {"padding": layer.padding, "groups": layer.groups}
                conv = nn.Conv2d(channels, layer.features, layer.kernel, layer.stride, **options)
                layers[layer.name] = conv.requires_grad_(layer.name not in network.frozen)
                layers[f"relu{i}"] = nn.ReLU(inplace=True)
                channels = layer.features
            elif isinstance(layer, Norm):
                layers[f"norm{i}"] = nn.LocalResponseNorm(layer.size, layer.alpha, layer.beta, layer.k)
            else:
                layers[f"pool{i}"] = nn.MaxPool2d(layer.kernel, layer.stride, layer.padding, ceil_mode=True)
        inputs, (fc6, fc7) = channels * network.roi_size[0] * network.roi_size[1], network.fc
        self.network, self.ops, self.backbone = network, ops, nn.Sequential(OrderedDict(layers))
        widths = {"fc6": (inputs, fc6), "fc7": (fc6, fc7), "cls_score": (fc7, CLASSES + 1)}
        widths |= {"bbox_pred": (fc7, 4 * (CLASSES + 1))}
        self.fc = nn.ModuleDict({name: nn.Linear(*width) for name, width in widths.items()})
        arrays = canonical_arrays(params, roi_size=network.roi_size)
        for name, parameter in [*self.backbone.named_parameters(), *self.fc.named_parameters()]:
            parameter.data = torch.from_numpy(arrays[name].copy())

    def outputs(self, pooled: Any, dropout: float = 0.0) -> tuple[Any, Any]:
        """Logits and deltas."""
        from torch.nn import functional

        x = pooled.flatten(1)
        for name in ("fc6", "fc7"):
            x = functional.dropout(functional.relu(self.fc[name](x)), dropout)
        return self.fc["cls_score"](x), self.fc["bbox_pred"](x).reshape(len(x), -1, 4)

    def parts(self, test: Batch) -> dict[str, Part]:
        import torch

        images, boxes, size = torch_images(test), torch.from_numpy(test["rois"][0, :ROIS]), (ROWS, COLUMNS)

        def suppress(outputs: tuple[Any, Any]) -> list[Any]:
            scores, found = outputs[0].softmax(1), []
            for k in range(1, CLASSES + 1):
                best, index = scores[:, k].topk(100)
                decoded = self.ops.clip_boxes_to_image(torch_decode(boxes[index], outputs[1][index, k]), size)
                kept = self.ops.nms(decoded, best, 0.3)
                found.append((decoded[kept], best[kept]))
            return found

        parts = {
            "convolutions": lambda _: self.backbone(images),
            "RoI pool": lambda maps: self.pool(maps, [boxes]),
            "fc": self.outputs,
            "NMS": suppress,
        }
        return {name: torch.inference_mode()(part) for name, part in parts.items()}

    def pool(self, maps: Any, rois: list[Any]) -> Any:
        return self.ops.roi_pool(maps, rois, self.network.roi_size, self.network.spatial_scale)

    def step(self, batch: Batch) -> Run:
        import torch
        from torch.nn import functional

        trained = [p for module in (self.backbone, self.fc) for p in module.parameters() if p.requires_grad]
        solver = torch.optim.SGD(trained, lr=0.001, momentum=0.9, weight_decay=5e-4)
        images, rois = torch_images(batch), list(torch.from_numpy(batch["rois"]))
        labels = torch.from_numpy(batch["labels"].reshape(-1).astype(np.int64))
        targets = torch.from_numpy(batch["box_targets"].reshape(-1, 4))

        def run() -> float:
            solver.zero_grad()
            logits, deltas = self.outputs(self.pool(self.backbone(images), rois), self.network.dropout)
            own = deltas[torch.arange(len(labels)), labels]
            box = functional.smooth_l1_loss(own, targets, reduction="none").sum(1)[labels > 0].sum() / len(labels)
            loss = functional.cross_entropy(logits, labels) + box
            loss.backward()
            solver.step()
            return loss.item()

        return run


def torch_images(batch: Batch) -> Any:
    import torch

    return torch.from_numpy(batch["image"][:, :ROWS, :COLUMNS].transpose(0, 3, 1, 2).copy())


def torch_decode(rois: Any, deltas: Any) -> Any:
    import torch

    size = rois[:, 2:] - rois[:, :2]
    centre, half = rois[:, :2] + size / 2 + deltas[:, :2] * size, deltas[:, 2:].exp() * size / 2
    return torch.cat([centre - half, centre + half], 1)


def chain(parts: Mapping[str, Part]) -> Run:
    return lambda: functools.reduce(lambda value, part: part(value), parts.values(), None)


def count_compilations() -> dict[str, list[float]]:
    """From here on, the seconds of every part of a compilation, in lists that grow."""
    seconds: dict[str, list[float]] = {name: [] for name in COMPILATION}

    def hear(event: str, duration_secs: float, **_: Any) -> None:
        if (name := event.rsplit("/", 1)[1]) in seconds:
            seconds[name].append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(hear)
    return seconds


def compile_epoch(network: str, cache: str) -> tuple[int, float]:
    """Programs and seconds compiling, in this fresh process, until a step has run on each of the four canvases."""
    jax.config.update("jax_compilation_cache_dir", cache)
    model = FastRCNN(get_network(network), CLASSES)
    step = our_step(model, initial_variables(model, jax.random.key(0), ""))
    compiled, sizes = count_compilations(), Sizes()
    for rows, columns in ((600, 800), (800, 600), (600, 1000), (1000, 600)):
        test = {
            "image": np.zeros((1, *sizes.canvas(rows, columns), 3), np.float32),
            "image_size": np.array([[rows, columns]], np.int32),
            "rois": np.tile(np.array([0, 0, columns, rows], np.float32), (1, ROIS, 1)) / 2,
        }
        step(training_batch(test))
    return len(compiled[COMPILATION[-1]]), sum(map(sum, compiled.values()))


def say(what: str, ours: float, theirs: float | None = None, name: str = "PyTorch") -> None:
    peer = "" if theirs is None else f"   {name} {theirs:8.3f} s   ratio {ours / theirs:.2f}"
    print(f"{what:26} ours {ours:8.3f} s{peer}", flush=True)


def largest_difference(ours: Mapping[str, Part], theirs: Mapping[str, Part]) -> float:
    """Of the two programs' class scores before the softmax."""
    logits = []
    for parts in (ours, theirs):
        scores, _ = chain({name: part for name, part in parts.items() if name != "NMS"})()
        logits.append(np.asarray(scores).reshape(-1, CLASSES + 1)[:ROIS])
    probabilities = np.exp(logits[1]) / np.exp(logits[1]).sum(1, keepdims=True)
    return float(np.abs(logits[0] - probabilities).max())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--network", default="vgg16", help="a row of models.NETWORKS; default %(default)s")
    parser.add_argument("--image", type=Path, help="a photograph; an enlarged synthetic scene by default")
    parser.add_argument("--only", default="detect,svd,step,rcnn,compile", help="some of %(default)s")
    parser.add_argument("--repeat", type=int, default=5)
    args = parser.parse_args()
    wanted, repeat = set(args.only.split(",")), args.repeat
    image, rois = test_inputs(args.image)
    batch = prepare_test(image, rois, sizes=[Sizes(ROWS, COLUMNS)], spatial_scale=None)
    model = FastRCNN(get_network(args.network), CLASSES)
    variables = initial_variables(model, jax.random.key(0), "")

    compiled, predict = count_compilations(), make_predict_step(model)
    found = jax.device_get(predict(variables, batch))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # before torch is imported
    print(f"{args.network}, {os.cpu_count()} cores, jax {jax.__version__}; peak memory of the process {peak:.2f} GiB")
    print(
        f"detection is {len(compiled[COMPILATION[-1]])} program, compiled in {sum(map(sum, compiled.values())):.1f} s"
    )
    try:
        peer = Torch(model.network, variables["params"])
    except ImportError:
        peer = None
        print("torch or torchvision is not installed: ours alone")

    ours, theirs = our_parts(model, variables, batch), peer.parts(batch) if peer else {}
    runs: dict[str, Run] = {"ours": lambda: jax.device_get(predict(variables, batch))}
    if theirs and wanted & {"detect", "svd"}:
        print(f"scores differ by at most {largest_difference(ours, theirs):.1e}")
        runs["theirs"] = chain(theirs)
    if "svd" in wanted:
        factored = FastRCNN(model.network._replace(fc_ranks=RANKS), CLASSES)
        small, predict_small = initial_variables(factored, jax.random.key(0), ""), make_predict_step(factored)
        runs["svd"] = lambda: jax.device_get(predict_small(small, batch))
    seconds = medians(runs, repeat) if wanted - {"step", "compile"} else {}
    if "detect" in wanted:
        say("detection", seconds["ours"], seconds.get("theirs"))
        by_part = part_medians(ours, repeat), part_medians(theirs, repeat)
        for name, spent in by_part[0].items():
            say(f"  {name}", spent, by_part[1].get(name))
        say("  host", sum(medians(host_runs(image, rois, found), repeat).values()))
    if "svd" in wanted:
        say(f"detection, SVD {RANKS[0]}/{RANKS[1]}", seconds["svd"], seconds.get("theirs"), "PyTorch without")
    if "rcnn" in wanted:
        crops = medians({"rcnn": rcnn(model, variables, image, rois)}, 1)["rcnn"] * ROIS / CROPS
        print(f"R-CNN's way {crops:.0f} s, {crops / seconds['ours']:.0f} times as long as ours")
    if "step" in wanted:
        training = training_batch(batch)
        steps = {"ours": partial(our_step(model, variables), training)} | (
            {"theirs": peer.step(training)} if peer else {}
        )
        seconds = medians(steps, repeat)
        say("training step", seconds["ours"], seconds.get("theirs"))
    if "compile" in wanted:
        with tempfile.TemporaryDirectory() as cache:
            for what in ("without", "with"):
                with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
                    programs, spent = fresh.submit(compile_epoch, args.network, cache).result()
                print(f"an epoch of training is {programs} programs, {what} a cache compiled in {spent:.1f} s")


if __name__ == "__main__":
    main()
