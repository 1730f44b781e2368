"""Proposals in MATLAB files of level 5, which `save` writes with -v6 and -v7.

SciPy's reader (1.17) crashes the process on some damaged files. This one reads numeric, text and cell arrays, and
checks every length by slicing. Format: MathWorks, "MAT-File Level 5 File Format".
"""

import itertools
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.errors import InputError
from frcnn_jax.files import GROWTH, SMALL, read_bytes

# data types of elements
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_TEXTS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
# classes of arrays
_CELL, _CHAR, _NUMERIC = 1, 4, range(6, 16)
_COMPLEX = 0x800  # a flag
MOST_ELEMENTS = 1_500_000  # of a file; an image has about ten


def read_mat_boxes(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the image ids and boxes of a proposal file; malformed files raise errors of many kinds."""
    content = read_mat(path)
    if "boxes" not in content:
        raise InputError("no variable 'boxes'")
    boxes = np.asarray(content["boxes"])
    if "images" in content:
        images = np.asarray(content["images"]).ravel()
        if boxes.dtype.kind != "O" or images.dtype.kind != "O" or len(images) != boxes.size:
            raise InputError("'images' and 'boxes' must be cell arrays of the same length")
        for name, array in zip(images, boxes.ravel(), strict=True):
            yield str(name), _zero_based(np.asarray(array), [1, 0, 3, 2])
    elif path.stem.endswith("_boxes"):
        yield path.stem.removesuffix("_boxes"), boxes
    else:
        yield path.stem, _zero_based(boxes, [0, 1, 2, 3])


def _zero_based(boxes: np.ndarray, order: list[int]) -> np.ndarray:
    if boxes.dtype.kind not in "fiu" or boxes.ndim != 2 or boxes.shape[1] != 4:
        return boxes  # rejected later, in a message that names the image
    return boxes[:, order].astype(np.float64) - 1


def read_mat(path: Path) -> dict[str, Any]:
    """Return the variables by name: a numeric array, a str, an object array of these for a cell array, else None.

    Raises:
        Exception: The file is malformed; the errors are of many kinds.
    """
    data = read_bytes(path)
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or struct.unpack_from(f"{order}H", data, 124) != (0x100,):
        raise InputError("expected level 5, which MATLAB's save writes with -v7 or -v6")
    variables = {}
    count, room = itertools.count(), max(SMALL, GROWTH * len(data))
    for kind, body in _elements(memoryview(data)[128:], order, count):
        parts: Iterable[tuple[int, memoryview]] = [(kind, body)]
        if kind == _COMPRESSED:
            unpacked = zlib.decompressobj().decompress(body, room + 1)
            room -= len(unpacked)
            if room < 0:
                raise InputError(f"its content is more than {GROWTH} times as large as the file")
            parts = _elements(memoryview(unpacked), order, count)
        for inner, content in parts:
            if inner == _MATRIX:
                name, value = _array(content, order, count)
                variables[name] = value
    return variables


def _elements(data: memoryview, order: str, count: Iterator[int]) -> Iterator[tuple[int, memoryview]]:
    """Yield the types and contents of consecutive elements, which `count` numbers over the whole file."""
    place = 0
    while place < len(data):
        if next(count) >= MOST_ELEMENTS:
            raise InputError(f"it has more than {MOST_ELEMENTS} elements")
        kind, size = struct.unpack_from(f"{order}II", data, place)
        begin, end = place + 8, place + 8 + size
        if kind >> 16:  # small: type and size in the first word, up to four bytes in the second
            kind, size = kind & 0xFFFF, kind >> 16
            begin, end = place + 4, place + 4 + size
            place += 8
        else:
            place = end if kind == _COMPRESSED else end + -size % 8
        if end > min(place, len(data)):
            raise InputError("it is cut short")
        yield kind, data[begin:end]


def _array(body: memoryview, order: str, count: Iterator[int]) -> tuple[str, Any]:
    """Return the name and the value of an array."""
    if not body:
        return "", np.zeros((0, 0))
    (_, flags), (_, dims), (_, name), *parts = _elements(body, order, count)
    (flag,) = struct.unpack_from(f"{order}I", flags)
    value: Any = None
    if flag & 0xFF == _CELL:
        value = np.empty(len(parts), object)
        value[:] = [_array(part, order, count)[1] for _, part in parts]
    elif flag & 0xFF == _CHAR:
        value = _text(*parts[0], order)
    elif flag & 0xFF in _NUMERIC and not flag & _COMPLEX:
        value = np.frombuffer(parts[0][1], order + _NUMBERS[parts[0][0]])
    if isinstance(value, np.ndarray):
        value = value.reshape(np.frombuffer(dims, f"{order}i4"), order="F")
    return bytes(name).decode("latin1"), value


def _text(kind: int, data: memoryview, order: str) -> str:
    encoding = _TEXTS[kind]
    if encoding in ("utf-16", "utf-32"):
        encoding += "-le" if order == "<" else "-be"
    return bytes(data).decode(encoding)
