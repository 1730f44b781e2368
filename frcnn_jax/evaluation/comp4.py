"""VOC's result files, comp4: one a class, by the protocol of the devkit."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from frcnn_jax.data.records import Dataset
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.files import write_text


def _result_file(folder: Path, split: str, class_name: str) -> Path:
    return folder / f"comp4_det_{split}_{class_name}.txt"


def check_comp4(dataset: Dataset, split: str) -> None:
    """InputError where the split or a class holds a "/", or the id of an image white space."""
    for name in (split, *dataset.class_names):
        if "/" in name:
            raise InputError(f"{name!r} can't be part of the name of a result file: it holds a '/'")
    for record in dataset.records:
        if record.image_id.split() != [record.image_id]:
            raise InputError(f"the image id {record.image_id!r} can't stand in a result file: it holds white space")


def write_comp4(
    folder: Path, detections: Sequence[ClassDetections], dataset: Dataset, *, year: int, split: str
) -> None:
    """VOC's result files, one a class, into results/VOC<year>/Main of `folder`: lines `id score x1 y1 x2 y2`, best
    first, boxes 1-based and with one decimal.

    Scores have six decimals; the paper's code writes three, which makes ties of the low ones. `read_comp4` keeps the
    order of ties, so the ranking survives.

    Raises:
        InputError: as `check_comp4`.
    """
    check_comp4(dataset, split)
    inner = folder / "results" / f"VOC{year}" / "Main"
    inner.mkdir(parents=True, exist_ok=True)
    for name, found in zip(dataset.class_names, detections, strict=True):
        lines = []
        for i in np.argsort(-found.scores, kind="stable"):
            box = " ".join(f"{side + 1:.1f}" for side in found.boxes[i])
            lines.append(f"{dataset.records[found.image[i]].image_id} {found.scores[i]:.6f} {box}\n")
        write_text(_result_file(inner, split, name), "".join(lines))


def read_comp4(folder: Path, dataset: Dataset, *, year: int, split: str) -> list[ClassDetections]:
    """Detections from VOC's result files `comp4_det_<split>_<class>.txt`, in `folder` or its results/VOC<year>/Main.

    Raises:
        InputError: a file is missing, or a line is not `id score x1 y1 x2 y2` for an image of the split.
    """
    for inner in (folder / "results" / f"VOC{year}" / "Main", folder):
        if inner.is_dir():
            break
    place = {record.image_id: i for i, record in enumerate(dataset.records)}
    detections = []
    for name in dataset.class_names:
        path = _result_file(inner, split, name)
        try:
            lines = path.read_text("utf-8", "surrogateescape").splitlines()  # as `write_text`
        except (FileNotFoundError, NotADirectoryError):
            raise InputError(f"{path}: no such result file (one for each class is expected)") from None
        image, numbers = [], []
        for number, line in enumerate(lines, 1):
            try:
                image_id, *values = line.split()
                score, x1, y1, x2, y2 = map(float, values)
                image.append(place[image_id])
            except ValueError:
                raise InputError(f"{path}:{number}: expected 'id score x1 y1 x2 y2', got {line!r}") from None
            except KeyError:
                raise InputError(f"{path}:{number}: image {image_id!r} is not in the split {split!r}") from None
            numbers.append((score, x1 - 1, y1 - 1, x2 - 1, y2 - 1))  # 1-based in the file
        array = np.array(numbers).reshape(-1, 5)
        if not np.isfinite(array).all():
            raise InputError(f"{path}: holds numbers that are not finite")
        detections.append(ClassDetections(np.array(image, int), array[:, 0], array[:, 1:]))
    return detections
