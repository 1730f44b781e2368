"""Pickles of containers, strings, numbers and numeric NumPy arrays, read without executing anything in them."""

import io
import pickle
import pickletools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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
        instead = "; save its tensors as tensor.numpy()" if module.split(".")[0] == "torch" else ""
        raise InputError(f"its pickle asks for {module}.{name}, which is not a number; nothing was executed{instead}")


DEEPEST = 100  # containers in containers
REPEATS = 100  # how much larger than the file a content may be, counted anew wherever it is repeated
_SMALL = 100_000


class _Operation(NamedTuple):
    """What `check_pickle` makes of an operation."""

    kind: str
    argument: int  # bytes that follow it; or one of pickletools' marks of a length or a line
    takes: int | None = 0  # how many objects a "join" puts into a container, None for those up to the mark
    makes: bool = False  # whether it makes this container, or else it is the one below


def check_pickle(data: bytes, place: int = 0) -> None:
    """Check the pickle at a place before it is loaded.

    A few bytes can nest a container in itself twice, and so on: to hash, compare or convert it takes for ever. So this
    follows the operations with sizes in place of objects: a number of bytes, and a list [size, depth, repeated] for
    what holds others. A container that is repeated may grow no more.

    Raises:
        InputError: Its content is nested deeper than DEEPEST, holds itself, or is more than REPEATS times as large.
        Exception: It is malformed; the errors are of many kinds.
    """
    largest = REPEATS * (len(data) - place) + _SMALL
    stack: list[Any] = []
    marked: list[list[Any]] = []  # stacks below a mark
    memo: dict[int, Any] = {}
    while True:
        code, begin = data[place], place + 1
        kind, argument, takes, makes = _OPERATIONS[code]
        place = begin + argument if argument >= 0 else _end_of_argument(data, begin, code, argument)
        if kind == "memoize":
            memo[len(memo)] = stack[-1]
        elif kind == "push":
            stack.append(place - begin + 1)
        elif kind == "join":
            if takes is None:
                inside, stack = stack, marked.pop()
            else:
                inside = stack[-takes:]
                del stack[-takes:]
            if makes:
                stack.append(_sum(inside, 1, 1, largest))
            elif type(stack[-1]) is not list or stack[-1][2]:
                raise InputError(
                    "its pickle puts something into what can't hold it, or into a container that it repeats"
                )
            else:
                stack[-1][:] = _sum(inside, stack[-1][0], stack[-1][1], largest)
        elif kind == "get":
            own = memo[_number(data[begin:place], argument)] if argument else stack[-1]
            if type(own) is list:
                own[2] = True
            stack.append(own)
        elif kind == "new":
            stack.append([1, 1, False])
        elif kind == "mark":
            marked.append(stack)
            stack = []
        elif kind == "put":
            if (number := _number(data[begin:place], argument)) > len(data):
                raise InputError("its pickle numbers more objects than it holds")  # would take unbounded memory
            memo[number] = stack[-1]
        elif kind == "pop":
            if stack and not makes:
                stack.pop()
            else:
                stack = marked.pop()
        elif kind == "stop":
            return
        elif kind != "nothing":
            raise InputError(f"its pickle has the operation {kind}, which plain data do not need")


def _sum(inside: Sequence[Any], size: int, depth: int, largest: int) -> list[Any]:
    """Return a container that holds more objects."""
    for own in inside:
        if type(own) is int:
            size += own
        else:
            size += own[0]
            if own[1] >= depth:
                depth = own[1] + 1
    if depth > DEEPEST:
        raise InputError(f"its pickle is nested deeper than {DEEPEST}")
    if size > largest:
        raise InputError(
            f"its pickle holds more than {REPEATS} times the file, once all that it repeats is written out"
        )
    return [size, depth, False]


def _end_of_argument(data: bytes, begin: int, code: int, argument: int) -> int:
    """Return where an argument ends that is a line, two lines, or a length and so many bytes."""
    if argument == pickletools.UP_TO_NEWLINE:
        end = data.index(b"\n", begin) + 1
        if code == _GLOBAL:
            end = data.index(b"\n", end) + 1
        number = data[begin:end] if code in _DECIMAL else b""
        if len(number) > 22 or (number and int(number.rstrip(b"L\n")).bit_length() > 64):
            raise InputError(_HUGE)
        return end
    width = _LENGTHS[argument]
    end = begin + width + int.from_bytes(data[begin : begin + width], "little")
    if end > len(data):
        raise InputError("truncated")
    if code in _LONG and (end - begin - width > 9 or _number(data[begin + width : end], 0).bit_length() > 64):
        raise InputError(_HUGE)
    return end


_HUGE = "its pickle has an integer of more than 64 bits"  # many may have one hash


def _number(argument: bytes, size: int) -> int:
    """Return the number that an argument is: decimal if its size is a mark of a line."""
    return int(argument) if size < 0 else int.from_bytes(argument, "little")


_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_JOINS: dict[str, tuple[int | None, bool]] = {  # `takes` and `makes`
    "TUPLE1": (1, True), "TUPLE2": (2, True), "TUPLE3": (3, True), "STACK_GLOBAL": (2, True), "REDUCE": (2, True),
    "NEWOBJ": (2, True), "BINPERSID": (1, True), "TUPLE": (None, True), "LIST": (None, True), "DICT": (None, True),
    "FROZENSET": (None, True), "APPEND": (1, False), "SETITEM": (2, False), "BUILD": (1, False),
    "APPENDS": (None, False), "SETITEMS": (None, False), "ADDITEMS": (None, False),
}  # fmt: skip
_KINDS = {
    "push": (
        "NONE", "NEWTRUE", "NEWFALSE", "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT",
        "BINFLOAT", "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE",
        "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8", "GLOBAL",
    ),
    "new": ("EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET", "EMPTY_TUPLE"),
    "memoize": ("MEMOIZE",),
    "put": ("PUT", "BINPUT", "LONG_BINPUT"),
    "get": ("GET", "BINGET", "LONG_BINGET", "DUP"),
    "join": tuple(_JOINS),
    "mark": ("MARK",),
    "pop": ("POP", "POP_MARK"),
    "stop": ("STOP",),
    "nothing": ("PROTO", "FRAME"),
}  # fmt: skip
_OF_NAME = {opcode.name: opcode for opcode in pickletools.opcodes}
_OPERATIONS = [_Operation("of no name", 0)] * 256  # by code
for _kind, _names in {**{name: (name,) for name in _OF_NAME}, **_KINDS}.items():
    for _name in _names:
        _argument = getattr(_OF_NAME[_name].arg, "n", 0)
        _OPERATIONS[ord(_OF_NAME[_name].code)] = _Operation(
            _kind, _argument, *_JOINS.get(_name, (0, _name == "POP_MARK"))
        )
_GLOBAL, *_DECIMAL = (ord(_OF_NAME[name].code) for name in ("GLOBAL", "INT", "LONG"))
_LONG = [ord(_OF_NAME[name].code) for name in ("LONG1", "LONG4")]


def load_numbers(data: bytes, known: Mapping[tuple[str, str], Any] | None = None) -> Any:
    """Return the content of a pickle; malformed ones raise errors of many kinds. Arrays are `NumberArray`.

    Args:
        data: The pickle.
        known: What to call in place of further globals, by module and name.

    Raises:
        InputError: It asks for another global, or for more memory than its size explains.
    """
    check_pickle(data)
    return _NumbersUnpickler(data, known or {}).load()
