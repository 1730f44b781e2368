"""MATLAB files of level 5, as `save` writes them with -v6 and -v7: arrays of numbers, texts and cells.

A reader of our own, because SciPy's (1.17) ends the process on some damaged files. Every length is checked by slicing,
and what does not fit raises. Format: MathWorks, "MAT-File Level 5 File Format".
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.errors import InputError

# data types of elements
_NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_MATRIX, _COMPRESSED = 14, 15
_TEXTS = {1: "latin1", 2: "latin1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
# classes of arrays
_CELL, _CHAR, _NUMERIC = 1, 4, range(6, 16)
_COMPLEX = 0x800  # a flag


def read_mat(path: Path) -> dict[str, Any]:
    """By name its variables: an array of numbers; a str; of a cell array, an object array of such; else None.

    Raises:
        InputError, ValueError, struct.error, zlib.error: it is not such a file, or broken.
        OSError: it can't be read.
    """
    data = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or struct.unpack_from(f"{order}H", data, 124) != (0x100,):
        raise InputError("it is not of level 5, which MATLAB's save writes with -v7 or -v6")
    variables = {}
    for kind, body in _elements(memoryview(data)[128:], order):
        for inner, content in (
            _elements(memoryview(zlib.decompress(body)), order) if kind == _COMPRESSED else [(kind, body)]
        ):
            if inner == _MATRIX:
                name, value = _array(content, order)
                variables[name] = value
    return variables


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """The types and contents of the elements that follow each other."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        begin, end = place + 8, place + 8 + size
        if kind >> 16:  # a small one: both in the first word, up to four bytes in the second
            kind, size = kind & 0xFFFF, kind >> 16
            begin, end = place + 4, place + 4 + size
            place += 8
        else:
            place = end if kind == _COMPRESSED else end + -size % 8
        if end > min(place, len(data)):
            raise InputError("it is cut short")
        yield kind, data[begin:end]


def _array(body: memoryview, order: str) -> tuple[str, Any]:
    """The name and the value of an array."""
    if not body:
        return "", np.zeros((0, 0))
    (_, flags), (_, dims), (_, name), *parts = _elements(body, order)
    (flag,) = struct.unpack_from(f"{order}I", flags)
    value: Any = None
    if flag & 0xFF == _CELL:
        value = np.empty(len(parts), object)
        value[:] = [_array(part, order)[1] for _, part in parts]
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
