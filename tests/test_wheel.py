"""An installed wheel does everything without the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from examples import ROOT
from packaging.requirements import Requirement
from packaging.version import Version
from PIL import Image

import frcnn_jax
from frcnn_jax.data.synthetic import draw_scene
from frcnn_jax.errors import InputError
from frcnn_jax.recipes import recipe_path

LOWEST = "constraints/lowest.txt"
RECIPES = sorted((ROOT / "experiments").glob("*.py"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel, built from a copy: setuptools leaves `build/` in the source."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("frcnn_jax", "experiments"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", "dist", "."]
    subprocess.run(command, cwd=source, check=True)
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_recipe(wheel):
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "frcnn_jax").rglob("*.py")}
    expected |= {f"frcnn_jax/experiments/{path.name}" for path in RECIPES} | {"frcnn_jax/py.typed"}
    assert wheel.name.startswith(f"frcnn_jax-{frcnn_jax.__version__}-")
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.endswith((".py", ".typed"))} == expected


@pytest.mark.slow
def test_an_installed_wheel_trains_and_detects(wheel, tmp_path):
    """In a fresh virtual environment that borrows the dependencies of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    bin_folder = tmp_path / "venv" / "bin"
    site = sysconfig.get_path("purelib", "venv", {"base": tmp_path / "venv"})
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    install = [sys.executable, "-m", "pip", "--python", bin_folder / "python", "install", "-q", "--no-deps", wheel]
    subprocess.run(install, check=True)
    folder = tmp_path / "empty"
    folder.mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(
            [bin_folder / command[0], *map(str, command[1:])], cwd=folder, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("python", "-c", "import frcnn_jax; print(frcnn_jax.__file__)")
    assert where.startswith(str(tmp_path / "venv"))
    assert "eval-voc" in run("frcnn", "--help")
    assert run("frcnn", "proposals", "--help").startswith("usage: frcnn proposals ")
    find = "from frcnn_jax.recipes import recipe_path; print(recipe_path('voc07_l'))"
    assert run("python", "-c", find).startswith(str(tmp_path / "venv"))
    few = {"train_images": 4, "val_images": 2, "max_proposals": 50, "steps": 2, "rois_per_batch": 16, "pictures": 1}
    run("frcnn", "train", "--workdir", "W", *(f"--config.{name}={value}" for name, value in few.items()))
    Image.fromarray(draw_scene(0, "test", 3).image).save(folder / "scene.png")
    run("frcnn", "detect", "--workdir", "W", "scene.png", "--out", "found")
    assert (folder / "found" / "detections.json").is_file()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_found_by_name_and_by_path(path):
    assert recipe_path(path.stem) == path
    assert recipe_path(str(path)) == path


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("voc07l", "--config voc07l: no such recipe or file; did you mean voc07_l or "),
        (
            "experiments/none.txt",
            "--config experiments/none.txt: no such recipe or file; recipes: coco_l, coco_r50_fpn, ",
        ),
    ],
)
def test_an_unknown_recipe_lists_others(given, text):
    with pytest.raises(InputError) as error:
        recipe_path(given)
    assert str(error.value).startswith(text)


def test_the_lowest_bounds_are_the_versions_that_are_tested():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [
        *project["dependencies"],
        *(line for extra in extras if extra not in ("docs", "lint") for line in extras[extra]),
    ]
    requirements = [Requirement(line) for line in lines]
    pins = map(Requirement, (ROOT / LOWEST).read_text().splitlines()[1:])
    pinned = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins}
    for requirement in requirements:
        if requirement.name not in ("frcnn_jax", "pip"):
            (lowest,) = (bound for bound in requirement.specifier if bound.operator == ">=")
            assert Version(lowest.version) == Version(pinned[requirement.name]), requirement
    assert set(pinned) <= {requirement.name for requirement in requirements}


@pytest.mark.nightly
def test_the_fast_tests_pass_with_the_lowest_bounds(tmp_path):
    """Installs them: this needs the network, or a mirror."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    python = tmp_path / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", LOWEST, "-e", ".[test]"], cwd=ROOT, check=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PYTHONPATH"))}
    subprocess.run([python, "-m", "pytest", "-m", "not slow", "-p", "no:cacheprovider"], cwd=ROOT, env=env, check=True)
