import json
import os
import pickle
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import SessionLog
from test_tensorboard import read_events

from frcnn_jax import losses
from frcnn_jax.checkpoint import lock_workdir, saved_steps
from frcnn_jax.config import get_config
from frcnn_jax.datasets import read_voc
from frcnn_jax.detect import load_variables, make_model, read_config, workdir_arrays
from frcnn_jax.errors import InputError
from frcnn_jax.evaluate import evaluate_workdir
from frcnn_jax.layers import Conv
from frcnn_jax.models import FastRCNN, get_network
from frcnn_jax.pipeline import Sizes, TrainingBatches
from frcnn_jax.solver import Recipe, caffe_sgd, step_schedule
from frcnn_jax.train import (
    batch_recipe,
    create_state,
    initial_variables,
    make_train_step,
    read_metrics,
    replicate,
    train_and_evaluate,
)

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 3
NETWORK = get_network("tiny")._replace(dropout=0.5, frozen=("conv1_1",))


def make_batch(images=4, rois=16, seed=0):
    """Images with 16, 3, 1 and no RoIs, in turn."""
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (images, rois, 2, 2)), axis=2).reshape(images, rois, 4) * [63, 47, 63, 47]
    mask = np.arange(rois) < np.array([16, 3, 1, 0])[np.arange(images) % 4, None]
    return {
        "image": rng.normal(0, 50, (images, 48, 64, 3)).astype(np.float32),
        "image_size": np.array([[48, 64], [40, 64], [48, 50], [33, 44]] * images, np.int32)[:images],
        "rois": corners.astype(np.float32),
        "roi_mask": mask,
        "labels": np.where(mask, rng.integers(0, CLASSES + 1, (images, rois)), 0).astype(np.int32),
        "box_targets": rng.normal(0, 1, (images, rois, 4)).astype(np.float32),
        "index": np.arange(images, dtype=np.int32) + 12,
    }


def make_state(optimizer):
    model = FastRCNN(NETWORK, CLASSES)
    batch = make_batch(1)
    variables = jax.jit(model.init)(jax.random.key(3), batch["image"], batch["image_size"], batch["rois"])
    return model, create_state(variables, NETWORK.frozen, optimizer)


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
        joined = {part: {**params[part], **state.frozen[part]} for part in params}
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(batch["index"])
        variables = {"params": joined, "box_stats": state.box_stats}
        logits, deltas = model.apply(variables, batch["image"], batch["image_size"], batch["rois"], keys)
        total = 0.0
        for i, r in zip(*np.nonzero(batch["roi_mask"]), strict=True):
            u = batch["labels"][i, r]
            total -= jax.nn.log_softmax(logits[i, r])[u]
            if u:
                total += losses.smooth_l1(deltas[i, r, u] - batch["box_targets"][i, r]).sum()
        return total / batch["roi_mask"].sum()

    loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(state.params)
    params, metrics = run_step()
    assert metrics["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert metrics["loss"] == pytest.approx(float(metrics["loss_cls"] + metrics["loss_box"]), rel=1e-5)

    def check(path, w, g, after):
        bias = path[-1].key == "bias"
        expected = w - 0.05 * (2 * g if bias else g + 5e-4 * w)
        np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5 + 1e-4 * np.abs(w - expected).max())

    jax.tree_util.tree_map_with_path(check, state.params, gradients, params)
    assert "conv1_1" not in params["backbone"]


def test_four_devices_make_the_step_of_one(tmp_path):
    """Images with few RoIs and with none among them, dropout on; one image a device against all on one."""
    code = (
        "import sys, numpy as np; sys.path.insert(0, 'tests'); import jax, test_train;"
        "assert jax.local_device_count() == int(sys.argv[2]);"
        "params, metrics = test_train.run_step();"
        "np.savez(sys.argv[1], loss=metrics['loss'], *map(np.asarray, jax.tree.leaves(params)))"
    )
    results = []
    for devices in ("1", "4"):
        path = tmp_path / f"{devices}.npz"
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": devices, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code, str(path), devices], check=True, cwd=ROOT, env=env)
        results.append(np.load(path))
    one, four = results
    assert len(one.files) > 10
    for name in one.files:
        np.testing.assert_allclose(four[name], one[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 4])
def test_accumulated_gradients_make_the_step_of_the_whole_batch(parts):
    """Images with few RoIs and with none among them, dropout on."""
    expected, found = run_step(), run_step(accumulate=parts)
    assert float(found[1]["gradient_norm"]) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, expected)


def test_a_recipe_follows_the_batch():
    recipe = Recipe(0.001, 40_000, (30_000, 35_001), 100)
    assert recipe.for_batch(2, 2) == recipe
    assert recipe.for_batch(16, 2) == (0.008, 5000, (3750, 4376), 13)
    assert recipe.for_batch(1, 2) == (0.0005, 80_000, (60_000, 70_002), 200)
    config = {**get_config().to_dict(), "images_per_batch": 8}
    assert batch_recipe(config) == (0.04, 500, (425,), 0)


def plain_network(w, image, size, rois, roi_mask):
    """One image through a small net in NumPy: -> logits, normalised deltas and all that the way back needs."""
    rows, columns = size
    x = image[:rows, :columns] / np.float32(64)
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
    model, optimizer = FastRCNN(network, CLASSES), caffe_sgd(step_schedule(0.02, (12,)))
    batch = make_batch(3, rois=6)
    for image, (rows, columns) in zip(batch["image"], batch["image_size"], strict=True):
        image[rows:], image[:, columns:] = 0, 0
    variables = jax.jit(model.init)(jax.random.key(3), batch["image"], batch["image_size"], batch["rois"])
    state, key = replicate((create_state(variables, (), optimizer), jax.random.key(7)))
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
    assert losses_of[-1] < 0.9 * losses_of[0]
    for name, value in flat(state.params).items():
        np.testing.assert_allclose(value, w[name], atol=1e-5 * max(np.abs(w[name]).max(), 1))


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


def test_the_box_head_alone_is_trained(workdir):
    """Stage-wise training: all else, taken from a trained detector, stays as it is."""
    config = read_config(workdir)
    model = make_model({**config, "train_from": "bbox_pred"}, len(config["class_names"]))
    variables = initial_variables(model, jax.random.key(0), str(workdir))
    _, trained, _ = load_variables(workdir, config)
    head, trained_head = jax.device_get((variables["params"]["head"], trained["params"]["head"]))
    np.testing.assert_array_equal(head["cls_score"]["kernel"], trained_head["cls_score"]["kernel"])
    assert np.abs(head["bbox_pred"]["kernel"]).max() < np.abs(trained_head["bbox_pred"]["kernel"]).max()  # afresh

    optimizer = caffe_sgd(step_schedule(0.05, ()))
    before = create_state(variables, model.network.frozen, optimizer)
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(before.params)} == {"kernel", "bias"}
    state, key = replicate((before, jax.random.key(7)))
    state, _ = make_train_step(model, optimizer)(state, make_batch(), key)
    assert np.abs(state.params["head"]["bbox_pred"]["kernel"] - head["bbox_pred"]["kernel"]).max() > 0
    rest = {**jax.device_get(state.variables["params"]["head"]), "bbox_pred": None}
    jax.tree.map(np.testing.assert_array_equal, rest, {**jax.device_get(head), "bbox_pred": None})


def test_the_box_head_needs_a_trained_detector(workdir, tmp_path):
    config = read_config(workdir)
    arrays = {name: array for name, array in workdir_arrays(workdir).items() if name.startswith(("conv", "fc"))}
    np.savez(tmp_path / "w.npz", **arrays)
    alone = make_model({**config, "train_from": "bbox_pred"}, 6)
    with pytest.raises(InputError, match="no cls_score in it"):
        initial_variables(alone, jax.random.key(0), str(tmp_path / "w.npz"))
    with pytest.raises(InputError, match=r"cls_score\.bias is"):
        initial_variables(make_model({**config, "train_from": "bbox_pred"}, 5), jax.random.key(0), str(workdir))
    whole = initial_variables(make_model(config, 5), jax.random.key(0), str(workdir))  # another set of classes
    assert whole["params"]["head"]["cls_score"]["bias"].shape == (6,)


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
    assert metrics["loss"] == 0
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
    records = read_voc(shared / "voc" / "VOCdevkit", 2007, "train").records
    nothing = {record.image_id: np.zeros((0, 4), np.float32) for record in records}
    stats = {"mean": np.zeros((21, 4), np.float32), "std": np.ones((21, 4), np.float32)}
    batches = TrainingBatches(records, nothing, stats, [Sizes(60, 100)], steps=2500, rois_per_image=16)
    plan = batches.plan(0)
    assert len(plan) >= 2500
    kinds = [first.size.canvas(records[first.record].height, records[first.record].width) for first, *_ in plan]
    steps = [kinds.index(kind) for kind in sorted(set(kinds))] + list(range(20))
    optimizer = caffe_sgd(step_schedule(1e-4, ()))
    model = FastRCNN(NETWORK, 20)
    first = batches[0]
    variables = jax.jit(model.init)(jax.random.key(3), first["image"], first["image_size"], first["rois"])
    state, key = replicate((create_state(variables, NETWORK.frozen, optimizer), jax.random.key(7)))
    step_fn = make_train_step(model, optimizer)

    def run():
        nonlocal state
        for step in steps:
            state, metrics = step_fn(state, batches[step], key)
        assert np.isfinite(metrics["loss"])

    assert 1 <= count_programs(run) <= 6


def small_config(**options):
    config = get_config()
    config.update(train_images=6, val_images=2, steps=30, checkpoint_every=10, log_every=2, pictures=1, workers=1)
    config.learning_rate_drops = (20,)
    config.update(options)
    return config.to_dict()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "w"
    return workdir, train_and_evaluate(small_config(), workdir)


def start_training(workdir, **options):
    """`train_and_evaluate(small_config(**options), workdir)` in a process of its own; what it says goes to `said`."""
    script = workdir.parent / "run.py"
    script.write_text(
        "import sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\n"
        "import test_train, frcnn_jax.train, frcnn_jax.errors\n"
        "if __name__ == '__main__':\n"
        f"    config = test_train.small_config(**{options!r})\n"
        f"    run = lambda _: frcnn_jax.train.train_and_evaluate(config, Path({str(workdir)!r}))\n"
        "    frcnn_jax.errors.run_main(run)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(said(workdir), "w") as file:
        return subprocess.Popen([sys.executable, script], cwd=ROOT, env=env, stdout=file, stderr=file)


def said(workdir):
    return workdir.with_suffix(".log")


def wait_for(process, condition):
    while process.poll() is None and not condition():
        time.sleep(0.05)


def assert_same_parameters(workdir, other):
    (_, ours, step), (_, undisturbed, _) = (load_variables(w, read_config(w)) for w in (workdir, other))
    assert step == 30
    jax.tree.map(np.testing.assert_array_equal, ours, undisturbed)


@pytest.mark.slow
def test_leaves_all_it_promises(finished):
    workdir, results = finished
    names = {str(path.relative_to(workdir)) for path in workdir.rglob("*")}
    assert {
        "config.json",
        "metrics.jsonl",
        "results.json",
        "pictures/loss.png",
        "pictures/precision_recall.png",
    } <= names
    assert {"checkpoints/20", "checkpoints/30", "pictures/val_000000.png"} <= names
    assert any("tfevents" in name for name in names)
    assert [row["step"] for row in read_metrics(workdir)] == list(range(2, 31, 2))
    assert read_metrics(workdir)[-1]["learning_rate"] == pytest.approx(0.1 * read_metrics(workdir)[0]["learning_rate"])
    config = json.loads((workdir / "config.json").read_text())
    assert set(config) == set(get_config())
    assert len(config["class_names"]) >= 6
    assert results["images"] == 2
    assert json.loads((workdir / "results.json").read_text()) == results


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.slow
def test_two_processes_train_as_one(finished, tmp_path):
    """Two with two devices each against one with four: 20 steps, evaluation half-way and at the end, one writer."""
    options = {"train_images": 6, "val_images": 3, "steps": 20, "checkpoint_every": 10, "log_every": 5, "workers": 1}
    options |= {"images_per_batch": 4, "reference_images": 4, "rois_per_batch": 64, "eval_every": 10, "eval_images": 2}
    options |= {
        "learning_rate": 0.003,
        "learning_rate_drops": "(15,)",
        "pictures": 1,
        "proposal_cache": finished[0] / "proposals",
    }
    arguments = [f"--config.{name}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "frcnn_jax.train", *arguments]

    def run(workdir, devices, processes):
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": devices, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
        many = ["--coordinator", f"localhost:{free_port()}", "--num-processes", str(processes), "--process-id"]
        alike = {"env": env, "cwd": tmp_path, "text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started = [
            subprocess.Popen(
                [*command, "--workdir", str(workdir), *([*many, str(i)] if processes > 1 else [])], **alike
            )
            for i in range(processes)
        ]
        ended = [(*process.communicate(), process.returncode) for process in started]
        assert [code for *_, code in ended] == [0] * processes, ended
        return [out for out, *_ in ended]

    outputs = run(tmp_path / "two", "2", 2)
    assert "finished at step 20" in outputs[0]
    assert "finished" not in outputs[1]
    run(tmp_path / "one", "4", 1)
    (results, expected) = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("two", "one"))
    assert results["step"] == expected["step"] == 20
    assert results["map"] == pytest.approx(expected["map"], abs=1e-6)
    rows, expected_rows = (read_metrics(tmp_path / name) for name in ("two", "one"))
    assert [row["step"] for row in rows] == [row["step"] for row in expected_rows]
    _, two, _ = load_variables(tmp_path / "two", read_config(tmp_path / "two"))
    _, one, _ = load_variables(tmp_path / "one", read_config(tmp_path / "one"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), two, one)
    assert sorted(path.name for path in (tmp_path / "two" / "checkpoints").iterdir()) == sorted(
        path.name for path in (tmp_path / "one" / "checkpoints").iterdir()
    )


@pytest.mark.slow
def test_scales_parts_and_worker_processes(finished, tmp_path):
    """Trained and tested at several scales, each step in two parts, batches made in a process."""
    options = {"scales": (96, 128), "accumulate": 2, "data_workers": 1, "steps": 12, "learning_rate_drops": (10,)}
    options["profile_steps"] = (5, 6)
    cache = str(finished[0] / "proposals")
    results = train_and_evaluate(small_config(**options, proposal_cache=cache), tmp_path / "w")
    assert results["step"] == 12
    assert results["map"] is not None
    first, *_, last = read_metrics(tmp_path / "w")
    assert last["loss"] < first["loss"]
    assert last["gradient_norm"] > 0
    assert last["data_seconds"] >= 0
    assert last["device_seconds"] > 0
    assert 0.1 < last["memory_gib"] < 100
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_finished_run_says_so(finished, capsys):
    workdir, results = finished
    assert train_and_evaluate(small_config(), workdir) == results
    assert f"finished at step 30 with mAP {results['map']:.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_another_config_in_the_workdir_is_an_error(finished):
    with pytest.raises(InputError, match=r"learning_rate was 0\.01, now 0\.5"):
        train_and_evaluate(small_config(learning_rate=0.5), finished[0])


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_parameters(finished, tmp_path):
    """SIGTERM in the middle, then the same command: the parameters of the undisturbed run, to the bit."""
    workdir = tmp_path / "w"
    first = start_training(workdir)
    wait_for(first, lambda: read_metrics(workdir))
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 75
    assert "the same command goes on from there" in said(workdir).read_text()
    assert start_training(workdir).wait() == 0
    assert "goes on from step" in said(workdir).read_text()
    assert [row["step"] for row in read_metrics(workdir)][-1] == 30
    assert_same_parameters(workdir, finished[0])


@pytest.mark.slow
def test_sigterm_during_selective_search_is_no_failure(tmp_path):
    process = start_training(workdir := tmp_path / "w", train_images=600)
    wait_for(process, lambda: list(workdir.rglob("*.npy")))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert f"interrupted: the same command goes on from what {workdir} holds\n" in said(workdir).read_text()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_trained_again(finished, tmp_path, capsys):
    """An altered newest one: from the one before to the same parameters, metrics and curves."""
    shutil.copytree(finished[0], workdir := tmp_path / "w")
    (workdir / "results.json").unlink()
    damaged = next((workdir / "checkpoints" / "30" / "optimizer").rglob("_METADATA"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    train_and_evaluate(small_config(), workdir)
    said = capsys.readouterr()
    assert f"{workdir}/checkpoints/30: optimizer/_METADATA is not as it was written" in said.err
    assert "checkpoints/30 is now 30.damaged" in said.err
    assert "goes on from step 20" in said.out
    assert [row["step"] for row in read_metrics(workdir)] == list(range(2, 31, 2))
    starts = [e.step for e in read_events(workdir / "tensorboard") if e.session_log.status == SessionLog.START]
    assert starts == [1, 21]
    assert_same_parameters(workdir, finished[0])


@pytest.mark.slow
def test_scores_while_training(finished, tmp_path):
    """The best is kept, the parameters are those without evaluation; a score that a kill cut off is made up for."""
    workdir = tmp_path / "w"
    config = small_config(eval_every=8, checkpoint_every=30, keep_checkpoints=1, keep_best=1, eval_images=1)
    results = train_and_evaluate(config, workdir)
    scores = {row["step"]: row["map"] for row in read_metrics(workdir) if "map" in row}
    assert list(scores) == [8, 16, 24, 30]
    assert scores[30] == results["map"]
    best = max((step for step in scores if step < 30), key=lambda step: (scores[step], step))
    assert saved_steps(workdir) == [best, 30]
    assert scores[best] == evaluate_workdir(workdir, step=best, images=1).results["map"]
    curve = [event for event in read_events(workdir / "tensorboard") if event.summary.value[:1]]
    assert [e.step for e in curve if e.summary.value[0].tag == "map"] == list(scores)
    assert_same_parameters(workdir, finished[0])

    rows = [row for row in read_metrics(workdir) if row["step"] < best or "loss" in row]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (workdir / "results.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "30")
    assert train_and_evaluate(config, workdir)["map"] == results["map"]
    assert {row["step"]: row["map"] for row in read_metrics(workdir) if "map" in row} == scores
    assert_same_parameters(workdir, finished[0])


def test_a_second_training_in_the_workdir_refuses(tmp_path):
    pytest.importorskip("fcntl")
    with (
        lock_workdir(tmp_path),
        pytest.raises(InputError, match=f"{tmp_path}: another training runs in it; take another workdir, or wait"),
    ):
        train_and_evaluate(small_config(), tmp_path)


@pytest.mark.slow
def test_a_full_disk_stops_the_run_with_one_line(tmp_path):
    """After the first checkpoint no file may grow past 100 kB; what was saved before is whole."""
    resource = pytest.importorskip("resource")
    if not hasattr(resource, "prlimit"):
        pytest.skip("needs prlimit, to limit another process")
    process = start_training(workdir := tmp_path / "w", steps=1000)
    wait_for(process, lambda: list(workdir.glob("checkpoints/*.json")))
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    assert process.wait() == 1
    errors = said(workdir).read_text()
    failed, whole = map(int, re.search(r"checkpoints/(\d+): can't write .* step (\d+) is whole\n$", errors).groups())
    assert whole == failed - 10
    assert "Traceback" not in errors
    assert load_variables(workdir, read_config(workdir))[2] == whole


@pytest.mark.slow
def test_housekeeping_may_change(finished):
    assert train_and_evaluate(small_config(log_every=7, pictures=3), finished[0]) == finished[1]


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(InputError, match=r"not a finite number at step \d+; there is no checkpoint yet"):
        train_and_evaluate(small_config(learning_rate=1e6, checkpoint_every=50, steps=50), tmp_path / "w")


def test_a_workdir_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "w").write_text("")
    with pytest.raises(InputError, match="must be a folder"):
        train_and_evaluate(small_config(), tmp_path / "w")


def test_a_bad_config_leaves_nothing(tmp_path):
    for options, text in (
        ({"dataset": "imagenet"}, "one of synthetic, voc, xml, coco, tfds:voc/2007, tfds:voc/2012, got 'imagenet'"),
        ({"dataset": "voc"}, "needs --config.voc_dir"),
        ({"network": "resnet"}, "network must be one of"),
        ({"weights": "nowhere.npz"}, r"nowhere\.npz: no such file\. There is no file for this network"),
        ({"network": "vgg16", "weights": "v.pth"}, r"v\.pth: no such file\. There is VGG_ILSVRC.*convert_weights\.py"),
        ({"network": "alexnet"}, r"keeps conv1 as they are: give their values with --config\.weights"),
        ({"proposal_mode": "best"}, "one of fast, quality"),
        ({"images_per_batch": 0}, "images_per_batch must be over 0"),
        ({"class_names": ("cat",)}, "leave class_names empty"),
    ):
        with pytest.raises(InputError, match=text):
            train_and_evaluate(small_config(**options), tmp_path / "w")
        assert not (tmp_path / "w").exists()


def test_bad_weights_leave_nothing(workdir, tmp_path):
    """Of another network, cut short, with code in it, with a value that is no number."""
    arrays = {name: array for name, array in workdir_arrays(workdir).items() if name.startswith("conv")}
    np.savez(tmp_path / "good.npz", **arrays)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:-999])
    np.savez(tmp_path / "other.npz", **{name.replace("conv1_1", "conv9"): array for name, array in arrays.items()})
    arrays["conv2_1.weight"] = np.full_like(arrays["conv2_1.weight"], np.nan)
    np.savez(tmp_path / "nan.npz", **arrays)
    (tmp_path / "code.pth").write_bytes(pickle.dumps(os.getcwd))
    for name, text in (
        ("cut.npz", "not a readable .npz file"),
        ("other.npz", r"does not fit the network: missing conv1_1\.bias; .*extra conv9\.weight"),
        ("nan.npz", r"does not fit the network: conv2_1\.weight has values that are not finite"),
        ("code.pth", "not a .pth file"),
    ):
        with pytest.raises(InputError, match=f"{name}: {text}"):
            train_and_evaluate(small_config(weights=str(tmp_path / name)), tmp_path / "w")
        assert not (tmp_path / "w").exists()


def test_the_command_line_prints_one_line(tmp_path):
    command = [sys.executable, "-m", "frcnn_jax.train", "--workdir", str(tmp_path / "w"), "--config.stepz=3"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert run.stderr == "error: --config.stepz: no such field; near ones are steps\n"


def test_state_is_a_pytree_without_python_leaves():
    _, state = make_state(caffe_sgd(step_schedule(0.05, ())))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert state.step == jnp.int32(0)
