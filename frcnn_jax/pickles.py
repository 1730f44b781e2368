"""Pickles of containers, strings, numbers and numeric NumPy arrays, read without executing anything in them."""

import io
import pickle
import pickletools
from collections.abc import Mapping
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


class NumberArray:
    """A pickled numpy.ndarray: created empty, then given its state."""

    array: np.ndarray

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.array = _buffer(data, kind, shape, "F" if fortran else "C").array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array, dtype)


def _buffer(data: Any, kind: _Dtype, shape: tuple, order: str) -> NumberArray:
    array = NumberArray()
    data = data.encode("latin1") if isinstance(data, str) else data  # as pickled by Python 2
    array.array = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if order == "F" else "C")
    return array


def _scalar(kind: _Dtype, data: Any) -> Any:
    return _buffer(data, kind, (), "C").array.item()


def _bytes(text: str = "", _: str = "latin1") -> bytes:
    return text.encode("latin1")


_NUMPY = {
    "ndarray": NumberArray,
    "_reconstruct": NumberArray,
    "_frombuffer": _buffer,
    "dtype": _Dtype,
    "scalar": _scalar,
}


class _NumbersUnpickler(pickle.Unpickler):
    """Unpickler that rebuilds arrays here and refuses all globals but those of NumPy and of a table."""

    def __init__(self, data: bytes, known: Mapping[tuple[str, str], Any]):
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._known = known

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) in (("_codecs", "encode"), ("__builtin__", "bytes")):  # how protocols 0 to 2 hold bytes
            return _bytes
        if module in ("builtins", "__builtin__") and name == "set":
            return set
        if (module, name) in self._known:
            return self._known[module, name]
        raise InputError(f"its pickle asks for {module}.{name}, which is not a number; nothing was executed")


def load_numbers(data: bytes, known: Mapping[tuple[str, str], Any] | None = None) -> Any:
    """Return the content of a pickle; malformed ones raise errors of many kinds. Arrays are `NumberArray`.

    Args:
        data: The pickle.
        known: What to call in place of further globals, by module and name.

    Raises:
        InputError: It asks for another global, or for more memory than its size explains.
    """
    for opcode, argument, _ in pickletools.genops(data):  # raises if a length exceeds the file
        if opcode.name.endswith("PUT") and (argument or 0) > len(data):
            raise InputError("its pickle numbers more objects than it holds")  # would take unbounded memory
    return _NumbersUnpickler(data, known or {}).load()
