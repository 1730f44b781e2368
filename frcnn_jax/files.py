"""Files that are there whole or not at all, whether they can be written, before the work, and .npz read safely."""

import json
import os
import uuid
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from frcnn_jax.errors import InputError


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """A file, whole or not at all, whatever ends this process and whoever else writes it: `write` fills a file of a
    name of its own beside it, which then takes its name.

    Raises:
        OSError: it can't be written (a full disk); the text names the file.
    """
    beside = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(beside, "wb") as file:
            write(file)
        os.replace(beside, path)
    except BaseException as error:
        beside.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(f"{path}: can't be written ({error.strerror or error})") from None
        raise


def check_file(path: Path) -> None:
    """InputError unless `path` is, or may become, a file."""
    if not path.parent.is_dir():
        raise InputError(f"{path}: its folder does not exist")
    if path.is_dir():
        raise InputError(f"{path}: a file is to be written there, it is a folder")


def check_folder(path: Path) -> None:
    """InputError unless `path` is, or may become, a folder that can be written to."""
    there = next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())
    if not there.is_dir():
        raise InputError(f"{path}: a folder is expected, {there} is a file")
    if not os.access(there, os.W_OK):
        raise InputError(f"{path}: {there} can't be written to")


def write_text(path: Path, text: str, *, errors: str = "surrogateescape") -> None:
    """A text file in UTF-8, whole or not at all. Names of files that are no UTF-8 keep their bytes, or become what
    `errors` of str.encode makes of them."""
    write_whole(path, lambda file: file.write(text.encode(errors=errors)))


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file. ValueError for another file, one that is cut short, or Python objects in it, which
    might run code; the caller knows what the file was to be."""
    try:
        with zipfile.ZipFile(path):  # np.load takes what is none for a pickle
            pass
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (zipfile.BadZipFile, EOFError, zlib.error):
        raise ValueError("cut short or not a .npz") from None
    except ValueError:
        raise ValueError("an array in it is broken, or of Python objects, which are not read") from None


def read_json(path: Path) -> Any:
    """The content of a JSON file. InputError where there is none."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None
