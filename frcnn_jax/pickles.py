"""Pickles of containers, strings, numbers and numeric NumPy arrays, read without executing anything in them."""

import io
import pickle
import pickletools
from collections.abc import Mapping, Sequence
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


DEEPEST = 100  # containers in containers
REPEATS = 100  # how much larger than the file a content may be, counted anew wherever it is repeated
_SMALL = 100_000


class _Container:
    """The size and depth of a container; once it is `repeated`, it may grow no more."""

    __slots__ = ("depth", "repeated", "size")

    def __init__(self) -> None:
        self.size, self.depth, self.repeated = 1, 1, False


def check_pickle(file: io.BytesIO) -> None:
    """Check the pickle at the place of a file before it is loaded, and leave the place as it is.

    A few bytes can nest a container in itself twice, and so on: to hash, compare or convert it takes for ever. So this
    follows the operations with sizes in place of objects: numbers, and a `_Container` for what holds others.

    Raises:
        InputError: Its content is nested deeper than DEEPEST, holds itself, or is more than REPEATS times as large.
        Exception: It is malformed; the errors are of many kinds.
    """
    begin, length = file.tell(), len(file.getbuffer())
    largest = REPEATS * (length - begin) + _SMALL
    stack: list[Any] = []
    marked: list[list[Any]] = []  # stacks below a mark
    memo: dict[int, Any] = {}
    for opcode, argument, _ in pickletools.genops(file):  # raises if a length exceeds the file
        name = opcode.name
        if name in _PUSHES:
            if type(argument) is int and argument.bit_length() > 64:
                raise InputError("its pickle has an integer of more than 64 bits")  # many may have one hash
            stack.append(1 + len(argument) if isinstance(argument, str | bytes | bytearray) else 1)
        elif name in _PUTS:
            number = len(memo) if name == "MEMOIZE" else int(argument or 0)
            if number > length:
                raise InputError("its pickle numbers more objects than it holds")  # would take unbounded memory
            memo[number] = stack[-1]
        elif name in _GETS:
            own = stack[-1] if name == "DUP" else memo[int(argument or 0)]
            if type(own) is _Container:
                own.repeated = True
            stack.append(own)
        elif name in _JOINS:
            count, makes = _JOINS[name]
            if count is None:
                inside, stack = stack, marked.pop()
            else:
                inside = stack[len(stack) - count :]
                del stack[len(stack) - count :]
            if makes:
                stack.append(_Container())
            _put(inside, stack[-1], largest)
        elif name == "MARK":
            marked.append(stack)
            stack = []
        elif name == "POP" and stack:
            stack.pop()
        elif name in ("POP", "POP_MARK"):
            stack = marked.pop()
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise InputError(f"its pickle has the operation {name}, which plain data do not need")
    file.seek(begin)


def _put(inside: Sequence[Any], holder: Any, largest: int) -> None:
    """Add what a container holds to its size and depth."""
    if type(holder) is not _Container or holder.repeated:
        raise InputError("its pickle puts something into what can't hold it, or into a container that it repeats")
    for own in inside:
        if type(own) is _Container:
            holder.size += own.size
            holder.depth = max(holder.depth, own.depth + 1)
        else:
            holder.size += own
    if holder.depth > DEEPEST:
        raise InputError(f"its pickle is nested deeper than {DEEPEST}")
    if holder.size > largest:
        raise InputError(
            f"its pickle holds more than {REPEATS} times the file, once all that it repeats is written out"
        )


_PUSHES = frozenset((
    "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
    "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "GLOBAL",
))  # fmt: skip
_PUTS = frozenset(("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"))
_GETS = frozenset(("GET", "BINGET", "LONG_BINGET", "DUP"))
_JOINS = {  # how many objects an operation takes, None for those up to the mark, and whether it makes their container
    "EMPTY_LIST": (0, True), "EMPTY_DICT": (0, True), "EMPTY_SET": (0, True), "EMPTY_TUPLE": (0, True),
    "TUPLE1": (1, True), "TUPLE2": (2, True), "TUPLE3": (3, True), "STACK_GLOBAL": (2, True), "REDUCE": (2, True),
    "NEWOBJ": (2, True), "BINPERSID": (1, True), "TUPLE": (None, True), "LIST": (None, True), "DICT": (None, True),
    "FROZENSET": (None, True), "APPEND": (1, False), "SETITEM": (2, False), "BUILD": (1, False),
    "APPENDS": (None, False), "SETITEMS": (None, False), "ADDITEMS": (None, False),
}  # fmt: skip


def load_numbers(data: bytes, known: Mapping[tuple[str, str], Any] | None = None) -> Any:
    """Return the content of a pickle; malformed ones raise errors of many kinds. Arrays are `NumberArray`.

    Args:
        data: The pickle.
        known: What to call in place of further globals, by module and name.

    Raises:
        InputError: It asks for another global, or for more memory than its size explains.
    """
    check_pickle(io.BytesIO(data))
    return _NumbersUnpickler(data, known or {}).load()
