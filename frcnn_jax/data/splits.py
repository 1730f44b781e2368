"""Images that two splits have in common."""

import hashlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from frcnn_jax.data.records import ImageFile, Record
from frcnn_jax.errors import InputError
from frcnn_jax.files import open_regular

_GRID = 16  # cells a side
_CONTRAST = 16.0  # below it, most of a sketch is rounding
_ALIKE = 0.95  # of 4.8 million pairs of different photographs of VOC none is above 0.80


class Shared(NamedTuple):
    """Image ids of the second split."""

    same: list[str]  # the content of an image in the first
    alike: list[str]  # the name of an image in the first, but not its content


def shared_images(first: Sequence[Record], second: Sequence[Record]) -> Shared:
    """Compare the files of two splits by content and by name; images that have no file, by id.

    Files are read only if both splits have one of this size. An unreadable one is in neither list.
    """
    ids = {record.image_id for record in first if not isinstance(record.load, ImageFile)}
    files = [record.load for record in first if isinstance(record.load, ImageFile)]
    names = {Path(file.path).name for file in files}
    by_size = defaultdict(list)
    for file in files:
        with suppress(OSError):
            by_size[os.stat(file.path).st_size].append(file)
    digests: dict[int, set[bytes]] = {}
    shared = Shared([], [])
    for record in second:
        load = record.load
        if not isinstance(load, ImageFile):
            if record.image_id in ids:
                shared.same.append(record.image_id)
            continue
        with suppress(OSError, InputError):
            size = os.stat(load.path).st_size
            if size in by_size and size not in digests:
                digests[size] = {file_digest(file.path) for file in by_size[size]}
            if size in by_size and file_digest(load.path) in digests[size]:
                shared.same.append(record.image_id)
            elif Path(load.path).name in names:
                shared.alike.append(record.image_id)
    return shared


def repeated_images(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """Return the records whose file has the content of an earlier one, each with that one.

    Files are read only if another has their size. Unreadable ones, and images without a file, are left out.
    """
    by_size = defaultdict(list)
    for record in records:
        with suppress(OSError):
            if isinstance(record.load, ImageFile):
                by_size[os.stat(record.load.path).st_size].append((record, record.load.path))
    pairs = []
    for group in by_size.values():
        first: dict[bytes, Record] = {}
        for record, path in group if len(group) > 1 else ():
            with suppress(OSError, InputError):
                if (original := first.setdefault(file_digest(path), record)) is not record:
                    pairs.append((record, original))
    return pairs


def image_sketch(image: np.ndarray) -> np.ndarray:
    """Return what an image keeps in copies of another size or quality, a unit vector if it has contrast.

    It is the horizontal change of brightness between the cells of a grid.
    """
    grey = Image.fromarray(image).convert("L").resize((_GRID, _GRID), Image.Resampling.BOX)
    change = np.diff(np.asarray(grey, np.float32), axis=1).ravel()
    return change / max(float(np.linalg.norm(change)), _CONTRAST)


def find_copies(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Return the images of the second split whose sketches are nearly those of an image of the first, with that one.

    Args:
        first: `image_sketch` by image id.
        second: The same of the other split.
    """
    if not (first and second):
        return {}
    known, found = np.stack(list(first.values())).T, {}
    for image_id, sketch in second.items():
        alike = sketch @ known
        if alike.max() > _ALIKE:
            found[image_id] = list(first)[int(alike.argmax())]
    return found


def describe_shared(shared: Shared, total: int) -> list[str]:
    """Return a line for each kind of images that the train and the val split share, of `total` in the latter."""
    lines = []
    if shared.same:
        lines.append(
            f"{len(shared.same)} of the {total} val images are in the train split too, such as {shared.same[0]!r}: "
            "the score does not tell how well the network does on new images; remove them from a split"
        )
    if shared.alike:
        lines.append(
            f"{len(shared.alike)} of the {total} val images have the name of another train image, such as "
            f"{shared.alike[0]!r}: make sure that they are not copies of it"
        )
    return lines


def split_digest(records: Sequence[Record]) -> str:
    """Return a digest of the ids, sizes and objects of a split, which does not depend on where its images lie."""
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        digest.update(repr((record.image_id, record.height, record.width, len(record.labels))).encode())
        for array in (record.boxes.astype("<f4"), record.labels.astype("<i4")):
            digest.update(array.tobytes())
    return digest.hexdigest()


def file_digest(path: str | Path) -> bytes:
    """Return a digest of a file's content, 16 bytes."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def content_digest(record: Record) -> bytes:
    """Return a digest of an image and how it is turned, 16 bytes, without decoding it if it is a file.

    Raises:
        OSError: The file can't be read.
        InputError: The image can't be loaded.
    """
    if isinstance(load := record.load, ImageFile):
        content = (file_digest(load.path), load.size, load.exif)
    else:
        image = load()
        content = (np.ascontiguousarray(image).tobytes(), image.shape, "")
    return hashlib.blake2b(repr(content[1:]).encode() + content[0], digest_size=16).digest()
