"""Files of proposals: our own shards, and readers of other programs' files. Nothing in a file is executed.

| ending | what it holds | boxes there |
|---|---|---|
| `.proposals` | a shard of `write_proposals` | ours |
| `.npz` | by image id an `(N, 4)` array | ours |
| `<name>.mat` with `images` and `boxes` | cell arrays, such as voc_2007_trainval.mat | 1-based (y1, x1, y2, x2) |
| `<id>.mat` with `boxes` | one image, such as the IJCV files | 1-based (x1, y1, x2, y2) |
| `<id>_boxes.mat` with `boxes` | one image, as the paper's demo | ours |
| `.pkl` | Detectron2's: `ids`, `boxes`, `objectness_logits`, `bbox_mode` | 0-based, x2 and y2 outside of the box |

A shard is three .npy arrays after each other: UTF-8 JSON `{"format", "version", "images": [id, ..]}` as uint8, offsets
`(images + 1,)` int64 and boxes `(offsets[-1], 4)` uint16. Image i has the boxes offsets[i] to offsets[i + 1].
"""

import io
import json
import pickle
import pickletools
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from frcnn_jax.data.records import stop
from frcnn_jax.errors import InputError
from frcnn_jax.files import read_npz, write_whole
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.proposals.mat_files import read_mat

Entries = Iterator[tuple[str, np.ndarray]]

_FORMAT, _VERSION = "frcnn_jax proposals", 1
_LARGEST = 1 << 16  # pixels a side: shards are uint16


class Proposals(Mapping[str, np.ndarray]):
    """By image id `(N, 4)` float32 boxes, of arrays that may be of another type and lie in a file."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = arrays

    def __getitem__(self, image_id: str) -> np.ndarray:
        return np.asarray(self._arrays[image_id], np.float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


def read_proposals(
    source: str | Path,
    *,
    sizes: Mapping[str, tuple[int, int]] | None = None,
    max_boxes: int | None = None,
    on_problem: Callable[[InputError], None] = stop,
) -> Proposals:
    """Proposals of a file, of all such files in a folder, or of several, "A+B". Shards are memory-mapped.

    Args:
        source: of the kinds above.
        sizes: by image id (height, width): these images are needed, no others, matched by id. Boxes up to a pixel over
            their edge are clipped to them. None takes all images of the source, of any size.
        max_boxes: of each image its first ones.
        on_problem: gets an image without proposals, a box that is not finite, reversed or further outside of its image,
            an array that is no boxes, an image that is there twice, and a broken file of several. By default that
            raises it; where it returns, the box or the image is left out.

    Returns:
        by image id, `(N, 4)` float32 boxes (x1, y1, x2, y2), 0-based and inclusive.

    Raises:
        InputError: no such file, one of another kind or version, a broken one, or one of none of the images.
    """
    arrays: dict[str, np.ndarray] = {}
    origin: dict[str, Path] = {}
    files = _files(source)
    for path in files:
        try:
            entries = _read_file(path)
        except InputError as problem:
            if len(files) == 1:
                raise
            on_problem(problem)
            continue
        for image_id, boxes in entries:
            first = origin.setdefault(image_id, path)
            if sizes is not None and image_id not in sizes:
                continue
            try:
                if image_id in arrays:
                    raise InputError(f"{path}: image {image_id!r} is in {first} too")
                size = sizes[image_id] if sizes else (_LARGEST, _LARGEST)
                where = f"{path}: image {image_id!r}"
                arrays[image_id] = _checked(boxes, size, max_boxes, where, on_problem)
            except InputError as problem:
                on_problem(problem)
    if sizes and not origin.keys() & sizes.keys():
        own = f"its own are such as {next(iter(origin))!r}" if origin else "it has none at all"
        raise InputError(f"{source}: proposals of another data set? No image such as {next(iter(sizes))!r}; {own}")
    missing = [image_id for image_id in sizes or () if image_id not in arrays]
    for image_id in missing:
        on_problem(
            InputError(
                f"{source}: no proposals for {len(missing)} of the {len(sizes or ())} images, {image_id!r} is one"
            )
        )
    return Proposals(arrays)


def write_proposals(path: Path, proposals: Mapping[str, np.ndarray]) -> None:
    """A shard, whole or not at all: by image id `(N, 4)` boxes, rounded to whole pixels.

    Raises:
        InputError: another ending than .proposals, or boxes beyond uint16.
        OSError: it can't be written.
    """
    if path.suffix != ".proposals":
        raise InputError(f"{path}: proposals are written to .proposals files")
    boxes = [np.rint(boxes).reshape(-1, 4) for boxes in proposals.values()]
    for image_id, array in zip(proposals, boxes, strict=True):
        if not ((array >= 0) & (array < _LARGEST)).all():
            raise InputError(f"{path}: boxes of image {image_id!r} are not within 0 to {_LARGEST - 1}")
    header = json.dumps({"format": _FORMAT, "version": _VERSION, "images": list(proposals)}).encode()
    header = header.ljust(-(-len(header) // 64) * 64)  # what follows is aligned
    parts: list[np.ndarray] = [
        np.frombuffer(header, np.uint8),
        np.cumsum([0, *map(len, boxes)], dtype=np.int64),
        np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.uint16),
    ]

    def write(file: BinaryIO) -> None:
        for part in parts:
            np.save(file, part, allow_pickle=False)

    write_whole(path, write)


def _files(source: str | Path) -> list[Path]:
    whole = Path(source)
    paths = [whole] if whole.exists() else [Path(part) for part in str(source).split("+")]
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.iterdir() if file.suffix in _READERS and file.is_file())
            if not inside:
                raise InputError(f"{path}: no file of proposals ({', '.join(_READERS)}) in this folder")
            found += inside
        elif not path.is_file():
            raise InputError(f"{path}: no such file or folder of proposals")
        elif path.suffix not in _READERS:
            raise InputError(f"{path}: proposals are read from {', '.join(_READERS)} files")
        else:
            found.append(path)
    return found


def _read_file(path: Path) -> list[tuple[str, np.ndarray]]:
    try:
        return list(_READERS[path.suffix](path))
    except Exception as error:  # the readers' own, of many kinds: the file is not what its name says, or cut short
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: not a readable {path.suffix} file of proposals ({reason})") from None


def _checked(
    boxes: np.ndarray,
    size: tuple[int, int],
    max_boxes: int | None,
    where: str,
    on_problem: Callable[[InputError], None],
) -> np.ndarray:
    """The good ones of the first boxes, within the image: float32, or uint16 as they lie in a shard."""
    if boxes.dtype.kind not in "fiu" or (boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4)):
        raise InputError(f"{where}: (N, 4) boxes expected, got {boxes.shape} {boxes.dtype}")
    height, width = size
    boxes = boxes.reshape(-1, 4)[:max_boxes]  # MATLAB's empty array is (0, 0)
    exact = boxes.astype(np.float64)
    x1, y1, x2, y2 = exact.T
    good = (x1 >= -1) & (x1 <= x2) & (x2 <= width) & (y1 >= -1) & (y1 <= y2) & (y2 <= height)
    for i in np.flatnonzero(~good):
        numbers = ", ".join(f"{v:g}" for v in exact[i])
        expected = f"0 <= x1 <= x2 < {width} and 0 <= y1 <= y2 < {height}"
        on_problem(InputError(f"{where}: box {i} is ({numbers}); {expected} expected, 0-based"))
    inside = box_ops.clip(exact[good], height, width)
    return boxes if boxes.dtype == np.uint16 and np.array_equal(inside, exact) else inside.astype(np.float32)


def _read_array(file: BinaryIO) -> np.ndarray:
    """`np.load` takes what is no array for a pickle, and says so."""
    try:
        return np.lib.format.read_array(file, allow_pickle=False)
    except ValueError:
        raise InputError("cut short or not a shard") from None


def _read_shard(path: Path) -> Entries:
    with open(path, "rb") as file:
        header = json.loads(_read_array(file).tobytes())
        if header["format"] != _FORMAT or header["version"] != _VERSION:
            raise InputError(
                f"{header['format']!r} of version {header['version']!r}, read are {_FORMAT!r} of {_VERSION}"
            )
        offsets = _read_array(file)
        np.lib.format.read_magic(file)
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        place = file.tell()
    image_ids = header["images"]
    if len(offsets) != len(image_ids) + 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
        raise InputError("its offsets do not fit its images")
    if dtype != np.uint16 or fortran or shape != (offsets[-1], 4) or path.stat().st_size != place + 8 * shape[0]:
        raise InputError(f"its boxes are {shape} {dtype}, or it is cut short")
    boxes = np.memmap(path, dtype, "r", place, shape) if shape[0] else np.zeros((0, 4), np.uint16)
    yield from zip(map(str, image_ids), (boxes[a:b] for a, b in pairwise(offsets)), strict=True)


def _read_mat(path: Path) -> Entries:
    content = read_mat(path)
    if "boxes" not in content:
        raise InputError("it has no variable 'boxes'")
    boxes = np.asarray(content["boxes"])
    if "images" in content:
        images = np.asarray(content["images"]).ravel()
        if boxes.dtype.kind != "O" or images.dtype.kind != "O" or len(images) != boxes.size:
            raise InputError("its 'images' and 'boxes' are not cell arrays of one length")
        for name, array in zip(images, boxes.ravel(), strict=True):
            yield str(name), _zero_based(np.asarray(array), [1, 0, 3, 2])
    elif path.stem.endswith("_boxes"):
        yield path.stem.removesuffix("_boxes"), boxes
    else:
        yield path.stem, _zero_based(boxes, [0, 1, 2, 3])


def _zero_based(boxes: np.ndarray, order: list[int]) -> np.ndarray:
    if boxes.dtype.kind not in "fiu" or boxes.ndim != 2 or boxes.shape[1] != 4:
        return boxes  # found out where its image is known
    return boxes[:, order].astype(np.float64) - 1


class _Dtype:
    """numpy.dtype of numbers, as pickled: a code such as "f4", then a state that holds the byte order."""

    def __init__(self, code: str, *_: Any):
        if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"):
            raise InputError(f"an array of type {code!r}; numbers are expected")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """numpy.ndarray, as pickled: made empty, then given its state."""

    array: np.ndarray

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        self.array = _buffer(data, kind, shape, "F" if fortran else "C").array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.array, dtype)


def _buffer(data: Any, kind: _Dtype, shape: tuple, order: str) -> _Array:
    array = _Array()
    data = data.encode("latin1") if isinstance(data, str) else data  # Python 2's
    array.array = np.frombuffer(data, kind.dtype).reshape(shape, order="F" if order == "F" else "C")
    return array


def _scalar(kind: _Dtype, data: Any) -> Any:
    return _buffer(data, kind, (), "C").array.item()


def _bytes(text: str = "", _: str = "latin1") -> bytes:
    return text.encode("latin1")


_NUMPY = {
    "ndarray": _Array,
    "_reconstruct": _Array,
    "_frombuffer": _buffer,
    "dtype": _Dtype,
    "scalar": _scalar,
}


class _NumbersUnpickler(pickle.Unpickler):
    """Of containers, texts, numbers and NumPy arrays of numbers, which are rebuilt here; other globals are refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in _NUMPY:
            return _NUMPY[name]
        if (module, name) in (("_codecs", "encode"), ("__builtin__", "bytes")):  # how protocols 0 to 2 hold bytes
            return _bytes
        if (module, name) == ("detectron2.structures.boxes", "BoxMode"):
            return int
        raise InputError(f"its pickle asks for {module}.{name}, which is no number; nothing of it was run")


def _read_pkl(path: Path) -> Entries:
    """Best first, by `objectness_logits`. Also Detectron's own names, `indexes` and `scores`."""
    data = path.read_bytes()
    for opcode, argument, _ in pickletools.genops(data):  # raises where a length is beyond the file's end
        if opcode.name.endswith("PUT") and (argument or 0) > len(data):
            raise InputError("its pickle numbers more objects than it holds")  # which costs memory without bounds
    content = _NumbersUnpickler(io.BytesIO(data), encoding="latin1").load()
    if not isinstance(content, dict):
        raise InputError(f"a dict expected, got a {type(content).__name__}")
    names = (("ids", "indexes"), ("boxes", "boxes"), ("objectness_logits", "scores"))
    lists = [content.get(name, content.get(former)) for name, former in names]
    mode = content.get("bbox_mode", 0)
    if any(values is None for values in lists):
        raise InputError(f"ids, boxes and objectness_logits expected, got {', '.join(map(str, content))}")
    if mode not in (0, 1):
        raise InputError(f"bbox_mode must be XYXY_ABS (0) or XYWH_ABS (1), got {mode!r}")
    lists = [values.array if isinstance(values, _Array) else values for values in lists]
    for image_id, boxes, logits in zip(*lists, strict=True):
        boxes, logits = np.asarray(boxes), np.asarray(logits)
        if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4 or logits.shape != boxes.shape[:1]):
            raise InputError(f"image {str(image_id)!r}: {boxes.shape} boxes and {logits.shape} logits")
        yield str(image_id), _inclusive(boxes.reshape(-1, 4), mode)[np.argsort(-logits.ravel(), kind="stable")]


def _inclusive(boxes: np.ndarray, mode: int) -> np.ndarray:
    """From corners, x2 and y2 exclusive, or (x, y, width, height); one pixel wide at least, as `coco.read_coco`."""
    corner, other = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    end = corner + other if mode else other
    return np.concatenate([corner, np.where(end > corner, np.maximum(end - 1, corner), end - 1)], axis=1)


_READERS: dict[str, Callable[[Path], Entries]] = {
    ".proposals": _read_shard,
    ".npz": lambda path: iter(read_npz(path).items()),
    ".mat": _read_mat,
    ".pkl": _read_pkl,
}
