"""Proposals in Detectron2's pickles, read without executing anything in them."""

import io
import pickle
import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from frcnn_jax.errors import InputError


class _Dtype:
    """A pickled numpy.dtype of numbers: a code such as "f4", then a state with the byte order."""

    def __init__(self, code: str, *_: Any):
        if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
            raise InputError(f"an array of type {code!r}, expected numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """A pickled numpy.ndarray: created empty, then given its state."""

    array: np.ndarray

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.array = _buffer(data, kind, shape, "F" if fortran else "C").array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array, dtype)


def _buffer(data: Any, kind: _Dtype, shape: tuple, order: str) -> _Array:
    array = _Array()
    data = data.encode("latin1") if isinstance(data, str) else data  # as pickled by Python 2
    array.array = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if order == "F" else "C")
    return array


def _scalar(kind: _Dtype, data: Any) -> Any:
    return _buffer(data, kind, (), "C").array.item()


def _bytes(text: str = "", _: str = "latin1") -> bytes:
    return text.encode("latin1")


_NUMPY = {
    "ndarray": _Array,
    "_reconstruct": _Array,
    "_frombuffer": _buffer,
    "dtype": _Dtype,
    "scalar": _scalar,
}


class _NumbersUnpickler(pickle.Unpickler):
    """Unpickler of containers, strings, numbers and numeric NumPy arrays, rebuilt here; refuses other globals."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) in (("_codecs", "encode"), ("__builtin__", "bytes")):  # how protocols 0 to 2 hold bytes
            return _bytes
        if (module, name) == ("detectron2.structures.boxes", "BoxMode"):
            return int
        raise InputError(f"its pickle asks for {module}.{name}, which is not a number; nothing was executed")


def read_pickle(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield image ids and boxes, by descending `objectness_logits`; malformed files raise errors of many kinds.

    Detectron's older names, `indexes` and `scores`, are accepted as well.
    """
    data = path.read_bytes()
    for opcode, argument, _ in pickletools.genops(data):  # raises if a length exceeds the file
        if opcode.name.endswith("PUT") and (argument or 0) > len(data):
            raise InputError("its pickle numbers more objects than it holds")  # would take unbounded memory
    content = _NumbersUnpickler(io.BytesIO(data), encoding="latin1").load()
    if not isinstance(content, dict):
        raise InputError(f"expected a dict, got a {type(content).__name__}")
    names = (("ids", "indexes"), ("boxes", "boxes"), ("objectness_logits", "scores"))
    lists = [content.get(name, content.get(former)) for name, former in names]
    mode = content.get("bbox_mode", 0)
    if any(values is None for values in lists):
        raise InputError(f"expected ids, boxes and objectness_logits, got {', '.join(map(str, content))}")
    if mode not in (0, 1):
        raise InputError(f"bbox_mode must be XYXY_ABS (0) or XYWH_ABS (1), got {mode!r}")
    lists = [values.array if isinstance(values, _Array) else values for values in lists]
    for image_id, boxes, logits in zip(*lists, strict=True):
        boxes, logits = np.asarray(boxes), np.asarray(logits)
        boxes, logits = boxes if boxes.size else np.zeros((0, 4)), logits if logits.size else np.zeros(0)
        if boxes.ndim != 2 or boxes.shape[1] != 4 or logits.shape != boxes.shape[:1]:
            raise InputError(f"image {str(image_id)!r}: {boxes.shape} boxes and {logits.shape} logits")
        yield str(image_id), _inclusive(boxes, mode)[np.argsort(-logits, kind="stable")]


def _inclusive(boxes: np.ndarray, mode: int) -> np.ndarray:
    """Convert exclusive corners or (x, y, width, height) to inclusive corners, at least one pixel wide."""
    corner, other = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    end = corner + other if mode else other
    return np.concatenate([corner, np.where(end > corner, np.maximum(end - 1, corner), end - 1)], axis=1)
