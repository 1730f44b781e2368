"""The layers of the package, and what importing it loads."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "frcnn_jax"
LAYERS = [
    {"errors"},
    {"files", "workers"},
    {
        "config",
        "boxes",
        "roi_pool",
        "layers",
        "proposals",
        "mat_files",
        "weights",
        "weight_files",
        "checkpoint",
        "compress",
        "logs",
        "signals",
        "processes",
    },
    {"roi_align", "losses", "solver", "models", "sampling", "metrics", "datasets"},
    {"coco", "tfds_voc", "proposal_files", "comp4"},
    {"synthetic", "pipeline"},
    {"detect", "visualize", "splits", "step"},
    {"evaluate"},
    {"train", "svm", "report", "export"},
]
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "frcnn_jax":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("frcnn_jax."):
            yield node.module.split(".")[1]


def test_modules_import_only_from_the_layers_above():
    modules = {path.stem: path for path in PACKAGE.glob("*.py") if path.stem != "__init__"}
    assert set(modules) == set(LEVEL)
    for name, path in modules.items():
        below = [other for other in imports(path) if LEVEL[other] >= LEVEL[name]]
        # the command lines draw at the end, through a local import
        assert not set(below) - {"visualize"}, f"{name} imports {below}"


def test_roi_pool_can_be_lifted_out():
    tree = ast.parse((PACKAGE / "roi_pool.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= {"jax", "numpy", *sys.stdlib_module_names}


def test_import_loads_nothing_heavy():
    code = "import sys, frcnn_jax; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"tensorflow", "cv2", "grain", "matplotlib"} & set(out)


def test_every_module_has_its_tests():
    tested = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert set(LEVEL) <= tested
