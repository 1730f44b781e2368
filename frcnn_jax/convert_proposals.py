"""Convert files of proposals of this library and of other programs, without their data set:

    frcnn proposals convert SOURCE --out FILE [--boxes FORMAT] [--ids FILE]

SOURCE is a file, a folder of files, or several joined by "+", whose boxes are merged; docs/proposals.md lists the
kinds. FILE is a shard (.proposals), NumPy arrays (.npz), COCO results (.json) or Detectron2's pickle (.pkl). --boxes
says the format of boxes in files that do not: xyxy-inclusive, xyxy, xywh or cxcywh. --ids names the images of a list
without names: a text file with one id per line, or a COCO annotation file.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from frcnn_jax.cli import command_parser
from frcnn_jax.errors import InputError
from frcnn_jax.files import check_file, write_atomic
from frcnn_jax.proposals.entries import BOX_FORMATS
from frcnn_jax.proposals.files import read_proposals
from frcnn_jax.proposals.shards import write_proposals

Boxes = Mapping[str, np.ndarray]  # (N, 4) float32, inclusive, by image id


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__)
    parser.prog = f"{parser.prog} convert"
    parser.add_argument("source", help="file, folder, or several joined by +")
    parser.add_argument("--out", type=Path, required=True, help=f"file to write: {', '.join(WRITERS)}")
    parser.add_argument("--boxes", choices=BOX_FORMATS, help="format of boxes in files that do not say it")
    parser.add_argument("--ids", type=Path, metavar="FILE", help="the images of a list without names, in order")
    args = parser.parse_args(argv)
    if args.out.suffix not in WRITERS:
        raise InputError(f"--out {args.out}: expected a file {', '.join(WRITERS)}")
    check_file(args.out)
    found = read_proposals(args.source, box_format=args.boxes, ids=args.ids)
    if not found:
        raise InputError(f"{args.source}: expected proposals, it has no images")
    WRITERS[args.out.suffix](args.out, found)
    counts = [len(boxes) for boxes in found.values()]
    lost = f" ({counts.count(0)} without boxes, which COCO results leave out)" if args.out.suffix == ".json" else ""
    images = f"{len(found)} images{lost if 0 in counts else ''}"
    print(f"{' and '.join(found.kinds)}: {images}, {sum(counts)} boxes -> {args.out}")


def _write_npz(path: Path, proposals: Boxes) -> None:
    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:  # np.savez takes no image called "file"
            for name, boxes in proposals.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, boxes, allow_pickle=False)

    write_atomic(path, write)


def _write_coco(path: Path, proposals: Boxes) -> None:
    """Write COCO results of one category, with scores that fall with the rank: 1, 1/2, 1/3, .."""

    def rows(name: str, boxes: np.ndarray) -> list[dict]:
        image_id = int(name) if name.isascii() and name.isdigit() and str(int(name)) == name else name
        sizes = boxes[:, 2:] - boxes[:, :2] + 1
        bboxes = np.concatenate([boxes[:, :2], sizes], axis=1).tolist()
        return [
            {"image_id": image_id, "category_id": 1, "bbox": bbox, "score": 1 / rank}
            for rank, bbox in enumerate(bboxes, 1)
        ]

    if not any(map(len, proposals.values())):
        raise InputError(f"{path}: COCO results hold no images without boxes, and no image has any")
    results = [row for name, boxes in proposals.items() for row in rows(name, boxes)]
    write_atomic(path, lambda file: file.write(json.dumps(results).encode()))


def _write_detectron2(path: Path, proposals: Boxes) -> None:
    """Write Detectron2's pickle, with logits that fall with the rank: 0, -1, -2, .."""
    content = {
        "ids": list(proposals),
        "boxes": [boxes + np.array([0, 0, 1, 1], np.float32) for boxes in proposals.values()],
        "objectness_logits": [-np.arange(len(boxes), dtype=np.float32) for boxes in proposals.values()],
        "bbox_mode": 0,
    }
    write_atomic(path, lambda file: pickle.dump(content, file, protocol=4))


WRITERS: dict[str, Callable[[Path, Boxes], None]] = {
    ".proposals": write_proposals,
    ".npz": _write_npz,
    ".json": _write_coco,
    ".pkl": _write_detectron2,
}
