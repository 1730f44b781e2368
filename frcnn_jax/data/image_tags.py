"""Tags of TIFF files and of EXIF, which are checked before a Pillow reads them that does not: before version 13.

Many tags with the same large value make a small file large, as it is copied for each of them.
"""

import io
import struct
from typing import IO

import PIL
from PIL import Image

from frcnn_jax.files import check_growth

UNCHECKED = int(PIL.__version__.split(".")[0]) < 13
_BYTES = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
    16: 8,
}  # of a value, by type


def check_tags(file: IO[bytes]) -> None:
    """Check the first tags of a TIFF or JPEG file, which are read when it is opened, and return to its begin.

    Raises:
        ValueError: Their values would take more than `check_growth` allows.
    """
    if UNCHECKED:
        start = file.read(2)
        file.seek(0)
        _check(io.BytesIO(_exif_of_jpeg(file)) if start == b"\xff\xd8" else file)
        file.seek(0)


def check_exif(image: Image.Image) -> None:
    """Check the EXIF of an opened image, as `check_tags` does."""
    if UNCHECKED and image.format != "JPEG":
        if image.format == "PNG" and "exif" not in image.info:
            image.load()  # it may follow the pixels
        raw = "".join(image.info.get("Raw profile type exif", "").split("\n")[3:])  # as ImageMagick writes it
        _check(io.BytesIO((image.info.get("exif") or bytes.fromhex(raw)).removeprefix(b"Exif\0\0")))


def _exif_of_jpeg(file: IO[bytes]) -> bytes:
    """Return the EXIF in all segments of a JPEG, which Pillow joins."""
    parts: list[bytes] = []
    place = 2
    while True:
        file.seek(place)
        head = file.read(10)
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:
            return b"".join(parts)
        size = int.from_bytes(head[2:4])
        if head[1] in (0x00, 0xFF):  # padding
            place += 1
        elif head[1] == 0xC8 or 0xD0 <= head[1] <= 0xD9 or 0xF0 <= head[1] <= 0xFD:  # without a size
            place += 2
        else:
            if head[1] == 0xE1 and head[4:] == b"Exif\0\0":
                parts.append(file.read(max(size - 8, 0)))
            place += 2 + size


def _check(file: IO[bytes]) -> None:
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if not order or len(start) < 16:
        return
    layouts = ("Q", "Q", "HHQ8x") if start[2] == ord("+") else ("I", "H", "HHI4x")  # BigTIFF, as Pillow tells it
    offset, number, entry = (struct.Struct(order + layout) for layout in layouts)
    file.seek(min(offset.unpack_from(start, offset.size)[0], 1 << 62))
    head = file.read(number.size)
    many = min(number.unpack(head)[0], 1 << 16) if len(head) == number.size else 0
    tags = file.read(many * entry.size)
    whole = tags[: len(tags) // entry.size * entry.size]
    check_growth(
        sum(_BYTES.get(kind, 0) * count for _, kind, count in entry.iter_unpack(whole)), file.seek(0, io.SEEK_END)
    )
