"""Scores and features of given regions."""

import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from frcnn_jax.data.batches import Sizes, prepare_test
from frcnn_jax.data.synthetic import CLASS_NAMES, draw_scene
from frcnn_jax.detector import Detector
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation import regions
from frcnn_jax.evaluation.predict import DetectionOptions
from frcnn_jax.models.fast_rcnn import FastRCNN, init_variables
from frcnn_jax.models.pixels import PixelNorm
from frcnn_jax.models.weight_files import write_weights
from frcnn_jax.models.weights import canonical_arrays

IMAGE = draw_scene(0, "test", 3).image  # 144 x 192
SIZES = [Sizes(144, 192)]


@pytest.fixture
def detector(model_and_variables):
    return Detector(*model_and_variables, class_names=CLASS_NAMES, sizes=SIZES)


def random_boxes(rng, count, height=144, width=192):
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * [width - 9, height - 9]
    return np.concatenate([corners[:, 0], corners[:, 1] + 4], axis=1).astype(np.float32)


def expected_rows(model, variables, image, boxes, sizes=SIZES):
    """What the network itself gives for each box alone."""
    batch = prepare_test(image, boxes, sizes=sizes, pixels=model.pixels, spatial_scale=None)
    pooled = model.apply(variables, batch["image"], batch["image_size"], batch["rois"], method=FastRCNN.pooled)
    logits, deltas = model.apply(variables, batch["image"], batch["image_size"], batch["rois"])
    return pooled[0, : len(boxes)], logits[0, : len(boxes)], deltas[0, : len(boxes)]


def test_row_i_is_box_i(model_and_variables, detector, rng):
    boxes = random_boxes(rng, 5)[[0, 1, 2, 0, 3, 4]]  # one twice: nothing is merged
    scores = detector.classify(IMAGE, boxes)
    pooled, logits, deltas = expected_rows(*model_and_variables, IMAGE, boxes)
    np.testing.assert_allclose(scores.logits, logits, atol=1e-5)
    np.testing.assert_allclose(scores.probabilities, jax.nn.softmax(logits), atol=1e-6)
    moves = np.asarray(deltas)[:, 1:] * 0.2 + 0.05  # the statistics of the fixture
    size, centre = boxes[:, 2:] - boxes[:, :2], (boxes[:, :2] + boxes[:, 2:]) / 2
    centre, half = centre[:, None] + moves[..., :2] * size[:, None], np.exp(moves[..., 2:]) * size[:, None] / 2
    expected = np.clip(np.concatenate([centre - half, centre + half], -1), 0, [191, 143, 191, 143])
    np.testing.assert_allclose(scores.boxes, expected, atol=1e-3)
    np.testing.assert_allclose(detector.embed(IMAGE, boxes, layer="pooled"), pooled.reshape(6, -1), atol=1e-6)
    params = model_and_variables[1]["params"]["head"]
    fc6 = np.maximum(pooled.reshape(6, -1) @ params["fc6"]["kernel"] + params["fc6"]["bias"], 0)
    fc7 = np.maximum(fc6 @ params["fc7"]["kernel"] + params["fc7"]["bias"], 0)
    np.testing.assert_allclose(detector.embed(IMAGE, boxes, layer="fc6"), fc6, atol=1e-4)
    np.testing.assert_allclose(detector.embed(IMAGE, boxes), fc7, atol=1e-4)


def test_boxes_are_in_pixels_of_the_image(model_and_variables, rng):
    """At twice the size, each box is pooled from twice the coordinates."""
    model, variables = model_and_variables
    detector = Detector(model, variables, class_names=CLASS_NAMES, sizes=[Sizes(288, 384)])
    boxes = random_boxes(rng, 4)
    pooled, *_ = expected_rows(model, variables, IMAGE, boxes, [Sizes(288, 384)])
    np.testing.assert_allclose(detector.embed(IMAGE, boxes, layer="pooled"), pooled.reshape(4, -1), atol=1e-6)
    small = Detector(
        model, variables, class_names=CLASS_NAMES, sizes=SIZES, options=DetectionOptions(box_regression=False)
    )
    np.testing.assert_allclose(small.classify(IMAGE, boxes).boxes, np.repeat(boxes[:, None], 6, axis=1), rtol=1e-6)


def test_chunks_change_nothing(detector, rng, monkeypatch):
    boxes = random_boxes(rng, 1100)
    whole = detector.classify(IMAGE, boxes)
    monkeypatch.setattr(regions, "CHUNK", 512)
    for part, expected in zip(detector.classify(IMAGE, boxes), whole, strict=True):
        np.testing.assert_allclose(part, expected, atol=1e-4)


def test_few_chunks_are_in_memory_at_a_time(monkeypatch):
    monkeypatch.setattr(regions, "CHUNK", 512)
    alive, most = [], []

    def rows(variables, maps, batch):
        made = np.repeat(batch["rois"][0, :, :1], 3, axis=1)
        alive.append(weakref.ref(made))
        most.append(sum(ref() is not None for ref in alive))
        return made

    boxes = np.float32([[0, 0, 100, 100]]) + np.arange(5000)[:, None] % 90
    batches = regions.RegionBatches([IMAGE], [boxes], SIZES, PixelNorm())
    (found,) = regions.run_regions(regions.RegionStep(lambda *_: None, rows), None, batches)
    np.testing.assert_allclose(found, np.repeat(boxes[:, :1], 3, axis=1))
    assert len(most) == 10
    assert max(most) <= 3


def test_a_pyramid_pools_each_box_at_its_scale(model_and_variables, rng):
    model, variables = model_and_variables
    sizes = [Sizes(96, 128), Sizes(288, 384)]
    detector = Detector(model, variables, class_names=CLASS_NAMES, sizes=sizes)
    # areas of 18271, 2091 and 25521 pixels, times 4 or 4/9, are to be near 224 x 224
    boxes = np.float32([[0, 0, 150, 120], [20, 20, 60, 70], [0, 0, 180, 140]])
    found, scores = detector.embed(IMAGE, boxes, layer="pooled"), detector.classify(IMAGE, boxes)
    for i, level in enumerate((1, 1, 0)):
        pooled, logits, _ = expected_rows(model, variables, IMAGE, boxes[i : i + 1], [sizes[level]])
        np.testing.assert_allclose(found[i], pooled.reshape(-1), atol=1e-5)
        np.testing.assert_allclose(scores.logits[i], logits[0], atol=1e-5)
    regressed = scores.boxes.mean(axis=1)
    assert np.abs(regressed - boxes).max() < 40


def test_lists_paths_and_pictures(detector, rng, tmp_path):
    other = draw_scene(0, "test", 4).image
    Image.fromarray(other).save(tmp_path / "a.png")
    boxes, more = random_boxes(rng, 3), random_boxes(rng, 2)
    both = detector.embed([Image.fromarray(IMAGE), tmp_path / "a.png", IMAGE], [boxes.tolist(), more, []])
    np.testing.assert_allclose(both[0], detector.embed(IMAGE, boxes), atol=1e-5)
    np.testing.assert_allclose(both[1], detector.embed(other, more), atol=1e-5)
    assert both[2].shape == (0, 128)
    assert detector.classify([], []) == []
    assert [part.shape for part in detector.classify(IMAGE, [])] == [(0, 7), (0, 7), (0, 6, 4)]


def test_a_box_that_shares_a_line_of_pixels_with_the_image_is_inside(detector):
    boxes = np.float32([[-9, 10, 0, 20], [10, -9, 20, 0], [191, 10, 200, 20], [10, 143, 20, 150]])
    assert np.isfinite(detector.embed(IMAGE, boxes)).all()


def test_boxes_may_be_as_large_as_float32_allows(detector):
    far = float(np.finfo(np.float32).max)
    huge, large = ([[-far, -far, far, far], [20, 30, far, far]] for far in (far, 1e9))
    np.testing.assert_array_equal(detector.embed(IMAGE, huge), detector.embed(IMAGE, large))
    assert np.isfinite(detector.classify(IMAGE, huge).boxes).all()


@pytest.mark.parametrize(
    ("box", "problem"),
    [
        ([200, 10, 220, 30], r"box 1 \(200, 10, 220, 30\) is outside the image of 192 x 144"),
        ([10, -30, 20, -1], "is outside the image"),
        ([-30, 10, -1, 20], "is outside the image"),
        ([192, 10, 220, 30], "is outside the image"),
        ([10, 144, 20, 150], "is outside the image"),
        ([10, 10, 10, 30], "has no area"),
        ([10, 30, 20, 10], "has no area"),
        ([10, np.nan, 20, 30], "is not finite"),
        ([10, 10, 1e300, 30], r"box 1 \(10, 10, inf, 30\) is not finite"),
    ],
)
def test_invalid_boxes_are_errors_or_nan(detector, box, problem):
    boxes = np.array([[10, 10, 40, 40], box, [-5, 60, 100, 160]])  # the last is partly outside
    with pytest.raises(InputError, match=problem):
        detector.embed(IMAGE, boxes)
    found = detector.embed(IMAGE, boxes, invalid="nan")
    assert np.isnan(found[1]).all()
    np.testing.assert_allclose(found[[0, 2]], detector.embed(IMAGE, boxes[[0, 2]]), atol=1e-5)
    assert all(
        np.isnan(part[1]).all() and np.isfinite(part[0]).all()
        for part in detector.classify(IMAGE, boxes, invalid="nan")
    )


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        (lambda d: d.embed(IMAGE, [[1, 2, 3, 4]], layer="fc8"), "layer must be one of pooled, fc6, fc7, got 'fc8'"),
        (
            lambda d: (d.classify(IMAGE, []), d.embed(IMAGE, [], layer="")),
            "layer must be one of pooled, fc6, fc7, got ''",
        ),
        (lambda d: d.embed(IMAGE, [[1, 2, 3]]), r"boxes of image 0 must be \(R, 4\), got \(1, 3\)"),
        (lambda d: d.embed(IMAGE, np.zeros((0, 5))), r"boxes of image 0 must be \(R, 4\), got \(0, 5\)"),
        (lambda d: d.embed(IMAGE, [[1, 2, 3, 4], [1]]), "boxes of image 0 must be an array of numbers, got list"),
        (lambda d: d.embed(IMAGE, [["1", "2", "3", "4"]]), "boxes of image 0 must be floating point or integers, got"),
        (lambda d: d.classify([IMAGE], [None]), "boxes of image 0 must be floating point or integers, got object"),
        (lambda d: d.embed([IMAGE, IMAGE], [[[1, 2, 3, 4]]]), "boxes for each of 2 images, got 1"),
        (lambda d: d.classify(IMAGE, [[1, 2, 3, 4]], invalid="drop"), 'invalid must be "raise" or "nan"'),
        (lambda d: d.classify("missing.jpg", [[1, 2, 3, 4]]), "missing.jpg: no such image"),
    ],
)
def test_mistakes_are_one_line(detector, call, problem):
    with pytest.raises(InputError, match=problem):
        call(detector)


def test_svms_have_no_probabilities(model_and_variables):
    model, variables = model_and_variables
    detector = Detector(model.clone(classifier="svm"), variables, class_names=CLASS_NAMES, sizes=SIZES)
    with pytest.raises(InputError, match="svm, gives no probabilities"):
        detector.classify(IMAGE, [[1, 2, 30, 40]])
    assert detector.embed(IMAGE, [[1, 2, 30, 40]]).shape == (1, 128)


class OwnHead(nn.Module):
    """A head with a layer of its own name, in a module of its own."""

    num_classes: int = 6

    @nn.compact
    def __call__(self, pooled, train=False):
        x = nn.Dense(5)(pooled.mean(axis=(2, 3)))
        if not self.is_initializing():
            self.sow("embeddings", "mine", x)
        outputs = self.num_classes + 1
        return nn.Dense(outputs)(x), jnp.zeros((*x.shape[:2], outputs, 4))


def test_a_head_names_its_own_layers(model_and_variables):
    model = model_and_variables[0].clone(head=OwnHead())
    variables = init_variables(model, jax.random.key(0))
    assert set(variables) == {"params", "box_stats"}
    detector = Detector(model, variables, class_names=CLASS_NAMES, sizes=SIZES)
    assert detector.embed(IMAGE, [[1, 2, 30, 40]], layer="mine").shape == (1, 5)
    with pytest.raises(InputError, match="layer must be one of pooled, mine, got 'fc7'"):
        detector.embed(IMAGE, [[1, 2, 30, 40]])


def test_pretrained_weights_embed_and_do_not_classify(model_and_variables, tmp_path, workdir):
    model, variables = model_and_variables
    arrays = canonical_arrays(variables["params"], roi_size=(6, 6))
    boxes = np.float32([[0, 0, 100, 80], [20, 30, 90, 140]])
    expected = Detector(model, variables, class_names=CLASS_NAMES, sizes=SIZES)
    hidden = {name: array for name, array in arrays.items() if name.split(".")[0] not in ("cls_score", "bbox_pred")}
    convolutions = {name: array for name, array in hidden.items() if name.startswith("conv")}
    write_weights(tmp_path / "hidden.npz", hidden)
    write_weights(tmp_path / "convolutions.npz", convolutions)
    for source in (tmp_path / "hidden.npz", workdir):
        detector = Detector.from_weights(source, network="tiny", sizes=SIZES)
        for layer in ("pooled", "fc6", "fc7"):
            found = detector.embed(IMAGE, boxes, layer=layer)
            np.testing.assert_allclose(found, expected.embed(IMAGE, boxes, layer=layer), atol=1e-4)
        for call in (detector.classify, detector):
            with pytest.raises(
                InputError, match="pretrained weights without a classifier; embed gives pooled, fc6, fc7"
            ):
                call(IMAGE, boxes)
    detector = Detector.from_weights(tmp_path / "convolutions.npz", network="tiny", sizes=SIZES)
    found = detector.embed(IMAGE, boxes, layer="pooled")
    np.testing.assert_allclose(found, expected.embed(IMAGE, boxes, layer="pooled"), atol=1e-4)
    with pytest.raises(InputError, match=r"convolutions\.npz: pretrained weights without fc7; embed gives pooled"):
        detector.embed(IMAGE, boxes)
