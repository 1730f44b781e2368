from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from examples import ROOT, make_batch, run_on_devices

from frcnn_jax.data.batches import Sizes
from frcnn_jax.data.voc import read_voc
from frcnn_jax.errors import InputError
from frcnn_jax.models.layers import Conv
from frcnn_jax.models.networks import get_network
from frcnn_jax.models.parameters import merge
from frcnn_jax.models.pixels import PixelNorm
from frcnn_jax.training.batches import TrainingBatches
from frcnn_jax.training.solver import caffe_sgd, step_schedule
from frcnn_jax.training.step import AXIS, create_state, make_train_step, replicate, train_step

CLASSES = 3
NETWORK = get_network("tiny")._replace(dropout=0.5, frozen=("conv1_1",))


def make_state(optimizer):
    model = NETWORK.build(CLASSES)
    batch = make_batch(1)
    variables = jax.jit(model.init)(jax.random.key(3), batch["image"], batch["image_size"], batch["rois"])
    return model, create_state(variables, optimizer, frozen=NETWORK.frozen)


def run_step(seed=0, **options):
    """Parameters after one step, and the metrics."""
    optimizer = caffe_sgd(step_schedule(0.05, ()))
    model, state = make_state(optimizer)
    state, key = replicate((state, jax.random.key(7)))
    state, metrics = make_train_step(model, optimizer, **options)(state, make_batch(seed=seed), key)
    return jax.device_get((state.params, metrics))


def test_a_step_is_the_gradient_of_the_loss():
    """Against one jitted gradient of the whole batch's loss, written out: mean over valid RoIs, foreground only."""
    optimizer = caffe_sgd(step_schedule(0.05, ()))
    model, state = make_state(optimizer)
    batch, key = make_batch(), jax.random.key(7)

    def loss_fn(params):
        variables = {"params": merge(params, state.frozen), **state.constants}
        inputs = (batch["image"], batch["image_size"], batch["rois"])
        logits, deltas = model.apply(variables, *inputs, True, batch["index"], rngs={"dropout": key})
        of_classes = of_boxes = 0.0
        for i, r in zip(*np.nonzero(batch["roi_mask"]), strict=True):
            u = batch["labels"][i, r]
            of_classes -= jax.nn.log_softmax(logits[i, r])[u]
            if u:
                x = jnp.abs(deltas[i, r, u] - batch["box_targets"][i, r])
                of_boxes += jnp.where(x < 1, 0.5 * x**2, x - 0.5).sum()
        count = batch["roi_mask"].sum()
        return (of_classes + of_boxes) / count, (of_classes / count, of_boxes / count)

    (loss, parts), gradients = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(state.params)
    params, metrics = run_step()
    found = [metrics[name] for name in ("loss", "loss_cls", "loss_box")]
    np.testing.assert_allclose(found, [loss, *parts], rtol=1e-5)
    assert metrics["foreground"] == pytest.approx((batch["labels"] > 0).sum() / batch["roi_mask"].sum(), rel=1e-6)
    squares = [float((leaf**2).sum()) for leaf in jax.tree.leaves(gradients)]
    assert metrics["gradient_norm"] == pytest.approx(sum(squares) ** 0.5, rel=1e-4)

    def check(path, w, g, after):
        bias = path[-1].key == "bias"
        expected = w - 0.05 * (2 * g if bias else g + 5e-4 * w)
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5 + 1e-4 * np.abs(w - expected).max())

    jax.tree_util.tree_map_with_path(check, state.params, gradients, params)
    assert "conv1_1" not in params["backbone"]


def run_step_by_shard_map():
    """As `run_step`, the pure step mapped by `jax.shard_map` over a mesh of all devices."""
    optimizer = caffe_sgd(step_schedule(0.05, ()))
    model, state = make_state(optimizer)
    mesh = jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    step = partial(train_step, model=model, optimizer=optimizer)
    whole, split = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(AXIS)
    mapped = jax.shard_map(step, mesh=mesh, in_specs=(whole, split, whole), out_specs=whole, check_vma=False)
    state, metrics = jax.jit(mapped)(state, make_batch(), jax.random.key(7))
    return jax.device_get((state.params, metrics))


def assert_equal_but_for_rounding(found, expected):
    """Sums in another order, in float32: by 1e-5 of an array's largest value on a CPU without AVX-512, less with it."""

    def check(one, other):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * np.abs(other).max())

    jax.tree.map(check, found, expected)


def test_the_pure_step_runs_under_shard_map(tmp_path):
    """On one and on four devices the update that pmap makes, dropout included."""
    code = (
        "import sys, numpy as np, jax, test_step;"
        "params, metrics = test_step.run_step_by_shard_map();"
        "np.savez(sys.argv[1], loss=metrics['loss'], *map(np.asarray, jax.tree.leaves(params)))"
    )
    four = run_on_devices(code, 4, tmp_path)
    for params, metrics in (run_step(), run_step_by_shard_map()):
        np.testing.assert_allclose(four["loss"], metrics["loss"], rtol=1e-6)
        leaves = jax.tree.leaves(params)
        assert_equal_but_for_rounding([four[f"arr_{i}"] for i in range(len(leaves))], leaves)


def test_four_devices_make_the_step_of_one(tmp_path):
    """Images with few RoIs and with none among them, dropout on; one image a device against all on one."""
    code = (
        "import sys, numpy as np, jax, test_step;"
        "params, metrics = test_step.run_step();"
        "np.savez(sys.argv[1], loss=metrics['loss'], *map(np.asarray, jax.tree.leaves(params)))"
    )
    one, four = (run_on_devices(code, devices, tmp_path) for devices in (1, 4))
    assert len(one.files) > 10
    assert_equal_but_for_rounding(dict(four), dict(one))


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_make_the_step_of_the_whole_batch(parts):
    """Images with few RoIs and with none among them, dropout on."""
    expected, found = run_step(), run_step(accumulate=parts)
    assert float(found[1]["gradient_norm"]) > 0
    assert_equal_but_for_rounding(found, expected)


def test_parts_that_do_not_divide_a_device_s_images():
    with pytest.raises(InputError, match="accumulate must divide a device's 4 images, got 3"):
        run_step(accumulate=3)


def plain_network(w, image, size, rois, roi_mask):
    """One image through a small net in NumPy: -> logits, normalised deltas and all that the way back needs."""
    rows, columns = size
    x = image[:rows, :columns]
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    taps = np.stack([padded[i : i + rows, j : j + columns] for i in range(3) for j in range(3)], 2)  # (H, W, 9, 3)
    taps = taps.reshape(rows, columns, 27)
    before = taps @ w["conv"].reshape(27, -1) + w["conv_bias"]
    features = np.maximum(before, 0)
    places, pooled = [], []
    for roi in rois[roi_mask]:
        x1, y1, x2, y2 = (int(np.floor(v + 0.5)) for v in roi)  # at scale 1, all over 0
        for p in range(2):
            for q in range(2):
                ys = range(y1 + p * (y2 - y1 + 1) // 2, min(y1 - (-(p + 1) * (y2 - y1 + 1) // 2), rows))
                xs = range(x1 + q * (x2 - x1 + 1) // 2, min(x1 - (-(q + 1) * (x2 - x1 + 1) // 2), columns))
                block = features[ys.start : ys.stop, xs.start : xs.stop]
                first = block.reshape(-1, block.shape[2]).argmax(0) if block.size else None
                pooled.append(block.max((0, 1)) if block.size else np.zeros(features.shape[2]))
                places.append(None if first is None else (ys.start + first // len(xs), xs.start + first % len(xs)))
    flat = np.stack(pooled).reshape(roi_mask.sum(), -1)
    fc6 = np.maximum(flat @ w["fc6"] + w["fc6_bias"], 0)
    fc7 = np.maximum(fc6 @ w["fc7"] + w["fc7_bias"], 0)
    logits = fc7 @ w["cls_score"] + w["cls_score_bias"]
    deltas = (fc7 @ w["bbox_pred"] + w["bbox_pred_bias"]).reshape(len(fc7), -1, 4)
    return logits, deltas, (taps, before, places, flat, fc6, fc7)


def plain_gradients(w, batch):
    """Equation 1 and its gradient by every parameter, written out."""
    total, gradients = 0.0, {name: np.zeros_like(value) for name, value in w.items()}
    count = batch["roi_mask"].sum()
    for i, mask in enumerate(batch["roi_mask"]):
        if not mask.any():
            continue
        labels, targets = batch["labels"][i][mask], batch["box_targets"][i][mask]
        inputs = w, batch["image"][i], batch["image_size"][i], batch["rois"][i], mask
        logits, deltas, (taps, before, places, flat, fc6, fc7) = plain_network(*inputs)
        probs = np.exp(logits - logits.max(1, keepdims=True))
        probs /= probs.sum(1, keepdims=True)
        index = np.arange(len(labels))
        total -= np.log(probs[index, labels]).sum() / count
        d_logits = probs.copy()
        d_logits[index, labels] -= 1
        d_deltas = np.zeros_like(deltas)
        error = deltas[index, labels] - targets
        near = np.abs(error) < 1
        foreground = (labels > 0)[:, None]
        total += (np.where(near, 0.5 * error**2, np.abs(error) - 0.5) * foreground).sum() / count
        d_deltas[index, labels] = np.where(near, error, np.sign(error)) * foreground
        d_logits, d_deltas = d_logits / count, d_deltas.reshape(len(labels), -1) / count

        def back(name, inputs, gradient):
            gradients[name] += inputs.T @ gradient
            gradients[f"{name}_bias"] += gradient.sum(0)
            return gradient @ w[name].T

        d_fc7 = back("cls_score", fc7, d_logits) + back("bbox_pred", fc7, d_deltas)
        d_fc6 = back("fc7", fc6, d_fc7 * (fc7 > 0))
        d_flat = back("fc6", flat, d_fc6 * (fc6 > 0)).reshape(len(places), -1)
        d_features = np.zeros_like(before)
        for place, gradient in zip(places, d_flat, strict=True):
            if place:
                np.add.at(d_features, (*place, np.arange(len(gradient))), gradient)
        d_before = (d_features * (before > 0)).reshape(-1, before.shape[2])
        gradients["conv"] += (taps.reshape(-1, 27).T @ d_before).reshape(w["conv"].shape)
        gradients["conv_bias"] += d_before.sum(0)
    return total, gradients


def test_twenty_steps_equal_a_plain_program():
    """Loss, gradients, multipliers, decay, momentum and a change of rate against float64 NumPy that shares no code."""
    network = get_network("tiny")._replace(
        layers=(Conv("conv", 5, 3, padding=1),), roi_size=(2, 2), fc=(7, 6), spatial_scale=1.0
    )
    model, optimizer = network.build(CLASSES), caffe_sgd(step_schedule(0.02, (12,)))
    batch = make_batch(3, rois=6)
    batch["image"] /= 64
    for image, (rows, columns) in zip(batch["image"], batch["image_size"], strict=True):
        image[rows:], image[:, columns:] = 0, 0
    variables = jax.jit(model.init)(jax.random.key(3), batch["image"], batch["image_size"], batch["rois"])
    state, key = replicate((create_state(variables, optimizer), jax.random.key(7)))
    step = make_train_step(model, optimizer)

    def flat(params):
        named = {"conv": params["backbone"]["conv"], **params["head"]}
        weights = {name: np.asarray(layer["kernel"], np.float64) for name, layer in named.items()}
        return weights | {f"{name}_bias": np.asarray(layer["bias"], np.float64) for name, layer in named.items()}

    w = flat(state.params)
    velocity = {name: np.zeros_like(value) for name, value in w.items()}
    losses_of = []
    for i in range(20):
        loss, gradients = plain_gradients(w, batch)
        for name in w:
            bias = name.endswith("_bias")
            rate = (0.02 if i < 12 else 0.002) * (2 if bias else 1)
            velocity[name] = 0.9 * velocity[name] + rate * (gradients[name] + (0 if bias else 5e-4) * w[name])
            w[name] = w[name] - velocity[name]
        state, metrics = step(state, batch, key)
        assert float(metrics["loss"]) == pytest.approx(loss, rel=1e-5)
        losses_of.append(loss)
        assert state.step == i + 1
    assert losses_of[-1] < 0.9 * losses_of[0]
    for name, value in flat(state.params).items():
        np.testing.assert_allclose(value, w[name], atol=1e-5 * max(np.abs(w[name]).max(), 1))


PYTORCH_LOSSES = [
    2.0633405, 2.2147882, 2.1914657, 2.1688742, 1.9959040, 1.9044603, 1.6386214, 1.7251101, 1.4504293, 1.2624272,
    1.0265867, 1.4088948, 1.5695393, 1.4073458, 1.4202532, 1.7806487, 1.6945989, 1.6809070, 1.4914346, 1.6316701,
]  # fmt: skip
PYTORCH_NORMS = {  # of the gradients of weight and bias at the first step, and of their changes in 20 steps
    "conv1_1": (0.0520685, 0.0135596, 0.00537228, 0.0031109),
    "conv2_1": (0.212177, 0.0226651, 0.0133757, 0.00351064),
    "conv2_2": (0.321555, 0.0292306, 0.018577, 0.00399242),
    "conv3_1": (0.414309, 0.0433601, 0.0176856, 0.00425427),
    "conv3_2": (0.565956, 0.0430787, 0.0257347, 0.00438237),
    "fc6": (1.47594, 0.0440878, 0.0591397, 0.00402891),
    "fc7": (0.432395, 0.0531099, 0.0145978, 0.00385031),
    "cls_score": (7.39383, 0.789515, 0.227058, 0.0487935),
    "bbox_pred": (0.365997, 0.0280174, 0.00836104, 0.000764315),
}


@pytest.mark.slow
def test_twenty_steps_equal_pytorch(monkeypatch):
    """Images of two sizes. PyTorch's numbers are those of `benchmarks/parity.py --network tiny --rate 0.0005`."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from parity import synthetic_case, train

    training, _ = train(synthetic_case(NETWORK._replace(frozen=()), rate=0.0005))
    np.testing.assert_allclose(training.losses, PYTORCH_LOSSES, rtol=0, atol=1e-5)
    assert len(training.gradients) == len(training.changes) == 2 * len(PYTORCH_NORMS)
    for layer, norms in PYTORCH_NORMS.items():
        arrays = [of[f"{layer}.{name}"] for of in training[1:] for name in ("weight", "bias")]
        np.testing.assert_allclose([np.linalg.norm(array) for array in arrays], norms, rtol=1e-4, err_msg=layer)


def test_classes_alone():
    """Lambda 0: the box layer gets nothing but decay, and its loss is still reported."""
    optimizer = caffe_sgd(step_schedule(0.05, ()), weight_decay=0.0)
    model, state = make_state(optimizer)
    before = jax.device_get(state.params["head"]["bbox_pred"])
    state, key = replicate((state, jax.random.key(7)))
    state, metrics = make_train_step(model, optimizer, box_loss_weight=0.0)(state, make_batch(), key)
    assert float(metrics["loss"]) == float(metrics["loss_cls"])
    assert float(metrics["loss_box"]) > 0
    np.testing.assert_array_equal(state.params["head"]["bbox_pred"]["kernel"], before["kernel"])


def test_frozen_layers_have_no_momentum():
    _, state = make_state(caffe_sgd(step_schedule(0.05, ())))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert any("conv2_1" in path for path in paths)
    assert not any("conv1_1" in path for path in paths)


def test_a_batch_without_any_roi_changes_no_more_than_decay():
    optimizer = caffe_sgd(step_schedule(0.05, ()))
    model, state = make_state(optimizer)
    batch = make_batch()
    batch["roi_mask"][:] = False
    before = jax.device_get(state.params)
    state, key = replicate((state, jax.random.key(7)))
    state, metrics = make_train_step(model, optimizer)(state, batch, key)
    assert metrics["loss"] == metrics["foreground"] == 0
    jax.tree.map(
        lambda w, after: np.testing.assert_allclose(after, w, rtol=1e-4, atol=1e-7),
        before,
        jax.device_get(state.params),
    )


def count_programs(run):
    """Programs compiled while `run()` runs."""
    programs = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: programs.append(event) if event.endswith("backend_compile_duration") else None
    )
    try:
        run()
    finally:
        jax.monitoring.clear_event_listeners()
    return len(programs)


@pytest.mark.slow
def test_an_epoch_over_voc_compiles_at_most_six_programs(shared):
    """The plan of the whole epoch at a tenth of its size: one step of each kind of batch, and 20 more."""
    records = read_voc(shared / "voc" / "VOCdevkit", split="train").records
    nothing = {record.image_id: np.zeros((0, 4), np.float32) for record in records}
    stats = {"mean": np.zeros((21, 4), np.float32), "std": np.ones((21, 4), np.float32)}
    batches = TrainingBatches(records, nothing, stats, [Sizes(60, 100)], PixelNorm(), steps=2500, rois_per_image=16)
    plan = batches.plan(0)
    assert len(plan) >= 2500
    kinds = [first.size.canvas(records[first.record].height, records[first.record].width) for first, *_ in plan]
    steps = [kinds.index(kind) for kind in sorted(set(kinds))] + list(range(20))
    optimizer = caffe_sgd(step_schedule(1e-4, ()))
    model = NETWORK.build(20)
    first = batches[0]
    variables = jax.jit(model.init)(jax.random.key(3), first["image"], first["image_size"], first["rois"])
    state, key = replicate((create_state(variables, optimizer, frozen=NETWORK.frozen), jax.random.key(7)))
    step_fn = make_train_step(model, optimizer)

    def run():
        nonlocal state
        for step in steps:
            state, metrics = step_fn(state, batches[step], key)
        assert np.isfinite(metrics["loss"])

    assert 1 <= count_programs(run) <= 6


def test_state_is_a_pytree_without_python_leaves():
    _, state = make_state(caffe_sgd(step_schedule(0.05, ())))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert state.step == jnp.int32(0)
