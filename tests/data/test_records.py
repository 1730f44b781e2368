import contextlib
import io
import pickle
import struct
import subprocess
import sys
import warnings
from unittest import mock

import numpy as np
import pytest
from examples import ROOT
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from frcnn_jax.data import image_tags, records
from frcnn_jax.data.readers import read_split
from frcnn_jax.data.records import ImageFile, check_boxes, load_image, read_image_size, without_difficult
from frcnn_jax.data.voc import read_voc, read_xml_folder
from frcnn_jax.errors import InputError

OBJECT = "<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>{box}</bndbox></object>"


def voc_object(name="dog", box=(1, 1, 50, 40), difficult=0):
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return OBJECT.format(name=name, difficult=difficult, box=sides)


def write_voc(root, objects, *, size=(50, 40), image_id="000001"):
    """A devkit of one image; size is (width, height)."""
    folder = root / "VOC2007"
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "ImageSets/Main/train.txt").write_text(f"{image_id}\n")
    Image.new("RGB", size).save(folder / f"JPEGImages/{image_id}.jpg")
    text = f"<annotation><size><width>{size[0]}</width><height>{size[1]}</height></size>{''.join(objects)}</annotation>"
    (folder / f"Annotations/{image_id}.xml").write_text(text)
    return root


def test_reads_the_devkit(tmp_path):
    root = write_voc(tmp_path, [voc_object(), voc_object("cat", (2, 3, 10, 20), 1)])
    dataset = read_voc(root, split="train")
    (record,) = dataset.records
    assert (record.image_id, record.height, record.width) == ("000001", 40, 50)
    np.testing.assert_array_equal(record.boxes, [[0, 0, 49, 39], [1, 2, 9, 19]])
    assert record.boxes.dtype == np.float32
    assert [dataset.class_names[label - 1] for label in record.labels] == ["dog", "cat"]
    assert list(record.difficult) == [False, True]
    assert pickle.loads(pickle.dumps(record)).load().shape == (40, 50, 3)
    Image.new("RGB", (40, 50)).save(root / "VOC2007/JPEGImages/000001.jpg")
    with pytest.raises(InputError, match=r"000001\.jpg: annotated as \(40, 50\)"):
        record.load()


def test_a_split_of_one_class_and_an_object_without_a_mark(tmp_path):
    """VOC's split files of a class have a second column."""
    root = write_voc(tmp_path, [voc_object().replace("<difficult>0</difficult>", "")])
    (root / "VOC2007/ImageSets/Main/dog_train.txt").write_text("000001  1\n")
    (record,) = read_voc(root, split="dog_train").records
    assert list(record.difficult) == [False]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_coordinates_are_finite(value):
    with pytest.raises(InputError, match="rois must be finite, box 1 is "):
        check_boxes([[0, 0, 9, 9], [0, 0, value, 9]], "rois")


def test_boxes_that_cvat_has_turned(tmp_path):
    rotation = "<attributes><attribute><name>rotation</name><value>{}</value></attribute></attributes></object>"
    boxes = {(11, 11, 30, 20): 90.0, (11, 11, 20, 20): 45.0, (1, 11, 40, 20): 90.0, (2, 3, 4, 6): 0.0}
    objects = [voc_object(box=box).replace("</object>", rotation.format(angle)) for box, angle in boxes.items()]
    (record,) = read_voc(write_voc(tmp_path, objects), split="train").records
    expected = [[15, 5, 24, 24], [7.929, 7.929, 21.071, 21.071], [15, 0, 24, 34], [1, 2, 3, 5]]
    np.testing.assert_allclose(record.boxes, expected, atol=1e-3)
    for angle in ("x", "inf", "nan"):
        objects = [voc_object().replace("</object>", rotation.format(angle))]
        with pytest.raises(InputError, match=rf"\.xml: rotation must be a number, got '{angle}'"):
            read_voc(write_voc(tmp_path, objects), split="train")


def test_difficult_in_words(tmp_path):
    objects = [voc_object(difficult=word) for word in ("True", "1", "0", "false", "")]
    (record,) = read_voc(write_voc(tmp_path, objects), split="train").records
    assert list(record.difficult) == [True, True, False, False, False]


def test_without_difficult(tmp_path):
    objects = [voc_object(), voc_object("cat", (5, 6, 20, 30), difficult=1), voc_object("cow", (2, 2, 9, 9))]
    dataset = without_difficult(read_voc(write_voc(tmp_path, objects), split="train"))
    (record,) = dataset.records
    np.testing.assert_array_equal(record.labels, [12, 10])
    np.testing.assert_array_equal(record.boxes, [[0, 0, 49, 39], [1, 1, 8, 8]])
    assert not record.difficult.any()


def test_an_image_without_objects_is_a_record(tmp_path):
    (record,) = read_voc(write_voc(tmp_path, []), split="train").records
    assert record.boxes.shape == (0, 4)


def test_counts_of_the_real_set(shared):
    records = read_voc(shared / "voc" / "VOCdevkit", split="train").records
    assert len(records) == 2500
    assert sum(len(r.labels) for r in records) == 7843
    assert sum(r.difficult.sum() for r in records) == 1543


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        (voc_object("unicorn"), r"000001\.xml: unknown class 'unicorn'"),
        (voc_object(box=(1, 1, 52, 40)), r"000001\.xml: box of 'dog' \(1, 1, 52, 40\).*xmax <= 50"),
        (voc_object(box=(30, 1, 20, 40)), r"000001\.xml: box of 'dog' \(30, 1, 20, 40\)"),
        (voc_object(box=(-1, 1, 20, 40)), r"000001\.xml: box of 'dog' \(-1, 1, 20, 40\)"),
        (voc_object(box=(20, 1, 19, 40)), r"000001\.xml: box of 'dog' \(20, 1, 19, 40\)"),
        (voc_object(box=(1, 1, 50, 42)), r"000001\.xml: box of 'dog' \(1, 1, 50, 42\).*ymax <= 40"),
        (voc_object(box=(52, 1, 52, 40)), r"000001\.xml: box of 'dog' \(52, 1, 52, 40\)"),
        ("</annotation><annotation>", r"000001\.xml"),
        (voc_object(box=("a", 1, 20, 40)), r"expected four numbers, got 'a'"),
        (voc_object(box=("nan", 1, 20, 40)), r"box of 'dog' \(nan, 1, 20, 40\)"),
        ("<object>", r"000001\.xml: mismatched tag"),
    ],
)
def test_names_the_file_and_the_box(tmp_path, bad, text):
    with pytest.raises(InputError, match=text):
        read_voc(write_voc(tmp_path, [bad]), split="train")


def test_an_xml_bomb_is_refused(tmp_path):
    root = write_voc(tmp_path, [])
    bomb = '<!DOCTYPE a [<!ENTITY b "bb">]><annotation>&b;</annotation>'
    (root / "VOC2007/Annotations/000001.xml").write_text(bomb)
    with pytest.raises(InputError, match=r"000001\.xml"):
        read_voc(root, split="train")


@pytest.mark.parametrize(
    ("lost", "text"),
    [
        ("Annotations/000001.xml", "no such annotation"),
        ("JPEGImages/000001.jpg", "no such image"),
        ("ImageSets/Main/train.txt", "no such split file; its folder has none"),
    ],
)
def test_names_what_is_missing(tmp_path, lost, text):
    root = write_voc(tmp_path, [])
    (root / "VOC2007" / lost).unlink()
    with pytest.raises(InputError, match=text):
        read_voc(root, split="train")


def test_load_image_applies_the_exif_orientation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    image = load_image(tmp_path / "a.jpg")
    assert image.shape == (30, 20, 3)
    assert image.dtype == np.uint8


def test_load_image_errors(tmp_path, monkeypatch):
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((99, 99), 50).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:700])
    (tmp_path / "text.jpg").write_text("no image")
    for name, text in (("cut", "can't be read"), ("text", "can't be read"), ("none", "no such image")):
        with pytest.raises(InputError, match=f"{name}.jpg: {text}"):
            load_image(tmp_path / f"{name}.jpg")
    with pytest.raises(InputError, match=r"annotated as \(9, 8\).*\(99, 99\)"):
        load_image(whole, expected_size=(9, 8))
    monkeypatch.setattr("frcnn_jax.data.records.MAX_PIXELS", 100)
    with pytest.raises(InputError, match="99 x 99 pixels, expected at most 100"):
        load_image(whole)


def test_unions_of_years_and_splits(tmp_path):
    for year, image_id in ((2007, "000001"), (2012, "2008_000003")):
        (root := tmp_path / f"VOC{year}").mkdir()
        write_voc(tmp_path, [voc_object()], image_id=image_id)
        if year == 2012:
            (tmp_path / "VOC2007").rename(tmp_path / "new")
            root.rmdir()
            (tmp_path / "new").rename(root)
        else:
            (tmp_path / "VOC2007").rename(tmp_path / "VOC2007-kept")
    (tmp_path / "VOC2007-kept").rename(tmp_path / "VOC2007")
    dataset = read_voc(tmp_path, split="train+2012_train")
    assert [record.image_id for record in dataset.records] == ["000001", "2008_000003"]
    for options in ({"split": "2012_train"}, {"split": "train", "year": 2012}):
        assert [r.image_id for r in read_voc(tmp_path, **options).records] == ["2008_000003"]
    with pytest.raises(InputError, match="image '000001' is listed twice"):
        read_voc(tmp_path, split="train+2007_train")
    with pytest.raises(InputError, match=r"VOC2012/ImageSets/Main/test.txt: no such split file; its folder has train"):
        read_voc(tmp_path, split="train+2012_test")


def test_skips_the_object_or_the_image(tmp_path):
    objects = [voc_object("unicorn"), voc_object("cow", (2, 2, 9, 9)), voc_object(box=(9, 9, 2, 2))]
    root = write_voc(tmp_path, objects)
    (root / "VOC2007/ImageSets/Main/train.txt").write_text("000001\n000002\n000001\n../../x\n")
    problems = []
    dataset = read_voc(root, split="train", on_problem=problems.append)
    (record,) = dataset.records
    np.testing.assert_array_equal(record.labels, [10])
    texts = ["unicorn", "box of 'dog' (9, 9, 2, 2)", "000002.jpg: no such image", "listed twice", "lies outside"]
    assert len(problems) == len(texts)
    for problem, text in zip(problems, texts, strict=True):
        assert text in str(problem)


def test_a_folder_of_images_and_xml(tmp_path):
    root = write_voc(tmp_path, [voc_object(name) for name in ("zebra", "cow", "ant", "dog", "bee", "cat")]) / "VOC2007"
    (tmp_path / "own").mkdir()
    (root / "Annotations/000001.xml").rename(tmp_path / "own/a.xml")
    (root / "JPEGImages/000001.jpg").rename(tmp_path / "own/a.JPG")
    dataset = read_xml_folder(tmp_path / "own")
    assert dataset.class_names == ("ant", "bee", "cat", "cow", "dog", "zebra")
    (record,) = dataset.records
    np.testing.assert_array_equal(record.labels, [6, 4, 1, 5, 2, 3])
    assert record.load().shape == (40, 50, 3)
    with pytest.raises(InputError, match="unknown class 'zebra'; the classes are ant"):
        read_xml_folder(tmp_path / "own", class_names=["ant"])
    Image.new("RGB", (3, 3)).save(tmp_path / "own/b.png")
    with pytest.raises(InputError, match=r"b\.png: its annotation is missing"):
        read_xml_folder(tmp_path / "own")
    for name, text in (("none", "no such folder"), ("VOC2007", "no annotations")):
        with pytest.raises(InputError, match=f"{name}: {text}"):
            read_xml_folder(tmp_path / name)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "tif", "tiff", "webp", "JPG"])
def test_images_of_these_endings(tmp_path, suffix):
    Image.new("RGB", (50, 40)).save(tmp_path / f"a.{suffix}")
    (tmp_path / "a.xml").write_text("<annotation><size><width>50</width><height>40</height></size></annotation>")
    assert read_xml_folder(tmp_path, class_names=["cat"]).records[0].load().shape == (40, 50, 3)


def test_two_images_with_one_annotation(tmp_path):
    for name in ("a.jpg", "a.png", "b.png"):
        Image.new("RGB", (50, 40)).save(tmp_path / name)
    for name in ("a.xml", "b.xml"):
        (tmp_path / name).write_text("<annotation><size><width>50</width><height>40</height></size></annotation>")
    with pytest.raises(InputError, match=r"a\.xml: does it annotate a\.jpg or a\.png\?"):
        read_xml_folder(tmp_path)
    (record,) = read_xml_folder(tmp_path, on_problem=lambda problem: None).records
    assert record.image_id == "b"


def test_an_unreadable_file_is_one_problem(tmp_path):
    root = write_voc(tmp_path, [voc_object()]) / "VOC2007"
    (root / "ImageSets/Main/train.txt").write_text(f"{'x' * 300}\n{'y' * 300} 1\n000001\n000002\n")
    (root / "Annotations/000002.xml").mkdir()
    Image.new("RGB", (50, 40)).save(root / "JPEGImages/000002.jpg")
    problems = []
    (record,) = read_voc(tmp_path, split="train", on_problem=problems.append).records
    assert record.image_id == "000001"
    texts = ("x.jpg: can't be read (File name", "y.jpg: can't be read (File name", "000002.xml: can't be read")
    for problem, text in zip(problems, texts, strict=True):
        assert text in str(problem)
    for unread in (root / "Annotations", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match=f"{unread}: can't be read as an image"):
            load_image(unread)
    assert read_xml_folder(root / "Annotations", on_problem=problems.append).class_names == ("dog",)


@given(st.text("<>/anotiesbjcmdxwhg &;'\"=!?[]-0123456789.\n", max_size=300), st.binary(max_size=40))
def test_a_malformed_xml_is_one_problem(tmp_path_factory, text, raw):
    folder = tmp_path_factory.mktemp("x")
    root = write_voc(folder, [])
    for content in (raw, text.encode(), f"<annotation>{text}<object></annotation>".encode()):
        (root / "VOC2007/Annotations/000001.xml").write_bytes(content)
        with pytest.raises(InputError, match=r"000001\.xml"):
            read_voc(root, split="train")


@pytest.mark.parametrize("mode", ["L", "I;16", "CMYK", "RGBA", "P"])
def test_load_image_of_other_modes(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(np.full((20, 30), 204 * 256 + 7, np.uint16)).save(path)
    else:
        Image.new("L", (30, 20), 204).convert("RGB").convert(mode).save(path)
    image = load_image(path)
    assert image.shape == (20, 30, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, np.full((20, 30, 3), 204))


def test_load_image_gives_rgb(tmp_path, rng):
    image = rng.integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), image)


def test_load_image_keeps_the_stored_orientation_if_annotated_so(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg", expected_size=(20, 30)).shape == (20, 30, 3)
    assert load_image(tmp_path / "a.jpg", expected_size=(30, 20)).shape == (30, 20, 3)


def test_an_image_file_loads_as_load_image_does_even_after_pickling(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20), (1, 2, 3)).save(path)
    for size in (None, (20, 30)):
        load = pickle.loads(pickle.dumps(ImageFile(str(path), size)))
        np.testing.assert_array_equal(load(), load_image(path))
        assert (load.path, load.size) == (str(path), size)
    with pytest.raises(InputError, match=r"a\.png: annotated as \(30, 20\)"):
        ImageFile(str(path), (30, 20))()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_an_animation_is_refused_and_a_single_frame_read(tmp_path, suffix):
    frames = [Image.new("L", (30, 20), shade) for shade in (0, 99)]
    frames[1].save(tmp_path / f"a.{suffix}")
    assert load_image(tmp_path / f"a.{suffix}").shape == (20, 30, 3)
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match=rf"a\.{suffix}: an animation, expected one image"):
        load_image(tmp_path / f"a.{suffix}")


def test_heic_and_avif_say_what_they_need(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.setattr("frcnn_jax.data.records.features.check", lambda name: False)
    for name, text in (("a.HEIC", r"HEIC needs pip install 'frcnn_jax\[heif\]'"), ("a.avif", "AVIF needs pip install")):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(InputError, match=f"{name}: {text}"):
            load_image(tmp_path / name)


@pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")
def test_avif_is_opened_by_its_suffix_alone(tmp_path):
    for name in ("a.avif", "a.jpg"):
        Image.new("RGB", (30, 20)).save(tmp_path / name, "AVIF")
    assert load_image(tmp_path / "a.avif").shape == (20, 30, 3)
    with pytest.raises(InputError, match=r"a\.jpg: can't be read as an image \(not one of JPEG"):
        load_image(tmp_path / "a.jpg")


def test_the_size_is_in_the_header(tmp_path, monkeypatch):
    """Reading a data set opens every image; it reads none as a whole."""
    (tmp_path / "a.jpg").write_bytes(jpeg() + bytes(1 << 20))
    read: list[int] = []
    monkeypatch.setattr(records, "open_regular", lambda path: Counted(path.read_bytes(), read))
    assert read_image_size(tmp_path / "a.jpg") == (48, 64)
    assert sum(read) < 1 << 16


class Counted(io.BytesIO):
    """A file that notes how much is read."""

    def __init__(self, data, read):
        super().__init__(data)
        self.counts = read

    def read(self, size=-1):
        data = super().read(size)
        self.counts.append(len(data))
        return data


def test_reads_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (30, 20), (200, 10, 10))).save(tmp_path / "a.heic")
    image = load_image(tmp_path / "a.heic")
    assert image.shape == (20, 30, 3)
    np.testing.assert_allclose(image[10, 10], (200, 10, 10), atol=9)


def test_pixels_of_32_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((9, 9), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InputError, match="32-bit pixels"):
        load_image(tmp_path / "a.tif")


# the transformations of a stored image that make it upright, by EXIF orientation
UPRIGHT = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}  # fmt: skip
EXACT = {"png": {}, "webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}


def write_turned(path, orientation, shape):
    """An image of random blocks of 8 x 8 with an EXIF orientation; return its pixels as stored."""
    blocks = np.random.default_rng(1).integers(0, 2, (shape[0] // 8, shape[1] // 8, 1), np.uint8) * 255
    image = blocks.repeat(8, axis=0).repeat(8, axis=1).repeat(3, axis=2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(image).save(path, exif=exif, **EXACT[path.suffix[1:]])
    return image


@pytest.mark.parametrize("suffix", EXACT)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_size_decides_about_an_orientation_where_it_can_and_else_the_image_is_upright(
    tmp_path, orientation, suffix
):
    for name, shape in (("oblong", (32, 48)), ("square", (40, 40))):
        path = tmp_path / f"{name}.{suffix}"
        stored = write_turned(path, orientation, shape)
        upright = UPRIGHT[orientation](stored)
        told = stored.shape != upright.shape
        for size in (None, stored.shape[:2], upright.shape[:2]):
            for exif in ("apply", "ignore"):
                expected = upright if exif == "apply" else stored
                if told and size:
                    expected = upright if size == upright.shape[:2] else stored
                found = load_image(path, expected_size=size, exif=exif)
                np.testing.assert_allclose(found.astype(int), expected, atol=3)
            untold = ImageFile(str(path), size).has_untold_orientation()
            assert untold == (orientation > 1 and not (told and size is not None))
        assert read_image_size(path) == upright.shape[:2]
        assert read_image_size(path, exif="ignore") == stored.shape[:2]


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_unknown_orientation_is_none(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png", exif=exif)
    assert load_image(tmp_path / "a.png").shape == (20, 30, 3)
    assert not ImageFile(str(tmp_path / "a.png")).has_untold_orientation()


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_tiff_is_upright(tmp_path, orientation):
    image = np.arange(8 * 16 * 3, dtype=np.uint8).reshape(8, 16, 3)
    Image.fromarray(image).save(tmp_path / "a.tif", tiffinfo={0x0112: orientation})
    upright = UPRIGHT[orientation](image)
    np.testing.assert_array_equal(load_image(tmp_path / "a.tif"), upright)
    assert read_image_size(tmp_path / "a.tif") == upright.shape[:2]


def test_the_config_says_what_an_orientation_is_worth_where_the_size_is_silent(tmp_path):
    (tmp_path / "train").mkdir()
    path = tmp_path / "train/a.png"
    stored = write_turned(path, 3, (32, 48))
    (tmp_path / "train/a.xml").write_text(
        f"<a><size><width>48</width><height>32</height></size>{voc_object(box=(1, 1, 9, 9))}</a>"
    )
    for exif, expected in (("apply", stored[::-1, ::-1]), ("ignore", stored)):
        (record,) = read_split("xml", split="train", folder=tmp_path, exif=exif).records
        np.testing.assert_array_equal(record.load(), expected)


def test_images_in_sub_folders_are_read(tmp_path):
    for name in ("a", "x/a", "x/y/b", "__MACOSX/a"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 40)).save(tmp_path / f"{name}.png")
        text = f"<a><size><width>50</width><height>40</height></size>{voc_object()}</a>"
        (tmp_path / f"{name}.xml").write_text(text)
    records = read_xml_folder(tmp_path).records
    assert [(r.image_id, r.load.path) for r in records] == [
        (name, str(tmp_path / f"{name}.png")) for name in ("a", "x/a", "x/y/b")
    ]
    (tmp_path / "x/a.xml").unlink()
    with pytest.raises(InputError, match=r"x/a\.png: its annotation is missing"):
        read_xml_folder(tmp_path)


def jpeg(**options):
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "JPEG", **options)
    return file.getvalue()


def test_no_format_that_starts_a_program_is_opened(tmp_path, monkeypatch):
    """Pillow gives an EPS, whatever its name, to Ghostscript."""
    (tmp_path / "a.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n")
    monkeypatch.setattr(subprocess, "Popen", mock.Mock(side_effect=AssertionError("a program is started")))
    with pytest.raises(InputError, match=r"a\.jpg: can't be read as an image \(not one of JPEG"):
        load_image(tmp_path / "a.jpg")


def test_images_are_opened_in_one_place():
    found = {path.name for path in (ROOT / "frcnn_jax").rglob("*.py") if "Image.open(" in path.read_text()}
    assert found == {"records.py"}


@pytest.mark.parametrize(
    "exif",
    [
        b"MM",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\xff\xff\xff\xff\xff\xff\0\0\0\0",
    ],
)
def test_broken_exif(exif, tmp_path):
    (tmp_path / "a.jpg").write_bytes(jpeg(exif=b"Exif\0\0" + exif))
    with contextlib.suppress(InputError):
        load_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("error", [struct.error("unpack"), IndexError("index"), ZeroDivisionError(), KeyError(3)])
def test_whatever_pillow_raises_names_the_file(error, tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(jpeg())
    monkeypatch.setattr(Image.Image, "getexif", mock.Mock(side_effect=error))
    with pytest.raises(InputError, match=r"a\.jpg: can't be read as an image \("):
        load_image(tmp_path / "a.jpg")


def test_many_pixels_in_few_bytes(tmp_path, monkeypatch):
    Image.new("RGB", (400, 300)).save(tmp_path / "a.webp", lossless=True)
    assert load_image(tmp_path / "a.webp").shape == (300, 400, 3)
    monkeypatch.setattr(records, "SMALL_PIXELS", 1000)
    with pytest.raises(InputError, match=r"a\.webp: 400 x 300 pixels in \d+ bytes, which is not a photograph"):
        load_image(tmp_path / "a.webp")


def test_comments_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_COMMENTS", 3)
    head, pixels = b"P3\n# a comment\n2 1\n255\n", b"1 2 3\n# another\n250 0 7\n"
    (tmp_path / "a.ppm").write_bytes(head + pixels + b"# more\n")
    assert load_image(tmp_path / "a.ppm").tolist() == [[[1, 2, 3], [250, 0, 7]]]
    (tmp_path / "a.ppm").write_bytes(head + pixels + b"# more\n" * 2)
    with pytest.raises(InputError, match=r"a\.ppm: 4 comments among its pixels, expected at most 3"):
        load_image(tmp_path / "a.ppm")
    (tmp_path / "a.ppm").write_bytes(b"P6\n2 1\n255\n######")
    assert load_image(tmp_path / "a.ppm").tolist() == [[[35, 35, 35]] * 2]


def test_warnings_of_damaged_tags_are_not_shown(tmp_path, recwarn):
    """Pillow has one for each tag, of which a file can have many thousands."""
    warnings.simplefilter("always")
    tags = b"".join(struct.pack("<HHII", 0x9000 + i, 1, 1 << 20, 8) for i in range(9))
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 9) + tags + bytes(4)
    Image.new("RGB", (64, 48)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").shape == (48, 64, 3)
    assert not recwarn


def tags_of_one_value(size, number):
    tags = b"".join(struct.pack("<HHII", 0x4000 + i, 1, size, 8) for i in range(number))
    return b"II*\0" + struct.pack("<I", 8 + size) + bytes(size) + struct.pack("<H", number) + tags + bytes(4)


def segments(exif):
    parts = [b"Exif\0\0" + exif[i : i + 60_000] for i in range(0, len(exif), 60_000)]
    return b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)


def png_with(exif):
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "PNG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.tif", lambda exif: exif),
        ("a.png", png_with),
        ("a.jpg", lambda exif: (data := jpeg())[:2] + b"\xff\xff\xfe\0\2" + segments(exif) + data[2:]),
    ],
)
def test_tags_of_one_value(tmp_path, monkeypatch, name, make):
    """Pillow before 13 copies it for each tag: a megabyte would become many gigabytes."""
    monkeypatch.setattr(image_tags, "UNCHECKED", True)
    (tmp_path / name).write_bytes(make(tags_of_one_value(90_000, 3000)))
    with pytest.raises(InputError, match=rf"{name}: .*its content would take 270 MB, more than 100 times"):
        load_image(tmp_path / name)
    if name != "a.tif":
        (tmp_path / name).write_bytes(make(tags_of_one_value(90_000, 300)))
        assert load_image(tmp_path / name).shape == (48, 64, 3)


def test_scans_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "MAX_SCANNED", 64 * 48 * 100)
    data = jpeg(progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    (tmp_path / "a.jpg").write_bytes(data[:-2] + last * 50 + data[-2:])
    assert load_image(tmp_path / "a.jpg").shape == (48, 64, 3)
    (tmp_path / "a.jpg").write_bytes(data[:-2] + last * 100 + data[-2:])
    with pytest.raises(InputError, match=r"a\.jpg: 64 x 48 pixels in 1\d\d scans"):
        load_image(tmp_path / "a.jpg")
    kept = data[:2] + b"\xff\xe1" + struct.pack(">H", 2002) + b"\xff\xda" * 1000 + data[2:]  # in a thumbnail
    (tmp_path / "a.jpg").write_bytes(kept)
    assert load_image(tmp_path / "a.jpg").shape == (48, 64, 3)
    Image.new("RGB", (64, 48)).save(tmp_path / "m.jpg", "MPO", save_all=True, append_images=[Image.new("L", (9, 9))])
    several = (tmp_path / "m.jpg").read_bytes()
    with Image.open(tmp_path / "m.jpg") as image:
        assert image.format == "MPO"
    (tmp_path / "m.jpg").write_bytes(several[:2] + several[2 : several.index(b"\xff\xdb")] + data[2:-2] + last * 100)
    with pytest.raises(InputError, match=r"m\.jpg: 64 x 48 pixels in 1\d\d scans"):
        load_image(tmp_path / "m.jpg")
    (tmp_path / "a.jpg").write_bytes(data + b"\xff\xda" * 1000)  # behind the image, as in a phone's live pictures
    assert load_image(tmp_path / "a.jpg").shape == (48, 64, 3)


@pytest.mark.parametrize("name", ["a\0.jpg", "\ud800.jpg", "a" * 5000])
def test_names_that_no_file_has(name, tmp_path):
    with pytest.raises(InputError, match=r"can't be read|no such image"):  # by the version of Python
        records.image_path(tmp_path, name)


def test_sizes_that_no_image_has():
    with pytest.raises(InputError, match=r"a\.jpg: image '7': 100000 x 100000 pixels, expected 1 to 100000000"):
        records.make_record("7", 100_000, 100_000, [], ImageFile("a.jpg"))
