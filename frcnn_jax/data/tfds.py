"""VOC through tensorflow-datasets: prepared with its own builder, which needs TensorFlow, and read without it.

Boxes there are (ymin, xmin, ymax, xmax), VOC's 1-based values over the annotated size.
"""

import io
import os
import re
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from frcnn_jax.data.records import Dataset, Record, load_image, stop
from frcnn_jax.data.voc import VOC_CLASSES, read_voc
from frcnn_jax.errors import InputError

_SPLITS = {"train": "train", "validation": "val", "test": "test"}  # tensorflow-datasets': VOC's


def _tfds() -> Any:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow_datasets

    return tensorflow_datasets


@dataclass(frozen=True)
class _Source:
    """An image of a data source; picklable."""

    examples: Sequence[Mapping[str, Any]]
    place: int
    name: str
    size: tuple[int, int]

    def __call__(self) -> np.ndarray:
        return load_image(Path(self.name), self.size, data=self.examples[self.place]["image"])


def read_tfds(
    name: str, split: str, data_dir: Path | None = None, on_problem: Callable[[InputError], None] = stop
) -> Dataset:
    """A split of VOC as `prepare_voc`, or tensorflow-datasets itself, prepared it in the ArrayRecord format.

    Args:
        name: "voc/2007" or "voc/2012".
        split: in tensorflow-datasets' form, such as "train+validation" or "test[:10%]".
        data_dir: where it was prepared; its own default, ~/tensorflow_datasets, where None.
        on_problem: gets boxes that are not within their image, and an image that is there twice.

    Raises:
        InputError: another name, nothing prepared there, no such split, or another format.
    """
    if name not in ("voc/2007", "voc/2012"):
        raise InputError(f"of tensorflow-datasets, voc/2007 and voc/2012 are read, got {name!r}")
    tfds = _tfds()
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser() / name
    versions = sorted(path for path in root.glob("*.*.*") if (path / "dataset_info.json").is_file())
    if not versions:
        raise InputError(f"{root}: nothing prepared here; scripts/prepare_voc.py does it from a VOCdevkit folder")
    try:
        builder = tfds.builder_from_directory(versions[-1])
        names = tuple(builder.info.features["objects"]["label"].names)
        examples = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except (ValueError, KeyError, AttributeError, NotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{versions[-1]}: can't read the split {split!r} ({reason})") from None
    records, seen = [], set()
    for place, example in enumerate(examples):
        try:
            record = _record(example, place, examples, versions[-1], on_problem)
            if record.image_id in seen:
                raise InputError(f"{versions[-1]}: the image {record.image_id!r} is there twice")
            seen.add(record.image_id)
            records.append(record)
        except InputError as problem:
            on_problem(problem)
    return Dataset(names, records)


def _record(
    example: Mapping[str, Any], place: int, examples: Any, source: Path, on_problem: Callable[[InputError], None]
) -> Record:
    filename = example["image/filename"].decode()
    with Image.open(io.BytesIO(example["image"])) as image:
        width, height = image.size
    objects = example["objects"]
    fractions = np.array(objects["bbox"], np.float64).reshape(-1, 4)
    y1, x1, y2, x2 = np.round(fractions * [height, width, height, width]).T - 1
    boxes = np.stack([x1, y1, x2, y2], axis=1).astype(np.float32)
    good = (boxes[:, :2] >= 0).all(axis=1) & (boxes[:, 2:] < [width, height]).all(axis=1)
    good &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    for box in boxes[~good]:
        on_problem(InputError(f"{source}: {filename}: box {box.tolist()} is not within the {width} x {height} image"))
    return Record(
        Path(filename).stem,
        height,
        width,
        boxes[good],
        np.array(objects["label"], np.int32)[good] + 1,
        np.array(objects["is_difficult"], bool)[good],
        _Source(examples, place, f"{source}/{filename}", (height, width)),
    )


def prepare_voc(source: Path, year: int, data_dir: Path | None = None) -> Path:
    """Prepares VOC with the builder of tensorflow-datasets, without network.

    Args:
        source: the VOCdevkit folder, or one with the official tar files in it.
        year: 2007 or 2012.
        data_dir: where to; ~/tensorflow_datasets where None.

    Returns:
        the folder of the prepared set.

    Raises:
        InputError: TensorFlow is missing, there is nothing of that year, or what `read_voc` finds wrong in it.
    """
    tfds = _tfds()
    try:
        import importlib_resources  # noqa: F401 - the builder needs it, and tensorflow-datasets does not install it
        import tensorflow  # noqa: F401 - the builder needs it
    except ImportError:
        raise InputError("preparing needs TensorFlow and importlib_resources: pip install 'frcnn_jax[tfds]'") from None
    with tempfile.TemporaryDirectory() as temporary:
        root = _devkit(Path(source), year, Path(temporary))
        there = {
            name: voc
            for name, voc in _SPLITS.items()
            if (root / f"VOC{year}/ImageSets/Main/{voc}.txt").is_file() and (name, year) != ("test", 2012)
        }
        if not there:
            raise InputError(f"{source}: no split file in VOC{year}/ImageSets/Main")
        for voc in there.values():
            read_voc(root, year, voc, VOC_CLASSES)
        builder = _local_builder(tfds, root, there)(
            config=str(year), data_dir=str(data_dir) if data_dir else None, file_format="array_record"
        )
        try:
            builder.download_and_prepare()
        except AttributeError as error:  # a tag that the builder wants and read_voc does not
            raise InputError(f"{source}: an annotation lacks pose, truncated or difficult ({error})") from None
    return Path(builder.data_dir)


def _devkit(source: Path, year: int, temporary: Path) -> Path:
    """The VOCdevkit folder of `source`; tar files are unpacked."""
    for root in (source, source / "VOCdevkit"):
        if (root / f"VOC{year}").is_dir():
            return root.absolute()
    archives = sorted(path for path in source.glob("*.tar") if re.search(rf"VOC.*{year}|VOC{year}", path.name))
    if not archives:
        raise InputError(f"{source}: neither a folder VOC{year} nor VOC*{year}*.tar in it")
    for path in archives:
        try:
            with tarfile.open(path) as archive:
                archive.extractall(temporary, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{path}: not a whole tar file ({error})") from None
    return temporary / "VOCdevkit"


def _local_builder(tfds: Any, root: Path, there: Mapping[str, str]) -> Any:
    """The builder's class, for a folder in place of the download, and the splits that are there."""

    class Local:
        def download_and_extract(self, urls: Mapping[str, str]) -> dict[str, str]:
            return dict.fromkeys(urls, str(root.parent))

    with tfds.core.registered.skip_registration():

        class Voc(tfds.object_detection.Voc):
            def _split_generators(self, dl_manager: Any) -> list:
                return [split for split in super()._split_generators(Local()) if str(split.name) in there]

    return Voc
