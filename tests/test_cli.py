"""The console command `frcnn`."""

import subprocess
import sys

import pytest
from examples import ROOT

from frcnn_jax.cli import COMMANDS, main


def test_help_lists_every_command_with_a_line_and_loads_nothing_heavy():
    code = """
import sys
from frcnn_jax.cli import main
sys.argv[1:] = ["--help"]
try:
    main()
finally:
    print(*sys.modules)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    text, loaded = out.rstrip("\n").rsplit("\n", 1)
    for name, (_, line) in COMMANDS.items():
        assert f"\n  {name:<16} {line}\n" in text
    assert not {"tensorflow", "cv2", "grain", "matplotlib", "orbax"} & set(loaded.split())


def test_every_script_is_a_command():
    modules = {module for module, _ in COMMANDS.values()}
    assert {path.stem for path in (ROOT / "scripts").glob("*.py")} <= modules
    assert all((ROOT / "frcnn_jax" / f"{module}.py").is_file() for module in modules)


def test_an_unknown_command_is_one_line_with_the_choices(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["frcnn", "trian", "--workdir", "W"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capsys.readouterr().err == f"frcnn: unknown command 'trian'; choose from {', '.join(COMMANDS)}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_usage_names_the_command(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["frcnn", name, "--help"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: frcnn {name} ")


@pytest.mark.parametrize(("argument", "code", "text"), [((), 2, "commands:\n  train"), (("--version",), 0, "0.")])
def test_without_a_command(argument, code, text, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["frcnn", *argument])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == code
    assert text in "".join(capsys.readouterr())
