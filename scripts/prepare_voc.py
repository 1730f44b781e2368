"""The command `frcnn prepare-voc` as a script."""

from frcnn_jax.cli import run

if __name__ == "__main__":
    run("prepare-voc")
