import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from frcnn_jax.data.records import Dataset, Record
from frcnn_jax.data.voc import read_voc
from frcnn_jax.evaluation import report
from frcnn_jax.evaluation.comp4 import read_comp4
from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.evaluation.report import KINDS, count_kinds, diagnose, write_report
from frcnn_jax.evaluation.scores import score
from frcnn_jax.ops.boxes import iou

NAMES = ("cat", "<script>alert(1)</script>", 'a & "b"')
NONE = ClassDetections(np.zeros(0, int), np.zeros(0), np.zeros((0, 4)))


def blank():
    return np.zeros((60, 80, 3), np.uint8)


def make_record(name, boxes=(), labels=(), difficult=()):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Record(name, 60, 80, boxes, np.array(labels, np.int32), np.array(difficult, bool), blank)


def make_detections(rows):
    image, scores, boxes = zip(*rows, strict=True)
    return ClassDetections(np.array(image), np.array(scores, float), np.array(boxes, np.float32).reshape(-1, 4))


class Page(HTMLParser):
    """Checks that elements nest, and gathers what is in them."""

    VOID = ("meta", "img", "br", "path", "polyline")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def write(folder, dataset, detections, **options):
    results, curves = score(detections, dataset)
    write_report(folder, dataset, detections, results, curves, **options)
    assert [path.name for path in folder.iterdir()] == ["index.html"]
    return Page((folder / "index.html").read_text())


def two_cats_and_a_dog():
    records = [make_record("im0", [[0, 0, 19, 19], [40, 0, 59, 19]], [1, 2], [0, 0]), make_record("<im1>")]
    records.append(make_record("im2", [[0, 0, 19, 19], [40, 30, 59, 49]], [1, 1], [0, 1]))
    return Dataset(NAMES, records)


def cats():
    """The best two count; of the objects one is hit by them and one further down."""
    return make_detections(
        [
            (2, 0.95, [40, 30, 59, 49]),  # difficult: ignored
            (0, 0.9, [0, 0, 19, 19]),
            (0, 0.8, [40, 0, 59, 19]),  # the dog
            (0, 0.7, [0, 0, 19, 17]),  # duplicate
            (1, 0.6, [5, 5, 9, 9]),
            (2, 0.5, [0, 1, 19, 19]),
        ]
    )


def test_counts_by_hand():
    found = diagnose(cats(), two_cats_and_a_dog(), 1, iou_threshold=0.5)
    assert found.kinds.tolist() == ["ignored", "correct", "confusion", "localisation", "background", "correct"]
    assert found.duplicate.tolist() == [False, False, False, True, False, False]
    assert found.other_label.tolist() == [0, 0, 2, 0, 0, 0]
    assert count_kinds(found) == {"objects": 2, "correct": 1, "confusion": 1, "later": 1}
    assert count_kinds(diagnose(NONE, two_cats_and_a_dog(), 1, iou_threshold=0.5)) == {"objects": 2, "missed": 2}


def kinds_by_a_loop(detections, dataset, label):
    """In ranks, detection by detection."""
    kinds, used = [], set()
    for d in np.argsort(-detections.scores, kind="stable"):
        record = dataset.records[detections.image[d]]
        overlaps = [float(iou(detections.boxes[d][None], box[None])[0, 0]) for box in record.boxes]
        own = [g for g in range(len(overlaps)) if record.labels[g] == label]
        best = max(own, key=lambda g: overlaps[g], default=None)  # the first of equals
        if best is not None and overlaps[best] > 0.5:
            if record.difficult[best]:
                kinds.append("ignored")
            else:
                kinds.append("localisation" if (record.image_id, best) in used else "correct")
                used.add((record.image_id, best))
        elif any(overlaps[g] >= 0.1 for g in own):
            kinds.append("localisation")
        else:
            kinds.append("confusion" if any(overlap >= 0.1 for overlap in overlaps) else "background")
    return kinds


@given(st.integers(0, 10**6))
def test_kinds_equal_a_loop(seed):
    rng = np.random.default_rng(seed)

    def boxes(count):
        return np.sort(rng.integers(0, 12, (count, 2, 2)), axis=1).reshape(count, 4).astype(float)

    sizes = rng.integers(0, 5, 3)
    records = [make_record(f"{i}", boxes(n), rng.integers(1, 4, n), rng.random(n) < 0.3) for i, n in enumerate(sizes)]
    dataset, count = Dataset(NAMES, records), rng.integers(0, 40)
    found = ClassDetections(rng.integers(0, 3, count), rng.choice(8, count) / 8, boxes(count))
    got = diagnose(found, dataset, 2, iou_threshold=0.5)
    assert got.kinds.tolist() == kinds_by_a_loop(found, dataset, 2)
    counts = count_kinds(got)
    assert counts["correct"] + counts["later"] + counts["missed"] == counts["objects"]
    assert sum(counts[kind] for kind in KINDS) == min(counts["objects"], int(np.sum(got.kinds != "ignored")))


def test_agrees_with_the_curves_on_reference_detections(shared):
    dataset = read_voc(shared / "voc" / "VOCdevkit", split="val")
    detections = read_comp4(shared / "oracles" / "voc_eval", dataset, year=2007, split="val")
    _, curves = score(detections, dataset)
    for label, (name, found) in enumerate(zip(dataset.class_names, detections, strict=True), 1):
        curve, diagnosis = curves[name][0], diagnose(found, dataset, label, iou_threshold=0.5)
        correct = np.cumsum(diagnosis.kinds[diagnosis.kinds != "ignored"] == "correct")
        if curve.positives:
            np.testing.assert_allclose(correct, curve.recall * curve.positives)
            counts = count_kinds(diagnosis)
            assert counts["objects"] == curve.positives
            assert counts["missed"] == curve.positives - correct[-1]


def test_page_by_hand(tmp_path):
    page = write(tmp_path / "new" / "folder", two_cats_and_a_dog(), [cats(), NONE, NONE])
    assert "script" not in page.tags
    for name in NAMES:
        assert page.text.count(name) >= 2  # in the table and over its section
    assert "<im1>" in page.text
    for caption in (
        "0.900: correct, IoU 1.00",
        f"0.800: confusion with {NAMES[1]}, IoU 1.00",
        "0.700: localisation (duplicate), IoU 0.90",
        "0.600: background, IoU 0.00",
        "no detection overlaps it",
        f"Objects: 2. Detections: 6, false positives: 3. Among the N best, confused with: {NAMES[1]} (1).",
    ):
        assert caption in page.text
    assert "0.950" not in page.text  # on a difficult object
    for colour in KINDS.values():  # in the table's head and in the meanings
        assert page.attributes.count(("style", f"background:{colour}")) == 2
    # precisions 1, 1/2, 1/3, 1/4 at recall 1/2, then 2/5 at 1, in half units of a plot of 200 x 140 at (30, 10)
    assert ("points", "130,10 130,80 130,103.5 130,115 230,94") in page.attributes


def test_a_missed_object_names_the_nearest_detection_of_its_image(tmp_path):
    dataset = Dataset(NAMES, [make_record("im0", [[0, 0, 19, 19]], [1], [0]), make_record("im1")])
    detections = make_detections([(1, 0.9, [0, 0, 19, 19]), (0, 0.8, [10, 0, 29, 19])])
    page = write(tmp_path, dataset, [detections, NONE, NONE])
    assert "nearest detection: 0.800, IoU 0.33" in page.text


def test_figures_show_what_determines_the_kind(tmp_path, monkeypatch):
    """Ground truth in white, then the detection in its kind's colour; a missed object has none."""
    drawn = []

    def crop(image, boxes, colours, **size):
        drawn.append([(*map(int, box), colour) for box, colour in zip(boxes, colours, strict=True)])
        return Image.new("RGB", (2, 2))

    monkeypatch.setattr(report, "crop_boxes", crop)
    write(tmp_path, two_cats_and_a_dog(), [cats(), NONE, NONE])
    cat, dog, white = (0, 0, 19, 19), (40, 0, 59, 19), "white"
    assert drawn == [
        [(*cat, white), (*cat, KINDS["correct"])],
        [(*cat, white), (0, 1, 19, 19, KINDS["correct"])],
        [(*dog, white), (*dog, KINDS["confusion"])],
        [(*cat, white), (0, 0, 19, 17, KINDS["localisation"])],
        [(5, 5, 9, 9, KINDS["background"])],
        [(*dog, white)],
    ]


def test_page_holds_all_that_it_shows(tmp_path):
    page = write(tmp_path, two_cats_and_a_dog(), [cats(), NONE, NONE])
    ids = {value for name, value in page.attributes if name == "id"}
    links = [value for name, value in page.attributes if name in ("href", "src", "xlink:href", "srcset")]
    assert {link[1:] for link in links if link.startswith("#")} == ids
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in links)
    assert not re.search(r"url\(|@import|https?:", (tmp_path / "index.html").read_text())


@pytest.mark.parametrize("pictures", [0, 1, 2])
def test_pictures_are_counted(tmp_path, pictures):
    page = write(tmp_path, two_cats_and_a_dog(), [cats(), NONE, NONE], pictures=pictures)
    # of cats 2 hits and 3 false positives, and a dog that is missed
    assert page.tags.count("img") == min(2, pictures) + min(3, pictures) + min(1, pictures)


@pytest.mark.parametrize("records", [[], [make_record("empty")], two_cats_and_a_dog().records])
def test_page_without_detections(tmp_path, records):
    page = write(tmp_path, Dataset(NAMES, records), [NONE] * 3)
    assert "Best hits" not in page.text
    assert ("Missed, by size" in page.text) == (len(records) > 1)


def test_page_without_objects(tmp_path):
    page = write(tmp_path, Dataset(NAMES, [make_record("a")]), [make_detections([(0, 0.5, [1, 1, 9, 9])]), NONE, NONE])
    assert "mAP -" in page.text
    assert "0.500: background" in page.text


@pytest.mark.parametrize("code", [0xDCFF, 0xD800])
def test_page_of_names_that_are_no_utf8(tmp_path, code):
    dataset = Dataset((f"cat{chr(code)}", *NAMES[1:]), [make_record(f"a{chr(code)}")])
    page = write(tmp_path, dataset, [make_detections([(0, 0.5, [1, 1, 9, 9])]), NONE, NONE])
    for name in ("a", "cat"):
        assert f"{name}\\u{code:x}" in page.text
