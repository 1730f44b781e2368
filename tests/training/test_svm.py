import jax
import numpy as np
import pytest

from frcnn_jax.data.batches import Sizes, prepare_test
from frcnn_jax.data.synthetic import draw_scene, read_synthetic
from frcnn_jax.errors import InputError
from frcnn_jax.models.networks import get_network
from frcnn_jax.ops.boxes import iou
from frcnn_jax.training import svm
from frcnn_jax.training.svm import HardNegativeSVMs, class_overlaps, make_features_step, train_svms, write_classifier

SIZES, PIXELS = Sizes(144, 192), get_network("tiny").pixels


def test_the_constants_are_those_of_r_cnn():
    """Negatives under IoU 0.3, over margin -1.0001 until under -1.1; a fit after 2000; mean norm 20 over 100 images."""
    constants = (svm.NEGATIVE_IOU, svm.HARD_MARGIN, svm.EASY_MARGIN, svm.REFIT_AFTER, svm.TARGET_NORM, svm.NORM_IMAGES)
    assert constants == (0.3, -1.0001, -1.1, 2000, 20, 100)


def test_class_overlaps_by_hand():
    rois = np.array([[0, 0, 9, 9], [0, 0, 9, 19]], np.float32)
    gt_boxes = np.array([[0, 0, 9, 9], [0, 10, 9, 19], [0, 0, 9, 4]], np.float32)
    found = class_overlaps(rois, gt_boxes, np.array([1, 3, 1]), 3)
    np.testing.assert_allclose(found, [[1, 0, 0], [0.5, 0, 0.5]])


def test_features_are_fc7_after_its_relu(model_and_variables):
    model, variables = model_and_variables
    rois = np.array([[3, 4, 90, 80], [30, 2, 170, 140]], np.float32)
    batch = prepare_test(draw_scene(0, "test", 1).image, rois, sizes=[SIZES], pixels=PIXELS, spatial_scale=None)
    features = np.asarray(make_features_step(model)(variables, batch))[0, :2]
    logits, _ = jax.jit(model.apply)(variables, batch["image"], batch["image_size"], batch["rois"])
    layer = variables["params"]["head"]["cls_score"]
    np.testing.assert_allclose(features @ layer["kernel"] + layer["bias"], logits[0, :2], rtol=1e-4, atol=1e-4)
    assert features.min() == 0


def solve(x, y, cost, bias):
    """The dual of the L1-hinge SVM by plain coordinate ascent: weights and offset."""
    x = np.column_stack([x, np.full(len(x), bias)])
    alpha, w = np.zeros(len(x)), np.zeros(x.shape[1])
    for _ in range(3000):
        for i in range(len(x)):
            new = np.clip(alpha[i] + (1 - y[i] * (w @ x[i])) / (x[i] @ x[i]), 0, cost[i])
            w += (new - alpha[i]) * y[i] * x[i]
            alpha[i] = new
    return w[:-1], w[-1] * bias


def test_fit_equals_a_plain_solver(rng):
    positives, negatives = rng.normal(3, 4, (8, 5)), rng.normal(-1, 4, (20, 5))
    svms = HardNegativeSVMs([positives.astype(np.float32)])
    svms.negatives = [negatives.astype(np.float32)]
    svms.fit(0)
    y = np.repeat([1, -1], [8, 20])
    weights, offset = solve(np.concatenate([positives, negatives]), y, np.where(y > 0, 0.002, 0.001), 10)
    np.testing.assert_allclose(svms.weights[0], weights, atol=1e-3)
    np.testing.assert_allclose(svms.biases[0], offset, atol=1e-3)


def test_mining_by_hand(rng, monkeypatch):
    """At margin 0 for all, every RoI with IoU under 0.3 is hard; after the fit, those over -1.0001."""
    monkeypatch.setattr(svm, "REFIT_AFTER", 5)
    svms = HardNegativeSVMs([np.full((4, 3), 9, np.float32), np.zeros((0, 3), np.float32)])
    features = np.array([[-9, -9, -9], [-8, -8, -8], [1, 1, 1]], np.float32)
    overlaps = np.array([[0, 0], [0.3, 0], [0.29, 0]], np.float32)
    svms.mine(features, overlaps)
    np.testing.assert_array_equal(svms.negatives[0], features[[0, 2]])
    np.testing.assert_array_equal(svms.added, [2, 3])
    assert not svms.weights.any()
    svms.mine(features, overlaps)
    svms.mine(features, overlaps)
    np.testing.assert_array_equal(svms.added, [0, 0])  # six new ones each
    margins = svms.negatives[0] @ svms.weights[0] + svms.biases[0]
    assert svms.weights[0].any()
    assert (margins >= svm.EASY_MARGIN).all()
    assert svms.biases[1] == np.float32(-1.1)  # no positives
    assert not svms.weights[1].any()
    svms.mine(np.full((1, 3), 1e3, np.float32), np.zeros((1, 2)))
    assert len(svms.negatives[0]) > len(margins)


def test_a_class_without_negatives_stays(rng):
    svms = HardNegativeSVMs([np.ones((2, 3), np.float32)])
    svms.fit(0)
    assert not svms.weights.any()


def test_state_comes_back(tmp_path, rng):
    svms = HardNegativeSVMs([rng.normal(0, 1, (n, 3)).astype(np.float32) for n in (2, 0)], seed=4)
    svms.mine(rng.normal(0, 1, (7, 3)).astype(np.float32), rng.uniform(0, 1, (7, 2)))
    svms.save(tmp_path / "s.npz", images=9)
    again, more = HardNegativeSVMs.load(tmp_path / "s.npz", seed=4)
    assert more == {"images": 9}
    jax.tree.map(np.testing.assert_array_equal, vars(again), vars(svms))


@pytest.mark.parametrize("content", [b"", b"PK\3\4 no", None])
def test_another_file_is_no_state(tmp_path, content):
    path = tmp_path / "s.npz"
    if content is None:
        np.savez(path, weights=np.zeros(3))
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match="not a state of SVM training"):
        HardNegativeSVMs.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"images": 8}, {"images": -1}, {"images": np.ones(2)}, {"images": 1.5}, {"scale": np.nan},
        {"scale": np.ones(3)}, {"weights": np.zeros((2, 4), np.float32)}, {"positives_0": np.zeros(3, np.float32)},
        {"negatives_1": np.zeros((1, 4), np.float32)}, {"added": np.array(["a", "b"])},
        {"added": np.zeros(2, np.uint64)}, {"negatives_1": np.zeros((1, 3))}, {"scale": "a"},
        {"biases": np.zeros(3, np.float32)}, {"biases": np.float32(0)},
    ],
)  # fmt: skip
def test_a_state_of_another_training(tmp_path, change):
    path = tmp_path / "s.npz"
    HardNegativeSVMs([np.ones((2, 3), np.float32)] * 2).save(path, scale=np.float32(0.5), images=7)
    svms, scale, mined = svm._resume(path, 0, (2, 3), 7)
    assert (len(svms.positives), scale, mined) == (2, 0.5, 7)
    np.savez(path, **{**np.load(path), **change})
    with pytest.raises(InputError, match=rf"{path}: .*; remove it to start over"):
        svm._resume(path, 0, (2, 3), 7)


def test_the_class_layer_gives_the_margins(model_and_variables, rng):
    model, variables = model_and_variables
    weights, biases = rng.normal(0, 1, (6, 128)).astype(np.float32), rng.normal(0, 1, 6).astype(np.float32)
    params = write_classifier(variables["params"], weights, biases, np.float32(0.25))
    rois = np.array([[3, 4, 90, 80], [30, 2, 170, 140]], np.float32)
    batch = prepare_test(draw_scene(0, "test", 1).image, rois, sizes=[SIZES], pixels=PIXELS, spatial_scale=None)
    features = np.asarray(make_features_step(model)(variables, batch))[0, :2]
    svm_model = model.clone(classifier="svm")
    arrays = (batch[name] for name in ("image", "image_size", "rois"))
    scores, _ = svm_model.apply({**variables, "params": params}, *arrays, method=type(svm_model).predict)
    np.testing.assert_allclose(
        scores[0, :2, 1:], 0.25 * features @ weights.T + biases, rtol=1e-3, atol=1e-3 * np.abs(features).max()
    )


@pytest.fixture
def six_images(rng):
    records = read_synthetic(split="train", images=6).records
    proposals = {record.image_id: rng.uniform(0, 140, (40, 4)).astype(np.float32) for record in records}
    for boxes in proposals.values():
        boxes.sort(axis=1)
        boxes[:, [1, 2]] = boxes[:, [2, 1]]
    return records, proposals


@pytest.mark.slow
def test_training_equals_plain_steps(model_and_variables, six_images, tmp_path, monkeypatch):
    """Norm over two images' proposals, all objects as positives, negatives of the first four images, one fit at the
    end: cost 0.001, positives twice, an offset of 10."""
    model, variables = model_and_variables
    records, proposals = six_images
    monkeypatch.setattr(svm, "NORM_IMAGES", 2)

    def features(record, boxes):
        batch = prepare_test(record.load(), boxes, sizes=[SIZES], pixels=PIXELS, spatial_scale=None)
        return np.asarray(make_features_step(model)(variables, batch))[0, : len(boxes)].astype(np.float64)

    some = np.random.default_rng(3).permutation(6)[:2]
    norms = [np.linalg.norm(features(records[i], proposals[records[i].image_id]), axis=1) for i in some]
    scale = 20 / np.concatenate(norms).mean()
    options = {"size": SIZES, "state": tmp_path / "s.npz", "negative_images": 4, "seed": 3}
    layer = train_svms(model, variables, records, proposals, **options)["head"]["cls_score"]
    _, more = HardNegativeSVMs.load(tmp_path / "s.npz")
    assert more["scale"] == pytest.approx(scale, rel=1e-5)
    assert not layer["kernel"][:, 0].any()
    assert layer["bias"][0] == 0
    label = 2
    positives = [features(r, r.boxes[r.labels == label]) for r in records if (r.labels == label).any()]
    negatives = []
    for record in records[:4]:
        boxes = np.concatenate([record.boxes, proposals[record.image_id]])
        own = record.boxes[record.labels == label]
        far = [all(iou(box[None], gt[None])[0, 0] < 0.3 for gt in own) for box in boxes]
        negatives.append(features(record, boxes[far]))
    x = np.concatenate(positives + negatives) * scale
    y = np.repeat([1, -1], [sum(map(len, positives)), sum(map(len, negatives))])
    weights, offset = solve(x, y, np.where(y > 0, 0.002, 0.001), 10)
    np.testing.assert_allclose(layer["kernel"][:, label], weights * scale, atol=2e-3 * np.abs(weights * scale).max())
    np.testing.assert_allclose(layer["bias"][label], offset, atol=2e-3)


@pytest.mark.slow
def test_training_goes_on_where_it_was(model_and_variables, six_images, tmp_path, monkeypatch):
    model, variables = model_and_variables
    records, proposals = six_images
    monkeypatch.setattr(svm, "REFIT_AFTER", 60)
    monkeypatch.setattr(svm, "SAVE_EVERY", 2)

    def run(state):
        return train_svms(model, variables, records, proposals, size=SIZES, state=state)["head"]["cls_score"]

    whole = run(tmp_path / "a.npz")
    assert whole["kernel"][:, 1:].any(axis=0).all()
    mine, calls = HardNegativeSVMs.mine, []

    def stop(self, *arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        mine(self, *arguments)

    monkeypatch.setattr(HardNegativeSVMs, "mine", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b.npz")
    monkeypatch.setattr(HardNegativeSVMs, "mine", mine)
    _, more = HardNegativeSVMs.load(tmp_path / "b.npz")
    assert more["images"] == 2
    jax.tree.map(np.testing.assert_array_equal, run(tmp_path / "b.npz"), whole)
