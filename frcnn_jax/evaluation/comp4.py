"""Result files of the VOC devkit ("comp4"), one per class."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.files import read_bytes, write_text


def _result_file(folder: Path, split: str, class_name: str) -> Path:
    return folder / f"comp4_det_{split}_{class_name}.txt"


def _devkit_folder(folder: Path, year: int) -> Path:
    return folder / "results" / f"VOC{year}" / "Main"


def check_comp4(dataset: Dataset, split: str) -> None:
    """Check that the detections of a split can be written to result files.

    Raises:
        InputError: The name of the split or of a class contains "/", or an image id contains white space.
    """
    for name in (split, *dataset.class_names):
        if "/" in name:
            raise InputError(f"{name!r} can't be used in the name of a result file: it contains '/'")
    for record in dataset.records:
        if record.image_id.split() != [record.image_id]:
            raise InputError(
                f"the image id {record.image_id!r} can't be used in a result file: it contains white space"
            )


def write_comp4(
    folder: Path, detections: Sequence[ClassDetections], dataset: Dataset, *, year: int, split: str
) -> None:
    """Write result files to `folder`/results/VOC<year>/Main/comp4_det_<split>_<class>.txt.

    Lines are `id score x1 y1 x2 y2`, best first. Boxes are 1-based with one decimal. Scores have six decimals (three in
    the paper's code, which makes low scores equal); `read_comp4` preserves the order of equal scores.

    Args:
        folder: Output folder; created if it does not exist.
        detections: K detections, one `ClassDetections` per class.
        dataset: The split.
        year, split: Year and split in the names of folder and files.

    Raises:
        InputError: See `check_comp4`.
    """
    check_comp4(dataset, split)
    inner = _devkit_folder(folder, year)
    inner.mkdir(parents=True, exist_ok=True)
    for name, found in zip(dataset.class_names, detections, strict=True):
        lines = []
        for i in np.argsort(-found.scores, kind="stable"):
            box = " ".join(f"{side + 1:.1f}" for side in found.boxes[i])
            lines.append(f"{dataset.records[found.image[i]].image_id} {found.scores[i]:.6f} {box}\n")
        write_text(_result_file(inner, split, name), "".join(lines))


def read_comp4(folder: Path, dataset: Dataset, *, year: int, split: str) -> list[ClassDetections]:
    """Read result files from `folder`/results/VOC<year>/Main or, if that does not exist, from `folder`.

    A class without a file has no detections, which is said on stderr. Empty lines do not count, and image ids may
    contain white space.

    Args:
        folder: Folder with one file comp4_det_<split>_<class>.txt per class.
        dataset: The split.
        year, split: Year and split in the names of folder and files.

    Returns:
        One `ClassDetections` per class, in the order of the lines, with 0-based boxes.

    Raises:
        InputError: All files are missing, or a line is not `id score x1 y1 x2 y2` for an image of the split.
    """
    inner = _devkit_folder(folder, year)
    index = {record.image_id: i for i, record in enumerate(dataset.records)}
    detections = []
    paths = [_result_file(inner if inner.is_dir() else folder, split, name) for name in dataset.class_names]
    missing = [path for path in paths if not path.is_file()]
    if len(missing) == len(paths):
        raise InputError(f"{paths[0]}: no such result file (expected one per class)")
    for path in missing:
        print(f"{path}: no such result file; the class has no detections", file=sys.stderr)
    for path in paths:
        content = b"" if path in missing else read_bytes(path)
        text = content.decode("utf-8-sig", "surrogateescape")  # as in `write_text`
        image, numbers = [], []
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            try:
                image_id, *values = line.strip().rsplit(None, 5)
                score, x1, y1, x2, y2 = map(float, values)
                image.append(index[image_id])
            except ValueError:
                raise InputError(f"{path}:{number}: expected 'id score x1 y1 x2 y2', got {line!r}") from None
            except KeyError:
                raise InputError(f"{path}:{number}: image {image_id!r} is not in the split {split!r}") from None
            if not all(map(math.isfinite, (score, x1, y1, x2, y2))):
                raise InputError(f"{path}:{number}: a number is not finite: {line!r}")
            numbers.append((score, x1 - 1, y1 - 1, x2 - 1, y2 - 1))  # 1-based in the file
        array = np.array(numbers).reshape(-1, 5)
        detections.append(ClassDetections(np.array(image, int), array[:, 0], array[:, 1:]))
    return detections
