import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from frcnn_jax.data.records import Dataset
from frcnn_jax.data.synthetic import (
    CLASS_NAMES,
    HEIGHT,
    LARGEST,
    SMALLEST,
    WIDTH,
    _extent,
    draw_scene,
    read_synthetic,
)
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.metrics import ClassDetections
from frcnn_jax.evaluation.scores import score
from frcnn_jax.ops import boxes as box_ops
from frcnn_jax.proposals.cache import search_images
from frcnn_jax.training.sampling import assign


def test_an_image_is_a_function_of_seed_split_and_place():
    code = (
        "import sys, frcnn_jax.data.synthetic as s; sys.stdout.buffer.write(s.draw_scene(3, 'val', 5).image.tobytes())"
    )
    other_process = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    assert draw_scene(3, "val", 5).image.tobytes() == other_process
    for other in ((4, "val", 5), (3, "train", 5), (3, "val", 6)):
        assert (draw_scene(*other).image != draw_scene(3, "val", 5).image).any()


def test_scenes_are_as_promised():
    scenes = [draw_scene(0, "train", i) for i in range(100)]
    counts = [len(scene.labels) for scene in scenes]
    assert min(counts) >= 1
    assert max(counts) == 6
    boxes = np.concatenate([scene.boxes for scene in scenes])
    labels = np.concatenate([scene.labels for scene in scenes])
    assert set(labels) == set(range(1, len(CLASS_NAMES) + 1))
    assert len(CLASS_NAMES) >= 6
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2] < WIDTH).all()
    assert (boxes[:, 3] < HEIGHT).all()
    extents = (boxes[:, 2:] - boxes[:, :2] + 1).max(axis=1)
    assert LARGEST / SMALLEST == 6
    assert extents.max() / extents.min() > 4
    overlaps = [box_ops.iou(s.boxes, s.boxes)[np.triu_indices(len(s.boxes), 1)] for s in scenes]
    assert (np.concatenate(overlaps) > 0.05).any()  # some objects overlap


def test_records_match_what_they_load():
    (_, record) = read_synthetic(split="val", images=2, seed=3).records
    scene = draw_scene(3, "val", 1)
    np.testing.assert_array_equal(record.load(), scene.image)
    np.testing.assert_array_equal(record.boxes, scene.boxes)


def test_boxes_are_those_of_the_visible_pixels():
    seen = np.zeros((20, 30), bool)
    seen[[4, 9, 12], [5, 17, 8]] = True
    assert _extent(seen) == (5, 4, 17, 12)


def test_an_empty_split_is_an_error():
    with pytest.raises(InputError, match="at least 1 image, got 0"):
        read_synthetic(split="val", images=0)


def test_another_split_is_an_error():
    with pytest.raises(InputError, match="the synthetic dataset has the splits train, val, test, got 'trian'"):
        read_synthetic(split="trian", images=3)


@pytest.mark.nightly
def test_colour_and_size_do_not_solve_it(tmp_path):
    """A linear classifier on each RoI's mean colour and size scores under half of the 0.8 that the network reaches."""

    def features(record, rois):
        image, rows = record.load() / 255, []
        for x1, y1, x2, y2 in rois.astype(int):
            width, height = x2 - x1 + 1, y2 - y1 + 1
            rows.append(
                [*image[y1 : y2 + 1, x1 : x2 + 1].mean(axis=(0, 1)), width, height, width * height, width / height]
            )
        return np.array(rows)

    splits = {name: read_synthetic(split=name, images=count) for name, count in (("train", 150), ("val", 60))}
    proposals = {
        name: search_images({r.image_id: r.load for r in split.records}, cache_dir=tmp_path)
        for name, split in splits.items()
    }
    rows, labels = [], []
    for record in splits["train"].records:
        targets = assign(proposals["train"][record.image_id], record.boxes, record.labels)
        rows.append(features(record, targets.rois))
        labels.append(np.where(targets.overlaps >= 0.5, targets.labels, 0))
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=500))
    model.fit(np.concatenate(rows), np.concatenate(labels))
    found = []
    for i, record in enumerate(splits["val"].records):
        rois = proposals["val"][record.image_id]
        found.append((np.full(len(rois), i), model.predict_proba(features(record, rois))[:, 1:], rois))
    image, probs, boxes = (np.concatenate(field) for field in zip(*found, strict=True))
    detections = [ClassDetections(image, probs[:, k], boxes) for k in range(len(CLASS_NAMES))]
    results, _ = score(detections, Dataset(CLASS_NAMES, splits["val"].records))
    assert results["map"] < 0.4
