import json
from dataclasses import replace

import pytest
from examples import make_dataset

from frcnn_jax.config import get_config
from frcnn_jax.errors import InputError
from frcnn_jax.workdir import begun_images, check_split, load_variables, read_config, resume_config


def test_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json; train first"):
        read_config(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(InputError, match=r"checkpoints: no config\.json; did you mean its folder .*\?"):
        read_config(tmp_path / "checkpoints")


@pytest.mark.parametrize("text", ["{", "[]", '{"network": "tiny"}'])
def test_a_config_that_is_none(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json: not a config that frcnn train wrote"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("min_size", "144", r"config\.json: min_size must be of type int, got '144'"),
        ("flip", 1, r"config\.json: flip must be of type bool, got 1"),
        ("class_names", "cat", r"config\.json: class_names must be of type list, got 'cat'"),
        ("nms_iou", 3, r"config\.json: --config\.nms_iou must be from 0 to 1, got 3"),
    ],
)
def test_a_config_that_was_changed_by_hand(tmp_path, field, value, text):
    config = {**get_config().to_dict(), "class_names": ["cat"], field: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=text):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        (
            {"network": "resnet18", "fc_ranks": (4, 4)},
            r"w/config\.json: .* layers fc6 and fc7, got one with a ResNetHead",
        ),
    ],
)
def test_a_config_whose_network_cannot_be_built(tmp_path, fields, text):
    (tmp_path / "w").mkdir()
    begun(tmp_path / "w", **fields)
    with pytest.raises(InputError, match=text):
        load_variables(tmp_path / "w", read_config(tmp_path / "w"))


def begun(workdir, **fields):
    """The config of a training that has begun in a workdir."""
    config = {**get_config().to_dict(), "class_names": ("cat",), **fields}
    (workdir / "config.json").write_text(json.dumps(config))
    return config


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"steps": 3000}, ""),
        ({"steps": 1000}, ""),
        ({"steps": 3000, "learning_rate_drops": (500, 2500)}, ""),
        ({"steps": 3000, "learning_rate_drops": (500,)}, ""),
        ({"steps": 999}, "steps was 2000, is now 999"),
        ({"learning_rate_drops": (600, 1700)}, r"learning_rate_drops was \[500, 1700\], is now \[600, 1700\]"),
        ({"learning_rate_drops": (500, 900)}, "learning_rate_drops was"),
        ({"steps": 3000, "momentum": 0.5, "seed": 7}, r"momentum was 0\.9, is now 0\.5; seed was 0, is now 7"),
        ({"data_dir": "moved", "voc_dir": "moved"}, ""),
    ],
)
@pytest.mark.parametrize("images", [2, 4])
def test_what_lies_ahead_may_change(tmp_path, monkeypatch, changes, differ, images):
    """Of a batch of 4 images, step 500 is step 1000 of the config."""
    config = begun(tmp_path, learning_rate_drops=(500, 1700), images_per_batch=images)
    monkeypatch.setattr("frcnn_jax.workdir.saved_steps", lambda _: [2 * 500 // images, 2 * 1000 // images])
    changed = {**config, **changes}
    if differ:
        with pytest.raises(InputError, match=f"was trained with another config: .*{differ}"):
            resume_config(changed, tmp_path)
    else:
        assert resume_config(changed, tmp_path)["steps"] == changed["steps"]


@pytest.mark.parametrize(
    ("changes", "differ"),
    [
        ({"steps": 800, "epochs": 0.0}, ""),
        ({"epochs": 20.0}, ""),
        ({"steps": 700, "epochs": 0.0}, r"epochs was 10\.0, is now 0\.0; steps was 600, is now 700"),
        ({"epochs": 9.0}, r"epochs was 10\.0, is now 9\.0"),
    ],
)
def test_a_run_of_epochs_may_be_made_longer(tmp_path, monkeypatch, changes, differ):
    """Ten passes over 295 images, four at a time, are 738 steps."""
    fields = {"images_per_batch": 4, "reference_images": 4, "rois_per_batch": 128}
    config = begun(tmp_path, steps=600, epochs=10.0, learning_rate_drops=(), **fields)
    (tmp_path / "train_split.json").write_text('{"images": 295}')
    monkeypatch.setattr("frcnn_jax.workdir.saved_steps", lambda _: [738])
    if differ:
        with pytest.raises(InputError, match=f"was trained with another config: {differ}"):
            resume_config({**config, **changes}, tmp_path)
    else:
        assert resume_config({**config, **changes}, tmp_path).items() >= changes.items()


@pytest.mark.parametrize("content", ["[]", "{}", '{"images": "many"}', f'{{"images": {10**400}}}', "3"])
def test_a_damaged_split_is_one_line(tmp_path, content):
    assert begun_images(tmp_path) == 0
    (tmp_path / "train_split.json").write_text(content)
    with pytest.raises(InputError, match=r"train_split\.json: not a split that frcnn train wrote"):
        begun_images(tmp_path)


def test_training_resumes_on_the_same_data_alone(tmp_path):
    records = make_dataset().records
    check_split(tmp_path, records)
    moved = [replace(record, load=None) for record in records]
    check_split(tmp_path, moved)
    for other in (records[:1], [replace(records[0], boxes=records[0].boxes + 1), records[1]]):
        with pytest.raises(
            InputError, match=rf"trained on other data: 2 images and 2 objects, now {len(other)} images"
        ):
            check_split(tmp_path, other)
    for content in ("[]", "{}", "3"):
        (tmp_path / "train_split.json").write_text(content)
        with pytest.raises(InputError, match=r"train_split\.json: not a split that frcnn train wrote"):
            check_split(tmp_path, records)
