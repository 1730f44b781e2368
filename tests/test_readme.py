"""The programs in README.md and docs/ run as they stand."""

import re

import pytest
from examples import ROOT

PROGRAMS = [
    pytest.param(code, id=f"{page.name}-{i}")
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for i, code in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    # these need a trained network: tests/test_detect.py, tests/test_export.py
    if "from_workdir" not in code and "detector.bin" not in code
]


@pytest.mark.parametrize("code", PROGRAMS)
def test_program_runs(code):
    names = {}
    exec(compile(code, "program", "exec"), names)
    if "model" in names:  # the one that trains
        assert names["loss"](names["params"]) < 0.2


def test_there_are_programs():
    assert len(PROGRAMS) >= 4
