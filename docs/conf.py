"""Sphinx configuration of the documentation site.

    pip install -e '.[docs]'
    sphinx-build -W -b html docs docs/_build

`-t nightly` also executes the page that trains. Cross-references to other projects need their inventories, which are
fetched only if FRCNN_JAX_DOCS_ONLINE=1; or FRCNN_JAX_DOCS_INVENTORIES names a folder with `jax.inv` and the like.
"""

import os
from pathlib import Path

import frcnn_jax

project = "frcnn_jax"
author = "the frcnn_jax authors"
release = version = frcnn_jax.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "sphinx_book_theme"
html_title = "frcnn_jax"
html_theme_options = {"navbar_persistent": []}  # one search field, in the sidebar

myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True
nb_execution_excludepatterns = [] if tags.has("nightly") else ["custom_training_loop.md"]  # noqa: F821

autosummary_generate = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
default_role = "code"  # docstrings quote code with single backticks
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style")]

PUBLIC_NAMES = {
    "flax.linen.module.Module": "flax.linen.Module",
    "jax.jaxlib._jax.Array": "jax.Array",
    "jaxlib._jax.Device": "jax.Device",
    "numpy.random._generator.Generator": "numpy.random.Generator",
    "optax._src.base.GradientTransformation": "optax.GradientTransformation",
}
PROJECTS = {
    "flax": "https://flax.readthedocs.io/en/latest/",
    "jax": "https://docs.jax.dev/en/latest/",
    "numpy": "https://numpy.org/doc/stable/",
    "optax": "https://optax.readthedocs.io/en/latest/",
    "python": "https://docs.python.org/3/",
}
intersphinx_mapping = {}
if os.getenv("FRCNN_JAX_DOCS_ONLINE") == "1":
    intersphinx_mapping = {name: (url, None) for name, url in PROJECTS.items()}
elif folder := os.getenv("FRCNN_JAX_DOCS_INVENTORIES"):
    found = {name: Path(folder).resolve() / f"{name}.inv" for name in PROJECTS}
    intersphinx_mapping = {name: (PROJECTS[name], str(path)) for name, path in found.items() if path.is_file()}


def skip_tuple_fields(app, what, name, obj, skip, options):
    """Skip the fields of a NamedTuple, which its docstring explains."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def use_public_name(app, env, node, contnode):
    """Look a class up by the name in its project's inventory; intersphinx, which comes later, then finds it."""
    node["reftarget"] = PUBLIC_NAMES.get(node.get("reftarget"), node.get("reftarget"))


def setup(app):
    """Register the hooks."""
    app.connect("autodoc-skip-member", skip_tuple_fields)
    app.connect("missing-reference", use_public_name, priority=400)
