"""What `fuzz.py` feeds to the readers of what commands keep: checkpoints, caches, states and detectors."""

import io
import json
import multiprocessing
import os
import pickle
import shutil
import tempfile
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
from fuzz_targets import CLASSES, Target, crafted_json, encode_npy, npy_header, written
from PIL import Image

from frcnn_jax import embed
from frcnn_jax.build import build_model
from frcnn_jax.config import get_config
from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.records import ImageFile, Record
from frcnn_jax.models.fast_rcnn import variable_shapes
from frcnn_jax.models.weight_files import read_weights, write_weights
from frcnn_jax.models.weights import canonical_arrays, described
from frcnn_jax.proposals import cache as proposal_cache
from frcnn_jax.proposals.files import read_proposals
from frcnn_jax.training import checkpoint, svm
from frcnn_jax.training.feature_maps import FeatureMaps
from frcnn_jax.workdir import DETECTOR_FIELDS, detector_of

# ---- Checkpoints

VARIABLES = {"params": {"a": np.ones((2, 3), np.float32), "b": np.zeros(4, np.float32)}}
_WORKDIR = tempfile.TemporaryDirectory(prefix="fuzz")


@cache
def trained() -> Path:
    """Return a workdir with a checkpoint, written by a process of its own: forks of one that runs jax may hang."""
    workdir = Path(_WORKDIR.name)
    args = workdir, 3, VARIABLES
    writer = multiprocessing.get_context("fork").Process(target=checkpoint.save_model, args=args)
    writer.start()
    writer.join()
    return workdir


def checkpoint_target(pattern: str) -> Target:
    """Return a target that replaces a file of a checkpoint; if it is not that of the digests, there are none."""

    def place() -> Path:
        return sorted((trained() / "checkpoints").glob(pattern))[0].relative_to(trained())

    def read(path: Path) -> None:
        root = path.parent / "workdir"
        shutil.copytree(trained(), root, copy_function=os.link)
        if (digests := root / "checkpoints/3.json") != root / place():
            digests.unlink()
        (root / place()).unlink()
        path.rename(root / place())
        checkpoint.load_model(root, VARIABLES)

    return Target("mutant", lambda: [(trained() / place()).read_bytes()], read, crafted_json)


CHECKPOINTS = {
    "digests": "3.json",
    "metadata": "3/_CHECKPOINT_METADATA",
    "tree": "3/model/_METADATA",
    "manifest": "3/model/manifest.ocdbt",
    "arrays": "3/model/d/*",
}


# ---- States of interrupted runs


def svm_seeds() -> list[bytes]:
    rng = np.random.default_rng(0)
    svms = svm.HardNegativeSVMs([rng.normal(size=(n, 8)).astype(np.float32) for n in (3, 0)])
    svms.mine(rng.normal(size=(9, 8)).astype(np.float32), rng.uniform(size=(9, 2)))
    return [written("a.npz", lambda path, i=i: svms.save(path, scale=np.float32(0.5), images=i)) for i in (0, 4)]  # type: ignore[misc]


def read_svms(path: Path) -> None:
    svms, scale, start = svm._resume(path, 0, (2, 8), 4)
    svms.mine(np.ones((2, 8), np.float32) * scale, np.zeros((2, 2)))
    assert 0 <= start <= 4


def crafted_npy() -> dict[str, bytes]:
    fields = ", ".join(f"('f{i}', '<f4')" for i in range(100_000))
    return {
        "declared": npy_header("(1000000000, 4)"),
        "many fields": npy_header_2(f"{{'descr': [{fields}], 'fortran_order': False, 'shape': (1,), }}"),
        "long header": b"\x93NUMPY\x02\0\xff\xff\xff\xff{",
        "nested": npy_header_2("(" * 100_000),
        "objects": npy_header("(1,)", "|O") + b"cos\nsystem\n(S'true'\ntR.",
        "of no dimension": encode_npy(np.float16(3)),
        "a zip": b"PK\x03\x04",
        "many dimensions": npy_header("(" + "1, " * 60 + ")"),
    }


def npy_header_2(text: str) -> bytes:
    return b"\x93NUMPY\x02\0" + len(text).to_bytes(4, "little") + text.encode()


def read_feature_map(path: Path) -> None:
    record = Record("1", 4, 4, np.zeros((0, 4), np.float32), np.zeros(0, np.int32), np.zeros(0, bool), ImageFile("1"))
    maps = FeatureMaps(path.parent, {"1": b"1"})
    path.rename(maps.path(record, False, Sizes()))
    assert maps(record, False, Sizes()).ndim == 3


def read_features(path: Path) -> None:
    """Read the features of an image, which are computed again if they are none."""
    if embed._is_whole(path, 2):
        embed._write_npz([path] * 2, [np.zeros((2, 4), np.float32)] * 2, [path] * 2, io.BytesIO())


def index_seeds() -> list[bytes]:
    def write(path: Path) -> None:
        for i in range(3):
            image = ImageFile(str(path.parent / f"{i}.png"), (50, 60))
            proposal_cache.append_line(path.parent, bytes(range(i, i + 16)), image, (9, 9))

    return [written("index.txt", write)]


def read_index(path: Path) -> None:
    """Read an index, of which damaged lines are left out."""
    image = ImageFile(str(path.parent / "0.png"), (50, 60))
    Image.new("RGB", (60, 50)).save(image.path)
    folder = path.parent / "search"
    folder.mkdir()
    for digest in proposal_cache._known({"0": image}, path.parent, folder).values():
        assert isinstance(digest, bytes)


def crafted_index() -> dict[str, bytes]:
    def line(value: Any) -> bytes:
        text = json.dumps(value).encode()
        return b"%08x %s\n" % (zlib.crc32(text), text)

    return {
        "no digest": line(["zz", 1, 2, "a"]),
        "lists": line([[], {}, [], []]),
        "number": line(3),
        "nothing": line([]),
        "deep": line(None).replace(b"null", b"[" * 100_000),
        "many": line(["00" * 16, 1, 2, "a"]) * 20_000,
        "one line": b"a" * 10_000_000,
    }


# ---- Detectors


def detector_seeds() -> list[bytes]:
    """Return a detector with the smallest network, and others of whose config a field is another."""
    config = {**get_config().to_dict(), "network": "tiny", "class_names": list(CLASSES)}
    model = build_model(config, len(CLASSES))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variable_shapes(model)["params"])
    arrays = canonical_arrays(params, roi_size=model.roi_size)

    def content(**changes: Any) -> bytes:
        weights = described(arrays, model, {name: config[name] for name in DETECTOR_FIELDS} | changes)
        return written("a.safetensors", lambda path: write_weights(path, weights))

    return [content(), content(scales=[100, 150]), content(max_proposals=50)]


def crafted_detectors() -> dict[str, bytes]:
    def file(header: str | dict, data: bytes = b"") -> bytes:
        text = (header if isinstance(header, str) else json.dumps(header)).encode()
        return len(text).to_bytes(8, "little") + text + data

    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    return {
        "overlapping": file({"a": one, "b": one}, bytes(8)),
        "far": file({"a": one | {"data_offsets": [1 << 62, (1 << 62) + 8]}}, bytes(8)),
        "huge shape": file({"a": one | {"shape": [1 << 40, 1 << 40]}}, bytes(8)),
        "no numbers": file({"a": one | {"dtype": "BOOL", "data_offsets": [0, 2]}}, bytes(2)),
        "twice": file('{"a": %s, "a": %s}' % ((json.dumps(one),) * 2), bytes(8)),
        "long header": (1 << 62).to_bytes(8, "little") + b"{}",
        "header of 90 MB": file(" " * 90_000_000),
        "many names": file({f"a{i}": one | {"shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}),
        "deep": file('{"__metadata__": {"frcnn_jax": "' + "[" * 100_000 + '"}}'),
        "deeper": file("[" * 1_000_000),
    }


def read_detector(path: Path) -> None:
    detector_of(read_weights(path), str(path))


# ---- Names of images


def read_ids(path: Path) -> None:
    """Read a list of mmdetection, which names no images."""
    boxes = path.parent / "boxes.pkl"
    boxes.write_bytes(pickle.dumps([np.array([[1, 1, 9, 9]]), np.array([[1, 1, 9, 9, 0.5]])]))
    read_proposals(boxes, ids=path)


IDS = {"images": [{"id": 1, "file_name": "a/1.jpg"}, {"id": "2"}]}

WORKDIR_TARGETS = {
    **{f"checkpoint {name}": checkpoint_target(pattern) for name, pattern in CHECKPOINTS.items()},
    "svm state": Target("svm.npz", svm_seeds, read_svms),
    "feature map": Target(
        "mutant.npy", lambda: [encode_npy(np.ones((3, 4, 2), np.float16))], read_feature_map, crafted_npy
    ),
    "features": Target("mutant.npy", lambda: [encode_npy(np.ones((2, 8), np.float32))], read_features, crafted_npy),
    "cache index": Target("index.txt", index_seeds, read_index, crafted_index),
    "detector": Target("mutant.safetensors", detector_seeds, read_detector, crafted_detectors),
    "ids .txt": Target("ids.txt", lambda: [b"000001\n000002\n"], read_ids),
    "ids .json": Target("ids.json", lambda: [json.dumps(IDS).encode()], read_ids, crafted_json),
}
