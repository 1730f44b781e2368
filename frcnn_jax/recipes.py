"""Recipes in experiments/, by name or by path."""

import difflib
from pathlib import Path

from frcnn_jax.errors import InputError

PACKAGE = Path(__file__).resolve().parent


def recipe_path(name_or_path: str) -> Path:
    """Return the file of a recipe such as `voc07_l`; the path of a file is returned unchanged.

    In a wheel, experiments/ is inside the package; in a checkout, next to it.

    Raises:
        InputError: There is no such recipe or file. The message suggests similar names, or lists all recipes.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    installed = PACKAGE / "experiments"
    folder = installed if installed.is_dir() else PACKAGE.parent / "experiments"
    recipes = {file.stem: file for file in sorted(folder.glob("*.py"))}
    if name_or_path in recipes:
        return recipes[name_or_path]
    near = difflib.get_close_matches(path.stem, recipes)
    hint = f"did you mean {' or '.join(near)}?" if near else f"recipes: {', '.join(recipes)}"
    raise InputError(f"--config {name_or_path}: no such recipe or file; {hint}")
