"""Detections as annotations for labelling tools: VOC's XML, YOLO's text and a COCO instances file."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np

from frcnn_jax.evaluation.coco_metrics import coco_box
from frcnn_jax.evaluation.predict import Detections


class Annotated(NamedTuple):
    """An image and its detections."""

    path: PurePath
    height: int
    width: int
    found: Detections


def voc_xml(image: Annotated, class_names: Sequence[str]) -> str:
    """Return a VOC annotation: 1-based boxes, rounded to pixels and clipped to the image."""
    root = ElementTree.Element("annotation")
    _add(root, folder=image.path.parent.name, filename=image.path.name, path=image.path)
    _add(ElementTree.SubElement(root, "size"), width=image.width, height=image.height, depth=3)
    _add(root, segmented=0)
    limits = [image.width, image.height] * 2
    for box, label in zip(image.found.boxes, image.found.labels, strict=True):
        node = ElementTree.SubElement(root, "object")
        _add(node, name=class_names[label - 1], pose="Unspecified", truncated=0, difficult=0)
        corners = np.clip(np.rint(box) + 1, 1, limits).astype(int)
        _add(
            ElementTree.SubElement(node, "bndbox"), **dict(zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
        )
    ElementTree.indent(root, "\t")
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(node: ElementTree.Element, **texts: Any) -> None:
    for tag, text in texts.items():
        ElementTree.SubElement(node, tag).text = str(text)


def yolo_text(image: Annotated) -> str:
    """Return YOLO's lines: class from 0, then centre x, centre y, width and height as fractions of the image."""
    lines = []
    size = np.array([image.width, image.height], float)
    for box, label in zip(image.found.boxes.astype(float), image.found.labels, strict=True):
        begin, end = np.clip([box[:2], box[2:] + 1], 0, size) / size
        lines.append(" ".join([str(label - 1), *(f"{value:.6f}" for value in (*(begin + end) / 2, *(end - begin)))]))
    return "".join(f"{line}\n" for line in lines)


def coco_instances(images: Sequence[Annotated], names: Sequence[str], class_names: Sequence[str]) -> dict[str, Any]:
    """Return the content of a COCO instances file, whose annotations also have a "score".

    Args:
        images: N images.
        names: Their N file names.
        class_names: Names of the categories, which are numbered from 1.
    """
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        for box, label, score in zip(*image.found, strict=True):
            bbox = coco_box(box)
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": int(label), "bbox": bbox}
            annotations.append({**annotation, "area": bbox[2] * bbox[3], "iscrowd": 0, "score": float(score)})
    return {
        "images": [
            {"id": number, "file_name": name, "width": image.width, "height": image.height}
            for number, (image, name) in enumerate(zip(images, names, strict=True), 1)
        ],
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names, 1)],
    }
