"""Detect objects in images, and draw and list the detections:

    frcnn detect --workdir W IMAGE... --out DIR [--boxes FILE]

DIR receives a picture with boxes, NAME.png, for each image, and detections.json with all labels, scores and boxes.
With --boxes, the boxes of FILE are classified instead, all of them and in their order: for each the best class and its
probability, this class's box and the probabilities of all classes; pictures show those of at least --score-threshold.
FILE is JSON {"image": [[x1, y1, x2, y2], ..]}, COCO instances or results, or .npz with an array per image.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from frcnn_jax.cli import command_parser, run
from frcnn_jax.data.records import load_image
from frcnn_jax.data.region_files import read_regions
from frcnn_jax.data.workers import process_pool
from frcnn_jax.detector import Detector
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.pictures import draw_boxes
from frcnn_jax.evaluation.predict import Detections
from frcnn_jax.evaluation.regions import RegionScores, check_regions
from frcnn_jax.files import check_folder, write_atomic, write_json


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__, "--workdir", "--network", "--step")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and detections.json")
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="boxes to classify")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="minimum score; default: %(default)s")
    args = parser.parse_args(argv)
    if not math.isfinite(args.score_threshold):
        raise InputError(f"--score-threshold must be finite, got {args.score_threshold}")
    check_folder(args.out)
    pictures = _picture_paths(args.images, args.out)
    regions = read_regions(args.boxes, args.images) if args.boxes else None
    detector = Detector.from_workdir(args.workdir, step=args.step, network=args.network)
    for i, path in enumerate(args.images):  # fail on an unreadable image or a wrong box before anything is written
        height, width, _ = load_image(path).shape
        if regions is not None:
            check_regions(regions[i], height, width, where=f"image {path}")
    args.out.mkdir(parents=True, exist_ok=True)
    results = {}
    with _search_pool(len(pictures)) as pool:
        detections = detector.detect_each(pictures, executor=pool, score_threshold=args.score_threshold)
        for i, (path, picture) in enumerate(tqdm(pictures.items(), desc="detect", unit="image")):
            if regions is None:
                found = next(detections)
                results[str(path)] = found.to_records(detector.class_names)
            else:
                found, results[str(path)] = _classify(detector, path, regions[i])
                found = Detections(*(field[found.scores >= args.score_threshold] for field in found))
            captions = [f"{one['label']} {one['score']:.2f}" for one in found.to_records(detector.class_names)]
            drawn = draw_boxes(load_image(path), found.boxes, found.labels, captions)
            write_atomic(picture, partial(drawn.save, format="png"))
    write_json(args.out / "detections.json", results)
    what = "detections" if regions is None else "boxes"
    print(f"{sum(map(len, results.values()))} {what} in {len(results)} images: {args.out}/detections.json")


def _classify(detector: Detector, path: Path, boxes: np.ndarray) -> tuple[Detections, list[dict]]:
    """Return the best foreground class of each box as detections, and their records with all probabilities."""
    scores = detector.classify(path, boxes)
    assert isinstance(scores, RegionScores)
    best, rows = scores.probabilities[:, 1:].argmax(axis=1), np.arange(len(boxes))
    found = Detections(scores.boxes[rows, best], (best + 1).astype(np.int32), scores.probabilities[rows, best + 1])
    names = ("background", *detector.class_names)
    records = found.to_records(detector.class_names)
    for record, own in zip(records, scores.probabilities, strict=True):
        record["probabilities"] = {name: round(float(p), 4) for name, p in zip(names, own, strict=True)}
    return found, records


def _search_pool(images: int) -> Executor:
    """Return processes that search ahead, or a thread for a few images, for which starting these does not pay."""
    workers = min(os.cpu_count() or 1, images // 4)
    return process_pool(workers) if workers > 1 else ThreadPoolExecutor(1)


def _picture_paths(images: Sequence[Path], out: Path) -> dict[Path, Path]:
    pictures = {path: out / f"{path.stem}.png" for path in images}
    seen: dict[Path, Path] = {}
    for path in images:
        if (first := seen.setdefault(out / f"{path.stem}.png", path)) is not path:
            raise InputError(f"pictures of {first} and {path} would overwrite each other; use an --out for each")
    if taken := {path.resolve() for path in images} & {picture.resolve() for picture in pictures.values()}:
        raise InputError(f"{min(taken)}: would be overwritten by a picture; use another --out")
    return pictures


if __name__ == "__main__":
    run("detect")
