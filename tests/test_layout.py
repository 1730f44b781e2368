"""The house: which package may import which, where the config ends, what importing loads."""

import ast
import subprocess
import sys

import pytest
from examples import ROOT

import frcnn_jax
from frcnn_jax.cli import COMMANDS

PACKAGE = ROOT / "frcnn_jax"
# what each part of the package may import: the parts before it
ORDER = (
    *("errors", "files", "pickles", "recipes"),
    *("ops", "models", "data", "proposals", "training", "evaluation"),
    *("config", "build", "workdir", "detector"),
    "cli",
)
EDGE = {"config", "build", "workdir", "detector", *(module for module, _ in COMMANDS.values())}


def modules():
    paths = (path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py"))
    return {".".join(path.parts): (PACKAGE / path).with_suffix(".py") for path in paths if path.name != "__init__"}


def imports(path):
    """Dotted names of the modules of this package that a module imports, local imports included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "frcnn_jax":
            module = node.module.removeprefix("frcnn_jax").lstrip(".")
            for alias in node.names:
                inner = f"{module}.{alias.name}".lstrip(".")
                if module or inner in modules():  # not `from frcnn_jax import __version__`
                    yield inner if inner in modules() else module
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("frcnn_jax.") for a in node.names if a.name.startswith("frcnn_jax."))


def rank(module):
    """The place of a module's package in the order; commands come last."""
    package = module.split(".")[0]
    return ORDER.index(package) if package in ORDER and not module.endswith("__main__") else len(ORDER)


@pytest.mark.parametrize("module", sorted(modules()))
def test_a_module_imports_only_from_the_parts_before_its_own(module):
    for other in imports(modules()[module]):
        assert rank(other) <= rank(module), f"{module} imports {other}"
        if module == "cli":
            assert other in ("errors", "training.hosts")


def test_no_module_imports_itself_in_a_circle():
    edges = {module: set(imports(path)) for module, path in modules().items()}
    while leaves := {module for module, others in edges.items() if not others & edges.keys()}:
        edges = {module: others for module, others in edges.items() if module not in leaves}
    assert not edges, f"a circle among {sorted(edges)}"


@pytest.mark.parametrize("module", sorted(modules().keys() - EDGE))
def test_the_config_stops_at_the_edge(module):
    """Below the command lines nothing takes it or looks fields up in it."""
    tree = ast.parse(modules()[module].read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    assert "config" not in names


def test_no_module_has_the_name_of_a_public_function():
    stems = {part for module in modules() for part in module.split(".")}
    assert not stems & set(frcnn_jax.__all__) - {"ops"}
    assert not any(name.split(".")[-1] in frcnn_jax.ops.__all__ for name in modules())


@pytest.mark.parametrize("name", frcnn_jax.__all__)
def test_public_names_exist_and_are_documented(name):
    thing = getattr(frcnn_jax, name)
    assert not callable(thing) or thing.__doc__


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_scripts_and_commands_are_one(command):
    module = COMMANDS[command][0]
    script = ROOT / "scripts" / f"{module}.py"
    for path in filter(lambda path: path.exists(), (script, PACKAGE / f"{module}.py")):
        assert f'run("{command}")' in path.read_text()


def test_ops_can_be_lifted_out():
    for path in (PACKAGE / "ops").glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names = {name for name in names if not name.startswith("frcnn_jax.ops")}
        allowed = {"jax", "numpy", *sys.stdlib_module_names} | ({"optax"} if path.stem == "_box_ops" else set())
        assert {name.split(".")[0] for name in names} <= allowed


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, frcnn_jax; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "tensorflow", "cv2", "grain", "matplotlib", "orbax"} & set(out)


def test_using_the_ops_and_models_loads_no_training_stack():
    code = "import sys; from frcnn_jax import FastRCNN, get_network, nms, roi_pool; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "cv2", "grain", "matplotlib", "PIL", "tensorstore", "orbax.checkpoint"} & set(out)
