"""Atomic writes, up-front checks of output paths, and safe reading of files that strangers may have made.

What a file declares is checked before memory is spent on it: a content of more than SMALL bytes may be GROWTH times as
large as the file that holds it.
"""

import errno
import gc
import io
import json
import math
import os
import stat
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from frcnn_jax.errors import InputError


def write_atomic(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write a file atomically, even if this process is killed or another writes the same file.

    Args:
        path: The file to create or replace.
        write: Writes the content to the file it is given, a temporary one that is renamed afterwards.

    Raises:
        OSError: The file can't be written, for example because the disk is full. The message names it.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"{path}: can't be written ({error.strerror or error})") from None
        raise


def check_file(path: Path) -> None:
    """Raise InputError unless a file can be written at `path`."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: the folder does not exist")
    if path.is_dir():
        raise InputError(f"{path}: expected a file, got a folder")


def check_folder(path: Path) -> None:
    """Raise InputError unless `path` is a folder that can be written to, or can be created as one."""
    existing = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"{path}: expected a folder, {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise InputError(f"{path}: no permission to write to {existing}")


def write_text(path: Path, text: str, *, errors: str = "surrogateescape") -> None:
    """Write a UTF-8 text file atomically.

    Args:
        path: The file to create or replace.
        text: The content.
        errors: Passed to `str.encode`; the default preserves file names that are not UTF-8.
    """
    write_atomic(path, lambda file: file.write(text.encode(errors=errors)))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


SMALL = 64 << 20  # bytes
GROWTH = 100
LARGEST_FILE = 4 << 30  # bytes of a file that is read as a whole


@contextmanager
def decoding(path: str | Path, expected: str) -> Iterator[None]:
    """Turn whatever a decoder raises on a damaged file into an InputError that names the file.

    Args:
        path: The file; InputErrors that do not name it are prefixed with it.
        expected: What the message says of other exceptions, such as "not a JSON file".
    """
    try:
        yield
    except InputError as error:
        raise InputError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputError(f"{path}: {expected} ({reason})") from None


def check_growth(content: int, stored: int) -> None:
    """Raise ValueError if a content of so many bytes is too large for what holds it, which has `stored` bytes."""
    if content > max(SMALL, GROWTH * stored):
        raise ValueError(
            f"its content would take {content / 1e6:.0f} MB, more than {GROWTH} times the file's {stored / 1e6:.1f} MB"
        )


def read_bytes(path: str | Path) -> bytes:
    """Read a regular file; neither a device nor a pipe, which may have no end.

    Raises:
        InputError: It is none, or is larger than LARGEST_FILE.
        OSError: It is missing or can't be read.
    """
    descriptor, size = _open_regular(path)
    try:
        return b"".join(iter(lambda: os.read(descriptor, size + 1), b""))
    finally:
        os.close(descriptor)


def open_regular(path: str | Path) -> io.BufferedReader:
    """Open a file that `read_bytes` reads, with the same errors, to read parts of it."""
    descriptor, _ = _open_regular(path)
    return _Bounded(io.FileIO(descriptor))


class _Bounded(io.BufferedReader):
    """A file that does not prepare memory for more bytes than it has, however many a format declares."""

    def read(self, size: int | None = -1) -> bytes:
        if size and size > SMALL:
            size = min(size, os.fstat(self.fileno()).st_size)
        return super().read(size)


def _open_regular(path: str | Path) -> tuple[int, int]:
    """Return the descriptor of a file that was opened, and its size."""
    descriptor = os.open(path, _FLAGS)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: not a regular file")
        if status.st_size > LARGEST_FILE:
            raise InputError(f"{path}: {status.st_size} bytes, expected at most {LARGEST_FILE}")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor, status.st_size


# without waiting, even for the writer of a pipe
_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def read_array(file: BinaryIO, size: int) -> np.ndarray:
    """Read an array in the .npy format, which ends the file, refusing Python objects, which could run code.

    Args:
        file: The file, at the begin of the array.
        size: The place in the file where it ends.

    Raises:
        ValueError: It is damaged, declares another size, or holds Python objects. The message does not name the file.
    """
    shape, fortran, dtype = read_array_header(file)
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError(f"it declares an array of {shape} {dtype}, of another size than the file: cut short?")
    array: np.ndarray = np.frombuffer(bytearray(file.read()), dtype)
    return array.reshape(shape, order="F" if fortran else "C")


def read_array_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Read the header of an array in the .npy format: its shape, whether it is in Fortran's order, and its type.

    Raises:
        ValueError: It is damaged or of Python objects. The message does not name the file.
    """
    try:
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran, dtype = read[np.lib.format.read_magic(file)](file)
    except Exception:  # of many kinds: the header is a Python literal
        raise ValueError("cut short or not a .npy array") from None
    if dtype.hasobject:
        raise ValueError("an array of Python objects, which are not read")
    return shape, fortran, dtype


@contextmanager
def open_zip(path: Path, kind: str) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive whose members are stored or deflated, and of a size that `check_growth` allows.

    Args:
        path: The archive.
        kind: What it is, for messages.

    Raises:
        ValueError: It is no such archive. The message does not name it.
        InputError, OSError: As in `read_bytes`.
    """
    with open_regular(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
            raise ValueError(f"cut short or not a {kind}") from None
        members = archive.infolist()
        if any(member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for member in members):
            raise ValueError("compressed in another way than deflate")  # bzip2 and LZMA give gigabytes at once
        check_growth(sum(member.file_size for member in members), path.stat().st_size)
        yield archive


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file, refusing pickled Python objects, which could run code.

    Raises:
        ValueError: The file is damaged or of another format, or holds Python objects. The message does not name it.
        FileNotFoundError: It does not exist.
    """
    arrays = {}
    try:
        with open_zip(path, ".npz") as archive:
            for member in archive.infolist():
                with archive.open(member) as file:
                    arrays[member.filename.removesuffix(".npy")] = read_array(file, member.file_size)  # type: ignore[arg-type]
    except (ValueError, OSError):
        raise
    except Exception as error:  # of many kinds: encrypted, a checksum, zlib's
        raise ValueError(f"a damaged .npz ({' '.join(str(error).split()) or type(error).__name__})") from None
    return arrays


def read_json(
    path: Path, *, names_differ: bool = False, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        names_differ: Whether to refuse an object that has a name twice, of which JSON readers take the last.
        object_hook: Returns what replaces an object, as in `json.loads`; not with `names_differ`.

    Raises:
        InputError: The file is missing, unreadable or not JSON, or a name comes twice.
    """
    with decoding(path, "not a JSON file"), garbage_kept():
        return json.loads(
            read_bytes(path),
            object_hook=object_hook,
            object_pairs_hook=_of_different_names if names_differ else None,
        )


@contextmanager
def garbage_kept() -> Iterator[None]:
    """Pause the garbage collector: it would visit the objects of a large file many times, and find none to free."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _of_different_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} comes twice")
    return found
