"""The command `frcnn check-dataset` as a script."""

from frcnn_jax.cli import run

if __name__ == "__main__":
    run("check-dataset")
