"""Write the features of given boxes, a row per box:

    frcnn embed [--workdir W] IMAGE... --boxes FILE --out F.npz
    frcnn embed --weights FILE --network vgg16 IMAGE... --boxes FILE --out F.npz

FILE lists boxes by image: JSON {"image": [[x1, y1, x2, y2], ..]}, COCO instances or results, or .npz. F holds, with a
row per box, `features` (N, D) float32, `boxes` (N, 4), `image` (N,), the position in `images`, and `index` (N,), the
position among the image's boxes; as .parquet, columns of these names (needs pyarrow). An interrupted run resumes from
the images finished, which lie in F.parts until all are.
"""

import hashlib
import math
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from frcnn_jax.cli import ANY_DETECTOR, command_parser, run
from frcnn_jax.data.region_files import read_regions
from frcnn_jax.detector import Detector
from frcnn_jax.errors import InputError
from frcnn_jax.files import check_file, open_regular, read_array_header, read_bytes, write_atomic
from frcnn_jax.models.networks import CHOICES
from frcnn_jax.training.signals import interrupt_on_signals

ROWS = 1024  # rows of a group in a .parquet file


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__, "--step")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image file")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--workdir", type=Path, help=ANY_DETECTOR)
    source.add_argument("--weights", type=Path, help="pretrained weights; needs --network")
    parser.add_argument(
        "--network", default="", help="network of --weights; or the function that makes the workdir's, if it is yours"
    )
    parser.add_argument("--boxes", type=Path, required=True, metavar="FILE", help="boxes of the images")
    parser.add_argument("--out", type=Path, required=True, metavar="F", help="file to write, .npz or .parquet")
    parser.add_argument("--layer", default="fc7", help="pooled, fc6 or fc7; default: %(default)s")
    parser.add_argument(
        "--invalid", default="raise", choices=("raise", "nan"), help="boxes outside of an image; default: %(default)s"
    )
    args = parser.parse_args(argv)
    if args.weights and not args.network:
        raise InputError(f"--weights needs --network: {CHOICES}")
    if args.weights and args.step is not None:
        raise InputError("--step belongs to --workdir")
    if args.out.suffix not in (".npz", ".parquet"):
        raise InputError(f"--out {args.out}: expected a file *.npz or *.parquet")
    if args.out.suffix == ".parquet" and not find_spec("pyarrow"):
        raise InputError("--out *.parquet needs pyarrow: pip install pyarrow")
    check_file(args.out)
    for given in filter(None, (args.boxes, args.weights, *args.images)):
        if given.resolve() == args.out.resolve():
            raise InputError(f"--out {args.out}: would overwrite an input; use another file")
    boxes = read_regions(args.boxes, args.images)
    if args.weights:
        detector = Detector.from_weights(args.weights, network=args.network)
    else:
        detector = Detector.load(args.workdir, step=args.step, network=args.network)
    with interrupt_on_signals("run the same command to resume"):
        _write(detector, args.images, boxes, args.out, layer=args.layer, invalid=args.invalid)
    print(f"{args.out}: features of {sum(map(len, boxes))} boxes in {len(boxes)} images")


def _write(
    detector: Detector, images: Sequence[Path], boxes: Sequence[np.ndarray], out: Path, *, layer: str, invalid: str
) -> None:
    """Write the features of each image to a file of its own, and then the table."""
    parts = out.with_name(f"{out.name}.parts")
    model = detector.digest() + repr((layer, invalid)).encode()
    files = [_part(parts, image, own, model) for image, own in zip(images, boxes, strict=True)]
    waiting = [i for i, file in enumerate(files) if not _is_whole(file, len(boxes[i]))]
    rows = detector.embed_each([images[i] for i in waiting], [boxes[i] for i in waiting], layer=layer, invalid=invalid)
    progress = tqdm(
        zip(waiting, rows, strict=True), "embed", len(files), initial=len(files) - len(waiting), unit="image"
    )
    for i, features in progress:
        parts.mkdir(exist_ok=True)
        write_atomic(files[i], partial(np.save, arr=features))
    write_atomic(out, partial(_write_npz if out.suffix == ".npz" else _write_parquet, images, boxes, files))
    shutil.rmtree(parts)


def _part(folder: Path, image: Path, boxes: np.ndarray, model: bytes) -> Path:
    """Return the file of an image's features, whose name changes with all that they depend on."""
    try:
        content = hashlib.sha256(read_bytes(image))
    except OSError as error:
        raise InputError(f"{image}: can't be read ({error.strerror})") from None
    content.update(boxes.tobytes() + model)
    return folder / f"{content.hexdigest()[:32]}.npy"


def _is_whole(file: Path, rows: int) -> bool:
    """Return whether a file holds features of so many boxes."""
    try:
        with open_regular(file) as content:
            shape, fortran, dtype = read_array_header(content)
            place = content.tell()
    except (FileNotFoundError, ValueError):
        return False
    expected = len(shape) == 2 and shape[0] == rows and dtype == np.float32 and not fortran
    return expected and file.stat().st_size == place + math.prod(shape) * dtype.itemsize


def _columns(boxes: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    counts = [len(own) for own in boxes]
    return {
        "image": np.repeat(np.arange(len(boxes), dtype=np.int32), counts),
        "index": np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
        "boxes": np.concatenate(boxes),
    }


def _features(files: Sequence[Path]) -> Iterator[np.ndarray]:
    width = 0
    for file in files:
        features = np.load(file, mmap_mode="r", allow_pickle=False)
        width = width or features.shape[1]
        if features.shape[1] != width:
            raise InputError(f"{file}: features of {features.shape[1]} numbers, others have {width}; delete it")
        yield features


def _write_npz(images: Sequence[Path], boxes: Sequence[np.ndarray], files: Sequence[Path], file: BinaryIO) -> None:
    """Write the table without holding its features."""
    arrays = {"images": np.array([str(image) for image in images]), **_columns(boxes)}
    first = next(_features(files))
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(arrays["image"]), first.shape[1])}
    with zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
        with archive.open("features.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for features in _features(files):
                member.write(features.data)


def _write_parquet(images: Sequence[Path], boxes: Sequence[np.ndarray], files: Sequence[Path], file: BinaryIO) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def lists(rows: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])

    width = next(_features(files)).shape[1]
    types = {"image": pa.string(), "index": pa.int32(), "boxes": pa.list_(pa.float32(), 4)}
    schema = pa.schema({**types, "features": pa.list_(pa.float32(), width)})
    with pq.ParquetWriter(file, schema, use_dictionary=["image"]) as writer:
        for image, own, features in zip(images, boxes, _features(files), strict=True):
            name = str(image).encode(errors="backslashreplace").decode()  # may not be UTF-8
            for start in range(0, len(own), ROWS):
                index = np.arange(start, min(start + ROWS, len(own)), dtype=np.int32)
                columns = [pa.array([name] * len(index)), pa.array(index), lists(own[index]), lists(features[index])]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))


if __name__ == "__main__":
    run("embed")
