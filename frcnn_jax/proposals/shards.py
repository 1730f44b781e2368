"""Shards: this library's proposal files, memory-mapped when read.

A shard is three consecutive .npy arrays: UTF-8 JSON `{"format", "version", "images": [id, ..]}` as uint8, offsets
`(images + 1,)` int64, and boxes `(offsets[-1], 4)` uint16. Image i has the boxes offsets[i] to offsets[i + 1].
"""

import json
import math
import os
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from frcnn_jax.data.records import check_boxes
from frcnn_jax.errors import InputError
from frcnn_jax.files import open_regular, read_array_header, write_atomic

LARGEST_SIDE = 1 << 16  # pixels: boxes are uint16
_FORMAT, _VERSION = "frcnn_jax proposals", 1


def write_proposals(path: str | Path, proposals: Mapping[str, np.ndarray]) -> None:
    """Write proposals as a shard, atomically.

    Args:
        path: A .proposals file.
        proposals: `(N, 4)` boxes by image id; they are rounded to integers.

    Raises:
        InputError: `path` has the wrong suffix, or boxes are not finite `(N, 4)` or exceed uint16.
        OSError: The file can't be written.
    """
    path = Path(path)
    if path.suffix != ".proposals":
        raise InputError(f"{path}: proposals are written to .proposals files")
    boxes = [_as_stored(own, f"{path}: boxes of image {name!r}") for name, own in proposals.items()]
    header = json.dumps({"format": _FORMAT, "version": _VERSION, "images": list(proposals)}).encode()
    header = header.ljust(-(-len(header) // 64) * 64)  # aligns the arrays that follow
    parts: list[np.ndarray] = [
        np.frombuffer(header, np.uint8),
        np.cumsum([0, *map(len, boxes)], dtype=np.int64),
        np.concatenate([np.zeros((0, 4), np.uint16), *boxes]),
    ]

    def write(file: BinaryIO) -> None:
        for part in parts:
            np.save(file, part, allow_pickle=False)

    write_atomic(path, write)


def _as_stored(boxes: np.ndarray, where: str) -> np.ndarray:
    rounded = np.rint(check_boxes(boxes, where))
    if not ((rounded >= 0) & (rounded < LARGEST_SIDE)).all():
        raise InputError(f"{where} are not within 0 to {LARGEST_SIDE - 1}")
    return rounded.astype(np.uint16)


def _read_array(file: BinaryIO, size: int) -> np.ndarray:
    """Read one of the arrays in a shard of `size` bytes."""
    try:
        shape, _, dtype = read_array_header(file)
        data = file.read(min(math.prod(shape) * dtype.itemsize, size))
        return np.frombuffer(data, dtype).reshape(shape)
    except ValueError:
        raise InputError("cut short or not a shard") from None


def read_shard(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the image ids and `(N, 4)` uint16 boxes of a shard; malformed files raise errors of many kinds."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = json.loads(_read_array(file, size).tobytes())
        if header["format"] != _FORMAT or header["version"] != _VERSION:
            raise InputError(
                f"{header['format']!r} of version {header['version']!r}, expected {_FORMAT!r} of version {_VERSION}"
            )
        offsets = _read_array(file, size)
        shape, fortran, dtype = read_array_header(file)
        place = file.tell()
    image_ids = header["images"]
    matching = offsets.dtype == np.int64 and offsets.shape == (len(image_ids) + 1,)
    if not matching or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise InputError("its offsets do not match its images")
    if dtype != np.uint16 or fortran or shape != (offsets[-1], 4) or size != place + 8 * shape[0]:
        raise InputError(f"its boxes are {shape} {dtype}, or it is cut short")
    boxes = np.memmap(path, dtype, "r", place, shape) if shape[0] else np.zeros((0, 4), np.uint16)
    yield from zip(map(str, image_ids), (boxes[a:b] for a, b in pairwise(offsets)), strict=True)
