"""Data sets as tools write them: each layout, what is odd in it, and what is refused."""

import json
import os
import time
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from frcnn_jax import read_dataset
from frcnn_jax.data.layouts.auto import LAYOUTS, divide, open_dataset
from frcnn_jax.data.problems import CorrectedError
from frcnn_jax.data.readers import read_split
from frcnn_jax.data.voc import read_xml_folder
from frcnn_jax.errors import InputError

WIDTH, HEIGHT = 50, 40
OBJECTS = {  # 0-based, inclusive
    "a": [("cat", (10, 5, 29, 24))],
    "b": [("dog", (0, 0, 9, 19)), ("cat", (5, 5, 44, 34))],
    "c": [("cat", (20, 10, 49, 39))],
}
SPLITS = {"train": "ab", "val": "c"}


def picture(path, size=(WIDTH, HEIGHT), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **options)


def text(path, content, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode(encoding))


def pictures(folder, names):
    for name in names:
        picture(folder / f"{name}.jpg")


def voc_xml(objects, size=f"<size><width>{WIDTH}</width><height>{HEIGHT}</height></size>"):
    """VOC's XML, 1-based."""
    rows = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{k}>{v + 1}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        + "</bndbox></object>"
        for name, box in objects
    )
    return f"<annotation><filename>other.jpg</filename>{size}{rows}</annotation>"


def coco(names, prefix="", categories=((1, "cat"), (2, "dog"))):
    numbers = {name: number for number, name in categories}
    rows = [
        {"image_id": i, "category_id": numbers[kind], "bbox": [x, y, x2 - x + 1, y2 - y + 1], "iscrowd": 0}
        for i, name in enumerate(names)
        for kind, (x, y, x2, y2) in OBJECTS[name]
    ]
    return json.dumps(
        {
            "images": [
                {"id": i, "file_name": f"{prefix}{name}.jpg", "width": WIDTH, "height": HEIGHT}
                for i, name in enumerate(names)
            ],
            "annotations": [{"id": i, **row} for i, row in enumerate(rows)],
            "categories": [{"id": number, "name": name, "supercategory": "x"} for number, name in categories],
        }
    )


def yolo(objects, classes=("cat", "dog")):
    """Lines of class, centre and sides in fractions."""
    sides = np.array([WIDTH, HEIGHT])
    lines = []
    for name, box in objects:
        first, last = np.array(box[:2]) / sides, (np.array(box[2:]) + 1) / sides
        lines.append(" ".join(map(str, [classes.index(name), *(first + last) / 2, *(last - first)])))
    return "\n".join(lines) + "\n"


def write_voc(root):
    for split, names in SPLITS.items():
        pictures(root / "VOC2007/JPEGImages", names)
        text(root / f"VOC2007/ImageSets/Main/{split}.txt", "\n".join(names))
        for name in names:
            text(root / f"VOC2007/Annotations/{name}.xml", voc_xml(OBJECTS[name]))


def write_xml(root):
    for split, names in (("train", "ab"), ("Validation", "c")):
        pictures(root / split, names)
        for name in names:
            text(root / split / f"{name}.XML", voc_xml(OBJECTS[name]))


def write_rectlabel(root):
    for split, names in SPLITS.items():
        pictures(root / split, names)
        for name in names:
            text(root / split / "annotations" / f"{name}.xml", voc_xml(OBJECTS[name]))


def write_images_by_split(root):
    """One folder of annotations; the images' folders are the splits."""
    for split, names in SPLITS.items():
        pictures(root / "images" / split, names)
        for name in names:
            text(root / "annotations" / f"{name}.xml", voc_xml(OBJECTS[name]))


def write_voc_lists(root):
    """One folder of annotations, one of images, and lists beside them."""
    write_one_folder(root)
    for split, names in SPLITS.items():
        text(root / f"{split}.txt", "".join(f"{name}\n" for name in names))


def write_one_folder(root):
    """VOC's XML without splits."""
    pictures(root / "images", "abc")
    for name in "abc":
        text(root / "xmls" / f"{name}.xml", voc_xml(OBJECTS[name]))


def write_roboflow(root):
    groups = ((0, "pets"), (1, "cat"), (2, "dog"))
    for split, names in (("train", "ab"), ("valid", "c")):
        pictures(root / split, names)
        text(root / split / "_annotations.coco.json", coco(names, categories=groups))


def write_coco(root):
    for split, names in SPLITS.items():
        pictures(root / "images" / f"{split}2017", names)
        text(root / f"annotations/instances_{split}2017.json", coco(names))
        text(root / f"annotations/captions_{split}2017.json", json.dumps({"images": [], "annotations": []}))


def write_coco_cvat(root):
    pictures(root / "images/default", "abc")
    text(root / "annotations/instances_default.json", coco("abc"))


def write_coco_label_studio(root):
    pictures(root / "images", "abc")
    text(root / "result.json", coco("abc", "images/", categories=((0, "cat"), (1, "dog"))))


def write_yolo(root):
    for split, names in SPLITS.items():
        pictures(root / "images" / split, names)
        for name in names:
            text(root / "labels" / split / f"{name}.txt", yolo(OBJECTS[name]))
    text(root / "data.yaml", "path: /home/ann/pets\ntrain: images/train\nval: [images/val]\nnames: {0: cat, 1: dog}\n")


def write_yolo_roboflow(root):
    for split, names in (("train", "ab"), ("valid", "c")):
        pictures(root / split / "images", names)
        for name in names:
            text(root / split / "labels" / f"{name}.txt", yolo(OBJECTS[name]))
    text(root / "data.yaml", "train: ../train/images\nval: ../valid/images\n\nnc: 2\nnames: ['cat', 'dog']\n")


def write_yolo_lists(root):
    write_yolo(root)
    for split, names in SPLITS.items():
        text(root / f"{split}.txt", "".join(f"./images/{split}/{name}.jpg\n" for name in names))
    text(root / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cat, dog]\n")


def write_yolo_classes(root):
    write_yolo(root)
    (root / "data.yaml").unlink()
    text(root / "classes.txt", "cat\r\ndog\r\n")
    text(root / "notes.json", json.dumps({"categories": [{"id": 0, "name": "cat"}], "info": {}}))


def write_yolo_outlines(root):
    write_yolo(root)
    for path in root.glob("labels/*/*.txt"):
        lines = []
        for line in path.read_text().splitlines():
            kind, x, y, w, h = line.split()
            x, y, w, h = float(x), float(y), float(w) / 2, float(h) / 2
            corners = [(x - w, y - h), (x + w, y - h), (x + w, y), (x + w, y + h), (x - w, y + h)]
            lines.append(f"{kind} " + " ".join(f"{u} {v}" for u, v in corners))
        path.write_text("\n".join(lines))


def labelme(name, **changes):
    shapes = [
        {"label": kind, "points": [[x2 + 1, y2 + 1], [x, y]], "shape_type": "rectangle"}
        for kind, (x, y, x2, y2) in OBJECTS[name]
    ]
    content = {"version": "5.4.1", "shapes": shapes, "imagePath": f"C:\\pictures\\{name}.jpg", "imageData": None}
    return json.dumps({**content, "imageHeight": HEIGHT, "imageWidth": WIDTH, **changes})


def write_labelme(root):
    for split, names in SPLITS.items():
        pictures(root / split, names)
        for name in names:
            text(root / split / f"{name}.json", labelme(name))


def cvat(names, labels=("cat", "dog"), subset=""):
    images = "".join(
        f'<image id="{i}" name="{name}.jpg" width="{WIDTH}" height="{HEIGHT}"{subset}>'
        + "".join(
            f'<box label="{kind}" xtl="{x}" ytl="{y}" xbr="{x2 + 1}" ybr="{y2 + 1}"></box>'
            for kind, (x, y, x2, y2) in OBJECTS[name]
        )
        + "</image>"
        for i, name in enumerate(names)
    )
    listed = "".join(f"<label><name>{name}</name></label>" for name in labels)
    return f"<annotations><meta><task><labels>{listed}</labels></task></meta>{images}</annotations>"


def write_cvat(root):
    pictures(root / "images", "abc")
    text(root / "annotations.xml", cvat("abc"))


def vott():
    def region(kind, box):
        left, top, right, bottom = box
        return {
            "tags": [kind],
            "boundingBox": {"left": left, "top": top, "width": right + 1 - left, "height": bottom + 1 - top},
        }

    assets = {
        name: {
            "asset": {"name": f"{name}.jpg", "size": {"width": WIDTH, "height": HEIGHT}},
            "regions": [region(*row) for row in rows],
        }
        for name, rows in OBJECTS.items()
    }
    return {"name": "pets", "tags": [{"name": "cat"}, {"name": "dog"}], "assets": assets}


def write_vott(root):
    pictures(root, "abc")
    text(root / "pets-export.json", json.dumps(vott()))


def via(names):
    """VIA's JSON: a rectangle, or a polygon."""

    def region(i, kind, x, y, x2, y2):
        rect = {"name": "rect", "x": x, "y": y, "width": x2 + 1 - x, "height": y2 + 1 - y}
        xs, ys = [x, x2 + 1, x2 + 1], [y, y, y2 + 1]
        polygon = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
        return {"shape_attributes": polygon if i else rect, "region_attributes": {"kind": kind}}

    return {
        f"{name}.jpg1234": {
            "filename": f"{name}.jpg",
            "size": 1234,
            "regions": [region(i, kind, *box) for i, (kind, box) in enumerate(OBJECTS[name])],
            "file_attributes": {},
        }
        for name in names
    }


def write_via(root):
    for split, names in SPLITS.items():
        pictures(root / split, names)
        regions = via(names)
        for image in regions.values():  # as VIA 1
            image["regions"] = {str(i): region for i, region in enumerate(image["regions"])}
        text(root / split / "via_region_data.json", json.dumps(regions))


def write_via_project(root):
    pictures(root / "images", "abc")
    content = {"_via_settings": {}, "_via_img_metadata": via("abc"), "_via_attributes": {}}
    text(root / "via_project.json", json.dumps(content))


def label_studio(names, is_short=False, **changes):
    def region(kind, x, y, x2, y2):
        value = {"x": x / WIDTH, "y": y / HEIGHT, "width": (x2 + 1 - x) / WIDTH, "height": (y2 + 1 - y) / HEIGHT}
        value = {**{key: 100 * v for key, v in value.items()}, "rotation": 0, "rectanglelabels": [kind], **changes}
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        return (
            {**size, **value} if is_short else {**size, "image_rotation": 0, "value": value, "type": "rectanglelabels"}
        )

    tasks = []
    for name in names:
        image, regions = f"/data/upload/1/0f3c9a1e-{name}.jpg", [region(kind, *box) for kind, box in OBJECTS[name]]
        others = [{"value": {"choices": ["day"]}, "type": "choices"}, {"type": "relation", "labels": ["part"]}]
        whole = {"annotations": [{"was_cancelled": False, "result": regions + others}], "data": {"image": image}}
        tasks.append({"image": image, "label": regions, "annotator": 1} if is_short else whole)
    return tasks


def write_label_studio(root):
    pictures(root / "images", "abc")  # as they were called before their upload
    text(root / "project-1-at-2024.json", json.dumps(label_studio("abc")))


def write_label_studio_min(root):
    pictures(root / "images", "abc")
    text(root / "project-1-at-2024.json", json.dumps(label_studio("abc", is_short=True)))


def write_createml(root):
    def annotated(name):
        rows = [
            {
                "label": kind,
                "coordinates": {
                    "x": (x + x2 + 1) / 2,
                    "y": (y + y2 + 1) / 2,
                    "width": x2 + 1 - x,
                    "height": y2 + 1 - y,
                },
            }
            for kind, (x, y, x2, y2) in OBJECTS[name]
        ]
        return {"image": f"{name}.jpg", "annotations": rows}

    for split, names in (("train", "ab"), ("valid", "c")):
        pictures(root / split, names)
        text(root / split / "_annotations.createml.json", json.dumps([annotated(name) for name in names]))


def write_supervisely(root):
    text(root / "meta.json", json.dumps({"classes": [{"title": "cat", "shape": "rectangle"}], "tags": []}))
    for split, names in SPLITS.items():
        pictures(root / split / "img", names)
        for name in names:
            objects = [
                {
                    "classTitle": kind,
                    "geometryType": "rectangle",
                    "points": {"exterior": [box[:2], box[2:]], "interior": []},
                }
                for kind, box in OBJECTS[name]
            ]
            content = {"description": "", "size": {"height": HEIGHT, "width": WIDTH}, "objects": objects}
            text(root / split / "ann" / f"{name}.jpg.json", json.dumps(content))


def write_kitti(root):
    for split, names in (("training", "ab"), ("val", "c")):
        pictures(root / split / "image_2", names)
        for name in names:
            boxes = [*OBJECTS[name], ("DontCare", (1, 1, 4, 4))]
            lines = [f"{kind} 0.00 0 1.5 {x}.0 {y}.0 {x2}.0 {y2}.0 1 2 4 1 2 13 1.6" for kind, (x, y, x2, y2) in boxes]
            text(root / split / "label_2" / f"{name}.txt", "\n".join(lines))


def table(names, row, head=""):
    return head + "".join(row(name, kind, *box) for name in names for kind, box in OBJECTS[name])


def write_csv_tensorflow(root):
    for split, names in SPLITS.items():
        pictures(root / "images", names)
        row = lambda n, k, x, y, x2, y2: f"{n}.jpg,{WIDTH},{HEIGHT},{k},{x + 1},{y + 1},{x2 + 1},{y2 + 1}\n"  # noqa: E731
        text(root / f"data/{split}_labels.csv", table(names, row, "filename,width,height,class,xmin,ymin,xmax,ymax\n"))


def write_csv_corners(root):
    for split, names in SPLITS.items():
        pictures(root / split, names)
        row = lambda n, k, x, y, x2, y2: f'"{n}.jpg";{x}.0;{y}.0;{x2 + 1}.0;{y2 + 1}.0;{k}\r\n'  # noqa: E731
        text(root / split / "labels.csv", table(names, row, "\ufeffimage;xmin;ymin;xmax;ymax;label\r\n"))


def write_csv_retinanet(root):
    for split, names in SPLITS.items():
        pictures(root / "images", names)
        row = lambda n, k, x, y, x2, y2: f"images/{n}.jpg,{x},{y},{x2 + 1},{y2 + 1},{k}\n"  # noqa: E731
        text(root / f"{split}.csv", table(names, row))
    text(root / "classes.csv", "cat,0\ndog,1\n")


def write_csv_open_images(root):
    for split, names in (("train", "ab"), ("validation", "c")):
        pictures(root / split, names)
        row = lambda n, k, x, y, x2, y2: (  # noqa: E731
            f"{n},xclick,/m/{k},1,{x / WIDTH},{(x2 + 1) / WIDTH},{y / HEIGHT},{(y2 + 1) / HEIGHT},0,0,0,0,0\n"
        )
        head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax"
        head += ",IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside\n"
        text(root / f"{split}-annotations-bbox.csv", table(names, row, head))
    text(root / "class-descriptions-boxable.csv", "/m/cat,cat\n/m/dog,dog\n")


ALL = {  # by writer, the title and whether it has splits
    write_voc: ("PASCAL VOC", True),
    write_xml: ("VOC XML", True),
    write_rectlabel: ("VOC XML", True),
    write_images_by_split: ("VOC XML", True),
    write_voc_lists: ("VOC XML", True),
    write_roboflow: ("COCO, Roboflow layout", True),
    write_coco: ("COCO", True),
    write_coco_cvat: ("COCO, CVAT layout", False),
    write_coco_label_studio: ("COCO, Label Studio layout", False),
    write_yolo: ("YOLO", True),
    write_yolo_roboflow: ("YOLO", True),
    write_yolo_lists: ("YOLO", True),
    write_yolo_classes: ("YOLO", True),
    write_yolo_outlines: ("YOLO", True),
    write_labelme: ("LabelMe", True),
    write_cvat: ("CVAT for images", False),
    write_vott: ("VoTT", False),
    write_via: ("VIA", True),
    write_via_project: ("VIA", False),
    write_label_studio: ("Label Studio", False),
    write_label_studio_min: ("Label Studio", False),
    write_createml: ("CreateML", True),
    write_supervisely: ("Supervisely", True),
    write_kitti: ("KITTI", True),
    write_csv_tensorflow: ("CSV, TensorFlow's object detection", True),
    write_csv_corners: ("CSV, corners", True),
    write_csv_retinanet: ("CSV, RetinaNet", True),
    write_csv_open_images: ("CSV, Open Images", True),
}


def objects_of(dataset):
    """Objects by the name of the image's file."""
    return {
        Path(record.load.path).name: sorted(
            (dataset.class_names[label - 1], *np.round(box, 3).tolist())
            for label, box in zip(record.labels, record.boxes, strict=True)
        )
        for record in dataset.records
    }


def expected(names):
    return {f"{name}.jpg": sorted((kind, *map(float, box)) for kind, box in OBJECTS[name]) for name in names}


@pytest.mark.parametrize("write", ALL, ids=lambda write: write.__name__)
def test_a_layout_is_recognised_and_read(tmp_path, write):
    write(tmp_path)
    title, has_splits = ALL[write]
    found = read_dataset(tmp_path)
    assert list(found) == ["train", "val"]
    how = (
        "2 splits, 3 images, 2 classes" if has_splits else "3 images, 2 classes; no val split, a fifth drawn by seed 0"
    )
    for dataset in found.values():
        assert dataset.class_names == ("cat", "dog")
        assert dataset.description == f"{title}: {how}"
        assert all(record.load().shape == (HEIGHT, WIDTH, 3) for record in dataset.records)
        assert not any(record.difficult.any() for record in dataset.records)
    if has_splits:
        assert {split: objects_of(dataset) for split, dataset in found.items()} == {
            split: expected(names) for split, names in SPLITS.items()
        }
    else:
        assert objects_of(found["train"]) | objects_of(found["val"]) == expected("abc")


@pytest.mark.parametrize("write", ALL, ids=lambda write: write.__name__)
def test_what_systems_leave_is_no_data(tmp_path, write):
    write(tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        for name in (f"._{path.name}", ".DS_Store", "Thumbs.db", f"__MACOSX/._{path.name}", f"__MACOSX/{path.name}"):
            text(path.parent / name, "\0\x05\x16\x07")
    assert read_dataset(tmp_path)["train"].description.startswith(ALL[write][0])


def test_every_layout_is_tested_and_chosen_by_name(tmp_path):
    for write in ALL:
        folder = tmp_path / write.__name__
        write(folder)
        taken = []
        for name in LAYOUTS:
            try:
                read_dataset(folder, name)
            except InputError:
                continue
            taken.append(name)
        assert len(taken) == 1


def test_two_layouts_at_once_are_a_choice(tmp_path):
    write_labelme(tmp_path)
    for path in tmp_path.glob("*/*.json"):
        text(path.with_suffix(".xml"), voc_xml(OBJECTS[path.stem]))
    with pytest.raises(
        InputError, match=r"VOC XML and LabelMe annotations; choose one by --config.dataset=auto:voc or"
    ):
        read_dataset(tmp_path)
    assert objects_of(read_dataset(tmp_path, "labelme")["train"]) == expected("ab")
    assert objects_of(read_split("auto:labelme", split="train", folder=tmp_path)) == expected("ab")


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (
            lambda root: None,
            "no annotations found; it holds no files; expected a folder that holds both images and ann",
        ),
        (
            lambda root: pictures(root, "abc"),
            r"it holds 3 \.jpg \(a\.jpg, b\.jpg, \.\.\.\); expected .*: VOC's XML per im",
        ),
        (
            lambda root: text(root / "instances_train.json", coco("ab")),
            "COCO annotations without images; .* holds both$",
        ),
        (
            lambda root: text(root / "labels/a.txt", yolo(OBJECTS["a"])),
            r"no annotations found; it holds 1 \.txt .* both",
        ),
        (lambda root: text(root / "a.json", "[1]"), r"it holds 1 \.json \(a\.json\)"),
        (lambda root: text(root / "pets.zip", "PK"), r"it holds 1 \.zip \(pets\.zip\); unpack pets\.zip"),
        (
            lambda root: text(root / "a.tfrecord-00000-of-00001", ""),
            r"a\.tfrecord-0.* is not read: export COCO, VOC or",
        ),
        (lambda root: text(root / "a.csv", "id,box\n1,2\n"), r"the columns of a\.csv are 'id,box', expected such as"),
    ],
)
def test_a_folder_of_something_else_says_what_it_holds(tmp_path, write, text):
    write(tmp_path)
    with pytest.raises(InputError, match=text):
        read_dataset(tmp_path)


def test_a_file_in_place_of_the_folder(tmp_path):
    path = tmp_path / "pets.download"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "")
    text(tmp_path / "data.yaml", "names: [cat]")
    for dataset in ("auto", "xml", "coco"):
        with pytest.raises(InputError, match=r"pets\.download: an archive; unpack it, and pass the folder"):
            read_split(dataset, split="train", folder=path)
        with pytest.raises(InputError, match=r"data\.yaml: a file, expected the folder that holds it"):
            read_split(dataset, split="train", folder=tmp_path / "data.yaml")


def test_another_format_in_the_folder_is_proposed(tmp_path):
    write_yolo(tmp_path)
    for dataset, missing in (("xml", "train: no such folder"), ("coco", r"instances_train\.json: no such file")):
        said = rf"{missing}; .* holds YOLO: 2 splits, 3 images, 2 classes; did you mean --config\.dataset=auto\?"
        with pytest.raises(InputError, match=said):
            read_split(dataset, split="train", folder=tmp_path)
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(InputError, match=r"train: no such folder; .* holds 3 \.jpg"):
        read_split("xml", split="train", folder=tmp_path)


def test_a_split_that_is_not_there(tmp_path):
    write_xml(tmp_path)
    assert objects_of(read_split("auto", split="valid", folder=tmp_path)) == expected("c")
    with pytest.raises(InputError, match="no split 'test'; it has train, val"):
        read_split("auto", split="test", folder=tmp_path)


def test_a_division_depends_on_ids_and_seed_alone():
    ids = [f"image {i}" for i in range(100)]
    found = divide(ids, 0)
    assert (len(found["train"]), len(found["val"])) == (80, 20)
    assert set(found["train"]) | set(found["val"]) == set(ids)
    assert divide(ids[::-1], 0) == found
    assert divide(["\udcff", "\ud800"], 0)["train"]  # names that are not UTF-8, and those of no file
    assert divide(ids, 1)["val"] != found["val"]
    assert {n: len(divide(ids[:n], 0)["val"]) for n in (1, 2, 3, 8)} == {1: 0, 2: 1, 3: 1, 8: 2}


def test_a_recorded_division_takes_the_place_of_the_seed(tmp_path):
    write_cvat(tmp_path)
    problems = []
    opened = open_dataset(tmp_path, drawn={"train": ["b", "gone"], "val": ["a"]})
    assert "no val split, a fifth drawn as recorded" in opened.description
    assert objects_of(opened.read("train", problems.append)) == expected("b")
    assert objects_of(opened.read("val", lambda problem: None)) == expected("a")
    missing, newer = problems
    assert "image 'gone' was in the train split, and is missing" in str(missing)
    assert isinstance(newer, CorrectedError)
    assert "image 'c'" in str(newer)


def test_a_train_split_alone_is_divided_and_others_are_kept(tmp_path):
    pictures(tmp_path / "train", "abc")
    text(tmp_path / "train/_annotations.coco.json", coco("abc"))
    found = read_dataset(tmp_path)
    assert [len(dataset.records) for dataset in found.values()] == [2, 1]
    pictures(tmp_path / "test", "c")
    text(tmp_path / "test/_annotations.coco.json", coco("c"))
    assert {split: len(dataset.records) for split, dataset in read_dataset(tmp_path).items()} == {"train": 3, "test": 1}


def test_class_names_and_their_order(tmp_path):
    write_xml(tmp_path)
    text(tmp_path / "labels.txt", "dog\ncat\n")
    found = read_dataset(tmp_path)
    assert found["val"].class_names == ("dog", "cat")
    assert list(found["train"].records[0].labels) == [2]
    assert read_dataset(tmp_path, class_names=["cat", "dog"])["val"].class_names == ("cat", "dog")
    text(tmp_path / "labels.txt", "dog\n")
    with pytest.raises(InputError, match=r"a\.XML: unknown class 'cat'; the classes are dog"):
        read_dataset(tmp_path)
    text(tmp_path / "labels.txt", "dog\ndog\n")
    with pytest.raises(InputError, match=r"labels\.txt: the class 'dog' comes twice"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("name", ["a/b", "CON", "방", "two words", "<&>"])
def test_names_of_any_kind(tmp_path, name):
    escaped = name.replace("&", "&amp;").replace("<", "&lt;")
    for split in SPLITS:
        picture(tmp_path / split / "Käfer 방 1.png")
        text(tmp_path / split / "Käfer 방 1.xml", voc_xml([(escaped, (0, 0, 9, 9))]))
    for dataset in read_dataset(tmp_path).values():
        assert dataset.class_names == (name,)
        assert [record.image_id for record in dataset.records] == ["Käfer 방 1"]


@pytest.mark.parametrize(
    ("encoding", "head"),
    [
        ("utf-8-sig", ""),
        ("utf-16", ""),
        ("utf-16", '<?xml version="1.0" encoding="utf-16"?>'),
        ("latin-1", '<?xml version="1.0" encoding="iso-8859-1"?>'),
        ("latin-1", ""),
        ("gbk", '<?xml version="1.0" encoding="GBK"?>'),
    ],
)
def test_encodings_of_xml(tmp_path, encoding, head):
    name = "猫" if encoding == "gbk" else "Würfel"
    picture(tmp_path / "a.jpg")
    text(tmp_path / "a.xml", head + voc_xml([(name, (0, 0, 9, 9))]), encoding)
    assert read_dataset(tmp_path)["train"].class_names == (name,)


def test_split_files_with_marks_spaces_and_line_ends(tmp_path):
    root = tmp_path / "VOC2007"
    pictures(root / "JPEGImages", ["my cat 1", "b"])
    picture(root / "JPEGImages/c.JPEG")
    for name in ("my cat 1", "b", "c"):
        text(root / f"Annotations/{name}.xml", voc_xml(OBJECTS["a"]))
    text(root / "ImageSets/Main/train.txt", "\ufeffmy cat 1\r\n  b.jpg  \r\n\r\n")
    text(root / "ImageSets/Main/val.txt", "c  -1\n")
    text(root / "ImageSets/Main/cat_train.txt", "b 1\n")
    found = read_dataset(tmp_path)
    assert {split: [r.image_id for r in dataset.records] for split, dataset in found.items()} == {
        "train": ["my cat 1", "b"],
        "val": ["c"],
    }


def test_ids_are_short_and_unique(tmp_path):
    write_csv_corners(tmp_path)
    picture(tmp_path / "train/a.png")
    with (tmp_path / "train/labels.csv").open("a") as file:
        file.write("a.png;1;1;9;9;cat\n")
    ids = [record.image_id for record in read_dataset(tmp_path)["train"].records]
    assert ids == ["train/a.jpg", "b", "train/a.png"]


def test_accents_in_either_form(tmp_path):
    for form, name in (("NFC", "b"), ("NFD", "c")):
        picture(tmp_path / f"images/{unicodedata.normalize(form, f'é{name}')}.jpg")
    for form in ("NFC", "NFD"):
        names = {name: unicodedata.normalize(form, f"é{name}") for name in "bc"}
        content = cvat("bc").replace('"b.jpg"', f'"{names["b"]}.jpg"').replace('"c.jpg"', f'"{names["c"]}.jpg"')
        text(tmp_path / "annotations.xml", content)
        assert sum(len(dataset.records) for dataset in read_dataset(tmp_path).values()) == 2


def test_small_boxes(tmp_path):
    write_cvat(tmp_path)
    path = tmp_path / "annotations.xml"
    path.write_text(path.read_text().replace('xtl="20"', 'xtl="49.2"').replace('ytl="10"', 'ytl="39.5"'))
    found = {name: rows for dataset in read_dataset(tmp_path).values() for name, rows in objects_of(dataset).items()}
    assert found["c.jpg"] == [("cat", 49, 39, 49, 39)]
    write_xml(tmp_path / "xml")
    text(tmp_path / "xml/train/a.XML", voc_xml([("cat", (-1, 0, -1, 9))]))
    with pytest.raises(InputError, match=r"a\.XML: box of 'cat' \(0, 1, 0, 10\): expected"):
        read_dataset(tmp_path / "xml")


def test_turned_boxes_and_outlines_of_cvat(tmp_path):
    """The outer boxes, within the image."""
    drawn = [
        ('<box label="cat" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90"/>', (15, 5, 24, 24)),
        ('<box label="cat" xtl="10" ytl="10" xbr="20" ybr="20" rotation="45"/>', (7.929, 7.929, 21.071, 21.071)),
        ('<box label="cat" xtl="10" ytl="10" xbr="20" ybr="20" rotation="135"/>', (7.929, 7.929, 21.071, 21.071)),
        ('<box label="cat" xtl="10" ytl="10" xbr="30" ybr="20" rotation="270"/>', (15, 5, 24, 24)),
        ('<box label="cat" xtl="0" ytl="10" xbr="40" ybr="20" rotation="90"/>', (15, 0, 24, 34)),
        ('<ellipse label="cat" cx="20" cy="15" rx="8" ry="5"/>', (12, 10, 27, 19)),
        ('<ellipse label="cat" cx="20" cy="15" rx="8" ry="5" rotation="90"/>', (15, 7, 24, 22)),
        ('<mask label="cat" rle="0,12" left="2" top="3" width="4" height="3"/>', (2, 3, 5, 5)),
    ]
    pictures(tmp_path, "ab")
    shapes = "".join(text for text, _ in drawn)
    images = "".join(f'<image name="{name}.jpg" width="{WIDTH}" height="{HEIGHT}">{shapes}</image>' for name in "ab")
    text(tmp_path / "job_7.xml", f'<?xml version="1.0"?>\n<annotations>{images}</annotations>', "utf-16")
    found = read_dataset(tmp_path)
    assert found["train"].description.startswith("CVAT for images: 2 images, 1 class")
    np.testing.assert_allclose(found["val"].records[0].boxes, [box for _, box in drawn], atol=1e-3)
    text(tmp_path / "job_7.xml", f"<annotations>{images}")
    with pytest.raises(InputError, match=r"job_7\.xml: no element found"):
        read_dataset(tmp_path)


def test_difficult_objects_of_labelme(tmp_path):
    write_labelme(tmp_path)
    path = tmp_path / "train/b.json"
    path.write_text(path.read_text().replace('"label": "dog"', '"difficult": true, "label": "dog"'))
    found = read_dataset(tmp_path)["train"]
    assert [list(record.difficult) for record in found.records] == [[False], [True, False]]


def test_ignored_shapes_of_labelme(tmp_path):
    write_labelme(tmp_path)
    content = json.loads((tmp_path / "train/a.json").read_text())
    ignored = {"label": "__ignore__", "points": [[1, 1], [9, 9]], "shape_type": "rectangle"}
    text(tmp_path / "train/a.json", json.dumps({**content, "shapes": [ignored, *content["shapes"]]}))
    found = read_dataset(tmp_path)["train"]
    assert "__ignore__" not in found.class_names
    assert objects_of(found) == expected("ab")


def test_images_within_the_json_of_labelme(tmp_path):
    text(tmp_path / "a.json", labelme("a", imageData="/9j/"))
    with pytest.raises(InputError, match=r"the images are only within the JSON \(imageData\); write them beside it"):
        read_dataset(tmp_path)


def test_circles_of_labelme(tmp_path):
    write_labelme(tmp_path)
    circle = {"label": "cat", "points": [[20, 20], [23, 24]], "shape_type": "circle"}
    text(tmp_path / "train/a.json", labelme("a", shapes=[circle]))
    assert objects_of(read_dataset(tmp_path)["train"])["a.jpg"] == [("cat", 15, 15, 24, 24)]


def test_category_0_is_a_class_if_it_is_used_or_not_by_roboflow(tmp_path):
    groups = ((0, "pets"), (1, "cat"), (2, "dog"))
    write_roboflow(tmp_path / "used")
    path = tmp_path / "used/valid/_annotations.coco.json"
    path.write_text(path.read_text().replace('"category_id": 1', '"category_id": 0'))
    pictures(tmp_path / "other", "abc")
    text(tmp_path / "other/coco.json", coco("abc", categories=groups))
    for name in ("used", "other"):
        assert read_dataset(tmp_path / name)["train"].class_names == ("pets", "cat", "dog")


def test_masks_are_no_images(tmp_path):
    write_voc(tmp_path)
    for folder in ("SegmentationClass", "SegmentationObject", "SegmentationClassPNG", "masks"):
        for name in "abc":
            picture(tmp_path / "VOC2007" / folder / f"{name}.png")
    assert objects_of(read_dataset(tmp_path)["train"]) == expected("ab")
    for path in tmp_path.glob("VOC2007/ImageSets/Main/*.txt"):
        path.unlink()
    found = read_dataset(tmp_path)
    assert objects_of(found["train"]) | objects_of(found["val"]) == expected("abc")


def test_pictures_of_masks_are_images(tmp_path):
    pictures(tmp_path / "masks", "a")
    text(tmp_path / "masks/a.xml", voc_xml(OBJECTS["a"]))
    assert objects_of(read_dataset(tmp_path)["train"]) == expected("a")


def test_several_devkits_are_a_choice(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "VOC2007").rename(tmp_path / "VOC2012")
    write_voc(tmp_path)
    with pytest.raises(InputError, match=r"holds several VOC folders, VOC2007, VOC2012; pass one of them"):
        read_dataset(tmp_path)
    assert objects_of(read_dataset(tmp_path / "VOC2012")["train"]) == expected("ab")


def test_trainval_is_the_training_split_where_there_is_no_other(tmp_path):
    write_voc(tmp_path)
    sets = tmp_path / "VOC2007/ImageSets/Main"
    (sets / "train.txt").rename(sets / "trainval.txt")
    (sets / "val.txt").rename(sets / "test.txt")
    found = read_dataset(tmp_path)
    assert {split: objects_of(dataset) for split, dataset in found.items()} == {
        "train": expected("ab"),
        "test": expected("c"),
    }


def test_the_same_name_in_two_folders(tmp_path):
    for folder in ("monday", "tuesday"):
        picture(tmp_path / "JPEGImages" / folder / "1.jpg")
        text(tmp_path / "Annotations" / folder / "1.xml", voc_xml(OBJECTS["a"]))
    found = read_dataset(tmp_path)
    ids = {record.image_id: record.load.path for dataset in found.values() for record in dataset.records}
    assert ids == {f"{f}/1": str(tmp_path / "JPEGImages" / f / "1.jpg") for f in ("monday", "tuesday")}
    picture(tmp_path / "JPEGImages/monday/1.png")
    with pytest.raises(InputError, match=r"monday/1\.xml: does it annotate .*monday/1\.jpg or .*monday/1\.png"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("images", "labels"),
    [("{}/Images", "{}/Labels"), ("{}/images", "{}/annotations"), ("images/{}", "labels"), ("img/{}", "txt/{}")],
)
def test_labels_of_yolo_wherever_they_lie(tmp_path, images, labels):
    for split, names in SPLITS.items():
        pictures(tmp_path / images.format(split), names)
        for name in names:
            text(tmp_path / labels.format(split) / f"{name}.txt", yolo(OBJECTS[name]))
    places = "".join(f"{split}: {images.format(split)}\n" for split in SPLITS)
    text(tmp_path / "data.yaml", f"{places}names: {{'0': cat, '1': dog}}\n")
    found = read_dataset(tmp_path)
    assert {split: objects_of(dataset) for split, dataset in found.items()} == {
        split: expected(names) for split, names in SPLITS.items()
    }
    picture(tmp_path / images.format("val") / "a.jpg")
    if labels == "labels":
        with pytest.raises(InputError, match=r"a\.txt: are these the labels of images/train/a\.jpg or images/val/a"):
            read_dataset(tmp_path)
    else:  # without objects: the labels are those of the other split's
        assert objects_of(read_dataset(tmp_path)["val"])["a.jpg"] == []


def test_no_labels_of_yolo_at_all(tmp_path):
    write_yolo(tmp_path)
    for path in tmp_path.glob("labels/*/*.txt"):
        path.unlink()
    with pytest.raises(InputError, match=r"no image has YOLO labels, such as labels/train/a\.txt"):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("more", "shape"),
    [(" 0.93", ""), (" 0.1 0.2 2 0.9 0.9 1", "kpt_shape: [2, 3]"), (" 0.1 0.2 0.9 0.9", "kpt_shape: [2, 2]")],
)
def test_boxes_of_yolo_with_a_confidence_or_keypoints(tmp_path, more, shape):
    write_yolo(tmp_path)
    text(tmp_path / "data.yaml", f"train: images/train\nval: images/val\nnames: [cat, dog]\n{shape}\n")
    for path in tmp_path.glob("labels/*/*.txt"):
        path.write_text("".join(f"{line}{more}\n" for line in path.read_text().splitlines()))
    assert objects_of(read_dataset(tmp_path)["train"]) == expected("ab")


def test_several_lists_of_class_names(tmp_path):
    """labelImg writes one per folder, in the order in which classes were used."""
    for split, names in SPLITS.items():
        pictures(tmp_path / split, names)
        for name in names:
            text(tmp_path / split / f"{name}.txt", yolo(OBJECTS[name]))
        text(tmp_path / split / "classes.txt", {"train": "cat\ndog\n", "val": "cat\n"}[split])
    assert read_dataset(tmp_path)["val"].class_names == ("cat", "dog")
    text(tmp_path / "val/classes.txt", "dog\ncat\n")
    said = r"val/classes\.txt: its classes are dog, cat, those of train/classes\.txt cat, dog; remove one"
    with pytest.raises(InputError, match=said):
        read_dataset(tmp_path)
    for split in SPLITS:  # as Roboflow calls it
        (tmp_path / split / "classes.txt").unlink()
        text(tmp_path / split / "_darknet.labels", "cat\ndog\n")
    assert objects_of(read_dataset(tmp_path)["val"]) == expected("c")


def test_lists_of_darknet_are_splits(tmp_path):
    pictures(tmp_path / "obj_train_data", "abc")
    for name in "abc":
        text(tmp_path / f"obj_train_data/{name}.txt", yolo(OBJECTS[name]))
    for split, names in (("train", "ab"), ("valid", "c")):
        text(tmp_path / f"{split}.txt", "".join(f"data/obj_train_data/{name}.jpg\n" for name in names))
    text(tmp_path / "obj.names", "cat\ndog\n")
    found = read_dataset(tmp_path)
    assert found["val"].description == "YOLO: 2 splits, 3 images, 2 classes"
    assert objects_of(found["val"]) == expected("c")


@pytest.mark.parametrize("line", ["{}", "{}.jpg", "images/{}.jpg", "C:\\mine\\images\\{}.jpg", "{} 1 1 2", "{}.jpg 7"])
@pytest.mark.parametrize("files", [("train", "val"), ("sets/trainval", "validation"), ("a/b/train", "a/valid")])
def test_lists_beside_annotations_without_splits(files, line, tmp_path):
    write_one_folder(tmp_path)
    for path, names in zip(files, ("ab", "c"), strict=True):
        text(tmp_path / f"{path}.txt", "".join(f"{line.format(name)}\r\n" for name in names))
    found = read_dataset(tmp_path)
    assert {split: objects_of(dataset) for split, dataset in found.items()} == {
        "train": expected("ab"),
        "val": expected("c"),
    }
    assert found["train"].description == "VOC XML: 2 splits, 3 images, 2 classes"


def test_a_list_that_lacks_images_or_has_others(tmp_path):
    write_one_folder(tmp_path)
    text(tmp_path / "train.txt", "a\ngone\n")
    text(tmp_path / "test.txt", "c\n")
    with pytest.raises(InputError, match=r"train\.txt: no image 'gone' in "):
        read_dataset(tmp_path)
    problems = []
    found = read_dataset(tmp_path, on_problem=problems.append)
    assert {split: objects_of(dataset) for split, dataset in found.items()} == {
        "train": expected("a"),
        "test": expected("c"),
    }
    (left_out,) = (problem for problem in problems if isinstance(problem, CorrectedError))
    assert (left_out.kind, str(left_out)) == (
        "images that no list of a split names left out", str(tmp_path / "images/b.jpg"),
    )  # fmt: skip


@pytest.mark.parametrize("lists", [{"val": "ab"}, {"train": ["cat", "dog"], "val": "c"}, {"train": "", "val": "c"}])
def test_texts_that_do_not_list_train(lists, tmp_path):
    write_one_folder(tmp_path)
    for name, lines in lists.items():
        text(tmp_path / f"{name}.txt", "\n".join(lines))
    description = "VOC XML: 3 images, 2 classes; no val split, a fifth drawn by seed 0"
    assert read_dataset(tmp_path)["train"].description == description


def test_a_list_of_train_alone_is_divided(tmp_path):
    write_one_folder(tmp_path)
    text(tmp_path / "train.txt", "a\nc\n")
    found = read_dataset(tmp_path)
    assert {name for dataset in found.values() for name in objects_of(dataset)} == set(expected("ac"))
    assert found["val"].description == "VOC XML: 2 images, 2 classes; no val split, a fifth drawn by seed 0"


def test_the_list_nearest_to_the_folder_counts(tmp_path):
    write_one_folder(tmp_path)
    for path, names in {"train": "ab", "val": "c", "old/train": "c", "trainval": "abc"}.items():
        text(tmp_path / f"{path}.txt", "\n".join(names))
    assert objects_of(read_dataset(tmp_path)["train"]) == expected("ab")


def test_boxes_that_count_from_0(tmp_path):
    """They do if some begin at 0 and none ends at the width or height, in all splits alike."""
    boxes = {"train/a": (0, 5, 20, 30), "train/b": (10, 0, 49, 39), "val/c": (3, 4, 20, 30)}

    def read(changes, folder):
        for path, box in {**boxes, **changes}.items():
            picture(folder / f"{path}.jpg")
            text(folder / f"{path}.xml", voc_xml([("cat", [value - 1 for value in box])]))
        problems = []
        found = read_dataset(folder, on_problem=problems.append)
        rows = [list(row[1:]) for d in found.values() for own in objects_of(d).values() for row in own]
        return rows, [(problem.kind, str(problem)) for problem in problems]

    said = "some begin at 0, and none ends at the width or height of its image"
    kind = "data sets whose boxes are read as 0-based"
    assert read({}, tmp_path / "0") == (
        [list(box) for box in boxes.values()],
        [(kind, f"{tmp_path / '0'}: {said}")] * 2,
    )
    shifted = [[0, 4, 19, 29], [9, 0, 48, 38], [2, 3, 19, 29]]
    rows, problems = read({"val/c": (3, 4, 50, 30)}, tmp_path / "1")
    assert rows == [*shifted[:2], [2, 3, 49, 29]]
    assert [kind for kind, _ in problems] == ["boxes clipped"] * 2
    rows, problems = read({"train/a": (1, 5, 20, 30), "train/b": (10, 1, 49, 39)}, tmp_path / "2")
    assert (rows, problems) == ([[0, 4, 19, 29], [9, 0, 48, 38], shifted[2]], [])
    path = tmp_path / "0/val/c.xml"
    text(path, path.read_text().replace("<width>50</width>", ""))  # its box may end there
    assert objects_of(read_dataset(tmp_path / "0")["val"])["c.jpg"] == [("cat", *shifted[2])]
    (only,) = read_xml_folder(tmp_path / "0/train", on_problem=lambda problem: None).records[:1]
    assert only.boxes.tolist() == [[0, 5, 20, 30]]


def test_boxes_over_the_border_and_sizes_are_corrected_and_counted(tmp_path):
    for i, (box, size) in enumerate(
        [
            ((-1, -1, 50, 40), None),
            ((3, 4, 3, 4), ""),
            ((0.25, 0.5, 9.75, 9.5), "<size><width>0</width><height>0</height></size>"),
            ((0, 0, 9, 9), "<size><width>80</width><height>40</height></size>"),
        ]
    ):
        picture(tmp_path / f"{i}.jpg")
        options = {} if size is None else {"size": size}
        text(tmp_path / f"{i}.xml", voc_xml([("cat", box)], **options))
    problems = []
    records = sorted(
        (r for dataset in read_dataset(tmp_path, on_problem=problems.append).values() for r in dataset.records),
        key=lambda record: record.image_id,
    )
    boxes = [[0, 0, 49, 39], [3, 4, 3, 4], [0.25, 0.5, 9.75, 9.5], [0, 0, 9, 9]]
    np.testing.assert_allclose(np.concatenate([record.boxes for record in records]), boxes)
    assert {(record.height, record.width) for record in records} == {(HEIGHT, WIDTH)}
    assert {(p.kind, str(p)) for p in problems} == {
        ("boxes clipped", f"{tmp_path}/0.xml: box of 'cat' (0, 0, 51, 41)"),
        ("sizes taken from the image", f"{tmp_path}/3.xml: the size is 80 x 40, that of {tmp_path}/3.jpg is 50 x 40"),
    }
    read_dataset(tmp_path)  # none of it stops


@pytest.mark.parametrize(
    ("write", "path", "change", "message"),
    [
        (write_yolo, "labels/train/a.txt", lambda t: "2 0.5 0.5 0.1 0.1", r"a\.txt:1: class 2: expected 0 to 1, .*cat"),
        (write_yolo, "labels/train/a.txt", lambda t: "0 12 20 30 30", r"a\.txt:1: expected fractions of the image's"),
        (write_yolo, "labels/train/a.txt", lambda t: "\n0 0.5 0.5", r"a\.txt:2: expected class x y width height"),
        (write_yolo, "labels/train/a.txt", lambda t: "0 0 0 1 1 1 0 1", r"a\.txt:1: expected class x y width height"),
        (write_yolo, "labels/train/a.txt", lambda t: "cat 0 0 1 1", r"a\.txt:1: labels: expected numbers, got cat"),
        (write_yolo, "labels/train/a.txt", lambda t: "0 0.5 0.5 0 0.1", r"a\.txt:1: box .*expected left < right"),
        (write_yolo, "labels/train/z.txt", lambda t: "", r"z\.txt: no image z\.\*"),
        (
            write_yolo,
            "data.yaml",
            lambda t: "train: nowhere\nnames: [a]",
            r"no images in nowhere; folders .*images/train",
        ),
        (write_yolo, "data.yaml", lambda t: "train: images/train\nnames: [a]\nnc: 3", "nc is 3, but names has 1"),
        (write_yolo, "data.yaml", lambda t: "train: images/train\nnames: {1: a}", "names must have the numbers 0 to 0"),
        (write_yolo, "data.yaml", lambda t: "train: images/train\nnames: [a, a]", "the class 'a' comes twice"),
        (write_yolo, "data.yaml", lambda t: "train: !!python/object:os.system x", "not a YAML file"),
        (write_labelme, "train/a.json", lambda t: t.replace("rectangle", "point"), r"a\.json: shape 0: a point has no"),
        (write_labelme, "train/a.json", lambda t: t.replace("[30, 25]", "[30]"), r"a\.json: shape 0: points must be"),
        (
            write_labelme,
            "train/a.json",
            lambda t: t.replace("30, 25", "90, 25"),
            r"shape 0: box of 'cat' from \(10, 5\)",
        ),
        (write_labelme, "train/d.json", lambda t: labelme("a"), r"a\.jpg, as train/a\.json does"),
        (
            write_cvat,
            "annotations.xml",
            lambda t: t.replace('xtl="20"', 'xtl="60"'),
            r"image 'c\.jpg': box 0: box .*left < right",
        ),
        (write_cvat, "annotations.xml", lambda t: t.replace("a.jpg", "z.jpg"), r"annotations\.xml: no image 'z\.jpg'"),
        (
            write_cvat,
            "annotations.xml",
            lambda t: t.replace("<box", "<points", 1).replace("</box", "</points", 1),
            "a points has no box",
        ),
        (
            write_cvat,
            "annotations.xml",
            lambda t: t.replace("<meta>", "<track/><meta>"),
            "CVAT for video; export it as",
        ),
        (write_vott, "pets-export.json", lambda t: t.replace('["dog"]', '["dog", "cat"]'), "expected one tag, got"),
        (
            write_csv_corners,
            "train/labels.csv",
            lambda t: t.replace("30.0", "3.0"),
            r"labels\.csv:2: box .*left < right",
        ),
        (
            write_via,
            "train/via_region_data.json",
            lambda t: t.replace('"rect"', '"point"', 1),
            r"image 'a\.jpg': object 0: a point has no box",
        ),
        (
            write_via,
            "train/via_region_data.json",
            lambda t: t.replace('"shape_attributes"', '"shape"', 1),
            r"object 0: not an object of VIA \(KeyError: 'shape_attributes'\)",
        ),
        (
            write_via_project,
            "via_project.json",
            lambda t: t.replace("filename", "name"),
            r"not a file of VIA \(KeyError",
        ),
        (
            write_label_studio,
            "project-1-at-2024.json",
            lambda t: t.replace('"image_rotation": 0', '"image_rotation": 90', 1),
            r"object 0: an image turned by 90 degrees; expected it as it is stored",
        ),
        (
            write_label_studio_min,
            "project-1-at-2024.json",
            lambda t: t.replace('"width"', '"w"', 1),
            r"object 0: 'cat' has no box; expected rectangles",
        ),
        (
            write_label_studio,
            "project-1-at-2024.json",
            lambda t: t.replace(".jpg", ".mp4"),
            r"not a file of Label Studio \(ValueError: no image among image\)",
        ),
        (
            write_createml,
            "train/_annotations.createml.json",
            lambda t: t.replace('"width": 20', '"width": "a"'),
            "object 0: coordinates: expected numbers, got 20.0, 15.0, a, 20",
        ),
        (
            write_supervisely,
            "train/ann/a.jpg.json",
            lambda t: t.replace('"rectangle"', '"bitmap"'),
            r"a\.jpg\.json: image 'a\.jpg': object 0: a bitmap has no box",
        ),
        (
            write_kitti,
            "training/label_2/a.txt",
            lambda t: t.partition("1 2 4")[0],
            r"a\.txt:1: expected 15 or 16 columns",
        ),
        (write_csv_corners, "train/labels.csv", lambda t: t.replace("30.0", "x"), r"labels\.csv:2: .*expected numbers"),
        (write_csv_tensorflow, "data/train_labels.csv", lambda t: t.replace("30", "3"), r":2: box .*xmin <= xmax"),
        (
            write_csv_corners,
            "train/labels.csv",
            lambda t: t + "a.jpg;0.1;0.1;0.5;0.5;cat\n",
            r"labels\.csv:5: box of 'cat' \(0\.1, .*\): expected pixels, got fractions",
        ),
        (
            write_roboflow,
            "train/_annotations.coco.json",
            lambda t: t.replace("a.jpg", "z.jpg"),
            r"no image 'z\.jpg'",
        ),
        (write_coco_cvat, "more.json", lambda t: coco("a"), "which file is the split 'all', .* or more.json"),
        (write_roboflow, "train/_annotations.coco.json", lambda t: t[:-9], "not a JSON file"),
        (write_xml, "train/b.XML", lambda t: t.replace("<annotation>", "<annotation"), r"b\.XML"),
        (
            write_xml,
            "train/a.XML",
            lambda t: t.replace("bndbox", "polygon"),
            r"a\.XML: the object 'cat' has no bndbox; it has name, polygon",
        ),
        (write_xml, "train/z.xml", lambda t: voc_xml([]), r"z\.xml: no image z\.\*"),
        (
            write_xml,
            "train/b.XML",
            lambda t: t.replace("<xmin>1<", "<xmin>11<"),
            r"b\.XML: box of 'dog' \(11, 1, 10, 20\)",
        ),
    ],
)
def test_mistakes_are_one_line_that_names_the_place(tmp_path, write, path, change, message):
    write(tmp_path)
    path = tmp_path / path
    text(path, change(path.read_text() if path.exists() else ""))
    with pytest.raises(InputError, match=message) as error:
        read_dataset(tmp_path)
    assert "\n" not in str(error.value)
    problems = []
    try:
        found = read_dataset(tmp_path, on_problem=problems.append)
    except InputError:
        return  # the whole data set can't be read
    assert len([problem for problem in problems if not isinstance(problem, CorrectedError)]) == 1
    assert sum(map(len, (dataset.records for dataset in found.values()))) in (2, 3)


def test_images_without_objects(tmp_path):
    write_yolo(tmp_path / "yolo")
    for name in ("d", "e"):
        picture(tmp_path / f"yolo/images/train/{name}.jpg")
    text(tmp_path / "yolo/labels/train/e.txt", "\n")
    write_csv_retinanet(tmp_path / "csv")
    picture(tmp_path / "csv/images/d.jpg")
    picture(tmp_path / "csv/images/e.jpg")
    with (tmp_path / "csv/train.csv").open("a") as file:
        file.write("images/d.jpg,,,,,\nimages/e.jpg,,,,,\n")
    write_labelme(tmp_path / "labelme")
    write_xml(tmp_path / "xml")
    for folder, name, content in (("labelme", "json", '{"shapes": []}'), ("xml", "xml", voc_xml([]))):
        for stem in ("d", "e"):
            picture(tmp_path / folder / f"train/{stem}.jpg")
            text(tmp_path / folder / f"train/{stem}.{name}", content)
    for folder in ("yolo", "csv", "labelme", "xml"):
        found = objects_of(read_dataset(tmp_path / folder)["train"])
        assert found == {**expected("ab"), "d.jpg": [], "e.jpg": []}


@pytest.mark.parametrize(
    ("title", "head", "row"),
    [
        ("corners", "Location , X1, Y1, X2, Y2, class_name", "{n}.jpg, {x}, {y}, {r}, {b}, {k}"),
        ("corners", "img_file\tLabel\txmin\tymin\txmax\tymax", "{n}.jpg\t{k}\t{x}\t{y}\t{r}\t{b}"),
        ("corners", "image;xmin;ymin;xmax;ymax;label", "{n}.jpg;{x},0;{y},0;{r},0;{b},0;{k}"),
        ("corners", "image,xmin,ymin,xmax,ymax,label", "{n}.jpg,{fx},{fy},{fr},{fb},{k}"),
        ("TensorFlow's object detection", "filename,class,xmin,ymin,xmax,ymax", "{n}.jpg,{k},{fx},{fy},{fr},{fb}"),
        ("x, y, width, height", "filename,x,y,width,height,label", "{n}.jpg,{x},{y},{w},{h},{k}"),
        (
            "x, y, width, height",
            "label_name,bbox_x,bbox_y,bbox_width,bbox_height,image_name,image_width,image_height",
            "{k},{x},{y},{w},{h},{n}.jpg,50,40",
        ),
        ("centres", "image,label,x_center,y_center,width,height", "{n}.jpg,{k},{cx},{cy},{w},{h}"),
        ("SKU-110K", "", "{n}.jpg,{x},{y},{r},{b},{k},50,40"),
        ("x, y, width, height", "", "{k},{x},{y},{w},{h},{n}.jpg,50,40"),
    ],
)
def test_tables_of_many_kinds(tmp_path, title, head, row):
    def line(n, k, x, y, x2, y2):
        r, b = x2 + 1, y2 + 1
        fractions = {"fx": x / WIDTH, "fy": y / HEIGHT, "fr": r / WIDTH, "fb": b / HEIGHT}
        sides = {"w": r - x, "h": b - y, "cx": (x + r) / 2, "cy": (y + b) / 2}
        return row.format(n=n, k=k, x=x, y=y, r=r, b=b, **fractions, **sides) + "\n"

    for split, names in SPLITS.items():
        pictures(tmp_path / split, names)
        text(tmp_path / f"{split}.{'tsv' if chr(9) in head else 'csv'}", table(names, line, head and f"{head}\n"))
    found = read_dataset(tmp_path)
    assert found["train"].description == f"CSV, {title}: 2 splits, 3 images, 2 classes"
    assert {split: objects_of(dataset) for split, dataset in found.items()} == {
        split: expected(names) for split, names in SPLITS.items()
    }


def test_fractions_of_what_is_not_said(tmp_path):
    pictures(tmp_path, "a")
    text(tmp_path / "a.csv", "image,x,y,width,height,label\na.jpg,0.5,0.5,0.2,0.2,cat\n")
    with pytest.raises(InputError, match=r"a\.csv:2: .*: expected pixels; fractions may be of the left and top edges"):
        read_dataset(tmp_path)


def test_images_without_a_row_are_counted(tmp_path):
    write_csv_corners(tmp_path)
    picture(tmp_path / "train/d.jpg")
    problems = []
    assert objects_of(read_dataset(tmp_path, on_problem=problems.append)["train"]) == expected("ab")
    assert [(p.kind, str(p)) for p in problems] == [("images without a row left out", str(tmp_path / "train/d.jpg"))]


def test_outlines_and_choices_of_label_studio(tmp_path):
    drawn = [
        ({"x": 40, "y": 25, "width": 40, "height": 25, "rotation": 90}, (10, 10, 19, 29)),
        ({"x": 98, "y": 25, "width": 40, "height": 25, "rotation": 180}, (29, 0, 48, 9)),
        ({"x": 40, "y": 50, "radiusX": 20, "radiusY": 25}, (10, 10, 29, 29)),
        ({"points": [[20, 25], [60, 25], [40, 75]]}, (10, 10, 29, 29)),
    ]
    (task,) = label_studio("a")
    regions = [
        {"original_width": WIDTH, "original_height": HEIGHT, "value": {**value, "polygonlabels": ["cat"]}}
        for value, _ in drawn
    ]
    other = {"was_cancelled": False, "result": task["annotations"][0]["result"]}
    task["data"] = {"text": "a cat", "image": "/data/local-files/?d=0f3c9a1e-a.jpg"}
    task["annotations"] = [other, {"ground_truth": True, "result": regions}, other, {**other, "was_cancelled": True}]
    skipped = {"annotations": [{"was_cancelled": True, "result": []}], "data": {"image": "s3://cats/b.jpg?key=1.2"}}
    for name in ("0f3c9a1e-a", "b"):
        picture(tmp_path / f"{name}.jpg")
    text(tmp_path / "project.json", json.dumps([task, skipped]))
    (record,) = read_dataset(tmp_path)["train"].records
    np.testing.assert_allclose(record.boxes, [box for _, box in drawn], atol=1e-3)
    task["annotations"][1]["ground_truth"] = False
    skipped["annotations"][0]["was_cancelled"] = False
    text(tmp_path / "project.json", json.dumps([task, skipped]))
    found = {name: rows for dataset in read_dataset(tmp_path).values() for name, rows in objects_of(dataset).items()}
    assert found == {"0f3c9a1e-a.jpg": expected("a")["a.jpg"], "b.jpg": []}


def test_shapes_and_attributes_of_via(tmp_path):
    drawn = [
        ({"name": "circle", "cx": 20, "cy": 20, "r": 5}, (15, 15, 24, 24)),
        ({"name": "ellipse", "cx": 20, "cy": 20, "rx": 8, "ry": 5}, (12, 15, 27, 24)),
        ({"name": "rect", "x": 2, "y": 3, "width": 4, "height": 5}, (2, 3, 5, 7)),
    ]
    pictures(tmp_path, "a")

    def labels(*attributes):
        regions = [{"shape_attributes": s, "region_attributes": a} for (s, _), a in zip(drawn, attributes, strict=True)]
        content = {"a.jpg1": {"filename": "a.jpg", "regions": regions, "file_attributes": {}}}
        text(tmp_path / "via.json", json.dumps(content))
        (record,) = (dataset := read_dataset(tmp_path)["train"]).records
        np.testing.assert_array_equal(record.boxes, [box for _, box in drawn])
        return [dataset.class_names[label - 1] for label in record.labels]

    assert labels({}, {}, {}) == ["object"] * 3
    kinds = {"Class": "cat", "colour": "black"}, {"kind": " dog "}, {"animal": {"cat": True, "dog": False}}
    assert labels(*kinds) == ["cat", "dog", "cat"]
    with pytest.raises(
        InputError, match=r"image 'a\.jpg': object 0: expected a class in one of name, class, .*'age': 3"
    ):
        labels({"age": 3, "colour": "black"}, {}, {})


def test_crowds_are_no_objects_to_train_on(tmp_path):
    write_roboflow(tmp_path)
    path = tmp_path / "train/_annotations.coco.json"
    path.write_text(path.read_text().replace('"iscrowd": 0', '"iscrowd": 1', 1))
    found = read_dataset(tmp_path)
    assert found["train"].has_crowds
    assert [list(record.difficult) for record in found["train"].records] == [[True], [False, False]]


def test_open_images_groups_are_crowds(tmp_path):
    write_csv_open_images(tmp_path)
    path = tmp_path / "train-annotations-bbox.csv"
    path.write_text(path.read_text().replace(",0,0,0,0,0\n", ",0,0,1,0,0\n", 1))
    found = read_dataset(tmp_path)
    assert found["train"].has_crowds
    assert [list(record.difficult) for record in found["train"].records] == [[True], [False, False]]


def test_names_of_open_images_with_a_header(tmp_path):
    write_csv_open_images(tmp_path)
    for path in tmp_path.glob("*-annotations-bbox.csv"):
        path.write_text(path.read_text().replace("/m/dog", "/g/dog"))
    text(tmp_path / "class-descriptions-boxable.csv", "LabelName,DisplayName\n/m/cat,cat\n/g/dog,dog\n")
    assert objects_of(read_dataset(tmp_path)["train"]) == expected("ab")


def test_classes_of_all_splits_are_those_of_each(tmp_path):
    write_xml(tmp_path)
    text(tmp_path / "Validation/c.XML", voc_xml([("cow", (0, 0, 9, 9))]))
    assert {dataset.class_names for dataset in read_dataset(tmp_path).values()} == {("cat", "cow", "dog")}


def test_classes_that_cvat_does_not_declare_are_in_alphabetical_order(tmp_path):
    pictures(tmp_path, "a")
    names = ["ram", "cow", "yak", "ant", "hen", "dog", "bee"]
    boxes = "".join(f'<box label="{name}" xtl="1" ytl="2" xbr="9" ybr="9"/>' for name in names)
    image = f'<image name="a.jpg" width="{WIDTH}" height="{HEIGHT}">{boxes}</image>'
    text(tmp_path / "annotations.xml", f"<annotations>{image}</annotations>")
    assert read_dataset(tmp_path)["train"].class_names == tuple(sorted(names))


def test_subsets_of_cvat_are_splits(tmp_path):
    pictures(tmp_path / "images", "ac")
    train = cvat("a", subset=' subset="Train"').removesuffix("</annotations>")
    val = cvat("c", subset=' subset="Validation"').partition("</meta>")[2]
    text(tmp_path / "annotations.xml", train + val)
    assert {split: list(objects_of(d)) for split, d in read_dataset(tmp_path).items()} == {
        "train": ["a.jpg"],
        "val": ["c.jpg"],
    }


def test_a_folder_that_a_description_names_is_missing(tmp_path):
    write_yolo_roboflow(tmp_path)
    with (tmp_path / "data.yaml").open("a") as file:
        file.write("test: ../test/images\n")
    assert list(read_dataset(tmp_path)) == ["train", "val"]
    pictures(tmp_path / "images", "abc")
    text(tmp_path / "data.yaml", "train: ../train/images\nval: ../gone/images\nnames: [cat, dog]\n")
    with pytest.raises(
        InputError,
        match=r"data\.yaml: no images in \.\./gone/images; folders with images: images, train/images, .* 'val', or",
    ):
        read_dataset(tmp_path)
    text(tmp_path / "data.yaml", "train: ../train/images\nnames: [cat, dog]\n")
    assert {split: len(dataset.records) for split, dataset in read_dataset(tmp_path).items()} == {"train": 1, "val": 1}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("labels", "Labels"),
        ("labels", "annotations"),
        ("labels/train", "labels/train-labels"),
        ("images", "photos"),
    ],
)
def test_labels_in_a_folder_of_another_name(tmp_path, old, new):
    write_yolo_classes(tmp_path)
    (tmp_path / old).rename(tmp_path / new)
    if old == "labels/train":
        (tmp_path / "labels/val").rename(tmp_path / "labels/val-labels")
    found = read_dataset(tmp_path)
    assert {split: objects_of(dataset) for split, dataset in found.items()} == {
        split: expected(names) for split, names in SPLITS.items()
    }
    (label,) = tmp_path.rglob("b.txt")
    text(label.with_name("z.txt"), "0 0.5 0.5 0.1 0.1")
    problems = []
    read_dataset(tmp_path, on_problem=problems.append)
    assert [str(problem) for problem in problems] == [f"{label.with_name('z.txt')}: no image z.*"]


def test_labels_elsewhere_are_those_of_one_image_alone(tmp_path):
    write_yolo(tmp_path)
    (tmp_path / "labels/train/b.txt").unlink()
    text(tmp_path / "runs/labels/b.txt", yolo(OBJECTS["a"]))  # a prediction, not what YOLO reads
    assert objects_of(read_dataset(tmp_path)["train"])["b.jpg"] == []
    (tmp_path / "labels").rename(tmp_path / "first")
    text(tmp_path / "second/val/c.txt", yolo(OBJECTS["c"]))
    with pytest.raises(
        InputError, match=r"first/val/c\.txt and second/val/c\.txt have labels of images/val/c\.jpg; move"
    ):
        read_dataset(tmp_path)
    (tmp_path / "second/val/c.txt").unlink()
    picture(tmp_path / "images/train/c.jpg")
    (tmp_path / "first/val/c.txt").rename(tmp_path / "first/c.txt")
    with pytest.raises(InputError, match=r"first/c\.txt: are these the labels of images/train/c\.jpg or images/val"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("name", ["labels/classes.txt", "pets.names", "Class.txt", "names.txt", "pets.yaml"])
def test_files_of_class_names(tmp_path, name):
    write_yolo_classes(tmp_path)
    (tmp_path / "classes.txt").unlink()
    text(tmp_path / name, "names: [cat, dog]" if name.endswith("yaml") else "cat\ndog\n")
    assert objects_of(read_dataset(tmp_path)["train"]) == expected("ab")


def test_a_list_of_class_names_in_each_folder(tmp_path):
    for split, names in SPLITS.items():
        pictures(tmp_path / split, names)
        for name in names:
            text(tmp_path / split / f"{name}.txt", yolo(OBJECTS[name]))
    with pytest.raises(
        InputError, match=r"labels \(train/a\.txt\) without class names: .* or set --config\.class_names="
    ):
        read_dataset(tmp_path)
    assert objects_of(read_dataset(tmp_path, class_names=["cat", "dog"])["train"]) == expected("ab")
    for split in SPLITS:
        text(tmp_path / split / "_darknet.labels", "cat\ndog\n")
    assert objects_of(read_dataset(tmp_path)["train"]) == expected("ab")
    text(tmp_path / "val/_darknet.labels", "dog\ncat\n")
    with pytest.raises(
        InputError, match=r"its classes are dog, cat, those of train/_darknet\.labels cat, dog; remove one"
    ):
        read_dataset(tmp_path)


def test_names_of_coco_are_found_in_any_folder(tmp_path):
    pictures(tmp_path / "images/monday", "a")
    pictures(tmp_path / "images/tuesday", "bc")
    for prefix, end in (
        *((prefix, "") for prefix in ("", "/home/ann/", "C:\\pets\\", "images/", "/data/local-files/?d=pets%5C")),
        ("https://pets.s3.amazonaws.com/", "?Signature=1/2"),
    ):
        text(tmp_path / "coco.json", coco("abc", prefix).replace(".jpg", f".jpg{end}"))
        found = read_dataset(tmp_path)
        assert objects_of(found["train"]) | objects_of(found["val"]) == expected("abc")


def test_keypoints_of_coco_where_there_are_no_instances(tmp_path):
    write_coco(tmp_path)
    for split in SPLITS:
        path = tmp_path / f"annotations/instances_{split}2017.json"
        text(path.with_name(f"person_keypoints_{split}2017.json"), path.read_text(), "utf-16")
        path.unlink()
    assert objects_of(read_dataset(tmp_path)["val"]) == expected("c")


def test_words_of_other_layouts_within_coco(tmp_path):
    write_coco(tmp_path)
    more = {"original_width": 100, "coordinates": {"lat": 1.5}, "objects": [1], "size": {"height": 3}}
    for path in tmp_path.glob("annotations/instances_*.json"):
        content = json.loads(path.read_text())
        content["images"][0] |= more
        text(path, json.dumps(content))
        text(tmp_path / "geo.json", json.dumps(more))
    assert objects_of(read_dataset(tmp_path)["train"]) == expected("ab")


def test_the_same_names_in_the_splits_of_coco(tmp_path):
    for split, shade in (("train", 10), ("val", 200)):
        path = tmp_path / f"{split}2017/a.png"
        path.parent.mkdir()
        Image.new("L", (WIDTH, HEIGHT), shade).save(path)
        text(tmp_path / f"annotations/instances_{split}2017.json", coco("a").replace(".jpg", ".png"))
    found = read_dataset(tmp_path)
    assert {split: dataset.records[0].load()[0, 0, 0] for split, dataset in found.items()} == {"train": 10, "val": 200}


def test_images_outside_the_splits(tmp_path):
    write_xml(tmp_path)
    picture(tmp_path / "d.jpg")
    text(tmp_path / "d.xml", voc_xml([]))
    with pytest.raises(InputError, match="VOC XML has 1 image outside its splits train, val; move them into one"):
        read_dataset(tmp_path)


def test_annotations_alone(tmp_path):
    for name in "abcd":
        text(tmp_path / f"train/{name}.xml", voc_xml(OBJECTS["a"]))
    text(tmp_path / "train/pictures.zip", "PK")
    said = r"train: 4 annotations without images: a\.xml, b\.xml, c\.xml, \.\.\.; it holds 4 \.xml .*, 1 \.zip"
    with pytest.raises(InputError, match=said):
        read_split("xml", split="train", folder=tmp_path)
    with pytest.raises(InputError, match=r"VOC XML annotations without images; .* unpack train/pictures\.zip and pass"):
        read_dataset(tmp_path)


def test_names_that_differ_by_case_alone(tmp_path):
    for name in ("a", "A"):
        picture(tmp_path / f"{name}.jpg")
        text(tmp_path / f"{name}.xml", voc_xml(OBJECTS["a"]))
    text(tmp_path / "b.xml", voc_xml(OBJECTS["a"]))
    picture(tmp_path / "B.JPG")
    found = [record.load.path for dataset in read_dataset(tmp_path).values() for record in dataset.records]
    assert sorted(Path(path).name for path in found) == ["A.jpg", "B.JPG", "a.jpg"]


@pytest.mark.parametrize(
    ("train", "val", "is_split"),
    [
        ("train_images", "val_images", True),
        ("training_set", "validation_set", True),
        ("Images-Train2017", "Images-Val2017", True),
        ("train_station", "val_station", False),
        ("train_test", "images", False),
    ],
)
def test_words_of_folders_that_name_splits(tmp_path, train, val, is_split):
    for folder, names in ((train, "ab"), (val, "c")):
        pictures(tmp_path / folder, names)
        for name in names:
            text(tmp_path / folder / f"{name}.jpg.xml", voc_xml(OBJECTS[name]))  # with the image's suffix
    found = read_dataset(tmp_path)
    assert ("2 splits" in found["val"].description) == is_split
    assert objects_of(found["train"]) | objects_of(found["val"]) == expected("abc")


def test_split_files_with_paths(tmp_path):
    write_voc(tmp_path)
    text(tmp_path / "VOC2007/ImageSets/Main/train.txt", "JPEGImages/a.jpg\nVOC2007/JPEGImages/b.jpg 1\n")
    assert objects_of(read_dataset(tmp_path)["train"]) == expected("ab")


def test_files_beside_the_instances_of_coco(tmp_path):
    write_coco(tmp_path)
    for split in SPLITS:
        text(tmp_path / f"annotations/labels_{split}2017.json", json.dumps({"images": [], "categories": []}))
    assert objects_of(read_dataset(tmp_path)["train"]) == expected("ab")


def test_images_in_another_format_than_named(tmp_path):
    write_cvat(tmp_path)
    text(tmp_path / "annotations.xml", cvat("abc").replace(".jpg", ".png"))
    found = read_dataset(tmp_path)
    assert objects_of(found["train"]) | objects_of(found["val"]) == expected("abc")


def test_descriptions_with_scripts_and_numbers_as_text(tmp_path):
    write_yolo(tmp_path)
    script = "download: |\n" + "  print('a line of a script')\n" * 99
    text(tmp_path / "data.yaml", f"{YAML}nc: '2'\nnames: [cat, dog]\n{script}")
    assert objects_of(read_dataset(tmp_path)["train"]) == expected("ab")


def test_splits_in_a_column(tmp_path):
    pictures(tmp_path, "abc")
    row = lambda n, k, x, y, x2, y2: f"{n}.jpg,{x},{y},{x2 + 1},{y2 + 1},{k},{'valid' if n == 'c' else 'TRAIN'}\n"  # noqa: E731
    text(tmp_path / "labels.csv", table("abc", row, "image,xmin,ymin,xmax,ymax,label,split\n"))
    found = read_dataset(tmp_path)
    assert {split: objects_of(dataset) for split, dataset in found.items()} == {
        split: expected(names) for split, names in SPLITS.items()
    }


def test_links_are_followed_once(tmp_path):
    write_xml(tmp_path / "store")
    (tmp_path / "pets").mkdir()
    for name in ("train", "Validation"):
        (tmp_path / "pets" / name).symlink_to(tmp_path / "store" / name)
    (tmp_path / "store/train/again").symlink_to(tmp_path / "pets")
    assert objects_of(read_dataset(tmp_path / "pets")["train"]) == expected("ab")
    (tmp_path / "store/train/a.jpg").unlink()
    (tmp_path / "store/train/a.jpg").symlink_to("/nowhere/a.jpg")
    with pytest.raises(InputError, match=r"a\.jpg: a link to /nowhere/a\.jpg, which does not exist"):
        read_dataset(tmp_path / "pets")


YAML = "train: images/train\nval: images/val\n"
ALIASES = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else '1'}]\n" for i in range(12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{ALIASES}{YAML}names: [*a11, *a11]\n", r"it has an alias"),
        (f"{YAML}names: &names {{0: cat, <<: *names}}\n", "it has an alias"),
        (f"{YAML}names: [cat]\nnc: {'9' * 900}", "nc is 9+, but names has 1"),
        (f"{YAML}names: [cat]\nnc: {'1:' * 600}1", "a value of 1201 characters, expected at most 1000"),
        (f"{YAML}names: [cat]\nnc: 2020-99-99", r"not a YAML file \(month must be"),
        (f"{YAML}names: {'[' * 9000}{']' * 9000}", "not a YAML file"),
        (f"{YAML}names: [cat]\n" + "# a\n" * 300_000, "characters, expected at most 1048576"),
        (f"{YAML}names: [cat]\ntest: 3", "test must be a folder or a list of folders, got 3"),
    ],
)
def test_hostile_descriptions(tmp_path, content, message):
    write_yolo(tmp_path)
    text(tmp_path / "data.yaml", content)
    with pytest.raises(InputError, match=rf"data\.yaml: .*{message}"):
        read_dataset(tmp_path)
    write_yolo(tmp_path)
    text(tmp_path / "other.yaml", content.replace("names:", "other:"))  # of another program
    assert objects_of(read_dataset(tmp_path)["val"]) == expected("c")


@pytest.mark.parametrize(
    ("write", "path", "change", "message"),
    [
        (write_cvat, "annotations.xml", ("<box ", '<box rotation="x" '), "box 0: rotation: expected numbers, got x"),
        (write_csv_corners, "train/labels.csv", ("b.jpg", "b" * 200_000), r"labels\.csv: not a CSV file \(field"),
        (write_voc, "VOC2007/Annotations/a.xml", ("<annotation>", '<?xml encoding="punycode" version="1.0"?><a>'),
         r"a\.xml: unknown encoding: punycode"),
    ],
)  # fmt: skip
def test_hostile_values(tmp_path, write, path, change, message):
    write(tmp_path)
    text(tmp_path / path, (tmp_path / path).read_text("utf-8-sig").replace(*change))
    with pytest.raises(InputError, match=message):
        read_dataset(tmp_path)


@pytest.mark.parametrize(
    ("write", "path", "size"),
    [
        (write_cvat, "annotations.xml", 'width="{}"'),
        (write_voc, "VOC2007/Annotations/a.xml", "<width>{}</width>"),
        (write_csv_tensorflow, "data/train_labels.csv", ".jpg,{},"),
    ],
)
def test_a_size_of_5000_digits_is_none(tmp_path, write, path, size):
    write(tmp_path)
    content = (tmp_path / path).read_text()
    assert size.format(WIDTH) in content
    text(tmp_path / path, content.replace(size.format(WIDTH), size.format("9" * 5000)))
    assert {record.width for record in read_dataset(tmp_path)["train"].records} == {WIDTH}


def test_a_number_of_5000_digits_is_no_class_list(tmp_path):
    write_csv_retinanet(tmp_path)
    text(tmp_path / "more.csv", f"bird,{'9' * 5000}\n")
    assert read_dataset(tmp_path)["train"].class_names == ("cat", "dog")


def test_many_names_take_no_time(tmp_path):
    write_yolo_classes(tmp_path)
    text(tmp_path / "classes.txt", "cat\ndog\n" + "\n".join(map(str, range(60_000))))
    begin = time.process_time()
    assert len(open_dataset(tmp_path).class_names) == 60_002
    assert time.process_time() - begin < 5  # the square of the number is half a minute


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes have no names here")
@pytest.mark.parametrize(
    ("write", "path"),
    [
        (write_yolo, "labels/train/a.txt"), (write_yolo, "data.yaml"), (write_voc, "VOC2007/Annotations/a.xml"),
        (write_csv_corners, "train/labels.csv"), (write_voc, "VOC2007/JPEGImages/a.jpg"),
    ],
)  # fmt: skip
def test_pipes_are_not_waited_for(tmp_path, write, path):
    write(tmp_path)
    (tmp_path / path).unlink()
    os.mkfifo(tmp_path / path)
    with pytest.raises(InputError, match=rf"{tmp_path / path}: (not a regular file|no such image)"):
        read_dataset(tmp_path)
    os.mkfifo(tmp_path / "a.json")  # by its two ends, of no layout
    with pytest.raises(InputError):
        read_dataset(tmp_path)
