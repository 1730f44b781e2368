"""Atomic writes, up-front checks of output paths, and safe reading of .npz and JSON files."""

import gc
import json
import os
import uuid
import zipfile
import zlib
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


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Read the arrays of a .npz file, refusing pickled Python objects, which could run code.

    Raises:
        ValueError: The file is damaged or of another format, or holds Python objects. The message does not name it.
    """
    try:
        with zipfile.ZipFile(path):  # np.load treats any other format as a pickle
            pass
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (zipfile.BadZipFile, EOFError, zlib.error):
        raise ValueError("cut short or not a .npz") from None
    except (RuntimeError, MemoryError) as error:  # encrypted, an unknown compression, a shape beyond the memory
        raise ValueError(str(error)) from None
    except ValueError:
        raise ValueError("it holds a damaged array, or Python objects, which are not read") from None


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
    try:
        with _garbage_kept():
            return json.loads(
                Path(path).read_bytes(),
                object_hook=object_hook,
                object_pairs_hook=_of_different_names if names_differ else None,
            )
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None


@contextmanager
def _garbage_kept() -> Iterator[None]:
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
