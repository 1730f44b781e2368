"""Records, datasets, and helpers shared by annotation readers.

Boxes are `(G, 4)` float32 (x1, y1, x2, y2), 0-based and inclusive; labels are 1 to K.
"""

import io
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PpmImagePlugin import PpmImageFile

from frcnn_jax.data.image_tags import check_exif, check_tags
from frcnn_jax.data.problems import CorrectedError, OnProblem, ReportTo
from frcnn_jax.errors import InputError
from frcnn_jax.files import decoding, open_regular
from frcnn_jax.ops.boxes import as_float

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif", ".heic", ".heif", ".jfif"),
)
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "PPM")  # Pillow's names
_FORMATS_BY_SUFFIX = {".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF"}  # opened in files of these names only
MAX_PIXELS = 100_000_000  # larger images are refused before they are decoded
SMALL_PIXELS = 40_000_000  # an image of more pixels ...
IMAGE_GROWTH = 400  # ... may have so many per byte of its file
MAX_SCANNED = 2_500_000_000  # pixels times scans of a JPEG
_USUAL_SCANS = 20
_LEAST_SCAN = 10  # bytes
MAX_COMMENTS = 1000  # of a PPM of text, whose decoder copies what follows each one


@dataclass(frozen=True)
class Record:
    """One image and its ground truth.

    Raises:
        InputError: An array has the wrong shape or type, a coordinate is not finite, a label is below 1, or the image
            has no pixels or more than MAX_PIXELS.
    """

    image_id: str
    height: int
    width: int
    boxes: np.ndarray  # (G, 4) float32
    labels: np.ndarray  # (G,) int32
    difficult: np.ndarray  # (G,) bool: evaluation ignores these objects and their detections
    load: Callable[[], np.ndarray]  # -> (height, width, 3) uint8 RGB; picklable

    def __post_init__(self) -> None:
        where = f"image {self.image_id!r}: "
        if not 0 < self.height * self.width <= MAX_PIXELS:
            name = f"{self.load.path}: " if isinstance(self.load, ImageFile) else ""
            raise InputError(f"{name}{where}{self.width} x {self.height} pixels, expected 1 to {MAX_PIXELS}")
        check_labels(self.labels, check_boxes(self.boxes, f"{where}boxes"), f"{where}labels")
        if self.difficult.shape != self.labels.shape or self.difficult.dtype != bool:
            got = f"{self.difficult.shape} {self.difficult.dtype}"
            raise InputError(f"{where}difficult must be {self.labels.shape} bool, got {got}")


@dataclass(frozen=True)
class Dataset:
    """Records, and the names of labels 1 to K.

    Attributes:
        class_names: The names.
        records: The images.
        description: What `read_dataset` recognised, in one line; else empty.
        has_crowds: Whether its difficult objects are regions of several objects, which are never trained on.
    """

    class_names: tuple[str, ...]
    records: Sequence[Record]
    description: str = ""
    has_crowds: bool = False


def float_boxes(boxes: Any, name: str) -> np.ndarray:
    """Return an array in float32, infinite beyond its range; InputError unless it holds numbers."""
    try:
        array = np.asarray(as_float(boxes, name))
    except ValueError as error:
        raise InputError(str(error)) from None
    if array.dtype == np.float32:
        return array
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def check_boxes(boxes: Any, name: str) -> np.ndarray:
    """Return `(N, 4)` boxes as float32; InputError unless they are finite numbers of this shape."""
    array = float_boxes(boxes, name)
    if array.ndim != 2 or array.shape[1] != 4:
        raise InputError(f"{name} must be (N, 4), got {array.shape}")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise InputError(f"{name} must be finite, box {finite.argmin()} is {array[finite.argmin()].tolist()}")
    return array


def check_labels(labels: Any, boxes: np.ndarray, name: str) -> np.ndarray:
    """Return `(N,)` labels of `(N, 4)` boxes; InputError unless they are integers from 1."""
    array = np.asarray(labels)
    if array.shape != boxes.shape[:1] or array.dtype.kind not in "iu" or (array < 1).any():
        least = f", minimum {array.min()}" if array.dtype.kind in "iu" and array.size else ""
        raise InputError(
            f"{name} must be ({len(boxes)},) integers of at least 1, got {array.shape} {array.dtype}{least}"
        )
    return array


def check_image(image: Any) -> np.ndarray:
    """Return an image as an array; InputError unless it is `(H, W, 3)` uint8 and not empty."""
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError(f"the image must be (H, W, 3) uint8 RGB, got {array.shape} {array.dtype}")
    return array


def without_difficult(dataset: Dataset) -> Dataset:
    """Return the dataset without the objects marked difficult ("07 minus difficult", section 4.3)."""
    easy = [
        replace(record, **{name: getattr(record, name)[~record.difficult] for name in ("boxes", "labels", "difficult")})
        for record in dataset.records
    ]
    return replace(dataset, records=easy)


@contextmanager
def open_image(path: str | Path, data: bytes | None = None) -> Iterator[Image.Image]:
    """Open an image in one of IMAGE_FORMATS, or AVIF or HEIC if its suffix says so; the only place that does.

    Pillow knows many formats more, some of which start other programs.

    Args:
        path: The file.
        data: The content, if already read; `path` is then used only in messages.

    Raises:
        InputError: The file is missing, damaged or of another format, has more pixels than MAX_PIXELS or than
            IMAGE_GROWTH allows for the size of the file; or what is done with the image raises.
    """
    with decoding(path, "can't be read as an image"):
        formats = (*IMAGE_FORMATS, *_formats_of(Path(path).suffix.lower()))
        try:
            file = open_regular(path) if data is None else io.BytesIO(data)
        except FileNotFoundError:
            if Path(path).is_symlink():
                raise InputError(f"{path}: a link to {os.readlink(path)}, which does not exist") from None
            raise InputError(f"{path}: no such image") from None
        with file, warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")  # damaged tags make thousands
            check_tags(file)
            try:
                image = Image.open(file, formats=formats)
            except UnidentifiedImageError:
                raise InputError(f"{path}: can't be read as an image (not one of {', '.join(formats)})") from None
            place = file.tell()
            _check_pixels(image, file.seek(0, io.SEEK_END))
            file.seek(place)
            yield image


def _formats_of(suffix: str) -> tuple[str, ...]:
    """Return the format that only this suffix opens, if there is one.

    Raises:
        InputError: Its package is not installed.
    """
    found = _FORMATS_BY_SUFFIX.get(suffix)
    if found == "HEIF":
        try:
            import pillow_heif
        except ImportError:
            raise InputError("HEIC needs pip install 'frcnn_jax[heif]'; or convert it to JPEG") from None
        pillow_heif.register_heif_opener()
    if found == "AVIF" and not features.check("avif"):
        raise InputError("AVIF needs pip install 'pillow>=11.3'; or convert it to JPEG")
    return (found,) if found else ()


def _check_pixels(image: Image.Image, stored: int) -> None:
    """Raise InputError if an image has more pixels than its file of so many bytes explains."""
    pixels, size = image.width * image.height, f"{image.width} x {image.height} pixels"
    if pixels > MAX_PIXELS:
        raise InputError(f"{size}, expected at most {MAX_PIXELS}; shrink it, with its boxes")
    if pixels > max(SMALL_PIXELS, IMAGE_GROWTH * stored):
        raise InputError(f"{size} in {stored} bytes, which is not a photograph")


def _check_scans(image: Image.Image) -> None:
    """Raise InputError if an image is a JPEG of so many scans that it takes too long to decode."""
    if not (isinstance(image, JpegImageFile) and image.fp):
        return
    data, pixels = _content(image.fp), image.width * image.height
    if len(data) // _LEAST_SCAN * pixels > MAX_SCANNED and (scans := _count_scans(data)) * pixels > MAX_SCANNED:
        raise InputError(f"{image.width} x {image.height} pixels in {scans} scans, which take too long to decode")


def _check_comments(image: Image.Image) -> None:
    """Raise InputError if an image is a PPM of text with so many comments that it takes too long to decode."""
    if not (isinstance(image, PpmImageFile) and image.fp and image.tile[0][0] == "ppm_plain"):
        return
    if (comments := _content(image.fp).count(b"#")) > MAX_COMMENTS:
        raise InputError(f"{comments} comments among its pixels, expected at most {MAX_COMMENTS}")


def _content(file: IO[bytes]) -> bytes:
    """Return what a file holds, and leave it at its place."""
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    return data


def _count_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG, each of which goes over all pixels; at least those that are decoded."""
    if (most := data.count(b"\xff\xda")) <= _USUAL_SCANS:  # some may be in thumbnails, or behind the image
        return most
    place, scans = 2, 0
    while 0 <= (place := data.find(b"\xff", place)) < len(data) - 4:
        marker = data[place + 1]
        if marker == 0xD9:  # the end
            break
        if marker == 0xFF:  # padding
            place += 1
        elif marker in (0, 1) or 0xD0 <= marker <= 0xD8:  # within a scan
            place += 2
        else:
            scans += marker == 0xDA
            place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return scans


def load_image(
    path: str | Path,
    *,
    expected_size: tuple[int, int] | None = None,
    data: bytes | None = None,
    exif: str = "apply",
) -> np.ndarray:
    """Decode an image file.

    Where an EXIF orientation swaps rows and columns, `expected_size` decides whether it is applied. Where that can't
    tell (a square image, an orientation that keeps the size, no expected size), `exif` does. TIFF is always upright.
    16-bit grey keeps its upper 8 bits; transparency is dropped.

    Args:
        path: The file.
        expected_size: Height and width by the annotation; None accepts any.
        data: The content, if already read; `path` is then used only in messages.
        exif: "apply" turns images upright, as labelling tools show them; "ignore" leaves them as stored.

    Returns:
        `(H, W, 3)` uint8 RGB.

    Raises:
        InputError: The file is missing, not an image, truncated, over MAX_PIXELS, has 32-bit pixels, or differs from
            `expected_size`.
    """
    with open_image(path, data) as file:
        if file.mode in ("I", "F"):
            raise InputError("32-bit pixels, expected 8 or 16 bits per channel")
        if file.format in ("GIF", "PNG", "WEBP", "AVIF") and getattr(file, "is_animated", False):
            raise InputError("an animation, expected one image")
        _check_scans(file)
        _check_comments(file)
        turned = file.transpose(_TURNS[_orientation(file)]) if _is_turned(file, expected_size, exif) else file
        if turned.mode.startswith("I;16"):
            image = np.repeat((np.asarray(turned) >> 8).astype(np.uint8)[..., None], 3, axis=2)
        else:
            image = np.asarray(turned.convert("RGB"))
    if expected_size and image.shape[:2] != expected_size:
        raise InputError(f"{path}: annotated as {expected_size} (rows, columns), the file has {image.shape[:2]}")
    return image


def _orientation(file: Image.Image) -> int:
    """Return the EXIF orientation, 2 to 8; 1 if there is none to apply. Pillow itself turns TIFF."""
    if file.format == "TIFF":
        return 1
    check_exif(file)
    found = file.getexif().get(ExifTags.Base.Orientation, 1)
    return found if found in range(2, 9) else 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def _sizes(file: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return height and width as stored, and upright."""
    stored = file.height, file.width
    return stored, stored[::-1] if _orientation(file) > 4 else stored


def _is_turned(file: Image.Image, expected_size: tuple[int, int] | None, exif: str) -> bool:
    """Return whether an image is to be turned upright: by the expected size, or by `exif` where that can't tell."""
    if _orientation(file) == 1:
        return False
    stored, upright = _sizes(file)
    if stored != upright and expected_size in (stored, upright):
        return expected_size == upright
    return exif == "apply"


@dataclass(frozen=True, slots=True)
class ImageFile:
    """Loader of an image file for `Record.load`; see `load_image`."""

    path: str
    size: tuple[int, int] | None = None  # height and width by the annotation; None accepts any
    exif: str = "apply"  # of an orientation that the size does not tell: "apply" or "ignore"

    def __call__(self) -> np.ndarray:
        return load_image(self.path, expected_size=self.size, exif=self.exif)

    def has_untold_orientation(self) -> bool:
        """Return whether the file has an EXIF orientation of which the size can't tell whether it is to be applied.

        Raises:
            InputError: The file can't be read.
        """
        with open_image(self.path) as file:
            stored, upright = _sizes(file)
            return _orientation(file) > 1 and not (stored != upright and self.size in (stored, upright))


def read_image_size(path: str | Path, *, exif: str = "apply") -> tuple[int, int]:
    """Return the height and width that `load_image` gives without an expected size, from the file's header.

    Raises:
        InputError: The file can't be read.
    """
    with open_image(path) as file:
        stored, upright = _sizes(file)
        return upright if exif == "apply" else stored


def load_problem(record: Record) -> InputError | None:
    """Load a record's image; return the error if that fails."""
    try:
        record.load()
    except InputError as problem:
        return problem
    return None


def read_image(image: Any) -> np.ndarray:
    """Return an image as `(H, W, 3)` uint8 RGB.

    Args:
        image: A path, a PIL image or an array `(H, W, 3)` uint8 RGB.

    Raises:
        InputError: The file can't be read, or the array has another shape or type, or is empty.
    """
    if isinstance(image, str | Path):
        return load_image(image)
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image).convert("RGB")  # of the user's own program
    return check_image(image)


def image_path(folder: Path, name: str) -> Path:
    """Return the path of an image that an annotation names.

    Raises:
        InputError: The name points outside `folder`, or there is no such file.
    """
    path, relative = folder / name, PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise InputError(f"{folder}: the image {name!r} lies outside this folder")
    try:
        found = path.is_file()
    except (OSError, ValueError) as error:  # a name too long or with a NUL, a folder without permission
        raise InputError(f"{path}: can't be read ({getattr(error, 'strerror', None) or error})") from None
    if not found:
        raise InputError(f"{path}: no such image")
    return path


def size_of(height: str, width: str) -> tuple[int, int] | None:
    """Return the height and width that two texts say; None unless they are whole numbers."""
    known = all(text.isascii() and text.isdecimal() and len(text) < 9 for text in (height, width))
    return (int(height), int(width)) if known else None


def true_size(
    image: str | Path, annotated: tuple[int, int] | None, where: object, exif: str, on_problem: OnProblem
) -> tuple[int, int]:
    """Return the height and width that an image has, upright or stored as the annotation or else `exif` says.

    Args:
        image: The file.
        annotated: Height and width by the annotation, if it has them.
        where: The annotation, for messages.
        exif: See `load_image`.
        on_problem: Receives a `CorrectedError` if the annotated size is another.

    Raises:
        InputError: The file can't be read.
    """
    with open_image(image) as file:
        stored, upright = _sizes(file)
    if annotated in (stored, upright):
        return annotated  # type: ignore[return-value]
    size = upright if exif == "apply" else stored
    if annotated and min(annotated) > 0:
        (height, width), (rows, columns) = annotated, size
        text = f"{where}: the size is {width} x {height}, that of {image} is {columns} x {rows}"
        on_problem(CorrectedError("sizes taken from the image", text))
    return size


def clip_box(box: Sequence[float], height: int, width: int) -> list[float] | None:
    """Clip an inclusive box (x1, y1, x2, y2) to its image; None if it is reversed or outside by more than a pixel."""
    x1, y1, x2, y2 = box
    if not (-1 <= x1 <= x2 <= width and -1 <= y1 <= y2 <= height and x1 < width and y1 < height and min(x2, y2) >= 0):
        return None
    right, bottom = width - 1.0, height - 1.0
    return [min(max(x1, 0.0), right), min(max(y1, 0.0), bottom), min(x2, right), min(y2, bottom)]


def turned_edges(edges: Sequence[float], degrees: float, height: int, width: int) -> tuple[float, float, float, float]:
    """Return the edges (left, top, right, bottom) around a box that is turned about its centre, within its image."""
    left, top, right, bottom = edges
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    x, y, w, h = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
    across, down = (w * cos + h * sin) / 2, (w * sin + h * cos) / 2
    return max(x - across, 0), max(y - down, 0), min(x + across, width), min(y + down, height)


def is_moved(clipped: Sequence[float], box: Sequence[float]) -> bool:
    """Return whether clipping moved a box by more than what rounding explains."""
    return max(abs(a - b) for a, b in zip(clipped, box, strict=True)) > 0.05


def collect_records(
    images: Iterable[tuple[str, Callable[[], Record]]], source: object, on_problem: OnProblem
) -> list[Record]:
    """Return the records of (id, reader) pairs; repeated ids and readers' InputErrors go to `on_problem`."""
    records, seen = [], set()
    for image_id, read in images:
        with ReportTo(on_problem):
            if image_id in seen:
                raise InputError(f"{source}: image {image_id!r} is listed twice")
            seen.add(image_id)
            records.append(read())
    return records


def make_record(
    image_id: str, height: int, width: int, objects: Sequence[tuple], load: Callable[[], np.ndarray]
) -> Record:
    """Return the record of an image and its objects (box, label, difficult)."""
    boxes, labels, difficult = ([row[i] for row in objects] for i in range(3))
    arrays = np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int32), np.array(difficult, bool)
    return Record(image_id, height, width, *arrays, load)
