"""Which package may import which, and what importing loads."""

import ast
import subprocess
import sys

from examples import ROOT

PACKAGE = ROOT / "frcnn_jax"
# a package imports only from those before it
ORDER = ("errors", "files", "ops", "models", "data", "proposals", "training", "evaluation")


def modules():
    return {
        path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", "."): path for path in PACKAGE.rglob("*.py")
    }


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "frcnn_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("frcnn_jax."):
            yield node.module.split(".")[1]


def test_packages_import_only_from_those_before_them():
    for name, path in modules().items():
        package = name.split(".")[0]
        if package in ORDER and package != "evaluation":
            below = [other for other in imports(path) if ORDER.index(other) > ORDER.index(package)]
            assert not below, f"{name} imports {below}"


def test_ops_can_be_lifted_out():
    for path in (PACKAGE / "ops").glob("*.py"):
        tree = ast.parse(path.read_text())
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        names = {name for name in names if not name.startswith("frcnn_jax.ops")}
        assert {name.split(".")[0] for name in names} <= {"jax", "numpy", *sys.stdlib_module_names}


def test_import_loads_nothing_heavy():
    code = "import sys, frcnn_jax; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "cv2", "grain", "matplotlib"} & set(out)
