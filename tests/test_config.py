import json
from pathlib import Path

import pytest
from examples import ROOT

from frcnn_jax.config import check_config, evaluation_overrides, get_config, load_config, read_arguments
from frcnn_jax.errors import InputError


def test_defaults_and_overrides():
    config, args = load_config(["--workdir", "w", "--config.steps=7", "--config.learning_rate_drops=(3,4)"])
    assert args.workdir == Path("w")
    with pytest.raises(InputError, match="go together"):
        load_config(["--workdir", "w", "--coordinator", "localhost:1234", "--process-id", "0"])
    assert config["steps"] == 7
    assert config["learning_rate_drops"] == (3, 4)
    assert {k: v for k, v in config.items() if k not in ("steps", "learning_rate_drops")} == {
        k: v for k, v in get_config().to_dict().items() if k not in ("steps", "learning_rate_drops")
    }


@pytest.mark.parametrize("recipe", sorted((ROOT / "experiments").glob("*.py")), ids=lambda path: path.stem)
def test_recipes_are_deltas(recipe):
    config, _ = load_config(["--workdir", "w", "--config", str(recipe), "--config.seed=5"])
    assert set(config) == set(get_config())
    assert config["seed"] == 5
    json.dumps(config)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("config.learing_rate = 0.5", "learning_rate"),
        ("import no_such_module", "ModuleNotFoundError"),
        ("config = config['x']", "KeyError"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(tmp_path, line, text):
    body = ["from frcnn_jax import config as c", "def get_config():", "    config = c.get_config()", f"    {line}"]
    (tmp_path / "recipe.py").write_text("\n".join([*body, "    return config", ""]))
    with pytest.raises(InputError, match=text) as error:
        load_config(["--workdir", "w", f"--config={tmp_path / 'recipe.py'}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, r"--config\.steps must be over 0, got 0"),
        ({"log_every": -1}, "log_every must be over 0"),
        ({"workers": -1}, "workers must be 0 or more"),
        ({"nms_iou": 1.5}, r"nms_iou must be from 0 to 1, got 1\.5"),
        ({"learning_rate": float("nan")}, "learning_rate must be over 0"),
        ({"learning_rate": float("inf")}, "learning_rate must be finite"),
        ({"min_size": 300}, "max_size must be at least min_size"),
        ({"candidates_per_class": 600}, "candidates_per_class must be at most 512"),
        ({"keep_best": 1}, "keep_best must be 0 where eval_every is 0, got 1"),
        ({"images_per_batch": 200}, "rois_per_batch must be a multiple of images_per_batch, 200, got 128"),
        ({"images_per_batch": 3}, "rois_per_batch must be a multiple of images_per_batch, 3, got 128"),
        ({"learning_rate_drops": ("a",)}, "learning_rate_drops must be steps"),
    ],
)
def test_values_out_of_range(options, text):
    with pytest.raises(InputError, match=text):
        check_config({**get_config().to_dict(), **options})


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--config.stepz=3", r"--config\.stepz: no such field; near ones are steps"),
        ("--config.qqq=3", r"--config\.qqq: no such field$"),
        ("--config.steps=abc", "steps=abc"),
        ("--config.steps=1.5", "steps=1.5"),
        ("--config=nowhere.py", "nowhere.py"),
        ("--confg=3", "confg"),
        ("more", "unknown argument 'more'"),
    ],
)
def test_mistakes_are_one_line(argument, text):
    with pytest.raises(InputError, match=text) as error:
        load_config(["--workdir", "w", argument])
    assert "\n" not in str(error.value)


def test_evaluation_overrides():
    arguments = [
        "--config.test_box_regression=false",
        "--config.min_size=480",
        "--config.nms_iou=0.4",
        "--config.voc_dir=x=y",
    ]
    expected = {"test_box_regression": False, "min_size": 480, "nms_iou": 0.4, "voc_dir": "x=y"}
    assert evaluation_overrides(arguments) == expected
    assert evaluation_overrides(["--config.nms_iou=1"]) == {"nms_iou": 1}


def test_a_file_may_come_after_the_fields_that_change_it():
    recipe = str(Path(__file__).parents[1] / "experiments" / "voc07_s.py")
    for arguments in ([f"--config={recipe}"], ["--config", recipe]):
        config = read_arguments(["--config.steps=7", *arguments])
        assert (config["steps"], config["network"]) == (7, "caffenet")


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--imges=3", "unknown argument '--imges=3'"),
        ("--config.steps=3", r"--config\.steps: not a field of evaluation; those are"),
        ("--config.min_size=1.5", r"--config\.min_size must be a int, got '1\.5'"),
        ("--config.scales=144", r"--config\.scales must be a tuple, such as \(480, 576\), got '144'"),
        ("--config.min_size=__import__('os')", r"--config\.min_size must be a int"),
    ],
)
def test_mistakes_in_evaluation_overrides(argument, text):
    with pytest.raises(InputError, match=text):
        evaluation_overrides([argument])


@pytest.mark.parametrize(
    ("many", "text"),
    [
        (("host", "2", "0"), "--coordinator must be HOST:PORT, a port from 1 to 65535, got 'host'"),
        (("host:65536", "2", "0"), "--coordinator must be HOST:PORT, a port from 1 to 65535, got 'host:65536'"),
        (("host:1234", "0", "0"), "--num-processes must be at least 1, got 0"),
        (("host:1234", "2", "2"), "--process-id must be from 0 to 1, got 2"),
    ],
)
def test_mistakes_in_what_names_the_processes(many, text):
    options = zip(("--coordinator", "--num-processes", "--process-id"), many, strict=True)
    with pytest.raises(InputError, match=text):
        load_config(["--workdir", "w", *(part for option in options for part in option)])
