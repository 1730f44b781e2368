"""Inputs, timers and programs that the benchmarks share."""

import functools
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax

from frcnn_jax.data.batches import Batch
from frcnn_jax.data.records import load_image
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.models.fast_rcnn import FastRCNN
from frcnn_jax.proposals.search import selective_search
from frcnn_jax.training.solver import caffe_sgd, step_schedule
from frcnn_jax.training.step import create_state, make_train_step, replicate

CLASSES, ROIS = 20, 2000

Run = Callable[[], Any]
Part = Callable[[Any], Any]  # takes what the previous part returned


def medians(runs: Mapping[str, Run], repeat: int) -> dict[str, float]:
    """Return the median seconds of each run.

    The runs take turns, so that a noisy machine disturbs all alike. Each turn times the second of two calls, because
    the first compiles, or requests memory from the system that the previous program has returned.
    """
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            run()
            begin = time.perf_counter()
            run()
            spent[name].append(time.perf_counter() - begin)
    return {name: float(np.median(seconds)) for name, seconds in spent.items()}


def single_call_medians(runs: Mapping[str, Run], repeat: int) -> dict[str, float]:
    """Return the median milliseconds of each run, one call per turn, after one turn that compiles."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeat + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            run()
            if turn:
                spent[name].append(1e3 * (time.perf_counter() - begin))
    return {name: float(np.median(milliseconds)) for name, milliseconds in spent.items()}


def has_torch() -> bool:
    """Return whether PyTorch and torchvision are installed."""
    return all(find_spec(name) for name in ("torch", "torchvision"))


def cpu_name() -> str:
    """Return the kind of CPU, on which times and even ratios depend."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    vectors = "with AVX-512" if "avx512f" in named.get("flags", "").split() else "without AVX-512"
    return f"{named.get('model name', platform.machine())}, {vectors}"


def matrix_product(size: int, dtype: Any = jnp.float32, device: jax.Device | None = None) -> Run:
    """Return a run that multiplies two `(size, size)` matrices, `2 * size**3` operations."""
    matrix = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    matrix = jax.device_put(jnp.asarray(matrix, dtype), device)
    product = jax.jit(jnp.matmul)
    return lambda: product(matrix, matrix).block_until_ready()


def test_inputs(path: Path | None, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image (a synthetic scene if no path is given), resized, and its first ROIS RoIs by selective search."""
    image = cv2.resize(load_image(path) if path else draw_scene(0, "val", 1).image, (columns, rows))
    rois = selective_search(image, mode="quality", max_boxes=ROIS)
    return image, np.resize(rois, (ROIS, 4)).astype(np.float32)


def training_batch(test: Batch) -> Batch:
    """Return a training batch: the image twice, with 64 of its RoIs each, a quarter of them objects."""
    rng = np.random.default_rng(0)
    return {
        "image": np.repeat(test["image"], 2, axis=0),
        "image_size": np.repeat(test["image_size"], 2, axis=0),
        "rois": rng.permutation(test["rois"][test["roi_mask"]])[:128].reshape(2, 64, 4),
        "roi_mask": np.ones((2, 64), bool),
        "labels": np.where(np.arange(64) < 16, rng.integers(1, CLASSES + 1, (2, 64)), 0).astype(np.int32),
        "box_targets": rng.normal(0, 1, (2, 64, 4)).astype(np.float32),
        "index": np.arange(2, dtype=np.int32),
    }


def chain(parts: Mapping[str, Part]) -> Run:
    """Return a run of all parts in order."""
    return lambda: functools.reduce(lambda value, part: part(value), parts.values(), None)


class Step:
    """Consecutive training steps of a model, on all local devices by default."""

    def __init__(
        self,
        model: FastRCNN,
        variables: Any,
        frozen: Sequence[str],
        devices: Sequence[jax.Device] | None = None,
        *,
        optimizer: optax.GradientTransformation | None = None,
    ):
        optimizer = optimizer or caffe_sgd(step_schedule(0.001, ()))
        state = create_state(variables, optimizer, frozen=frozen)
        self.state, self.key = replicate((jax.tree.map(np.asarray, state), jax.random.key(0)), devices=devices)
        self.step = make_train_step(model, optimizer, devices=devices)

    def __call__(self, batch: Batch) -> jax.Array:
        """Take one step and return its loss."""
        self.state, metrics = self.step(self.state, batch, self.key)
        return metrics["loss"]
