"""What `fuzz.py` feeds to each reader: valid files, by this project's writer where it has one, and hostile ones."""

import io
import json
import pickle
import struct
import sys
import tempfile
import types
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from PIL import Image

from frcnn_jax import embed, eval_coco, train
from frcnn_jax.build import detection_options, image_sizes
from frcnn_jax.config import get_config
from frcnn_jax.convert_proposals import WRITERS
from frcnn_jax.data import records
from frcnn_jax.data.coco import read_coco
from frcnn_jax.data.records import Dataset, Record, load_image, read_image_size
from frcnn_jax.data.region_files import read_regions
from frcnn_jax.data.splits import file_digest
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.data.voc import read_voc, read_xml_folder
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.coco_metrics import coco_ground_truth
from frcnn_jax.evaluation.comp4 import read_comp4, write_comp4
from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.evaluation.pictures import plot_losses
from frcnn_jax.files import write_json
from frcnn_jax.models.fast_rcnn import variable_shapes
from frcnn_jax.models.networks import get_network
from frcnn_jax.models.pixels import TORCHVISION
from frcnn_jax.models.weight_files import read_weights, write_weights
from frcnn_jax.models.weights import Weights, fit_weights, merge_weights
from frcnn_jax.proposals import cache
from frcnn_jax.proposals.cache import SearchedProposals
from frcnn_jax.proposals.files import read_proposals
from frcnn_jax.training.logs import RunLog, read_metrics
from frcnn_jax.workdir import model_of, read_config, read_results

CLASSES = ("cat", "dog")


class Target(NamedTuple):
    """A reader: the name of its file, valid contents, a call that reads one, and hostile contents by name."""

    file: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], Any]
    crafted: Callable[[], dict[str, bytes]] = dict


def written(name: str, write: Callable[[Path], Any]) -> bytes:
    """Return what a function writes to a file of this name."""
    with tempfile.TemporaryDirectory() as folder:
        write(path := Path(folder) / name)
        return path.read_bytes()


# ---- Images


def picture(seed: int, size: int = 40) -> Image.Image:
    return Image.fromarray(draw_scene(seed, "val", 1).image[:size, : size + 8])


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def image_seeds(kind: str) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        exif = Image.Exif()
        exif[0x0112] = 6  # orientation
        exif[0x010F] = "a camera"
        options: dict[str, Any] = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "TIFF") else {}
        more = [encode(picture(2), kind, progressive=True)] if kind == "JPEG" else [encode(picture(2, 20), kind)]
        return [encode(picture(0), kind), encode(picture(1), kind, **options), *more]

    return seeds


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n"


def jpeg_of_scans(scans: int) -> bytes:
    """Return a progressive JPEG of 8000 x 8000 pixels whose last scan comes many times."""
    data = bytearray(encode(Image.new("RGB", (64, 64)), "JPEG", progressive=True))
    place = data.index(b"\xff\xc2") + 5
    data[place : place + 4] = struct.pack(">HH", 8000, 8000)
    last = data[data.rindex(b"\xff\xda") : -2]
    return bytes(data[:-2] + last * scans + b"\xff\xd9")


def crafted_images() -> dict[str, bytes]:
    """Return hostile images of all formats, which are told apart by their content."""
    exif = {
        f"EXIF {name}": encode(picture(0), "JPEG", exif=b"Exif\0\0" + content)
        for name, content in {
            "without end": b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03",
            "of no type": b"II*\0\x08\0\0\0\x01\0\x12\x01\xff\xff\xff\xff\xff\xff\0\0\0\0",
            "cut": b"MM",
            "of texts": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0ab\0\0\0\0\0\0",
        }.items()
    }
    png, jpeg = encode(picture(0), "PNG"), encode(picture(0), "JPEG")
    pictures = b"II*\0\x08\0\0\0\2\0" + struct.pack("<HHIIHHII", 0xB001, 4, 1, 1 << 30, 0xB002, 7, 16, 44) + bytes(26)
    entries = b"".join(struct.pack("<HHII", tag, 1, 60_000, 8) for tag in range(0x8000, 0xFFFF))
    tags = struct.pack("<H", 0x7FFF) + entries + bytes(4)
    return {
        "EPS": EPS,
        "WebP of 100 megapixels": encode(Image.new("RGB", (10_000, 10_000)), "WEBP", lossless=True, method=0),
        "PNG of 100 megapixels": encode(Image.new("L", (10_000, 10_000)), "PNG"),
        "GIF of 100 megapixels": encode(Image.new("P", (10_000, 10_000)), "GIF"),
        "JPEG of 1000 scans": jpeg_of_scans(1000),
        "JPEG of 60 scans": jpeg_of_scans(60),
        "PNG of text": b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 2, 0, 0, 0))
        + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(200_000_000), 1)),
        "name of a device": b"/dev/zero",
        "PPM of comments": b"P3\n40 40\n255\n" + b"#\n" * 2_000_000 + b"1 " * 4800,
        "PNG of many chunks": png[:33] + png_chunk(b"abCd", b"") * 500_000 + png[33:],
        "PNG of many texts": png[:33] + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(999_999))) * 2000 + png[33:],
        "PNG of a profile": png[:33] + png_chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(200_000_000), 1)) + png[33:],
        "PNG of frames": png[:33] + png_chunk(b"acTL", struct.pack(">II", 1 << 31, 0)) + png[33:],
        "PNG of a long end": png[:-12] + struct.pack(">I", (1 << 31) - 1) + b"IDAT",
        "JPEG of many markers": jpeg[:2] + b"\xff\xe5\0\2" * 1_000_000 + jpeg[2:],
        "JPEG of many EXIF": jpeg[:2] + b"\xff\xe1\0\x09Exif\0\0x" * 400_000 + jpeg[2:],
        "JPEG of pictures": jpeg[:2] + b"\xff\xe2\0\x42MPF\0" + pictures + jpeg[2:],
        "TIFF of many tags": b"II*\0" + struct.pack("<I", 60_008) + bytes(60_000) + tags,
        **exif,
    }  # fmt: skip


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def image_target(kind: str, suffix: str) -> Target:
    return Target(f"mutant{suffix}", image_seeds(kind), read_image, crafted_images if kind == "JPEG" else dict)


def read_image(path: Path) -> None:
    """Read an image, its size and its digests."""
    embed._part(path.parent, path, np.zeros((0, 4), np.float32), b"")
    file_digest(path)
    assert load_image(path).shape[:2] == read_image_size(path)
    records.ImageFile(str(path), (40, 48)).has_untold_orientation()


# ---- Annotations


def annotation(name: str, seed: int) -> bytes:
    scene = draw_scene(seed, "val", 1)
    objects = "".join(
        f"<object><name>{CLASSES[label % 2]}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1:.0f}</xmin>"
        f"<ymin>{y1 + 1:.0f}</ymin><xmax>{x2 + 1:.0f}</xmax><ymax>{y2 + 1:.0f}</ymax></bndbox></object>"
        for (x1, y1, x2, y2), label in zip(scene.boxes, scene.labels, strict=True)
    )
    height, width, _ = scene.image.shape
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    text = f'<?xml version="1.0"?><annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>'
    return text.encode()


def xml_seeds() -> list[bytes]:
    return [annotation("mutant", seed) for seed in range(3)]


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "lol"}">' for i in range(10))


def crafted_xml() -> dict[str, bytes]:
    file = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'
    return {
        "laughs": f"<!DOCTYPE a [{LAUGHS}]><annotation>&l9;</annotation>".encode(),
        "a file": file.encode(),
        "deep": b"<a>" * 1_000_000,
        "punycode": b'<?xml version="1.0" encoding="punycode"?><a>-' + b"a" * 1_000_000,
        "many objects": b"<annotation><size><width>9</width><height>9</height></size>"
        + b"<object/>" * 9
        + b"</annotation>",
        **{
            f"encoding {e}": f'<?xml version="1.0" encoding="{e}"?><a/>'.encode()
            for e in ("none", "rot13", "hex", "uu")
        },
    }


def beside(path: Path, name: str) -> None:
    """Put a picture beside a file."""
    (path.parent / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_scene(0, "val", 1).image).save(path.parent / name)


def read_records(dataset: Dataset) -> None:
    """Use a data set as training does."""
    for record in dataset.records:
        assert record.boxes.shape == (len(record.labels), 4)
        assert np.isfinite(record.boxes).all()
        assert 0 < record.height * record.width < 1e9
        assert ((record.labels >= 1) & (record.labels <= len(dataset.class_names))).all()
        f"{record.image_id} {float(record.height) / float(record.width)}".encode(errors="surrogatepass")


def read_xml(path: Path) -> None:
    beside(path, "mutant.jpg")
    read_records(read_xml_folder(path.parent))


def read_devkit(path: Path) -> None:
    root = path.parent / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    path.rename(root / "Annotations" / path.name)
    (root / "ImageSets/Main/val.txt").write_text("mutant\n")
    beside(root / "JPEGImages" / "x", "mutant.jpg")
    read_records(read_voc(path.parent, split="val", class_names=CLASSES))


def read_split_file(path: Path) -> None:
    root = path.parent / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / name).mkdir(parents=True)
    path.rename(root / "ImageSets/Main/val.txt")
    for name in ("000001", "000002"):
        (root / "Annotations" / f"{name}.xml").write_bytes(annotation(name, 1))
        beside(root / "JPEGImages" / "x", f"{name}.jpg")
    (path.parent / path.name).touch()
    read_records(read_voc(path.parent, split="val", class_names=CLASSES))


def dataset(seed: int = 0) -> Dataset:
    scenes = [draw_scene(seed + i, "val", 1) for i in range(2)]
    found = []
    for i, scene in enumerate(scenes, 1):
        height, width, _ = scene.image.shape
        arrays = scene.boxes, scene.labels % 2 + 1, np.zeros(len(scene.labels), bool)
        found.append(Record(str(i), height, width, *arrays, partial(Image.new, "RGB")))  # type: ignore[arg-type]
    return Dataset(CLASSES, found)


def coco_seed(seed: int) -> bytes:
    content = coco_ground_truth(dataset(seed))
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.jpg"
    return json.dumps(content).encode()


def coco_seeds() -> list[bytes]:
    return [coco_seed(seed) for seed in range(3)]


def crafted_json() -> dict[str, bytes]:
    """Return hostile JSON for any reader of it."""
    deep = {
        f"{what} nested {n}": a * n + b * n
        for n in (900, 100_000)
        for what, a, b in (("lists", "[", "]"), ("objects", '{"a":', "}"))
    }
    return {name: text.replace(":}", ":1}").encode() for name, text in deep.items()} | {
        "number of 5000 digits": b"9" * 5000,
        "UTF-16": json.dumps({"step": 1}).encode("utf-16"),
        "BOM": b"\xef\xbb\xbf[]",
        "nothing": b"",
    }


def crafted_coco() -> dict[str, bytes]:
    def changed(**changes: Any) -> bytes:
        content = json.loads(coco_seed(0))
        content["images"][0] |= changes
        return json.dumps(content).encode()

    return crafted_json() | {
        "absolute path": changed(file_name="/etc/passwd"),
        "NUL": changed(file_name="a\0.jpg"),
        "surrogate": changed(file_name="\ud800.jpg"),
        "huge size": changed(height=10**400, width=10**400),
        "long name": changed(file_name="a" * 10_000),
        **crafted_ids(),
    }


def crafted_ids() -> dict[str, bytes]:
    """Return COCO files of many ids that have one hash."""
    same = [(2**61 - 1) * i for i in range(30_000)]
    content = json.loads(coco_seed(0))
    image, entry, category = (content[name][0] for name in ("images", "annotations", "categories"))
    images = [image | {"id": number, "file_name": f"{i}.jpg"} for i, number in enumerate(same)]
    categories = [category | {"id": number, "name": f"c{i}"} for i, number in enumerate(same)]
    changes: dict[str, dict[str, Any]] = {
        "images of one hash": {"images": images},
        "annotations of one hash": {"annotations": [entry | {"id": number} for number in same]},
        "categories of one hash": {"categories": categories},
        "uses of one hash": {"annotations": [entry | {"id": i, "category_id": n} for i, n in enumerate(same)]},
    }
    return {name: json.dumps(content | change).encode() for name, change in changes.items()}


def read_instances(path: Path) -> None:
    for i in (1, 2):
        beside(path, f"{i}.jpg")
    read_records(read_coco(path, image_dir=path.parent))


# ---- Proposals


def proposals(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.integers(0, 90, (3, 20, 2, 2)), axis=2).reshape(3, 20, 4)
    return {str(i): own.astype(np.float32) for i, own in enumerate(corners, 1)}


def proposal_seeds(suffix: str) -> list[bytes]:
    if suffix in WRITERS:
        return [written(f"a{suffix}", lambda path, i=i: WRITERS[suffix](path, proposals(i))) for i in range(3)]  # type: ignore[misc]
    boxes = proposals(0)
    if suffix == ".txt":
        rows = "\n".join(" ".join(map(str, box)) for box in boxes["1"])
        return [f"# boxes: xyxy\n{rows}".encode(), rows.replace(" ", ",").encode()]
    if suffix == ".npy":
        return [encode_npy(boxes["1"]), encode_npy(np.ones((9, 5)) * [1, 2, 8, 9, 0.5])]
    if suffix == ".csv":
        rows = "\n".join(f"{x1},{y1},{x2},{y2},0,0.5,{i}.jpg" for i, own in boxes.items() for x1, y1, x2, y2 in own)
        return [f"x_min,y_min,x_max,y_max,class_id,confidence,file_name\n{rows}".encode()]
    from scipy.io import savemat

    cells, names = np.empty(3, object), np.empty(3, object)
    cells[:], names[:] = list(boxes.values()), list(boxes)
    contents: tuple[dict, ...] = ({"boxes": cells, "images": names}, {"boxes": boxes["1"]})
    return [
        written("a.mat", lambda path, c=content, z=zipped: savemat(path, c, do_compression=z))  # type: ignore[misc]
        for content in contents
        for zipped in (False, True)
    ]


def encode_npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def more_pickles() -> list[bytes]:
    content = {f"a/{i}.jpg": {"bboxes": own, "scores": np.arange(len(own))} for i, own in proposals(0).items()}
    return [pickle.dumps(content, protocol) for protocol in (2, 4)]


def crafted_pickles() -> dict[str, bytes]:
    shared = b"\x80\x04)" + b"2\x86" * 40  # a tuple of itself twice, and so on
    lists = b"\x80\x04]\x940" + b"".join(b"]\x94(h" + bytes([i]) + b"h" + bytes([i]) + b"e0" for i in range(60))
    deep = b"\x80\x04]" + b"]" * 500_000 + b"a" * 500_000 + b"."
    tuples = b"\x80\x04)" + b"\x85" * 2_000_000

    array = pickle.dumps({"ids": ["1"], "boxes": [np.zeros((1, 4))], "objectness_logits": [np.zeros(1)]}, 4)
    return {
        "key of shared tuples": b"\x80\x04}" + shared[2:] + b"Ns.",
        "set of shared tuples": b"\x80\x04\x8f(" + shared[2:] + b"\x90.",
        "lists in lists": lists + b"h\x3c.",
        "boxes of lists in lists": b"\x80\x04}(\x8c\x03ids](\x8c\x011e\x8c\x05boxes" + lists[2:] + b"]h\x3ca"
        b"\x8c\x11objectness_logits]h\x3cau.",
        "deep lists": deep,
        "deep tuple as key": b"\x80\x04}" + tuples[2:] + b"Ns.",
        "list of itself": b"\x80\x04]\x94h\0a.",
        "system": b"cos\nsystem\n(S'touch /tmp/owned'\ntR.",
        "many arrays of one": array,
        "memo of 2**31": b"\x80\x04]r\xff\xff\xff\x7f.",
        "long of 1 MB": b"\x80\x04\x8b\x00\x00\x10\x00" + b"\x7f" * (1 << 20) + b".",
        "bytes of 1 TB": b"\x80\x04\x8e\0\0\0\0\0\1\0\0abc.",
    }


def npy_header(shape: str, dtype: str = "<f8") -> bytes:
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text


def crafted_zip(names: Mapping[str, bytes], method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method, compresslevel=9) as archive:
        for name, content in names.items():
            archive.writestr(name, content)
    return file.getvalue()


def crafted_npz() -> dict[str, bytes]:
    zeros = npy_header("(12500000, 4)", "<f4") + bytes(200_000_000)
    return {
        "bzip2": crafted_zip({"1.npy": zeros}, zipfile.ZIP_BZIP2),
        "deflated": crafted_zip({"1.npy": zeros}, zipfile.ZIP_DEFLATED),
        "no arrays": crafted_zip({"1.npy": b"abc", "2": b"abc"}, zipfile.ZIP_STORED),
        "declared": crafted_zip({"1.npy": npy_header("(1000000000, 4)") + b"abc"}, zipfile.ZIP_STORED),
        "texts": crafted_zip({"1.npy": encode_npy(np.array(["a", "b"]))}, zipfile.ZIP_STORED),
        "pickle": crafted_zip({"1.npy": npy_header("(1,)", "|O") + pickle.dumps([1])}, zipfile.ZIP_STORED),
    }


def crafted_mat() -> dict[str, bytes]:
    head = b"by hand".ljust(124) + struct.pack("<HH", 0x100, 0x4D49)

    def element(kind: int, data: bytes) -> bytes:
        return struct.pack("<II", kind, len(data)) + data + bytes(-len(data) % 8)

    def matrix(kind: int, shape: tuple[int, ...], data: bytes) -> bytes:
        flags = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
        return element(14, flags + element(1, b"boxes") + data)

    def zipped(data: bytes) -> bytes:
        packed = zlib.compress(data, 9)
        return head + struct.pack("<II", 15, len(packed)) + packed

    empty = struct.pack("<II", 14, 0)
    deep = b""
    for _ in range(2000):
        deep = matrix(1, (1, 1), deep)
    return {
        "400 MB": zipped(matrix(6, (12_500_000, 4), element(9, bytes(400_000_000)))),
        "6 million cells": zipped(matrix(1, (6_000_000, 1), empty * 6_000_000)),
        "50 elements of 60 MB": head + zipped(matrix(6, (7_500_000, 1), element(9, bytes(60_000_000))))[128:] * 50,
        "deep": head + deep,
    }


def crafted_proposals(suffix: str) -> dict[str, bytes]:
    if suffix == ".json":
        return crafted_coco()
    if suffix == ".pkl":
        return crafted_pickles()
    if suffix == ".npz":
        return crafted_npz()
    if suffix == ".mat":
        return crafted_mat()
    if suffix == ".npy":
        return {"declared": npy_header("(1000000000, 4)"), "pickle": npy_header("(1,)", "|O") + pickle.dumps([1])}
    if suffix == ".proposals":
        offsets = encode_npy(np.array([0, 1 << 40, 1], np.uint64))
        header = json.dumps({"format": "frcnn_jax proposals", "version": 1, "images": ["1", "2"]}).encode()
        first = encode_npy(np.frombuffer(header, np.uint8))
        return {
            "declared": npy_header("(100000000000,)", "|u1"),
            "long header": b"\x93NUMPY\x02\0\xff\xff\xff\xff{",
            "offsets that fall": first + offsets + encode_npy(np.ones((1, 4), np.uint16)),
        }
    return {}


def read_own_proposals(path: Path) -> None:
    says = path.suffix not in (".txt", ".npy") or (path.is_file() and path.read_bytes().startswith(b"# boxes:"))
    box_format = None if says else "xyxy"
    found = read_proposals(path, box_format=box_format)
    sizes = dict.fromkeys(found, (100, 100))
    for use in (found, read_proposals(path, sizes=sizes, box_format=box_format)):
        for boxes in use.values():
            assert boxes.dtype == np.float32
            assert boxes.shape == (len(boxes), 4)
            assert np.isfinite(boxes).all()
            assert len(boxes) < 10_000_000


# ---- Weights


def arrays(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    shapes = {"conv1_1": (4, 3, 3, 3), "fc6": (8, 36), "cls_score": (3, 8), "bbox_pred": (12, 8)}
    found = {}
    for name, shape in shapes.items():
        found[f"{name}.weight"] = rng.normal(size=shape).astype(np.float32)
        found[f"{name}.bias"] = rng.normal(size=shape[:1]).astype(np.float32)
    config = {"class_names": list(CLASSES), "network": "vgg16", "classifier": "softmax"} if seed == 2 else None
    return Weights(found, TORCHVISION if seed else None, detector=config)


def weight_seeds(suffix: str) -> list[bytes]:
    if suffix in (".npz", ".safetensors"):
        return [written(f"a{suffix}", lambda path, i=i: write_weights(path, arrays(i))) for i in range(3)]  # type: ignore[misc]
    if suffix == ".caffemodel":
        return [caffemodel(arrays(i)) for i in range(3)]
    if suffix in (".pth", ".pt"):
        return [pth(arrays(0)), pth(arrays(1)), pth(arrays(2), old=True)]
    if suffix == ".pkl":
        return [pickle.dumps({"model": dict(arrays(i))}, protocol) for i, protocol in enumerate((2, 4))]
    rng = np.random.default_rng(0)
    names = [f"block{i}_conv{j}" for i, depth in enumerate((2, 2, 3, 3, 3), 1) for j in range(1, depth + 1)]
    shapes = dict.fromkeys(names, (4, 3, 3, 3)) | {"fc1": (4, 49 * 512), "fc2": (4, 4), "predictions": (5, 4)}
    vgg = {f"{name}.weight": rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    vgg |= {f"{name}.bias": rng.normal(size=shape[:1]).astype(np.float32) for name, shape in shapes.items()}
    return [h5(vgg), h5(vgg, compression="gzip")]


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out, n = out + bytes([n & 127 | 128]), n >> 7
    return out + bytes([n])


def caffemodel(arrays: Mapping[str, np.ndarray]) -> bytes:
    def message(number: int, payload: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(payload)) + payload

    def blob(array: np.ndarray) -> bytes:
        return message(7, message(1, b"".join(map(varint, array.shape)))) + message(5, array.astype("<f4").tobytes())

    out = b""
    for layer in dict.fromkeys(name.split(".")[0] for name in arrays):
        blobs = b"".join(message(7, blob(arrays[f"{layer}.{kind}"])) for kind in ("weight", "bias"))
        out += message(100, message(1, layer.encode()) + blobs)
    return out


class _Storage(NamedTuple):
    key: str
    array: np.ndarray
    strides: tuple[int, ...]
    shape: tuple[int, ...]


def pth(arrays: Mapping[str, Any], *, old: bool = False, method: int = zipfile.ZIP_STORED) -> bytes:
    """Return a file as torch writes it, in the format from before 1.6 if `old`."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    rebuild = types.FunctionType((lambda: None).__code__, {}, "_rebuild_tensor_v2")
    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    storage = type("FloatStorage", (), {"__module__": "torch", "__qualname__": "FloatStorage"})
    vars(utils)["_rebuild_tensor_v2"], vars(torch)["FloatStorage"] = rebuild, storage

    class Tensor:
        def __init__(self, storage: _Storage) -> None:
            self.storage = storage

        def __reduce__(self) -> Any:
            own = self.storage
            return rebuild, (own, 0, own.shape, own.strides, False, OrderedDict())

    class Pickler(pickle.Pickler):
        def persistent_id(self, item: Any) -> Any:
            if not isinstance(item, _Storage):
                return None
            identity = "storage", storage, item.key, "cpu", item.array.size
            return (*identity, None) if old else identity

    storages = {}
    for i, (name, array) in enumerate(arrays.items()):
        own = array if isinstance(array, _Storage) else _Storage(
            str(i), array, tuple(s // array.itemsize for s in array.strides), array.shape
        )  # fmt: skip
        storages[name] = own
    file = io.BytesIO()
    with mock.patch.dict(sys.modules, {"torch": torch, "torch._utils": utils}):
        Pickler(file, protocol=2).dump(OrderedDict((name, Tensor(own)) for name, own in storages.items()))
    files = {own.key: own.array.tobytes() for own in storages.values()}
    if old:
        header = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True})
        parts = [*(pickle.dumps(item, 2) for item in header), file.getvalue(), pickle.dumps(list(files), 2)]
        return b"".join([*parts, *(struct.pack("<q", len(data) // 4) + data for data in files.values())])
    return crafted_zip({"a/data.pkl": file.getvalue(), **{f"a/data/{k}": d for k, d in files.items()}}, method)


def h5(arrays: Mapping[str, np.ndarray], **options: Any) -> bytes:
    import h5py

    file = io.BytesIO()
    with h5py.File(file, "w") as content:
        for name, array in arrays.items():
            layer, kind = name.split(".")
            if kind == "weight":
                kind, array = "kernel", array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
            content.create_dataset(f"model_weights/{layer}/{layer}/{kind}:0", data=array, **options)
    return file.getvalue()


def crafted_h5() -> dict[str, bytes]:
    import h5py

    def make(fill: Callable[[Any], Any]) -> bytes:
        file = io.BytesIO()
        with h5py.File(file, "w") as content:
            fill(content.create_group("model_weights"))
        return file.getvalue()

    def link(group: Any) -> None:
        del group.file["model_weights"]
        group.file["model_weights"] = h5py.ExternalLink("/etc/other.h5", "/")

    name, bias = "block1_conv1/block1_conv1/kernel:0", "block1_conv1/block1_conv1/bias:0"
    layout = h5py.VirtualLayout((3, 3, 3, 64), "f4")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", (3, 3, 3, 64))
    return {
        "unwritten chunks": make(lambda g: g.create_dataset(name, (100_000, 10_000), "f4", chunks=(1000, 1000))),
        "unwritten": make(lambda g: g.create_dataset(bias, (64,), "f4")),
        "zeros": make(lambda g: g.create_dataset(name, data=np.zeros((10_000, 10_000), "f4"), compression="gzip")),
        "another file": make(lambda g: g.create_dataset(bias, (40,), "u1", external=[("/etc/passwd", 0, 40)])),
        "a link": make(link),
        "virtual": make(lambda g: g.create_virtual_dataset(name, layout)),
        "texts": make(lambda g: g.create_dataset(bias, data=["a", "b"])),
        "soft link": make(lambda g: g.__setitem__(name, h5py.SoftLink("/model_weights"))),
    }


def crafted_pth() -> dict[str, bytes]:
    one = _Storage("0", np.ones(1, np.float32), (0, 0), (100_000, 10_000))
    shared = _Storage("0", np.ones(10**6, np.float32), (1,), (10**6,))
    return {
        "stride 0": pth({"conv1.weight": one}),
        "stride 0, old": pth({"conv1.weight": one}, old=True),
        "compressed": pth({"conv1.weight": np.zeros((20_000, 10_000), np.float32)}, method=zipfile.ZIP_DEFLATED),
        "bzip2": pth({"conv1.weight": np.zeros((20_000, 10_000), np.float32)}, method=zipfile.ZIP_BZIP2),
        "one storage many times": pth({f"a{i}": shared for i in range(300)}),
        **{name: crafted_zip({"a/data.pkl": own}, zipfile.ZIP_STORED) for name, own in crafted_pickles().items()},
        "data.pkl of zeros": crafted_zip({"a/data.pkl": bytes(200_000_000)}, zipfile.ZIP_DEFLATED),
    }  # fmt: skip


def crafted_weights(suffix: str) -> dict[str, bytes]:
    own = {".pth": crafted_pth, ".pt": crafted_pth, ".pkl": crafted_pickles, ".h5": crafted_h5, ".npz": crafted_npz}
    found = own[suffix]() if suffix in own else {}
    for name in ("conv1_1.weight", "conv1_1.bias", "bbox_pred.bias") if suffix in (".npz", ".safetensors") else ():
        for shape in ((), (0,), (3, 3), (1, 2, 3, 4, 5)):
            weights = Weights({**arrays(1), name: np.ones(shape, np.float32)}, TORCHVISION)
            found[f"{name} {shape}"] = written(f"a{suffix}", partial(write_weights, arrays=weights))
    return found


def read_own_weights(path: Path) -> None:
    """Read weights and, if they are of the network below, fit them to it."""
    found = read_weights(path)
    assert all(isinstance(name, str) and array.dtype.kind in "fiu" for name, array in found.items())
    assert sum(array.nbytes for array in found.values()) < 1e9
    model, shapes = small_model()
    assert all(isinstance(name, str) for name in found.detector.get("class_names", ()))
    try:
        merge_weights(shapes, fit_weights(found, model, str(path)), roi_size=model.roi_size, source=str(path))
    except InputError as error:
        if "does not fit the network" not in str(error):  # a valid file of another network
            raise


_MODEL: list[Any] = []


def small_model() -> Any:
    """Return VGG16 and the shapes of its parameters, evaluated once, before a reader's first file."""
    if not _MODEL:
        model = get_network("vgg16").build(2)
        _MODEL.extend((model, variable_shapes(model)["params"]))
    return _MODEL


# ---- Workdirs


def config_seeds() -> list[bytes]:
    config = {**get_config().to_dict(), "class_names": list(CLASSES)}
    others = config | {"network": "vgg16", "scales": [100, 150], "fc_ranks": [4, 4]}, config | {"proposals": "paper"}
    return [json.dumps(content).encode() for content in (config, *others)]


def read_own_config(path: Path) -> None:
    config = read_config(path.parent)
    model_of(config, path)
    image_sizes(config), detection_options(config)


def results_seeds() -> list[bytes]:
    results = {
        "map": 0.5, "step": 40, "protocol": "area", "iou_threshold": 0.5, "images": 2,
        "aps": {"cat": 0.5, "dog": None}, "seconds_per_image": 0.1,
    }  # fmt: skip
    return [written("a.json", lambda path, m=m: write_json(path, results | {"map": m})) for m in (0.5, None)]  # type: ignore[misc]


def read_own_results(path: Path) -> None:
    if results := read_results(path.parent):
        train._finished(path.parent, results)


def metrics_seeds() -> list[bytes]:
    from matplotlib import font_manager  # noqa: F401 - starts a program when it is first imported

    def write(path: Path) -> None:
        with RunLog(path.parent, 0) as log:
            for step in range(1, 4):
                log.add(step, {"loss": 1 / step, "loss_cls": 0.5, "loss_box": 0.25, "learning_rate": 0.01})
            log.add(3, {"map": None})

    return [written("metrics.jsonl", write)]


def read_own_metrics(path: Path) -> None:
    rows = read_metrics(path.parent)
    plot_losses(rows, path.parent / "loss.png")
    train._logged_maps(path.parent)
    with RunLog(path.parent, 2) as log:
        log.add(3, {"map": 0.5})


# ---- Searches


class Search(NamedTuple):
    """A search of little time."""

    max_boxes: int = 20

    def __str__(self) -> str:
        return "fuzz-search"

    def __call__(self, image: np.ndarray) -> np.ndarray:
        rows, columns = image.shape[:2]
        return np.array([[i, i, columns - 1, rows - 1] for i in range(10)], np.float32)


_DIGEST = bytes(range(16))
_IMAGE = np.full((50, 60, 3), 7, np.uint8)


def entry_seeds() -> list[bytes]:
    return [written("a", lambda path: cache._search(_IMAGE, Search(), path))]  # type: ignore[arg-type]


def read_entry(path: Path) -> None:
    """Read an entry, which is searched again if it is damaged: never refused."""
    folder = path.parent / str(Search())
    folder.mkdir()
    path.rename(folder / f"{_DIGEST.hex()}.boxes")
    Image.fromarray(_IMAGE).save(path.parent / "1.png")
    load = records.ImageFile(str(path.parent / "1.png"), (50, 60))
    search: Any = Search()
    for _ in range(2):
        boxes = SearchedProposals({"1": load}, {"1": _DIGEST}, search, folder)["1"]
        assert (boxes[:, :2] <= boxes[:, 2:]).all()
        assert (boxes[:, 2:] < [60, 50]).all()
        assert len(boxes) <= Search().max_boxes


def crafted_entries() -> dict[str, bytes]:
    def entry(values: Any) -> bytes:
        data = np.asarray(values, "<u2").tobytes()
        return cache._checksum(data) + data

    return {
        "reversed": entry([[9, 9, 1, 1]]),
        "outside": entry([[0, 0, 60000, 9]]),
        "many": entry(np.zeros((100_000, 4))),
        "none": entry(np.zeros((0, 4))),
        "of another image": entry([[0, 0, 59, 39]]),
    }


# ---- Boxes and detections


def region_seeds() -> list[bytes]:
    boxes = {f"{i}.jpg": own.tolist() for i, own in proposals(0).items()}
    results = [
        {"image_id": int(i), "category_id": 1, "bbox": box, "score": 0.5}
        for i, own in proposals(1).items()
        for box in own.tolist()
    ]
    return [json.dumps(boxes).encode(), json.dumps(results).encode(), coco_seed(0)]


def region_npz() -> bytes:
    boxes: dict[str, Any] = {f"{i}.jpg": own for i, own in proposals(0).items()}
    return written("a.npz", lambda path: np.savez(path, **boxes))


def read_own_regions(path: Path) -> None:
    for boxes in read_regions(path, [Path("1.jpg"), Path("2.jpg")]):
        assert boxes.dtype == np.float32
        assert boxes.shape == (len(boxes), 4)


def comp4_seeds() -> list[bytes]:
    found = ClassDetections(np.array([0, 1, 1]), np.array([0.9, 0.5, 0.1]), np.ones((3, 4)) * [1, 2, 30, 40])

    def write(path: Path) -> None:
        write_comp4(path.parent, [found, found], dataset(), year=2007, split="val")
        (path.parent / "results/VOC2007/Main/comp4_det_val_cat.txt").rename(path)

    return [written("a.txt", write)]


def read_own_comp4(path: Path) -> None:
    path.rename(path.with_name("comp4_det_val_cat.txt"))
    (path.parent / "comp4_det_val_dog.txt").touch()
    path.touch()
    for found in read_comp4(path.parent, dataset(), year=2007, split="val"):
        assert np.isfinite(found.boxes).all()


def result_seeds() -> list[bytes]:
    return [
        json.dumps([
            {"image_id": i, "category_id": 1, "bbox": [1, 2, 30, 20 + i], "score": 0.5 / i} for i in (1, 2)
        ]).encode()
    ]  # fmt: skip


def score(annotations: Path, detections: Path) -> None:
    eval_coco.main(["--annotations", str(annotations), "--detections", str(detections)])


def read_truth(path: Path) -> None:
    other = path.with_name("other.json")
    other.write_bytes(result_seeds()[0])
    score(path, other)


def read_result(path: Path) -> None:
    other = path.with_name("other.json")
    other.write_bytes(coco_seed(0))
    score(other, path)


IMAGES = {"JPEG": ".jpg", "PNG": ".png", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp", "GIF": ".gif", "PPM": ".ppm"}
PROPOSALS = (".proposals", ".npz", ".mat", ".pkl", ".json", ".csv", ".txt", ".npy")
WEIGHTS = (".npz", ".safetensors", ".caffemodel", ".pth", ".pt", ".pkl", ".h5")

FILE_TARGETS: dict[str, Target] = {
    **{f"image {kind}": image_target(kind, suffix) for kind, suffix in IMAGES.items()},
    "dataset xml": Target("mutant.xml", xml_seeds, read_xml, crafted_xml),
    "dataset voc": Target("mutant.xml", xml_seeds, read_devkit, crafted_xml),
    "split file": Target("val.txt", lambda: [b"000001\n000002\n", b"000001  1\n000002 -1\n"], read_split_file),
    "dataset coco": Target("mutant.json", coco_seeds, read_instances, crafted_coco),
    **{
        f"proposals {suffix}": Target(
            f"1{suffix}",
            lambda s=suffix: proposal_seeds(s) + (more_pickles() if s == ".pkl" else []),  # type: ignore[misc]
            read_own_proposals,
            lambda s=suffix: crafted_proposals(s),  # type: ignore[misc]
        )
        for suffix in PROPOSALS
    },
    **{
        f"weights {suffix}": Target(
            f"mutant{suffix}",
            lambda s=suffix: weight_seeds(s),  # type: ignore[misc]
            read_own_weights,
            lambda s=suffix: crafted_weights(s),  # type: ignore[misc]
        )
        for suffix in WEIGHTS
    },
    "config": Target("config.json", config_seeds, read_own_config, crafted_json),
    "results": Target("results.json", results_seeds, read_own_results, crafted_json),
    "metrics": Target("metrics.jsonl", metrics_seeds, read_own_metrics, crafted_json),
    "cache entry": Target("mutant.boxes", entry_seeds, read_entry, crafted_entries),
    "regions .json": Target("mutant.json", region_seeds, read_own_regions, crafted_coco),
    "regions .npz": Target("mutant.npz", lambda: [region_npz()], read_own_regions, crafted_npz),
    "comp4": Target("mutant.txt", comp4_seeds, read_own_comp4),
    "COCO truth": Target("mutant.json", coco_seeds, read_truth, crafted_coco),
    "COCO results": Target("mutant.json", result_seeds, read_result, crafted_json),
}  # fmt: skip
