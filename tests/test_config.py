import json
from pathlib import Path

import pytest

from frcnn_jax.config import get_config, load_config
from frcnn_jax.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


def test_defaults_and_overrides():
    config, workdir = load_config(["--workdir", "w", "--config.steps=7", "--config.learning_rate_drops=(3,4)"])
    assert workdir == Path("w")
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
