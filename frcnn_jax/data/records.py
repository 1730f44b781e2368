"""One record type, and the readers that give it.

Boxes are `(G, 4)` float32 (x1, y1, x2, y2), 0-based and inclusive; labels are 1 to K. Every reader checks what it
reads, and hands an InputError that names the file and the box to its `on_problem`: by default that raises it; where it
returns, the object or the image is left out.
"""

import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from frcnn_jax.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MAX_PIXELS = 100_000_000  # a larger image is refused, unread


@dataclass(frozen=True)
class Record:
    """An image and its ground truth."""

    image_id: str
    height: int
    width: int
    boxes: np.ndarray  # (G, 4) float32
    labels: np.ndarray  # (G,) int32
    difficult: np.ndarray  # (G,) bool: neither counted nor held against in evaluation
    load: Callable[[], np.ndarray]  # -> (height, width, 3) uint8 RGB; picklable


@dataclass(frozen=True)
class Dataset:
    """Records and the names of labels 1 to K."""

    class_names: tuple[str, ...]
    records: Sequence[Record]


def without_difficult(dataset: Dataset) -> Dataset:
    """The set with the objects left out that are marked difficult ("07 minus difficult", section 4.3)."""

    def easy(record: Record) -> Record:
        keep = ~record.difficult
        fields = {name: getattr(record, name)[keep] for name in ("boxes", "labels", "difficult")}
        return replace(record, **fields)

    return Dataset(dataset.class_names, [easy(record) for record in dataset.records])


def stop(problem: InputError) -> None:
    """The `on_problem` that raises."""
    raise problem


def load_image(path: Path, expected_size: tuple[int, int] | None = None, *, data: bytes | None = None) -> np.ndarray:
    """An image file as `(H, W, 3)` uint8 RGB, turned upright as its EXIF tag says, unless `expected_size` is that of
    the pixels as they are stored. Of 16-bit grey the upper 8 bits are taken; transparency is left out. With `data`, the
    file's content, `path` is but its name.

    Raises:
        InputError: no such file, not an image, truncated, over MAX_PIXELS, of 32-bit pixels, or not of `expected_size`
            (height, width).
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path if data is None else io.BytesIO(data)) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise InputError(f"{path}: {file.width} x {file.height} pixels, at most {MAX_PIXELS} are read")
                if file.mode in ("I", "F"):
                    raise InputError(f"{path}: pixels of 32 bits; convert it to 8 bits a channel")
                stored = (file.height, file.width) == expected_size
                upright = file if stored else ImageOps.exif_transpose(file)
                if upright.mode.startswith("I;16"):
                    image = np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[..., None], 3, axis=2)
                else:
                    image = np.asarray(upright.convert("RGB"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: can't be read as an image ({error})") from None
    if expected_size and image.shape[:2] != expected_size:
        raise InputError(f"{path}: annotated as {expected_size} (rows, columns), the file has {image.shape[:2]}")
    return image


def why_no_image(path: Path) -> str:
    """What is wrong where no file is to be had; empty where one is."""
    try:
        return "" if path.is_file() else "no such image"
    except OSError as error:  # a name too long, a folder that lets nobody in
        return f"can't be read ({error.strerror})"


def leaves_folder(name: str) -> bool:
    """Whether a relative path points outside of the folder that it starts from."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts


def make_record(image_id: str, height: int, width: int, objects: Sequence[tuple], image: Path) -> Record:
    """The record of an image file and its objects (box, label, difficult)."""
    return Record(
        image_id,
        height,
        width,
        np.array([box for box, _, _ in objects], np.float32).reshape(-1, 4),
        np.array([label for _, label, _ in objects], np.int32),
        np.array([difficult for _, _, difficult in objects], bool),
        partial(load_image, image, (height, width)),
    )
