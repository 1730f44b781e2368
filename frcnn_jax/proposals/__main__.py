"""`python -m frcnn_jax.proposals`, the same as `frcnn proposals`."""

from frcnn_jax.cli import run

if __name__ == "__main__":
    run("proposals")
