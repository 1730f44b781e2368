import ast
from pathlib import Path

from frcnn_jax import ops

# what has to be copied along with a file into another project; all else comes from jax, numpy and the standard library
NEEDS: dict[str, set[str]] = {
    "boxes": set(), "_box_ops": {"boxes"}, "_nms": {"boxes"}, "_partition": set(),
    "_arguments": set(), "_pool_methods": {"_arguments"}, "_roi_pool": {"_arguments", "_partition", "_pool_methods"},
    "_roi_align": {"_arguments", "_partition"},
}  # fmt: skip


def test_each_file_can_be_copied_with_few_others():
    for name, needs in NEEDS.items():
        tree = ast.parse((Path(ops.__file__).parent / f"{name}.py").read_text())
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert {m for m in modules if m.startswith("frcnn_jax")} == {f"frcnn_jax.ops.{other}" for other in needs}
