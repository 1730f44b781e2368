"""The code in README.md and docs/ runs, and what the pages name exists."""

import re

import numpy as np
import pytest
from examples import ROOT
from PIL import Image

import frcnn_jax
from frcnn_jax.cli import COMMANDS

PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "experiments/README.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))


def page_name(page):
    return str(page.relative_to(ROOT))


def code_blocks(page, kind):
    return re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


PROGRAMS = [
    pytest.param(code, id=f"{page_name(page)}-{i}")
    for page in PAGES
    for i, code in enumerate(code_blocks(page, "python"))
    if "detector.bin" not in code  # tests/test_export.py
]
NOTEBOOKS = {page_name(page): "\n".join(cells) for page in PAGES if (cells := code_blocks(page, "{code-cell}"))}


@pytest.mark.parametrize("code", PROGRAMS)
def test_program_runs(code, workdir, tmp_path, monkeypatch):
    (tmp_path / "W").symlink_to(workdir)
    pixels = np.random.default_rng(0).integers(0, 255, (100, 140, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "program", "exec"), {})


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    exec(compile(NOTEBOOKS[name], name, "exec"), {})


def test_there_are_programs():
    assert len(PROGRAMS) >= 5
    assert {path.removeprefix("docs/") for path in NOTEBOOKS} == {
        "configuration.md", "custom_training_loop.md", "neighbours.md", "ops.md", "roi_pool.md", "second_detector.md",
        "tracking.md",
    }  # fmt: skip


def test_custom_training_loop_is_short():
    cell = code_blocks(ROOT / "docs" / "custom_training_loop.md", "{code-cell}")[0]
    lines = [line for line in cell.splitlines() if line.strip()]
    assert len(lines) <= 25
    assert {line.split()[1] for line in lines if "import" in line} == {"jax", "optax", "frcnn_jax"}


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_and_paths_exist(page):
    text = page.read_text()
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [link for link in links if ":" not in link and not (page.parent / link).exists()]
    paths = re.findall(r"(?:frcnn_jax|scripts|benchmarks|tests|experiments|docs)/[\w/]+\.(?:py|md|png)", text)
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing
    for name, link in re.findall(r"`(\w+)` (?:in|of)\s+\[[^\]]+\]\(([^)]+\.py)\)", text):
        assert re.search(rf"^(?:def |class )?{name}\b", (page.parent / link).read_text(), re.MULTILINE), (name, link)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_commands_and_recipes_exist(page):
    text = page.read_text()
    assert set(re.findall(r"(?:^ +|`)frcnn ([a-z][a-z-]*)", text, re.MULTILINE)) <= set(COMMANDS)
    recipes = {path.stem for path in (ROOT / "experiments").glob("*.py")}
    assert set(re.findall(r"--config (\w+)", text)) - {"RECIPE", "FILE"} <= recipes


def test_api_reference_is_complete():
    """Every public name is in docs/api.md, and no other."""
    listed = re.findall(r"^(?:   |\.\. py:data:: )([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    public = {*frcnn_jax.__all__, *(f"ops.{name}" for name in frcnn_jax.ops.__all__)} - {"ops"}
    flat = {f"ops.{name}" for name in frcnn_jax.__all__}  # documented under its short name
    assert sorted(listed) == sorted(public - flat)
