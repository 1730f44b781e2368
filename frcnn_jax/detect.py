"""Detect objects in images, and draw and list the detections:

    frcnn detect --workdir W IMAGE... --out DIR

DIR receives a picture with boxes, NAME.png, for each image, and detections.json with all labels, scores and boxes.
"""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from frcnn_jax.cli import command_parser, run
from frcnn_jax.data.records import load_image
from frcnn_jax.detector import Detector
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.pictures import draw_boxes
from frcnn_jax.files import check_folder, write_atomic, write_json


def main(argv: Sequence[str]) -> None:
    """Run the command line."""
    parser = command_parser(__doc__, "--workdir", "--step")
    parser.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="image file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures and detections.json")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="minimum score; default: %(default)s")
    args = parser.parse_args(argv)
    if not math.isfinite(args.score_threshold):
        raise InputError(f"--score-threshold must be finite, got {args.score_threshold}")
    check_folder(args.out)
    pictures = _picture_paths(args.images, args.out)
    detector = Detector.from_workdir(args.workdir, step=args.step)
    for path in args.images:
        load_image(path)  # fail on an unreadable image before anything is written
    args.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for path, picture in tqdm(pictures.items(), desc="detect", unit="image"):
        image = load_image(path)
        found = detector(image, score_threshold=args.score_threshold)
        names = [detector.class_names[label - 1] for label in found.labels]
        results[str(path)] = [
            {"label": name, "score": round(float(score), 4), "box": [round(float(v), 1) for v in box]}
            for name, score, box in zip(names, found.scores, found.boxes, strict=True)
        ]
        captions = [f"{name} {score:.2f}" for name, score in zip(names, found.scores, strict=True)]
        drawn = draw_boxes(image, found.boxes, found.labels, captions)
        write_atomic(picture, partial(drawn.save, format="png"))
    write_json(args.out / "detections.json", results)
    print(f"{sum(map(len, results.values()))} detections in {len(results)} images: {args.out}/detections.json")


def _picture_paths(images: Sequence[Path], out: Path) -> dict[Path, Path]:
    pictures = {path: out / f"{path.stem}.png" for path in images}
    if len(set(pictures.values())) < len(images):
        raise InputError(
            "pictures of images with the same name would overwrite each other; use a separate --out for each"
        )
    if taken := {path.resolve() for path in images} & {picture.resolve() for picture in pictures.values()}:
        raise InputError(f"{min(taken)}: would be overwritten by a picture; use another --out")
    return pictures


if __name__ == "__main__":
    run("detect")
