"""What `fuzz.py` feeds to the readers of whole data sets: those that the tests write, with one file replaced."""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_targets import Target, crafted_coco, crafted_json, crafted_xml, read_records

from frcnn_jax import build, workdir
from frcnn_jax.data.layouts.auto import open_dataset, read_dataset
from frcnn_jax.data.listing import Files, describe_files, image_ids, split_of
from frcnn_jax.data.problems import CorrectedError
from frcnn_jax.errors import InputError

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / "tests" / folder) for folder in ("", "data")]

import test_layouts as written  # noqa: E402 - of the tests

_WRITTEN: dict[Callable[[Path], None], tempfile.TemporaryDirectory[str]] = {}


def written_once(write: Callable[[Path], None]) -> Path:
    """Return a folder with a data set, whose files are never changed."""
    if write not in _WRITTEN:
        _WRITTEN[write] = tempfile.TemporaryDirectory(prefix="fuzz")
        write(Path(_WRITTEN[write].name) / "data")
    return Path(_WRITTEN[write].name) / "data"


class Replaced(NamedTuple):
    """A data set of which one file is replaced."""

    write: Callable[[Path], None]
    pattern: str  # of its files: the first is replaced, and all are valid in its place
    crafted: Callable[[], dict[str, bytes]] = dict

    def seeds(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted(written_once(self.write).glob(self.pattern))]

    def read(self, path: Path) -> None:
        root = path.parent / "data"
        shutil.copytree(written_once(self.write), root, copy_function=os.link)
        replaced = sorted(root.glob(self.pattern))[0]
        replaced.unlink()
        path.rename(replaced)
        problems: list[InputError] = []
        for dataset in read_dataset(root, on_problem=problems.append).values():
            read_records(dataset)
            for record in dataset.records:
                record.load()
        for problem in problems:
            if str(root) not in str(problem):
                raise problem
        for problem in problems:
            if not isinstance(problem, CorrectedError):
                raise problem


def crafted_yaml() -> dict[str, bytes]:
    head = "train: images/train\nval: images/val\n"
    repeats = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else '1'}]\n" for i in range(12))
    merges = "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
    names = {
        "lists in lists": f"{repeats}names: [*a11, *a11]\n",
        "keys in lists": f"{repeats}names: {{0: *a11}}\n",
        "merged": f"m0: &m0 {{0: cat}}\n{merges}names: *m11\n",
        "deep": "names: " + "[" * 100_000 + "]" * 100_000,
        "number": "names: [cat, dog]\nnc: " + "9" * 5000,
        "sixties": "names: [cat, dog]\nnc: " + "1:" * 200_000 + "1",
        "date": "names: [cat, dog]\nnc: 2020-99-99",
        "many names": "names: [" + ", ".join(map(str, range(100_000))) + "]",
        "object": "names: !!python/object/apply:os.system [true]",
        "float": "names: [cat, dog]\nnc: .inf",
        "a list": "names: [cat, dog]\ntest: 3",
    }
    return {name: (head + text).encode() for name, text in names.items()} | {
        "devices": b"train: /dev/zero\nval: ../../../etc/passwd\nnames: [cat, dog]\n",
        "a list alone": b"- names\n- nc\n",
        "10 MB": b"names: [cat, dog]\nnc: 2\n" + b"a: b\n" * 2_000_000,
    }


def crafted_labels() -> dict[str, bytes]:
    return {
        "many rows": b"0 0.5 0.5 0.1 0.1\n" * 20_000,
        "unknown classes": b"7 0.5 0.5 0.1 0.1\n" * 20_000,
        "many points": b"0" + b" 0.5 0.6" * 200_000,
        "numbers": b"0 nan inf 1e999 -1\n1e300 0 0 0 0\n" + b"9" * 5000 + b" 0 0 1 1\n",
        "UTF-16": "0 0.5 0.5 0.1 0.1\n".encode("utf-16"),
    }


def crafted_names() -> dict[str, bytes]:
    return {
        "many names": "\n".join(map(str, range(50_000))).encode(),
        "long names": (b"a" * 500_000 + b"\n") * 4,
        "nothing": b"",
        "NUL": b"cat\0\ndog\n",
    }


def crafted_csv() -> dict[str, bytes]:
    head = "filename,width,height,class,xmin,ymin,xmax,ymax\n"
    return {
        "a long cell": (head + "a" * 200_000 + ",50,40,cat,1,1,9,9\n").encode(),
        "long sizes": (head + f"a.jpg,{'9' * 5000},40,cat,1,1,9,9\n").encode(),
        "quotes": (head + '"' * 100_001).encode(),
        "many columns": b"," * 1_000_000,
        "many images": (head + "".join(f"{i}.jpg,50,40,cat,1,1,9,9\n" for i in range(50_000))).encode(),
        "many classes": (head + "".join(f"a.jpg,50,40,c{i},1,1,9,9\n" for i in range(20_000))).encode(),
        "NUL": (head + "a\0.jpg,50,40,cat,1,1,9,9\n").encode(),
        "numbers": b"a,b\n" + b"9" * 5000 + b"," + b"9" * 5000 + b"\n",
    }


def crafted_cvat() -> dict[str, bytes]:
    def image(text: str, **attributes: str) -> bytes:
        own = "".join(f' {key}="{value}"' for key, value in {"name": "a.jpg", **attributes}.items())
        return f"<annotations><image{own}>{text}</image></annotations>".encode()

    points = ";".join(["1,2"] * 200_000)
    return crafted_xml() | {
        "long sizes": image("", width="9" * 5000, height="9" * 5000),
        "rotation": image('<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9" rotation="x"/>'),
        "points": image(f'<polygon label="cat" points="{points}"/>'),
        "other points": image('<polygon label="cat" points=";,;"/>'),
        "many boxes": image('<box label="cat" xtl="1" ytl="1" xbr="9" ybr="9"/>' * 20_000),
        "path": image("", name="../../../../etc/passwd"),
        "device": image("", name="/dev/zero"),
        "NUL in a name": image("", name="%00"),
        "percent": image("", name="%25" * 5000),
    }


def crafted_vott() -> dict[str, bytes]:
    def changed(**changes: Any) -> bytes:
        return json.dumps({**written.vott(), **changes}).encode()

    return crafted_json() | {
        "assets": b'{"assets": {"a": 3}}',
        "a list": b'[{"assets": {"a": 3}}]',
        "tags": changed(tags=[3]),
        "no tags": changed(tags=None),
        "name": changed(assets={"a": {"asset": {"name": ["%2525" * 9]}, "regions": 7}}),
    }


def crafted_labelme() -> dict[str, bytes]:
    point = [[1, 2]]
    shapes: dict[str, Any] = {
        "huge": [{"label": "cat", "points": [[10**400, 1], [2, 3]]}],
        "many": [{"label": "cat", "points": point * 200_000}],
        "no label": [{"points": [[1, 1], [9, 9]], "label": None}],
        "circle": [{"label": "cat", "shape_type": "circle", "points": [[1e308, 1], [-1e308, 1]]}],
        "kinds": [{"label": "cat", "shape_type": [], "points": [[1, 1], [9, 9]]}],
    }
    return crafted_json() | {name: written.labelme("a", shapes=own).encode() for name, own in shapes.items()} | {
        "sizes": written.labelme("a", imageHeight=10**4000, imageWidth=10**4000).encode(),
        "truth": written.labelme("a", imageHeight=True, imageWidth=True).encode(),
    }  # fmt: skip


def crafted_listed() -> dict[str, bytes]:
    """Files that list images, of other content than they have."""
    marks = '"file_attributes": {}, "original_width": 1, "coordinates": {}, "objects": [7], "size": {}'
    value: dict[str, Any] = {"points": [[10**400, None]], "polygonlabels": [[]]}
    regions = [{"shape_attributes": 3, "region_attributes": {"a": [3]}}] * 9
    return crafted_json() | {
        "marks": f"{{{marks}}}".encode(),
        "marks in a list": f"[{{{marks}}}]".encode(),
        "via": json.dumps({"a": {"filename": ["a"], "regions": regions, "file_attributes": {}}}).encode(),
        "label studio": json.dumps(
            [{"original_width": 1, "annotations": [{"result": [{"value": value}]}], "data": {"image": "a.jpg"}}]
        ).encode(),
        "createml": b'[{"image": "a.jpg", "annotations": [{"label": {}, "coordinates": {"x": []}}]}]',
        "supervisely": b'{"size": {"height": 1}, "objects": [{"classTitle": [], "points": {"exterior": [[1]]}}]}',
        "paths": json.dumps(
            {
                name: {"filename": name, "regions": [], "file_attributes": {}}
                for name in ("../../../../etc/passwd", "%25" * 5000, "\0", "00000000-" * 3000)
            }
        ).encode(),
    }


def crafted_kitti() -> dict[str, bytes]:
    line = b"cat 0 0 1 1 1 9 9 1 1 1 1 1 1 1\n"
    return {
        "many": line * 20_000,
        "numbers": line.replace(b" 9 9 ", b" nan 1e999 ") + line.replace(b" 9 ", b" " + b"9" * 5000 + b" "),
        "UTF-16": line.decode().encode("utf-16"),
        "many classes": b"".join(b"c%d" % i + line[3:] for i in range(9999)),
    }


def read_drawn(path: Path) -> None:
    """Read a data set by a division that is recorded."""
    if (drawn := build._recorded_split(path)) is None:
        return
    root = path.parent / "data"
    written.write_vott(root)
    problems: list[InputError] = []
    for split in ("train", "val"):
        read_records(open_dataset(root, drawn=drawn).read(split, problems.append))
    assert all(str(root) in str(problem) for problem in problems)


def read_trained(path: Path) -> None:
    workdir.check_split(path.parent, read_dataset_of(path.parent / "data"))


def read_resumed(path: Path) -> None:
    build.total_steps({"steps": 600, "epochs": 10.0, "reference_images": 4}, workdir.begun_images(path.parent))


def read_dataset_of(root: Path) -> Any:
    written.write_vott(root)
    return read_dataset(root)["train"].records


def trained_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        workdir.check_split(Path(folder), read_dataset_of(Path(folder) / "data"))
        return [(Path(folder) / "train_split.json").read_bytes()]


def read_listing(path: Path) -> None:
    """List files of the names in a file, and look each one up."""
    root = path.parent / "data"
    if not path.is_file():
        raise InputError(f"{path}: no list of names, which no reader reads")
    names = [name for name in path.read_bytes().decode(errors="surrogateescape").split("\n")[:200] if name.strip("/.")]
    for name in names:
        try:
            target = root / name.replace("..", "").lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.touch()
        except (OSError, ValueError):  # no name of a file
            continue
    root.mkdir(exist_ok=True)
    files = Files(root)
    describe_files(files).encode(errors="surrogateescape")
    assert len(set(image_ids(files.images))) == len(files.images)
    for name in names:
        split_of(Path(name), by_name=True)
        annotation = Path(f"{name.lstrip('/')}.xml")  # of the data set, as all are
        for find in (partial(files.image_named, name, Path("a.xml")), partial(files.image_of, annotation)):
            try:
                found, line = find(), str(root)
            except InputError as error:
                found, line = None, str(error)
            assert str(root) in line
            assert found is None or found in files.images


LISTING = """
train/a.jpg
valid/a.jpg
.DS_Store
x/.git/b.png
B.PNG
b.png
x y/%20.jpg
\u00e9.jpg
e\u0301.jpg
images/c.gif
""".encode()

REPLACED = {
    "voc xml": Replaced(written.write_voc, "VOC2007/Annotations/*.xml", crafted_xml),
    "voc split": Replaced(written.write_voc, "VOC2007/ImageSets/Main/*.txt", crafted_names),
    "voc lists": Replaced(written.write_voc_lists, "train.txt", crafted_names),
    "voc folders": Replaced(written.write_xml, "train/*.XML", crafted_xml),
    "coco": Replaced(written.write_coco_label_studio, "result.json", crafted_coco),
    "coco roboflow": Replaced(written.write_roboflow, "train/*.json", crafted_coco),
    "yolo data.yaml": Replaced(written.write_yolo, "data.yaml", crafted_yaml),
    "yolo roboflow": Replaced(written.write_yolo_roboflow, "data.yaml", crafted_yaml),
    "yolo labels": Replaced(written.write_yolo, "labels/train/*.txt", crafted_labels),
    "yolo outlines": Replaced(written.write_yolo_outlines, "labels/train/*.txt", crafted_labels),
    "yolo list": Replaced(written.write_yolo_lists, "train.txt", crafted_names),
    "yolo classes": Replaced(written.write_yolo_classes, "classes.txt", crafted_names),
    "labelme": Replaced(written.write_labelme, "train/*.json", crafted_labelme),
    "cvat": Replaced(written.write_cvat, "annotations.xml", crafted_cvat),
    "vott": Replaced(written.write_vott, "pets-export.json", crafted_vott),
    "via": Replaced(written.write_via, "train/*.json", crafted_listed),
    "via project": Replaced(written.write_via_project, "via_project.json", crafted_listed),
    "label_studio": Replaced(written.write_label_studio, "project-*.json", crafted_listed),
    "label_studio min": Replaced(written.write_label_studio_min, "project-*.json", crafted_listed),
    "createml": Replaced(written.write_createml, "train/*.json", crafted_listed),
    "supervisely": Replaced(written.write_supervisely, "train/ann/*.json", crafted_listed),
    "kitti": Replaced(written.write_kitti, "training/label_2/*.txt", crafted_kitti),
    "csv tensorflow": Replaced(written.write_csv_tensorflow, "data/train_labels.csv", crafted_csv),
    "csv corners": Replaced(written.write_csv_corners, "train/labels.csv", crafted_csv),
    "csv retinanet": Replaced(written.write_csv_retinanet, "train.csv", crafted_csv),
    "csv classes": Replaced(written.write_csv_retinanet, "classes.csv", crafted_csv),
    "csv open images": Replaced(written.write_csv_open_images, "train-annotations-bbox.csv", crafted_csv),
}

LAYOUT_TARGETS = {
    **{f"layout {name}": Target("mutant", own.seeds, own.read, own.crafted) for name, own in REPLACED.items()},
    "split.json": Target(
        "split.json", lambda: [b'{"train": ["a", "b"], "val": ["c"]}', b'{"train": ["a"], "val": []}'], read_drawn,
        crafted_json,
    ),
    "train_split.json": Target("train_split.json", trained_seeds, read_trained, crafted_json),
    "resumed run": Target("train_split.json", trained_seeds, read_resumed, crafted_json),
    "listing": Target("names", lambda: [LISTING], read_listing),
}  # fmt: skip
