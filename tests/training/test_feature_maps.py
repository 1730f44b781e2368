import os
from dataclasses import replace

import jax
import numpy as np
import pytest
from examples import run_command

from frcnn_jax.data.batches import Sizes, prepare_image
from frcnn_jax.data.synthetic import read_synthetic
from frcnn_jax.errors import InputError
from frcnn_jax.models.fast_rcnn import FastRCNN, init_variables
from frcnn_jax.models.networks import get_network
from frcnn_jax.training.batches import TrainingBatches
from frcnn_jax.training.feature_maps import StoredMaps, store_maps
from frcnn_jax.training.logs import read_metrics

SIZES = [Sizes(60, 80), Sizes(40, 80)]


@pytest.fixture(scope="module")
def scene():
    model = get_network("tiny").build(3)
    variables = jax.device_get(init_variables(model, jax.random.key(0)))
    return model, variables, read_synthetic(split="train", images=3).records


def test_batches_hold_the_maps_of_their_images(scene, tmp_path):
    model, variables, records = scene
    maps = store_maps(model, variables, records, sizes=SIZES, flip=True, folder=tmp_path)
    assert len(list(maps.folder.iterdir())) == 3 * 2 * 2
    rois = {record.image_id: record.boxes for record in records}
    stats = {"mean": np.zeros((6, 4), np.float32), "std": np.ones((6, 4), np.float32)}
    arguments = (records, rois, stats, SIZES, model.pixels, 9)
    images, stored = TrainingBatches(*arguments), TrainingBatches(*arguments, maps=maps)
    trained = model.clone(backbone=StoredMaps(model.spatial_scale, model.map_size))
    for step in range(9):
        batch, of_maps = images[step], stored[step]
        assert of_maps["image"].dtype == np.float16
        assert batch.keys() == of_maps.keys()
        for name in batch.keys() - {"image"}:
            np.testing.assert_array_equal(batch[name], of_maps[name], err_msg=name)
        expected, got = (
            net.apply(variables, own["image"], own["image_size"], method=FastRCNN.features)
            for net, own in ((model, batch), (trained, of_maps))
        )
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)


def test_a_neck_is_not_stored_but_trained(tmp_path):
    """A neck takes the stored maps, whose own sizes are those of the backbone."""
    model = get_network("efficientnet_lite0_dilated").build(3)
    variables = jax.device_get(init_variables(model, jax.random.key(0)))
    records = read_synthetic(split="train", images=1).records
    size = Sizes(90, 120)
    lower = model.clone(neck=None)
    maps = store_maps(lower, variables, records, sizes=[size], flip=False, folder=tmp_path)
    batch = prepare_image(records[0].load(), size=size, pixels=model.pixels)
    stored = maps(records[0], False, size)[None]
    assert stored.shape[3] == 112
    inputs, image_size = (batch["image"][None], stored), batch["image_size"][None]
    trained = model.clone(backbone=StoredMaps(model.spatial_scale, model.map_size))
    expected, got = (
        net.apply(variables, own, image_size, method=FastRCNN.features)
        for net, own in zip((model, trained), inputs, strict=True)
    )
    np.testing.assert_allclose(got, expected, rtol=0.02, atol=0.02 * np.abs(expected).max())
    whole = store_maps(model, variables, records, sizes=[size], flip=False, folder=tmp_path)  # of a frozen neck
    assert whole.folder != maps.folder
    trained = model.clone(backbone=StoredMaps(model.spatial_scale, model.map_size), neck=None)
    got = trained.apply(variables, whole(records[0], False, size)[None], image_size, method=FastRCNN.features)
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())


def test_only_missing_maps_are_computed(scene, tmp_path, monkeypatch):
    model, variables, records = scene
    maps = store_maps(model, variables, records, sizes=SIZES[:1], flip=True, folder=tmp_path)
    first = maps.path(records[0], True, SIZES[0])
    first.unlink()
    times = {path: path.stat().st_mtime_ns for path in maps.folder.iterdir()}
    assert store_maps(model, variables, records, sizes=SIZES[:1], flip=True, folder=tmp_path) == maps
    assert first.exists()
    assert {path: path.stat().st_mtime_ns for path in times} == times
    other = jax.tree.map(lambda array: array + 1, variables)
    assert store_maps(model, other, records[:1], sizes=SIZES[:1], flip=False, folder=tmp_path).folder != maps.folder
    first.write_bytes(first.read_bytes()[:90])
    for damage in (lambda: None, lambda: first.unlink() or os.mkfifo(first)):
        damage()
        with pytest.raises(
            InputError, match=f"{first}: a feature map is missing or damaged; delete it and start again"
        ):
            maps(records[0], True, SIZES[0])


def test_ids_of_other_images_have_maps_of_their_own(scene, tmp_path):
    """As the same names in two data sets have."""
    model, variables, records = scene
    other = [replace(records[1], image_id=records[0].image_id)]
    mine, theirs = (
        store_maps(model, variables, own, sizes=SIZES[:1], flip=False, folder=tmp_path) for own in (records[:1], other)
    )
    assert mine.path(records[0], False, SIZES[0]) != theirs.path(other[0], False, SIZES[0])
    assert len(list(mine.folder.iterdir())) == 2


def test_training_on_stored_maps(tmp_path, monkeypatch):
    """The first loss is that of training on images, and a second run computes no maps."""
    monkeypatch.chdir(tmp_path)
    options = ("train_images=4", "val_images=2", "steps=3", "pictures=0", "workers=1", "log_every=1")
    options = [f"--config.{option}" for option in options] + ["--config.freeze=('backbone',)"]
    losses = {}
    for name, more in (("images", []), ("maps", ["--config.feature_cache=F"]), ("again", ["--config.feature_cache=F"])):
        weights = ["--config.weights=images"] if name != "images" else []
        if name == "images":
            done = run_command("train", "--workdir", name, *[o for o in options if "freeze" not in o])
            assert done.returncode == 0, done.stderr
            done = run_command("train", "--workdir", "reference", *options, "--config.weights=images")
        else:
            done = run_command("train", "--workdir", name, *options, *weights, *more)
        assert done.returncode == 0, done.stderr
        assert ("features:" in done.stderr) == (name == "maps")
        losses[name] = [row["loss"] for row in read_metrics(tmp_path / ("reference" if name == "images" else name))][:3]
    np.testing.assert_allclose(losses["maps"], losses["images"], rtol=1e-3)
    assert losses["maps"] == losses["again"]
    done = run_command("train", "--workdir", "W", "--config.weights=images", "--config.feature_cache=F")
    assert done.stderr == "error: feature_cache needs a frozen backbone: pass --config.freeze='(\"backbone\",)'\n"
