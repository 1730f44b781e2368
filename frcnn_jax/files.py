"""Files that are there whole or not at all."""

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


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


def write_text(path: Path, text: str, *, errors: str = "surrogateescape") -> None:
    """A text file in UTF-8, whole or not at all. Names of files that are no UTF-8 keep their bytes, or become what
    `errors` of str.encode makes of them."""
    write_whole(path, lambda file: file.write(text.encode(errors=errors)))


def write_json(path: Path, value: Any) -> None:
    """A JSON file, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")
