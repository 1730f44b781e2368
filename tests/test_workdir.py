import json

import pytest

from frcnn_jax.config import get_config
from frcnn_jax.errors import InputError
from frcnn_jax.workdir import read_config


def test_a_folder_that_is_no_workdir(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json; train first"):
        read_config(tmp_path)


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
