"""Detect objects in images, and draw and list the detections:

    frcnn detect [--workdir W] IMAGE... --out DIR [--write pictures,json,coco,voc,yolo] [--boxes FILE]

W is a workdir or a detector's .safetensors file; without it, the detector that comes with the package finds PASCAL
VOC's 20 classes. An IMAGE is a file, a folder, whose images and those in its sub-folders are taken, or a pattern such
as 'photos/*.jpg'. DIR receives what --write names: a picture with boxes, NAME.png, for each image; detections.json with
all labels, scores and boxes; coco.json, a COCO instances file with scores; VOC's NAME.xml; YOLO's labels/NAME.txt and
labels/classes.txt. Where images of several folders have the same name, NAME has their folder before it. Images that
can't be read are named and skipped, and the exit status is 3.

With --boxes, the boxes of FILE are classified instead, all of them and in their order: for each the best class and its
probability, this class's box and the probabilities of all classes; pictures and annotations have those of at least
--score-threshold. FILE is JSON {"image": [[x1, y1, x2, y2], ..]}, COCO instances or results, or .npz with an array per
image.
"""

import argparse
import glob
import math
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from frcnn_jax.cli import ANY_DETECTOR, command_parser, run
from frcnn_jax.data.problems import OnProblem, ReportTo
from frcnn_jax.data.records import IMAGE_SUFFIXES, load_image
from frcnn_jax.data.region_files import read_regions
from frcnn_jax.data.workers import process_pool
from frcnn_jax.detector import Detector
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.annotations import Annotated, coco_instances, voc_xml, yolo_text
from frcnn_jax.evaluation.pictures import draw_boxes
from frcnn_jax.evaluation.predict import Detections
from frcnn_jax.evaluation.regions import RegionScores, check_regions
from frcnn_jax.files import check_folder, write_atomic, write_json, write_text

_FORMATS = ("pictures", "json", "coco", "voc", "yolo")
_SKIPPED = 3  # exit status where some images could not be read


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    args, formats = _parse(argv)
    images = _find_images(args.images)
    regions = dict(zip(images, read_regions(args.boxes, images), strict=True)) if args.boxes else None
    detector = Detector.load(args.workdir, step=args.step, network=args.network)
    # fail on a wrong box, and find unreadable images, before anything is written
    problems: list[InputError] = []
    sizes = _image_sizes(images, problems.append)
    if not sizes:
        raise problems[0]
    for path, own in (regions or {}).items():
        if path in sizes:
            check_regions(own, *sizes[path], where=f"image {path}")
    names = _result_names(list(sizes))
    _check_overwritten(sizes, args.out, names.values(), formats)
    args.out.mkdir(parents=True, exist_ok=True)
    results, annotated = {}, []
    with _search_pool(len(sizes)) as pool:
        detections = detector.detect_each(sizes, executor=pool, score_threshold=args.score_threshold)
        for path, size in tqdm(sizes.items(), desc="detect", unit="image"):
            if regions is None:
                found = next(detections)
                results[str(path)] = found.to_records(detector.class_names)
            else:
                found, results[str(path)] = _classify(detector, path, regions[path])
                found = Detections(*(field[found.scores >= args.score_threshold] for field in found))
            image = Annotated(path, *size, found)
            annotated.append(image)
            _write_image(image, args.out, names[path], formats, detector.class_names)
    if "json" in formats:
        write_json(args.out / "detections.json", results)
    if "coco" in formats:
        file_names = [Path(names[path]).with_name(path.name).as_posix() for path in sizes]
        write_json(args.out / "coco.json", coco_instances(annotated, file_names, detector.class_names))
    if "yolo" in formats:
        write_text(args.out / "labels" / "classes.txt", "".join(f"{name}\n" for name in detector.class_names))
    what = "detections" if regions is None else "boxes"
    where = f"{args.out}/detections.json" if "json" in formats else args.out
    print(f"{sum(map(len, results.values()))} {what} in {len(results)} images: {where}")
    if problems:
        print(*problems, f"{len(problems)} of {len(images)} images skipped", sep="\n", file=sys.stderr)
        sys.exit(_SKIPPED)


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = command_parser(__doc__, "--network", "--step")
    parser.add_argument("--workdir", type=Path, help=ANY_DETECTOR)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image file, folder of images, or pattern")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument(
        "--write", default="pictures,json", metavar="FORMATS", help=f"of {', '.join(_FORMATS)}; default: %(default)s"
    )
    parser.add_argument("--boxes", type=Path, metavar="FILE", help="boxes to classify")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="minimum score; default: %(default)s")
    args = parser.parse_args(argv)
    if not math.isfinite(args.score_threshold):
        raise InputError(f"--score-threshold must be finite, got {args.score_threshold}")
    formats = args.write.split(",")
    if unknown := set(formats) - set(_FORMATS):
        raise InputError(f"--write must be some of {', '.join(_FORMATS)}, got {min(unknown)!r}")
    check_folder(args.out)
    return args, formats


def _write_image(image: Annotated, out: Path, name: str, formats: Sequence[str], class_names: Sequence[str]) -> None:
    """Write the files of one image."""
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    if "pictures" in formats:
        captions = [f"{one['label']} {one['score']:.2f}" for one in image.found.to_records(class_names)]
        drawn = draw_boxes(load_image(str(image.path)), image.found.boxes, image.found.labels, captions)
        write_atomic(out / f"{name}.png", partial(drawn.save, format="png"))
    if "voc" in formats:
        write_text(out / f"{name}.xml", voc_xml(image, class_names))
    if "yolo" in formats:
        path = out / "labels" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, yolo_text(image))


def _find_images(arguments: Sequence[str]) -> list[Path]:
    """Return the files of files, folders and patterns, each once, in this order.

    Raises:
        InputError: A folder or a pattern has no image.
    """
    found: list[Path] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if _is_image(file.relative_to(path)))
            if not files:
                raise InputError(f"{path}: no images in this folder ({', '.join(IMAGE_SUFFIXES)})")
        elif path.exists() or not glob.has_magic(argument):
            files = [path]
        else:
            files = [Path(name) for name in sorted(glob.glob(argument, recursive=True)) if Path(name).is_file()]
            if not files:
                raise InputError(f"{argument}: no file fits this pattern")
        found += files
    return list(dict.fromkeys(found))


def _image_sizes(images: Iterable[Path], on_problem: OnProblem) -> dict[Path, tuple[int, int]]:
    """Return the heights and widths of the images that can be read."""
    sizes = {}
    for path in images:
        with ReportTo(on_problem):
            height, width, _ = load_image(path).shape
            sizes[path] = height, width
    return sizes


def _is_image(path: Path) -> bool:
    """Whether a file of a folder is an image, and none of those that macOS leaves."""
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _result_names(images: Sequence[Path]) -> dict[Path, str]:
    """Return what the files of each image are named in the output folder, without a suffix.

    It is the image's stem; where these repeat, its path below the folder that all are in; with its own suffix where
    this repeats as well.
    """
    root = os.path.commonpath([path.absolute().parent for path in images])
    below = {path: path.absolute().relative_to(root) for path in images}
    for names in (
        {path: path.stem for path in images},
        {path: relative.with_suffix("").as_posix() for path, relative in below.items()},
    ):
        if len(set(names.values())) == len(names):
            return names
    repeated = Counter(names.values())
    return {path: below[path].as_posix() if repeated[name] > 1 else name for path, name in names.items()}


def _check_overwritten(images: Iterable[Path], out: Path, names: Iterable[str], formats: Sequence[str]) -> None:
    """Raise InputError if a result would take the place of an image, or of the class names."""
    own, names = {path.resolve() for path in images}, list(names)
    if "pictures" in formats and (taken := own & {(out / f"{name}.png").resolve() for name in names}):
        raise InputError(f"{min(taken)}: would be overwritten by a picture; use another --out")
    if "yolo" in formats and "classes" in names:
        raise InputError("an image is named 'classes', as YOLO's file of class names is; rename it")


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


if __name__ == "__main__":
    run("detect")
