"""What several tests share: small data sets and batches, programs on simulated devices."""

import contextlib
import io
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from frcnn_jax.cli import run
from frcnn_jax.data.records import Dataset, Record
from frcnn_jax.models.fast_rcnn import FastRCNN

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 3  # of `make_batch`


def run_command(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `frcnn NAME ...` in this process: a process of its own imports for seconds."""
    argv = ["frcnn", *map(str, arguments)]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.object(sys, "argv", argv):
        try:
            run(name)
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(argv, code, out.getvalue(), err.getvalue())


def run_on_devices(code: str, devices: int, folder: Path, *args: object) -> Any:
    """What a program leaves in the .npz of its first argument; it runs where jax has so many devices."""
    path = folder / f"{devices}.npz"
    count = f"import jax; assert jax.local_device_count() == {devices};"
    env = {
        **os.environ, "JAX_NUM_CPU_DEVICES": str(devices), "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests", ROOT / "tests" / "training"))),
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", count + code, str(path), *map(str, args)], check=True, env=env)
    return np.load(path)


def annotation(number=1, image_id=7, category_id=3, bbox=(0, 0, 10, 20), **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), **more}


def write_coco(root, annotations, **changes):
    Image.new("RGB", (50, 40)).save(root / "a.jpg")
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 50, "height": 40}],
        "annotations": annotations,
        "categories": [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    path = root / "instances.json"
    path.write_text(json.dumps({**content, **changes}))
    return path


def blank():
    return np.zeros((20, 30, 3), np.uint8)


def make_dataset():
    records = [
        Record(f"im{i}", 20, 30, np.array([[1, 2, 9, 9]], np.float32), np.array([i + 1]), np.zeros(1, bool), blank)
        for i in range(2)
    ]
    return Dataset(("cat", "dog", "cow"), records)


def read_events(folder):
    """The events of a folder's files, in order; each record is length, its check, data, its check."""
    for path in sorted(folder.iterdir()):
        rest = path.read_bytes()
        while rest:
            (length,) = struct.unpack("<Q", rest[:8])
            data = rest[12 : 12 + length]
            assert struct.unpack("<I", rest[8:12])[0] == masked_crc32c(rest[:8])
            assert struct.unpack("<I", rest[12 + length : 16 + length])[0] == masked_crc32c(data)
            yield Event.FromString(data)
            rest = rest[16 + length :]


class PixelBackbone(nn.Module):
    """The images are their own features."""

    spatial_scale: float = 1.0

    def __call__(self, images, image_size):
        return images


class ToldHead(nn.Module):
    """A head that is told the probability of each RoI's classes, and the normalised deltas of all."""

    num_classes: int
    probs: tuple[tuple[float, ...], ...]  # per RoI and foreground class
    deltas: tuple[float, float, float, float] = (0, 0, 0, 0)

    def __call__(self, pooled, train=False):
        told = np.array(self.probs).reshape(-1, self.num_classes)
        probs = np.full((pooled.shape[1], self.num_classes), 1e-6)
        probs[: len(told)] = told
        probs = np.concatenate([1 - probs.sum(1, keepdims=True), probs], axis=1)
        logits = jnp.broadcast_to(jnp.log(probs), (len(pooled), *probs.shape))
        return logits, jnp.broadcast_to(jnp.array(self.deltas, jnp.float32), (*logits.shape, 4))


class RoIsAlone:
    """A pool that returns the RoIs, as if it rounded them to cells."""

    rounds = True

    def __call__(self, features, rois):
        return rois


def told_network(probs, *, classes=1, deltas=(0, 0, 0, 0)):
    """A model that is told its scores, and its variables; box statistics change nothing."""
    model = FastRCNN(PixelBackbone(), ToldHead(classes, tuple(probs), deltas), RoIsAlone())
    stats = {"mean": np.zeros((classes + 1, 4), np.float32), "std": np.ones((classes + 1, 4), np.float32)}
    return model, {"params": {}, "box_stats": stats}


class PixelHead(nn.Module):
    """Logits 0 and the sum of 10, 0.1 and 0.01 times the channels; deltas of the class (0.4, 0.4, log 2, 0)."""

    num_classes: int = 1

    def __call__(self, pooled, train=False):
        score = pooled @ jnp.array([10, 0.1, 0.01])
        deltas = jnp.array([[9, 9, 9, 9], [0.4, 0.4, jnp.log(2.0), 0]])
        return jnp.stack([jnp.zeros_like(score), score], -1), jnp.broadcast_to(deltas, (*score.shape, 2, 4))


def pixel_network(pixels):
    """A model whose scores are those of the first pixel, and its variables: deltas are (0.3, 0.2, log 2, 0)."""
    model = FastRCNN(PixelBackbone(), PixelHead(), lambda features, rois: features[:, [0] * rois.shape[1], 0], pixels)
    stats = {"mean": [[5, 5, 5, 5], [0.1, -0.2, 0, 0]], "std": [[5, 5, 5, 5], [0.5, 1, 1, 1]]}
    return model, {"params": {}, "box_stats": {name: np.array(rows, np.float32) for name, rows in stats.items()}}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def make_batch(images=4, rois=16, seed=0):
    """Images with 16, 3, 1 and no RoIs, in turn."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (images, rois, 2, 2)), axis=2).reshape(images, rois, 4) * [63, 47, 63, 47]
    mask = np.arange(rois) < np.array([16, 3, 1, 0])[np.arange(images) % 4, None]
    return {
        "image": rng.normal(0, 50, (images, 48, 64, 3)).astype(np.float32),
        "image_size": np.array([[48, 64], [40, 64], [48, 50], [33, 44]] * images, np.int32)[:images],
        "rois": corners.astype(np.float32),
        "roi_mask": mask,
        "labels": np.where(mask, rng.integers(0, CLASSES + 1, (images, rois)), 0).astype(np.int32),
        "box_targets": rng.normal(0, 1, (images, rois, 4)).astype(np.float32),
        "index": np.arange(images, dtype=np.int32) + 12,
    }
