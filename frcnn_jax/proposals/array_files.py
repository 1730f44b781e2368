"""Proposals in one text or .npy file per image, named after the image: `(N, 4)`, or `(N, 5)` with the score last.

A text file may say its format in a first line, `# boxes: FORMAT`; other files are read as the format that is asked for.
"""

import io
from pathlib import Path

import numpy as np

from frcnn_jax.errors import InputError
from frcnn_jax.files import read_array, read_bytes
from frcnn_jax.proposals.entries import BOX_FORMATS, Content, Entry, Options, split_scores

_HEADING = "# boxes:"
_NONE = np.zeros((0, 4))


def read_text(path: Path, options: Options) -> Content:
    """Read the boxes of one image from a text file: a box per line, numbers separated by blanks or commas."""
    lines = read_bytes(path).decode("utf-8-sig").splitlines()
    said = lines[0].removeprefix(_HEADING).strip() if lines and lines[0].startswith(_HEADING) else None
    if said is not None and said not in BOX_FORMATS:
        raise InputError(f"its boxes are {said!r}, expected one of {', '.join(BOX_FORMATS)}")
    rows: list[list[float]] = []
    for i, line in enumerate(lines[said is not None :], 1 + (said is not None)):
        try:
            row = [float(number) for number in line.replace(",", " ").split()]
        except ValueError:
            row = [np.nan]
        if row and (len(row) not in (4, 5) or len(row) != len((rows or [row])[0])):
            expected = f"{len(rows[0])} numbers as in the lines before" if rows else "4 numbers, or 5 with the score"
            raise InputError(f"line {i}: expected {expected}, got {line[:60]!r}")
        rows += [row] if row else []
    array = np.array(rows, np.float64) if rows else _NONE
    return _one_image(path, "text files", array, said, options)


def read_npy(path: Path, options: Options) -> Content:
    """Read the boxes of one image from a .npy file."""
    data = read_bytes(path)
    array = read_array(io.BytesIO(data), len(data))
    return _one_image(path, ".npy files", array, None, options)


def _one_image(path: Path, kind: str, array: np.ndarray, said: str | None, options: Options) -> Content:
    box_format = said or options.box_format
    if not box_format and array.size:
        say = f"begin it with a line '{_HEADING} FORMAT', or " if path.suffix == ".txt" else ""
        raise InputError(
            f"its box format is unknown: {say}give box_format=FORMAT (frcnn proposals convert --boxes FORMAT),"
            f" one of {', '.join(BOX_FORMATS)}"
        )
    entry = split_scores(path.stem, array, box_format) if box_format and array.size else Entry(path.stem, _NONE)
    return Content(kind, [entry], () if said else ("box_format",))
